"""What the launcher promises of every job: progress, interrupts, refusals, exit codes, runners."""

from __future__ import annotations

import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import jobs
import tone_runs
import toy_runner
from jobs import JOBS
from manifests.files import UNFINISHED
from pipelines import console, flags, launch, runners
from pipelines.output_folder.contents import LOCK
from transforms.elements import Clip, ScoredClip, SeparatedClip

ROOT = Path(__file__).parents[2]
WAIT_S = 120.0
ADVICE = "--resume goes on from here"
FAILED = 1
"""Rows of each manifest that fail: their recording is missing."""

pytestmark = pytest.mark.usefixtures("loaded")
each_job = pytest.mark.parametrize("name", JOBS)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def alone(inputs: Path) -> dict[str, Path]:
    """A run of each job in this process, with the tones in the place of models."""
    with tone_runs.tones_as_models():
        for name, job in JOBS.items():
            assert job.run([*job.words(inputs, inputs / name), *tone_runs.QUIET]) == 0
    return {name: inputs / name for name in JOBS}


@each_job
def test_a_finished_run_says_how_much_was_done(name: str, alone: dict[str, Path]) -> None:
    record = tone_runs.record(alone[name])
    done = jobs.NUM_ROWS - FAILED
    assert record["status"] == "finished"
    assert (record["row_counts"]["stems"], record["row_counts"]["dead_letters"]) == (done, FAILED)
    assert record["audio_s"] == pytest.approx(done * 0.9)
    assert record["config"].keys() >= {"manifests", "output", "execution"}
    assert record["settings"].keys() <= record["config"].keys() | {
        "model_sha256", "clap_sha256", "scorer_sha256",
    }  # fmt: skip


@each_job
def test_samples_are_not_pickled(
    name: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even to estimate their size, which Beam does by encoding what it has no coder for."""
    pickled: list[str] = []
    dumps = pickle.dumps

    def noting(value: Any, *how: Any, **more: Any) -> bytes:
        if isinstance(value, (Clip, SeparatedClip, ScoredClip)):
            pickled.append(type(value).__name__)
        return dumps(value, *how, **more)

    monkeypatch.setattr(pickle, "dumps", noting)
    job = JOBS[name]
    assert job.run([*job.words(inputs, tmp_path / "out"), *tone_runs.QUIET]) == 0
    assert pickled == []


class Said:
    """Standard error so far, which a test can read while a run goes on."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys, self._text = capsys, ""

    def text(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return Said(capsys)


def _until(happened: Any) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@each_job
def test_progress_lines_count_the_rows(
    name: str, inputs: Path, tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_graph = runners.run_graph
    line = re.compile(
        rf"^{jobs.NUM_ROWS} of {jobs.NUM_ROWS} clips after \d+ s, {FAILED} failed, "
        r"\d+\.\d s of audio a second$",
        re.MULTILINE,
    )

    def slow(*given: Any) -> Any:
        result = run_graph(*given)
        _until(lambda: line.search(said.text()))
        return result

    monkeypatch.setattr(console, "LINE_INTERVAL_S", 0.01)
    monkeypatch.setattr(runners, "run_graph", slow)
    job = JOBS[name]
    assert job.run(job.words(inputs, tmp_path / "out", "--progress", "log")) == 0


@each_job
def test_no_progress_is_shown_where_none_is_wanted(
    name: str, inputs: Path, tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_graph = runners.run_graph

    def watched(*given: Any) -> Any:
        assert "progress" not in {thread.name for thread in threading.enumerate()}
        return run_graph(*given)

    monkeypatch.setattr(console, "LINE_INTERVAL_S", 0.001)
    monkeypatch.setattr(runners, "run_graph", watched)
    job = JOBS[name]
    assert job.run(job.words(inputs, tmp_path / "out", "--progress", "none")) == 0
    assert said.text() == ""


STALLED = """
import sys, threading
from pathlib import Path
sys.path[:0] = ["tests", "."]
import jobs, tone_runs
from pipelines import flags
from transforms.tables import row_counts
name, marker, *words = sys.argv[1:]
add = row_counts.add
def stall(**counts):
    add(**counts)
    if row_counts.snapshot().get("done", 0) >= 2:
        Path(marker).touch()
        threading.Event().wait()
row_counts.add = stall
with tone_runs.tones_as_models():
    flags.leave(lambda: jobs.JOBS[name].run(words))
"""


@each_job
def test_an_interrupt_leaves_whole_files_and_the_next_run_completes_them(
    name: str, inputs: Path, alone: dict[str, Path], tmp_path: Path
) -> None:
    job, output, marker = JOBS[name], tmp_path / "out", tmp_path / "two rows are done"
    words = [*job.words(inputs, output), *tone_runs.QUIET]
    process = subprocess.Popen(
        [sys.executable, "-c", STALLED, name, str(marker), *words],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores Ctrl-C, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    _until(lambda: marker.exists() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, heard = process.communicate(timeout=WAIT_S)

    assert heard == f"interrupted; only complete files are left, {ADVICE}\n"
    assert process.returncode == flags.EXIT_INTERRUPTED
    assert tone_runs.record(output)["status"] == "interrupted"
    assert [path for path in output.rglob("*") if path.suffix == ".tmp"] == []
    left = jobs.audio(job, output)  # each can be decoded
    assert left.keys() <= jobs.audio(job, alone[name]).keys()
    assert bool(left) == bool(job.audio)

    assert job.run([*words, "--resume"]) == 0
    jobs.assert_same(job, alone[name], output)
    row_counts = tone_runs.record(output)["row_counts"]
    assert row_counts["finished_before"] + row_counts["stems"] == jobs.NUM_ROWS - FAILED
    assert row_counts["finished_before"] == row_counts["recovered"] > 0


def test_an_interrupt_while_libraries_are_imported_ends_with_a_line() -> None:
    code = (
        "import os, signal; from pipelines import flags; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "flags.leave(lambda: os.kill(os.getpid(), signal.SIGINT) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (flags.EXIT_INTERRUPTED, "interrupted\n")


UNUSABLE = {
    "--runner=PrismRunner": "--runner=PrismRunner is refused: Prism is a binary",
    "--runner=dask": "--runner=dask needs --dask_client_address",
    "--runner=dusk": "--runner=dusk: no such runner is known; is it dask?",
    "--direct_running_mode=multi_threading": "silently loses elements",
    "--num_workers=0": "--num_workers=0: expected at least 1",
    "--progres=log": "unknown flag --progres; is it --progress",
    "--max_failure_rate=2": "--max_failure_rate=2.0: expected a number in [0, 1]",
    "--log_level=loud": "--log_level",
}
ON_DASK = ("--runner=dask", "--dask_client_address=tcp://127.0.0.1:9", "--num_workers=2")


@each_job
@pytest.mark.parametrize("words", [*((word,) for word in UNUSABLE), ON_DASK], ids=" ".join)
def test_a_flag_that_cannot_be_used_is_refused(
    name: str, words: tuple[str, ...], inputs: Path, tmp_path: Path, said: Said
) -> None:
    job = JOBS[name]
    given = job.words(inputs, tmp_path / "out", *words)
    if words[0].startswith("--max_failure_rate"):
        given = [word for word in given if word not in ("--max_failure_rate", "0.5")]
    assert job.run(given) == flags.EXIT_USAGE
    error, see = said.text().splitlines()
    expected = UNUSABLE.get(words[0], "") if len(words) == 1 else "--num_workers=2: a Dask cluster"
    assert error.startswith("error: ")
    assert expected in error
    assert see == f"See python -m {job.command.name} --help"
    assert not (tmp_path / "out").exists()


@each_job
def test_a_missing_manifest_or_output_is_named(name: str, said: Said) -> None:
    job = JOBS[name]
    assert job.run(["--output", "out"]) == flags.EXIT_USAGE
    assert job.run(["--manifest", "rows.csv"]) == flags.EXIT_USAGE
    first, _, second, _ = said.text().splitlines()
    assert re.match(r"error: (expected --manifest URI, or --mixture|--manifest is required)", first)
    assert second == "error: --output is required"


@each_job
def test_more_failures_than_are_allowed_are_exit_code_1(
    name: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = JOBS[name]
    given = job.words(inputs, tmp_path / "out", *tone_runs.QUIET)
    given[given.index("--max_failure_rate") + 1] = "0.1"
    assert job.run(given) == flags.EXIT_FAILURE_RATE
    assert "20.0% of the rows failed; --max_failure_rate allows 10.0%" in capsys.readouterr().out
    assert tone_runs.record(tmp_path / "out")["status"] == "finished"


@each_job
def test_a_job_that_fails_is_exit_code_3_and_is_done_again(
    name: str,
    inputs: Path,
    alone: dict[str, Path],
    tmp_path: Path,
    said: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise runners.JobError("the runner says FAILED")

    job, output = JOBS[name], tmp_path / "out"
    given = job.words(inputs, output, *tone_runs.QUIET)
    with monkeypatch.context() as patch:
        patch.setattr(runners, "run_graph", fail)
        assert job.run(given) == flags.EXIT_JOB_FAILED
    story = output / "_work" / "error.txt"
    assert said.text() == (
        "error: the job failed: JobError: the runner says FAILED\n"
        f"Details are in {story}; {ADVICE}\n"
    )
    assert "Traceback" in story.read_text(encoding="utf-8")
    assert tone_runs.record(output)["status"] == "failed"
    assert job.run([*given, "--resume"]) == 0
    jobs.assert_same(job, alone[name], output)
    assert tone_runs.record(output)["row_counts"] == tone_runs.record(alone[name])["row_counts"]


# --- a runner that is added through the table ---


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The toy runner in the table; a real one touches the two files that its module names."""
    monkeypatch.setitem(runners.RUNNERS, "toy", toy_runner.PLACE)
    toy_runner.asked.clear()
    return monkeypatch


def _on_toy(inputs: Path, output: Path, *more: str) -> int:
    job = JOBS["separate"]
    words = ("--runner=toy", "--progress", "log", "--num_threads", "1", *more)
    return job.run(job.words(inputs, output, *words))


def test_a_runner_of_the_table_runs_a_job(
    inputs: Path,
    alone: dict[str, Path],
    tmp_path: Path,
    said: Said,
    toy: pytest.MonkeyPatch,
) -> None:
    toy.setattr(console, "REMOTE_LINE_INTERVAL_S", 0.01)
    assert _on_toy(inputs, tmp_path / "out") == 0
    assert toy_runner.asked == ["check", "only_builds", "open", "left_at", "running", "close"]
    assert re.search(rf"^4 of {jobs.NUM_ROWS} clips after \d+ s, 1 failed", said.text())
    jobs.assert_same(JOBS["separate"], alone["separate"], tmp_path / "out")
    assert tone_runs.record(tmp_path / "out")["config"]["execution"]["runner"] == "toy"


def test_a_runner_of_the_table_may_refuse_a_job(
    inputs: Path, tmp_path: Path, said: Said, toy: pytest.MonkeyPatch
) -> None:
    assert _on_toy(inputs, tmp_path / "refused") == flags.EXIT_USAGE
    assert "the toy does not reach it" in said.text()
    assert toy_runner.asked == ["check"]


def test_a_runner_of_the_table_may_only_build(
    inputs: Path, tmp_path: Path, toy: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.setattr(toy_runner.Toy, "builds_only", True)
    ran: list[Any] = []
    toy.setattr(runners, "run_graph", lambda *given: ran.append(given))
    assert _on_toy(inputs, tmp_path / "out") == 0
    assert toy_runner.asked == ["check", "only_builds", "open", "close"]
    assert len(ran) == 1
    assert "nothing was staged or submitted" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_runner_of_the_table_may_leave_the_job_for_others(
    inputs: Path, tmp_path: Path, toy: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.setattr(toy_runner.Toy, "leaves_at", "toys://shelf")
    toy.setattr(runners, "run_graph", lambda *_: None)
    assert _on_toy(inputs, tmp_path / "out") == 0
    assert "the job was left at toys://shelf" in capsys.readouterr().out
    assert tone_runs.record(tmp_path / "out")["status"] == "submitted"
    assert _on_toy(inputs, tmp_path / "out", "--resume") == flags.EXIT_USAGE
    assert "left to the template toys://shelf" in capsys.readouterr().err


def test_a_job_that_a_service_of_the_table_has_taken_goes_on(
    inputs: Path, tmp_path: Path, said: Said, toy: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    output = tmp_path / "out"
    toy.setattr(toy_runner.Toy, "takes_as", {"id": "toy-7"})
    toy.setattr(toy_runner.Toy, "goes_on", True)
    with toy.context() as patch:
        patch.setattr(runners, "run_graph", interrupted)
        assert _on_toy(inputs, output) == flags.EXIT_INTERRUPTED
    heard = said.text()
    assert "no longer waiting: job toy-7 of toy goes on; the same command with --resume" in heard
    assert tone_runs.record(output)["status"] == "submitted"
    assert tone_runs.record(output)["job"] == {"id": "toy-7", "runner": "toy"}
    assert (output / LOCK).exists()
    assert _on_toy(inputs, output, "--resume") == flags.EXIT_USAGE
    assert "the toy's job toy-7 goes on" in said.text()
    assert "require_ended toy-7" in toy_runner.asked
    toy.setattr(toy_runner.Toy, "goes_on", False)
    assert _on_toy(inputs, output, "--resume") == 0
    assert tone_runs.record(output)["status"] == "finished"


def test_of_a_job_that_may_go_on_where_nobody_can_ask_no_file_is_taken(
    inputs: Path, tmp_path: Path, said: Said, toy: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    theirs = output / "_work" / "staging" / f"{UNFINISHED}theirs.flac"

    def interrupted(*_: Any) -> None:
        theirs.touch()
        raise KeyboardInterrupt

    with toy.context() as patch:
        patch.setattr(runners, "run_graph", interrupted)
        assert _on_toy(inputs, output) == flags.EXIT_INTERRUPTED
    assert theirs.exists()
    advice = "no longer waiting: the job may go on at toy; the same command with --resume --force"
    assert advice in said.text()
    assert tone_runs.record(output)["status"] == "interrupted"
    assert _on_toy(inputs, output, "--resume") == flags.EXIT_USAGE
    assert "its job was left to toy, which cannot be asked here" in said.text()
    assert _on_toy(inputs, output, "--resume", "--force_unlock") == 0


def test_the_launcher_names_no_runner() -> None:
    source = Path(launch.__file__).read_text(encoding="utf-8").lower()
    names = {*(name.lower() for name in runners.RUNNERS), "dataflow", "dask", "local", "prism"}
    assert [name for name in sorted(names) if re.search(rf"\b{name}\b", source)] == []
