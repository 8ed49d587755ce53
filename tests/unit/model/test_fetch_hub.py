"""Fetching from the Hugging Face hub, played on this machine."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.checkpoints.fetch import DigestMismatchError, FetchError, fetch, storage_options
from weights_site import CONTENT, NO_WAIT, SHA256, Handler, Site, serve


class _HubHandler(Handler):
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
        pytest.raises(FetchError, match=f"^{uri}: .*404 .*Not Found.*$") as caught,
    ):
        fetch(uri, cache=tmp_path, retry=NO_WAIT)
    assert "\n" not in str(caught.value)
