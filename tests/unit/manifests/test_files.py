from __future__ import annotations

import os

import fsspec
import pytest

from manifests.files import ManifestError, expand, format_of
from manifests.files.readers import iter_rows

LINE = '{"id": "%s", "mixture_uri": "m.wav", "positive_text": "x"}'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b.jsonl").write_text(LINE % "b")
    (tmp_path / "a.csv").write_text("id,mixture_uri,positive_text\na,m,x\n")
    (tmp_path / ".hidden.csv").write_text("broken")
    (tmp_path / "_SUCCESS.csv").write_text("broken")
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "deeper.csv").mkdir()
    (tmp_path / "deeper.csv" / "c.jsonl").write_text(LINE % "c")
    return tmp_path


def test_a_folder_is_the_manifests_directly_in_it(folder):
    assert expand(str(folder)) == (f"{folder}/a.csv", f"{folder}/b.jsonl")
    assert [row.id for row in iter_rows(str(folder))] == ["a", "b"]
    assert expand(str(folder / "deeper.csv")) == (f"{folder}/deeper.csv/c.jsonl",)


def test_patterns(folder):
    assert expand(f"{folder}/*.jsonl") == (f"{folder}/b.jsonl",)
    assert expand(f"{folder}/*") == (f"{folder}/a.csv", f"{folder}/b.jsonl")
    assert expand(f"{folder}/**/*.jsonl") == (
        f"{folder}/b.jsonl",
        f"{folder}/deeper.csv/c.jsonl",
    )


def test_a_file_whose_name_looks_like_a_pattern(tmp_path):
    (tmp_path / "take [1].jsonl").write_text(LINE % "a")
    assert expand(f"{tmp_path}/take [1].jsonl") == (f"{tmp_path}/take [1].jsonl",)


def test_a_relative_path_becomes_absolute(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert expand("a.csv") == (f"{folder}/a.csv",)
    (row,) = iter_rows("a.csv")
    assert row.mixture_uri == f"{folder}/m"


def test_remote_folder():
    memory = fsspec.filesystem("memory")
    memory.pipe("/files/x/m.jsonl", (LINE % "a").encode())
    (row,) = iter_rows("memory://files/x")
    assert row.mixture_uri == "memory:///files/x/m.wav"
    memory.rm("/files", recursive=True)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("none.csv", "no such file or folder"),
        ("none/", "no such file or folder"),
        ("memory://none.csv", "no such file or folder"),
        ("none/*.csv", "no file here ends in .csv"),
        (".", "no file here ends in .csv"),
        ("nosuchscheme://x.csv", "Protocol not known"),
        ("ftp://127.0.0.1:1/x.csv", r"^ftp://127.0.0.1:1/x.csv: connection refused"),
    ],
)
def test_nothing_there(tmp_path, monkeypatch, uri, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ManifestError, match=message) as caught:
        expand(uri)
    assert str(caught.value).startswith(uri)


def test_a_pipe_is_no_manifest(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ManifestError, match=r"pipe: is there, but neither a file nor a folder"):
        expand(str(tmp_path / "pipe"))


def test_formats_follow_from_names():
    names = {"a.csv": "csv", "a.CSV.GZ": "csv", "a.ndjson": "jsonl", "b/a.parquet": "parquet"}
    assert {name: format_of(name) for name in names} == names
    for name in ("a", "a.xlsx", "a.parquet.gz", "a.csv.zip"):
        with pytest.raises(ManifestError, match="expected a name that ends in"):
            format_of(name)
