"""A front for an emulator of a storage service: it can break, and remembers.

Emulators know no tokens and no batches and give URLs of their own; the front answers ``/token``,
takes ``/batch`` apart, rewrites URLs and hands the rest on.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from faults import Turns

MEDIA = r"alt=media"
"""Requests for the content of an object."""
_HOP_BY_HOP = {"connection", "content-length", "expect", "host", "transfer-encoding"} | {
    "accept-encoding"  # an answer is read here, to rewrite URLs
}
_URL_FIELDS = {"application/json", "application/json; charset=utf-8"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a client gets."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A line of the log; ``in_flight`` counts requests like it that were under way, with itself."""

    method: str
    path: str
    status: int
    in_flight: int


@dataclasses.dataclass(slots=True, kw_only=True)
class Fault(Turns):
    """What happens to requests whose ``METHOD path`` the pattern finds.

    Attributes:
        status: what is answered; None: what the emulator says.
        delay_s: how long the answer takes.
        cut: bytes of the body that are sent before the connection ends; None: all.
    """

    status: int | None = None
    delay_s: float = 0.0
    cut: int | None = None


Route = Callable[[str, str, bytes], Answer]
"""Method, path with query, body → answer."""


class StorageFront:
    """The front: faults that are injected, routes of its own, and the log."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        """Listens on a free port of this machine, in front of the emulator at ``upstream``."""
        self.faults: list[Fault] = []
        self.routes: dict[str, Route] = {"/token": _token, "/batch": self._batch}
        self.log: list[Request] = []
        self._upstream, self._local = upstream, threading.local()
        self._lock, self._under_way = threading.Lock(), dict[str, int]()
        handler = type("_Handler", (_Handler,), {"front": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> StorageFront:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def bucket(self, name: str) -> str:
        """Makes a bucket and gives its URI."""
        body = json.dumps({"name": name}).encode()
        answer = self.ask("POST", "/storage/v1/b", body, {"Content-Type": "application/json"})
        assert answer.status == 200, answer
        return f"gs://{name}"

    def requests(self, pattern: str) -> list[Request]:
        """Lines of the log whose ``METHOD path`` a pattern finds."""
        with self._lock:
            return [r for r in self.log if re.search(pattern, f"{r.method} {r.path}")]

    def forget(self) -> None:
        """Ends all faults and begins a new log."""
        with self._lock:
            self.faults.clear()
            self.log.clear()

    def answer(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[Answer, int | None]:
        """The answer, and how much of its body is sent where the connection is to end early."""
        line = f"{method} {path}"
        kind = f"{method} {bool(re.search(MEDIA, path))}"
        with self._lock:
            fault = next((fault for fault in self.faults if fault.takes(line)), None)
            self._under_way[kind] = in_flight = self._under_way.get(kind, 0) + 1
        try:
            if fault is not None and fault.delay_s:
                time.sleep(fault.delay_s)
            if fault is not None and fault.status is not None:
                answer = Answer(status=fault.status, body=_error(fault.status), headers=_JSON)
            else:
                answer = self._handled(method, path, body, headers)
        finally:
            with self._lock:
                self._under_way[kind] -= 1
        with self._lock:
            self.log.append(
                Request(method=method, path=path, status=answer.status, in_flight=in_flight)
            )
        return answer, None if fault is None else fault.cut

    def _handled(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        for prefix, route in self.routes.items():
            if path.startswith(prefix):
                return route(method, path, body)
        return self.ask(method, path, body, headers)

    def ask(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """What the emulator says, its URLs made the front's."""
        sent = {k: v for k, v in headers.items() if k.lower() not in _HOP_BY_HOP}
        ours, theirs = self.url.encode(), f"http://{self._upstream[0]}:{self._upstream[1]}".encode()
        for is_last in (False, True):  # a connection that was not used for a while may be closed
            connection = self._connection()
            try:
                connection.request(method, path, body.replace(ours, theirs) or None, sent)
                response = connection.getresponse()
                content = response.read()
                break
            except (OSError, http.client.HTTPException):
                connection.close()
                if is_last:
                    raise
        left_out = _HOP_BY_HOP - {"content-length" if method == "HEAD" else ""}
        kept = {k: v for k, v in response.getheaders() if k.lower() not in left_out}
        kept = {k: v.replace(theirs.decode(), self.url) for k, v in kept.items()}
        if response.headers.get("Content-Type", "").lower() in _URL_FIELDS:
            content = content.replace(theirs, ours)
        return Answer(status=response.status, body=content, headers=kept)

    def _connection(self) -> http.client.HTTPConnection:
        """One for each thread, that is for each of the clients' connections."""
        if not hasattr(self._local, "connection"):
            self._local.connection = http.client.HTTPConnection(*self._upstream, timeout=60)
        connection: http.client.HTTPConnection = self._local.connection
        return connection

    def _batch(self, method: str, path: str, body: bytes) -> Answer:
        """Each part of a batch asked for by itself."""
        mark = body.strip().splitlines()[0].decode().removeprefix("--")
        parts = []
        for part in body.decode().split(f"--{mark}")[1:-1]:
            content_id = re.search(r"Content-ID:\s*<(.+?)>", part, re.I)
            inner = re.search(r"^(GET|DELETE|POST|PATCH|PUT) (\S+) HTTP", part, re.M)
            assert inner is not None, part
            payload = re.split(r"\r?\n\r?\n", part[inner.end() :], maxsplit=1)[-1].strip()
            answer, _ = self.answer(inner[1], inner[2], payload.encode(), _JSON)
            parts.append(
                f"--{mark}\r\nContent-Type: application/http\r\n"
                f"Content-ID: <response-{content_id[1] if content_id else ''}>\r\n\r\n"
                f"HTTP/1.1 {answer.status} X\r\nContent-Type: application/json\r\n\r\n"
                f"{answer.body.decode()}\r\n"
            )
        content = "".join(parts) + f"--{mark}--"
        headers = {"Content-Type": f"multipart/mixed; boundary={mark}"}
        return Answer(status=200, body=content.encode(), headers=headers)


class _Handler(BaseHTTPRequestHandler):
    front: StorageFront
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def handle_expect_100(self) -> bool:
        going_on = super().handle_expect_100()
        self.wfile.flush()  # the client waits for it before it sends the body
        return going_on

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer, cut = self.front.answer(self.command, self.path, body, dict(self.headers))
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if self.command == "HEAD":
            self.end_headers()
            return
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body if cut is None else answer.body[:cut])
        if cut is not None:
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _any

    def log_message(self, *_: Any) -> None:
        """The front keeps a log of its own."""


_JSON = {"Content-Type": "application/json"}


def _token(_method: str, _path: str, _body: bytes) -> Answer:
    token = {"access_token": "made-up", "expires_in": 3600, "token_type": "Bearer"}
    return Answer(status=200, body=json.dumps(token).encode(), headers=_JSON)


def _error(status: int) -> bytes:
    return json.dumps({"error": {"code": status, "message": f"injected {status}"}}).encode()
