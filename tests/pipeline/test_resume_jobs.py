"""``--resume`` of the jobs beside ``separate``: what stays finished, and what is done again."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import jobs
import metric_rows
import tone_runs
from jobs import JOBS
from manifests.files.readers import iter_rows
from manifests.row import ManifestRow
from pipelines import flags, output_folder

pytestmark = pytest.mark.usefixtures("loaded")
each_job = pytest.mark.parametrize("name", ["score", "synthesize"])
TABLES = {"score": "metrics", "synthesize": "manifest"}
DONE = jobs.NUM_ROWS - 1
"""Rows of each manifest that can be done: the recording of the last one is missing."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs, and a finished run of each job over them."""
    folder = jobs.write_inputs(tmp_path_factory.mktemp("made"))
    with tone_runs.tones_as_models():
        for name in TABLES:
            assert _run(name, folder, folder / name) == 0
    return folder


@pytest.fixture
def inputs(made: Path, tmp_path: Path) -> Path:
    """The manifests, to be changed: audio stays where it is."""
    for path in made.glob("*.jsonl"):
        shutil.copy(path, tmp_path)
    (tmp_path / "stems").symlink_to(made / "stems")
    for name in TABLES:
        record = shutil.copytree(made / name, tmp_path / name) / "run.json"
        text = record.read_text(encoding="utf-8").replace(str(made), str(tmp_path))
        record.write_text(text, encoding="utf-8")
    return tmp_path


def _run(name: str, inputs: Path, output: Path, *more: str) -> int:
    words = JOBS[name].words(inputs, output, *tone_runs.QUIET, *more)
    return JOBS[name].run([*words, "--scorer", "none"] if name == "score" else words)


def _rows(name: str, inputs: Path) -> list[dict[str, Any]]:
    text = (inputs / f"pipelines.{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _rewrite(name: str, inputs: Path, rows: list[dict[str, Any]]) -> None:
    tone_runs.write_manifest(inputs / f"pipelines.{name}.jsonl", rows)


def _counts(output: Path) -> tuple[int, int]:
    """Rows that had been finished before, and rows that were done."""
    found = tone_runs.record(output)["row_counts"]
    return found["finished_before"], found["stems"]


def _table(output: Path, name: str) -> list[dict[str, Any]]:
    """Rows of the table, without what depends on where their inputs are."""
    rows = tone_runs.comparable(tone_runs.table(output, TABLES[name]))
    return [{k: v for k, v in row.items() if k != "extra_source_row_sha256"} for row in rows]


@each_job
def test_a_finished_run_has_nothing_to_do_but_its_dead_letters(name: str, inputs: Path) -> None:
    output = inputs / name
    before = tone_runs.table(output, TABLES[name])
    files = {path: path.read_bytes() for path in (output / TABLES[name]).rglob("*.parquet")}
    assert _run(name, inputs, output, "--resume") == 0
    assert _counts(output) == (DONE, 0)
    assert tone_runs.table(output, TABLES[name]) == before
    after = {path: path.read_bytes() for path in (output / TABLES[name]).rglob("*.parquet")}
    assert after == files
    assert len(tone_runs.table(output, "dead_letters")) == 1
    assert not (output / "_work").exists()


@each_job
def test_rows_that_have_changed_are_done_again_and_named(
    name: str, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, rows = inputs / name, _rows(name, inputs)
    before = {row["id"]: row for row in tone_runs.table(output, TABLES[name])}
    rows[0]["positive_text"] = "something else"
    if name == "synthesize":
        rows[1]["snr_db"] = [-3.0]
    _rewrite(name, inputs, [*rows[:2], *rows[3:]])

    assert _run(name, inputs, output, "--resume") == 0

    changed = {rows[0]["id"], *([rows[1]["id"]] if name == "synthesize" else [])}
    assert _counts(output) == (DONE - 1 - len(changed), len(changed))
    after = {row["id"]: row for row in tone_runs.table(output, TABLES[name])}
    assert after.keys() == before.keys() - {rows[2]["id"]}
    assert {row_id for row_id, row in after.items() if row != before[row_id]} == changed
    named = tone_runs.record(output)["resumed"]["named"]
    assert named == {"changed": sorted(changed), "gone": [rows[2]["id"]]}
    said = capsys.readouterr()
    assert "finished before with other content, done again" in said.err
    assert f"{DONE - 1 - len(changed)} finished before" in said.out


@each_job
def test_a_job_that_failed_goes_on_from_its_journal(
    name: str, inputs: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with metric_rows.journal_that_fails() as written:
        assert _run(name, inputs, output) == flags.EXIT_JOB_FAILED
    assert _run(name, inputs, output, "--resume") == 0
    assert _counts(output) == (len(written), DONE - len(written))
    assert _table(output, name) == _table(inputs / name, name)
    assert jobs.audio(JOBS[name], output).keys() == jobs.audio(JOBS[name], inputs / name).keys()


@each_job
@pytest.mark.parametrize("how", [lambda data: data[:-9], lambda _: b""], ids=["cut", "empty"])
def test_a_damaged_table_is_named_and_its_rows_are_done_again(
    name: str,
    inputs: Path,
    how: Callable[[bytes], bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = inputs / name
    before = _table(output, name)
    file = min((output / TABLES[name]).rglob("*.parquet"))
    lost = pq.ParquetFile(file).metadata.num_rows
    file.write_bytes(how(file.read_bytes()))

    assert _run(name, inputs, output, "--resume") == 0

    assert f"{file} could not be read" in capsys.readouterr().err
    assert _counts(output) == (DONE - lost, lost)
    assert _table(output, name) == before
    assert (file.parent / f"_{file.name}.damaged").exists()
    assert _run(name, inputs, output, "--overwrite") == 0
    assert [path for path in output.rglob("*.damaged")] == []


@each_job
def test_without_its_record_what_is_there_is_done_again(name: str, inputs: Path) -> None:
    output = inputs / name
    (output / "run.json").write_text("{", encoding="utf-8")
    assert _run(name, inputs, output, "--resume") == 0
    assert _counts(output) == (0, DONE)
    assert list(tone_runs.record(output)["resumed"]["left"].items()) == [("unknown", DONE)]
    assert len(_table(output, name)) == DONE


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("score", ("--system", "another"), "system: 'unnamed' then, 'another' now"),
        ("score", ("--scorer", "own"), "scorer: 'none' then, 'own' now"),
        ("synthesize", ("--mix_seed", "3"), "mix_seed: 0 then, 3 now"),
        ("synthesize", ("--overwrite",), "--resume and --overwrite exclude each other"),
    ],
)
def test_other_settings_are_refused(
    name: str, more: tuple[str, ...], said: str, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = JOBS[name].words(inputs, inputs / name, *tone_runs.QUIET, "--resume")
    words += ["--scorer", "none"] if name == "score" and "--scorer" not in more else []
    assert JOBS[name].run([*words, *more]) == flags.EXIT_USAGE
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
@pytest.mark.parametrize(
    ("name", "of"), [("score", "synthesize"), ("synthesize", "score"), ("separate", "score")]
)
def test_what_another_command_wrote_is_left_alone(
    name: str, of: str, flag: str, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(name, inputs, inputs / of, flag) == flags.EXIT_USAGE
    assert f"holds what pipelines.{of} wrote" in capsys.readouterr().err


def test_a_row_that_names_its_stem_is_known_again(inputs: Path, tmp_path: Path) -> None:
    rows = _rows("score", inputs)
    for row in rows:
        row["stem_uri"] = str(inputs / "stems" / f"{row['id']}.wav")
    manifest = tone_runs.write_manifest(tmp_path / "named.jsonl", rows)
    words = ["--manifest", str(manifest), "--output", str(tmp_path / "out"), "--scorer", "none"]
    words += ["--max_failure_rate", "0.5", *tone_runs.QUIET]
    assert JOBS["score"].run(words) == 0
    assert JOBS["score"].run([*words, "--resume"]) == 0
    assert _counts(tmp_path / "out") == (DONE, 0)
    digests = {row.id: row.sha256 for row in _read(manifest)}
    for row in tone_runs.table(tmp_path / "out", "metrics"):
        assert row["row_sha256"] == digests[row["id"]]
        assert "extra_stem_uri" not in row
    (letter,) = tone_runs.table(tmp_path / "out", "dead_letters")
    assert letter["extra_stem_uri"] == rows[-1]["stem_uri"]


def _read(manifest: Path) -> list[ManifestRow]:
    rows = list(iter_rows(str(manifest)))
    assert all(isinstance(row, ManifestRow) for row in rows)
    return [row for row in rows if isinstance(row, ManifestRow)]


def test_levels_that_are_drawn_are_the_same_settings_again(inputs: Path, tmp_path: Path) -> None:
    drawn = ("--mix_level_range_db", "-5", "5")
    assert _run("synthesize", inputs, tmp_path / "out", *drawn) == 0
    assert _run("synthesize", inputs, tmp_path / "out", *drawn, "--resume") == 0
    assert _counts(tmp_path / "out") == (DONE, 0)


def test_what_was_rendered_in_two_attempts_is_one_manifest(inputs: Path, tmp_path: Path) -> None:
    rows, output = _rows("synthesize", inputs), tmp_path / "out"
    _rewrite("synthesize", inputs, rows[:2])
    assert _run("synthesize", inputs, output) == 0
    rows[2:] = [{**row, "shape": "round"} for row in rows[2:]]
    _rewrite("synthesize", inputs, rows)
    assert _run("synthesize", inputs, output, "--resume") == 0
    assert len(list((output / "manifest").iterdir())) == 2
    rendered = _read(output / "manifest")
    assert sorted(row.id for row in rendered) == sorted(row["id"] for row in rows[:DONE])
    assert {row.extra.get("shape") for row in rendered} == {None, "round"}
    assert all(Path(str(row.mixture_uri)).exists() for row in rendered)


def test_a_manifest_of_an_earlier_release_is_rendered_again(inputs: Path) -> None:
    output = inputs / "synthesize"
    (file,) = (output / "manifest").iterdir()
    table = pq.ParquetFile(file).read().drop_columns(["extra_source_row_sha256"])
    pq.write_table(table, file.with_name("rows-00000-of-00001.parquet"))
    file.unlink()
    assert _run("synthesize", inputs, output, "--resume") == 0
    assert _counts(output) == (0, DONE)
    assert [path.name for path in (output / "manifest").iterdir()] == [file.name.replace(
        "part-000", "part-001")]  # fmt: skip


def test_events_are_those_of_all_attempts(inputs: Path, tmp_path: Path) -> None:
    rows, output = _rows("synthesize", inputs), tmp_path / "out"
    for number, row in enumerate(rows[:3]):
        row.update(onsets_s=[0.1 * number, 0.5], duration_s=0.9, label=f"label {number}")
    _rewrite("synthesize", inputs, rows[:2])
    assert _run("synthesize", inputs, output) == 0
    first = _events(output)
    _rewrite("synthesize", inputs, rows)
    assert _run("synthesize", inputs, output, "--resume") == 0
    assert [event["id"] for event in _events(output)] == [
        rows[number]["id"] for number in (0, 0, 1, 1, 2, 2)
    ]
    assert _events(output)[:4] == first
    rows[1:3] = [{k: v for k, v in row.items() if k != "onsets_s"} for row in rows[1:3]]
    _rewrite("synthesize", inputs, rows)
    assert _run("synthesize", inputs, output, "--resume") == 0
    assert _events(output) == first[:2]
    _rewrite("synthesize", inputs, rows[1:])
    assert _run("synthesize", inputs, output, "--resume") == 0
    assert not (output / "events.csv").exists()


def _events(output: Path) -> list[dict[str, str]]:
    with (output / "events.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@each_job
def test_an_overwrite_that_was_stopped_without_a_record_is_repeated(
    name: str, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    (inputs / name / "run.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(output_folder, "delete", stopped)
        assert _run(name, inputs, inputs / name, "--overwrite") == flags.EXIT_INTERRUPTED
    assert _run(name, inputs, inputs / name, "--overwrite") == flags.EXIT_OK
    assert len(tone_runs.table(inputs / name, TABLES[name])) == DONE
