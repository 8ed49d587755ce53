"""How far a local run is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

LINE_INTERVAL_S = 10.0
REMOTE_LINE_INTERVAL_S = 60.0
_BAR_INTERVAL_S = 0.25
Snapshot = Callable[[], Mapping[str, float]]


class ProgressDisplay:
    """Shows counts while the body of a ``with`` statement runs, on standard error."""

    def __init__(
        self,
        style: str,
        total: int | None,
        snapshot: Snapshot,
        interval_s: float = LINE_INTERVAL_S,
    ) -> None:
        """Nothing is shown yet.

        Args:
            style: ``auto``, ``bar``, ``log`` or ``none``.
            total: rows, where it is known.
            snapshot: gives ``done``, ``failed`` and ``audio_s``.
            interval_s: between lines.
        """
        if style == "auto":
            style = "bar" if sys.stderr.isatty() else "log"
        self._style, self._total, self._snapshot = style, total, snapshot
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)
        self._started_s = 0.0

    def __enter__(self) -> ProgressDisplay:
        """Begins to show."""
        self._started_s = time.monotonic()
        if self._style != "none":
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Shows the last state and ends."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_running(self) -> bool:
        """Whether anything more will be shown."""
        return self._thread.is_alive()

    def _show(self) -> None:
        if self._style == "bar":
            self._show_bar()
        else:
            self._show_lines()

    def _show_bar(self) -> None:
        columns: tuple[ProgressColumn, ...] = (
            BarColumn(),
            TextColumn("{task.completed:.0f} of {task.fields[of]} clips"),
            _RateColumn(),
            TextColumn("{task.fields[failed]:.0f} failed"),
            TimeRemainingColumn(),
        )
        of = "?" if self._total is None else str(self._total)
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=self._total, of=of, failed=0, rate=0.0)
            while True:
                ended = self._stop.wait(_BAR_INTERVAL_S)
                counts = self._snapshot()
                bar.update(
                    task,
                    completed=counts.get("done", 0) + counts.get("failed", 0),
                    failed=counts.get("failed", 0),
                    rate=self._rate(counts),
                )
                if ended:
                    return

    def _show_lines(self) -> None:
        while not self._stop.wait(self._interval_s):
            sys.stderr.write(line(self._snapshot(), self._total, self._elapsed_s()) + "\n")
            sys.stderr.flush()

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def _rate(self, counts: Mapping[str, float]) -> float:
        return counts.get("audio_s", 0.0) / max(self._elapsed_s(), 1e-9)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.fields['rate']:.1f} s of audio a second")


def line(counts: Mapping[str, float], total: int | None, elapsed_s: float) -> str:
    """The state in words."""
    done, failed = int(counts.get("done", 0)), int(counts.get("failed", 0))
    of = f" of {total}" if total is not None else ""
    text = (
        f"{done + failed}{of} clips after {elapsed_s:.0f} s, {failed} failed, "
        f"{counts.get('audio_s', 0.0) / max(elapsed_s, 1e-9):.1f} s of audio a second"
    )
    if total is not None and 0 < done + failed < total:
        left_s = elapsed_s / (done + failed) * (total - done - failed)
        text += f", about {left_s:.0f} s left"
    return text
