"""A file system that fails as it is told: ``faulty://``, over files in memory."""

from __future__ import annotations

import dataclasses
import errno
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from faults import Turns


class StatusError(Exception):
    """What a web store's client raises."""

    def __init__(self, status: int, path: str) -> None:
        super().__init__(f"the store answered {status} for {path}")
        self.status = status


@dataclasses.dataclass(slots=True, kw_only=True)
class Fault(Turns):
    """What happens to reads, or writes, of files whose path the pattern finds.

    Attributes:
        kind: ``slow``; ``status``; ``reset``, a lost connection; ``short``, half of what a read
            should give; ``full``, no space left.
        status: of ``status``.
        mode: ``r`` or ``w``.
    """

    kind: str
    status: int = 503
    mode: str = "r"

    def due(self, path: str, mode: str) -> bool:
        """Whether this operation fails."""
        return self.mode == mode and self.takes(path)


class FaultyFileSystem(MemoryFileSystem):
    """Files in memory, behind faults; all instances share both."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    faults: ClassVar[list[Fault]] = []
    reads: ClassVar[Counter[str]] = Counter()
    lock = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        found: str = super()._strip_protocol(path.removeprefix("faulty://"))
        return found

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        fault = self._before(path, "r")
        data: bytes = super().cat_file(path, *args, **kwargs)
        return data[: len(data) // 2] if fault is not None and fault.kind == "short" else data

    def pipe_file(self, path: str, *args: Any, **kwargs: Any) -> None:
        self._before(path, "w")
        super().pipe_file(path, *args, **kwargs)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        self._before(path, mode[0])
        return super()._open(path, mode, **kwargs)

    def _before(self, path: str, mode: str) -> Fault | None:
        path = self._strip_protocol(path)
        with self.lock:
            if mode == "r":
                self.reads[path] += 1
            fault = next((fault for fault in self.faults if fault.due(path, mode)), None)
        if fault is not None:
            _fail(fault, path)
        return fault


def _fail(fault: Fault, path: str) -> None:
    if fault.kind == "slow":
        time.sleep(0.2)
    elif fault.kind == "status":
        raise StatusError(fault.status, path)
    elif fault.kind == "reset":
        raise ConnectionResetError(errno.ECONNRESET, "connection reset by peer", path)
    elif fault.kind == "full":
        raise OSError(errno.ENOSPC, "no space left", path)


def begin(folder: Path) -> str:
    """Registers the file system, empties it and fills it with a folder; gives the folder's URI."""
    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
    for shared in (FaultyFileSystem.store, FaultyFileSystem.faults, FaultyFileSystem.reads):
        shared.clear()
    FaultyFileSystem.pseudo_dirs[:] = [""]
    files = FaultyFileSystem()
    for path in folder.iterdir():
        files.pipe_file(f"/in/{path.name}", path.read_bytes())
    return "faulty://in"


def copy(uri: str, folder: Path) -> Path:
    """A copy of a run's output, made while nothing fails."""
    FaultyFileSystem.faults.clear()
    root = FaultyFileSystem._strip_protocol(uri)
    for path, content in FaultyFileSystem.store.items():
        if path.startswith(f"{root}/"):
            target = folder / path.removeprefix(f"{root}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.getvalue())
    return folder
