"""Configurations as JSON, in weight files, which anybody may have written."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from typing import Any, TypeVar

_T = TypeVar("_T")
_MAX_INTEGER = 10_000_000
_MAX_LAYERS = 200
_COUNTS = frozenset({"depths", "num_layers", "num_masker_layers"})
_MAX_ITEMS = 50
_MAX_SHOWN_CHARS = 100


def to_json(config: Any) -> str:
    """Serialises a configuration dataclass as compact, key-sorted JSON."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True)


def from_json(cls: type[_T], text: str) -> _T:
    """Rebuilds the configuration that :func:`to_json` wrote.

    Raises:
        ValueError: the text is not JSON, names a field that ``cls`` does not have, or has a value
            of another type or size than a network can have.
    """
    try:
        value = json.loads(text)
    except RecursionError as err:
        raise ValueError("values are nested too deeply") from err
    return _build(cls, value, cls.__name__)


def _build(cls: type[_T], value: Any, where: str) -> _T:
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise ValueError(f"{where}: unknown fields {unknown}; known: {sorted(hints)}")
    return cls(
        **{name: _convert(hints[name], item, f"{where}.{name}") for name, item in value.items()}
    )


def _convert(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list) or not 0 < len(value) <= _MAX_ITEMS:
            raise _wrong(where, f"a list of 1 to {_MAX_ITEMS} items", value)
        return tuple(_convert(typing.get_args(hint)[0], item, where) for item in value)
    return _scalar(hint, value, where)


def _scalar(hint: type, value: Any, where: str) -> Any:
    if hint is int:
        top = _MAX_LAYERS if where.rpartition(".")[2] in _COUNTS else _MAX_INTEGER
        if type(value) is not int or not 0 < value <= top:
            raise _wrong(where, f"a whole number from 1 to {top}", value)
    elif hint is float:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise _wrong(where, "a finite number", value)
    elif type(value) is not hint:
        raise _wrong(where, f"a {hint.__name__}", value)
    return value


def _wrong(where: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"{where}: expected {expected}, found {repr(value)[:_MAX_SHOWN_CHARS]}")
