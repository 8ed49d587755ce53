"""Fetches a file from any fsspec URI: once a host, kept by digest, checked when asked to.

Local files are used where they are; of the others one copy is kept under its SHA-256, so that two
URIs of one file share it. All state is in the cache folder, and processes agree through file locks.
Failures of a store that pass by themselves are told from others by `is_transient`.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any

import fsspec
import tenacity
from filelock import FileLock
from fsspec.implementations.local import LocalFileSystem

_LASTING = (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_PASSING = (errno.ECONNRESET, errno.EPIPE, errno.EIO, errno.EBUSY, errno.EREMOTEIO)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a transient failure is tried again; the wait doubles up to the longest."""

    attempts: int = 5
    first_wait_s: float = 0.5
    longest_wait_s: float = 20.0

    def __post_init__(self) -> None:
        """Checks that at least one attempt is made."""
        if self.attempts < 1:
            raise ValueError(f"attempts={self.attempts}: expected 1 or more")


def is_transient(err: BaseException) -> bool:
    """Whether trying again can help: lost connections, timeouts, busy or failing servers."""
    status = status_of(err)
    if status is not None:
        return status in (408, 429) or status >= 500
    if isinstance(err, ConnectionError | TimeoutError):
        return True
    if isinstance(err, FileNotFoundError):  # fsspec's HTTP says so of every failure but the cause
        return err.__cause__ is not None and is_transient(err.__cause__)
    if isinstance(err, _LASTING):
        return False
    if isinstance(err, OSError):  # a store's own subclass carries no number; the disk's errors do
        return err.errno is None or err.errno in _PASSING
    return any(base.__name__ == "ClientError" for base in type(err).__mro__)  # aiohttp's


def status_of(err: BaseException) -> int | None:
    """The HTTP status that an error of a store stands for; None where it says none."""
    if isinstance(err, OSError) and str(err).startswith("Forbidden: "):  # gcsfs
        return 403
    status = getattr(err, "status", None)
    if status is None:
        status = getattr(err, "code", getattr(getattr(err, "response", None), "status_code", None))
    return status if isinstance(status, int) else None


logger = logging.getLogger(__name__)

CACHE_VARIABLE = "CLAPSEP_CACHE"
OptionsByProtocol = Mapping[str, Mapping[str, Any]]
_OPTIONS: ContextVar[OptionsByProtocol] = ContextVar(
    "storage_options", default=MappingProxyType({})
)

# What remote stores call the identity of a file's content, strongest first.
_VERSION_FIELDS = (
    "sha256", "md5Hash", "Content-MD5", "Digest", "ETag", "etag", "blob_id", "generation",
    "VersionId", "LastModified", "last_modified", "mtime", "updated", "created", "size",
)  # fmt: skip
# A file changed more recently than this could change again within its timestamp's resolution.
_SETTLED_NS = 2 * 10**9


class CheckpointError(ValueError):
    """Weights that cannot be had, or are not what was asked for; the message says which and why."""


class FetchError(CheckpointError):
    """A URI that cannot be read."""


class DigestMismatchError(CheckpointError):
    """A file whose SHA-256 is not the expected one."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LocalFile:
    """A file on this machine and what it holds."""

    uri: str
    path: Path
    sha256: str
    num_bytes: int


def cache_dir() -> Path:
    """The cache folder: ``$CLAPSEP_CACHE``, or ``clapsep-beam`` in the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "clapsep-beam"


@contextmanager
def storage_options(options: OptionsByProtocol) -> Iterator[None]:
    """Reaches files with these fsspec options by protocol, in this thread, while the block runs.

    Weights are named in many places (a registry, the header of another file) and fetched in others;
    how a store is reached is neither's business.
    """
    token = _OPTIONS.set(options)
    try:
        yield
    finally:
        _OPTIONS.reset(token)


def fetch(
    uri: str,
    *,
    sha256: str | None = None,
    cache: Path | None = None,
    retry: RetryPolicy | None = None,
) -> LocalFile:
    """Makes the content of a URI available as a local file.

    A remote file is downloaded when the cache holds no copy of its present version (by the store's
    checksum, else its size and time; a plain HTTP server without ``ETag`` leaves only the size).
    With ``sha256`` and a copy in the cache, nothing is asked of the network.

    Args:
        uri: a path, or any URI that an installed fsspec implementation reads.
        sha256: expected digest, 64 hexadecimal digits.
        cache: cache folder; :func:`cache_dir` by default.
        retry: how transient failures are repeated.

    Raises:
        ValueError: ``sha256`` is not a SHA-256.
        FetchError: the URI cannot be read or the cache cannot be written.
        DigestMismatchError: the content is not the expected one.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"sha256={sha256!r}: expected 64 hexadecimal digits")
    expected = None if sha256 is None else sha256.lower()
    folder = cache_dir() if cache is None else cache
    filesystem, path = open_filesystem(uri)
    if isinstance(filesystem, LocalFileSystem):
        found = _local(uri, Path(path), folder)
    else:
        source = _Remote(uri=uri, filesystem=filesystem, path=path)
        found = _remote(source, expected, folder, retry or RetryPolicy())
    if expected is not None and found.sha256 != expected:
        raise DigestMismatchError(f"{uri}: expected SHA-256 {expected}, found {found.sha256}")
    return found


def digest_file(path: Path, *, cache: Path | None = None) -> str:
    """SHA-256 of a file, remembered by its path, size and modification time."""
    folder = cache_dir() if cache is None else cache
    status = path.stat()
    stamp = {"path": str(path.resolve()), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    note = folder / "digests" / f"{_name(stamp['path'])}.json"
    known = _read_note(note)
    if known is not None and all(known.get(key) == value for key, value in stamp.items()):
        return str(known["sha256"])
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time_ns() - status.st_mtime_ns > _SETTLED_NS:
        try:
            _write_note(note, stamp | {"sha256": sha256})
        except OSError as err:  # a read-only cache costs time, not correctness
            logger.debug("the digest of %s is not remembered: %s", path, err)
    return sha256


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Remote:
    uri: str
    filesystem: Any
    path: str


def open_filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a URI and the path on it.

    Raises:
        FetchError: there is none for its scheme, or it is not installed.
    """
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # why: manifests/files.py
    options = _OPTIONS.get().get(uri.split("://", 1)[0], {})
    try:
        filesystem, path = fsspec.core.url_to_fs(uri, **options)
    except (ImportError, ValueError, OSError) as err:
        raise FetchError(f"{uri}: no file system for this URI: {err}") from err
    return filesystem, path


def _local(uri: str, path: Path, folder: Path) -> LocalFile:
    if not path.is_file():
        raise FetchError(f"{uri}: {'not a file' if path.exists() else 'no such file'}")
    try:
        sha256 = digest_file(path, cache=folder)
    except OSError as err:
        raise FetchError(f"{uri}: {err}") from err
    return LocalFile(uri=uri, path=path, sha256=sha256, num_bytes=path.stat().st_size)


def _remote(source: _Remote, expected: str | None, folder: Path, retry: RetryPolicy) -> LocalFile:
    try:
        for name in ("blobs", "locks", "index"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "locks" / f"{_name(source.uri)}.lock")
        lock.acquire()
    except OSError as err:
        raise FetchError(f"{source.uri}: no cache folder ({err}); set {CACHE_VARIABLE}") from err
    try:
        kept = None if expected is None else _kept(source.uri, expected, folder)
        return kept or _current(source, expected, folder, retry)
    except CheckpointError:
        raise
    except FileNotFoundError as err:
        raise FetchError(f"{source.uri}: no such file ({err})") from err
    except Exception as err:  # every store raises types of its own
        reason = (str(err).strip() or "no reason given").splitlines()[0]
        raise FetchError(f"{source.uri}: {type(err).__name__}: {reason}") from err
    finally:
        lock.release()


def _current(source: _Remote, expected: str | None, folder: Path, retry: RetryPolicy) -> LocalFile:
    """The remote file's present version, kept or downloaded; the caller holds the lock."""
    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        stop=tenacity.stop_after_attempt(retry.attempts),
        wait=tenacity.wait_exponential(multiplier=retry.first_wait_s, max=retry.longest_wait_s),
        before_sleep=tenacity.before_sleep_log(logger, logging.WARNING),
        reraise=True,
    )
    return attempts(_current_once, source, expected, folder)


def _current_once(source: _Remote, expected: str | None, folder: Path) -> LocalFile:
    source.filesystem.invalidate_cache(source.path)
    info = source.filesystem.info(source.path)
    if info.get("type") == "directory":
        raise FetchError(f"{source.uri}: not a file")
    version = {key: str(info[key]) for key in _VERSION_FIELDS if info.get(key) is not None}
    stated = getattr(info.get("lfs"), "sha256", None)  # the Hugging Face hub says it beforehand
    if expected is not None and stated not in (None, expected):
        raise DigestMismatchError(f"{source.uri}: expected SHA-256 {expected}, found {stated}")
    note = folder / "index" / f"{_name(version | {'uri': source.uri})}.json"
    known = (_read_note(note) if version else None) or {}
    digest = stated or known.get("sha256")
    kept = None if digest is None else _kept(source.uri, digest, folder)
    if kept is not None:
        return kept
    found = _download(source, info.get("size"), folder)
    _write_note(note, {"uri": source.uri, "version": version, "sha256": found.sha256})
    return found


def _kept(uri: str, sha256: str, folder: Path) -> LocalFile | None:
    """The cached copy, after a check that it still is what its name says."""
    path = folder / "blobs" / sha256
    if not path.is_file():
        return None
    if digest_file(path, cache=folder) != sha256:
        logger.warning("%s is damaged and will be downloaded again", path)
        path.unlink()
        return None
    return LocalFile(uri=uri, path=path, sha256=sha256, num_bytes=path.stat().st_size)


def _download(source: _Remote, size: int | None, folder: Path) -> LocalFile:
    handle, name = tempfile.mkstemp(dir=folder / "blobs", prefix=".part-")
    os.close(handle)
    part = Path(name)
    try:
        source.filesystem.get_file(source.path, name)
        with part.open("rb+") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        num_bytes = part.stat().st_size
        if size is not None and num_bytes != size:
            raise ConnectionError(f"{num_bytes} bytes arrived of {size}")
        path = folder / "blobs" / sha256
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return LocalFile(uri=source.uri, path=path, sha256=sha256, num_bytes=num_bytes)


def _name(key: object) -> str:
    text = key if isinstance(key, str) else json.dumps(key, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read_note(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is none or it was cut short."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return note if isinstance(note, dict) and "sha256" in note else None


def _write_note(path: Path, note: Mapping[str, Any]) -> None:
    """Writes a JSON object whole: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(note, file)
    Path(name).replace(path)
