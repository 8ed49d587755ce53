"""What can be wrong with a manifest: the file (raised) or one of its rows (a value)."""

from __future__ import annotations

import json
import math
import reprlib
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from manifests.row import MAX_TEXT_CHARS

MAX_QUOTED_CHARS = 200
_UUID_BYTES = 16
_MAX_ROW_JSON_CHARS = 1 << 20


class ManifestError(Exception):
    """A manifest that cannot be read at all: missing, no permission, not UTF-8, broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowError:
    """One row that cannot be used, in place of the row.

    Attributes:
        uri: the file.
        row: line of the file, from 1, in CSV (where the row begins) and JSONL; row of data, from 1,
            in Parquet.
        field: the column; None where the row as a whole is malformed.
        value: what was found, quoted and cut to 200 characters.
        expected: what would be right.
        row_json: the row as it was read, as JSON, so that it can be kept and read again.
        row_id: its id, where it has one.
    """

    uri: str
    row: int
    field: str | None
    value: str
    expected: str
    row_json: str
    row_id: str | None = None

    def __str__(self) -> str:
        """``file, row 3, field: found "x"; expected y`` on one line."""
        place = f"{self.uri}, row {self.row}"
        if self.field:  # a column of the file's own can be called anything
            place += f", {self.field if self.field.isprintable() else quoted(self.field)}"
        return f"{place}: found {self.value}; expected {self.expected}"


def quoted(value: Any) -> str:
    """``value`` for a message: on one line, printable, at most about 200 characters."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        text = json.dumps(value[:MAX_QUOTED_CHARS], ensure_ascii=False)
        text = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
        rest = len(value) - MAX_QUOTED_CHARS
        return text + (f"… and {rest} more characters" if rest > 0 else "")
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    text = short.repr(value)
    return text if len(text) <= MAX_QUOTED_CHARS else text[:MAX_QUOTED_CHARS] + "…"


def as_json(values: Any) -> str:
    """A row as read, as ASCII JSON of bounded length.

    What is cut stays longer than any column may be: a row that was refused is not accepted when its
    JSON is read again.
    """
    try:
        text = json.dumps(_cut(values), default=as_text)
    except (RecursionError, ValueError):
        return json.dumps("a row that is nested too deeply to be kept")
    if len(text) > _MAX_ROW_JSON_CHARS:
        return json.dumps(f"a row of {len(text)} characters, which is too long to be kept")
    return text


def as_text(value: Any) -> str:
    """A value that is no text, as the same table says it in CSV.

    A float that is whole was an integer before a gap in its column made it one, and is said as one.
    Bytes are the text that they encode, otherwise the UUID that 16 of them are, or hexadecimal.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, Decimal):
        return format(value, "f")
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return str(UUID(bytes=value)) if len(value) == _UUID_BYTES else value.hex()


def is_nothing(value: Any) -> bool:
    """Whether a value stands for no value in every format: null, NaN, and empty text."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _cut(values: Any) -> Any:
    if isinstance(values, str) and len(values) > MAX_TEXT_CHARS:
        return f"{values[:MAX_TEXT_CHARS]}… and {len(values) - MAX_TEXT_CHARS} more characters"
    if isinstance(values, dict):
        return {_cut(str(key)): _cut(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_cut(value) for value in values]
    if isinstance(values, float) and not math.isfinite(values):  # JSON has no word for it
        return None if math.isnan(values) else repr(values)
    return values
