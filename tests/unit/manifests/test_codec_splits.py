"""Splits of a manifest: every row in exactly one, with its number."""

from __future__ import annotations

import csv
import gzip
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifest_files import HEADER, numbered, rows, write
from manifests.files.readers import iter_split, plan_splits
from manifests.row import ManifestRow, RowError


@pytest.mark.parametrize("split_bytes", [1, 7, 100, 5_000])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_splits_hold_every_row_once_with_its_number(tmp_path, form, split_bytes):
    text = "\ufeff" + ("# note\n" if form == "csv" else "") + numbered(200, form, "two\nlines" * 8)
    lines = text.splitlines(keepends=True)
    lines.insert(100, 'bad,"quote,1\n')
    uri = write(tmp_path / f"m.{form}", "".join(lines))
    splits = plan_splits(uri, split_bytes=split_bytes)
    assert len(splits) > {1: 190, 7: 190, 100: 50, 5_000: 1}[split_bytes]
    split_rows = [row for split in splits for row in iter_split(split)]
    whole = rows(uri)
    assert split_rows == whole
    places = [r.manifest_row if isinstance(r, ManifestRow) else r.row for r in split_rows]
    assert places == [r.manifest_row if isinstance(r, ManifestRow) else r.row for r in whole]
    assert sum(isinstance(r, RowError) for r in whole) >= 1


def test_splits_and_errors_survive_pickling(tmp_path):
    uri = write(tmp_path / "m.csv", HEADER + "\na,,x\n")
    for value in (*plan_splits(uri), *rows(uri)):
        assert pickle.loads(pickle.dumps(value)) == value  # noqa: S301 - what Beam does


def test_small_and_compressed_files_are_not_split(tmp_path):
    small = write(tmp_path / "m.csv", numbered(10, "csv"))
    assert len(plan_splits(small)) == 1
    packed = write(tmp_path / "m.jsonl.gz", gzip.compress(numbered(1000, "jsonl").encode()))
    assert len(plan_splits(packed, split_bytes=10)) == 1


def test_parquet_is_split_between_row_groups(tmp_path):
    table = pa.table({"id": [str(i) for i in range(100)], "mixture_uri": ["m"] * 100})
    table = table.append_column("positive_text", pa.array(["rain"] * 99 + [None]))
    pq.write_table(table, tmp_path / "m.parquet", row_group_size=30)
    uri = str(tmp_path / "m.parquet")
    splits = plan_splits(uri)
    assert [(s.start, s.stop, s.rows_before) for s in splits] == [
        (0, 1, 0),
        (1, 2, 30),
        (2, 3, 60),
        (3, 4, 90),
    ]
    results = [row for split in splits for row in iter_split(split)]
    assert results == rows(uri)
    assert results[98].manifest_row == 99
    assert results[99].row == 100


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cells=st.lists(
        st.tuples(
            st.text('ab",\n\r;# é', max_size=8),
            st.text('ab",\n\r;# é', max_size=8),
            st.text('ab",\n\r;# é', max_size=8),
        ),
        max_size=20,
    ),
    split_bytes=st.integers(1, 60),
)
def test_splits_of_csv_agree_with_the_csv_module(tmp_path, cells, split_bytes):
    cells = [row for row in cells if row != ("", "", "")]
    path = tmp_path / "m.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(HEADER.split(","))
        writer.writerows(cells)
    whole = rows(path)
    cells = [row for row in cells if any(map(str.strip, row))]
    expected = [c[0].strip() for c in cells if all(c[i].strip() for i in range(3))]
    assert [r.id for r in whole if isinstance(r, ManifestRow)] == expected
    assert len(whole) == len(cells)
    splits = plan_splits(str(path), split_bytes=split_bytes)
    assert [row for split in splits for row in iter_split(split)] == whole
