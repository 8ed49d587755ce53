"""Runs that were stopped, and what goes on from there."""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest

import metric_rows
import tone_runs
from manifests.files import UNFINISHED
from pipelines import flags
from pipelines.output_folder import lock
from pipelines.separate_graph import SeparateJob
from transforms.tables import metrics_rows, summary

pytestmark = pytest.mark.usefixtures("loaded")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mixtures, and a run over all of them that nothing disturbed."""
    folder = tmp_path_factory.mktemp("made")
    rows = tone_runs.write_mixtures(folder / "in", count=12)
    manifest = tone_runs.write_manifest(folder / "rows.jsonl", rows)
    with tone_runs.tones_as_models():
        assert tone_runs.run("--manifest", manifest, "--output", folder / "whole") == 0
    return folder


@pytest.fixture
def rows(made: Path, tmp_path: Path) -> list[dict[str, object]]:
    shutil.copy(made / "rows.jsonl", tmp_path)
    lines = (made / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def undisturbed(made: Path, tmp_path: Path, rows: list[dict[str, object]]) -> Path:
    return Path(shutil.copytree(made / "whole", tmp_path / "whole"))


def test_only_what_is_missing_is_done_and_the_result_is_the_same(
    tmp_path: Path, rows: list[dict[str, object]], undisturbed: Path, loaded: tone_runs.Loaded
) -> None:
    part = tone_runs.write_manifest(tmp_path / "part.jsonl", rows[:5])
    output = tmp_path / "out"
    assert tone_runs.run("--manifest", part, "--output", output) == 0
    first_files = {path: path.read_bytes() for path in (output / "metrics").rglob("*.parquet")}
    loaded.model.separator.heard = 0

    manifest = tmp_path / "rows.jsonl"
    assert tone_runs.run("--manifest", manifest, "--output", output, "--resume") == 0

    assert loaded.model.separator.heard == 7 * 3
    tone_runs.assert_same_results(undisturbed, output)
    row_counts = tone_runs.record(output)["row_counts"]
    assert (row_counts["rows"], row_counts["finished_before"], row_counts["stems"]) == (12, 5, 7)
    for path, content in first_files.items():
        assert path.read_bytes() == content


def test_a_summary_of_many_groups_is_coarser_and_says_so(
    tmp_path: Path, rows: list[dict[str, object]], monkeypatch, capsys
) -> None:
    monkeypatch.setattr(summary, "MAX_GROUPS", 3)
    given = [{**row, "dataset": f"d{number}"} for number, row in enumerate(rows[:6])]
    output = tmp_path / "out"
    part = tone_runs.write_manifest(tmp_path / "part.jsonl", given[:3])
    assert tone_runs.run("--manifest", part, "--output", output) == 0
    assert "the summary has" not in capsys.readouterr().out
    assert {line["dataset"] for line in tone_runs.table(output, "summary")} == {"d0", "d1", "d2"}

    whole = tone_runs.write_manifest(tmp_path / "whole.jsonl", given)
    for _ in range(2):
        assert tone_runs.run("--manifest", whole, "--output", output, "--resume") == 0
        said = "the summary has more than 1,000 groups without this: dataset is left out"
        assert said in capsys.readouterr().out
        lines = tone_runs.table(output, "summary")
        assert {(line["dataset"], line["n"] + line["n_undefined"]) for line in lines} == {(None, 6)}
    assert {row["dataset"] for row in tone_runs.table(output, "metrics")} == {
        row["dataset"] for row in given
    }


def test_a_finished_run_has_nothing_to_resume(
    tmp_path: Path, undisturbed: Path, loaded: tone_runs.Loaded
) -> None:
    loaded.model.separator.heard = 0
    before = tone_runs.table(undisturbed, "summary")
    manifest = tmp_path / "rows.jsonl"
    assert tone_runs.run("--manifest", manifest, "--output", undisturbed, "--resume") == 0
    assert loaded.model.separator.heard == 0
    assert tone_runs.table(undisturbed, "summary") == before
    assert len(tone_runs.table(undisturbed, "metrics")) == 12


def test_a_job_that_failed_is_said_in_a_line_and_goes_on_from_its_journal(
    tmp_path: Path, rows: list[dict[str, object]], undisturbed: Path, capsys
) -> None:
    output, manifest = tmp_path / "out", tmp_path / "rows.jsonl"
    arguments = ["--manifest", manifest, "--output", output]
    with metric_rows.journal_that_fails() as written:
        assert tone_runs.run(*arguments, "--batch_size", "1") == 3
    said = capsys.readouterr().err
    assert "MemoryError: injected" in said
    assert "Traceback" not in said
    assert tone_runs.record(output)["status"] == "failed"
    assert written

    assert tone_runs.run(*arguments, "--resume") == 0
    tone_runs.assert_same_results(undisturbed, output)
    row_counts = tone_runs.record(output)["row_counts"]
    assert row_counts["finished_before"] == row_counts["recovered"] == len(written)
    assert not (output / "_work").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--overlap", "0.5"], "overlap: 0.25 then, 0.5 now"),
        (["--channels", "mid"], "channels: 'per_channel' then, 'mid' now"),
        (["--scorer", "none"], "scorer: 'own' then, 'none' now"),
    ],
)
def test_other_settings_are_refused_by_name(
    tmp_path: Path, undisturbed: Path, change: list[str], named: str, capsys
) -> None:
    arguments = ["--manifest", tmp_path / "rows.jsonl", "--output", undisturbed, "--resume"]
    assert tone_runs.run(*arguments, *change) == 2
    assert named in capsys.readouterr().err
    assert tone_runs.record(undisturbed)["status"] == "finished"


def test_another_model_is_refused_by_digest(
    tmp_path: Path, undisturbed: Path, loaded: tone_runs.Loaded, capsys
) -> None:
    loaded.model = dataclasses.replace(loaded.model, model_sha256="n" * 64)
    tone_runs.model_cache.forget()
    arguments = ["--manifest", tmp_path / "rows.jsonl", "--output", undisturbed, "--resume"]
    assert tone_runs.run(*arguments) == 2
    assert "model_sha256" in capsys.readouterr().err


def test_results_are_not_overwritten_unasked(
    tmp_path: Path, undisturbed: Path, rows: list[dict[str, object]], capsys
) -> None:
    one = tone_runs.write_manifest(tmp_path / "one.jsonl", rows[:1])
    arguments = ["--manifest", one, "--output", undisturbed]
    assert tone_runs.run(*arguments) == 2
    assert "--resume" in capsys.readouterr().err
    assert len(tone_runs.table(undisturbed, "metrics")) == 12
    assert tone_runs.run(*arguments, "--overwrite") == 0
    assert len(tone_runs.table(undisturbed, "metrics")) == 1
    assert len(tone_runs.stems(undisturbed)) == 1


def test_a_folder_that_is_no_output_is_not_overwritten(tmp_path: Path, capsys) -> None:
    rows = tone_runs.write_mixtures(tmp_path / "in", count=1)
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    arguments = ["--manifest", manifest, "--output", tmp_path / "in", "--overwrite"]
    assert tone_runs.run(*arguments) == 2
    assert "not an output folder" in capsys.readouterr().err
    assert (tmp_path / "in" / "m0.wav").exists()


SLOW_RUN = """
import sys, time
sys.path[:0] = ["tests", "."]
from pipelines import flags
with flags.without_collections():
    import tone_runs, tones
decode = tones.ToneSeparator.decode
def slow(self, *arguments):
    time.sleep(0.4)
    return decode(self, *arguments)
tones.ToneSeparator.decode = slow
with tone_runs.tones_as_models():
    flags.leave(lambda: tone_runs.run(*sys.argv[1:], "--batch_size", "3"))
"""


def _started(tmp_path: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    """A slow run in a process of its own, once it has finished some rows and not others."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        # What a shell starts in the background ignores Ctrl-C, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    pieces = tmp_path / "out" / "_work" / "journal"
    deadline_s = time.monotonic() + 240
    while not list(pieces.glob("*.parquet")):
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_stopped_leaves_whole_files_and_is_completed(
    tmp_path: Path, undisturbed: Path, with_signal: signal.Signals, capsys
) -> None:
    output, manifest = tmp_path / "out", tmp_path / "rows.jsonl"
    arguments = ["--manifest", str(manifest), "--output", str(output)]
    process = _started(tmp_path, arguments)
    os.kill(process.pid, with_signal)
    _, said = process.communicate(timeout=60)
    if with_signal != signal.SIGKILL:
        assert process.returncode == flags.EXIT_INTERRUPTED
        assert b"interrupted" in said
        assert b"Traceback" not in said
        assert tone_runs.record(output)["status"] == "interrupted"
        assert list(output.rglob("*.tmp")) == []
    left = tone_runs.stems(output)  # each can be decoded
    assert 0 < len(left) < 12
    json.loads((output / "run.json").read_text(encoding="utf-8"))

    assert tone_runs.run(*arguments, "--resume") == 0
    taken_over = f"taking over {output} from a run that has ended" in capsys.readouterr().err
    assert taken_over == (with_signal == signal.SIGKILL)
    tone_runs.assert_same_results(undisturbed, output)
    row_counts = tone_runs.record(output)["row_counts"]
    assert 0 < row_counts["finished_before"] <= len(left)
    assert row_counts["finished_before"] + row_counts["stems"] == 12
    assert list(output.rglob("*.tmp")) == []
    assert not (output / "_work").exists()


def test_tables_of_an_older_schema_are_not_gone_on_with(
    tmp_path: Path,
    rows: list[dict[str, object]],
    undisturbed: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    record = tone_runs.record(undisturbed)
    (undisturbed / "run.json").write_text(json.dumps({**record, "schema_version": 1}))
    given = ("--manifest", tmp_path / "rows.jsonl", "--output", undisturbed, "--resume")
    assert tone_runs.run(*given) == flags.EXIT_USAGE
    assert "schema version 1, and this release writes version 2" in capfd.readouterr().err


def test_the_record_holds_the_command_line_without_credentials(
    tmp_path: Path, rows: list[dict[str, object]]
) -> None:
    hidden = '{"s3": {"secret": "hush-hush"}}'
    given = ("--manifest", tmp_path / "rows.jsonl", "--output", tmp_path / "out", "--batch_size=3")
    assert tone_runs.run(*given, "--storage_options", hidden) == 0
    command = tone_runs.record(tmp_path / "out")["command"]
    assert command[:3] == ["python", "-m", "pipelines.separate"]
    assert command[3:8] == [*map(str, given)]
    assert command[command.index("--storage_options") + 1] == "***"
    assert "hush-hush" not in (tmp_path / "out" / "run.json").read_text()


def test_a_second_run_is_refused_while_one_runs_and_changes_nothing(
    tmp_path: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, manifest = tmp_path / "out", tmp_path / "rows.jsonl"
    arguments = ["--manifest", str(manifest), "--output", str(output)]
    process = _started(tmp_path, arguments)
    for more in (["--resume"], ["--overwrite"], []):
        assert tone_runs.run(*arguments, *more) == 2
        said = capsys.readouterr().err
        assert f"in use by a run that {getpass.getuser()}@" in said
        assert f"(process {process.pid}) started at 2" in said
        assert "--force_unlock" in said
    assert process.wait(timeout=120) == 0
    process.communicate()
    tone_runs.assert_same_results(undisturbed, output)
    assert tone_runs.record(output)["attempt"] == 0
    assert not (output / "_work").exists()


def test_a_run_that_is_interrupted_before_it_holds_the_folder_leaves_it_to_whoever_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = tmp_path / "out" / "_work" / "staging" / f"{UNFINISHED}theirs.flac"

    def load(_: SeparateJob) -> NoReturn:
        theirs.parent.mkdir(parents=True)  # another run was faster
        theirs.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(SeparateJob, "load", load)
    rows = tone_runs.write_mixtures(tmp_path / "in", count=1)
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    assert tone_runs.run("--manifest", manifest, "--output", tmp_path / "out") == 130
    assert "interrupted" in capsys.readouterr().err
    assert theirs.exists()


def test_a_run_whose_lock_was_taken_stops_and_leaves_the_record_alone(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    output, manifest = tmp_path / "out", tmp_path / "rows.jsonl"
    monkeypatch.setattr(lock, "BEAT_S", 0.01)
    write_piece = metrics_rows.write_piece
    taken = json.dumps(dataclasses.asdict(lock.this_process(("their", "command"))))

    def stolen(storage, uri, kept, *schema) -> None:
        # In one step, as a lock is written: the heartbeat may look at any moment.
        (tmp_path / "lock.json").write_text(taken, encoding="utf-8")
        (tmp_path / "lock.json").replace(output / "_work" / "lock.json")
        (output / "run.json").write_text("theirs", encoding="utf-8")
        write_piece(storage, uri, kept, *schema)

    monkeypatch.setattr(metrics_rows, "write_piece", stolen)
    assert tone_runs.run("--manifest", manifest, "--output", output) == 3
    said = capsys.readouterr().err
    assert "was taken over by" in said
    assert "their command" in said
    assert (output / "run.json").read_text(encoding="utf-8") == "theirs"
    assert (output / "_work" / "lock.json").read_text(encoding="utf-8") == taken
