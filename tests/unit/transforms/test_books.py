from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

import tone_clips
from manifests.shards import Skipped
from transforms.elements import failed
from transforms.storage import Storage
from transforms.tables import row_counts
from transforms.tables.row_counts import RowCounts, WriteRowCounts, read_row_counts


def _books(**counts: Any) -> RowCounts:
    return RowCounts(
        **{
            **{field.name: 0 for field in dataclasses.fields(RowCounts)},
            "by_reason": {},
            "skipped": {},
            **counts,
        }
    )


def test_rows_and_files_are_counted_and_failures_by_reason(tmp_path: Path) -> None:
    rows = [tone_clips.row(f"{i}") for i in range(6)]
    failures = [
        failed(rows[0], "read", "missing", ""),
        failed(rows[1], "read", "missing", ""),
        failed(rows[2], "manifest", "invalid_row", ""),
    ]
    uri = str(tmp_path / "row_counts.json")
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = {
            row_counts.ROWS: pipeline | "R" >> beam.Create([*rows[:2], failures[2], *rows[3:]]),
            row_counts.FINISHED_BEFORE: pipeline | "F" >> beam.Create(["5"]),
            row_counts.STEMS: pipeline | "S" >> beam.Create(rows[3:5]),
            row_counts.DEAD: pipeline | "D" >> beam.Create(failures),
            row_counts.METRICS_FILES: pipeline | "M" >> beam.Create([("a", 1), ("b", 1)]),
            row_counts.DEAD_LETTER_FILES: pipeline | "L" >> beam.Create([("c", 3)]),
            row_counts.SKIPPED: pipeline
            | "P" >> beam.Create([Skipped(why="hidden", count=3), Skipped(why="hidden")]),
        } | WriteRowCounts(uri=uri, storage=Storage())
    found = read_row_counts(Storage(), uri)
    assert found == _books(
        rows=6,
        finished_before=1,
        stems=2,
        dead_letters=3,
        metrics_written=2,
        dead_letters_written=3,
        by_reason={"manifest/invalid_row": 1, "read/missing": 2},
        skipped={"hidden": 4},
    )
    assert found.balanced
    assert found.failure_rate == 0.5


def test_an_empty_manifest_has_books(tmp_path: Path) -> None:
    uri = str(tmp_path / "row_counts.json")
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        none = pipeline | beam.Create([])
        _ = {name: none for name in (row_counts.ROWS, row_counts.DEAD)} | WriteRowCounts(
            uri, Storage()
        )
    assert read_row_counts(Storage(), uri) == _books()
    assert _books().failure_rate == 0.0


@pytest.mark.parametrize(
    "counts",
    [
        {"rows": 1},
        {"stems": 1, "metrics_written": 1},
        {"rows": 1, "stems": 1},
        {"rows": 1, "dead_letters": 1},
        {"recovered": 1},
    ],
)
def test_books_that_do_not_balance_are_known(counts: dict[str, int]) -> None:
    assert not _books(**counts).balanced
