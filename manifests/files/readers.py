"""Reads rows of CSV, JSONL and Parquet manifests, whole or in splits.

Rows come one at a time, in memory that does not grow with the file. What is wrong with a row is a
value (:class:`~manifests.row.RowError`) in its place; what is wrong with a file is raised.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.columns import DEAD_LETTER_COLUMNS, NOT_LISTED
from manifests.files import (
    ManifestError,
    StorageOptions,
    expand,
    folder_of,
    format_of,
    is_gzip,
    open_bytes,
    reading,
    size_bytes,
)
from manifests.row import (
    MANIFEST_COLUMNS,
    ManifestRow,
    RowError,
    as_json,
    is_nothing,
    nearest_column,
    parse_record,
    quoted,
)

MAX_LINE_BYTES: Final = 8 << 20
_FIELD = csv.field_size_limit()
_MAX_COLUMNS = 1_000
_BOM = b"\xef\xbb\xbf"
_OTHER_FORMATS: Final[Mapping[bytes, str]] = {
    b"\xff\xfe": "UTF-16 (in Excel choose CSV UTF-8)",
    b"\xfe\xff": "UTF-16 (in Excel choose CSV UTF-8)",
    b"PAR1": "Parquet",
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"\xd0\xcf\x11\xe0": "a spreadsheet of Excel",
}
_OTHER_SEPARATORS: Final[Mapping[str, str]] = {";": "semicolons", "\t": "tabs", "|": "bars"}
_EXCEL_COMMA = "sep=,"
"""A first line by which Excel is told the separator."""
_ESCAPED_QUOTE = re.compile(r'\\+"')
NOTHING_IN_CSV: Final = frozenset(
    (
        *("NA", "N/A", "n/a", "#N/A", "#NA", "#N/A N/A", "<NA>", "NULL", "null", "None"),
        *("NaN", "nan", "-NaN", "-nan", "NaT", "\\N"),
    )
)
"""What R, Excel, pandas, Spark and databases write where a table has no value."""
_OPTIONAL: Final = frozenset(MANIFEST_COLUMNS) - {"id"}
_KNOWN = f"id and others of {', '.join(MANIFEST_COLUMNS)}"
_OPENED_OBJECT = re.compile(rb"\s*\{\s*[\r\n]")
_ONE_A_LINE = "expected one object on each line (jq -c '.[]'; in pandas: to_json(…, lines=True))"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The columns of one row as the file gives them, or what is wrong with the row as a whole.

    Attributes:
        row: line of the file where the row begins, from 1 (Parquet: row of data, from 1).
        start: byte of the file where the row begins; 0 in Parquet.
        values: the columns, or None beside ``error``.
        error: why there are no columns.
    """

    row: int
    start: int
    values: Mapping[str, Any] | None = None
    error: RowError | None = None


class LineReader(Iterator[str]):
    """Lines of a byte range as text, counted. A line beyond 8 MiB is cut and flagged.

    Bytes that are not UTF-8 come as surrogates, so that the rest of their row can be shown.
    """

    def __init__(
        self, stream: BinaryIO, *, start: int = 0, stop: int | None = None, row: int = 0
    ) -> None:
        """Begins at byte ``start`` of ``stream``, where ``row`` lines lie behind."""
        self._stream = stream
        self._taken: list[tuple[str, int]] = []
        self._pending: list[tuple[str, int]] = []
        self.stop = stop
        self.position = start
        self.row = row
        self.was_cut = False

    def __next__(self) -> str:
        """The next line with its end."""
        if self._pending:
            line, num_bytes = self._pending.pop()
        elif self.stop is not None and self.position >= self.stop:
            raise StopIteration
        else:
            line, num_bytes = self._read()
        if not num_bytes:
            raise StopIteration
        self.row += 1
        self.position += num_bytes
        self._taken.append((line, num_bytes))
        return line

    def _read(self) -> tuple[str, int]:
        line = rest = self._stream.readline(MAX_LINE_BYTES)
        num_bytes = len(line)
        while len(rest) == MAX_LINE_BYTES and not rest.endswith(b"\n"):
            self.was_cut = True
            rest = self._stream.readline(MAX_LINE_BYTES)
            num_bytes += len(rest)
        return line.decode("utf-8", "surrogateescape"), num_bytes

    def begin_row(self) -> None:
        """Says that the next line begins a row."""
        self.was_cut = False
        self._taken.clear()

    def give_up_row(self) -> str:
        """Goes back to the second line of the row that began last, and returns its first line."""
        while len(self._taken) > 1:
            line, num_bytes = self._taken.pop()
            self._pending.append((line, num_bytes))
            self.row -= 1
            self.position -= num_bytes
        return self._taken[0][0].rstrip("\r\n")


def read_start(stream: io.BufferedReader, uri: str) -> LineReader:
    """A reader at the first line, past a byte order mark.

    Raises:
        ManifestError: the first bytes are not UTF-8 text, its lines end in CR alone, or it is JSON
            in another form than an object a line.
    """
    head = stream.peek(4096)[:4096]
    for magic, name in _OTHER_FORMATS.items():
        if head.startswith(magic):
            raise ManifestError(f"{uri}: this is {name}; expected UTF-8 text")
    if 10 * head.count(0) > len(head):
        raise ManifestError(f"{uri}: these are binary data; expected UTF-8 text")
    if b"\r" in head.rstrip(b"\r") and b"\n" not in head:
        raise ManifestError(f"{uri}: lines end in CR alone; expected LF or CR LF")
    if head.removeprefix(_BOM).lstrip().startswith(b"["):
        raise ManifestError(f"{uri}: this is a JSON array; {_ONE_A_LINE}")
    if _OPENED_OBJECT.match(head.removeprefix(_BOM)):
        raise ManifestError(f"{uri}: its first line only opens a JSON object; {_ONE_A_LINE}")
    start = len(stream.read(len(_BOM))) if head.startswith(_BOM) else 0
    return LineReader(stream, start=start)


def read_column_names(lines: LineReader, uri: str, key: str = "id") -> tuple[str, ...]:
    """Column names of a CSV manifest, past ``#`` comments and blank lines; none in an empty file.

    Raises:
        ManifestError: not UTF-8, other separators than commas, a name twice, or no column ``key``.
    """
    for line in lines:
        text = line.strip()
        if text and not text.startswith(("#", '"#')) and text.strip('"') != _EXCEL_COMMA:
            break
    else:
        return ()
    if any("\udc80" <= char <= "\udcff" for char in line):
        raise ManifestError(f"{uri}: row {lines.row} is not UTF-8 text")
    try:
        cells = next(csv.reader([line], strict=True, skipinitialspace=True))
    except csv.Error as err:
        _check_separator(line, uri, key)
        raise ManifestError(f"{uri}: row {lines.row}: the header is not CSV ({err})") from err
    names = [cell.strip() or f"column_{i}" for i, cell in enumerate(cells, 1)]
    if key not in names:
        _check_separator(line, uri, key)
    check_columns(names, uri, key)
    return tuple(names)


def _check_separator(header: str, uri: str, key: str = "id") -> None:
    """Raises ManifestError for a header whose columns something else than commas separates."""
    for separator, name in _OTHER_SEPARATORS.items():
        names = [cell.strip().strip('"') for cell in header.split(separator)]
        if key in names[1:] or (names[0] == key and len(names) > 1) or names[0] == "sep=":
            raise ManifestError(
                f"{uri}: the columns are separated by {name}; expected commas. Save the table "
                "again with commas (Excel takes the separator from the system's list separator; "
                "LibreOffice asks for it; in pandas: "
                f"read_csv(…, sep={separator!r}).to_csv(…, index=False)), or as Parquet or JSONL"
            )


def check_columns(names: Sequence[str], uri: str, key: str = "id") -> None:
    """Checks the columns of a table.

    Raises:
        ManifestError: a name twice, no column ``key``, or more than 1,000 columns.
    """
    if len(names) > _MAX_COLUMNS:
        raise ManifestError(f"{uri}: {len(names)} columns; expected at most {_MAX_COLUMNS}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ManifestError(f"{uri}: column {quoted(twice[0])} occurs more than once")
    if key not in names:
        found = quoted(", ".join(names))
        if key != "id":
            raise ManifestError(f"{uri}: no column {key} in {found}")
        like = next((name for name in names if nearest_column(name) == "id"), None)
        hint = f"{quoted(like)} should be called id" if like else f"expected {_KNOWN}"
        raise ManifestError(f"{uri}: no column id in {found}; {hint}")


def csv_records(lines: LineReader, columns: Sequence[str], uri: str) -> Iterator[Record]:
    """Rows of CSV from where ``lines`` stands; rows in which no cell says anything are passed over.

    Blanks around a cell do not count, also before a quote, nor do blank cells beyond the header's.
    What stands for nothing in a column of manifests that may lack is no value.

    After a row that is not CSV, such as one with a quote that is never closed, it goes on at the
    line after the one where that row began: no row behind it is lost.
    """
    reader = csv.reader(lines, strict=True, skipinitialspace=True)
    while True:
        row, start = lines.row + 1, lines.position
        lines.begin_row()
        cells: list[str] = []
        broken_line = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            broken_line = lines.give_up_row()
        if broken_line is not None and _ESCAPED_QUOTE.search(broken_line):
            cells = _with_escaped_quotes(broken_line)
            broken_line = None if cells else broken_line
        if broken_line is None and not lines.was_cut and all(map(_says_nothing, cells)):
            continue
        place = {"uri": uri, "row": row}
        if lines.was_cut:
            error = malformed(place, f"a row of more than {MAX_LINE_BYTES} bytes", "a shorter row")
        elif broken_line is not None:
            error = malformed(
                place, broken_line, f"CSV with closed quotes and fields below {_FIELD} characters"
            )
        elif len(cells) < len(columns) or any(map(str.strip, cells[len(columns) :])):
            error = malformed(place, cells, f"{len(columns)} cells, not {len(cells)}")
        else:
            values = {
                name: read_cell(name, cell) for name, cell in zip(columns, cells, strict=False)
            }
            yield Record(row=row, start=start, values=values)
            continue
        yield Record(row=row, start=start, error=error)


def read_cell(name: str, cell: str) -> str | None:
    """The text of a cell; None where an optional column of manifests says that there is nothing."""
    text = cell.strip()
    return None if text in NOTHING_IN_CSV and name in _OPTIONAL else text


def _says_nothing(cell: str) -> bool:
    text = cell.strip()
    return not text or text in NOTHING_IN_CSV


def _with_escaped_quotes(line: str) -> list[str]:
    r"""The cells of a line in which ``\"`` is a quote, as Spark writes it; none if that fails."""
    try:
        return next(csv.reader([_ESCAPED_QUOTE.sub(_doubled_quote, line)], strict=True), [])
    except csv.Error:
        return []


def _doubled_quote(found: re.Match[str]) -> str:
    """Half of the backslashes; the quote is doubled after an odd number of them."""
    pairs, odd = divmod(len(found[0]) - 1, 2)
    return "\\" * pairs + ('""' if odd else '"')


def jsonl_records(lines: LineReader, uri: str) -> Iterator[Record]:
    """Rows of JSONL from where ``lines`` stands; blank lines are passed over."""
    while True:
        start = lines.position
        lines.begin_row()
        line = next(lines, None)
        if line is None:
            return
        row = lines.row
        text = line.strip()
        if not text:
            continue
        place = {"uri": uri, "row": row}
        if lines.was_cut:
            error = malformed(place, f"a row of more than {MAX_LINE_BYTES} bytes", "a shorter row")
            yield Record(row=row, start=start, error=error)
            continue
        values = parse_object(text, place)
        if isinstance(values, RowError):
            yield Record(row=row, start=start, error=values)
        else:
            yield Record(row=row, start=start, values=values)


def parse_object(text: str, place: Mapping[str, Any]) -> dict[str, Any] | RowError:
    """A JSON object as columns. A key that occurs twice is an error, as one of them would win."""
    try:
        values = json.loads(text, object_pairs_hook=_without_duplicates)
    except _DuplicateKeyError as err:
        return malformed(place, text, f"each key once, not {quoted(err.args[0])} twice")
    except RecursionError:
        return malformed(place, text, "values that are not nested this deeply")
    except ValueError as err:
        return malformed(place, text, f"a JSON object on one line ({_short(err)})")
    if not isinstance(values, dict):
        return malformed(place, text, "a JSON object on one line")
    return values


class _DuplicateKeyError(ValueError):
    """A key that a JSON object has twice."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(key)
            seen.add(key)
    return values


def _short(err: ValueError) -> str:
    if isinstance(err, json.JSONDecodeError):
        return f"{err.msg} at character {err.pos + 1}"
    return "a number has too many digits"


def malformed(place: Mapping[str, Any], value: Any, expected: str) -> RowError:
    """The error of a row that has no columns to speak of; ``place`` is its ``uri`` and ``row``."""
    return RowError(
        uri=place["uri"],
        row=place["row"],
        field=None,
        value=quoted(value),
        expected=expected,
        row_json=as_json(value),
    )


RowResult = ManifestRow | RowError
SPLIT_BYTES: Final = 4 << 20
_HEAD_ROWS = 100
_PARQUET_BATCH_ROWS = 1_024
_READABLE: Final = (
    "text in UTF-8, and dates and times between the years 1 and 9999, of time zones known here"
)
_UNREADABLE: Final = (ValueError, OverflowError, KeyError)
"""Text that is not UTF-8, a date before the year 1, and a time zone that is not known here."""
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


def tabular(uri: str, key: str, storage_options: StorageOptions = None) -> Iterator[Record]:
    """Rows of a table that is no manifest, whose column ``key`` every row has.

    Raises:
        ManifestError: the file is not there, cannot be read, or has no such column.
    """
    yield from _records(Split(uri=uri), storage_options, key)


def _columns(stream: io.BufferedReader, uri: str) -> tuple[str, ...] | None:
    """Names of the columns; None where a file that should have a header is empty."""
    form = format_of(uri)
    if form == "parquet":
        file = _open_parquet(stream, uri)
        return None if file is None else tuple(file.schema_arrow.names)
    lines = read_start(stream, uri)
    if form == "csv":
        return read_column_names(lines, uri) or None
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
            header = read_column_names(lines, uri)
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


def _result(record: Record, uri: str, folder: str) -> RowResult:
    """The row of ``record``; a dead letter is the row it holds, read where the letter says."""
    if record.error is not None:
        return record.error
    values, row = dict(record.values or {}), record.row
    if values.keys() >= _DEAD_LETTER:
        letter = {name: values.pop(name) for name in DEAD_LETTER_COLUMNS}
        origin, number = letter["manifest_uri"], str(letter["manifest_row"])
        named = isinstance(origin, str) and origin
        if named and number.isdecimal():
            uri, row = origin, int(number)
        if isinstance(letter["row_json"], str) and letter["row_json"]:
            folder = folder_of(origin) if named else folder
            original = parse_object(letter["row_json"], {"uri": uri, "row": row})
            if isinstance(original, RowError):
                return original
            if original.keys() == {NOT_LISTED}:
                return RowError(
                    uri=uri,
                    row=row,
                    field=None,
                    value=f"{original[NOT_LISTED]}, which could not be looked into",
                    expected="the --recordings of before, with --resume, which look there again",
                    row_json=letter["row_json"],
                )
            values = original
    return parse_record(values, uri=uri, row=row, folder=folder)


def _records(split: Split, storage_options: StorageOptions, key: str = "id") -> Iterator[Record]:
    uri, form = split.uri, format_of(split.uri)
    with reading(uri), open_bytes(uri, storage_options) as stream:
        if form == "parquet":
            yield from _parquet_records(stream, split, key)
            return
        if split.start == 0:
            lines = read_start(stream, uri)
            columns: Sequence[str] = read_column_names(lines, uri, key) if form == "csv" else ()
            lines.stop = split.stop
        else:
            stream.seek(split.start)
            lines = LineReader(stream, start=split.start, stop=split.stop, row=split.rows_before)
            columns = split.columns
        yield from csv_records(lines, columns, uri) if form == "csv" else jsonl_records(lines, uri)


def _open_parquet(stream: io.BufferedReader, uri: str, key: str = "id") -> pq.ParquetFile | None:
    """The file; None where it has no bytes at all."""
    if not stream.peek(1):
        return None
    try:
        file = pq.ParquetFile(stream)
    except (pa.ArrowException, OSError) as err:
        raise ManifestError(f"{uri}: not a Parquet file ({_one_line(err)})") from err
    check_columns(file.schema_arrow.names, uri, key)
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


def _parquet_records(stream: io.BufferedReader, split: Split, key: str = "id") -> Iterator[Record]:
    file = _open_parquet(stream, split.uri, key)
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
    except _UNREADABLE:
        for number in range(batch.num_rows):
            try:
                (values,) = _as_csv_says(batch.slice(number, 1)).to_pylist()
            except _UNREADABLE:
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
        elif _is_list(kind) and pa.types.is_float32(kind.value_type):
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


def _is_list(kind: pa.DataType) -> bool:
    """Whether a type is of lists, however their places are kept; Polars writes large ones."""
    types = pa.types
    return any(
        test(kind) for test in (types.is_list, types.is_large_list, types.is_fixed_size_list)
    )


def _sixteen(value: bytes) -> str:
    return value.decode("ascii") if value.isascii() else str(UUID(bytes=value))


def _one_line(err: Exception) -> str:
    return " ".join(str(err).split())[:200]
