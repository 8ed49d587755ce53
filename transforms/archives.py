"""Large members of archives (``zip://…::…``, ``tar://…::…``), unpacked once to be read anywhere.

A range of a compressed member is decompressed from the member's start: a recording that is read
range by range would take time that grows with the square of its length.
"""

from __future__ import annotations

import dataclasses
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO

KEPT_COPIES = 2
"""Copies that a process keeps for the next row; each takes the member's size in the temporary
folder, has no name there, and is gone with the process."""


@dataclasses.dataclass(slots=True, eq=False)
class _Copy:
    filling: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    file: IO[bytes] | None = None


_LOCK = threading.Lock()
_COPIES: dict[tuple[str, int], _Copy] = {}


@contextmanager
def unpacked(uri: str, num_bytes: int, unpack: Callable[[IO[bytes]], None]) -> Iterator[BinaryIO]:
    """A member as a local file that is open for reading.

    Args:
        uri: the chain.
        num_bytes: size of the member; another size under the same URI is another member.
        unpack: writes all of the member into an empty file.

    Raises:
        OSError: it cannot be read, or the temporary folder is full.
    """
    copy = _latest((uri, num_bytes))
    with copy.filling:
        if copy.file is None:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - it is kept
            try:
                unpack(file)
                file.flush()
            except BaseException:
                file.close()
                raise
            copy.file = file
    # Another description of the same file, with a place of its own.
    with open(f"/proc/self/fd/{copy.file.fileno()}", "rb") as again:
        yield again


def _latest(key: tuple[str, int]) -> _Copy:
    """The copy of a member, which becomes the last one to be dropped."""
    with _LOCK:
        copy = _COPIES.pop(key, None) or _Copy()
        _COPIES[key] = copy
        while len(_COPIES) > KEPT_COPIES:
            _COPIES.pop(next(iter(_COPIES)))
        return copy
