"""Fetching: one download a host, whole files, checked digests, clear errors."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from model.checkpoints import fetch as fetching
from model.checkpoints.fetch import DigestMismatchError, FetchError, RetryPolicy, fetch
from weights_site import CONTENT, NO_WAIT, SHA256, Handler, Site, serve


@pytest.fixture
def site() -> Iterator[Site]:
    yield from serve(Handler)


@pytest.fixture
def memory_uri() -> Iterator[str]:
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe("/fetching/weights", CONTENT)
    yield "memory://fetching/weights"
    filesystem.rm("/fetching", recursive=True)


@pytest.mark.parametrize("form", ["{path}", "file://{path}"])
def test_local_file_is_used_where_it_is(tmp_path: Path, form: str) -> None:
    path = tmp_path / "weights"
    path.write_bytes(CONTENT)
    found = fetch(form.format(path=path), sha256=SHA256.upper(), cache=tmp_path / "cache")
    assert (found.path, found.sha256, found.num_bytes) == (path, SHA256, len(CONTENT))
    assert not (tmp_path / "cache" / "blobs").exists()


def test_local_digest_is_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(CONTENT)
    os.utime(path, ns=(10**18, 10**18))
    digests = []
    whole = hashlib.file_digest
    monkeypatch.setattr(fetching.hashlib, "file_digest", lambda *a: digests.append(a) or whole(*a))
    assert [fetch(str(path), cache=tmp_path / "c").sha256 for _ in range(3)] == [SHA256] * 3
    assert len(digests) == 1
    path.write_bytes(CONTENT[::-1])
    os.utime(path, ns=(10**18 + 1, 10**18 + 1))
    reversed_digest = hashlib.sha256(CONTENT[::-1]).hexdigest()
    assert fetch(str(path), cache=tmp_path / "c").sha256 == reversed_digest


def test_fresh_local_digest_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    for content in (b"first", b"other"):  # same size, within the timestamp's resolution
        path.write_bytes(content)
        found = fetch(str(path), cache=tmp_path / "cache")
        assert found.sha256 == hashlib.sha256(content).hexdigest()


def test_local_file_needs_no_writable_cache(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(CONTENT)
    os.utime(path, ns=(10**18, 10**18))
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache folder would be")
    assert fetch(str(path), cache=blocked / "cache").sha256 == SHA256


def test_remote_file_is_kept_under_its_digest(tmp_path: Path, memory_uri: str) -> None:
    found = fetch(memory_uri, cache=tmp_path)
    assert found.path == tmp_path / "blobs" / SHA256
    assert found.path.read_bytes() == CONTENT
    assert (found.uri, found.sha256, found.num_bytes) == (memory_uri, SHA256, len(CONTENT))
    assert [p.name for p in (tmp_path / "blobs").iterdir()] == [SHA256]


def test_http_file_is_downloaded_once(tmp_path: Path, site: Site) -> None:
    first = fetch(f"{site.url}/weights", cache=tmp_path)
    downloads = site.gets
    second = fetch(f"{site.url}/weights", cache=tmp_path)
    assert first == second
    assert (downloads, site.gets) == (1, 1)


def test_changed_remote_file_is_downloaded_again(tmp_path: Path, site: Site) -> None:
    fetch(f"{site.url}/weights", cache=tmp_path)
    site.content, site.etag = CONTENT[::-1], '"2"'
    found = fetch(f"{site.url}/weights", cache=tmp_path)
    assert found.path.read_bytes() == CONTENT[::-1]


def test_expected_digest_in_the_cache_needs_no_network(tmp_path: Path, site: Site) -> None:
    fetch(f"{site.url}/weights", cache=tmp_path)
    asked = site.requests
    assert fetch(f"{site.url}/weights", sha256=SHA256, cache=tmp_path).sha256 == SHA256
    assert fetch(f"{site.url}/mirror", sha256=SHA256, cache=tmp_path).sha256 == SHA256
    assert site.requests == asked


def test_damaged_copy_is_downloaded_again(tmp_path: Path, memory_uri: str) -> None:
    path = fetch(memory_uri, cache=tmp_path).path
    path.write_bytes(CONTENT[:100])
    assert fetch(memory_uri, cache=tmp_path).path.read_bytes() == CONTENT
    path.write_bytes(CONTENT[:100])
    assert fetch(memory_uri, sha256=SHA256, cache=tmp_path).path.read_bytes() == CONTENT


@pytest.mark.parametrize("remote", [False, True])
def test_wrong_digest_names_uri_expected_and_found(
    tmp_path: Path, memory_uri: str, remote: bool
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(CONTENT)
    uri = memory_uri if remote else str(path)
    wrong = "0" * 64
    with pytest.raises(DigestMismatchError) as caught:
        fetch(uri, sha256=wrong, cache=tmp_path / "cache")
    assert str(caught.value) == f"{uri}: expected SHA-256 {wrong}, found {SHA256}"


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64, "0" * 63])
def test_malformed_expected_digest_is_refused(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ValueError, match="64 hexadecimal"):
        fetch(str(tmp_path / "weights"), sha256=digest, cache=tmp_path)


def test_busy_server_is_asked_again(tmp_path: Path, site: Site) -> None:
    site.statuses = [503, 503, 429]
    assert fetch(f"{site.url}/weights", cache=tmp_path, retry=NO_WAIT).sha256 == SHA256


def test_download_cut_short_is_repeated(tmp_path: Path, site: Site) -> None:
    site.cut_short = 1
    assert fetch(f"{site.url}/weights", cache=tmp_path, retry=NO_WAIT).sha256 == SHA256
    assert site.gets == 2


def test_server_that_stays_down_ends_in_an_error(tmp_path: Path, site: Site) -> None:
    site.cut_short = 100
    with pytest.raises(FetchError, match=f"{site.url}/weights"):
        fetch(f"{site.url}/weights", cache=tmp_path, retry=NO_WAIT)
    assert site.gets == NO_WAIT.attempts
    assert list((tmp_path / "blobs").iterdir()) == []


def test_missing_remote_file_is_not_asked_for_again(tmp_path: Path, site: Site) -> None:
    with pytest.raises(FetchError, match="nothing: no such file"):
        fetch(f"{site.url}/nothing", cache=tmp_path, retry=RetryPolicy(first_wait_s=60.0))


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("nothing/here.pt", "no such file"),
        (".", "not a file"),
        ("memory://nothing/here.pt", "no such file"),
        ("nosuchprotocol://bucket/x.pt", "no file system for this URI.*[Pp]rotocol not known"),
    ],
)
def test_uri_that_cannot_be_read_says_why(tmp_path: Path, uri: str, reason: str) -> None:
    with pytest.raises(FetchError, match=f"^{uri}: .*{reason}"):
        fetch(uri, cache=tmp_path, retry=NO_WAIT)


def test_unwritable_cache_names_the_variable_to_set(tmp_path: Path, memory_uri: str) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache folder would be")
    with pytest.raises(FetchError, match="CLAPSEP_CACHE"):
        fetch(memory_uri, cache=blocked / "cache")


def test_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLAPSEP_CACHE", str(tmp_path / "chosen"))
    assert fetching.cache_dir() == tmp_path / "chosen"
    monkeypatch.delenv("CLAPSEP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fetching.cache_dir() == tmp_path / "clapsep-beam"


def test_many_processes_download_once(tmp_path: Path, site: Site) -> None:
    program = (
        "import sys; from pathlib import Path; from model.checkpoints.fetch import fetch\n"
        "sys.stdout.write(fetch(sys.argv[1], cache=Path(sys.argv[2])).sha256)"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program, f"{site.url}/weights", str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(fetching.__file__).parents[2],
        )
        for _ in range(4)
    ]
    assert [worker.communicate()[0] for worker in workers] == [SHA256] * 4
    assert site.gets == 1


def test_many_threads_download_once(tmp_path: Path, site: Site) -> None:
    digests: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: digests.append(fetch(f"{site.url}/weights", cache=tmp_path).sha256)
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digests == [SHA256] * 8
    assert site.gets == 1
