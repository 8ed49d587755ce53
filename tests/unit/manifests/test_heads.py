"""What a manifest is refused for before a row is read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifest_files import HEADER, ids, rows, write
from manifests.files import ManifestError, expand
from manifests.files.readers import columns_of, iter_rows
from manifests.validate import check

CASES = Path(__file__).parents[2] / "data" / "cases"
ROW = {"id": "a", "mixture_uri": "m.wav", "positive_text": "dog"}


def columns(uri, named_by=None):
    return columns_of(str(uri), named_by=str(named_by or uri))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("array_pretty.json", "this is a JSON array; expected one object on each line"),
        ("dup_col.csv", 'column "positive_text" occurs more than once'),
        ("empty.csv", "the file is empty: no header"),
        ("semicolon.csv", "the columns are separated by semicolons; expected commas"),
        ("utf16.csv", "this is UTF-16 .in Excel choose CSV UTF-8.; expected UTF-8 text"),
    ],
)
def test_manifests_that_people_had_are_refused(name, message):
    with pytest.raises(ManifestError, match=message) as caught:
        columns(CASES / "bad_manifest_exit_3" / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", '"id";"mixture_uri";"positive_text"\n"a";"b";"c"\n', "separated by semicolons"),
        ("m.csv", "mixture_uri;id\n", "separated by semicolons"),
        ("m.csv", "sep=;\nid;mixture_uri\n", "separated by semicolons"),
        ("m.csv", "# by hand\n\nid\tmixture_uri\n", "separated by tabs"),
        ("m.csv", "id|mixture_uri\n", "separated by bars"),
        ("m.csv", "id\n", None),
        ("m.csv", 'id,mixture_uri,"note;id"\n', None),
        ("m.csv", "sep=,\nid,mixture_uri\n", None),
        ("m.csv", "id;mixture_uri\n".encode("utf-8-sig"), "separated by semicolons"),
        ("m.csv", json.dumps([ROW]), "JSON array"),
        ("m.json", json.dumps([ROW, ROW]), "JSON array"),
        ("m.jsonl", "\ufeff\n [\n" + json.dumps(ROW), "JSON array"),
        ("m.jsonl", json.dumps(ROW, indent=2) + "\n", "only opens a JSON object"),
        ("m.jsonl", "{ \r\n", "only opens a JSON object"),
        ("m.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a spreadsheet of Excel"),
        ("m.csv", b"PK\x03\x04", "a zip archive or a spreadsheet"),
        ("m.csv.gz", gzip.compress(b"", mtime=0), "the file is empty"),
        ("m.csv.gz", b"plain", "ot a gzip"),
        ("m.csv", " \n\n# nothing\n", "the file is empty"),
        ("m.parquet", b"", "the file is empty"),
        ("m.parquet", b"PAR1", "not a Parquet file"),
        ("m.csv", "id,a,id\n", "occurs more than once"),
        ("m.csv", "ID,mixture_uri\n", "no column id"),
    ],
)
def test_what_a_file_is_refused_for(tmp_path, name, content, message):
    uri = write(tmp_path / name, content)
    if message is None:
        assert "id" in columns(uri)
        return
    for read in (columns, rows, check):
        with pytest.raises(ManifestError, match=message) as caught:
            read(uri)
        assert str(caught.value).startswith(uri)
        assert "\n" not in str(caught.value)


def test_columns_of_every_format(tmp_path):
    csv = write(tmp_path / "m.csv", "# comment\n id , mixture_uri,offset,\na,b,c,d\n")
    jsonl = write(tmp_path / "m.jsonl", "\n" + json.dumps(ROW) + "\n{broken\n")
    broken = write(tmp_path / "broken.jsonl", "{broken\n" + json.dumps(ROW))
    pq.write_table(pa.table({"id": ["a"], "k": [1]}), tmp_path / "m.parquet")
    assert columns(csv) == ("id", "mixture_uri", "offset", "column_4")
    assert columns(jsonl) == tuple(ROW)
    assert columns(broken) == tuple(ROW)
    later = write(tmp_path / "later.jsonl", json.dumps(ROW) + '\n{"id": "b", "offset": 1}\n')
    assert columns(later) == (*ROW, "offset")
    assert columns(tmp_path / "m.parquet") == ("id", "k")


def test_an_empty_jsonl_file_has_no_rows(tmp_path):
    uri = write(tmp_path / "m.jsonl", "")
    assert (columns(uri), rows(uri)) == ((), [])


@pytest.mark.parametrize("pattern", ["", "/*.csv", "/part-*"])
def test_an_empty_part_of_a_folder_has_no_rows(pattern):
    folder = f"{CASES}/csv_habits/spark_empty_part"
    found = expand(folder + pattern)
    assert [Path(uri).name for uri in found] == ["part-00000-x.csv", "part-00001-x.csv"]
    assert [columns(uri, folder + pattern) for uri in found] == [tuple(HEADER.split(",")), ()]
    (row,) = iter_rows(folder + pattern)
    assert (row.id, check(folder + pattern).num_rows) == ("a", 1)


@pytest.mark.parametrize("name", ["part-1.csv", "part-1.csv.gz", "part-1.parquet", "part-1.jsonl"])
def test_empty_parts_of_every_format(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b"", mtime=0) if name.endswith(".gz") else b"")
    write(tmp_path / "part-2.csv", f"{HEADER}\na,m.wav,dog\n")
    write(tmp_path / "_SUCCESS", "")
    write(tmp_path / ".part-1.csv.crc", "crc")
    assert ids(rows(tmp_path)) == ["a"]


def test_a_folder_of_empty_parts_has_no_rows(tmp_path):
    write(tmp_path / "part-0.csv", "")
    assert (rows(tmp_path), check(str(tmp_path)).num_rows) == ([], 0)


def test_an_empty_part_at_a_remote_place():
    memory = fsspec.filesystem("memory")
    memory.pipe("/spark/part-0.csv", b"")
    memory.pipe("/spark/part-1.csv", f"{HEADER}\na,m.wav,dog\n".encode())
    assert ids(rows("memory://spark")) == ["a"]
    with pytest.raises(ManifestError, match="the file is empty"):
        rows("memory://spark/part-0.csv")
    memory.rm("/spark", recursive=True)


@pytest.mark.parametrize("pattern", ["**.csv", "a**/*.csv", "**x/m.csv"])
def test_two_stars_beside_letters_are_refused_in_a_line(tmp_path, pattern):
    with pytest.raises(ManifestError, match=r"\*\* stands alone between slashes"):
        expand(f"{tmp_path}/{pattern}")
