from __future__ import annotations

import gzip
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifest_files import HEADER, ids, numbered, rows, write
from manifests import columns
from manifests.files import ManifestError
from manifests.files.readers import iter_rows
from manifests.row import ManifestRow, RowError


def test_csv_with_comments_quotes_lists_and_further_columns(tmp_path):
    uri = write(
        tmp_path / "m.csv",
        "\ufeff# A comment, with a comma\r\n"
        '"# another",,,\r\n'
        "\r\n"
        "id,target_uri,interferer_uris,snr_db,positive_text,note\r\n"
        'a,t.wav,x.wav;y.wav,0;5,"a ""dog"", barking",n\r\n'
        "\r\n"
        'b,t.wav,x.wav,,"two\nlines",\r\n',
    )
    first, second = rows(uri)
    assert first == ManifestRow(
        id="a",
        target_uri=f"{tmp_path}/t.wav",
        interferer_uris=(f"{tmp_path}/x.wav", f"{tmp_path}/y.wav"),
        snr_db=(0.0, 5.0),
        positive_text='a "dog", barking',
        extra={"note": "n"},
    )
    assert second.positive_text == "two\nlines"
    assert [first.manifest_row, second.manifest_row] == [5, 7]


def test_jsonl(tmp_path):
    uri = write(
        tmp_path / "m.jsonl",
        '\n{"id": "a", "mixture_uri": "m.wav", "positive_text": "caf\\u00e9", "extra_k": 1}\r\n\n'
        '{"id": "b", "mixture_uri": "m.wav", "negative_audio_uris": ["x"], "snr_db": 3}',
    )
    first, second = rows(uri)
    assert (first.positive_text, first.extra, first.manifest_row) == ("café", {"k": "1"}, 2)
    assert (second.negative_audio_uris, second.snr_db) == ((f"{tmp_path}/x",), (3.0,))
    assert second.manifest_row == 4


def test_parquet_of_another_program(tmp_path):
    table = pa.table(
        {
            "id": pa.array(["a", "b"]).dictionary_encode(),
            "mixture_uri": ["m.wav", None],
            "positive_text": ["rain", "rain"],
            "snr_db": [5.0, None],
            "positive_audio_uris": ["x;y", None],
            "seed": [1.0, None],
            "score": [0.5, float("nan")],
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    first, second = rows(tmp_path / "m.parquet")
    assert (first.snr_db, first.seed, first.extra) == ((5.0,), 1, {"score": "0.5"})
    assert first.positive_audio_uris == (f"{tmp_path}/x", f"{tmp_path}/y")
    assert (second.row, second.field) == (2, "mixture_uri")


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_gzip(tmp_path, form):
    uri = write(tmp_path / f"m.{form}.gz", gzip.compress(numbered(3, form).encode()))
    assert ids(rows(uri)) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", "", "no header"),
        ("m.csv", "# only\n# comments\n", "no header"),
        ("m.csv", "id,mixture_uri,id\n", 'column "id" occurs more than once'),
        ("m.csv", "id;mixture_uri\na;b\n", "separated by semicolons; expected commas"),
        ("m.csv", "ID,mixture_uri\na,b\n", "no column id"),
        ("m.csv", 'id,"mixture_uri\n', "not CSV"),
        ("m.csv", "id,mixture_uri\na,b\n".encode("utf-16"), "UTF-16"),
        ("m.csv", b"id,mixture_\xe4\n", "row 1 is not UTF-8"),
        ("m.csv", b"id,mixture_uri\ra,b\r", "CR alone"),
        ("m.csv", b"PAR1....", "this is Parquet"),
        ("m.csv", bytes(100), "binary"),
        ("m.csv", ",".join(["id", *(f"c{i}" for i in range(1000))]), "1001 columns"),
        ("m.jsonl", "[\n{}\n]", "JSON array"),
        ("m.jsonl", b"\x1f\x8b\x08", "this is gzip"),
        ("m.csv.gz", b"plain", "ot a gzip"),
        ("m.csv.gz", gzip.compress(b"id,mixture_uri\n" * 1000, mtime=0)[:-20], "ended"),
        ("m.parquet", b"PAR1", "not a Parquet file"),
        ("m.parquet", b"", "the file is empty"),
        ("m.xlsx", b"", "expected a name that ends in"),
        ("m.parquet.gz", b"", "expected a name that ends in"),
    ],
)
def test_trouble_with_the_file_names_it(tmp_path, name, content, message):
    uri = write(tmp_path / name, content)
    with pytest.raises(ManifestError, match=message) as caught:
        rows(uri)
    assert str(caught.value).startswith(uri)


def test_broken_parquet_is_named(tmp_path):
    pq.write_table(
        pa.table({"id": [str(i) for i in range(5000)], "mixture_uri": ["m"] * 5000}),
        tmp_path / "m.parquet",
        compression="snappy",
    )
    data = bytearray((tmp_path / "m.parquet").read_bytes())
    data[100:3000] = bytes(2900)
    uri = write(tmp_path / "m.parquet", bytes(data))
    with pytest.raises(ManifestError, match=f"{uri}: broken after row"):
        rows(uri)


def test_parquet_with_a_column_twice(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["id", "id"])
    pq.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="more than once"):
        rows(tmp_path / "m.parquet")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a,m.wav", "3 cells, not 2"),
        ("a,m.wav,x,y", "3 cells, not 4"),
        ('a,m.wav,"x', "CSV with closed quotes"),
        ('a,m.wav,"x" y', "CSV with closed quotes"),
        ("a,m.wav," + "x" * 140_000, "below 131072 characters"),
        ("a,m.wav," + "x" * 40_000, "at most 32768 characters"),
        (b"a,m.wav,\xff", "UTF-8"),
        ("a\x00,m.wav,x", "without NUL"),
        ("a,m.wav,x" * 1_100_000, "a shorter row"),
    ],
)
def test_a_bad_line_of_csv_is_one_error_among_good_rows(tmp_path, line, expected):
    line = line if isinstance(line, bytes) else line.encode()
    good = [f"good{i},m.wav,rain".encode() for i in range(200)]
    uri = write(tmp_path / "m.csv", b"\n".join([HEADER.encode(), *good[:100], line, *good[100:]]))
    results = rows(uri)
    assert ids(results) == [f"good{i}" for i in range(100)] + [None] + [
        f"good{i}" for i in range(100, 200)
    ]
    assert results[100].row == 102
    assert expected in results[100].expected
    assert len(str(results[100])) < 600


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "a JSON object on one line (Expecting"),
        ("[]", "a JSON object on one line"),
        ('"x"', "a JSON object on one line"),
        ('{"id": "a", "id": "b"}', 'each key once, not "id" twice'),
        ('{"id": ' + "9" * 5000 + "}", "too many digits"),
        ('{"id": ' + "[" * 200_000 + "}", "not nested this deeply"),
        ('{"id": [7]}', "a string"),
        ('{"id": "a", "mixture_uri": "m", "positive_text": "x", "offset_s": -Infinity}', "finite"),
        ('{"id": "a", "mixture_uri": "m", "positive_text": "x", "offset_s": 1e999}', "finite"),
        (b'{"id": "\xff"}', "UTF-8"),
        ('{"id": "a\\u0000"}', "without NUL"),
        ('{"id": "' + "x" * (9 << 20), "a shorter row"),
    ],
)
def test_a_bad_line_of_jsonl_is_one_error_among_good_rows(tmp_path, line, expected):
    line = line if isinstance(line, bytes) else line.encode()
    good = numbered(2, "jsonl").encode().splitlines()
    uri = write(tmp_path / "m.jsonl", b"\n".join([good[0], line, good[1]]))
    results = rows(uri)
    assert ids(results) == ["0", None, "1"]
    assert results[1].row == 2
    assert expected in results[1].expected
    assert len(str(results[1])) < 600
    json.loads(results[1].row_json)


@given(st.binary(max_size=300))
@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.csv.gz", "m.parquet"])
def test_any_bytes_give_rows_errors_or_a_manifest_error(tmp_path, name, data):
    prefix = b"id,mixture_uri,positive_text\n" if name == "m.csv" else b""
    uri = write(tmp_path / name, prefix + data)
    try:
        results = rows(uri)
    except ManifestError:
        return
    assert all(isinstance(r, ManifestRow | RowError) for r in results)


def dead_letter(**values):
    return dict.fromkeys(columns.DEAD_LETTER_SCHEMA.names) | values


def test_dead_letters_are_a_manifest(tmp_path):
    good = ManifestRow(id="a", mixture_uri="/d/m.wav", positive_text="x", extra={"k": "v"})
    source = str(tmp_path / "m.csv")
    bad = parse_bad(tmp_path)
    letters = [
        dead_letter(stage="read", error_type="OSError", message="gone", **good.to_record()),
        dead_letter(manifest_uri=source, manifest_row=7, row_json=bad.row_json, id=bad.row_id),
        dead_letter(stage="validate", manifest_uri=source, row_json='["a", "b"]'),
        dead_letter(
            stage="validate",
            manifest_uri=source,
            row_json='{"id": "fixed", "mixture_uri": "m.wav", "positive_text": "x"}',
        ),
    ]
    table_schema = columns.with_extra(columns.DEAD_LETTER_SCHEMA, ["k"])
    folder = tmp_path / "dead_letters"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(letters, table_schema), folder / "part-0.parquet")
    again = rows(folder)
    assert again[0] == good
    assert (again[1].field, again[1].expected) == (bad.field, bad.expected)
    # so that a letter that fails again names no file of letters, which goes, as its place
    assert (again[1].uri, again[1].row) == (source, 7)
    assert again[0].manifest_row == 1
    assert again[2].expected == "a JSON object on one line"
    assert again[3].mixture_uri == f"{tmp_path}/m.wav"


def parse_bad(tmp_path):
    (bad,) = rows(write(tmp_path / "bad.csv", f"{HEADER},offset_s\na,m.wav,x,-1\n"))
    return bad


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_memory_does_not_grow_with_the_file(tmp_path, form):
    peaks = []
    for num_rows in (1_000, 4_000):
        uri = write(tmp_path / f"m.{form}", numbered(num_rows, form, "rain " * 1_000))
        tracemalloc.start()
        assert sum(1 for _ in iter_rows(uri)) == num_rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.1 + 100_000
