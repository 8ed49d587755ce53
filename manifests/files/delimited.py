"""CSV and JSONL: lines of a byte range → the columns of each row, in bounded memory."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from manifests.errors import ManifestError, RowError, as_json, quoted
from manifests.row import MANIFEST_COLUMNS, nearest_column

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


def read_header(lines: LineReader, uri: str) -> tuple[str, ...]:
    """Column names of a CSV manifest, past ``#`` comments and blank lines; none in an empty file.

    Raises:
        ManifestError: not UTF-8, other separators than commas, a name twice, or no column ``id``.
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
        _check_separator(line, uri)
        raise ManifestError(f"{uri}: row {lines.row}: the header is not CSV ({err})") from err
    names = [cell.strip() or f"column_{i}" for i, cell in enumerate(cells, 1)]
    if "id" not in names:
        _check_separator(line, uri)
    check_columns(names, uri)
    return tuple(names)


def _check_separator(header: str, uri: str) -> None:
    """Raises ManifestError for a header whose columns something else than commas separates."""
    for separator, name in _OTHER_SEPARATORS.items():
        names = [cell.strip().strip('"') for cell in header.split(separator)]
        if "id" in names[1:] or (names[0] == "id" and len(names) > 1) or names[0] == "sep=":
            raise ManifestError(
                f"{uri}: the columns are separated by {name}; expected commas. Save the table "
                "again with commas (Excel takes the separator from the system's list separator; "
                "LibreOffice asks for it; in pandas: "
                f"read_csv(…, sep={separator!r}).to_csv(…, index=False)), or as Parquet or JSONL"
            )


def check_columns(names: Sequence[str], uri: str) -> None:
    """Checks the columns of a table.

    Raises:
        ManifestError: a name twice, no column ``id``, or more than 1,000 columns.
    """
    if len(names) > _MAX_COLUMNS:
        raise ManifestError(f"{uri}: {len(names)} columns; expected at most {_MAX_COLUMNS}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ManifestError(f"{uri}: column {quoted(twice[0])} occurs more than once")
    if "id" not in names:
        found = quoted(", ".join(names))
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
