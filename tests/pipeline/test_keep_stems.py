"""``--keep_stems``: which stems become files; the tables have a row for each all the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tone_runs
import tones

PRESENT, ABSENT = tones.LABELS[0], tones.LABELS[3]
LENGTHS = {"clip": (), "long": ("--max_clip_in_memory_s", "0.01")}


@pytest.fixture(autouse=True)
def models() -> Iterator[None]:
    with tone_runs.tones_as_models() as loaded:
        suspicious = tones.SuspiciousSeparator()
        loaded.model = dataclasses.replace(loaded.model, separator=suspicious)
        yield


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """One mixture, asked for what is in it and what is not; the third query is negative only."""
    (row,) = tone_runs.write_mixtures(tmp_path / "clips", 1)
    rows = [
        {**row, "id": "there", "positive_text": PRESENT, "negative_text": None},
        {**row, "id": "absent", "positive_text": ABSENT, "negative_text": None},
        {**row, "id": "without", "positive_text": None, "negative_text": ABSENT},
    ]
    return tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)


def _files(output: Path) -> set[str]:
    return {path.name for path in (output / "stems").rglob("*") if path.is_file()}


def _table(output: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in tone_runs.table(output, "metrics")}


@pytest.mark.parametrize("length", LENGTHS)
def test_only_what_is_present_is_kept(
    length: str, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--manifest", manifest, "--output", tmp_path / "out", *LENGTHS[length])
    assert tone_runs.run(*words, "--keep_stems", "present", "--residual") == 0
    assert _files(tmp_path / "out") == {
        *("there.flac", "there.residual.flac", "without.flac", "without.residual.flac"),
    }
    rows = _table(tmp_path / "out")
    assert rows["there"]["presence"] > 0.5 > rows["absent"]["presence"]
    assert rows["absent"]["stem_uri"] is rows["absent"]["residual_uri"] is None
    assert rows["absent"]["stem_format"] is None
    assert "is below --min_presence 0.5" in rows["absent"]["stem_note"]
    assert rows["without"]["presence"] is None
    assert "1 stem was measured and not kept" in capsys.readouterr().out


@pytest.mark.parametrize("length", LENGTHS)
def test_the_tables_are_those_of_a_run_that_keeps_all(
    length: str, manifest: Path, tmp_path: Path
) -> None:
    words = ("--manifest", manifest, *LENGTHS[length])
    assert tone_runs.run(*words, "--output", tmp_path / "all") == 0
    assert tone_runs.run(*words, "--output", tmp_path / "none", "--keep_stems", "none") == 0
    assert not (tmp_path / "none" / "stems").exists()
    other = {"stem_uri", "stem_format", "stem_note", "inference_s"}
    everything, nothing = _table(tmp_path / "all"), _table(tmp_path / "none")
    for row_id, row in everything.items():
        kept = {name: value for name, value in row.items() if name not in other}
        assert kept == {n: v for n, v in nothing[row_id].items() if n not in other}


def test_what_was_not_kept_is_finished_all_the_same(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--manifest", manifest, "--output", tmp_path / "out", "--keep_stems", "present")
    assert tone_runs.run(*words) == 0
    capsys.readouterr()
    assert tone_runs.run(*words, "--resume", "--verify") == 0
    assert "3 finished before" in capsys.readouterr().out
    assert tone_runs.run(*words, "--resume", "--min_presence", "0.1") == 2
    assert "min_presence: 0.5 then, 0.1 now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--min_presence", "0.5"), "--min_presence goes with --keep_stems present"),
        (("--keep_stems", "present", "--min_presence", "1.5"), "--min_presence=1.5"),
        (("--keep_stems", "none", "--residual"), "--residual: --keep_stems none keeps no file"),
    ],
)
def test_flags_that_do_not_go_together_are_said(
    words: tuple[str, ...],
    said: str,
    manifest: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tone_runs.run("--manifest", manifest, "--output", tmp_path / "out", *words) == 2
    assert said in capsys.readouterr().err
