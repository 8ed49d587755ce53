"""``--resume`` where something is not as the earlier run left it: rows, columns, files, stems."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

import metric_rows
import tone_runs
import tones
from manifests.columns import METRICS_SCHEMA
from pipelines import flags
from transforms import kept
from transforms.storage import Storage
from transforms.tables import metrics_rows

pytestmark = pytest.mark.usefixtures("loaded")
Rows = list[dict[str, Any]]
NUM_ROWS = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mixtures, a manifest, and a finished run with residuals over it."""
    folder = tmp_path_factory.mktemp("made")
    rows = tone_runs.write_mixtures(folder / "in", count=NUM_ROWS, duration_s=0.5)
    tone_runs.write_manifest(folder / "rows.jsonl", rows)
    with tone_runs.tones_as_models():
        assert run(folder / "rows.jsonl", folder / "out") == 0
    return folder


@pytest.fixture
def rows(made: Path, tmp_path: Path) -> Rows:
    lines = (made / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    shutil.copy(made / "rows.jsonl", tmp_path)
    return [json.loads(line) for line in lines]


@pytest.fixture
def out(made: Path, rows: Rows, tmp_path: Path) -> Path:
    """A finished run over the manifest in the test's folder."""
    output = Path(shutil.copytree(made / "out", tmp_path / "out"))
    for file in [output / "run.json"]:
        file.write_text(file.read_text().replace(str(made), str(tmp_path)), encoding="utf-8")
    for file in output.rglob("*.parquet"):
        table = pq.ParquetFile(file).read()
        for name in ("stem_uri", "residual_uri"):
            if name in table.column_names:
                moved = [uri.replace(str(made / "out"), str(output)) for uri in
                         table[name].to_pylist()]  # fmt: skip
                place = table.column_names.index(name)
                table = table.set_column(place, table.schema.field(name), [moved])
        pq.write_table(table, file)
    return output


def run(manifest: Path | str, output: Path, *more: str) -> int:
    return tone_runs.run("--manifest", manifest, "--output", output, "--residual", *more)


def rewrite(tmp_path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    return tone_runs.write_manifest(tmp_path / "rows.jsonl", list(rows))


def ids(output: Path, table: str) -> list[str]:
    return [row["id"] for row in tone_runs.table(output, table)]


def assert_once(output: Path, expected: Iterable[str]) -> None:
    """Every row stands once in metrics or once in dead letters, and the summary agrees."""
    assert sorted([*ids(output, "metrics"), *ids(output, "dead_letters")]) == sorted(expected)
    counted = [row for row in tone_runs.table(output, "summary") if row["metric"] == "sdri_db"]
    assert sum(row["n"] + row["n_undefined"] for row in counted) == len(ids(output, "metrics"))
    for name in ("metrics", "dead_letters"):
        columns = {tuple(pq.read_schema(file)) for file in (output / name).rglob("*.parquet")}
        assert len(columns) <= 1, name
    assert not (output / "_work").exists()
    assert tone_runs.record(output)["status"] == "finished"


def all_ids(rows: Rows) -> list[str]:
    return [row["id"] for row in rows]


def heard(loaded: tone_runs.Loaded, action: Callable[[], int]) -> tuple[int, int]:
    """The exit code, and how many windows the network heard."""
    loaded.model.separator.heard = 0
    return action(), loaded.model.separator.heard


def test_another_query_for_the_same_recording_is_extracted(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The case ``resume_other_query``."""
    out, mixture = tmp_path / "out", made / "in" / "m0.wav"
    (wanted, other) = ("bell one", "dog_bark two")
    for query in (wanted, other):
        flag = ["--resume"] if query == other else []
        given = ["--mixture", str(mixture), "--positive", query, "--output", str(out), *flag]
        assert tone_runs.run(*given) == 0
    (row,) = tone_runs.table(out, "metrics")
    assert row["positive_text"] == other
    assert "1 row finished before with other content, done again: m0" in capfd.readouterr().err
    fresh = tmp_path / "fresh"
    given = ["--mixture", str(mixture), "--positive", other, "--output", str(fresh)]
    assert tone_runs.run(*given) == 0
    tone_runs.assert_same_results(fresh, out)
    assert_once(out, ["m0"])


def test_a_file_of_the_same_name_in_another_folder_is_another_row(
    made: Path, tmp_path: Path
) -> None:
    (tmp_path / "b").mkdir()
    shutil.copy(made / "in" / "m1.wav", tmp_path / "b" / "m0.wav")
    out = tmp_path / "out"
    for folder, flag in ((made / "in", []), (tmp_path / "b", ["--resume"])):
        given = ["--mixture", str(folder / "m0.wav"), "--positive", "bell", "--output", str(out)]
        assert tone_runs.run(*given, *flag) == 0
    (row,) = tone_runs.table(out, "metrics")
    assert row["mixture_uri"] == str(tmp_path / "b" / "m0.wav")


CHANGES: tuple[dict[str, Any], ...] = (
    {"positive_text": "wind one"},
    {"negative_text": None},
    {"dataset": "new"},
    {"label": "x"},
    {"duration_s": 0.25},
    {"colour": "blue"},
    {"shape": "round"},
    {"reference_uri": None},
    {"mixture_uri": "another file of the same sound"},
)


def test_rows_whose_content_differs_are_done_again_and_no_others(
    made: Path, tmp_path: Path, loaded: tone_runs.Loaded
) -> None:
    line = (made / "rows.jsonl").read_text(encoding="utf-8").splitlines()[0]
    shutil.copy(made / "in" / "m0.wav", tmp_path / "another.wav")
    rows = [{**json.loads(line), "id": f"{number}"} for number in range(len(CHANGES) + 2)]
    out, manifest = tmp_path / "out", rewrite(tmp_path, rows)
    assert run(manifest, out) == 0
    changed = [{**row, **change} for row, change in zip(rows, CHANGES, strict=False)]
    changed[-1]["mixture_uri"] = str(tmp_path / "another.wav")
    rewrite(tmp_path, [*changed, *rows[len(CHANGES) :]])

    code, windows = heard(loaded, lambda: run(manifest, out, "--resume"))

    assert (code, windows > 0) == (0, True)
    row_counts = tone_runs.record(out)["row_counts"]
    assert (row_counts["finished_before"], row_counts["stems"]) == (2, len(CHANGES))
    resumed = tone_runs.record(out)["resumed"]
    assert resumed["left"] == {"changed": len(CHANGES)}
    assert resumed["named"] == {"changed": [f"{number}" for number in range(len(CHANGES))]}
    assert run(manifest, tmp_path / "fresh") == 0
    fresh = tone_runs.comparable(tone_runs.table(tmp_path / "fresh", "metrics"))
    assert tone_runs.comparable(tone_runs.table(out, "metrics")) == fresh
    assert_once(out, all_ids(rows))


def test_the_same_row_in_other_words_of_the_format_is_the_same(
    out: Path, rows: Rows, tmp_path: Path, loaded: tone_runs.Loaded
) -> None:
    manifest = rewrite(tmp_path, [{**row, "offset_s": 0, "seed": None} for row in rows[::-1]])
    assert heard(loaded, lambda: run(manifest, out, "--resume")) == (0, 0)
    assert_once(out, all_ids(rows))


def test_rows_that_are_no_longer_in_the_manifest_are_named_and_leave_the_tables(
    out: Path, rows: Rows, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stems = tone_runs.stems(out).keys()
    manifest = rewrite(tmp_path, rows[1:])
    assert run(manifest, out, "--resume") == 0
    said = capfd.readouterr().err
    assert "1 row no longer in the manifest, taken out of the tables" in said
    assert "clip/0" in said
    assert tone_runs.stems(out).keys() == stems
    assert_once(out, all_ids(rows[1:]))


def test_a_summary_of_rows_that_have_all_left_leaves_too(
    out: Path, rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = [{**row, "mixture_uri": str(tmp_path / "gone.wav")} for row in rows]
    assert run(rewrite(tmp_path, gone), out, "--resume") == flags.EXIT_FAILURE_RATE
    assert ids(out, "metrics") == []
    assert_once(out, all_ids(rows))
    assert "SDRi dB" not in capsys.readouterr().out


def test_with_another_manifest_nothing_leaves_and_with_all_of_them_it_does(
    out: Path, rows: Rows, tmp_path: Path, made: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = [{**rows[0], "id": "new"}, rows[0]]
    larger = tone_runs.write_manifest(tmp_path / "larger.jsonl", more)
    assert run(larger, out, "--resume") == 0
    assert f"{NUM_ROWS - 1} finished rows that are not in this manifest stay" in (
        capfd.readouterr().err
    )
    assert_once(out, [*all_ids(rows), "new"])
    small = rewrite(tmp_path, rows[:2])
    assert run(small, out, "--resume") == 0  # one of two: nothing leaves
    assert_once(out, [*all_ids(rows), "new"])
    assert run(small, out, "--resume", "--manifest", str(larger)) in (0, 1)
    assert sorted(set(ids(out, "metrics"))) == sorted([*all_ids(rows[:2]), "new"])


def test_a_larger_manifest_of_another_name_takes_the_place_of_the_first(
    out: Path, rows: Rows, tmp_path: Path
) -> None:
    larger = tone_runs.write_manifest(tmp_path / "larger.jsonl", [*rows, {**rows[0], "id": "new"}])
    assert run(larger, out, "--resume") == 0
    assert_once(out, [*all_ids(rows), "new"])
    assert tone_runs.record(out)["sources"] == [str(larger)]
    tone_runs.write_manifest(larger, rows[:2])
    assert run(larger, out, "--resume") == 0
    assert_once(out, all_ids(rows[:2]))


def _with_failures(rows: Rows, tmp_path: Path) -> Rows:
    """Rows of which one misses its file, one does not validate, and one has an id for the second
    time."""
    broken = [{**row} for row in rows]
    broken[0]["mixture_uri"] = str(tmp_path / "later.wav")
    broken[1]["duration_s"] = -1
    return [*broken, {**rows[2], "positive_text": "rain one"}]


def test_dead_letters_are_tried_again_and_finished_rows_stay(
    rows: Rows, tmp_path: Path, made: Path
) -> None:
    out = tmp_path / "out"
    manifest = rewrite(tmp_path, _with_failures(rows, tmp_path))
    assert run(manifest, out) == 1
    expected = ["clip/0", None, "clip/2", "clip/2", "clip/3"]
    assert _sorted([*ids(out, "metrics"), *_letters(out)]) == _sorted(expected)
    before = tone_runs.table(out, "metrics")
    shutil.copy(made / "in" / "m0.wav", tmp_path / "later.wav")
    assert run(out / "dead_letters", out, "--resume") == 1
    assert sorted(ids(out, "metrics")) == ["clip/0", "clip/2", "clip/3"]
    assert _sorted(_letters(out)) == _sorted([None, "clip/2"])
    assert [row for row in tone_runs.table(out, "metrics") if row["id"] != "clip/0"] == before
    # with the manifest again everything is as a run over it would have left it
    assert run(manifest, out, "--resume") == 1
    assert sorted(ids(out, "metrics")) == ["clip/0", "clip/2", "clip/3"]
    assert _sorted(_letters(out)) == _sorted([None, "clip/2"])
    assert run(rewrite(tmp_path, rows), out, "--resume") == 0
    assert_once(out, all_ids(rows))


def _letters(out: Path) -> list[str | None]:
    return [row["id"] for row in tone_runs.table(out, "dead_letters")]


def _sorted(names: Iterable[str | None]) -> list[str]:
    return sorted(name or "" for name in names)


def test_dead_letters_that_were_mended_in_between_are_done(
    rows: Rows, tmp_path: Path, made: Path
) -> None:
    out = tmp_path / "out"
    broken = [{**row, "mixture_uri": str(tmp_path / f"{n}.wav")} for n, row in enumerate(rows[:2])]
    assert run(rewrite(tmp_path, [*broken, *rows[2:]]), out) == 1
    (file,) = (out / "dead_letters").iterdir()
    table = pq.ParquetFile(file).read()
    place = table.column_names.index("mixture_uri")
    mended = [str(made / "in" / "m0.wav"), table["mixture_uri"][1].as_py()]
    pq.write_table(table.set_column(place, table.schema.field(place), [mended]), file)
    assert run(out / "dead_letters", out, "--resume") == 1
    assert ids(out, "dead_letters") == ["clip/1"]
    assert_once(out, all_ids(rows))


def test_dead_letters_are_tried_again_once_where_a_run_was_killed_before_older_ones_went(
    rows: Rows, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    broken = [{**row, "mixture_uri": str(tmp_path / "no.wav")} for row in rows[:2]]
    assert run(rewrite(tmp_path, [*broken, *rows[2:]]), out) == 1
    (file,) = (out / "dead_letters").iterdir()
    letters = pq.ParquetFile(file).read()
    later = [{**row, "mixture_uri": str(tmp_path / "later.wav")} for row in letters.to_pylist()[1:]]
    second = pa.Table.from_pylist(later, letters.schema)
    pq.write_table(second, file.with_name(f"part-001{file.name[8:]}"))
    assert run(out / "dead_letters", out, "--resume") == 1
    assert tone_runs.record(out)["row_counts"]["rows"] == 2
    tried = [Path(row["mixture_uri"]).name for row in tone_runs.table(out, "dead_letters")]
    assert tried == ["no.wav", "later.wav"]
    assert_once(out, all_ids(rows))


def test_dead_letters_of_rows_that_another_manifest_has_not_stay(
    rows: Rows, tmp_path: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    broken = [{**row, "mixture_uri": str(tmp_path / "no.wav")} for row in rows[:2]]
    assert run(rewrite(tmp_path, [*broken, *rows[2:]]), out) == 1
    larger = tone_runs.write_manifest(tmp_path / "b.jsonl", [rows[0], {**rows[0], "id": "new"}])
    assert run(larger, out, "--resume") == 0
    assert "note: 1 dead letter stays of rows that this run did not read" in capsys.readouterr().err
    assert ids(out, "dead_letters") == ["clip/1"]
    assert len(list((out / "dead_letters").iterdir())) == 1
    assert_once(out, [*all_ids(rows), "new"])


def test_no_stem_is_written_over_while_a_table_still_says_what_was_in_it(
    out: Path, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run that dies, and then the first manifest again."""
    changed = [{**rows[0], "positive_text": "wind one"}, *rows[1:]]
    rewrite(tmp_path, changed)

    def dying(*_: object) -> None:
        raise MemoryError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(metrics_rows, "write_piece", dying)
        assert run(tmp_path / "rows.jsonl", out, "--resume") == 3
    assert "clip/0" not in ids(out, "metrics")
    assert run(rewrite(tmp_path, rows), out, "--resume") == 0
    assert run(tmp_path / "rows.jsonl", tmp_path / "fresh") == 0
    tone_runs.assert_same_results(tmp_path / "fresh", out)
    assert_once(out, all_ids(rows))


DAMAGES: dict[str, bytes | None] = {
    "deleted": None,
    "empty": b"",
    "a list": b"[]",
    "cut": b'{"status": "fin',
    "without settings": b'{"status": "finished", "config": {}}',
}


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES.keys())
def test_without_its_record_a_run_is_not_mixed_and_its_rows_are_done_again(
    out: Path,
    rows: Rows,
    tmp_path: Path,
    content: bytes | None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    record = out / "run.json"
    record.unlink() if content is None else record.write_bytes(content)
    manifest = tmp_path / "rows.jsonl"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert run(manifest, out) == 2
    assert "holds the results of a run (its run.json" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert run(manifest, out, "--resume") == 0
    said = capfd.readouterr().err
    assert f"{record} is" in said
    assert "are done again" in said
    row_counts = tone_runs.record(out)["row_counts"]
    assert (row_counts["finished_before"], row_counts["stems"]) == (0, NUM_ROWS)
    assert_once(out, all_ids(rows))


def test_what_nothing_is_known_of_is_never_taken_for_made_by_later_settings(
    out: Path, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before anything was done about it, and with another manifest in between."""
    (out / "run.json").unlink()
    manifest, others = tmp_path / "rows.jsonl", tmp_path / "others.jsonl"
    tone_runs.write_manifest(others, [{**rows[0], "id": "new"}])
    settings = ("--stem_format", "wav", "--resume")

    def dying(*_: object) -> None:
        raise MemoryError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(kept.GoOn, "expand", dying)
        assert run(others, out, *settings) == 3
    assert run(others, out, *settings) == 0
    assert_once(out, [*all_ids(rows), "new"])
    assert run(manifest, out, "--manifest", str(others), *settings) == 0
    assert_once(out, [*all_ids(rows), "new"])
    assert {row["stem_format"] for row in tone_runs.table(out, "metrics")} == {"wav"}
    assert tone_runs.record(out)["sources"] == [str(manifest), str(others)]
    assert tone_runs.record(out)["row_counts"]["finished_before"] == 1


@pytest.mark.parametrize("content", [None, b"", b"[]"], ids=["deleted", "empty", "list"])
def test_without_its_record_a_run_is_overwritten_like_any_other(
    out: Path, rows: Rows, tmp_path: Path, content: bytes | None
) -> None:
    (out / "run.json").unlink() if content is None else (out / "run.json").write_bytes(content)
    assert run(rewrite(tmp_path, rows[:1]), out, "--overwrite") == 0
    assert_once(out, ["clip/0"])
    assert len(tone_runs.stems(out)) == 2


@pytest.mark.parametrize("flag", ["--resume", "--overwrite", None])
def test_a_record_of_somebody_else_is_not_touched(
    rows: Rows, tmp_path: Path, flag: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.json").write_bytes(b'{"name": "x"}')
    given = [flag] if flag else []
    assert run(tmp_path / "rows.jsonl", tmp_path / "mine", *given) == 2
    assert "is not the record of a run" in capfd.readouterr().err
    assert (tmp_path / "mine" / "run.json").read_bytes() == b'{"name": "x"}'


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[20:60] = bytes(40)
    path.write_bytes(data)


def _other_columns(path: Path) -> None:
    pq.write_table(pq.ParquetFile(path).read(columns=["id"]), path)


HOW: dict[str, Callable[[Path], Any]] = {
    "cut": _cut,
    "empty": lambda path: path.write_bytes(b""),
    "zeros in the middle": _flip,
    "another table": _other_columns,
}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW.keys())
def test_a_damaged_file_of_metrics_is_named_and_its_rows_are_done_again(
    out: Path,
    rows: Rows,
    tmp_path: Path,
    how: Callable[[Path], Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = sorted((out / "metrics").rglob("*.parquet"))[0]
    how(file)
    assert run(tmp_path / "rows.jsonl", out, "--resume") == 0
    said = capfd.readouterr().err
    assert f"{file} could not be read" in said
    assert "its rows are done again" in said
    assert not file.exists()
    assert (file.parent / f"_{file.name}.damaged").exists()
    row_counts = tone_runs.record(out)["row_counts"]
    assert (row_counts["finished_before"], row_counts["stems"]) == (2, 2)
    assert_once(out, all_ids(rows))
    assert run(tmp_path / "rows.jsonl", out, "--resume") == 0
    assert "could not be read" not in capfd.readouterr().err
    assert run(tmp_path / "rows.jsonl", out, "--overwrite") == 0
    assert not list((out / "metrics").rglob("*.damaged"))


@pytest.mark.parametrize("how", HOW.values(), ids=HOW.keys())
def test_a_damaged_journal_is_named_and_its_rows_are_done_again(
    rows: Rows,
    tmp_path: Path,
    how: Callable[[Path], Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    out, manifest = tmp_path / "out", tmp_path / "rows.jsonl"
    with metric_rows.journal_that_fails():
        assert run(manifest, out, "--batch_size", "1") == 3
    (piece,) = (out / "_work" / "journal").iterdir()
    how(piece)
    assert run(manifest, out, "--resume") == 0
    assert f"{piece} could not be read" in capfd.readouterr().err
    assert tone_runs.record(out)["row_counts"]["finished_before"] == 0
    assert_once(out, all_ids(rows))


def test_damaged_dead_letters_are_set_aside(
    rows: Rows, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    broken = {**rows[0], "mixture_uri": str(tmp_path / "no.wav")}
    assert run(rewrite(tmp_path, [broken, *rows[1:]]), out) == 1
    (file,) = (out / "dead_letters").iterdir()
    _cut(file)
    assert run(tmp_path / "rows.jsonl", out, "--resume") == 1
    assert f"{file} could not be read" in capfd.readouterr().err
    assert_once(out, all_ids(rows))


def test_rows_that_the_tables_have_twice_are_there_once(
    out: Path, rows: Rows, tmp_path: Path
) -> None:
    for file in list((out / "metrics").rglob("*.parquet")):
        shutil.copy(file, file.parent / file.name.replace("part-000", "part-001"))
    (first, *_) = sorted((out / "metrics").rglob("part-001*"))
    table = pq.ParquetFile(first).read()
    pq.write_table(pa.concat_tables([table, table]), first)
    assert run(tmp_path / "rows.jsonl", out, "--resume") == 0
    assert_once(out, all_ids(rows))
    assert tone_runs.record(out)["attempt"] == 2


STEMS: dict[str, Callable[[Path], Any]] = {
    "deleted": Path.unlink,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1_000]),
    "cut to its header": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "empty": lambda path: path.write_bytes(b""),
    "shorter": lambda path: soundfile.write(path, np.zeros(99), tones.RATE_HZ, "PCM_24"),
    "at another rate": lambda path: soundfile.write(path, np.zeros(4_000), 16_000, "PCM_24"),
    "no sound": lambda path: path.write_text("no sound", encoding="utf-8"),
}


@pytest.mark.parametrize("ending", [".flac", ".residual.flac"])
def test_stems_are_looked_at_before_they_are_trusted(
    made: Path, tmp_path: Path, ending: str, capfd: pytest.CaptureFixture[str]
) -> None:
    line = (made / "rows.jsonl").read_text(encoding="utf-8").splitlines()[0]
    rows = [{**json.loads(line), "id": name} for name in (*STEMS, "whole")]
    out, manifest = tmp_path / "out", rewrite(tmp_path, rows)
    assert run(manifest, out) == 0
    before = tone_runs.stems(out)
    uris = {row["id"]: row["stem_uri"] for row in tone_runs.table(out, "metrics")}
    for name, how in STEMS.items():
        how(Path(uris[name].replace(".flac", ending)))

    assert run(manifest, out, "--resume", "--verify") == 0

    assert f"{len(STEMS)} rows with a stem that is missing or cut" in capfd.readouterr().err
    row_counts = tone_runs.record(out)["row_counts"]
    assert (row_counts["finished_before"], row_counts["stems"]) == (1, len(STEMS))
    assert tone_runs.record(out)["resumed"]["named"] == {"broken": sorted(STEMS)}
    for name, samples in tone_runs.stems(out).items():
        np.testing.assert_array_equal(samples, before[name])
    assert_once(out, all_ids(rows))


def test_whole_stems_are_not_made_again(
    out: Path, rows: Rows, tmp_path: Path, loaded: tone_runs.Loaded
) -> None:
    again = heard(loaded, lambda: run(tmp_path / "rows.jsonl", out, "--resume", "--verify"))
    assert again == (0, 0)
    assert_once(out, all_ids(rows))


def test_stems_of_a_run_that_was_moved_are_looked_at_where_they_are(
    out: Path, tmp_path: Path, loaded: tone_runs.Loaded
) -> None:
    moved = out.rename(tmp_path / "moved")
    words = ("--resume", "--verify")
    assert heard(loaded, lambda: run(tmp_path / "rows.jsonl", moved, *words)) == (0, 0)
    shutil.copytree(moved, out)  # a whole copy at the old place says nothing of the run
    next((moved / "stems").rglob("*.flac")).unlink()
    code, num_windows = heard(loaded, lambda: run(tmp_path / "rows.jsonl", moved, *words))
    assert (code, num_windows > 0) == (0, True)


@pytest.mark.parametrize("becomes", ["over full scale", "not kept", "screened"])
def test_a_stem_that_is_made_again_leaves_none_of_its_own_beside_it(
    rows: Rows, tmp_path: Path, becomes: str, loaded: tone_runs.Loaded
) -> None:
    if becomes == "not kept":
        suspicious = tones.SuspiciousSeparator()
        loaded.model = dataclasses.replace(loaded.model, separator=suspicious)
    words = {"not kept": ("--keep_stems", "present"), "screened": ("--screen", "0.5")}.get(
        becomes, ()
    )
    out = tmp_path / "kept"
    row = {**rows[0], "mixture_uri": rows[0]["reference_uri"], "negative_text": None}
    del row["reference_uri"]
    assert run(rewrite(tmp_path, [row]), out, *words) == 0
    (first,) = tone_runs.table(out, "metrics")
    folder = Path(first["stem_uri"]).parent
    assert Path(first["stem_uri"]).suffix == ".flac"
    (folder / "0.txt").write_text("somebody's")
    if becomes == "over full scale":
        samples, rate_hz = soundfile.read(rows[0]["mixture_uri"], dtype="float32")
        row["mixture_uri"] = str(tmp_path / "loud.wav")
        soundfile.write(row["mixture_uri"], samples * 30, rate_hz, "FLOAT")
    else:
        row["positive_text"] = f"{tones.LABELS[-1]} one"
    assert run(rewrite(tmp_path, [row]), out, "--resume", *words) == 0
    (second,) = tone_runs.table(out, "metrics")
    named = {second["stem_uri"], second["residual_uri"]} - {None}
    suffixes = {".wav"} if becomes == "over full scale" else set()
    assert {Path(uri).suffix for uri in named} == suffixes
    there = {str(path) for path in (out / "stems").rglob("*") if path.is_file()}
    assert there == {*named, str(folder / "0.txt")}


def test_verify_goes_with_resume(
    out: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "rows.jsonl", out, "--verify") == flags.EXIT_USAGE
    assert "--verify goes with --resume" in capfd.readouterr().err


@pytest.mark.parametrize("first_has_it", [True, False])
def test_columns_of_ones_own_are_everywhere(
    rows: Rows, tmp_path: Path, made: Path, first_has_it: bool
) -> None:
    """The case ``sparse_extra_columns``."""
    out = tmp_path / "out"
    plain = [{k: v for k, v in row.items() if k != "colour"} for row in rows[:3]]
    plain[0 if first_has_it else 1]["colour"] = "red"
    plain[1]["mixture_uri"] = str(tmp_path / "later.wav")
    plain[2]["mixture_uri"] = str(tmp_path / "never.wav")
    manifest = rewrite(tmp_path, plain)
    assert run(manifest, out) == 1
    assert _columns(out) == {"extra_colour"}
    shutil.copy(made / "in" / "m1.wav", tmp_path / "later.wav")
    assert run(manifest, out, "--resume") == 1
    assert _columns(out) == {"extra_colour"}
    colours = {row["id"]: row["extra_colour"] for row in tone_runs.table(out, "metrics")}
    assert colours == {
        "clip/0": "red" if first_has_it else None,
        "clip/1": None if first_has_it else "red",
    }
    plain[2].update(mixture_uri=str(made / "in" / "m2.wav"), shape="round")
    assert run(rewrite(tmp_path, plain), out, "--resume") == 0
    assert _columns(out) == {"extra_colour", "extra_shape"}
    assert_once(out, all_ids(plain))


def _columns(out: Path) -> set[str]:
    """Of one's own, which every file of metrics and dead letters has."""
    found = {
        frozenset(name for name in pq.read_schema(file).names if name.startswith("extra_"))
        for name in ("metrics", "dead_letters")
        for file in (out / name).rglob("*.parquet")
    }
    assert len(found) == 1
    return set(found.pop())


def test_taking_rows_out_of_a_file_twice_changes_nothing(out: Path) -> None:
    file = sorted((out / "metrics").rglob("*.parquet"))[0]
    uri = str(file)
    leaving = [kept.Leaving(uri=uri, id="clip/0", why=kept.CHANGED)]
    rewriting = kept._RewriteFn(str(out), METRICS_SCHEMA, Storage())
    contents = []
    for _ in range(2):
        found = {"tables": [True], "leaving": leaving, "damaged": []}
        assert list(rewriting.process((uri, found), ["colour"])) == [uri]
        contents.append(file.read_bytes())
    assert contents[0] == contents[1]
    assert pq.ParquetFile(file).read()["id"].to_pylist() == ["clip/2"]
    leaving.append(kept.Leaving(uri=uri, id="clip/2", why=kept.GONE))
    for _ in range(2):
        found = {"tables": [True], "leaving": leaving, "damaged": []}
        assert list(rewriting.process((uri, found), ["colour"])) == [uri]
        assert not file.exists()
