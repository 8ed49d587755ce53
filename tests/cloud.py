"""Dataflow's jobs API and a bucket, played on this machine: what a submission meets, and no more.

One HTTP server answers both. Buckets hold objects in memory; jobs go through the states that a test
lists, one with each question, and may do their work when they end. Status codes to answer instead
can be queued by method and path.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

PROJECT, REGION = "test-project", "us-central1"
TIME = "2026-01-01T00:00:00.000Z"
JOB_ID = "2026-01-01_00_00_00-1234567890"


@dataclasses.dataclass(slots=True, kw_only=True)
class Answer:
    """What goes back: JSON, or bytes."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


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
    """The state of the server: objects by ``bucket/name``, the job, and what was asked."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.url = ""
        self.reset()

    def reset(self) -> None:
        """As it was when it was started."""
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, tuple[str, bytearray]] = {}
        self.jobs: list[dict[str, Any]] = []
        self.states = ["JOB_STATE_RUNNING", "JOB_STATE_DONE"]
        self.messages: list[dict[str, str]] = []
        self.metrics: list[dict[str, Any]] = []
        self.work: Callable[[], None] = lambda: None
        self.faults: dict[str, list[int]] = {}
        self.asked: list[str] = []

    def environment(self) -> dict[str, str]:
        """Variables that lead Google's clients here."""
        return {
            "GOOGLE_CLOUD_PROJECT": PROJECT,
            "STORAGE_EMULATOR_HOST": self.url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "NO_PROXY": "localhost",
        }

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """What the cloud says to a request."""
        path = urlsplit(target).path
        query = {name: values[-1] for name, values in parse_qs(urlsplit(target).query).items()}
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
            return self._storage(method, path, query, headers, body)

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

    def _storage(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes,
    ) -> Answer:
        found = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/([^/]+))?)?", path)
        if found is None:
            return Answer(status=501, body={"error": {"code": 501, "message": path}})
        action, bucket, name = found[1], found[2], unquote(found[3] or query.get("name", ""))
        if action == "/upload":
            return self._upload(bucket, name, query, headers, body)
        if not path.partition("/o")[1] and not found[3]:
            return Answer(body={"kind": "storage#bucket", "id": bucket, "name": bucket})
        if not found[3]:
            return self._list(bucket, query)
        key = f"{bucket}/{name}"
        if key not in self.objects:
            return Answer(status=404, body={"error": {"code": 404, "message": f"no {key}"}})
        if method == "DELETE":
            del self.objects[key]
            return Answer(status=204)
        if action == "/download" or query.get("alt") == "media":
            return self._media(self.objects[key], headers.get("Range"))
        return Answer(body=self._object(key))

    def _media(self, data: bytes, asked: str | None) -> Answer:
        if asked is None:
            return Answer(body=data)
        first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", asked).groups()
        return Answer(status=206, body=data[int(first) : int(last) + 1 if last else None])

    def _list(self, bucket: str, query: Mapping[str, str]) -> Answer:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, folders = [], set()
        for key in sorted(self.objects):
            name = key.removeprefix(f"{bucket}/")
            if name == key or not name.startswith(prefix):
                continue
            below = name[len(prefix) :]
            if delimiter and delimiter in below:
                folders.add(prefix + below.split(delimiter)[0] + delimiter)
            else:
                items.append(self._object(key))
        return Answer(body={"items": items, "prefixes": sorted(folders)})

    def _object(self, key: str) -> dict[str, Any]:
        bucket, name = key.split("/", 1)
        data = self.objects[key]
        return {
            "kind": "storage#object",
            "id": f"{key}/1",
            "name": name,
            "bucket": bucket,
            "generation": "1",
            "metageneration": "1",
            "contentType": "application/octet-stream",
            "size": str(len(data)),
            "crc32c": base64.b64encode(google_crc32c.Checksum(data).digest()).decode(),
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),  # noqa: S324
            "timeCreated": TIME,
            "updated": TIME,
        }

    def _upload(
        self,
        bucket: str,
        name: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes,
    ) -> Answer:
        if "upload_id" in query:
            key, data = self.uploads[query["upload_id"]]
            data += body
            if headers["Content-Range"].endswith("/*"):
                return Answer(status=308, headers={"Range": f"bytes=0-{len(data) - 1}"})
            body = bytes(data)
        elif query["uploadType"] == "resumable":
            name = name or json.loads(body)["name"]
            upload = str(len(self.uploads))
            self.uploads[upload] = (f"{bucket}/{name}", bytearray())
            where = f"{self.url}/upload/storage/v1/b/{bucket}/o"
            return Answer(headers={"Location": f"{where}?uploadType=resumable&upload_id={upload}"})
        elif query["uploadType"] == "multipart":
            described, content = _parts(headers["Content-Type"], body)
            key, body = f"{bucket}/{json.loads(described)['name']}", content
        else:
            key = f"{bucket}/{name}"
        self.objects[key] = body
        return Answer(body=self._object(key))

    def _batch(self, content_type: str, body: bytes) -> Answer:
        answers = []
        for part in _parts(content_type, body):
            method, target = part.decode().split(" ", 2)[:2]
            status = self.answer(method, target, {}, b"").status
            answers.append(f"--b\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {status} -\r\n")
        text = "\r\n".join([*answers, "--b--"]).encode()
        return Answer(body=text, headers={"Content-Type": "multipart/mixed; boundary=b"})


def _parts(content_type: str, body: bytes) -> list[bytes]:
    """The contents of a multipart body, without the headers of each part."""
    (boundary,) = re.findall(r"boundary=['\"]?([^'\";]+)", content_type)
    found = body.split(f"--{boundary}".encode())[1:-1]
    return [
        re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1].removesuffix(b"\n").removesuffix(b"\r")
        for part in found
    ]


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


@contextlib.contextmanager
def serving() -> Iterator[Cloud]:
    """A cloud on a free port of this machine."""
    cloud = Cloud()
    handler: Any = type("Handler", (_Handler,), {"cloud": cloud})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
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
