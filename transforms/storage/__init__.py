"""Reads and writes files at any fsspec URI, retrying what fails in passing, and counting that.

What can only be read from its start is copied once. A range of a compressed member of an archive is
decompressed from the member's start, and a part of a recording in some formats is decoded from the
recording's: reading it part by part would take time that grows with the square of its length.

Clients of GCS and S3 repeat requests themselves. They are left to it, since only they know which
request of a long upload failed; what they say of it in their logs is counted here. Everything else
is repeated here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import logging
import os
import posixpath
import shutil
import stat
import sys
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from glob import has_magic
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar
from urllib.parse import unquote

import fsspec
import tenacity

from manifests.files import (
    UNFINISHED,
    ManifestError,
    ShortTransferError,
    connect,
    existing_path,
    is_url,
    links_of,
    local_path,
    network_reason,
    other_spellings,
    put_in_place,
    send,
    sync_folder,
    unfinished_file,
    upload,
)
from model.checkpoints.fetch import RetryPolicy, is_transient, status_of
from transforms.audio import ReadOnly
from transforms.storage.access import ARCHIVES, is_partition

T = TypeVar("T")
logger = logging.getLogger(__name__)

NAMESPACE = "Storage"
TRANSIENT = "transient_"
"""Counters: this, and a status or the name of an error."""
REPEATING_CLIENTS = frozenset({"gs", "gcs", "s3", "s3a"})
_REPEATED = {
    "gcsfs": "retrying after exception",
    "s3fs": "Retryable error",
    "botocore.retryhandler": "Retry needed, action of",
}
_SAID_ELSEWHERE = ("out of retries", "non-retriable exception")


class _Uncounted:
    """Keeps retry counts of threads without Beam counters, until a thread that has them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, reason: str) -> None:
        with self._lock:
            self._counts[TRANSIENT + reason] += 1

    def take(self) -> Counter[str]:
        with self._lock:
            taken, self._counts = self._counts, Counter()
        return taken


_UNCOUNTED = _Uncounted()


def publish() -> None:
    """Adds the kept retry counts to Beam's counters, where this thread runs a step of a job.

    Beam is used where it is loaded, and not imported: a thread that runs a step has loaded it.
    """
    sampler = sys.modules.get("apache_beam.runners.worker.statesampler")
    metrics = sys.modules.get("apache_beam.metrics.metric")
    if sampler is None or metrics is None or sampler.get_current_tracker() is None:
        return
    for name, count in _UNCOUNTED.take().items():
        metrics.Metrics.counter(NAMESPACE, name).inc(count)


def take_uncounted() -> dict[str, int]:
    """Counters, ``namespace/name``, of what no step of a job has published."""
    return {f"{NAMESPACE}/{name}": count for name, count in _UNCOUNTED.take().items()}


def repeated(counters: Mapping[str, int]) -> int:
    """How often, by the counters of a job, storage failed in a way that passes."""
    prefix = f"{NAMESPACE}/{TRANSIENT}"
    return sum(count for name, count in counters.items() if name.startswith(prefix))


def attempts(policy: RetryPolicy, *, client_repeats: bool) -> tenacity.Retrying:
    """The attempts at one operation.

    Args:
        policy: how many, and how far apart.
        client_repeats: whether the client has repeated what can be repeated already; only short
            reads, which it does not see, are tried again then.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda err: _passes(err, client_repeats)),
        stop=tenacity.stop_after_attempt(policy.attempts),
        wait=tenacity.wait_exponential_jitter(
            initial=policy.first_wait_s, max=policy.longest_wait_s, jitter=policy.first_wait_s
        ),
        before_sleep=_count,
        reraise=True,
    )


def attempt(
    operation: Callable[[], T], uri: str, policy: RetryPolicy, *, client_repeats: bool
) -> T:
    """Runs ``operation``, and repeats it after transient failures as ``policy`` says.

    Raises:
        OSError: FileNotFoundError, PermissionError or another, whatever type the store has for it.
        ManifestError: the operation read a manifest.
    """
    try:
        return attempts(policy, client_repeats=client_repeats)(operation)
    except Exception as err:  # every store raises types of its own
        known = as_os_error(err, uri)
        if known is err:
            raise
        raise known from err
    finally:
        publish()


def as_os_error(err: Exception, uri: str) -> Exception:
    """An error of a store as what Python calls it, whatever libraries the store is made of.

    An archive says KeyError for a member that leads to one that it lacks, a web client has errors
    of its own, and a URI that a file system cannot make sense of is a TypeError of its constructor.
    """
    cause: BaseException = err
    if isinstance(err, FileNotFoundError) and err.__cause__ is not None:
        cause = err.__cause__  # fsspec's HTTP says FileNotFoundError of every failure
    status = status_of(cause)
    said = network_reason(cause) if status is None or cause is not err else None
    words = " ".join(str(err).split())[:300]
    text = f"{uri}: {said or words or type(err).__name__}"
    if status in (401, 403):
        return PermissionError(text)
    in_archive = uri.partition("://")[0] in ARCHIVES
    if status in (404, 410) or (in_archive and isinstance(err, KeyError)):
        return FileNotFoundError(text)
    if cause is not err and isinstance(cause, ValueError):  # nothing was asked for it
        return OSError(f"{uri}: no address that can be read: {cause}")
    if isinstance(err, FileNotFoundError):
        return FileNotFoundError(text if said else f"{uri}: no such file or object")
    if isinstance(err, ImportError | MemoryError | ManifestError):
        return err
    if said:
        return OSError(text)
    return err if isinstance(err, OSError) else OSError(f"{uri}: {type(err).__name__}: {words}")


def _passes(err: BaseException, client_repeats: bool) -> bool:
    cause = _cause(err)
    return isinstance(cause, ShortTransferError) or (not client_repeats and is_transient(cause))


def _cause(err: BaseException) -> BaseException:
    return err.__cause__ if isinstance(err, ManifestError) and err.__cause__ is not None else err


def _count(state: tenacity.RetryCallState) -> None:
    error = None if state.outcome is None else state.outcome.exception()
    if error is not None:
        cause = _cause(error)
        _UNCOUNTED.add(str(status_of(cause) or type(cause).__name__))
        logger.debug("attempt %d failed: %s", state.attempt_number, cause)


class _Listener(logging.Filter):
    """Counts what a client says that it repeats; leaves out what it says beside an exception."""

    def __init__(self, name: str, level: int) -> None:
        super().__init__()
        self._phrase, self._level = _REPEATED[name], level
        self._client = name.partition(".")[0]

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if said_of_itself := self._phrase in said:
            _UNCOUNTED.add(self._client)
        left_out = not said_of_itself and any(phrase in said for phrase in _SAID_ELSEWHERE)
        return record.levelno >= self._level and not left_out


def listen_to_clients() -> None:
    """Counts what the clients of GCS and S3 repeat from now on; nothing happens the second time."""
    for name in _REPEATED:
        client = logging.getLogger(name)
        if not any(isinstance(each, _Listener) for each in client.filters):
            client.addFilter(_Listener(name, client.getEffectiveLevel()))
            client.setLevel(logging.DEBUG)


KEPT_COPIES = 2
"""Copies that a process keeps for the next row; each takes its size in the temporary folder, has
no name there, and is gone with the process."""


@dataclasses.dataclass(slots=True, eq=False)
class _Copy:
    filling: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    file: IO[bytes] | None = None


_LOCK = threading.Lock()
_COPIES: dict[tuple[str, str, int], _Copy] = {}


@contextmanager
def copied(
    what: str, uri: str, num_bytes: int, fill: Callable[[IO[bytes]], None]
) -> Iterator[BinaryIO]:
    """Opens a local copy for reading, which is made if it is not there.

    Args:
        what: was made of the file, in a word: one file can have several copies.
        uri: the file.
        num_bytes: its size; another size under the same URI is another file.
        fill: writes all of the copy into an empty file.

    Raises:
        OSError: it cannot be read, or the temporary folder is full.
    """
    copy = _latest((what, uri, num_bytes))
    with copy.filling:
        if copy.file is None:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - it is kept
            try:
                fill(file)
                file.flush()
            except BaseException:
                file.close()
                raise
            copy.file = file
    # Another description of the same file, with a place of its own.
    with open(f"/proc/self/fd/{copy.file.fileno()}", "rb") as again:
        yield again


def _latest(key: tuple[str, str, int]) -> _Copy:
    """The copy under a key, which becomes the last one to be dropped."""
    with _LOCK:
        copy = _COPIES.pop(key, None) or _Copy()
        _COPIES[key] = copy
        while len(_COPIES) > KEPT_COPIES:
            _COPIES.pop(next(iter(_COPIES)))
        return copy


NEIGHBOURS_BYTES = 8 * 2**20
"""Of a remote shard that are fetched with one request."""


class _Kept:
    """What was fetched last, a few things at most; threads that ask for the same wait for it."""

    def __init__(self, limit: int) -> None:
        self._limit, self._lock = limit, threading.Lock()
        self._kept: dict[Hashable, Future[bytes]] = {}

    def get(self, key: Hashable, fetch: Callable[[], bytes]) -> bytes:
        """What ``fetch`` gives, or gave; raises what it raises."""
        with self._lock:
            known = self._kept.pop(key, None)
            future = known or Future[bytes]()
            self._kept[key] = future
            while len(self._kept) > self._limit:
                self._kept.pop(next(iter(self._kept)))
        if known is None:
            try:
                future.set_result(fetch())
            except BaseException as err:
                future.set_exception(err)
                with self._lock:
                    if self._kept.get(key) is future:
                        del self._kept[key]
        return future.result()


_BLOCKS = _Kept(4)
LARGE_OBJECT_BYTES = 64 * 2**20
_BLOCK_BYTES = 4 * 2**20
_RANGE_BYTES = 2**20
"""Of a file of which parts are read: fetching it takes about as long as asking for it."""
_REMOVERS, _REMOVED_AT_ONCE = 16, 1_000


def written_to(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Where a run folder was when its files were written, by its ``run.json``."""
    config = record.get("config")
    last = config.get("output") if isinstance(config, Mapping) else None
    places = record.get("outputs")
    return tuple(map(str, places if isinstance(places, list) else [last] if last else []))


def now_at(uri: str, places: Iterable[str], folder: str) -> str:
    """Where a file is that was written at one of the places, and whose folder is there now."""
    for place in sorted(places, key=len, reverse=True):
        if uri.startswith(f"{place}/"):
            return folder + uri.removeprefix(place)
    return uri


def join(base: str, *parts: str) -> str:
    """``base`` and path parts, with one slash between each."""
    return posixpath.join(base.rstrip("/") or "/", *parts)


def fixed_folder(template: str) -> str:
    """Returns the folder of a template of URIs in which whatever fills its fields lies."""
    return template if "{" not in template else template.partition("{")[0].rpartition("/")[0]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How files are reached.

    Attributes:
        options: fsspec options by protocol, such as ``{"gs": {"token": "anon"}}``.
        staging: local folder for files being written, so that what a killed process leaves behind
            is in there; a file that goes to another file system is written beside its place. None:
            each is.
        retry: how often what fails in a way that passes is tried again.
        isolate_decoder: decode audio in other processes, which a file may crash.
        decoder_silence_s: such a process hangs when it gives no sign of life for so long.
    """

    options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    staging: str | None = None
    retry: RetryPolicy = dataclasses.field(default_factory=RetryPolicy)
    isolate_decoder: bool = False
    decoder_silence_s: float = 60.0

    def options_for(self, uri: str) -> dict[str, Any]:
        """The options of a URI's protocol; of a chain, those of each, by protocol."""
        if len(links_of(uri)) > 1:
            return {protocol: dict(options) for protocol, options in self.options.items()}
        protocol = uri.split(":", 1)[0].lower() if is_url(uri) else "file"
        return dict(self.options.get(protocol, {}))

    def resolve(self, uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
        """The file system of a URI and the path on it."""
        if _client_repeats(uri):
            listen_to_clients()
        return connect(uri, self.options_for(uri))

    def local_path(self, uri: str) -> str | None:
        """Path of a local URI; None for any other. Nothing is opened.

        Raises:
            ValueError: a ``file://`` URI of another machine.
        """
        return local_path(uri)

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

        def look(fs: fsspec.AbstractFileSystem, path: str) -> None:
            fs.invalidate_cache(path)
            fs.info(path)

        try:
            self._ask(uri, look)
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

        Where the name is not there, it is looked for in its other Unicode forms.

        Raises:
            OSError: the file is missing, may not be read, or is a folder or a device.
        """
        path = self.local_path(uri)
        if path is not None:
            path = existing_path(path)
            if not stat.S_ISREG(_stat(path).st_mode):
                raise IsADirectoryError(f"{uri} is not a regular file")
            with open(path, "rb") as file:
                yield file
            return
        uri, found = self._content_or_size(uri)
        if isinstance(found, bytes):
            yield io.BytesIO(found)
            return
        if "::" in uri:
            with copied(
                "member", uri, found, lambda file: self._unpack(uri, found, file)
            ) as member:
                yield member
            return
        blocks: Any = _Blocks(self, uri, found)
        with io.BufferedReader(blocks, _BLOCK_BYTES) as file:
            yield file

    @contextmanager
    def open_ranges(self, uri: str) -> Iterator[BinaryIO]:
        """A file of which a part is to be read: of a remote one, what is read, and little more.

        Raises:
            OSError: it is missing, or may not be read.
        """
        if self.local_path(uri) is not None:
            with self.open(uri) as file:
                yield file
            return
        blocks: Any = _Blocks(self, uri, self.size(uri))
        with io.BufferedReader(blocks, _RANGE_BYTES) as ranges:
            yield ranges

    def size(self, uri: str) -> int:
        """Bytes of a file, as they are now.

        Raises:
            OSError: it is missing, or the store does not say.
        """

        def ask(fs: fsspec.AbstractFileSystem, path: str) -> int:
            fs.invalidate_cache(path)
            found: int | None = fs.size(path)
            if found is None:
                raise OSError(f"{uri}: the server does not say its size, nor send parts of it")
            return found

        return self._ask(uri, ask)

    def neighbour(self, uri: str, start: int, stop: int, num_bytes: int) -> bytes:
        """Bytes ``start`` to ``stop`` of a file of ``num_bytes`` whose neighbours are read too.

        Of a remote one whole blocks are fetched and kept for those: the members of a shard take a
        request a block, not one each.

        Raises:
            OSError: it cannot be read.
        """
        if self.local_path(uri) is not None:
            with self.open(uri) as file:
                file.seek(start)
                return file.read(stop - start)
        if stop - start > NEIGHBOURS_BYTES:
            return self.read_range(uri, start, stop)
        first, last = start // NEIGHBOURS_BYTES, (stop - 1) // NEIGHBOURS_BYTES
        blocks = [self._block(uri, number, num_bytes) for number in range(first, last + 1)]
        at = start - first * NEIGHBOURS_BYTES
        return b"".join(blocks)[at : at + stop - start]

    def _block(self, uri: str, number: int, num_bytes: int) -> bytes:
        begin = number * NEIGHBOURS_BYTES
        end = min(num_bytes, begin + NEIGHBOURS_BYTES)
        return _BLOCKS.get(
            (uri, num_bytes, number), functools.partial(self.read_range, uri, begin, end)
        )

    def _unpack(self, uri: str, num_bytes: int, file: IO[bytes]) -> None:
        """Copies the member of an archive, from the start again after a failure that passes."""

        def copy(fs: fsspec.AbstractFileSystem, path: str) -> None:
            file.seek(0)
            file.truncate()
            with fs.open(path, "rb") as member:
                shutil.copyfileobj(member, file, _BLOCK_BYTES)
            if file.tell() < num_bytes:
                raise ShortTransferError(f"{file.tell()} bytes arrived of {num_bytes}")

        self._ask(uri, copy)

    def _content_or_size(self, uri: str) -> tuple[str, bytes | int]:
        """A remote file, or its size, and the URI under which it is there."""
        try:
            return uri, self._ask(uri, _content_or_size)
        except FileNotFoundError as err:
            for other in () if is_transient(err) else other_spellings(uri):
                with contextlib.suppress(FileNotFoundError):
                    return other, self._ask(other, _content_or_size)
            raise

    def read_range(self, uri: str, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop``, exclusive, of a file that has as many."""
        if stop <= start:  # S3 would send the whole object
            return b""

        def read(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
            return _whole(fs.cat_file(path, start=start, end=stop), stop - start)

        return self._ask(uri, read)

    def list_files(self, uri: str, suffix: str) -> list[str]:
        """Files below a folder whose names end in ``suffix``, sorted; none if it is missing."""
        path = self.local_path(uri)
        if path is not None:
            return sorted(name for name in _local_files(path) if name.endswith(suffix))

        def find(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
            return [fs.unstrip_protocol(name) for name in _below(fs, path) if name.endswith(suffix)]

        return sorted(self._ask(uri, find))

    def list_folders(self, uri: str) -> list[str]:
        """Names of the folders that are directly in a folder, sorted; none if it is missing."""
        path = self.local_path(uri)
        if path is not None:
            if not os.path.isdir(path):
                return []
            with os.scandir(path) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        return sorted(self._ask(uri, _folders_in))

    def write_bytes(self, uri: str, data: bytes) -> None:
        """Publishes a file: at any moment it is absent, or old, or whole."""
        if self.local_path(uri) is None:
            self._ask(uri, lambda fs, path: send(fs, path, data))
            return
        with self.temporary(uri) as temporary:
            Path(temporary).write_bytes(data)
            self.publish(uri, temporary)
        self.settle([uri])

    def create(self, uri: str, data: bytes) -> bool:
        """Publishes a file that must not be there yet; False where it is, or somebody was faster.

        On stores that do not know exclusive creation, what is read back decides.
        """
        target = self.local_path(uri)
        if target is not None:
            with self.temporary(uri) as temporary:
                Path(temporary).write_bytes(data)
                return _link(temporary, target, data)
        with contextlib.suppress(FileExistsError):
            self._ask(uri, functools.partial(_create, data=data))
        try:
            return self.read_bytes(uri) == data
        except FileNotFoundError:  # it was there, and is gone
            return False

    def publish(self, uri: str, temporary: str) -> None:
        """Moves or uploads a finished local file to ``uri``.

        A loss of power may take a local one away until :meth:`settle` is called, but no part of it.
        """
        target = self.local_path(uri)
        if target is None:
            self._ask(uri, lambda fs, path: upload(fs, temporary, path))
            return
        put_in_place(temporary, target)

    def settle(self, uris: Iterable[str]) -> None:
        """Makes published files last; for many files of one folder that is one wait."""
        paths = [path for uri in uris if (path := self.local_path(uri)) is not None]
        for folder in sorted({os.path.dirname(path) for path in paths}):
            sync_folder(folder)

    @contextmanager
    def temporary(self, uri: str, within: str | None = None) -> Iterator[str]:
        """Path of a local file to be filled and published as ``uri``; removed if it was not.

        Args:
            uri: of the file.
            within: a folder; none below it that is a link, as :meth:`link_in` says, is written to.

        Raises:
            OSError: it cannot be written there.
        """
        target = self.local_path(uri)
        link = None if within is None else self.link_in(uri, within)
        if link is not None:
            raise PermissionError(
                f"{link} is a link to {os.path.realpath(link)}, and nothing is written through it; "
                f"{within} itself, or a dataset=… in it, may be one"
            )
        folder = self.staging or tempfile.gettempdir()
        if target is not None and (self.staging is None or _device(target) != _device(folder)):
            folder = os.path.dirname(target)
        with unfinished_file(folder) as path:
            yield path

    def link_in(self, uri: str, folder: str) -> str | None:
        """The first local folder below another, on the way to a file, that is a link; or None.

        Partitions, ``dataset=…``, may be: people put those on other disks.
        """
        path, place = self.local_path(uri), self.local_path(folder)
        if path is None or place is None:
            return None
        for part in os.path.dirname(path).removeprefix(place).split("/"):
            place = os.path.join(place, part)
            if part and not is_partition(part) and os.path.islink(place):
                return place
        return None

    def discard_unfinished(self, output: str) -> None:
        """Removes what processes that were ended left of the files that they wrote.

        It is in the staging folder; or, of folders below the output folder that are on another
        disk, in those.
        """
        if self.staging is None:
            return
        folders = [self.staging]
        if os.path.isdir(output):
            below = [entry.path for entry in os.scandir(output) if entry.is_dir()]
            folders += [path for path in below if _device(path) != _device(self.staging)]
        for path in itertools.chain.from_iterable(map(_local_files, folders)):
            if os.path.basename(path).startswith(UNFINISHED):
                Path(path).unlink(missing_ok=True)

    def remove_files(self, uris: Iterable[str], root: str) -> None:
        """Removes files by their names as they are, and local folders below ``root`` left empty.

        A file that is missing is left out; a folder that is a link stays.
        """
        remaining = iter(uris)
        if self.local_path(root) is not None:
            for uri in remaining:
                Path(self.local_path(uri) or uri).unlink(missing_ok=True)
                self.remove_empty(uri.rsplit("/", 1)[0], root)
            return
        while chunk := list(itertools.islice(remaining, _REMOVED_AT_ONCE)):
            names = [self.resolve(uri)[1] for uri in chunk]
            self._ask(root, functools.partial(_remove_named, names))

    def remove_empty(self, folder: str, root: str) -> None:
        """Removes a local folder and those above it, below ``root``, as long as they are empty."""
        path, top = self.local_path(folder), self.local_path(root)
        while path is not None and path.startswith(f"{top}/"):
            try:
                os.rmdir(path)
            except FileNotFoundError:
                pass
            except OSError:  # not empty, or a link, or a mount point
                return
            path = os.path.dirname(path)


class _Blocks(ReadOnly):
    """A large remote file, of which each read is a request.

    Its first and its last block are kept: whoever looks into headers and at the end, which several
    do in turn before the first sample is read, asks for each once.
    """

    def __init__(self, storage: Storage, uri: str, num_bytes: int) -> None:
        super().__init__(num_bytes)
        self._storage, self._uri = storage, uri
        self._first, self._last, self._last_start = b"", b"", num_bytes

    def readinto(self, buffer: Any) -> int:
        start = self._position
        stop = min(self._end, start + len(buffer))
        if stop <= start:
            return 0
        if start < len(self._first):
            piece = self._first[start:stop]
        elif start >= self._last_start:
            piece = self._last[start - self._last_start :][: stop - start]
        else:
            piece = self._storage.read_range(self._uri, start, stop)
            if start == 0:
                self._first = piece
            elif stop == self._end:
                self._last, self._last_start = piece, start
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


def _stat(path: str) -> os.stat_result:
    """As ``os.stat``; of a missing file it says what may be wrong with the name.

    Raises:
        OSError: the file is missing or cannot be looked at.
    """
    try:
        return os.stat(path)
    except FileNotFoundError as err:
        if "\\" in path:
            hint = "it has backslashes, which part no folders here; expected / between them"
        elif "%" in path and os.path.exists(unquote(path)):
            hint = f"is it {unquote(path)}? Only file:// URIs are percent-decoded"
        elif "#" in path and os.path.exists(path.rpartition("#")[0]):
            hint = "what follows # is no part of a recording; expected #t=START,END in seconds"
        else:
            raise
        raise FileNotFoundError(err.errno, f"{err.strerror}: {hint}", path) from err


def _content_or_size(fs: fsspec.AbstractFileSystem, path: str) -> bytes | int:
    """A small file, or the size of a large one."""
    fs.invalidate_cache(path)  # a listing may tell the size of an older version
    size: int | None = fs.size(path)
    if size is not None and size > LARGE_OBJECT_BYTES:
        return size
    return _whole(fs.cat_file(path), size)


def _whole(data: bytes, size: int | None) -> bytes:
    if size is not None and len(data) < size:
        raise ShortTransferError(f"{len(data)} bytes arrived of {size}")
    return data


def _below(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
    """The files of a remote folder as they are now, or the file; none if nothing is there."""
    fs.invalidate_cache()
    try:
        found = fs.find(path)
    except FileNotFoundError:
        return []
    folder = path.rstrip("/") + "/"
    return [name for name in found if name == path or name.startswith(folder)]


def _folders_in(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
    """The last part of the name of each folder of a remote folder, as they are now."""
    fs.invalidate_cache()
    try:
        found = fs.ls(path, detail=True)
    except FileNotFoundError:
        return []
    names = (info["name"].rstrip("/") for info in found if info["type"] == "directory")
    return [name.rsplit("/", 1)[-1] for name in names if name != path.rstrip("/")]


def _remove_objects(fs: fsspec.AbstractFileSystem, names: Sequence[str]) -> None:
    """Removes each object by its literal name: stores take most other names for patterns."""
    plain = [name for name in names if not has_magic(name)]
    with contextlib.suppress(FileNotFoundError):
        if plain:
            fs.rm(plain)  # many with one request, where the store can
    with ThreadPoolExecutor(_REMOVERS) as pool:
        literal = (name for name in names if has_magic(name))
        deque(pool.map(functools.partial(_remove_object, fs), literal), maxlen=0)


def _remove_object(fs: fsspec.AbstractFileSystem, path: str) -> None:
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        fs.rm_file(path)


def _local_files(folder: str) -> Iterator[str]:
    """The files below a local folder, also through links to folders, or the file itself."""
    if os.path.isfile(folder):
        yield folder
    seen = {os.path.realpath(folder)}
    for place, names, files in os.walk(folder, followlinks=True):
        yield from (os.path.join(place, name) for name in files)
        real = {name: os.path.realpath(os.path.join(place, name)) for name in names}
        names[:] = [name for name in names if real[name] not in seen]
        seen.update(real.values())


def _client_repeats(uri: str) -> bool:
    return uri.split("://", 1)[0] in REPEATING_CLIENTS


def _device(path: str) -> int:
    """The file system that a path is on, or would be on."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return os.stat(path).st_dev


def _remove_named(names: Sequence[str], fs: fsspec.AbstractFileSystem, _: str) -> None:
    _remove_objects(fs, names)


def _create(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Raises FileExistsError where the file is there."""
    fs.invalidate_cache(path)
    if fs.exists(path):  # some stores take the mode below and pay no heed to it
        raise FileExistsError(path)
    fs.pipe_file(path, data, mode="create")


def _link(temporary: str, target: str, data: bytes) -> bool:
    """Gives a whole file its name, unless that is taken."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        try:
            with open(target, "xb") as file:
                file.write(data)
        except FileExistsError:
            return False
    return True
