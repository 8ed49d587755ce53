"""Jobs in worker processes, with a real, tiny network: the same as in one process."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

import broken_machine
import engine_graphs
import jobs
import tone_runs
from model.systems.clapsep import network
from pipelines import separate
from pipelines.config import IN_PROCESS, Execution
from pipelines.runners.local import WorkerError

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    rows = tone_runs.write_mixtures(folder / "in", count=6, duration_s=0.9)
    rows[3]["mixture_uri"] = "gone.wav"
    rows.append({**rows[0]})  # a duplicate
    return tone_runs.write_manifest(folder / "rows.jsonl", rows)


def _arguments(manifest: Path, output: Path, model: str) -> list[str]:
    return ["--manifest", str(manifest), "--output", str(output), "--model", model,
            "--progress", "none", "--max_failure_rate", "0.5"]  # fmt: skip


@pytest.fixture(scope="module")
def alone(manifest: Path, model: str) -> Path:
    output = manifest.parent / "alone"
    arguments = _arguments(manifest, output, model)
    assert separate.run([*arguments, "--batch_size", "8", "--num_threads", "2"]) == 0
    assert len(tone_runs.table(output, "metrics")) == 5
    return output


def test_a_real_network_gives_the_same_alone_and_in_batches(
    manifest: Path, model: str, alone: Path
) -> None:
    output = manifest.parent / "single"
    arguments = _arguments(manifest, output, model)
    assert separate.run([*arguments, "--batch_size", "1", "--num_threads", "1"]) == 0
    tone_runs.assert_same_results(alone, output)


@pytest.mark.parametrize("name", ["separate", "score"])  # test_synthesize.py has the third
def test_two_worker_processes_give_the_tables_of_one(name: str, model: str, tmp_path: Path) -> None:
    job, inputs = jobs.JOBS[name], jobs.write_inputs(tmp_path / "inputs")
    for workers in ("1", "2"):
        words = job.words(inputs, tmp_path / workers, "--num_workers", workers, model=model)
        assert job.run([*words, *tone_runs.QUIET]) == 0
    jobs.assert_same(job, tmp_path / "1", tmp_path / "2")
    one, two = (tone_runs.record(tmp_path / workers) for workers in ("1", "2"))
    assert (one["counters"], one["audio_s"]) == (two["counters"], two["audio_s"])


def test_a_killed_worker_ends_the_run_and_resuming_completes_it(
    manifest: Path, model: str, alone: Path, capfd
) -> None:
    output = manifest.parent / "killed"
    arguments = _arguments(manifest, output, model)
    codes: list[int] = []
    job = threading.Thread(
        target=lambda: codes.append(separate.run([*arguments, "--num_workers", "2"])), daemon=True
    )
    job.start()
    while len(workers := _workers()) < 2:
        assert job.is_alive()
        time.sleep(0.05)
    os.kill(workers[0].pid, signal.SIGKILL)
    job.join()
    assert codes == [3]
    said = capfd.readouterr().err
    assert "a worker process ended before its work did" in said
    assert "--resume goes on" in said
    assert "Traceback" not in said
    assert tone_runs.record(output)["status"] == "failed"
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
    assert separate.run([*arguments, "--resume"]) == 0
    tone_runs.assert_same_results(alone, output)
    one, other = (tone_runs.table(each, "dead_letters") for each in (alone, output))
    assert tone_runs.comparable(one) == tone_runs.comparable(other)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_machine_that_breaks_ends_the_run_and_resuming_completes_it(
    workers: str, manifest: Path, model: str, alone: Path, tmp_path: Path, capfd
) -> None:
    arguments = [*_arguments(manifest, tmp_path / "out", model), "--batch_size", "1"]
    with pytest.MonkeyPatch.context() as patch:
        if workers == "1":
            patch.setattr(network.ClapSep, "encode", network.ClapSep.encode)
            broken_machine.break_later(network, tmp_path)
        else:
            patch.setenv(broken_machine.FOLDER_VARIABLE, str(tmp_path))
            patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
        assert separate.run([*arguments, "--num_workers", workers]) == 3
    said = capfd.readouterr().err
    assert "MachineError" in said
    assert broken_machine.MESSAGE in said
    assert "--resume goes on" in said
    assert tone_runs.record(tmp_path / "out")["status"] == "failed"
    assert separate.run([*arguments, "--resume"]) == 0
    tone_runs.assert_same_results(alone, tmp_path / "out")
    one, other = (tone_runs.table(each, "dead_letters") for each in (alone, tmp_path / "out"))
    assert tone_runs.comparable(one) == tone_runs.comparable(other)


def test_a_step_that_fails_ends_the_run_though_another_worker_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
    two = Execution(
        runner=IN_PROCESS, num_workers=2, num_threads=1, resource_hints={}, share_model=False,
        isolate_decoder=False, progress="none", log_level="warning",
    )  # fmt: skip
    graph = engine_graphs.one_fails_while_the_other_works(tmp_path)
    with pytest.raises((WorkerError, RuntimeError), match="element 0 cannot be done"):
        engine_graphs.run(graph, two, PipelineOptions([]))
    _, alive = psutil.wait_procs(_workers(), timeout=60)
    assert alive == []


def _workers() -> list[psutil.Process]:
    """The worker processes of this process's job."""
    children = psutil.Process().children()
    return [each for each in children if "pipelines.runners.local_worker" in _command(each)]


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:  # it has just ended
        return []
