"""Local files behind a protocol of their own, of which one read in a hundred fails."""

from __future__ import annotations

import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from fsspec.spec import AbstractFileSystem

FAIL_EVERY = 100
FAULTS = ("lost", "busy", "short", "refused")


class FaultyFiles(AbstractFileSystem):
    """Reads that fail by turns: connection lost, 503, cut short (these pass), and refused."""

    protocol = "faulty"
    _lock: ClassVar[threading.Lock] = threading.Lock()
    _reads: ClassVar[int] = 0
    _faults: ClassVar[Counter[str]] = Counter()

    @classmethod
    def begin(cls) -> None:
        """Counts from zero."""
        with cls._lock:
            cls._reads = 0
            cls._faults.clear()

    @classmethod
    def counts(cls) -> dict[str, int]:
        """How often which fault was made."""
        with cls._lock:
            return dict(cls._faults)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, size and type."""
        name = self._strip_protocol(path)
        return {"name": name, "size": os.stat(name).st_size, "type": "file"}

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """The content, or a fault.

        Raises:
            OSError: it is this read's turn to fail.
        """
        data = Path(self._strip_protocol(path)).read_bytes()[start:end]
        fault = self._next_fault()
        if fault == "lost":
            raise ConnectionResetError("made to fail: connection lost")
        if fault == "busy":
            raise _BusyError("made to fail: 503")
        if fault == "refused":
            raise PermissionError("made to fail: 403")
        return data[: len(data) // 2] if fault == "short" else data

    @classmethod
    def _next_fault(cls) -> str | None:
        with cls._lock:
            cls._reads += 1
            turn, left = divmod(cls._reads, FAIL_EVERY)
            if left:
                return None
            fault = FAULTS[turn % len(FAULTS)]
            cls._faults[fault] += 1
            return fault


class _BusyError(OSError):
    status = 503
