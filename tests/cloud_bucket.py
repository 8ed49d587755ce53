"""Buckets in memory, which speak as much of Cloud Storage as its clients ask of a job."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import google_crc32c

TIME = "2026-01-01T00:00:00.000Z"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asks; ``query`` is what follows the path."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclasses.dataclass(slots=True, kw_only=True)
class Answer:
    """What goes back: JSON, or bytes."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Buckets:
    """Objects by ``bucket/name``, and uploads under way."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self._uploads: dict[str, tuple[str, bytearray]] = {}

    def answer(self, asked: Request) -> Answer:
        """What is said to a request for a bucket or an object."""
        found = re.fullmatch(
            r"(/upload|/download)?/storage/v1/b/([^/]+)(/o(?:/([^/]+))?)?", asked.path
        )
        if found is None:
            return Answer(status=501, body={"error": {"code": 501, "message": asked.path}})
        action, bucket, name = found[1], found[2], unquote(found[4] or asked.query.get("name", ""))
        if action == "/upload":
            return self._upload(bucket, name, asked)
        if not found[3]:
            return Answer(body={"kind": "storage#bucket", "id": bucket, "name": bucket})
        if not found[4]:
            return self._list(bucket, asked.query)
        key = f"{bucket}/{name}"
        if key not in self.objects:
            return Answer(status=404, body={"error": {"code": 404, "message": f"no {key}"}})
        if asked.method == "DELETE":
            del self.objects[key]
            return Answer(status=204)
        if action == "/download" or asked.query.get("alt") == "media":
            return self._media(self.objects[key], asked.headers.get("Range"))
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
            "md5Hash": base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode(),
            "timeCreated": TIME,
            "updated": TIME,
        }

    def _upload(self, bucket: str, name: str, asked: Request) -> Answer:
        body = asked.body
        if "upload_id" in asked.query:
            key, data = self._uploads[asked.query["upload_id"]]
            data += body
            if asked.headers["Content-Range"].endswith("/*"):
                return Answer(status=308, headers={"Range": f"bytes=0-{len(data) - 1}"})
            body = bytes(data)
        elif asked.query["uploadType"] == "resumable":
            name = name or json.loads(body)["name"]
            upload = str(len(self._uploads))
            self._uploads[upload] = (f"{bucket}/{name}", bytearray())
            where = f"http://{asked.headers['Host']}/upload/storage/v1/b/{bucket}/o"
            return Answer(headers={"Location": f"{where}?uploadType=resumable&upload_id={upload}"})
        elif asked.query["uploadType"] == "multipart":
            described, content = parts(asked.headers["Content-Type"], body)
            key, body = f"{bucket}/{json.loads(described)['name']}", content
        else:
            key = f"{bucket}/{name}"
        self.objects[key] = body
        return Answer(body=self._object(key))


def parts(content_type: str, body: bytes) -> list[bytes]:
    """The contents of a multipart body, without the headers of each part."""
    (boundary,) = re.findall(r"boundary=['\"]?([^'\";]+)", content_type)
    found = body.split(f"--{boundary}".encode())[1:-1]
    return [
        re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1].removesuffix(b"\n").removesuffix(b"\r")
        for part in found
    ]
