"""Jobs in worker processes, with a real, tiny network: the same as in one process."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from ast import literal_eval
from pathlib import Path

import psutil
import pytest
import torch
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_fn_api_pb2 as fn_api
from apache_beam.portability.api import metrics_pb2

import broken_machine
import engine_graphs
import jobs
import tone_runs
from model import devices
from model.systems.clapsep import network
from pipelines import separate
from pipelines.config import IN_PROCESS, Execution
from pipelines.runners import local
from pipelines.runners.local import WorkerError, WorkerWatch
from transforms.tables import row_counts

TESTS = Path(__file__).parents[1]
TWO = Execution(
    runner=IN_PROCESS, num_workers=2, num_threads=1, resource_hints={},
    isolate_decoder=False, progress="none", log_level="warning",
)  # fmt: skip


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


def test_windows_and_embeddings_are_the_same_in_worker_processes(
    manifest: Path, model: str, tmp_path: Path
) -> None:
    for workers in ("1", "2"):
        arguments = _arguments(manifest, tmp_path / workers, model)
        asked = ["--screen", "0", "--embeddings", "--num_workers", workers]
        assert separate.run([*arguments, *asked]) == 0
    one, two = tmp_path / "1", tmp_path / "2"
    files = [{f.name: f.read_bytes() for f in (out / "windows").iterdir()} for out in (one, two)]
    assert files[0] == files[1]
    assert len(files[0]) == 5
    tables = [tone_runs.table(out, "embeddings") for out in (one, two)]
    assert tables[0] == tables[1]
    tone_runs.assert_same_results(one, two)


def test_a_real_network_gives_the_same_alone_and_in_batches(
    manifest: Path, model: str, alone: Path
) -> None:
    output = manifest.parent / "single"
    arguments = _arguments(manifest, output, model)
    assert separate.run([*arguments, "--batch_size", "1", "--num_threads", "1"]) == 0
    tone_runs.assert_same_results(alone, output)


def test_two_worker_processes_give_the_tables_of_one(model: str, tmp_path: Path) -> None:
    """Of score; test_numbers.py has the main job, and test_synthesize.py the third."""
    job, inputs = jobs.JOBS["score"], jobs.write_inputs(tmp_path / "inputs")
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
    graph = engine_graphs.one_fails_while_the_other_works(tmp_path)
    with pytest.raises((WorkerError, RuntimeError), match="element 0 cannot be done"):
        engine_graphs.run(graph, TWO, PipelineOptions([]))
    _, alive = psutil.wait_procs(_workers(), timeout=60)
    assert alive == []


@pytest.mark.parametrize("how", ["loops", "stopped"])
def test_a_worker_that_hangs_ends_the_run(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
    (tmp_path / "tally").mkdir()
    monkeypatch.setenv(row_counts.FOLDER_VARIABLE, str(tmp_path / "tally"))
    monkeypatch.setattr(local, "STOP_WAIT_S", 2.0)
    two = dataclasses.replace(TWO, max_silence_s=3.0)
    graph = engine_graphs.one_hangs_while_the_other_works(tmp_path, how)
    with pytest.raises(WorkerError, match="no sign of life for 3 s, as --max_silence_s allows"):
        engine_graphs.run(graph, two, PipelineOptions([]))
    _, alive = psutil.wait_procs(_workers(), timeout=60)
    assert alive == []


@pytest.mark.slow
def test_a_run_whose_worker_is_stopped_ends_and_is_completed(
    manifest: Path, model: str, alone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A worker that is stopped when it has given results, by a signal as a user would send it."""
    arguments = _arguments(manifest, tmp_path / "out", model)
    more = ["--num_workers", "2", "--max_silence_s", "3", "--batch_size", "1"]
    codes: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "STOP_WAIT_S", 2.0)
        job = threading.Thread(target=lambda: codes.append(separate.run([*arguments, *more])))
        job.start()
        journal = tmp_path / "out" / "_work" / "journal"
        while not list(journal.glob("*.parquet")):
            assert job.is_alive()
            time.sleep(0.01)
        for worker in _workers():
            with contextlib.suppress(psutil.Error):
                worker.suspend()
        job.join()
    if codes == [0]:
        pytest.skip("the workers had done everything before they could be stopped")
    assert codes == [3]
    assert "has given no sign of life for 3 s" in capfd.readouterr().err
    assert tone_runs.record(tmp_path / "out")["status"] == "failed"
    assert _workers() == []
    assert separate.run([*arguments, "--resume"]) == 0
    tone_runs.assert_same_results(alone, tmp_path / "out")


class _Clock:
    now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s


class _Worker:
    """A worker process as the watch sees it, which says how far it is when it is asked."""

    def __init__(self, watch: WorkerWatch, name: str) -> None:
        self.worker_id, self.connection = name, local._WatchedConnection(watch)
        self.elements = 0
        watch.started(self)  # type: ignore[arg-type]
        self.connection.push(_instruction("bundle"))

    def answer(self, *, error: str = "") -> None:
        for asked in tuple(self.connection._asked):
            infos = [
                metrics_pb2.MonitoringInfo(
                    urn="beam:metric:element_count:v1", payload=bytes([self.elements])
                ),
                _info("beam:metric:msecs", os.urandom(8)),
            ]
            progress = fn_api.ProcessBundleProgressResponse(monitoring_infos=infos)
            found = fn_api.InstructionResponse(
                instruction_id=asked, error=error, process_bundle_progress=progress
            )
            self.connection._heard(found)

    def finish(self) -> None:
        self.connection._heard(fn_api.InstructionResponse(instruction_id="bundle"))


def _info(urn: str, payload: bytes) -> metrics_pb2.MonitoringInfo:
    return metrics_pb2.MonitoringInfo(urn=urn, payload=payload)


def _instruction(name: str) -> fn_api.InstructionRequest:
    return fn_api.InstructionRequest(
        instruction_id=name, process_bundle=fn_api.ProcessBundleRequest()
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    found = _Clock()
    monkeypatch.setattr(local, "time", found)
    return found


@pytest.fixture
def watch(tmp_path: Path, clock: _Clock, monkeypatch: pytest.MonkeyPatch) -> WorkerWatch:
    monkeypatch.setenv(row_counts.FOLDER_VARIABLE, str(tmp_path))
    return WorkerWatch(tmp_path, max_silence_s=100.0)


def _first_result(tmp_path: Path) -> None:
    (tmp_path / "7.json").write_text('{"done": 1}', encoding="ascii")


def _pass(watch: WorkerWatch, clock: _Clock, seconds: int, *workers: _Worker) -> None:
    for _ in range(seconds // 10):
        clock.now_s += 10.0
        watch.check()
        for worker in workers:
            worker.answer()


def test_silence_counts_from_the_first_result(
    watch: WorkerWatch, clock: _Clock, tmp_path: Path
) -> None:
    _Worker(watch, "a")
    _pass(watch, clock, 10_000)
    _first_result(tmp_path)
    _pass(watch, clock, 100)
    with pytest.raises(WorkerError, match="no sign of life for 100 s"):
        _pass(watch, clock, 50)


def test_a_worker_that_goes_on_is_not_silent(
    watch: WorkerWatch, clock: _Clock, tmp_path: Path
) -> None:
    worker = _Worker(watch, "a")
    _first_result(tmp_path)
    for _ in range(5):
        worker.elements += 1
        _pass(watch, clock, 90, worker)
    (tmp_path / "a.pid").write_text("8", encoding="ascii")
    for windows in range(5):  # no element ends, but its windows go through the network
        (tmp_path / "8.json").write_text(f'{{"windows": {windows}}}', encoding="ascii")
        _pass(watch, clock, 90, worker)
    with pytest.raises(WorkerError, match=r"a worker process \(8\) has given no sign"):
        _pass(watch, clock, 200, worker)  # it answers, and nothing but times has changed


def test_a_worker_without_work_is_not_silent(
    watch: WorkerWatch, clock: _Clock, tmp_path: Path
) -> None:
    worker = _Worker(watch, "a")
    _first_result(tmp_path)
    _pass(watch, clock, 50, worker)
    worker.finish()
    _pass(watch, clock, 5_000, worker)
    worker.connection.push(_instruction("another"))
    _pass(watch, clock, 90, worker)


def test_time_in_which_all_were_stopped_does_not_count(
    watch: WorkerWatch, clock: _Clock, tmp_path: Path
) -> None:
    worker = _Worker(watch, "a")
    _first_result(tmp_path)
    _pass(watch, clock, 50, worker)
    clock.now_s += 10_000.0  # Ctrl-Z, and fg
    _pass(watch, clock, 40, worker)


def test_silence_can_be_allowed(tmp_path: Path, clock: _Clock) -> None:
    watch = WorkerWatch(tmp_path, max_silence_s=0.0)
    _Worker(watch, "a")
    _first_result(tmp_path)
    _pass(watch, clock, 100_000)


def test_an_interrupt_of_the_terminal_does_not_reach_a_worker_that_still_imports(
    tmp_path: Path,
) -> None:
    runners = tmp_path / "pipelines" / "runners"
    runners.mkdir(parents=True)
    for package in (runners.parent, runners):
        (package / "__init__.py").touch()  # before those on PYTHONPATH
    (runners.parent / "flags.py").write_text(
        "import contextlib, os, signal\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "without_collections = contextlib.nullcontext\n",
        encoding="utf-8",
    )
    (runners / "local_worker.py").write_text("def run(argv): print(argv)\n", encoding="utf-8")
    process = subprocess.run(
        [sys.executable, "-c", local._WORKER, "folder"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        # What a shell starts in the background ignores Ctrl-C, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "['folder']\n", "")


# --- a GPU for each worker ---


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("auto", None, ["0", "0", "1", "1", "2"]),
        ("cuda", None, ["0", "0", "1", "1", "2"]),
        ("cuda:0,2", None, ["0", "0", "0", "2", "2"]),
        ("cuda:1", None, ["1"] * 5),
        ("cuda:2,0", "GPU-a,GPU-b,GPU-c", ["GPU-a", "GPU-a", "GPU-c", "GPU-c", "GPU-c"]),
        ("cpu", "5,6,7", [None] * 5),
    ],
)
def test_workers_have_the_gpus_in_turn(
    device: str,
    visible: str | None,
    expected: list[str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "num_gpus", lambda: 3)
    monkeypatch.delenv(devices.VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(devices.VISIBLE, visible)
    watch = WorkerWatch(tmp_path, devices.visible_gpus(device))
    found: list[str | None] = []
    for number in range(5):
        command = watch.command_of_next(b"exec python -c program x 1")
        assert command.endswith(b"python -c program x 1")
        given = re.search(rb"exec env CUDA_VISIBLE_DEVICES=(\S+) ", command)
        found.append(given[1].decode() if given else None)
        _Worker(watch, str(number))
    assert sorted(found, key=str) == expected


def test_a_worker_sees_its_gpu_before_torch_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
    monkeypatch.setattr(devices, "num_gpus", lambda: 2)
    monkeypatch.delenv(devices.VISIBLE, raising=False)
    two = dataclasses.replace(TWO, device="auto")
    engine_graphs.run(engine_graphs.environments(tmp_path), two, PipelineOptions([]))
    seen = {literal_eval(text) for text in engine_graphs.kept(tmp_path)["seen"]}
    assert {(gpu, has_torch) for _, gpu, has_torch, _ in seen} == {("0", False), ("1", False)}
    assert len({pid for pid, *_ in seen}) == 2
    assert all(frozen for *_, frozen in seen)  # what was imported is not searched for garbage


@pytest.mark.slow
def test_each_worker_of_a_job_has_a_gpu(
    manifest: Path, model: str, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two GPUs that are none: the workers find none, and ``auto`` is the CPU."""
    monkeypatch.setattr(devices, "num_gpus", lambda: 2)
    monkeypatch.setattr(devices, "require_precision", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"card {number}")
    arguments = [*_arguments(manifest, tmp_path / "out", model), "--num_workers", "2"]
    job = threading.Thread(target=separate.run, args=(arguments,))
    job.start()
    seen: set[str] = set()
    while job.is_alive():
        for worker in _workers():
            with contextlib.suppress(psutil.Error):
                seen.add(worker.environ().get(devices.VISIBLE, "all"))
        time.sleep(0.05)
    assert seen == {"0", "1"}
    taken = tone_runs.record(tmp_path / "out")["device"]["taken"]
    assert taken.startswith("cuda:0,1 (card 0, card 1; ")
    tone_runs.assert_same_results(alone, tmp_path / "out")


def test_gpus_that_are_not_there_are_refused(
    manifest: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(devices, "num_gpus", lambda: 2)
    arguments = _arguments(manifest, tmp_path / "out", model)
    for more, said in (
        (["--device", "cuda:0,2", "--num_workers", "2"], "has 2 GPUs, cuda:0 to cuda:1"),
        (["--device", "cuda:0,1"], "add --num_workers 2"),
        (["--device", "cuda:0,1", "--runner=dask", "--dask_client_address=a"], "has its own"),
        (["--device", "cuda:0,", "--num_workers", "2"], "expected auto, cpu, cuda or cuda:N"),
        (["--max_silence_s", "-1"], "--max_silence_s=-1.0: expected seconds"),
    ):
        assert separate.run([*arguments, *more]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def _workers() -> list[psutil.Process]:
    """The worker processes of this process's job."""
    children = psutil.Process().children()
    return [each for each in children if local._WORKER in _command(each)]


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:  # it has just ended
        return []
