"""Lists the recordings in tar and Parquet shards, and those that NeMo's and Kaldi's lists name.

A shard is looked through once before anything in it is decoded: a tar by its headers, of which only
the ranges are fetched around them, Parquet by its footer. What was found is a URI each, and where
the bytes lie.
"""

from __future__ import annotations

import bisect
import contextlib
import gzip
import io
import itertools
import json
import re
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.audio_formats import AUDIO_SUFFIXES
from manifests.files import ManifestError, folder_of, member_uri, percent_encoded, resolve
from manifests.files.readers import LineReader, jsonl_records, malformed, read_start
from manifests.row import RowError, ShardPlace

NOT_AUDIO, HIDDEN, NOT_A_FILE, OUTPUT = "not_audio", "hidden", "not_a_file", "output"
SPARSE = "sparse"
"""Why something in a folder or a shard is passed over."""
RUN: Final = 256
"""So many neighbours of a shard are read by one worker, in sequence."""
BROKEN: Final = "broken_shard"
AUDIO_COLUMN: Final = "audio_column"
NO_COLUMN: Final = "no_audio_column"
GZIP_SUFFIXES: Final = (".gz", ".tgz")
_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
"""A sample's name and field, as webdataset parts them: at the first dot of the last part."""
_MAX_HEADER_BYTES = 1 << 20
_MAX_ZEROS = 1 << 20
"""So many zeros are passed over behind the end of a tar: more than any block of a tape has."""
_ROWS_AT_ONCE = 64
_BUFFER_BYTES = 8 << 20
_PLACE = struct.Struct("<qq")
_TAR_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError)
_AT_OFFSET = re.compile(r".*\.ark:[0-9]+", re.DOTALL)

Form = Literal["audio", "tar", "parquet", "nemo", "kaldi"]


class AudioColumnError(ManifestError):
    """A Parquet file that is whole, and does not say which column has the recordings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A file that holds one recording, or several.

    Attributes:
        root: number of the root below which it was found.
        path: its path there without its suffix, with which the ids of its recordings begin.
        uri: the file.
        form: what it is, by its name.
        is_named: whether somebody named the file or its suffix; other files in a folder may be
            there for something else.
        below: its path below its root, where ``path`` has the root's name in front.
    """

    root: int
    path: str
    uri: str
    form: Form
    is_named: bool
    below: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """How many names were passed over, and why."""

    why: str
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A folder or a shard that cannot be read, or not further; ``code`` says why in one word."""

    uri: str
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One recording.

    Attributes:
        path: with which the ids of its rows begin.
        uri: the recording.
        listed_in: the file that lists it: itself, or its shard.
        number: which it is there, from 0.
        offset_s: where the part begins that is meant.
        duration_s: how long that part is at most.
        place: where it lies in its shard.
    """

    path: str
    uri: str
    listed_in: str
    number: int = 0
    offset_s: float | None = None
    duration_s: float | None = None
    place: ShardPlace | None = None


Opened = Callable[[str], AbstractContextManager[BinaryIO]]
"""Opens a file for reading, seekable; of a remote one what is read is fetched, and little more."""


Found = Recording | RowError | Skipped | Broken


def index(listed: Listed, opened: Opened, audio_column: str | None = None) -> Iterator[Found]:
    """The recordings of a file: itself, or those in a shard or a list, in its order.

    Names that are no recordings are counted. A shard that cannot be read further is
    :class:`Broken` after what was found until there.
    """
    if listed.form == "audio":
        yield Recording(path=listed.path, uri=listed.uri, listed_in=listed.uri)
        return
    finders = {"tar": _tar, "nemo": _nemo, "kaldi": _kaldi}
    try:
        with opened(listed.uri) as stream:
            if listed.form == "parquet":
                yield from _parquet(stream, listed, audio_column)
            else:
                yield from finders[listed.form](stream, listed)
    except (*_TAR_ERRORS, pa.ArrowException, ManifestError) as err:
        reason = " ".join(str(err).split())[:200] or type(err).__name__
        message = reason if listed.uri in reason else f"{listed.uri}: {reason}"
        code = "missing" if isinstance(err, FileNotFoundError) else BROKEN
        code = AUDIO_COLUMN if isinstance(err, AudioColumnError) else code
        yield Broken(uri=listed.uri, code=code, message=message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A file in a tar: its name there, and its bytes from ``start`` to before ``stop``."""

    name: str
    start: int
    stop: int


class _Careful:
    """A stream for ``tarfile``, which believes every size in a header; remembers what it read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.last = b""
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes.

        Raises:
            tarfile.ReadError: more than any header has.
        """
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self.last = self._stream.read(size)
        return self.last


def tar_members(stream: BinaryIO) -> Iterator[Member | Skipped]:
    """The files of an uncompressed tar, or of several that were joined, by their headers.

    Raises:
        tarfile.TarError: it is none, or damaged from some place on.
    """
    careful: Any = _Careful(stream)
    is_there = True
    while is_there:
        with tarfile.open(fileobj=careful, mode="r:") as tar:
            while (info := tar.next()) is not None:
                vars(tar)["members"].clear()  # all would be kept
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    yield Skipped(why=SPARSE if info.issparse() else NOT_A_FILE)
                    continue
                start = info.offset_data
                yield Member(name=info.name, start=start, stop=start + info.size)
            if careful.last.strip(b"\0"):  # tarfile takes a broken header for the end
                raise tarfile.ReadError(f"is damaged at byte {tar.offset}: no header is there")
            stream.seek(tar.offset)
        is_there = _is_before_tar(stream)


def _is_before_tar(stream: BinaryIO) -> bool:
    """Whether another tar follows the end of one, and the zeros behind that; stands there then."""
    place = stream.tell()
    for _ in range(_MAX_ZEROS // tarfile.BLOCKSIZE):
        block = stream.read(tarfile.BLOCKSIZE)
        if block.strip(b"\0"):
            try:
                tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
            except tarfile.TarError:  # what some programs leave behind the end
                return False
            stream.seek(place)
            return True
        if len(block) < tarfile.BLOCKSIZE:
            return False
        place += len(block)
    return False


@contextlib.contextmanager
def unpacked(stream: BinaryIO) -> Iterator[Any]:
    """A compressed tar as the tar in it, which is decompressed from its start."""
    with gzip.GzipFile(fileobj=stream, mode="rb") as tar:
        yield tar


def _tar(stream: BinaryIO, listed: Listed) -> Iterator[Found]:
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    is_packed = listed.uri.lower().endswith(GZIP_SUFFIXES)
    number = 0
    with unpacked(stream) if is_packed else contextlib.nullcontext(stream) as tar:
        for name, member in _named(_sampled(tar_members(tar))):
            if isinstance(member, Skipped):
                yield member
                continue
            # A compressed shard is decompressed from its start, once for all of it.
            run = 0 if is_packed else number // RUN
            place = ShardPlace(run=run, start=member.start, stop=member.stop, shard_bytes=size)
            yield Recording(
                path=f"{listed.path}/{name}",
                uri=member_uri(listed.uri, member.name),
                listed_in=listed.uri,
                number=number,
                place=place,
            )
            number += 1


def _sampled(
    members: Iterator[Member | Skipped],
) -> Iterator[tuple[str, list[tuple[str, Member]]] | Skipped]:
    """Recordings by sample: neighbours with one key belong together, as webdataset says."""
    key, fields = "", list[tuple[str, Member]]()
    broken: Exception | None = None
    try:
        for member in members:
            if isinstance(member, Skipped):
                yield member
                continue
            name = member.name.removeprefix("./")
            found = _KEY.fullmatch(name)
            if any(part.startswith(".") for part in name.split("/")):
                yield Skipped(why=HIDDEN)
                continue
            if found is not None and found[1] != key and fields:
                yield key, fields
                fields = []
            if found is None or f".{name.rpartition('.')[2].lower()}" not in AUDIO_SUFFIXES:
                yield Skipped(why=NOT_AUDIO)
                continue
            key = found[1]
            fields.append((found[2], member))
    except _TAR_ERRORS as err:  # what stands before the damage is whole
        broken = err
    if fields:
        yield key, fields
    if broken is not None:
        raise broken


def _named(
    samples: Iterator[tuple[str, list[tuple[str, Member]]] | Skipped],
) -> Iterator[tuple[str, Member | Skipped]]:
    """Names of recordings: the sample's, with the field where a sample has several."""
    for sample in samples:
        if isinstance(sample, Skipped):
            yield "", sample
            continue
        key, fields = sample
        for field, member in fields:
            if len(fields) == 1:
                yield key, member
            else:
                yield f"{key}/{field.rpartition('.')[0] or field}", member


# ----- Parquet ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioColumn:
    """Where the recordings of a Parquet file are.

    Attributes:
        name: the column.
        data: the path of the bytes in the schema; None: the column only has paths.
        path: the path of the names; None: there are only bytes.
    """

    name: str
    data: str | None
    path: str | None


def audio_column_of(schema: pa.Schema, wanted: str | None) -> AudioColumn | None:
    """The column of the recordings: the one that is wanted, or the only one that looks like one.

    Hugging Face's type Audio is a struct of ``bytes`` and ``path``; its name stands in the schema.

    Raises:
        AudioColumnError: the wanted one is not there or of another type, or there are several.
    """
    if wanted is not None:
        found = _as_audio(schema.field(wanted)) if wanted in schema.names else None
        if found is None and wanted in schema.names:
            kind = str(schema.field(wanted).type)
            raise AudioColumnError(
                f"column {wanted} has the type {kind}; expected bytes of audio files, their paths, "
                "or a struct of bytes and path as Hugging Face's Audio is"
            )
        if found is None:
            has = ", ".join(schema.names)
            raise AudioColumnError(f"no column {wanted} of audio; the columns are {has}")
        return found
    names = _declared(schema) or [
        field.name for field in schema if pa.types.is_struct(field.type) and _as_audio(field)
    ]
    if len(names) > 1:
        raise AudioColumnError(
            f"several columns of audio, {', '.join(names)}; name one with --audio_column"
        )
    return _as_audio(schema.field(names[0])) if names else None


def _declared(schema: pa.Schema) -> list[str]:
    """The columns that Hugging Face's library calls Audio."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = [name for name, kind in features.items() if kind.get("_type") == "Audio"]
    except (KeyError, ValueError, TypeError, AttributeError):
        return []
    return [name for name in names if name in schema.names and _as_audio(schema.field(name))]


def _as_audio(field: pa.Field) -> AudioColumn | None:
    kind, name = field.type, field.name
    if _is_text(kind):
        return AudioColumn(name=name, data=None, path=name)
    if _is_bytes(kind):
        return AudioColumn(name=name, data=name, path=None)
    if not pa.types.is_struct(kind):
        return None
    inner = {kind.field(at).name: kind.field(at).type for at in range(kind.num_fields)}
    has_data = "bytes" in inner and _is_bytes(inner["bytes"])
    has_path = "path" in inner and _is_text(inner["path"])
    if not has_data and not has_path:
        return None
    return AudioColumn(
        name=name,
        data=f"{name}.bytes" if has_data else None,
        path=f"{name}.path" if has_path else None,
    )


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    tests = (types.is_binary, types.is_large_binary, types.is_binary_view)
    return any(test(kind) for test in (*tests, types.is_fixed_size_binary))


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    tests = (types.is_string, types.is_large_string, types.is_string_view)
    return any(test(kind) for test in tests)


def _parquet(stream: BinaryIO, listed: Listed, wanted: str | None) -> Iterator[Found]:
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    file = pq.ParquetFile(stream)
    column = audio_column_of(file.schema_arrow, wanted)
    if column is None:
        if listed.is_named:
            has = ", ".join(file.schema_arrow.names)
            raise AudioColumnError(
                f"no column of audio among {has}; name the one that has bytes or paths with "
                "--audio_column"
            )
        yield Skipped(why=NO_COLUMN)
        return
    folder = folder_of(listed.uri)
    suffix = "" if wanted is None else f"&column={percent_encoded(wanted)}"
    row, runs = 0, 0
    for group in range(file.metadata.num_row_groups):
        for at, path in enumerate(_paths(file, group, column)):
            place = ShardPlace(run=runs + at // RUN, start=row, stop=row + 1, shard_bytes=size)
            yield from _row(listed, row, path, place, folder, suffix)
            row += 1
        runs += -(-file.metadata.row_group(group).num_rows // RUN)


_INSIDE: Final = ""
"""In the place of a path: the bytes are in the file."""


def _row(
    listed: Listed, row: int, path: str | None, place: ShardPlace, folder: str, suffix: str
) -> Iterator[Found]:
    uri = f"{listed.uri}#row={row}{suffix}"
    known: dict[str, Any] = {"path": f"{listed.path}/{row}", "listed_in": listed.uri, "number": row}
    if path == _INSIDE:
        yield Recording(**known, uri=uri, place=place)
    elif path is None:
        yield malformed({"uri": listed.uri, "row": row}, None, "bytes or a path of audio")
    else:
        yield _outside(known, path, folder)


def _outside(known: Mapping[str, Any], path: str, folder: str) -> Recording | RowError:
    """A recording that a shard or list only names."""
    try:
        return Recording(**known, uri=resolve(folder, path))
    except ValueError as err:
        place = {"uri": known["listed_in"], "row": known["number"]}
        return malformed(place, path, f"an address that can be read ({err})")


def _paths(file: pq.ParquetFile, group: int, column: AudioColumn) -> Iterator[str | None]:
    """For each row :data:`_INSIDE`, or a path, or None; bytes are only read where some lack."""
    rows = file.metadata.row_group(group).num_rows
    missing = rows if column.data is None else _num_null(file, group, column.data)
    if missing == 0:
        yield from [_INSIDE] * rows
        return
    wanted = [column.path] if missing == rows else [column.data, column.path]
    names = [name for name in wanted if name is not None]
    if not names:
        yield from [None] * rows
        return
    at_once = 1 if column.data in names else _ROWS_AT_ONCE
    for batch in file.iter_batches(at_once, row_groups=[group], columns=names):
        values = batch.column(0)
        data = _leaf(values, column.name, column.data) if column.data in names else None
        paths = _leaf(values, column.name, column.path) if column.path is not None else None
        for at in range(batch.num_rows):
            if data is not None and data[at].is_valid:
                yield _INSIDE
            else:
                yield None if paths is None else paths[at].as_py() or None


def _leaf(values: pa.Array, column: str, path: str | None) -> pa.Array:
    """The values at a path of the schema, in a column that may be a struct; null where that is."""
    if path == column:
        return values
    return pc.struct_field(values, (path or "").removeprefix(f"{column}."))


def _num_null(file: pq.ParquetFile, group: int, leaf: str) -> int | None:
    """How many values are null by the footer; None where it does not say."""
    found = file.metadata.row_group(group)
    for at in range(found.num_columns):
        chunk = found.column(at)
        if chunk.path_in_schema == leaf:
            statistics = chunk.statistics
            known = statistics is not None and statistics.has_null_count
            return statistics.null_count if known else None
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetRows:
    """Where the rows of a Parquet file are.

    Attributes:
        leaf: the path of the recordings' bytes in its schema.
        starts: the first row of each row group, and behind the last the number of rows.
    """

    leaf: str
    starts: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Rows of the file."""
        return self.starts[-1]

    def place_of(self, row: int) -> tuple[int, int]:
        """The row group of a row, and which it is there."""
        group = bisect.bisect_right(self.starts, row) - 1
        return group, row - self.starts[group]


def parquet_rows(stream: BinaryIO, wanted: str | None) -> ParquetRows:
    """Where the rows of a Parquet file with recordings are, by its footer.

    Raises:
        AudioColumnError: it has no such column, or one of paths.
        pa.ArrowException: it is not Parquet.
    """
    file = pq.ParquetFile(stream)
    column = audio_column_of(file.schema_arrow, wanted)
    if column is None or column.data is None:
        raise AudioColumnError("no column has the bytes of recordings")
    groups = range(file.metadata.num_row_groups)
    sizes = [file.metadata.row_group(group).num_rows for group in groups]
    return ParquetRows(leaf=column.data, starts=(0, *itertools.accumulate(sizes)))


def write_recordings(stream: BinaryIO, group: int, leaf: str, copy: IO[bytes]) -> None:
    """Writes the recordings of a row group one behind the other, and then where each begins.

    They are read row by row, in memory that grows with the largest, not with the row group.
    """
    file = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES)
    column = leaf.removesuffix(".bytes")
    places: list[tuple[int, int]] = []
    at = 0
    for batch in file.iter_batches(1, row_groups=[group], columns=[leaf], use_threads=False):
        for value in _leaf(batch.column(0), column, leaf):
            data = value.as_buffer() if value.is_valid else None
            stop = -1 if data is None else at + data.size
            places.append((at, stop))
            if data is not None:
                copy.write(data)
                at = stop
    copy.write(b"".join(_PLACE.pack(*place) for place in places))
    copy.write(_PLACE.pack(at, len(places)))


def place_in_copy(copy: BinaryIO, number: int) -> tuple[int, int] | None:
    """Where :func:`write_recordings` wrote a row of the group; None where it has no bytes."""
    copy.seek(-_PLACE.size, io.SEEK_END)
    table, count = _PLACE.unpack(copy.read(_PLACE.size))
    if number >= count:
        raise ManifestError(f"a row group of {count} rows has no row {number}")
    copy.seek(table + number * _PLACE.size)
    start, stop = _PLACE.unpack(copy.read(_PLACE.size))
    return (start, stop) if stop >= start else None


# ----- lists ------------------------------------------------------------------------------------


def _lines(stream: BinaryIO, listed: Listed) -> LineReader:
    """The lines of a list, past a byte order mark."""
    raw: Any = stream
    text = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)
    return read_start(text, listed.uri)


def _nemo(stream: BinaryIO, listed: Listed) -> Iterator[Found]:
    """Entries of a NeMo manifest: ``audio_filepath``, and the part of it from ``offset`` on."""
    folder = folder_of(listed.uri)
    lines = _lines(stream, listed)
    for record in jsonl_records(lines, listed.uri):
        if record.error is not None:
            yield record.error
            continue
        values = record.values or {}
        place = {"uri": listed.uri, "row": record.row}
        path = values.get("audio_filepath")
        times = [values.get(name) for name in ("offset", "duration")]
        if not isinstance(path, str) or not path:
            yield malformed(place, values, "audio_filepath, the path of a recording")
        elif any(isinstance(each, bool | str | list | dict) for each in times):
            yield malformed(place, values, "offset and duration in seconds")
        else:
            known = {
                "path": f"{listed.path}/{record.row}",
                "listed_in": listed.uri,
                "number": record.row,
                "offset_s": times[0] or None,
                "duration_s": times[1],
            }
            yield _outside(known, path, folder)


def _kaldi(stream: BinaryIO, listed: Listed) -> Iterator[Found]:
    """Entries of a Kaldi ``wav.scp``: an utterance and a path. A command there is never run."""
    folder = folder_of(listed.uri)
    lines = _lines(stream, listed)
    for line in lines:
        parts = line.split(maxsplit=1)
        if not parts:
            continue
        lines.begin_row()
        place = {"uri": listed.uri, "row": lines.row}
        entry = parts[1].strip() if len(parts) > 1 else ""
        if entry.endswith("|"):
            yield malformed(place, line.strip(), "the path of a file; commands are not run")
        elif not entry or _AT_OFFSET.fullmatch(entry):
            yield malformed(place, line.strip(), "an utterance and the path of its file")
        else:
            known = {
                "path": f"{listed.path}/{parts[0]}",
                "listed_in": listed.uri,
                "number": lines.row,
            }
            yield _outside(known, entry, folder)
