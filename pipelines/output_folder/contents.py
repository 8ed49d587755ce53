"""What runs write into an output folder, by name, and how ``--overwrite`` deletes that alone."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.columns import EMBEDDINGS_SCHEMA, SEGMENTS_SCHEMA
from manifests.files import existing_path, links_of, split_fragment
from manifests.files.readers import iter_rows
from manifests.row import (
    EXPORT_FOLDER,
    EXPORT_LISTS,
    EXTRA_PREFIX,
    INTERFERER_COLUMN,
    INTERFERERS,
    MIXTURES,
    REFERENCES,
    STEMS_FOLDER,
    ManifestRow,
)
from pipelines.config import CommonConfig
from pipelines.flags import UsageError
from pipelines.output_folder.record import ManifestFacts
from transforms.audio import AudioError
from transforms.storage import Storage, join
from transforms.storage.access import linked_partitions, redact, uris_of

RUN = "run.json"
WORK = "_work"
JOURNAL = f"{WORK}/journal"
STAGING = f"{WORK}/staging"
ROW_COUNTS = f"{WORK}/row_counts.json"
ERROR_FILE = f"{WORK}/error.txt"
LISTING = f"{WORK}/earlier.jsonl"
"""Of the files that earlier runs left, for the graph of a run that goes on with them."""
LOCK = f"{WORK}/lock.json"
METRICS, SUMMARY, DEAD_LETTERS = "metrics", "summary", "dead_letters"
SEGMENTS = "segments"
EMBEDDINGS, WINDOWS = "embeddings", "windows"
"""Of stems, and of every 10 s of recordings."""
EXPORTED = "exported"
"""Of a data set: one row an item."""
MANIFEST = "manifest"
"""Of rendered mixtures."""
EVENTS = "events.csv"
"""Where each source sounds in rendered mixtures, as far as rows say when sources begin."""

_FILE = r"\d{5}-of-\d{5}\.parquet"
_TABLES: Mapping[str, re.Pattern[str]] = {
    METRICS: re.compile(rf"(.*/)?part-\d{{3,}}-{_FILE}"),
    SUMMARY: re.compile(rf"summary-{_FILE}"),
    SEGMENTS: re.compile(rf"part-\d{{3,}}-{_FILE}"),
    EMBEDDINGS: re.compile(rf"(.*/)?part-\d{{3,}}-{_FILE}"),
    WINDOWS: re.compile(r"[0-9a-f]{32}\.parquet"),
    DEAD_LETTERS: re.compile(rf"part-\d{{3,}}-{_FILE}"),
    MANIFEST: re.compile(rf"(part-\d{{3,}}|rows)-{_FILE}"),  # rows: as they were called once
    EXPORTED: re.compile(rf"part-\d{{3,}}-{_FILE}"),
}
_SET_ASIDE = re.compile(rf"(.*/)?_(part-\d{{3,}}|rows)-{_FILE}\.damaged")
_PIECE = re.compile(r"[0-9a-f]{32}\.parquet")
SEPARATE, SCORE, SYNTHESIZE = "pipelines.separate", "pipelines.score", "pipelines.synthesize"
EXPORT = "pipelines.export"
_AUDIO: Mapping[str, tuple[str, ...]] = {
    SEPARATE: (STEMS_FOLDER,),
    SCORE: (),  # its stems are somebody else's
    SYNTHESIZE: (MIXTURES, REFERENCES, INTERFERERS),
    EXPORT: (EXPORT_FOLDER,),
}
_ALIASES = {"local": "file", "gcs": "gs", "s3a": "s3"}

Reads = Callable[[ManifestRow], Iterable[tuple[str, str]]]
"""The URIs that a row makes a run read, each with the column that names it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EarlierFiles:
    """What earlier runs wrote into an output folder, beside ``run.json``.

    Attributes:
        audio: stems, residuals and rendered mixtures that tables or the journal name.
        tables: files of tables, with our names and our schemas.
        unknown: files in the folders of audio that no table names.
        unreadable: tables of ours of which nobody can say which files they name.
        links: folders of audio, named by ids, that lead elsewhere: what lies there is nobody's.
    """

    audio: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    links: tuple[str, ...] = ()


def tables_in(storage: Storage, output: str, name: str) -> list[str]:
    """The files of a table that runs wrote, by their names."""
    return _matching(storage, join(output, name), _TABLES[name], ".parquet")


def pieces_in(storage: Storage, output: str) -> list[str]:
    """The files of the journal that a run left."""
    return _matching(storage, join(output, JOURNAL), _PIECE, ".parquet")


def has_results(storage: Storage, output: str) -> bool:
    """Whether anything is in a folder but what a run keeps there while it works, as its lock."""
    files = storage.list_files(output, "")
    return any(not _below(storage, uri, output).startswith(f"{WORK}/") for uri in files)


def remove_working_files(storage: Storage, output: str) -> None:
    """Removes what only a running job needs, except for the lock."""
    storage.discard_unfinished(output)
    pieces = pieces_in(storage, output)
    others = [join(output, name) for name in (ROW_COUNTS, ERROR_FILE, LISTING)]
    storage.remove_files([*pieces, *others], output)
    storage.remove_empty(join(output, JOURNAL), output)  # of a run that was killed before it did


def _matching(storage: Storage, folder: str, name: re.Pattern[str], suffix: str) -> list[str]:
    return [
        uri
        for uri in storage.list_files(folder, suffix)
        if name.fullmatch(_below(storage, uri, folder))
    ]


def _below(storage: Storage, uri: str, folder: str) -> str:
    """The path of a listed file, seen from the folder."""
    return storage.resolve(uri)[1].removeprefix(storage.resolve(folder)[1].rstrip("/") + "/")


def written(
    storage: Storage, output: str, record: Mapping[str, Any] | None, command: str
) -> EarlierFiles:
    """Looks through the tables of earlier runs; changes nothing.

    Args:
        storage: how files are reached.
        output: the folder.
        record: of the last run, which says where the folder was when its files were named.
        command: whose runs they were.
    """
    config = (record or {}).get("config")
    before = config.get("output") if isinstance(config, Mapping) else None
    named: set[str] = set()
    tables: list[str] = []
    unreadable: list[str] = []
    # Windows have a file for each recording: their names, digests, must do to tell them.
    tables += tables_in(storage, output, WINDOWS)
    others = [name for name in _TABLES if name != WINDOWS]
    candidates = [uri for name in others for uri in tables_in(storage, output, name)]
    for uri in (*candidates, *pieces_in(storage, output)):
        try:
            names = _names_in(storage, uri, [redact(before or output), redact(output)])
        except (pa.ArrowException, OSError, ValueError):
            unreadable.append(uri)
        else:
            if names is None:  # a table of somebody else
                continue
            named |= names
        if uri in candidates:
            tables.append(uri)
    for name in (METRICS, SEGMENTS, EMBEDDINGS, MANIFEST, DEAD_LETTERS):
        tables += _matching(storage, join(output, name), _SET_ASIDE, ".damaged")
    if command == SYNTHESIZE and storage.exists(join(output, EVENTS)):
        tables.append(join(output, EVENTS))
    audio: list[str] = []
    unknown: list[str] = []
    links: dict[str, None] = {}
    for name in _AUDIO[command]:
        folder = join(output, name)
        for uri in storage.list_files(folder, ""):
            link = storage.link_in(uri, folder)
            if link is not None:
                links[link] = None
                continue
            known = f"{name}/{_below(storage, uri, folder)}" in named
            (audio if known else unknown).append(uri)
    return EarlierFiles(
        audio=tuple(audio),
        tables=tuple(tables),
        unknown=tuple(unknown),
        unreadable=tuple(unreadable),
        links=tuple(links),
    )


_NAMING_COLUMNS = (
    "file",
    "stem_uri",
    "residual_uri",
    "model_sha256",
    "mixture_uri",
    "reference_uri",
)
_WITHOUT_AUDIO = [each.names for each in (SEGMENTS_SCHEMA, EMBEDDINGS_SCHEMA)]
_INTERFERERS = EXTRA_PREFIX + INTERFERER_COLUMN


def _names_in(storage: Storage, uri: str, outputs: Sequence[str]) -> set[str] | None:
    """Files of audio that a table says a run wrote, as paths below the output folder.

    None where the table is not one of ours.
    """
    with storage.open(uri) as stream:
        file = pq.ParquetFile(stream)
        if b"schema_version" not in (file.schema_arrow.metadata or {}):
            return None
        there = [name for name in (*_NAMING_COLUMNS, _INTERFERERS) if name in file.schema.names]
        columns = file.schema_arrow.names
        if "stage" in columns or columns in _WITHOUT_AUDIO:  # dead letters, segments and the like
            return set()
        return {
            path
            for batch in file.iter_batches(columns=there)
            for row in batch.to_pylist()
            for path in _paths_of(row, outputs)
        }


def _paths_of(row: Mapping[str, Any], outputs: Sequence[str]) -> Iterator[str]:
    if "file" in row:  # an exported item
        yield row["file"]
        yield from (f"{EXPORT_FOLDER}/{name}" for name in EXPORT_LISTS)
    elif (
        "stem_uri" not in row
    ):  # a row of a rendered manifest, whose files are named from its folder
        uris = [row.get("mixture_uri"), row.get("reference_uri")]
        uris += (row.get(_INTERFERERS) or "").split(";")
        for uri in uris:
            path = (uri or "").removeprefix("../")
            if path.partition("/")[0] in (MIXTURES, REFERENCES, INTERFERERS):
                yield path
    elif row["model_sha256"] is not None:  # without it the stem was somebody else's, and scored
        for uri in (row["stem_uri"], row["residual_uri"]):
            for output in outputs:
                start = join(output, STEMS_FOLDER) + "/"
                if uri is not None and redact(uri).startswith(start):
                    yield f"{STEMS_FOLDER}/{redact(uri).removeprefix(start)}"


def delete(storage: Storage, output: str, found: EarlierFiles) -> None:
    """Deletes what runs wrote: audio first, so that what is left can still be told."""
    storage.remove_files(found.audio, output)
    storage.remove_files(found.tables, output)
    remove_working_files(storage, output)


def require_apart(config: CommonConfig, storage: Storage, reads: Iterable[tuple[str, str]]) -> None:
    """Checks that nothing which a run reads lies where ``--overwrite`` deletes.

    Args:
        config: of the run.
        storage: how files are reached.
        reads: what is read, and its URI.

    Raises:
        UsageError: something does, by whatever spelling or link.
    """
    if not config.overwrite:
        return
    places = Places(storage, _deleted_from(config.output))
    for what, uri in reads:
        if places.hold(uri):
            raise UsageError(
                f"--overwrite would delete {what}: {uri} lies in --output; move it, or take "
                "another --output"
            )


def require_unwritten(config: CommonConfig) -> None:
    """Checks that nothing which the command line names is what the run itself writes.

    Rows of manifests are looked at when they are read.

    Raises:
        UsageError: something is, by whatever spelling or link.
    """
    access = config.access
    try:
        for name, uri in config.named:
            access.require_unwritten(name, uri)
    except AudioError as err:
        raise UsageError(str(err)) from err


def reads_of(
    config: CommonConfig,
    manifests: Sequence[ManifestFacts],
    storage: Storage,
    reads: Reads = uris_of,
) -> Iterator[tuple[str, str]]:
    """What a run reads: its manifests, and what their rows name, row by row."""
    yield from (("the manifest", uri) for uri in config.manifests)
    yield from (("the manifest", facts.uri) for facts in manifests)
    for uri in () if config.recordings is None else config.recordings.roots:
        yield "recordings", uri
    for row in config.rows:
        yield from reads(row)
    for facts in manifests:
        rows = functools.partial(iter_rows, facts.uri, storage.options_for(facts.uri))
        for result in storage.iterate(facts.uri, rows):
            if isinstance(result, ManifestRow):
                for column, uri in reads(result):
                    yield f"{column} of row {result.manifest_row} of {result.manifest_uri}", uri


def _deleted_from(output: str) -> list[str]:
    """Folders that ``--overwrite`` deletes from; those in the output can be links to elsewhere."""
    names = (*_TABLES, *(name for folders in _AUDIO.values() for name in folders))
    folders = [join(output, name) for name in names]
    return [output, *folders, *itertools.chain.from_iterable(map(linked_partitions, folders))]


class Places:
    """Tells whether URIs lead into some folders, however they are spelt."""

    def __init__(self, storage: Storage, folders: Iterable[str]) -> None:
        self._storage = storage
        self._prefixes: set[tuple[str, ...]] = set()
        self._folders: set[tuple[int, int]] = set()
        for folder in folders:
            path = storage.local_path(folder)
            self._prefixes |= set(self._spellings(folder))
            if path is not None and os.path.exists(path):
                self._folders.add(_identity(path))
        self._above = functools.lru_cache(maxsize=10_000)(self._lies_below)

    def hold(self, uri: str) -> bool:
        """Whether ``uri``, or the archive that it lies in, is in one of the folders, or is one."""
        try:
            address = links_of(split_fragment(uri)[0])[-1]
            path = self._storage.local_path(address)
        except ValueError:  # a file:// URI of another machine, or no URI: nothing here is meant
            return False
        if path is not None:
            with contextlib.suppress(FileNotFoundError):
                address = path = existing_path(path)
        for place in self._spellings(address):
            if any(place[:end] in self._prefixes for end in range(1, len(place) + 1)):
                return True
        return path is not None and "\x00" not in path and self._above(os.path.realpath(path))

    def _spellings(self, uri: str) -> Iterator[tuple[str, ...]]:
        """Scheme, host or bucket, and the parts of the path; with and without ``..`` resolved.

        A local link has two places: its own, from which it would be deleted, and where it leads.
        """
        path = self._storage.local_path(uri)
        if path is not None:
            folder, name = os.path.split(path)
            known = "\x00" in path
            own = path if known else os.path.join(os.path.realpath(folder), name)
            for spelling in (own, path if known else os.path.realpath(path)):
                yield ("file", *(part for part in spelling.split("/") if part))
            return
        scheme, _, rest = uri.partition("://")
        scheme = _ALIASES.get(scheme.lower(), scheme.lower())
        for spelling in (rest, posixpath.normpath(rest)):
            yield (scheme, *(part for part in spelling.split("/") if part not in ("", ".")))

    def _lies_below(self, path: str) -> bool:
        """By the folders themselves: two paths can be one on some disks, and through mounts."""
        if os.path.isdir(path) and _identity(path) in self._folders:
            return True
        above = os.path.dirname(path)
        return above != path and self._above(above)


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
