"""Finds manifests at URIs, in folders and by patterns, and writes files whole or not at all.

A local file is written under another name, synced and renamed; its name lasts once its folder has
been synced too. An object of a store is asked for its size after it was sent.
"""

from __future__ import annotations

import dataclasses
import errno
import glob
import gzip
import http.client
import importlib
import io
import itertools
import os
import posixpath
import re
import shutil
import socket
import ssl
import sys
import tempfile
import unicodedata
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import fsspec
from fsspec.implementations.local import LocalFileSystem

FORMATS: Final[Mapping[str, str]] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_BUFFER_BYTES = 1 << 20
_GCS_BY_GRPC = "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*"
_URL = re.compile(rf"({_SCHEME}::)*{_SCHEME}://|file:/", re.IGNORECASE)
_LOCAL = re.compile(r"(?:file|local):/(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_OTHER_PATH = re.compile(r"\\|[A-Za-z]:[\\/]")
_PATTERN = re.compile(r"[*?\[]")
_NUMERIC_HOST = re.compile(rf"((?:^|::){_SCHEME}://)\[([0-9A-Fa-f:.]+(?:%\w+)?)\]")
_HOSTS_HERE = ("", "localhost")
_FORMS: Final = ("NFC", "NFD")
TAR_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz")
PARQUET_SUFFIXES: Final = (".parquet", ".pq")
"""How the names of files end that hold recordings, each of which a fragment names."""
_SPAN = re.compile(r"t=(?:npt:)?(?P<start>[0-9:.]*)(?:,(?P<end>[0-9:.]*))?")
_TIME = re.compile(r"(?:(?:(?P<h>\d+):)?(?P<m>[0-5]?\d):(?=[0-5]?\d(?:\.|$)))?(?P<s>\d+(?:\.\d*)?)")
_RESERVED = re.compile(r"[\x00-\x20\x7f%#&;?\\\ud800-\udfff]|\s")
_MAX_FORMS = 64
NUL = "\x00"

_NO_WAY = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)

StorageOptions = Mapping[str, Any] | None


class ManifestError(Exception):
    """A manifest that cannot be read at all: missing, no permission, not UTF-8, broken."""


def is_url(uri: str) -> bool:
    """Whether ``uri`` has a scheme; otherwise it is a local path, whatever characters it has.

    A chain begins with a scheme too: ``zip://a.wav::gs://b/c.zip``, ``simplecache::gs://b/a.wav``.
    ``a::b.wav`` is a path.
    """
    return _URL.match(uri) is not None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """What a URI means of the file before its ``#``: a recording in a shard, a stretch of time.

    ``clips.tar#a/b.wav``, ``train.parquet#row=17``, ``train.parquet#row=17&column=speech`` and
    ``rec.wav#t=6.3,7.0``; the latter, W3C's Media Fragments URI 1.0 with normal play time, also
    behind the others: ``clips.tar#b.wav&t=,3``.

    Attributes:
        member: the name of a member of a tar file.
        row: a row of a Parquet file, from 0.
        column: the column of its audio; None: the one that is found.
        start_s: where the stretch begins.
        end_s: where it ends; None: with the recording.
    """

    member: str | None = None
    row: int | None = None
    column: str | None = None
    start_s: float = 0.0
    end_s: float | None = None

    @property
    def in_shard(self) -> bool:
        """Whether the recording is a part of a file that holds several."""
        return self.member is not None or self.row is not None


def split_fragment(uri: str) -> tuple[str, Fragment]:
    """The address of a file, and what of it is meant.

    A ``#`` that begins none of the forms of :class:`Fragment` is part of a name: ``take #3.wav``.

    Raises:
        ValueError: the fragment is of one of the forms and cannot be followed.
    """
    address, text = _parted(uri)
    if not text:
        return uri, Fragment()
    member, pairs = None, text[1:].split("&")
    if _path_of(address).endswith(TAR_SUFFIXES):
        member = unquote(pairs.pop(0), errors="surrogateescape")
    found: dict[str, str] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name in found or name not in ("row", "column", "t") or (name != "t" and member):
            raise ValueError(f"{uri}: {pair!r} in its fragment; {_FRAGMENTS}")
        found[name] = pair if name == "t" else unquote(value)
    if "row" in found and not re.fullmatch(r"[0-9]{1,18}", found["row"]):
        raise ValueError(f"{uri}: row {found['row']!r} is no number; {_FRAGMENTS}")
    start_s, end_s = _span(uri, found["t"]) if "t" in found else (0.0, None)
    return address, Fragment(
        member=member,
        row=int(found["row"]) if "row" in found else None,
        column=found.get("column"),
        start_s=start_s,
        end_s=end_s,
    )


def without_span(uri: str) -> tuple[str, Fragment]:
    """The recording of which a URI names a stretch of time, and what it names.

    Raises:
        ValueError: as :func:`split_fragment`.
    """
    address, fragment = split_fragment(uri)
    if address == uri:
        return uri, fragment
    parts = _parted(uri)[1][1:].split("&")
    first = int(fragment.member is not None)  # a member's name, which may be t=6.3.wav
    kept = [*parts[:first], *(part for part in parts[first:] if not part.startswith("t="))]
    return address + (f"#{'&'.join(kept)}" if kept else ""), fragment


_FRAGMENTS: Final = "expected shard.tar#member, file.parquet#row=N, or #t=START,END in seconds"


def _parted(uri: str) -> tuple[str, str]:
    """The address and the fragment with its ``#``; the latter is empty where there is none."""
    address, mark, text = uri.rpartition("#")
    if not mark or not text:
        return uri, ""
    path = _path_of(address)
    if (
        path.endswith(TAR_SUFFIXES)
        or (path.endswith(PARQUET_SUFFIXES) and text.startswith("row="))
        or _SPAN.fullmatch(text)
    ):
        return address, mark + text
    return uri, ""


def _path_of(address: str) -> str:
    """The part of an address that ends in a suffix, in lower case."""
    on_web = address.startswith(("http://", "https://"))
    return (address.partition("?")[0] if on_web else address).lower()


def _span(uri: str, text: str) -> tuple[float, float | None]:
    """Start and end in seconds of ``t=…``."""
    found = _SPAN.fullmatch(text)
    start, end = (found["start"], found["end"]) if found is not None else ("", None)
    if found is None or not (start or end):
        raise ValueError(f"{uri}: {text!r} is no stretch of time; {_FRAGMENTS}")
    start_s = _seconds(uri, start) if start else 0.0
    end_s = None if end is None else _seconds(uri, end)
    if end_s is not None and end_s <= start_s:
        raise ValueError(f"{uri}: {text!r} ends before it begins; {_FRAGMENTS}")
    return start_s, end_s


def _seconds(uri: str, text: str) -> float:
    """Normal play time, ``6.3``, ``1:06.3`` or ``0:01:06.3``, in seconds."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"{uri}: {text!r} is no time; {_FRAGMENTS}")
    return 3_600.0 * int(found["h"] or 0) + 60.0 * int(found["m"] or 0) + float(found["s"])


def member_uri(address: str, member: str) -> str:
    """The URI of a member of a tar file."""
    return f"{address}#{percent_encoded(member)}"


def percent_encoded(text: str) -> str:
    """``text`` for a fragment: what has a meaning there, or in a list in CSV, is encoded."""
    return _RESERVED.sub(
        lambda found: "".join(
            f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogateescape")
        ),
        text,
    )


def local_path(uri: str) -> str | None:
    """The absolute path of a local file; None for a file elsewhere. Nothing is opened.

    A path is taken as it is; ``file:/…``, ``file:///…`` and ``file://localhost/…`` are decoded.

    Raises:
        ValueError: ``file://`` names another machine.
    """
    if not is_url(uri):
        return os.path.abspath(uri)
    found = _LOCAL.fullmatch(uri)
    if found is None or len(links_of(uri)) > 1:
        return None
    path = found["rest"]
    if path.startswith("/"):
        host, _, path = path[1:].partition("/")
        if host.lower() not in _HOSTS_HERE:
            raise ValueError(
                f"{uri}: file:// names the machine {host!r}; expected file:///folder/name, or the "
                "path under which that machine's files are mounted here"
            )
    return os.path.abspath("/" + unquote(path.lstrip("/"), errors="surrogateescape"))


def absolute(uri: str) -> str:
    """What a person gave as a flag: an absolute path, with ``~`` resolved, or a URL.

    Shells leave ``~`` alone in ``--output=~/x``. A slash at the end does not count.

    Raises:
        ValueError: it is blank, which would be the working folder, or ``file://`` names another
            machine.
    """
    if not uri.strip():
        raise ValueError("found an empty value; expected a path or a URI")
    address, fragment = _parted(uri)
    path = local_path(os.path.expanduser(address))
    if path is not None:
        return path + fragment
    return uri if uri.endswith("://") else address.rstrip("/") + fragment


def links_of(uri: str) -> list[str]:
    """The links of a chain of file systems, outermost last; a plain URI is the only one.

    The colons of a numeric address, ``http://[::1]/a.wav``, do not part links.
    """
    if not is_url(uri):
        return [uri]
    masked = _NUMERIC_HOST.sub(lambda found: f"{found[1]}[{found[2].replace(':', NUL)}]", uri)
    return [link.replace(NUL, ":") for link in masked.split("::")]


def _place_in_chain(uri: str) -> tuple[str, str, str]:
    """A URI in three: the links before the one that has the file's path, that one, and the rest."""
    links = links_of(uri)
    index = next((i for i, link in enumerate(links) if is_url(link)), 0)
    before = "".join(f"{link}::" for link in links[:index])
    return before, links[index], "".join(f"::{link}" for link in links[index + 1 :])


def other_spellings(path: str) -> Iterator[str]:
    """Other Unicode forms of a path: macOS decomposes the names that others compose.

    The folder and the name may differ in form.
    """
    folder, separator, name = path.rpartition("/")
    seen = {path}
    for parts in itertools.product(_forms(folder), _forms(name)):
        other = separator.join(parts)
        if other not in seen:
            seen.add(other)
            yield other


def _forms(text: str) -> list[str]:
    return list(dict.fromkeys([text, *(unicodedata.normalize(form, text) for form in _FORMS)]))


def existing_path(path: str) -> str:
    """``path``, or where nothing is there the one path that differs from it in Unicode forms only.

    Raises:
        FileNotFoundError: several paths do.
    """
    if path.isascii() or os.path.lexists(path):
        return path
    found = [""]
    for part in path.split("/")[1:]:
        tried = (f"{above}/{form}" for above in found[:_MAX_FORMS] for form in _forms(part))
        found = [each for each in tried if os.path.lexists(each)]
    if len(found) > 1:
        names = " and ".join(ascii(each) for each in found)
        raise FileNotFoundError(
            f"{path}: no such file, but several of the same name in other Unicode forms: {names}"
        )
    return found[0] if found else path


def connect(uri: str, storage_options: StorageOptions = None) -> tuple[Any, str]:
    """The fsspec file system of ``uri`` and the path on it; all readers of URIs ask here.

    Raises:
        ValueError: an unknown scheme, or ``file://`` with another machine.
        ImportError: the package of the scheme is not installed.
    """
    options = dict(storage_options or {})
    path = local_path(uri)
    if path is not None:
        return LocalFileSystem(**options), path
    prefer_gcs_over_http()
    links = [_link_for_fsspec(link) for link in links_of(uri)]
    files, path = fsspec.core.url_to_fs("::".join(links), **options)
    return files, str(path)


def _link_for_fsspec(link: str) -> str:
    """A link as fsspec expects it: local paths are not encoded, and ``::`` only parts links."""
    if not _LOCAL.fullmatch(link):
        return _NUMERIC_HOST.sub(_with_all_digits, link)
    path = local_path(link) or ""
    if "::" in path:  # it would lead on to another address than the one that was checked
        raise ValueError(f"{link}: a name with :: cannot be a link of a chain")
    return f"file://{path}"


def _with_all_digits(host: re.Match[str]) -> str:
    """A numeric host without ``::``; the interface that follows stays, decoded as in RFC 6874."""
    number, percent, interface = host[2].partition("%")
    zone = percent + interface.removeprefix("25")
    return f"{host[1]}[{IPv6Address(number).exploded}{zone}]"


def format_of(uri: str) -> str:
    """``csv``, ``jsonl`` or ``parquet``, by the suffix before an optional ``.gz``.

    Raises:
        ManifestError: another suffix.
    """
    name = _place_in_chain(uri)[1].lower().removesuffix(".gz")
    form = FORMATS.get(posixpath.splitext(name)[1])
    if form is None or (form == "parquet" and is_gzip(uri)):
        raise ManifestError(f"{uri}: expected a name that ends in {', '.join(FORMATS)} (or .gz)")
    return form


def is_gzip(uri: str) -> bool:
    """Whether the name says that the file is compressed."""
    return _place_in_chain(uri)[1].lower().endswith(".gz")


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
    """As :func:`connect`, for what a person named: manifests, lists, and where they are written.

    Raises:
        ManifestError: an unknown scheme, one whose package is not installed, or one whose client
            asks its server at once and finds none.
    """
    try:
        return connect(os.path.expanduser(uri), storage_options)
    except (ImportError, OSError, ValueError) as err:
        text = reason_of(err) if isinstance(err, OSError) else str(err)
        raise ManifestError(text if uri in text else f"{uri}: {text}") from err


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
    if not uri.strip():
        raise ManifestError("found an empty name; expected a file, a folder or a pattern")
    if len(links_of(uri)) > 1:
        format_of(uri)
        return (uri,)
    files, path = filesystem(uri, storage_options)
    local = isinstance(files, LocalFileSystem)
    files.invalidate_cache()
    try:
        path = existing_path(path) if local else path
        if files.isfile(path):
            format_of(uri)
            found = [path]
        elif files.isdir(path):
            found = _manifests({entry["name"]: entry for entry in files.ls(path, detail=True)})
        elif _PATTERN.search(_NUMERIC_HOST.sub(r"\1", path)):
            found = _manifests(_matches(files, path))
        else:
            files.info(path)  # says what is the matter, which isfile and isdir do not
            raise ManifestError(f"{uri}: {IS_NEITHER}")
    except (OSError, ValueError) as err:
        raise ManifestError(f"{uri}: {reason_of(err)}") from err
    if not found:
        raise ManifestError(f"{uri}: no file here ends in {', '.join(FORMATS)} (or .gz)")
    return tuple(sorted(p if local else files.unstrip_protocol(p) for p in found))


IS_NEITHER: Final = "is there, but neither a file nor a folder; expected one of them"
"""Of pipes, devices and links to nothing."""


def _matches(files: Any, pattern: str) -> Mapping[str, Mapping[str, Any]]:
    """What a pattern matches, by path.

    Raises:
        ValueError: it is none.
    """
    if any("**" in part and part != "**" for part in pattern.split("/")):
        raise ValueError("** stands alone between slashes, as in folder/**/*.csv")
    if _NUMERIC_HOST.search(pattern):
        raise ValueError("no patterns at a numeric address; expected the files' own names")
    found: Mapping[str, Mapping[str, Any]] = files.glob(_pattern(files, pattern), detail=True)
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
        raise ManifestError(f"{uri}: {reason_of(err)}") from err


def reason_of(err: BaseException) -> str:
    """Why a file could not be read, in words."""
    network = network_reason(err)
    if network is not None:
        return network
    if isinstance(err, FileNotFoundError):
        return "no such file or folder"
    if isinstance(err, PermissionError):
        return "no permission to read it"
    return str(getattr(err, "strerror", None) or str(err) or type(err).__name__)


def network_reason(err: BaseException | None) -> str | None:
    """What a failed connection or a web server's answer says; None for any other error.

    fsspec says FileNotFoundError of whatever a web server did: the reason is the error's cause.
    """
    known = None
    while err is not None:
        known = _known_reason(err) or known
        err = err.__cause__
    return known


def _known_reason(err: BaseException) -> str | None:
    status = getattr(err, "status", None)
    if isinstance(status, int):
        return f"the server answers {status} {http.client.responses.get(status, '')}".rstrip()
    if isinstance(err, socket.gaierror):
        return f"the host's name is not resolved ({err.strerror or err})"
    if isinstance(err, ssl.SSLError):
        said = getattr(err, "verify_message", None) or getattr(err, "reason", None) or err
        return f"no TLS connection ({said})"
    if isinstance(err, ConnectionRefusedError):
        return "connection refused: nothing listens there"
    if isinstance(err, TimeoutError):
        return "timed out"
    if type(err).__name__ == "ServerDisconnectedError" or isinstance(err, ConnectionError):
        return f"the connection was lost ({getattr(err, 'strerror', None) or err})"
    if isinstance(err, OSError) and err.errno in _NO_WAY:
        return f"no connection ({os.strerror(err.errno)})"
    return None


@contextmanager
def open_bytes(uri: str, storage_options: StorageOptions = None) -> Iterator[io.BufferedReader]:
    """The bytes of a file, decompressed where its name ends in ``.gz``, with a large buffer."""
    files, path = filesystem(uri, storage_options)
    with files.open(path, "rb") as raw:
        stream = gzip.GzipFile(fileobj=raw, mode="rb") if is_gzip(uri) else raw
        yield io.BufferedReader(stream, _BUFFER_BYTES)


def folder_of(uri: str) -> str:
    """The folder in which relative URIs of the manifest ``uri`` begin."""
    path = local_path(uri)
    if path is not None:
        return os.path.dirname(path)
    before, place, after = _place_in_chain(uri)
    scheme, separator, path = place.partition("://")
    return f"{before}{scheme}{separator}{posixpath.dirname(path)}{after}"


def resolve(folder: str, uri: str) -> str:
    """``uri`` seen from ``folder``: unchanged if it is absolute, else a path below or beside it.

    Of a chain it is the last link that is seen from there: ``zip://a.wav::b.zip``. A fragment stays
    as it is.

    Raises:
        ValueError: ``uri`` climbs out of the bucket of ``folder``, is a ``file://`` URI of another
            machine, or has a fragment that cannot be followed.
    """
    split_fragment(uri)
    address, fragment = _parted(uri)
    return _resolved(folder, address) + fragment


def _resolved(folder: str, uri: str) -> str:
    """As :func:`resolve`, of a URI without a fragment."""
    if is_url(uri):
        local_path(uri)
        *links, last = links_of(uri)
        return "::".join([*links, _resolved(folder, last)]) if links else uri
    if uri.startswith("/") or _OTHER_PATH.match(uri):
        return uri
    if not is_url(folder):
        return posixpath.normpath(f"{folder}/{uri}")
    before, place, after = _place_in_chain(folder)
    scheme, separator, root = place.partition("://")
    if after:  # the root of an archive
        path = posixpath.normpath(f"{root}/{uri}".lstrip("/"))
        if path.startswith("../"):
            raise ValueError(f"{uri} leaves {folder}")
        return f"{before}{scheme}{separator}{path}{after}"
    path = posixpath.normpath(f"{root}/{uri}")
    bucket = "" if root.startswith("/") else root.split("/", 1)[0]
    if bucket and not path.startswith(f"{bucket}/"):
        raise ValueError(f"{uri} leaves {scheme}://{bucket}")
    return before + scheme + separator + path


UNFINISHED: Final = ".writing-"
"""How the names of local files begin that are being written."""
_CANNOT_SYNC: Final = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
_MAY_NOT_OPEN: Final = (errno.EACCES, errno.EPERM)


class ShortTransferError(OSError):
    """Fewer bytes arrived than there are."""


@contextmanager
def unfinished_file(folder: str) -> Iterator[str]:
    """Path of a new file in a local folder; removed at the end if it is still there."""
    make_folders(folder)
    path = os.path.join(folder, f"{UNFINISHED}{os.getpid()}-{uuid.uuid4().hex}.tmp")
    Path(path).touch(exist_ok=False)
    try:
        yield path
    finally:
        Path(path).unlink(missing_ok=True)


def put_in_place(unfinished: str, target: str) -> None:
    """Syncs a local file and gives it its name; :func:`sync_folder` makes the name last.

    The place may be on another file system, or behind a mount of the same one.
    """
    sync_file(unfinished)
    folder = os.path.dirname(target)
    make_folders(folder)
    try:
        os.replace(unfinished, target)
    except OSError as err:
        if err.errno != errno.EXDEV:
            raise
        with unfinished_file(folder) as beside:
            shutil.copyfile(unfinished, beside)
            sync_file(beside)
            os.replace(beside, target)


def make_folders(folder: str) -> None:
    """Makes a local folder and those that it lies in, where they are missing, to last.

    Raises:
        OSError: they cannot be made.
    """
    missing, above = [], folder
    while not os.path.isdir(above):
        if os.path.islink(above):
            raise NotADirectoryError(errno.ENOTDIR, "a link that leads to no folder", above)
        missing.append(above)
        above = os.path.dirname(above)
    os.makedirs(folder, exist_ok=True)
    for made in reversed(missing):
        sync_folder(os.path.dirname(made))


def sync_file(path: str) -> None:
    """Waits until what is in a local file is on its disk.

    Raises:
        OSError: it cannot be written there.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        _sync(handle)
    finally:
        os.close(handle)


def sync_folder(path: str) -> None:
    """Waits until the names in a local folder are on its disk, where one may ask for it.

    Raises:
        OSError: they cannot be written there.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as err:
        if err.errno in _MAY_NOT_OPEN:
            return
        raise
    try:
        _sync(handle)
    finally:
        os.close(handle)


def _sync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as err:
        if err.errno not in _CANNOT_SYNC:
            raise


def send(files: Any, path: str, data: bytes) -> None:
    """Writes an object of a store.

    Raises:
        ShortTransferError: the store has another size of it.
    """
    files.pipe_file(path, data)
    _require_size(files, path, len(data))


def upload(files: Any, local: str, path: str) -> None:
    """Sends a local file to a store.

    Raises:
        ShortTransferError: the store has another size of it.
    """
    files.put_file(local, path)
    _require_size(files, path, os.path.getsize(local))


def _require_size(files: Any, path: str, expected: int) -> None:
    files.invalidate_cache(path)
    found: int | None = files.size(path)
    if found is not None and found != expected:
        raise ShortTransferError(f"{path}: {found} bytes arrived of {expected}")


@contextmanager
def written(files: Any, path: str) -> Iterator[str]:
    """Path of a local file to be filled, which becomes ``path`` of a file system.

    Nothing appears there if the block fails.
    """
    local = isinstance(files, LocalFileSystem)
    folder = os.path.dirname(path) if local else tempfile.gettempdir()
    with unfinished_file(folder) as unfinished:
        yield unfinished
        if local:
            put_in_place(unfinished, path)
            sync_folder(folder)
        else:
            upload(files, unfinished, path)
