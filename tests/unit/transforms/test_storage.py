from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from transforms.storage import LARGE_OBJECT_BYTES, Storage, join


def test_join_puts_one_slash_between_parts() -> None:
    assert join("gs://b/x/", "y", "z.flac") == "gs://b/x/y/z.flac"
    assert join("/", "y") == "/y"


def test_a_file_is_written_whole_into_folders_that_it_needs(tmp_path: Path) -> None:
    storage = Storage(staging=str(tmp_path / "staging"))
    target = tmp_path / "a" / "b" / "x.bin"
    storage.write_bytes(str(target), b"one")
    storage.write_bytes(str(target), b"two")
    assert target.read_bytes() == b"two"
    assert list((tmp_path / "staging").iterdir()) == []
    assert oct(target.stat().st_mode & 0o777) == oct(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_fails_while_it_is_written_leaves_the_old_file_and_nothing_else(
    tmp_path: Path,
) -> None:
    storage = Storage()
    target = tmp_path / "x.bin"
    storage.write_bytes(str(target), b"old")

    def write_half() -> None:
        with storage.temporary(str(target)) as temporary:
            Path(temporary).write_bytes(b"half")
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        write_half()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_remote_files_are_written_listed_read_and_removed() -> None:
    storage = Storage()
    base = "memory://storage-test"
    storage.write_bytes(f"{base}/t/b.parquet", b"2")
    with storage.temporary(f"{base}/t/a.parquet") as temporary:
        Path(temporary).write_bytes(b"1")
        storage.publish(f"{base}/t/a.parquet", temporary)
    storage.write_bytes(f"{base}/t/c.txt", b"3")
    found = storage.list_files(f"{base}/t", ".parquet")
    assert [storage.read_bytes(uri) for uri in found] == [b"1", b"2"]
    with storage.open(f"{base}/t/b.parquet") as file:
        assert file.read() == b"2"
    storage.remove(f"{base}/t")
    storage.remove(f"{base}/t")
    assert storage.list_files(f"{base}/t", "") == []


def test_a_large_remote_object_is_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage()
    storage.write_bytes("memory://storage-test/large", b"abc")
    fs = fsspec.filesystem("memory")
    monkeypatch.setattr(fs, "size", lambda _: LARGE_OBJECT_BYTES + 1)
    monkeypatch.setattr(fs, "cat_file", lambda _: pytest.fail("fetched whole"))
    with storage.open("memory://storage-test/large") as file:
        file.seek(1)
        assert file.read() == b"bc"


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_only_regular_files_are_opened(tmp_path: Path, make) -> None:
    make(tmp_path / "x")
    with (
        pytest.raises(IsADirectoryError, match="not a regular file"),
        Storage().open(str(tmp_path / "x")),
    ):
        pytest.fail("opened")


def test_options_belong_to_a_protocol() -> None:
    storage = Storage(options={"gs": {"token": "anon"}})
    assert storage.options_for("gs://b/x") == {"token": "anon"}
    assert storage.options_for("/x") == storage.options_for("s3://b/x") == {}
