"""Files at any fsspec URI: whole reads, and writes that appear whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import posixpath
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from model.transience import RetryPolicy
from transforms.retries import (
    REPEATING_CLIENTS,
    ShortReadError,
    attempt,
    attempts,
    listen_to_clients,
    publish,
)

T = TypeVar("T")
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
        retry: how often what fails in a way that passes is tried again.
        isolate_decoder: decode audio in other processes, which a file may crash.
    """

    options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    staging: str | None = None
    retry: RetryPolicy = dataclasses.field(default_factory=RetryPolicy)
    isolate_decoder: bool = False

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
        if _client_repeats(uri):
            listen_to_clients()
        fs, path = url_to_fs(uri, **self.options_for(uri))
        return fs, str(path)

    def local_path(self, uri: str) -> str | None:
        """Path of a local URI; None for any other. Nothing is opened."""
        if "://" not in uri:
            return os.path.abspath(uri)
        if uri.startswith(("file://", "local://")):
            return self.resolve(uri)[1]
        return None

    def retrying(self, uri: str, operation: Callable[[], T]) -> T:
        """What ``operation`` gives; one that failed in a way that passes is tried again.

        Raises:
            OSError: whatever type the store has for what went wrong.
        """
        if self.local_path(uri) is not None:
            return operation()
        return attempt(operation, uri, self.retry, client_repeats=_client_repeats(uri))

    def iterate(self, uri: str, make: Callable[[], Iterator[T]]) -> Iterator[T]:
        """What the iterator of ``make`` gives; after a failure that passes it goes on.

        ``make`` gives the same every time: what was given already is skipped.
        """
        if self.local_path(uri) is not None:
            yield from make()
            return
        done = 0
        for each in attempts(self.retry, client_repeats=_client_repeats(uri)):
            with each:
                for item in itertools.islice(make(), done, None):
                    done += 1
                    yield item
        publish()

    def _ask(self, uri: str, operation: Callable[[fsspec.AbstractFileSystem, str], T]) -> T:
        return self.retrying(uri, lambda: operation(*self.resolve(uri)))

    def exists(self, uri: str) -> bool:
        """Whether there is a file or a folder.

        Raises:
            OSError: the store does not say.
        """
        try:
            self._ask(uri, lambda fs, path: fs.info(path))
        except FileNotFoundError:
            return False
        return True

    def read_bytes(self, uri: str) -> bytes:
        """The whole file."""
        data: bytes = self._ask(uri, lambda fs, path: fs.cat_file(path))
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
        found = self._ask(uri, _content_or_size)
        if isinstance(found, bytes):
            yield io.BytesIO(found)
            return
        blocks: Any = _Blocks(self, uri, found)
        with io.BufferedReader(blocks, _BLOCK_BYTES) as file:
            yield file

    def read_range(self, uri: str, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop``, exclusive, of a file that has as many."""

        def read(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
            return _whole(fs.cat_file(path, start=start, end=stop), stop - start)

        return self._ask(uri, read)

    def list_files(self, uri: str, suffix: str) -> list[str]:
        """Files below a folder whose names end in ``suffix``, sorted; none if it is missing."""

        def find(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
            fs.invalidate_cache()
            return [fs.unstrip_protocol(name) for name in fs.find(path) if name.endswith(suffix)]

        try:
            return sorted(self._ask(uri, find))
        except FileNotFoundError:
            return []

    def write_bytes(self, uri: str, data: bytes) -> None:
        """Publishes a file: at any moment it is absent, or old, or whole."""
        target = self.local_path(uri)
        if target is None:
            self._ask(uri, lambda fs, path: fs.pipe_file(path, data))
            return
        with self.temporary(uri) as temporary:
            Path(temporary).write_bytes(data)
            _replace(temporary, target)

    def publish(self, uri: str, temporary: str) -> None:
        """Moves or uploads a finished local file to ``uri``."""
        target = self.local_path(uri)
        if target is None:
            self._ask(uri, lambda fs, path: fs.put_file(temporary, path))
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

        def remove(fs: fsspec.AbstractFileSystem, path: str) -> None:
            fs.invalidate_cache()
            fs.rm(path, recursive=True)

        with contextlib.suppress(FileNotFoundError):
            self._ask(uri, remove)


class _Blocks(io.RawIOBase):
    """A large remote file, of which each read is a request."""

    def __init__(self, storage: Storage, uri: str, num_bytes: int) -> None:
        super().__init__()
        self._storage, self._uri, self._num_bytes = storage, uri, num_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        start = self._position
        stop = min(self._num_bytes, start + len(buffer))
        if stop <= start:
            return 0
        buffer[: stop - start] = self._storage.read_range(self._uri, start, stop)
        self._position = stop
        return stop - start


def _content_or_size(fs: fsspec.AbstractFileSystem, path: str) -> bytes | int:
    """A small file, or the size of a large one."""
    size: int | None = fs.size(path)
    if size is not None and size > LARGE_OBJECT_BYTES:
        return size
    try:
        return _whole(fs.cat_file(path), size)
    except ShortReadError:
        fs.invalidate_cache()  # the size may be that of an older version
        raise


def _whole(data: bytes, size: int | None) -> bytes:
    if size is not None and len(data) < size:
        raise ShortReadError(f"{len(data)} bytes arrived of {size}")
    return data


def _client_repeats(uri: str) -> bool:
    return uri.split("://", 1)[0] in REPEATING_CLIENTS


def _replace(temporary: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.replace(temporary, target)
