"""How far a local run is, for the progress display; the row_counts are kept elsewhere.

Counts of this process, and of worker processes that were told of a folder to leave theirs in. A
bundle that is tried again counts twice here: nothing is decided by these numbers.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

FOLDER_VARIABLE = "CLAPSEP_TALLY_DIR"
_INTERVAL_S = 0.5


class _Tally:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: defaultdict[str, float] = defaultdict(int)
        self._written_at = 0.0

    def add(self, counts: Mapping[str, float]) -> None:
        with self._lock:
            for name, value in counts.items():
                self._counts[name] += value
            folder = os.environ.get(FOLDER_VARIABLE)
            if folder and time.monotonic() - self._written_at >= _INTERVAL_S:
                self._written_at = time.monotonic()
                self._write(Path(folder))

    def _write(self, folder: Path) -> None:
        path = folder / f"{os.getpid()}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self._counts), encoding="ascii")
        temporary.replace(path)

    def snapshot(self) -> dict[str, float]:
        with self._lock:
            return dict(self._counts)

    def clear(self) -> None:
        with self._lock:
            self._counts.clear()


_TALLY = _Tally()


def add(**counts: float) -> None:
    """Adds to the counts of this process."""
    _TALLY.add(counts)


def clear() -> None:
    """Begins at zero."""
    _TALLY.clear()


def snapshot(folder: str | None = None) -> Mapping[str, float]:
    """Counts of this process, or of all processes that left theirs in ``folder``."""
    if folder is None:
        return _TALLY.snapshot()
    total: Counter[str] = Counter()
    for path in Path(folder).glob("*.json"):
        total.update(json.loads(path.read_text(encoding="ascii")))
    return total
