"""Fetching: one download a host, whole files, checked digests, clear errors."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from model import fetch as fetching
from model.fetch import DigestMismatchError, FetchError, fetch, storage_options
from model.transience import RetryPolicy

CONTENT = b"weights " * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NO_WAIT = RetryPolicy(attempts=3, first_wait_s=0.0)


@dataclass
class Site:
    """An HTTP server whose next answers can be made to fail."""

    url: str
    content: bytes = CONTENT
    etag: str | None = '"1"'
    statuses: list[int] = field(default_factory=list)
    cut_short: int = 0
    gets: int = 0
    requests: int = 0


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        site = self.site
        site.requests += 1
        if site.statuses:
            self.send_error(site.statuses.pop(0))
            return
        if self.path != "/weights":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(site.content)))
        if site.etag:
            self.send_header("ETag", site.etag)
        self.end_headers()
        if not body:
            return
        site.gets += 1
        if site.cut_short:
            site.cut_short -= 1
            self.wfile.write(site.content[: len(site.content) // 2])
            self.close_connection = True
            return
        self.wfile.write(site.content)


def serve(handler: type[_Handler]) -> Iterator[Site]:
    served = Site(url="")
    bound = type("Bound", (handler,), {"site": served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    yield from serve(_Handler)


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


class _HubHandler(_Handler):
    """As much of the Hugging Face hub as its file system asks for."""

    def _answer(self, *, body: bool) -> None:
        site = self.site
        if self.path.startswith("/api/") and "/tree/" in self.path:
            size = len(site.content)
            file = {"type": "file", "path": "model/best.ckpt", "oid": "a" * 40, "size": size}
            file["lfs"] = {"oid": hashlib.sha256(site.content).hexdigest(), "size": size}
            file["lfs"]["pointerSize"] = 134
            self._send(json.dumps([file]).encode())
        elif self.path.startswith("/api/spaces/someone/somewhere"):
            self._send(b'{"id": "someone/somewhere", "sha": "b", "siblings": []}')
        elif self.path == "/spaces/someone/somewhere/resolve/main/model/best.ckpt":
            site.gets += 1
            self._send(site.content)
        else:
            self.send_error(404)

    def _send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    resolve = socket.getaddrinfo

    def only_here(host: str, *args: object, **kwargs: object) -> object:
        if host != "127.0.0.1":
            raise socket.gaierror(f"{host}: tests stay on this machine")
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", only_here)
    yield from serve(_HubHandler)


def test_hugging_face_space_is_read_once(tmp_path: Path, hub: Site) -> None:
    uri = "hf://spaces/someone/somewhere/model/best.ckpt"
    with storage_options({"hf": {"endpoint": hub.url}}):
        found = [fetch(uri, cache=tmp_path) for _ in range(2)]
    assert [file.sha256 for file in found] == [SHA256] * 2
    assert found[0].path.read_bytes() == CONTENT
    assert hub.gets == 1


def test_hugging_face_digest_is_checked_before_the_download(tmp_path: Path, hub: Site) -> None:
    uri, wrong = "hf://spaces/someone/somewhere/model/best.ckpt", "0" * 64
    with (
        storage_options({"hf": {"endpoint": hub.url}}),
        pytest.raises(DigestMismatchError, match=f"expected SHA-256 {wrong}, found {SHA256}"),
    ):
        fetch(uri, sha256=wrong, cache=tmp_path)
    assert hub.gets == 0


def test_missing_hugging_face_repository_is_one_line(tmp_path: Path, hub: Site) -> None:
    uri = "hf://nobody/nothing/x.pt"
    with (
        storage_options({"hf": {"endpoint": hub.url}}),
        pytest.raises(FetchError, match=f"^{uri}: .*404 Not Found.*$") as caught,
    ):
        fetch(uri, cache=tmp_path, retry=NO_WAIT)
    assert "\n" not in str(caught.value)


def test_many_processes_download_once(tmp_path: Path, site: Site) -> None:
    program = (
        "import sys; from pathlib import Path; from model.fetch import fetch\n"
        "sys.stdout.write(fetch(sys.argv[1], cache=Path(sys.argv[2])).sha256)"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program, f"{site.url}/weights", str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(fetching.__file__).parents[1],
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
