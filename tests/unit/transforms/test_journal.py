from __future__ import annotations

from pathlib import Path

import apache_beam as beam
import pyarrow.parquet as pq
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from manifests.columns import METRICS_SCHEMA
from metric_rows import metrics
from transforms.storage import Storage
from transforms.tables import sorted_table
from transforms.tables.metrics_rows import WriteJournal, from_record, table_row

STORAGE = Storage()


def _pieces(folder: Path) -> list[list[str]]:
    files = folder.glob("*.parquet")
    return sorted(pq.read_table(file)["id"].to_pylist() for file in files)


def _journalled(folder: Path, count: int, interval_s: float, max_rows: int) -> list[list[str]]:
    rows = [metrics(f"{i}") for i in range(count)]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        kept = (
            pipeline
            | beam.Create(rows, reshuffle=False)
            | WriteJournal(str(folder), STORAGE, interval_s, max_rows)
        )
        assert_that(kept, equal_to(rows))
    return _pieces(folder)


def test_the_first_row_is_kept_at_once_and_others_together(tmp_path: Path) -> None:
    assert _journalled(tmp_path, 5, 60.0, 100) == [["0"], ["1", "2", "3", "4"]]


def test_rows_are_kept_when_enough_have_come_or_enough_time_has_passed(tmp_path: Path) -> None:
    full = _journalled(tmp_path / "full", 5, 60.0, 2)
    assert full == [["0"], ["1", "2"], ["3", "4"]]
    assert _journalled(tmp_path / "due", 3, 0.0, 100) == [["0"], ["1"], ["2"]]


def test_no_rows_leave_no_journal(tmp_path: Path) -> None:
    assert _journalled(tmp_path, 0, 1.0, 10) == []


def test_a_row_survives_its_file() -> None:
    row = metrics("a", None)
    record = sorted_table([table_row(row)], METRICS_SCHEMA.append(_colour())).to_pylist()[0]
    assert from_record(record) == row


def _colour():
    import pyarrow as pa

    return pa.field("extra_colour", pa.string())
