"""Any manifest: rows, errors in place of rows, or a ManifestError; soon and in little memory."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fuzzing
from manifests.files import ManifestError
from manifests.files.readers import iter_rows
from manifests.row import MANIFEST_COLUMNS, ManifestRow, RowError, output_name, partition_value
from manifests.validate import check, report_text
from transforms.manifest_io import invalid
from transforms.tables.dead_letters import dead_letter_record

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from(["a.wav", "/a.wav", "x", "1e309", "[", '["a"]', ";;", "\x00", "\ud800", "7"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
ROWS = st.dictionaries(
    st.sampled_from([*MANIFEST_COLUMNS, "extra_x", "note"]) | st.text(max_size=10),
    VALUES,
    max_size=8,
)


def examine(path: Path) -> None:
    """What the jobs and ``manifests.validate`` do with a manifest."""
    with fuzzing.refused(ManifestError, naming=str(path)):
        for result in iter_rows(str(path)):
            if isinstance(result, RowError):
                assert len(str(result)) < 5_000
                assert pa.array([dead_letter_record(invalid(result))["row_json"]], pa.string())
            else:
                assert isinstance(result, ManifestRow)
                json.dumps(result.to_record(), allow_nan=False).encode("utf-8")
                for name in (output_name(result.id), partition_value(result.dataset or "-")):
                    assert "/" not in name
                    assert name not in (".", "..")
        report_text(check(str(path))).encode("utf-8")


@given(st.lists(ROWS, max_size=5))
@fuzzing.few(100)
def test_any_json(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with fuzzing.bounded():
        examine(path)


WHOLE = b'id,mixture_uri,positive_text,snr_db\na,a.wav,bell,3\n"b\n",b.wav,"r""ain",\n'
WHOLE_JSON = b'{"id": "a", "mixture_uri": "a.wav", "positive_text": "bell"}\n' * 3


@given(st.sampled_from(["csv", "jsonl", "csv.gz", "parquet"]), fuzzing.mutations(head=300))
@fuzzing.few(150)
def test_damaged_files(
    tmp_path_factory: pytest.TempPathFactory, ending: str, mutate: Callable[[bytes], bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzzed.{ending}"
    whole = {"csv": WHOLE, "jsonl": WHOLE_JSON, "csv.gz": gzip.compress(WHOLE, mtime=0)}
    if ending == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"id": ["a"], "mixture_uri": ["a"], "positive_text": ["x"]}), sink)
        whole["parquet"] = sink.getvalue().to_pybytes()
    path.write_bytes(mutate(whole[ending]))
    with fuzzing.bounded():
        examine(path)


@fuzzing.found("manifests")
def test_found_files(path: Path) -> None:
    with fuzzing.bounded():
        examine(path)


HUGE = 20_000_000


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("deep.jsonl", b'{"id": ' + b"[" * 1_000_000),
        ("deep object.jsonl", b'{"id": ' + b'{"a":' * 500_000),
        ("long field.jsonl", b'{"id": "a", "positive_text": "' + b"x" * HUGE + b'"}\n'),
        ("long field.csv", b"id,mixture_uri\na," + b"x" * HUGE + b"\n"),
        ("long header.csv", b"id," + b"x" * HUGE + b"\n"),
        ("columns.csv", b"id," + b",".join(b"c%d" % n for n in range(200_000)) + b"\n"),
        ("keys.jsonl", b"{" + b",".join(b'"k%d":1' % n for n in range(100_000)) + b"}\n"),
        ("digits.jsonl", b'{"id": "a", "seed": ' + b"9" * 1_000_000 + b"}\n"),
        ("exponent.jsonl", b'{"id": "a", "mixture_uri": "b", "snr_db": 1e999999999}\n'),
        ("list.jsonl", b'{"id": "a", "interferer_uris": [' + b'"x",' * 500_000 + b'"x"]}\n'),
        ("semicolons.csv", b"id,target_uri,interferer_uris\na,b," + b";" * 100_000 + b"\n"),
        ("quotes.csv", b"id,mixture_uri\n" + b'"' * 1_000_001 + b"\n"),
        ("open quotes.csv", b"id,mixture_uri\n" + b'"a\n' * 20_000),
        ("nul.csv", b"id,mixture_uri\na\x00b,\x00\n"),
        ("surrogate.jsonl", b'{"id": "\\ud800", "mixture_uri": "\\udfff"}\n'),
        ("constant.jsonl", b'{"id": NaN, "mixture_uri": Infinity}\n'),
        ("bomb.csv.gz", gzip.compress(b"id,mixture_uri\n" + b"x" * 300_000_000, 1, mtime=0)),
    ],
)
def test_huge_and_odd_content(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with fuzzing.bounded(tmp_path):
        examine(tmp_path / name)


NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(struct.pack("<3i", 0, 2, 4)), pa.py_buffer(b"\xff\xfeok")]
)
ODD_COLUMNS = (
    {"id": pa.array([b"\xff", None])},
    {"id": pa.array([1, 2])},
    {"id": pa.array([[1], None])},
    {"id": pa.array([{"a": 1}, None])},
    {"id": pa.array(["a", "b"]).dictionary_encode()},
    {"id": pa.array([datetime.datetime(1, 1, 1), None])},
    {"id": pa.array([decimal.Decimal("1.5"), None])},
    {"id": pa.array([2**62, None], pa.duration("s"))},
    {"id": pa.array([2**62, None], pa.timestamp("ms"))},
    {"id": pa.array(["a", "b"], pa.large_string())},
    {"id": pa.nulls(2)},
    {"id": pa.array(["a", "b"]), "mixture_uri": pa.array(["x", "y"]), "positive_text": NOT_UTF8},
    {"id": pa.array(["a", "b"]), "snr_db": pa.array([[float("nan")], [float("inf")]])},
    {"id": pa.array(["a", "b"]), "mixture_uri": pa.array([[b"x"], None])},
    {"id": pa.array(["a", "b"]), "seed": pa.array([2**64 - 1, 0], pa.uint64())},
    {"id": pa.array(["a", "b"]), "interferer_uris": pa.array([[("k", "v")], None],
                                                            pa.map_(pa.string(), pa.string()))},
    {"id": pa.array(["a", "b"]), "": pa.array([1, 2]), "extra_": pa.array([1, 2])},
)  # fmt: skip


@pytest.mark.parametrize("number", range(len(ODD_COLUMNS)))
def test_odd_parquet_schemas(tmp_path: Path, number: int) -> None:
    pq.write_table(pa.table(ODD_COLUMNS[number]), tmp_path / "odd.parquet")
    with fuzzing.bounded(tmp_path):
        examine(tmp_path / "odd.parquet")


def test_one_unreadable_row_of_parquet_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    columns = {"id": pa.array(["a", "b"]), "mixture_uri": pa.array(["x", "y"])}
    pq.write_table(pa.table({**columns, "positive_text": NOT_UTF8}), tmp_path / "m.parquet")
    first, second = iter_rows(str(tmp_path / "m.parquet"))
    assert isinstance(first, RowError)
    assert "row 1" in str(first)
    assert isinstance(second, ManifestRow)
    assert (second.id, second.positive_text) == ("b", "ok")


def test_a_parquet_file_with_a_very_large_row_is_read_in_bounded_memory(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b" * HUGE], "mixture_uri": ["x", "y" * HUGE]})
    pq.write_table(table, tmp_path / "large.parquet", compression="zstd")
    with fuzzing.bounded(tmp_path):
        examine(tmp_path / "large.parquet")
