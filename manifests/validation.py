"""From the columns of a row, as a file gives them, to a checked row or to what is wrong with it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from manifests.columns import column_rules, column_type
from manifests.errors import RowError, as_json, as_text, is_nothing, quoted
from manifests.files import resolve
from manifests.row import (
    EXTRA_PREFIX,
    MANIFEST_COLUMNS,
    MAX_LIST_ITEMS,
    MAX_TEXT_CHARS,
    ManifestRow,
)

MAX_EXTRA_COLUMNS = 100
_MAX_COLUMN_NAME_CHARS = 200
_TEXT = f"UTF-8 text without NUL, at most {MAX_TEXT_CHARS} characters"
_URI_COLUMNS: Final = tuple(name for name in MANIFEST_COLUMNS if name.endswith(("_uri", "_uris")))
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class _InvalidError(ValueError):
    """A column that is not as it should be; becomes a :class:`RowError`."""

    def __init__(self, field: str, value: Any, expected: str) -> None:
        super().__init__(field, expected)
        self.field, self.value, self.expected = field, value, expected


def parse_record(
    values: Mapping[str, Any], *, uri: str, row: int, folder: str
) -> ManifestRow | RowError:
    """Checks one row.

    Text is accepted for every type, as CSV has nothing else: numbers in decimal notation, lists
    separated by ``;`` or as a JSON array of strings. Where text is expected, numbers, dates and the
    like are taken as CSV would say them. Blank text and NaN are absent values.

    Args:
        values: the columns by name; those that no manifest has are carried in ``extra``.
        uri: the file, for messages.
        row: the row in the file, for messages.
        folder: where relative URIs begin.

    Returns:
        The row with absolute URIs, or the first thing that is wrong with it.
    """
    try:
        fields = _ABSENT | {
            name: _PARSERS[name](name, value)
            for name, value in values.items()
            if name in _PARSERS and not is_nothing(value)
        }
        if fields["id"] is None:
            raise _InvalidError("id", values.get("id"), "a non-empty id")
        extra = _extra(values)
        _check_sources(fields)
        _check_query(fields)
        for name in _URI_COLUMNS:
            if fields[name]:
                fields[name] = _resolved(name, fields[name], folder)
    except _InvalidError as err:
        return RowError(
            uri=uri,
            row=row,
            field=err.field,
            value=quoted(err.value),
            expected=err.expected,
            row_json=as_json(dict(values)),
            row_id=_row_id(values),
        )
    return ManifestRow(**fields, extra=extra, manifest_uri=uri, manifest_row=row)


def _row_id(values: Mapping[str, Any]) -> str | None:
    """The id of a row that something is wrong with; None where that is its id."""
    try:
        return _string("id", values.get("id"))
    except _InvalidError:
        return None


def _is_text(value: str) -> bool:
    if "\x00" in value or len(value) > MAX_TEXT_CHARS:
        return False
    return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)


def is_column_name(name: str) -> bool:
    """Whether a further column may be called ``name``."""
    return 0 < len(name) <= _MAX_COLUMN_NAME_CHARS and not name.isspace() and _is_text(name)


def _string(name: str, value: Any) -> str | None:
    if is_nothing(value):
        return None
    if isinstance(value, list | tuple | dict) or (
        name in _URI_COLUMNS and not isinstance(value, str | bytes)
    ):
        raise _InvalidError(name, value, "a string")
    text = value if isinstance(value, str) else as_text(value)
    if not text or text.isspace():
        return None
    if not _is_text(text):
        raise _InvalidError(name, text, _TEXT)
    limit = column_rules(name)["maxLength"]
    if len(text) > limit:
        raise _InvalidError(name, text, f"at most {limit} characters")
    return text


def _number(name: str, value: Any) -> float | None:
    if isinstance(value, str):
        text = value.strip()
        if not text:
            return None
        value = float(text) if len(text) < 400 and _NUMBER.fullmatch(text) else value
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise _InvalidError(name, value, "a number")
    rules = column_rules(name)
    low, high = rules.get("minimum", -math.inf), rules["maximum"]
    above = rules.get("exclusiveMinimum", -math.inf)
    if not (low <= value <= high and value > above):
        bounds = f"above {above:g}" if above > low else f"from {low:g} to {high:g}"
        raise _InvalidError(name, value, f"a finite number {bounds}")
    return float(value)


def _integer(name: str, value: Any) -> int | None:
    if isinstance(value, str):
        text = value.strip()
        digits = re.fullmatch(r"([+-]?\d{1,30})(\.0*)?", text, re.ASCII)
        value = int(digits[1]) if digits else text or None
    if value is None:
        return None
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        value = int(value)
    rules = column_rules(name)
    low, high = rules["minimum"], rules["maximum"]
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _InvalidError(name, value, f"a whole number from {low} to {high}")
    return value


def _items(name: str, value: Any) -> Sequence[Any]:
    """The items of a list, however it is written."""
    if value is None:
        return ()
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                value = None
        if not isinstance(value, list):
            value = [item.strip() for item in text.split(";")] if text else []
        if value and value[-1] == "":
            value = value[:-1]
    elif isinstance(value, int | float | Decimal) and column_type(name)[0] is float:
        value = [value]
    if not isinstance(value, list | tuple):
        raise _InvalidError(name, value, "a list")
    if len(value) > MAX_LIST_ITEMS:
        raise _InvalidError(name, value, f"at most {MAX_LIST_ITEMS} items")
    return value


def _list_of(parse: Callable[[str, Any], Any]) -> Callable[[str, Any], tuple[Any, ...]]:
    def parse_list(name: str, value: Any) -> tuple[Any, ...]:
        items = tuple(parse(name, item) for item in _items(name, value))
        if None in items:
            raise _InvalidError(name, value, "a list without empty items")
        return items

    return parse_list


def _parser_of(name: str) -> Callable[[str, Any], Any]:
    scalar, is_list = column_type(name)
    parse: Callable[[str, Any], Any] = {str: _string, float: _number, int: _integer}[scalar]
    return _list_of(parse) if is_list else parse


_PARSERS: Final = {name: _parser_of(name) for name in MANIFEST_COLUMNS}
_ABSENT: Final = {name: () if column_type(name)[1] else None for name in MANIFEST_COLUMNS}


def _check_sources(fields: Mapping[str, Any]) -> None:
    mixture, target, targets = fields["mixture_uri"], fields["target_uri"], fields["target_uris"]
    interferers, levels = fields["interferer_uris"], fields["snr_db"]
    if mixture is None and target is None and not targets:
        raise _InvalidError("mixture_uri", None, "mixture_uri, or target_uri with interferer_uris")
    if mixture is not None:
        for name in ("target_uri", "target_uris", "interferer_uris"):
            if fields[name]:
                raise _InvalidError(
                    name, fields[name], "either mixture_uri or sources to mix, not both"
                )
        return
    if target is not None and targets:
        raise _InvalidError("target_uris", targets, "either target_uri or target_uris, not both")
    if not interferers:
        raise _InvalidError(
            "interferer_uris", None, "at least one interferer (a clip alone goes into mixture_uri)"
        )
    if fields["reference_uri"] is not None:
        raise _InvalidError(
            "reference_uri", fields["reference_uri"], "none: the target as mixed is the reference"
        )
    if len(levels) > 1 and len(levels) != len(interferers):
        raise _InvalidError(
            "snr_db", list(levels), f"one level, or one for each of {len(interferers)} interferers"
        )


def _check_query(fields: Mapping[str, Any]) -> None:
    names = ("positive_text", "negative_text", "positive_audio_uris", "negative_audio_uris")
    if not any(fields[name] for name in names):
        raise _InvalidError("positive_text", None, f"a query: one of {', '.join(names)}")


def _resolved(name: str, value: Any, folder: str) -> Any:
    try:
        if isinstance(value, tuple):
            return tuple(resolve(folder, item) for item in value)
        return resolve(folder, value)
    except ValueError as err:
        raise _InvalidError(name, value, f"an address that can be read ({err})") from err


def _extra(values: Mapping[str, Any]) -> dict[str, str]:
    """The columns that are not a manifest's, as text."""
    extra: dict[str, str] = {}
    for column, value in values.items():
        if column in _PARSERS or is_nothing(value):
            continue
        name = column.removeprefix(EXTRA_PREFIX)
        if not is_column_name(name):
            raise _InvalidError(
                column[:_MAX_COLUMN_NAME_CHARS],
                value,
                f"a column name of 1 to {_MAX_COLUMN_NAME_CHARS} characters",
            )
        text = _extra_text(column, value)
        if text is None:
            continue
        if name in extra:
            raise _InvalidError(column, value, f"only one of {name} and {EXTRA_PREFIX}{name}")
        extra[name] = text
    if len(extra) > MAX_EXTRA_COLUMNS:
        raise _InvalidError("extra", len(extra), f"at most {MAX_EXTRA_COLUMNS} further columns")
    return extra


def _extra_text(column: str, value: Any) -> str | None:
    if isinstance(value, list | tuple | dict):
        try:
            value = json.dumps(value, ensure_ascii=False, default=as_text)
        except (ValueError, RecursionError) as err:
            raise _InvalidError(column, "…", "a value that is not nested this deeply") from err
    elif not isinstance(value, str):
        value = repr(value) if isinstance(value, float) else as_text(value)
    if not value or value.isspace():
        return None
    if not _is_text(value):
        raise _InvalidError(column, value, _TEXT)
    return str(value)
