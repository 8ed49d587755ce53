"""Jobs on every engine: the same stems and metrics, and every row once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.transforms import environments

import broken_machine
import engine_graphs
import jobs
import tone_runs
import tones
from dask_cluster import TESTS, DaskCluster, dask_cluster
from model import devices
from model.systems.clapsep import network
from pipelines import console, runners, separate
from pipelines.config import Execution
from pipelines.runners import local
from ports import free_port, wait_for_port

START_WAIT_S = 120.0


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    rows = tone_runs.write_mixtures(folder / "in", count=12, duration_s=0.9)
    rows[3]["mixture_uri"] = "gone.wav"
    rows[5]["mixture_uri"] = rows[4]["mixture_uri"]
    rows.append({**rows[0]})  # a duplicate
    return tone_runs.write_manifest(folder / "rows.jsonl", rows)


@pytest.fixture
def cluster(scheduler: DaskCluster) -> DaskCluster:
    """Two workers, of which one does several bundles beside each other with one model for all."""
    scheduler.keep((), ("--nthreads", "4"))
    return scheduler


@pytest.fixture(scope="module")
def alone(manifest: Path, model: str) -> Path:
    output = manifest.parent / "alone"
    assert separate.run([*_arguments(manifest, output, model), "--num_threads", "2"]) == 0
    return output


def _arguments(manifest: Path, output: Path, model: str) -> list[str]:
    return ["--manifest", str(manifest), "--output", str(output), "--model", model,
            "--progress", "none", "--max_failure_rate", "0.5"]  # fmt: skip


def _assert_same(alone: Path, output: Path) -> None:
    tone_runs.assert_same_results(alone, output)
    there, here = tone_runs.record(output), tone_runs.record(alone)
    assert there["row_counts"] == here["row_counts"]
    assert there["counters"] == here["counters"]
    kept = tone_runs.comparable(tone_runs.table(output, "dead_letters"))
    assert kept == tone_runs.comparable(tone_runs.table(alone, "dead_letters"))


def test_a_dask_cluster(manifest: Path, model: str, alone: Path, cluster: DaskCluster) -> None:
    output = manifest.parent / "dask"
    where = ["--runner=dask", "--dask_client_address", cluster.address, "--batch_size", "1"]
    assert separate.run([*_arguments(manifest, output, model), *where]) == 0
    _assert_same(alone, output)
    expected, found = (
        {path.relative_to(each): path.read_bytes() for path in (each / "stems").rglob("*.flac")}
        for each in (alone, output)
    )
    assert found == expected


@pytest.mark.parametrize("name", ["score", "synthesize"])
def test_a_dask_cluster_runs_the_smaller_jobs_and_says_how_far_they_are(
    name: str,
    model: str,
    cluster: DaskCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job, inputs = jobs.JOBS[name], jobs.write_inputs(tmp_path / "inputs")
    words = job.words(inputs, tmp_path / "alone", *tone_runs.QUIET, model=model)
    assert job.run(words) == 0
    run_graph, said = runners.run_graph, ""

    def slow(*given: Any) -> Any:
        nonlocal said
        result = run_graph(*given)
        deadline_s = time.monotonic() + START_WAIT_S
        while f"{jobs.NUM_ROWS} of {jobs.NUM_ROWS} clips after" not in said:
            assert time.monotonic() < deadline_s
            said += capsys.readouterr().err
            time.sleep(0.01)
        return result

    monkeypatch.setattr(console, "REMOTE_LINE_INTERVAL_S", 0.1)
    monkeypatch.setattr(runners, "run_graph", slow)
    where = ("--runner=dask", "--dask_client_address", cluster.address, "--progress", "log")
    assert job.run(job.words(inputs, tmp_path / "dask", *where, model=model)) == 0
    jobs.assert_same(job, tmp_path / "alone", tmp_path / "dask")
    one, other = (tone_runs.record(tmp_path / each) for each in ("alone", "dask"))
    assert (one["counters"], one["audio_s"]) == (other["counters"], other["audio_s"])


SPLIT_AT = "SeparateManifest/Separate/SeparateMixtures/ReadAudio/Read/ParDo(_ReadAudioFn)"


def test_a_bundle_that_is_split_while_it_runs_does_every_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As services do where a worker is slow: the rest of its elements go to another."""
    rows = tone_runs.write_mixtures(tmp_path / "in", count=40, duration_s=0.3)
    rows[7]["mixture_uri"] = "gone.wav"
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    given = ("--manifest", manifest, "--max_failure_rate", "0.5", "--batch_size", "1")
    under_way, go_on = threading.Event(), threading.Event()
    decode = tones.ToneSeparator.decode
    splits: list[Any] = []

    def waiting(*inputs: Any) -> Any:
        under_way.set()
        assert go_on.wait(START_WAIT_S)
        return decode(*inputs)

    def manager(num_elements: int) -> Iterator[float | None]:
        if not splits and num_elements > 1:
            yield None  # the bundle begins
            assert under_way.wait(START_WAIT_S)
            splits.append((yield 0.5))
            go_on.set()

    @contextmanager
    def by_grpc(*_: Any) -> Iterator[Any]:
        environment = environments.EmbeddedPythonGrpcEnvironment.default()
        yield fn_runner.FnApiRunner(default_environment=environment), None

    with tone_runs.tones_as_models():
        assert tone_runs.run(*given, "--output", tmp_path / "alone") == 0
        monkeypatch.setattr(tones.ToneSeparator, "decode", waiting)
        monkeypatch.setattr(local, "local_runner", by_grpc)
        with fn_runner.split_manager(SPLIT_AT, manager):
            assert tone_runs.run(*given, "--output", tmp_path / "split") == 0
    (split,) = splits
    assert 0 < split.channel_splits[0].first_residual_element < 40
    _assert_same(tmp_path / "alone", tmp_path / "split")


def test_a_dask_worker_that_is_killed_costs_nothing_but_time(
    manifest: Path, model: str, alone: Path, cluster: DaskCluster
) -> None:
    output = manifest.parent / "mortal"
    codes: list[int] = []
    where = ["--runner=dask", "--dask_client_address", cluster.address, "--batch_size", "1"]
    arguments = [*_arguments(manifest, output, model), *where]
    job = threading.Thread(target=lambda: codes.append(separate.run(arguments)), daemon=True)
    job.start()
    while not list(output.glob("_work/journal/*.parquet")):
        assert job.is_alive()
        time.sleep(0.02)
    cluster.workers[0].kill()
    job.join()
    assert codes == [0]
    tone_runs.assert_same_results(alone, output)
    assert tone_runs.record(output)["row_counts"] == tone_runs.record(alone)["row_counts"]


@pytest.mark.slow
def test_a_dask_worker_whose_machine_breaks_ends_and_the_others_complete_the_run(
    manifest: Path, model: str, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(broken_machine.FOLDER_VARIABLE, str(tmp_path))
    with dask_cluster(tmp_path / "cluster", [(), ()]) as cluster:
        where = ["--runner=dask", "--dask_client_address", cluster.address, "--batch_size", "1"]
        output = tmp_path / "out"
        # A pass a window: either worker has more of them than the one that breaks waits for.
        assert separate.run([*_arguments(manifest, output, model), *where]) == 0
        broken = int((tmp_path / "broken").read_text())
        (worker,) = (each for each in cluster.workers if each.pid == broken)
        assert worker.wait(START_WAIT_S) == devices.EXIT_BROKEN
    tone_runs.assert_same_results(alone, output)
    assert tone_runs.record(output)["row_counts"] == tone_runs.record(alone)["row_counts"]


STAGES = {
    "reading the manifest": "transforms.manifest_io:iter_split",
    "admitting rows": "transforms.manifest_io:first_of",
    "attaching queries": "transforms.queries:attach",
    "reading audio": "transforms.reading:read",
    "keeping rows": "transforms.tables.metrics_rows:write_piece",
    "writing tables": "transforms.tables:sorted_table",
    "summarising": "transforms.tables.summary:summarise",
    "counting rows": "transforms.tables.row_counts:_write",
}
"""Of the main job, each with a function that runs in it."""


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_dask_worker_that_dies_in_any_stage_costs_no_row(
    stage: str,
    manifest: Path,
    model: str,
    alone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(broken_machine.DEATH_VARIABLE, f"{tmp_path}:{STAGES[stage]}")
    with dask_cluster(tmp_path / "cluster", [(), ()]) as cluster:
        where = ["--runner=dask", "--dask_client_address", cluster.address]
        output = tmp_path / "out"
        assert separate.run([*_arguments(manifest, output, model), *where]) == 0
        dead = int((tmp_path / "died").read_text())
        (worker,) = (each for each in cluster.workers if each.pid == dead)
        assert worker.wait(START_WAIT_S) == -signal.SIGKILL
    tone_runs.assert_same_results(alone, output)
    assert tone_runs.record(output)["row_counts"] == tone_runs.record(alone)["row_counts"]


@contextmanager
def _serving(folder: Path, module: str, *arguments: str) -> Iterator[str]:
    """A server of Beam's in a process of its own; gives its address."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    # A pool starts its workers as ``python``, which need not be this one, or there at all.
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": path, "PATH": programs}
    port = free_port()
    words = (each.format(port=port) for each in arguments)
    command = [sys.executable, "-m", f"apache_beam.runners.{module}", *words]
    with (folder / f"{module}.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
    try:
        wait_for_port(port, START_WAIT_S)
        yield f"localhost:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Beam's local job service."""
    folder = tmp_path_factory.mktemp("service")
    name = "portability.local_job_service_main"
    given = ("--port", "{port}", "--staging_dir", str(folder / "staging"))
    with _serving(folder, name, *given) as address:
        yield address


def _pool(folder: Path) -> AbstractContextManager[str]:
    """A pool of SDK workers, with the variables that are there now."""
    return _serving(folder, "worker.worker_pool_main", "--service_port", "{port}")


@pytest.fixture(scope="module")
def portable(service: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    with _pool(tmp_path_factory.mktemp("pool")) as pool:
        yield service, pool


def test_a_job_service_with_a_separate_worker(
    manifest: Path, model: str, alone: Path, portable: tuple[str, str]
) -> None:
    output = manifest.parent / "external"
    where = ["--runner=PortableRunner", "--job_endpoint", portable[0],
             "--environment_type=EXTERNAL", "--environment_config", portable[1]]  # fmt: skip
    assert separate.run([*_arguments(manifest, output, model), *where]) == 0
    _assert_same(alone, output)


@pytest.mark.slow
def test_a_job_service_that_works_in_the_launcher(
    manifest: Path, model: str, alone: Path, portable: tuple[str, str]
) -> None:
    output = manifest.parent / "loopback"
    where = ["--runner=PortableRunner", "--job_endpoint", portable[0],
             "--environment_type=LOOPBACK"]  # fmt: skip
    assert separate.run([*_arguments(manifest, output, model), *where]) == 0
    _assert_same(alone, output)


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["EXTERNAL", "LOOPBACK"])
def test_a_machine_that_breaks_behind_a_job_service_ends_the_run_and_resuming_completes_it(
    environment: str, manifest: Path, model: str, alone: Path, service: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(broken_machine.FOLDER_VARIABLE, str(tmp_path))
        if environment == "LOOPBACK":
            patch.setattr(network.ClapSep, "encode", network.ClapSep.encode)
            broken_machine.break_later(network, tmp_path)
        with _pool(tmp_path) as pool:
            where = ["--runner=PortableRunner", "--job_endpoint", service,
                     f"--environment_type={environment}", "--batch_size", "1"]  # fmt: skip
            where += ["--environment_config", pool] if environment == "EXTERNAL" else []
            assert separate.run([*_arguments(manifest, output, model), *where]) == 3
    assert tone_runs.record(output)["status"] == "failed"
    assert separate.run([*_arguments(manifest, output, model), "--resume"]) == 0
    tone_runs.assert_same_results(alone, output)
    kept = tone_runs.comparable(tone_runs.table(output, "dead_letters"))
    assert kept == tone_runs.comparable(tone_runs.table(alone, "dead_letters"))


def test_a_step_that_fails_behind_a_job_service_is_said(portable: tuple[str, str]) -> None:
    flags = ["--runner=PortableRunner", "--job_endpoint", portable[0],
             "--environment_type=EXTERNAL", "--environment_config", portable[1]]  # fmt: skip
    where = Execution(
        runner="PortableRunner", num_workers=1, num_threads=1, resource_hints={},
        isolate_decoder=False, progress="none", log_level="warning",
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="element 7 cannot be done"):
        engine_graphs.run(engine_graphs.failing(), where, PipelineOptions(flags))
