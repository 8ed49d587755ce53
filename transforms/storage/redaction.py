"""Credentials kept out of what people read: logs, messages, records, dead letters, reports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

HIDDEN = "***"
_USER = re.compile(r"(?<=://)[^/\s'\"<>]*@")
_PARAMETER = re.compile(r"(?<=[?&])([^\s=&?#'\"<>]+)=[^\s&#'\"<>]+")
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
    return _PARAMETER.sub(rf"\1={HIDDEN}", _USER.sub(f"{HIDDEN}@", text))


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
