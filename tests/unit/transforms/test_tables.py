from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

import metric_rows
from manifests.columns import METRICS_SCHEMA
from transforms import tables
from transforms.elements import TableRow
from transforms.storage import Storage
from transforms.tables import WriteTable, metrics_rows, sorted_table

SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("x", pa.float64())])


def _row(number: int, partition: str = "p=a", **extra: str) -> TableRow:
    return TableRow(
        partition=partition,
        key=f"{number:04d}",
        record={"id": f"{number:04d}", "x": number / 2},
        extra=extra,
    )


def _written(folder: Path, rows: Sequence[TableRow], **settings: object) -> dict[str, bytes]:
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = (
            pipeline
            | beam.Create(rows)
            | WriteTable(uri=str(folder), schema=SCHEMA, storage=Storage(), **settings)
        )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_same_rows_give_the_same_files_in_any_order(tmp_path: Path) -> None:
    rows = [*(_row(i) for i in range(9)), _row(9, "p=b", note="n"), _row(10, "p=b")]
    found = _written(tmp_path / "a", rows, prefix="part-000")
    assert found == _written(tmp_path / "b", rows[::-1], prefix="part-000")
    assert list(found) == [
        "p=a/part-000-00000-of-00001.parquet",
        "p=b/part-000-00000-of-00001.parquet",
    ]
    first, second = (pq.read_table(io.BytesIO(data)) for data in found.values())
    assert first.schema == second.schema
    assert first.schema.names == ["id", "x", "extra_note"]
    assert first["id"].to_pylist() == [f"{i:04d}" for i in range(9)]
    assert second["extra_note"].to_pylist() == ["n", None]


@pytest.mark.parametrize(("shards", "per_file", "files"), [(3, 100, 3), (0, 4, 3), (0, 100, 1)])
def test_files_are_as_many_as_asked_for_or_as_the_rows_need(
    tmp_path: Path, monkeypatch, shards: int, per_file: int, files: int
) -> None:
    monkeypatch.setattr(tables, "ROWS_PER_FILE", per_file)
    found = _written(tmp_path, [_row(i) for i in range(12)], shards=shards)
    assert len(found) == files
    ids = [
        row["id"] for data in found.values() for row in pq.read_table(io.BytesIO(data)).to_pylist()
    ]
    assert sorted(ids) == [f"{i:04d}" for i in range(12)]


def test_no_rows_give_no_files(tmp_path: Path) -> None:
    assert _written(tmp_path, []) == {}


def test_a_column_that_the_schema_lacks_is_not_dropped_silently() -> None:
    row = TableRow(partition="", key="k", record={"id": "k", "y": 1}, extra={})
    with pytest.raises(ValueError, match=r"\['y'\] are not in the schema"):
        sorted_table([row], SCHEMA)


@pytest.mark.parametrize("shards", [1, 3])
def test_files_number_at_most_the_shards_of_each_partition(shards: int, tmp_path: Path) -> None:
    rows = [
        TableRow(partition=f"dataset={number % 2}", key=str(number), record={"n": number}, extra={})
        for number in range(500)
    ]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = (
            pipeline
            | beam.Create(rows)
            | WriteTable(
                uri=str(tmp_path),
                schema=pa.schema([("n", pa.int64())]),
                storage=Storage(),
                shards=shards,
            )
        )
    files = sorted(tmp_path.rglob("*.parquet"))
    assert Counter(path.parent.name for path in files) == {
        "dataset=0": shards,
        "dataset=1": shards,
    }
    written = [row["n"] for path in files for row in pq.read_table(path).to_pylist()]
    assert sorted(written) == list(range(500))


@pytest.mark.parametrize(("rows", "files"), [(1, 1), (550_000, 1), (550_001, 2), (10_000_000, 19)])
def test_without_shards_the_number_of_files_follows_from_the_rows(rows: int, files: int) -> None:
    found = {
        tables._file_of(TableRow(partition="p", key=str(key), record={}, extra={}), {"p": rows}, 0)
        for key in range(2_000)
    }
    assert found == {f"p|{shard:05d}-of-{files:05d}" for shard in range(files)}


@pytest.mark.parametrize("count", [0, 1, 5, 6, 11])
def test_packs_hold_what_came_in_a_bundle(monkeypatch, count: int) -> None:
    monkeypatch.setattr(tables, "_PACK_SIZE", 5)
    fn = tables._PackFn()
    for _ in range(2):
        fn.start_bundle()
        packs = [data for element in range(count) for data in fn.process(element)]
        packs += [windowed.value for windowed in fn.finish_bundle()]
        assert [list(tables.unpack(data)) for data in packs] == [
            list(range(count))[begin : begin + 5] for begin in range(0, count, 5)
        ]


def test_rows_are_small_in_a_pack() -> None:
    rows = [metrics_rows.table_row(row) for row in metric_rows.realistic(4_000)]
    assert len(tables.pack(rows)) < 300 * len(rows)
    assert tables.unpack(tables.pack(rows)) == rows


@pytest.mark.parametrize("size", [1, 5, 1_000])
def test_files_do_not_depend_on_how_rows_were_packed(
    tmp_path: Path, monkeypatch, size: int
) -> None:
    monkeypatch.setattr(tables, "_PACK_SIZE", size)
    monkeypatch.setattr(tables, "ROWS_PER_FILE", 7)
    rows = [_row(i) for i in range(40)]
    found = _written(tmp_path / "a", rows)
    monkeypatch.setattr(tables, "_PACK_SIZE", 4_096)
    assert found == _written(tmp_path / "b", rows[::-1])


def test_files_of_metrics_are_near_128_mb() -> None:
    """From the bytes of a file with rows as a run writes them, at the rows a file is given."""
    rows = [metrics_rows.table_row(row) for row in metric_rows.realistic(4_000)]
    size = len(tables.parquet_bytes(sorted_table(rows, METRICS_SCHEMA)))
    megabytes = size / len(rows) * tables.ROWS_PER_FILE / 1e6
    assert 100 < megabytes < 160
