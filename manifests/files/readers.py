"""Manifests as files: reading rows of CSV, JSONL and Parquet, whole or in splits.

Rows come one at a time, in memory that does not grow with the file. What is wrong with a row is a
value (:class:`~manifests.errors.RowError`) in its place; what is wrong with a file is raised.
"""

from __future__ import annotations

import io
import itertools
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.columns import DEAD_LETTER_COLUMNS
from manifests.errors import ManifestError, RowError, is_nothing
from manifests.files import (
    StorageOptions,
    expand,
    folder_of,
    format_of,
    is_gzip,
    open_bytes,
    reading,
    size_bytes,
)
from manifests.files.delimited import (
    LineReader,
    Record,
    check_columns,
    csv_records,
    jsonl_records,
    malformed,
    parse_object,
    read_header,
    read_start,
)
from manifests.row import EXTRA_PREFIX, MANIFEST_COLUMNS, ManifestRow
from manifests.validation import MAX_EXTRA_COLUMNS, is_column_name, parse_record

__all__ = [
    "ManifestError",
    "ManifestRow",
    "RowError",
    "RowResult",
    "Split",
    "columns_of",
    "expand",
    "extra_names",
    "iter_rows",
    "iter_split",
    "plan_splits",
]

RowResult = ManifestRow | RowError
SPLIT_BYTES: Final = 4 << 20
_HEAD_ROWS = 100
_PARQUET_BATCH_ROWS = 1_024
_READABLE: Final = "text in UTF-8, and dates and times between the years 1 and 9999"
_SIXTEEN_BYTES: Final = pa.binary(16)
_ZEROS: Final = ((r"\.0+([^0-9]|$)", r"\1"), (r"(\.[0-9]*[1-9])0+([^0-9]|$)", r"\1\2"))
"""What ends a fraction of a second in vain, and what is left of it."""
_DEAD_LETTER: Final = frozenset(DEAD_LETTER_COLUMNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A part of one manifest file that can be read by itself.

    Attributes:
        uri: the file, absolute.
        start: first byte (CSV, JSONL) or row group (Parquet).
        stop: where the part ends, exclusive; None for the end of the file.
        rows_before: rows (Parquet) or lines (CSV, JSONL) of the file before ``start``.
        columns: the header, where a part of a CSV file begins after it.
    """

    uri: str
    start: int = 0
    stop: int | None = None
    rows_before: int = 0
    columns: tuple[str, ...] = ()


def iter_rows(uri: str, storage_options: StorageOptions = None) -> Iterator[RowResult]:
    """Rows of a file, folder or pattern, in the order of the files' names and of their rows.

    Raises:
        ManifestError: a file that is not there or cannot be read.
    """
    for file in files_of(uri, storage_options):
        yield from iter_split(Split(uri=file), storage_options)


def files_of(uri: str, storage_options: StorageOptions = None) -> tuple[str, ...]:
    """The files that ``uri`` stands for, as :func:`expand`; a single one is not empty.

    Raises:
        ManifestError: a file is not there or cannot be read, or the one that ``uri`` names is
            empty.
    """
    files = expand(uri, storage_options)
    if len(files) == 1:
        columns_of(files[0], storage_options, named_by=uri)
    return files


def columns_of(
    file: str, storage_options: StorageOptions = None, *, named_by: str
) -> tuple[str, ...]:
    """The columns of one manifest file, from its head or Parquet footer: no row is checked.

    To be called before anything is written: what is wrong with the file as a whole is found here.

    Args:
        file: one of the files that :func:`expand` gives.
        storage_options: keyword arguments of the file system.
        named_by: what :func:`expand` was asked for. An empty CSV or Parquet file is a part without
            rows where that is a folder or a pattern (Spark writes such parts), and refused where
            it is the file. An empty JSONL file has no rows: there is no other way to say so.

    Returns:
        CSV and Parquet: the column names of the header. JSONL: the keys of the first 100 rows.
        Empty for a file without content. What only dead letters have beside their row is left out.

    Raises:
        ManifestError: the file is not there, cannot be read or is not a manifest.
    """
    with reading(file), open_bytes(file, storage_options) as stream:
        columns = _columns(stream, file)
    if columns is None and _base_name(file) == _base_name(named_by):
        raise ManifestError(f"{file}: the file is empty: no header; expected column names")
    names = columns or ()
    return tuple(n for n in names if n not in _DEAD_LETTER) if {*names} >= _DEAD_LETTER else names


def _columns(stream: io.BufferedReader, uri: str) -> tuple[str, ...] | None:
    """Names of the columns; None where a file that should have a header is empty."""
    form = format_of(uri)
    if form == "parquet":
        file = _open_parquet(stream, uri)
        return None if file is None else tuple(file.schema_arrow.names)
    lines = read_start(stream, uri)
    if form == "csv":
        return read_header(lines, uri) or None
    head = itertools.islice(jsonl_records(lines, uri), _HEAD_ROWS)
    return tuple(dict.fromkeys(name for record in head for name in record.values or ()))


def _base_name(uri: str) -> str:
    return posixpath.basename(uri.rstrip("/"))


def iter_split(split: Split, storage_options: StorageOptions = None) -> Iterator[RowResult]:
    """Rows of one part of a file; a row without any value is none.

    Raises:
        ManifestError: the file is not there or cannot be read.
    """
    folder = folder_of(split.uri)
    for record in _records(split, storage_options):
        if record.values is None or not all(map(is_nothing, record.values.values())):
            yield _result(record, split.uri, folder)


def plan_splits(
    uri: str, storage_options: StorageOptions = None, *, split_bytes: int = SPLIT_BYTES
) -> list[Split]:
    """Parts that together hold every row of one file once.

    A file of up to twice ``split_bytes`` and one that is compressed stay whole. Parquet is cut
    between row groups. CSV and JSONL are read through once, so that every cut is known to lie
    between two rows and the rows after it keep their numbers.

    Args:
        uri: one file, as :func:`expand` gives it.
        storage_options: keyword arguments of the file system.
        split_bytes: least size of a part.

    Raises:
        ManifestError: the file is not there or cannot be read.
    """
    if format_of(uri) == "parquet":
        return _parquet_splits(uri, storage_options)
    size = size_bytes(uri, storage_options)
    if size is None or size <= 2 * split_bytes or is_gzip(uri):
        return [Split(uri=uri)]
    splits: list[Split] = []
    start, rows_before = 0, 0
    columns: tuple[str, ...] = ()
    with reading(uri), open_bytes(uri, storage_options) as stream:
        lines = read_start(stream, uri)
        if format_of(uri) == "csv":
            header = read_header(lines, uri)
            records = csv_records(lines, header, uri)
        else:
            header, records = (), jsonl_records(lines, uri)
        for record in records:
            if record.start - start >= split_bytes:
                splits.append(
                    Split(
                        uri=uri,
                        start=start,
                        stop=record.start,
                        rows_before=rows_before,
                        columns=columns,
                    )
                )
                start, rows_before, columns = record.start, record.row - 1, header
    splits.append(Split(uri=uri, start=start, rows_before=rows_before, columns=columns))
    return splits


def extra_names(uri: str, storage_options: StorageOptions = None) -> list[str]:
    """Names, without ``extra_``, of every further column of a manifest, sorted.

    CSV and Parquet say them in the header; JSONL is read through.

    Raises:
        ManifestError: a file cannot be read, or there are more than 100 such columns.
    """
    names: set[str] = set()
    for file in expand(uri, storage_options):
        for columns in _column_sets(file, storage_options):
            if columns >= _DEAD_LETTER:
                columns -= _DEAD_LETTER
            columns.difference_update(MANIFEST_COLUMNS)
            found = (name.removeprefix(EXTRA_PREFIX) for name in columns)
            names.update(name for name in found if is_column_name(name))
            if len(names) > MAX_EXTRA_COLUMNS:
                raise ManifestError(f"{file}: more than {MAX_EXTRA_COLUMNS} columns of its own")
    return sorted(names)


def _column_sets(uri: str, storage_options: StorageOptions) -> Iterator[set[str]]:
    with reading(uri), open_bytes(uri, storage_options) as stream:
        if format_of(uri) != "jsonl":
            yield set(_columns(stream, uri) or ())
            return
        for record in jsonl_records(read_start(stream, uri), uri):
            if record.values is not None:
                yield set(record.values)


def _result(record: Record, uri: str, folder: str) -> RowResult:
    """The row of ``record``; a dead letter is the row it holds."""
    if record.error is not None:
        return record.error
    values = dict(record.values or {})
    if values.keys() >= _DEAD_LETTER:
        letter = {name: values.pop(name) for name in DEAD_LETTER_COLUMNS}
        if isinstance(letter["row_json"], str) and letter["row_json"]:
            original = parse_object(letter["row_json"], {"uri": uri, "row": record.row})
            if isinstance(original, RowError):
                return original
            values = original
            if isinstance(letter["manifest_uri"], str) and letter["manifest_uri"]:
                folder = folder_of(letter["manifest_uri"])
    return parse_record(values, uri=uri, row=record.row, folder=folder)


def _records(split: Split, storage_options: StorageOptions) -> Iterator[Record]:
    uri, form = split.uri, format_of(split.uri)
    with reading(uri), open_bytes(uri, storage_options) as stream:
        if form == "parquet":
            yield from _parquet_records(stream, split)
            return
        if split.start == 0:
            lines = read_start(stream, uri)
            columns: Sequence[str] = read_header(lines, uri) if form == "csv" else ()
            lines.stop = split.stop
        else:
            stream.seek(split.start)
            lines = LineReader(stream, start=split.start, stop=split.stop, row=split.rows_before)
            columns = split.columns
        yield from csv_records(lines, columns, uri) if form == "csv" else jsonl_records(lines, uri)


def _open_parquet(stream: io.BufferedReader, uri: str) -> pq.ParquetFile | None:
    """The file; None where it has no bytes at all."""
    if not stream.peek(1):
        return None
    try:
        file = pq.ParquetFile(stream)
    except (pa.ArrowException, OSError) as err:
        raise ManifestError(f"{uri}: not a Parquet file ({_one_line(err)})") from err
    check_columns(file.schema_arrow.names, uri)
    return file


def _parquet_splits(uri: str, storage_options: StorageOptions) -> list[Split]:
    with reading(uri), open_bytes(uri, storage_options) as stream:
        file = _open_parquet(stream, uri)
        splits: list[Split] = []
        rows = 0
        if file is None:
            return splits
        for group in range(file.metadata.num_row_groups):
            splits.append(Split(uri=uri, start=group, stop=group + 1, rows_before=rows))
            rows += file.metadata.row_group(group).num_rows
    return splits


def _parquet_records(stream: io.BufferedReader, split: Split) -> Iterator[Record]:
    file = _open_parquet(stream, split.uri)
    if file is None:
        return
    stop = file.metadata.num_row_groups if split.stop is None else split.stop
    row = split.rows_before
    try:
        batches = file.iter_batches(_PARQUET_BATCH_ROWS, row_groups=range(split.start, stop))
        for batch in batches:
            for values in _rows_of(batch):
                row += 1
                place = {"uri": split.uri, "row": row}
                error = malformed(place, "…", _READABLE) if values is None else None
                yield Record(row=row, start=0, values=values, error=error)
    except (pa.ArrowException, OSError) as err:
        raise ManifestError(f"{split.uri}: broken after row {row} ({_one_line(err)})") from err


def _rows_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | None]:
    """Rows as Python values; None for one that has a value which Python cannot represent."""
    try:
        yield from _as_csv_says(batch).to_pylist()
    except (ValueError, OverflowError):  # a date before the year 1, text that is not UTF-8
        for number in range(batch.num_rows):
            try:
                (values,) = _as_csv_says(batch.slice(number, 1)).to_pylist()
            except (ValueError, OverflowError):
                values = None
            yield values


def _as_csv_says(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Columns whose Python values would not be what the same table says in CSV, as such ones.

    A float32 of 0.1 is 0.1; 16 bytes are a UUID unless they are plain text; what is exact to the
    nanosecond is text, as Python's times are not.
    """
    for number, field in enumerate(batch.schema):
        kind, column = field.type, batch.column(number)
        if pa.types.is_float32(kind):
            column = column.cast(pa.string()).cast(pa.float64())
        elif pa.types.is_list(kind) and pa.types.is_float32(kind.value_type):
            column = column.cast(pa.list_(pa.string())).cast(pa.list_(pa.float64()))
        elif kind == _SIXTEEN_BYTES:
            values = column.to_pylist()
            column = pa.array([None if value is None else _sixteen(value) for value in values])
        elif (pa.types.is_timestamp(kind) or pa.types.is_time64(kind)) and kind.unit == "ns":
            column = column.cast(pa.string())
            for zeros, rest in _ZEROS:
                column = pc.replace_substring_regex(column, zeros, rest)
        else:
            continue
        batch = batch.set_column(number, field.name, column)
    return batch


def _sixteen(value: bytes) -> str:
    return value.decode("ascii") if value.isascii() else str(UUID(bytes=value))


def _one_line(err: Exception) -> str:
    return " ".join(str(err).split())[:200]
