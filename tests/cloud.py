"""Dataflow's jobs API and a bucket, played on this machine: what a submission meets, and no more.

One HTTP server answers both. Buckets hold objects in memory; jobs go through the states that a test
lists, one with each question, and may do their work when they end. Status codes to answer instead
can be queued by method and path.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from cloud_bucket import TIME, Answer, Buckets, Request, parts

PROJECT, REGION = "test-project", "us-central1"
JOB_ID = "2026-01-01_00_00_00-1234567890"


def counter(namespace: str, name: str, value: int) -> list[dict[str, Any]]:
    """A counter of a job, as Dataflow gives it: what was tried, and what counts."""
    return _metric(namespace, name, {"scalar": value})


def distribution(
    namespace: str, name: str, count: int, total: int, least: int, most: int
) -> list[dict[str, Any]]:
    """A distribution of a job, as Dataflow gives it."""
    values = {"count": count, "sum": total, "min": least, "max": most}
    return _metric(namespace, name, {"distribution": values})


def _metric(namespace: str, name: str, value: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": {"origin": "user", "name": name, "context": {"namespace": namespace} | kind},
            "updateTime": TIME,
            **value,
        }
        for kind in ({}, {"tentative": "true"})
    ]


class Cloud:
    """The state of the server: buckets, the job, and what was asked."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.url = ""
        self.reset()

    def reset(self) -> None:
        """As it was when it was started."""
        self.buckets = Buckets()
        self.jobs: list[dict[str, Any]] = []
        self.states = ["JOB_STATE_RUNNING", "JOB_STATE_DONE"]
        self.messages: list[dict[str, str]] = []
        self.metrics: list[dict[str, Any]] = []
        self.work: Callable[[], None] = lambda: None
        self.faults: dict[str, list[int]] = {}
        self.asked: list[str] = []

    @property
    def objects(self) -> dict[str, bytes]:
        """What the buckets hold, by ``bucket/name``."""
        return self.buckets.objects

    def environment(self) -> dict[str, str]:
        """Variables that lead Google's clients here."""
        return {
            "GOOGLE_CLOUD_PROJECT": PROJECT,
            "STORAGE_EMULATOR_HOST": self.url,
            "NO_PROXY": "localhost",
        }

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """What the cloud says to a request."""
        path, query = urlsplit(target).path, dict(parse_qsl(urlsplit(target).query))
        self._work_if_ending(method, path)
        with self.lock:
            self.asked.append(f"{method} {path}")
            for pattern, codes in self.faults.items():
                if codes and re.fullmatch(pattern, f"{method} {path}"):
                    code = codes.pop(0)
                    error = {"code": code, "message": f"made to fail with {code}"}
                    return Answer(status=code, body={"error": error})
            if path.startswith("/v1b3/"):
                return self._dataflow(method, path, body)
            if path.startswith("/batch/"):
                return self._batch(headers["Content-Type"], body)
            return self.buckets.answer(
                Request(method=method, path=path, query=query, headers=headers, body=body)
            )

    def _dataflow(self, method: str, path: str, body: bytes) -> Answer:
        if method == "POST":
            self.jobs.append(json.loads(body))
            return Answer(body=self._job("JOB_STATE_PENDING"))
        if path.endswith("/messages"):
            return Answer(body={"jobMessages": self.messages})
        if path.endswith("/metrics"):
            return Answer(body={"metrics": self.metrics, "metricTime": TIME})
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return Answer(body=self._job(state))

    def _work_if_ending(self, method: str, path: str) -> None:
        """Does the job's work before it is said to be done; it may ask this server meanwhile."""
        work = None
        with self.lock:
            is_poll = method == "GET" and path.endswith(f"/jobs/{JOB_ID}")
            if is_poll and self.states[0] == "JOB_STATE_DONE":
                work, self.work = self.work, lambda: None
        if work is not None:
            work()

    def _job(self, state: str) -> dict[str, Any]:
        job = self.jobs[-1] if self.jobs else {}
        return {
            "id": JOB_ID,
            "projectId": PROJECT,
            "location": REGION,
            "name": job.get("name", ""),
            "type": "JOB_TYPE_BATCH",
            "currentState": state,
            "clientRequestId": job.get("clientRequestId", ""),
        }

    def _batch(self, content_type: str, body: bytes) -> Answer:
        answers = []
        for part in parts(content_type, body):
            method, target = part.decode().split(" ", 2)[:2]
            status = self.answer(method, target, {}, b"").status
            answers.append(f"--b\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {status} -\r\n")
        text = "\r\n".join([*answers, "--b--"]).encode()
        return Answer(body=text, headers={"Content-Type": "multipart/mixed; boundary=b"})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cloud: Cloud

    def _respond(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = self.cloud.answer(self.command, self.path, self.headers, body)
        is_json = not isinstance(answer.body, bytes | None)
        data = json.dumps(answer.body).encode() if is_json else (answer.body or b"")
        self.send_response(answer.status)
        kind = "application/json" if is_json else "application/octet-stream"
        for name, value in ({"Content-Type": kind} | dict(answer.headers)).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # a client that does not want the rest
            self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = _respond

    def _chunk(self) -> bytes:
        data = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return data

    def log_message(self, format: str, *args: object) -> None:
        return


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that hang up, on the standard error of what is tested."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serving() -> Iterator[Cloud]:
    """A cloud on a free port of this machine."""
    cloud = Cloud()
    handler: Any = type("Handler", (_Handler,), {"cloud": cloud})
    server = _Server(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    cloud.url = f"http://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield cloud
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
