"""Where manifests are: URIs, folders, patterns, and what a relative URI means."""

from __future__ import annotations

import glob
import gzip
import importlib
import io
import os
import posixpath
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from manifests.errors import ManifestError

FORMATS: Final[Mapping[str, str]] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_BUFFER_BYTES = 1 << 20
_ABSOLUTE = re.compile(r"^(/|\\|[A-Za-z]:[\\/]|[A-Za-z][A-Za-z0-9+.-]*://|[^/]*::)")
_GCS_BY_GRPC = "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"
_PATTERN = re.compile(r"[*?\[]")

StorageOptions = Mapping[str, Any] | None


def format_of(uri: str) -> str:
    """``csv``, ``jsonl`` or ``parquet``, by the suffix before an optional ``.gz``.

    Raises:
        ManifestError: another suffix.
    """
    name = uri.lower().removesuffix(".gz")
    form = FORMATS.get(posixpath.splitext(name)[1])
    if form is None or (form == "parquet" and is_gzip(uri)):
        raise ManifestError(f"{uri}: expected a name that ends in {', '.join(FORMATS)} (or .gz)")
    return form


def is_gzip(uri: str) -> bool:
    """Whether the name says that the file is compressed."""
    return uri.lower().endswith(".gz")


def prefer_gcs_over_http() -> None:
    """Lets gcsfs reach buckets with the JSON API alone, unless its user wants otherwise.

    By itself gcsfs 2026.3 and later asks by gRPC what type a bucket is, before most operations and
    again after each answer that did not come: half a minute a call behind an emulator, behind a
    proxy, or without the right to ask. What is lost are zonal (Rapid Storage) buckets, which speak
    gRPC only, and that empty folders of hierarchical buckets are listed and removed. For these,
    set ``GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT=true``.
    """
    if os.environ.setdefault(_GCS_BY_GRPC, "false").lower() in ("true", "1"):
        return
    if "gcsfs" in sys.modules:  # imported before the variable was set, and decided already
        core = importlib.import_module("gcsfs.core")
        for scheme in ("gs", "gcs"):
            fsspec.register_implementation(scheme, core.GCSFileSystem, clobber=True)


def filesystem(uri: str, storage_options: StorageOptions = None) -> tuple[Any, str]:
    """The fsspec file system of ``uri`` and the path on it.

    Raises:
        ManifestError: an unknown scheme, or one whose package is not installed.
    """
    prefer_gcs_over_http()
    try:
        files, path = fsspec.core.url_to_fs(uri, **dict(storage_options or {}))
    except (ImportError, ValueError) as err:
        raise ManifestError(f"{uri}: {err}") from err
    return files, path


def expand(uri: str, storage_options: StorageOptions = None) -> tuple[str, ...]:
    """The manifest files that ``uri`` stands for, sorted, as absolute URIs.

    Args:
        uri: one file; a folder (the manifests directly in it, without names that begin with ``.``
            or ``_``); or a pattern (``*``, ``?``, ``[…]``, ``**``). What is there under the very
            name is meant, file or folder, also where a pattern begins with such a folder.
        storage_options: keyword arguments of the file system.

    Raises:
        ManifestError: nothing there, no permission, or a file of another format.
    """
    files, path = filesystem(uri, storage_options)
    if "::" in uri:
        format_of(uri)
        return (uri,)
    files.invalidate_cache()
    try:
        if files.isfile(path):
            format_of(uri)
            found = [path]
        elif files.isdir(path):
            found = _manifests({entry["name"]: entry for entry in files.ls(path, detail=True)})
        elif _PATTERN.search(path):
            found = _manifests(_matches(files, _pattern(files, path)))
        else:
            raise ManifestError(f"{uri}: no such file or folder")
    except (OSError, ValueError) as err:
        raise ManifestError(f"{uri}: {_reason(err)}") from err
    if not found:
        raise ManifestError(f"{uri}: no file here ends in {', '.join(FORMATS)} (or .gz)")
    local = isinstance(files, LocalFileSystem)
    return tuple(sorted(p if local else files.unstrip_protocol(p) for p in found))


def _matches(files: Any, pattern: str) -> Mapping[str, Mapping[str, Any]]:
    """What a pattern matches, by path.

    Raises:
        ValueError: it is none.
    """
    if any("**" in part and part != "**" for part in pattern.split("/")):
        raise ValueError("** stands alone between slashes, as in folder/**/*.csv")
    found: Mapping[str, Mapping[str, Any]] = files.glob(pattern, detail=True)
    return found


def _pattern(files: Any, path: str) -> str:
    """``path`` as a pattern, in which the folders that are there are not taken for patterns."""
    parts = path.split("/")
    for number in range(len(parts) - 1, 0, -1):
        folder = "/".join(parts[:number])
        if _PATTERN.search(folder) and files.isdir(folder):
            return "/".join([glob.escape(folder), *parts[number:]])
    return path


def _manifests(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Paths of the files among ``entries`` whose names are those of manifests."""
    return [
        path for path, entry in entries.items() if entry["type"] == "file" and _is_manifest(path)
    ]


def _is_manifest(path: str) -> bool:
    name = posixpath.basename(path.rstrip("/"))
    if name.startswith((".", "_")):
        return False
    try:
        format_of(name)
    except ManifestError:
        return False
    return True


def size_bytes(uri: str, storage_options: StorageOptions = None) -> int | None:
    """Size of a file, None where the file system does not say."""
    files, path = filesystem(uri, storage_options)
    with reading(uri):
        size: int | None = files.size(path)
    return size


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Turns what goes wrong with a file while it is read into a :class:`ManifestError`."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as err:
        raise ManifestError(f"{uri}: {_reason(err)}") from err


def _reason(err: Exception) -> str:
    if isinstance(err, FileNotFoundError):
        return "no such file or folder"
    if isinstance(err, PermissionError):
        return "no permission to read it"
    return str(getattr(err, "strerror", None) or str(err) or type(err).__name__)


@contextmanager
def open_bytes(uri: str, storage_options: StorageOptions = None) -> Iterator[io.BufferedReader]:
    """The bytes of a file, decompressed where its name ends in ``.gz``, with a large buffer."""
    files, path = filesystem(uri, storage_options)
    with files.open(path, "rb") as raw:
        stream = gzip.GzipFile(fileobj=raw, mode="rb") if is_gzip(uri) else raw
        yield io.BufferedReader(stream, _BUFFER_BYTES)


def folder_of(uri: str) -> str:
    """The folder in which relative URIs of the manifest ``uri`` begin."""
    if "://" in uri:
        return uri.rsplit("/", 1)[0]
    return os.path.dirname(os.path.abspath(uri))


def resolve(folder: str, uri: str) -> str:
    """``uri`` seen from ``folder``: unchanged if it is absolute, else a path below or beside it.

    Raises:
        ValueError: ``uri`` climbs out of the bucket of ``folder``.
    """
    if _ABSOLUTE.match(uri):
        return uri
    scheme, separator, root = folder.rpartition("://")
    path = posixpath.normpath(f"{root}/{uri}")
    bucket = "" if root.startswith("/") else root.split("/", 1)[0]
    if separator and bucket and not path.startswith(f"{bucket}/"):
        raise ValueError(f"{uri} leaves {scheme}://{bucket}")
    return scheme + separator + path
