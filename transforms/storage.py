"""Files at any fsspec URI: whole reads, and writes that appear whole or not at all."""

from __future__ import annotations

import dataclasses
import io
import os
import posixpath
import stat
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

LARGE_OBJECT_BYTES = 64 * 2**20
_BLOCK_BYTES = 4 * 2**20


def join(base: str, *parts: str) -> str:
    """``base`` and path parts, with one slash between each."""
    return posixpath.join(base.rstrip("/") or "/", *parts)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How files are reached.

    Attributes:
        options: fsspec options by protocol, such as ``{"gs": {"token": "anon"}}``.
        staging: local folder for files being written, on the same file system as the output. What
            a killed process leaves behind is in there and nowhere else. None: beside the file.
    """

    options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    staging: str | None = None

    def options_for(self, uri: str) -> dict[str, Any]:
        """The options of a URI's protocol; of a chain, those of each, by protocol."""
        if "://" in uri and "::" in uri:
            return {protocol: dict(options) for protocol, options in self.options.items()}
        protocol = uri.split("://", 1)[0] if "://" in uri else "file"
        return dict(self.options.get(protocol, {}))

    def resolve(self, uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
        """The file system of a URI and the path on it."""
        if "://" not in uri:  # a path, whatever "::" in it may look like
            return LocalFileSystem(**self.options_for(uri)), os.path.abspath(uri)
        with _as_os_errors(uri):
            fs, path = url_to_fs(uri, **self.options_for(uri))
        return fs, str(path)

    def local_path(self, uri: str) -> str | None:
        """Path of a local URI; None for any other. Nothing is opened."""
        if "://" not in uri:
            return os.path.abspath(uri)
        if uri.startswith(("file://", "local://")):
            return self.resolve(uri)[1]
        return None

    def exists(self, uri: str) -> bool:
        """Whether there is a file or a folder."""
        fs, path = self.resolve(uri)
        return bool(fs.exists(path))

    def read_bytes(self, uri: str) -> bytes:
        """The whole file."""
        fs, path = self.resolve(uri)
        data: bytes = fs.cat_file(path)
        return data

    @contextmanager
    def open(self, uri: str) -> Iterator[BinaryIO]:
        """A seekable file open for reading; what is remote and small is fetched with one request.

        Raises:
            OSError: the file is missing, may not be read, or is a folder or a device.
        """
        path = self.local_path(uri)
        if path is not None:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise IsADirectoryError(f"{uri} is not a regular file")
            with open(path, "rb") as file:
                yield file
            return
        fs, path = self.resolve(uri)
        with _as_os_errors(uri):
            if (fs.size(path) or 0) > LARGE_OBJECT_BYTES:
                opened = fs.open(path, "rb", block_size=_BLOCK_BYTES, cache_type="readahead")
            else:
                opened = io.BytesIO(fs.cat_file(path))
        with opened as file:
            yield file

    def list_files(self, uri: str, suffix: str) -> list[str]:
        """Files below a folder whose names end in ``suffix``, sorted; none if it is missing."""
        fs, path = self.resolve(uri)
        fs.invalidate_cache()
        try:
            found = fs.find(path)
        except FileNotFoundError:
            return []
        return sorted(fs.unstrip_protocol(name) for name in found if name.endswith(suffix))

    def write_bytes(self, uri: str, data: bytes) -> None:
        """Publishes a file: at any moment it is absent, or old, or whole."""
        target = self.local_path(uri)
        if target is None:
            fs, path = self.resolve(uri)
            fs.pipe_file(path, data)
            return
        with self.temporary(uri) as temporary:
            Path(temporary).write_bytes(data)
            _replace(temporary, target)

    def publish(self, uri: str, temporary: str) -> None:
        """Moves or uploads a finished local file to ``uri``."""
        target = self.local_path(uri)
        if target is None:
            fs, path = self.resolve(uri)
            fs.put_file(temporary, path)
            return
        _replace(temporary, target)

    @contextmanager
    def temporary(self, uri: str) -> Iterator[str]:
        """Path of a local file to be filled and published as ``uri``; removed if it was not."""
        target = self.local_path(uri)
        beside = os.path.dirname(target) if target is not None else tempfile.gettempdir()
        folder = self.staging or beside
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, f".writing-{os.getpid()}-{uuid.uuid4().hex}.tmp")
        Path(path).touch(exist_ok=False)
        try:
            yield path
        finally:
            Path(path).unlink(missing_ok=True)

    def remove(self, uri: str) -> None:
        """Removes a file or a folder with all that is in it; nothing happens if it is missing."""
        fs, path = self.resolve(uri)
        fs.invalidate_cache()
        try:
            fs.rm(path, recursive=True)
        except FileNotFoundError:
            return


@contextmanager
def _as_os_errors(uri: str) -> Iterator[None]:
    """Turns what a file system raises into OSError, whatever libraries it is made of.

    An archive says KeyError for a member that it lacks, a web client has errors of its own, and a
    URI that a file system cannot make sense of is a TypeError of its constructor.
    """
    try:
        yield
    except (OSError, ImportError, MemoryError):
        raise
    except Exception as err:
        raise OSError(f"{uri}: {type(err).__name__}: {err}") from err


def _replace(temporary: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.replace(temporary, target)
