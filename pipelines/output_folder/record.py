"""``run.json``: what was run, with what, and what came of it; and whether a run may be resumed."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import logging
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from manifests.files import expand, format_of, is_gzip, reading
from manifests.files.readers import columns_of
from manifests.row import SCHEMA_VERSION, misspelt, quoted
from pipelines.preflight import DISTRIBUTION
from transforms.storage import Storage
from transforms.storage.access import redacted

logger = logging.getLogger(__name__)

_PACKAGES = ("apache-beam", "torch", "numpy", "pyarrow", "soundfile", "soxr", "tokenizers")
_BLOCK_BYTES = 1 << 20
_NOTES = re.compile(rb"(?:\s*#[^\n]*\n)*")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFacts:
    """A manifest file as it was when the run began.

    Attributes:
        uri: the file.
        sha256: its digest.
        num_bytes: its size.
        rows: about how many rows it has; None where that takes decompressing it.
    """

    uri: str
    sha256: str
    num_bytes: int
    rows: int | None


def manifest_facts(uris: Sequence[str], storage: Storage) -> list[ManifestFacts]:
    """Digests of all files that manifests consist of, after a look at the header of each.

    A column that looks like a misspelt one is carried along and not used: a warning says so.

    Raises:
        ManifestError: a file is not there, cannot be read or is not a manifest.
    """
    files: list[str] = []
    columns: set[str] = set()
    for uri in uris:
        options = storage.options_for(uri)
        for file in storage.retrying(uri, functools.partial(expand, uri, options)):
            look = functools.partial(columns_of, file, options, named_by=uri)
            columns.update(storage.retrying(file, look))
            files.append(file)
    unused = [f"{quoted(name)} (is it {near}?)" for name, near in misspelt(columns).items()]
    if unused:
        logger.warning("columns of %s that are not used: %s", ", ".join(uris), ", ".join(unused))
    return [storage.retrying(file, functools.partial(_facts, file, storage)) for file in files]


def _facts(uri: str, storage: Storage) -> ManifestFacts:
    form = format_of(uri)
    digest, num_bytes, lines = hashlib.sha256(), 0, 0
    fs, path = storage.resolve(uri)
    with reading(uri), fs.open(path, "rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            if form == "csv" and not num_bytes:
                notes = _NOTES.match(block)
                lines -= 1 + (notes[0].count(b"\n") if notes else 0)  # the header is a line too
            num_bytes += len(block)
            lines += block.count(b"\n")
    rows: int | None = None if is_gzip(uri) else max(0, lines)
    if form == "parquet":
        rows = _parquet_rows(uri, storage)
    return ManifestFacts(uri=uri, sha256=digest.hexdigest(), num_bytes=num_bytes, rows=rows)


def _parquet_rows(uri: str, storage: Storage) -> int | None:
    try:
        with storage.open(uri) as stream:
            return int(pq.ParquetFile(stream).metadata.num_rows)
    except (OSError, ValueError):  # said when its rows are read
        return None


def versions() -> dict[str, str]:
    """Returns the versions of Python, the platform, this project and its main packages."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in (DISTRIBUTION, *_PACKAGES):
        found[name] = _version(name)
    return found


@functools.cache
def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def read_record(storage: Storage, uri: str) -> dict[str, Any] | None:
    """An earlier run's record; None where there is none.

    Raises:
        ValueError: what is there is not JSON.
    """
    try:
        record: dict[str, Any] = json.loads(storage.read_bytes(uri))
    except FileNotFoundError:
        return None
    return record


def write_record(storage: Storage, uri: str, record: Mapping[str, Any]) -> None:
    """Writes a record, whole or not at all."""
    text = json.dumps(record, indent=2, ensure_ascii=False, default=str)
    storage.write_bytes(uri, text.encode("utf-8") + b"\n")


def new_record(
    *,
    command: Sequence[str],
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    manifests: Sequence[ManifestFacts],
    attempt: int,
    started_at: str,
) -> dict[str, Any]:
    """The record of a run that is about to begin, without credentials in its URIs."""
    return {
        "status": "running",
        "schema_version": SCHEMA_VERSION,
        "attempt": attempt,
        "command": list(command),
        "started_at": started_at,
        "settings": redacted(settings),
        "config": redacted(config),
        "manifests": redacted([dataclasses.asdict(facts) for facts in manifests]),
        "versions": versions(),
    }


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the settings of two runs, one line each."""
    names = sorted({*earlier, *now})
    return [
        f"{name}: {earlier.get(name)!r} then, {now.get(name)!r} now"
        for name in names
        if earlier.get(name) != now.get(name)
    ]
