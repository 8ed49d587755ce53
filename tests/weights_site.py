"""A site with one file of weights, whose answers can be made to fail."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from model.checkpoints.fetch import RetryPolicy

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


class Handler(BaseHTTPRequestHandler):
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


def serve(handler: type[Handler]) -> Iterator[Site]:
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
