"""Every way to name a file, as it is read and as it is guarded; what servers say of failures."""

from __future__ import annotations

import contextlib
import http.server
import re
import socket
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from model.checkpoints.fetch import RetryPolicy
from ports import free_port
from transforms.storage import Storage
from transforms.storage.access import UriAccess

DECOMPOSED = unicodedata.normalize("NFD", "Vögel.wav")
ONCE = Storage(retry=RetryPolicy(attempts=1))


class _OneFile(http.server.BaseHTTPRequestHandler):
    """A server of one file under its decomposed name, which refuses another one."""

    def do_GET(self) -> None:
        known = {f"/{quote(DECOMPOSED)}": 200, "/denied.wav": 403, "/broken.wav": 500}
        status = known.get(self.path, 404)
        self.send_response(status)
        self.send_header("Content-Length", "4" if status == 200 else "0")
        self.end_headers()
        if status == 200 and self.command == "GET":
            self.wfile.write(b"abcd")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Keeps quiet."""


class _IPv6Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


@contextlib.contextmanager
def _served(kind: type[http.server.ThreadingHTTPServer], host: str) -> Iterator[int]:
    try:
        server = kind((host, 0), _OneFile)
    except OSError as err:
        pytest.skip(f"no server at {host}: {err}")
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_numeric_address_and_another_unicode_form_are_read() -> None:
    with _served(_IPv6Server, "::1") as port:
        uri = f"http://[::1]:{port}/{unicodedata.normalize('NFC', DECOMPOSED)}"
        with ONCE.open(uri) as file:
            assert file.read() == b"abcd"
        assert ONCE.read_bytes(f"http://[::1]:{port}/{DECOMPOSED}") == b"abcd"
        assert UriAccess(prefixes=(f"http://[::1]:{port}",)).refusal(uri) is None
        other = UriAccess(prefixes=(f"http://[::2]:{port}",))
        assert other.refusal(uri) is not None


def test_what_a_server_or_its_absence_says_is_in_the_message() -> None:
    with _served(http.server.ThreadingHTTPServer, "127.0.0.1") as port:
        for name, kind, words in (
            ("gone.wav", FileNotFoundError, "the server answers 404 Not Found"),
            ("denied.wav", PermissionError, "the server answers 403 Forbidden"),
            ("broken.wav", FileNotFoundError, "the server answers 500 Internal Server Error"),
        ):
            uri = f"http://127.0.0.1:{port}/{name}"
            with pytest.raises(kind, match=f"^{uri}: {words}$"), ONCE.open(uri):
                pass
        with (
            pytest.raises(OSError, match="no TLS connection"),
            ONCE.open(f"https://127.0.0.1:{port}/a"),
        ):
            pass
    uri = f"http://127.0.0.1:{free_port()}/a.wav"
    with pytest.raises(OSError, match=f"^{uri}: connection refused"), ONCE.open(uri):
        pass
    for uri in ("http://localhost:99999/a.wav", "http:///a.wav", "http://[::1]:abc/a.wav"):
        text = f"^{re.escape(uri)}: no address that can be read: "
        with pytest.raises(OSError, match=text), ONCE.open(uri):
            pass
    with pytest.raises(FileNotFoundError, match=r"memory://none/a\.wav: no such file or object"):
        ONCE.read_bytes("memory://none/a.wav")


def test_a_local_file_is_read_by_every_way_to_name_it(tmp_path: Path) -> None:
    for name in ("my dog.wav", "100%25.wav", "a::b.wav", "take [1].wav", DECOMPOSED):
        path = tmp_path / name
        path.write_bytes(name.encode())
        spellings = [str(path), path.as_uri(), path.as_uri().replace("file://", "file:")]
        spellings.append(path.as_uri().replace("file://", "file://localhost"))
        spellings.append(unicodedata.normalize("NFC", str(path)))
        access = UriAccess(prefixes=(tmp_path.as_uri(),))
        for uri in spellings:
            with ONCE.open(uri) as file:
                assert file.read() == name.encode()
            assert access.refusal(uri) is None


def test_what_may_be_wrong_with_a_name_is_said(tmp_path: Path) -> None:
    (tmp_path / "my dog.wav").touch()
    with pytest.raises(FileNotFoundError, match=r"backslashes, .*sub\\\\dog\.wav"):
        ONCE.open(str(tmp_path / "sub\\dog.wav")).__enter__()
    with pytest.raises(FileNotFoundError, match=r"is it .*/my dog\.wav\? Only file:// URIs"):
        ONCE.open(str(tmp_path / "my%20dog.wav")).__enter__()
    for fragment in ("t=1s,2s", "t=3-4", "5"):
        with pytest.raises(FileNotFoundError, match=r"#t=START,END in seconds: '.*#" + fragment):
            ONCE.open(str(tmp_path / f"my dog.wav#{fragment}")).__enter__()
    with pytest.raises(FileNotFoundError, match=r"directory: '.*#t=3-4'"):
        ONCE.open(str(tmp_path / "no dog.wav#t=3-4")).__enter__()


def test_files_of_a_folder_are_listed_by_names_that_can_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "dataset=a%20b" / "part 1.parquet"
    path.parent.mkdir()
    path.write_bytes(b"x")
    for folder in (str(tmp_path), tmp_path.as_uri()):
        (found,) = ONCE.list_files(folder, ".parquet")
        assert ONCE.read_bytes(found) == b"x"


def test_another_unicode_form_does_not_lead_out_of_the_prefixes(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.wav").write_bytes(b"x")
    (inside / DECOMPOSED).symlink_to(tmp_path / "secret.wav")
    access = UriAccess(prefixes=(str(inside),))
    assert access.refusal(str(inside / unicodedata.normalize("NFC", DECOMPOSED))) is not None


@pytest.mark.parametrize(
    "uri",
    [
        "simplecache::file:///etc/x].wav",
        "file:///a::simplecache::http://h/x",
        "zip://x::file:///a%3A%3As3://b/z.zip",
        "http://[::1]/::s3://b/x",
    ],
)
def test_what_looks_like_one_address_is_not_read_as_a_chain(uri: str) -> None:
    refused = UriAccess().refusal(uri) is not None
    if not refused:
        with pytest.raises((OSError, ValueError)), ONCE.open(uri):
            pass
