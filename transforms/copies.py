"""Copies of what can only be read from its start, made once to be read anywhere.

A range of a compressed member of an archive is decompressed from the member's start, and a part of
a recording in some formats is decoded from the recording's: whoever reads it part by part would
take time that grows with the square of its length.
"""

from __future__ import annotations

import dataclasses
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO

KEPT_COPIES = 2
"""Copies that a process keeps for the next row; each takes its size in the temporary folder, has
no name there, and is gone with the process."""


@dataclasses.dataclass(slots=True, eq=False)
class _Copy:
    filling: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    file: IO[bytes] | None = None


_LOCK = threading.Lock()
_COPIES: dict[tuple[str, str, int], _Copy] = {}


@contextmanager
def copied(
    what: str, uri: str, num_bytes: int, fill: Callable[[IO[bytes]], None]
) -> Iterator[BinaryIO]:
    """Opens a local copy for reading, which is made if it is not there.

    Args:
        what: was made of the file, in a word: one file can have several copies.
        uri: the file.
        num_bytes: its size; another size under the same URI is another file.
        fill: writes all of the copy into an empty file.

    Raises:
        OSError: it cannot be read, or the temporary folder is full.
    """
    copy = _latest((what, uri, num_bytes))
    with copy.filling:
        if copy.file is None:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - it is kept
            try:
                fill(file)
                file.flush()
            except BaseException:
                file.close()
                raise
            copy.file = file
    # Another description of the same file, with a place of its own.
    with open(f"/proc/self/fd/{copy.file.fileno()}", "rb") as again:
        yield again


def _latest(key: tuple[str, str, int]) -> _Copy:
    """The copy under a key, which becomes the last one to be dropped."""
    with _LOCK:
        copy = _COPIES.pop(key, None) or _Copy()
        _COPIES[key] = copy
        while len(_COPIES) > KEPT_COPIES:
            _COPIES.pop(next(iter(_COPIES)))
        return copy
