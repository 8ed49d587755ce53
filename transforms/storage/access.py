"""Limits which URIs rows may name, and keeps credentials out of what people read and of logs.

What a row may never name are chains of file systems that copy files to elsewhere or lead on to
other addresses. Where prefixes are given, everything outside of them is refused too. Compared are
places, not spellings: ``..``, symbolic links, percent-encoding and aliases of a scheme are resolved
first, and what cannot be resolved without doubt is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote, urljoin

from manifests.files import existing_path, is_url, links_of, local_path, split_fragment
from manifests.row import MANIFEST_COLUMNS, ManifestRow
from transforms.audio import AudioError

HIDDEN = "***"
_USER = re.compile(r"(?<=://)[^/\s'\"<>]*@")
_PARAMETER = re.compile(
    r"(#[^\s&?'\"<>]*(?:&(?:column|t)=[^\s&'\"<>]*)+)"  # a fragment of ours
    r"|(?<=[?&])([^\s=&?#'\"<>]+)=[^\s&#'\"<>]+"
)
_CONFIDENTIAL = re.compile(
    r"secret|token|pass|key|credential|auth|cookie|sas|sign|connection|header|cert|user", re.I
)
_MIN_SECRET_CHARS = 6
"""Shorter values are words such as ``anon``; hiding them would garble messages and hide nothing."""


def redact(text: str, secrets: Sequence[str] = ()) -> str:
    """``text`` without users and passwords in URIs, values of their parameters, and ``secrets``.

    A signed URL is its parameters; their names stay, so that a message still says what was read.
    """
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return _PARAMETER.sub(
        lambda found: found[1] or f"{found[2]}={HIDDEN}", _USER.sub(f"{HIDDEN}@", text)
    )


def redacted(value: Any) -> Any:
    """JSON types with every text in them redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {name: redacted(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return value


def redacted_command(command: Sequence[str], secrets: Sequence[str] = ()) -> list[str]:
    """Returns a command line without users, passwords, ``secrets`` and values of secret flags.

    The value of a flag whose name says that it is confidential is hidden, and with it everything
    that ``--storage_options`` says.
    """
    shown, hidden = [], False
    for word in command:
        flag = word.split("=", 1)[0]
        if flag.startswith("-"):
            hidden = flag == "--storage_options" or _CONFIDENTIAL.search(flag) is not None
            word = f"{flag}={HIDDEN}" if hidden and word != flag else word
        elif hidden:
            word = HIDDEN
        shown.append(redact(word, secrets))
    return shown


def secrets_of(storage_options: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """What of storage options nobody may read, in the spellings in which it could appear."""
    found = {
        spelling
        for options in storage_options.values()
        for secret in _confidential(options)
        for spelling in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1])
    }
    return tuple(sorted(found, key=lambda secret: (-len(secret), secret)))


def _confidential(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if _CONFIDENTIAL.search(name):
            yield from _texts(value)
        elif isinstance(value, Mapping):
            yield from _confidential(value)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if len(value) >= _MIN_SECRET_CHARS:
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


NOT_ALLOWED = "uri_not_allowed"
OWN_OUTPUT = "own_output"
ARCHIVES = frozenset({"zip", "tar"})
LEADING_ON = frozenset(
    {
        *("reference", "generic", "dir", "dask", "jupyter", "jlab", "git", "dvc", "libarchive"),
        *("simplecache", "filecache", "blockcache", "cached", "asyncwrapper", "async_wrapper"),
    }
)
"""Schemes whose file systems read other addresses than the URI's own, or keep copies of files."""
_ALIASES = {"gcs": "gs", "s3a": "s3", "abfss": "abfs", "az": "abfs"}
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_HOST = re.compile(r"([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d+)?")
_ODD = re.compile(r"[\x00-\x1f\x7f\\]")
_MAX_DECODINGS = 10
_URI_COLUMNS = tuple(name for name in MANIFEST_COLUMNS if name.endswith(("_uri", "_uris")))

Place = tuple[str, ...]
"""Scheme, host or bucket, and the parts of the path."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UriAccess:
    """What the rows of a run may name.

    Attributes:
        prefixes: folders, buckets or hosts; what lies in one of them is allowed. Empty: anything
            that this process can reach.
        written: folders into which the run writes audio: a row that read there could read what
            another one, or itself, is about to replace.
    """

    prefixes: tuple[str, ...] = ()
    written: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks that every prefix is a place that says which host, bucket or folder."""
        for prefix in self.prefixes:
            try:
                place = place_of(prefix)
            except ValueError as err:
                raise ValueError(f"{prefix!r}: {err}") from err
            if place[0] != "file" and not any(place[1:]):
                raise ValueError(f"{prefix!r}: expected a host or a bucket after {place[0]}://")

    def refusal(self, uri: str) -> str | None:
        """Why a row may not name ``uri``; None where it may."""
        try:
            address = _address(uri)
            if not self.prefixes:
                return None
            place = place_of(address)
        except ValueError as err:
            return str(err)
        if any(_lies_in(place, _prefix_place(prefix)) for prefix in self.prefixes):
            return None
        return "is outside of what --allowed_uri_prefix allows"

    def require(self, uri: str) -> None:
        """Raises AudioError where a row may not name ``uri``."""
        reason = self.refusal(uri)
        if reason is not None:
            raise AudioError(NOT_ALLOWED, f"{uri}: {reason}")

    def require_row(self, row: ManifestRow) -> None:
        """Raises AudioError, naming the column, where a row may not name one of its URIs."""
        for name, uri in uris_of(row):
            reason = self.refusal(uri)
            if reason is not None:
                raise AudioError(NOT_ALLOWED, f"{name}: {uri}: {reason}")
            self.require_unwritten(name, uri)

    def require_unwritten(self, name: str, uri: str) -> None:
        """Raises AudioError where a run would read, by whatever spelling or link, what it writes.

        Args:
            name: what is read.
            uri: where it is.
        """
        if not self.written:
            return
        try:
            address = _address(uri)
            if all(_scheme_of(address) != place[0] for place in self._written):
                return
            place = place_of(address)
        except ValueError:  # refused elsewhere, or no place of ours
            return
        for end in range(len(place) + 1):
            folder = self._written.get(place[:end])
            if folder is not None:
                raise AudioError(
                    OWN_OUTPUT,
                    f"{name}: {uri} lies in {folder}, where this run writes; move it, or take "
                    "another --output",
                )

    @functools.cached_property
    def _written(self) -> dict[Place, str]:
        """Where the folders lead into which is written, and those partitions that are links."""
        folders = (each for folder in self.written for each in (folder, *linked_partitions(folder)))
        return {place_of(folder): folder for folder in folders}

    def beside(self, folder: str) -> UriAccess:
        """The same, and what lies in a folder that the operator named."""
        if not self.prefixes:
            return self
        return dataclasses.replace(self, prefixes=(*self.prefixes, folder))

    def guarding(self, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
        """Storage options under which a web server cannot lead out of the prefixes."""
        guarded = dict(options)
        if self.prefixes:
            # Without the folders of all parts: fsspec tells file systems apart by their options.
            client = _GuardedClient(UriAccess(prefixes=self.prefixes))
            for scheme in ("http", "https"):
                guarded[scheme] = {**options.get(scheme, {}), "get_client": client}
        return guarded


def uris_of(row: ManifestRow) -> Iterator[tuple[str, str]]:
    """The URIs of a row with the columns in which they stand."""
    for name in _URI_COLUMNS:
        value = getattr(row, name)
        for uri in (value,) if isinstance(value, str) else value or ():
            yield name, uri


def _address(uri: str) -> str:
    """The file or object that is read for ``uri``: itself, or the archive or shard it lies in.

    Raises:
        ValueError: the chain has something else than an archive before an address, or the fragment
            cannot be followed.
    """
    uri, _ = split_fragment(uri)
    if not is_url(uri):
        return uri
    *links, address = links_of(uri)
    for link in links:
        scheme = link.partition("://")[0]
        if scheme not in ARCHIVES:
            raise ValueError(f"only {' and '.join(sorted(ARCHIVES))} may stand before ::")
    scheme = address.partition("://")[0]
    if scheme in LEADING_ON or (scheme in ARCHIVES and "://" in address):
        raise ValueError(f"{scheme}:// is not an address")
    return address


def place_of(uri: str) -> Place:
    """Where a plain URI leads.

    Raises:
        ValueError: that cannot be said without doubt.
    """
    path = local_path(uri)
    if path is not None:
        if "\x00" in path:
            raise ValueError("the path has a zero byte")
        with contextlib.suppress(FileNotFoundError):  # ambiguous: nothing will be opened
            path = existing_path(path)
        return ("file", *(part for part in os.path.realpath(path).split("/") if part))
    scheme, _, rest = uri.partition("://")
    scheme = _ALIASES.get(scheme, scheme)
    if _ODD.search(rest):
        raise ValueError("has control characters or backslashes")
    if scheme in _DEFAULT_PORTS:
        return _web_place(scheme, rest)
    _require_no_dots(rest)
    return (scheme, *rest.rstrip("/").split("/"))


def linked_partitions(folder: str) -> list[str]:
    """The partitions in a local folder, ``dataset=…``, that are links to elsewhere."""
    path = local_path(folder)
    if path is None or not os.path.isdir(path):
        return []
    with os.scandir(path) as entries:
        return [each.path for each in entries if is_partition(each.name) and each.is_symlink()]


def is_partition(name: str) -> bool:
    """Whether a folder of that name holds a partition, as ``dataset=…`` does."""
    return "=" in name


def _scheme_of(uri: str) -> str:
    if local_path(uri) is not None:
        return "file"
    scheme = uri.partition("://")[0]
    return _ALIASES.get(scheme, scheme)


def _web_place(scheme: str, rest: str) -> Place:
    address = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, _, path = address.partition("/")
    host = host.lower().removesuffix(_DEFAULT_PORTS[scheme])
    if not _HOST.fullmatch(host):
        raise ValueError("expected a plain host name, without a user or a password")
    _require_no_dots(path)
    parts = [unquote(part) for part in path.rstrip("/").split("/")] if path.rstrip("/") else []
    return (scheme, host, *parts)


def _require_no_dots(path: str) -> None:
    """Raises ValueError where a path climbs, however it is encoded."""
    for _ in range(_MAX_DECODINGS):
        parts = re.split(r"[/\\]", path)
        if any(part.partition(";")[0] in (".", "..") for part in parts):
            raise ValueError("the path has a part . or ..")
        decoded = unquote(path)
        if decoded == path:
            return
        path = decoded
    raise ValueError("the path is percent-encoded too often")


@functools.lru_cache
def _prefix_place(prefix: str) -> Place:
    return place_of(prefix)


def _lies_in(place: Place, prefix: Place) -> bool:
    return place[: len(prefix)] == prefix


@dataclasses.dataclass(frozen=True, slots=True)
class _GuardedClient:
    """Makes the web client of fsspec, which then asks before it follows a redirect.

    An address outside of the prefixes is not a row's but the operator's own: it may lead anywhere.
    """

    access: UriAccess

    async def __call__(self, **settings: Any) -> Any:
        import aiohttp

        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(self._redirected)
        return aiohttp.ClientSession(trace_configs=[trace], **settings)

    async def _redirected(self, _session: Any, _context: Any, step: Any) -> None:
        here = str(step.url)
        if self.access.refusal(here) is not None:
            return
        headers = step.response.headers
        there = urljoin(here, headers.get("Location") or headers.get("URI") or "")
        reason = self.access.refusal(there)
        if reason is not None:
            raise AudioError(NOT_ALLOWED, f"{here}: leads to {there}, which {reason}")


class _Discreet(logging.Formatter):
    """Formats log lines, tracebacks included, without credentials."""

    def __init__(self, secrets: Sequence[str]) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record), self._secrets)


def configure_logging(level: str, secrets: Sequence[str] = ()) -> None:
    """Log lines on standard error; those of Beam and of fsspec only where they are wanted.

    Args:
        level: for the root logger.
        secrets: what no line may hold.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Discreet(secrets))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    debug = level == "debug"
    logging.getLogger("py.warnings").setLevel(logging.WARNING if debug else logging.ERROR)
    for name in ("apache_beam", "fsspec"):  # they log what they raise too
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.CRITICAL)
