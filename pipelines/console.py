"""Shows a run to people: progress, and the table at the end."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from manifests.columns import COARSER, MAX_GROUPS
from manifests.recordings import skipped_line
from pipelines.output_folder import OutputFolder
from pipelines.output_folder.contents import DEAD_LETTERS, RUN, SUMMARY, WINDOWS
from pipelines.runners import Measurements
from terminal import screen
from transforms import storage
from transforms.elements import BROKEN, CHANGED, DOUBLE, GONE, UNFOUND, UNKNOWN
from transforms.storage import Storage, join
from transforms.tables.row_counts import Resumed, RowCounts
from transforms.windows import SCREENED, STEP, UNHEARD
from transforms.writing import NOT_KEPT, OTHER_FORMAT

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
            total: rows, where it is known before they are read.
            snapshot: gives ``done``, ``failed``, ``audio_s``, in ``under_way`` what parts of long
                recordings add up to, and in ``rows`` how many were read.
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

    def _show(self) -> None:
        if self._style == "bar":
            self._show_bar()
        else:
            self._show_lines()

    def _show_bar(self) -> None:
        columns: tuple[ProgressColumn, ...] = (
            BarColumn(),
            TextColumn("{task.fields[ended]} of {task.fields[of]}"),
            _RateColumn(),
            TextColumn("{task.fields[failed]:.0f} failed"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=self._total, of="? clips", ended=0, failed=0, rate=0.0)
            while True:
                stopped = self._stop.wait(_BAR_INTERVAL_S)
                counts = self._snapshot()
                ended = int(counts.get("done", 0) + counts.get("failed", 0))
                total = total_of(counts, self._total)
                bar.update(
                    task,
                    total=total,
                    of="? clips" if total is None else screen.counted(total, "clip"),
                    completed=ended + counts.get("under_way", 0.0),
                    ended=ended,
                    failed=counts.get("failed", 0),
                    rate=self._rate(counts),
                )
                if stopped:
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


def total_of(counts: Mapping[str, float], total: int | None) -> int | None:
    """How many rows there are; None as long as nobody knows.

    Where they were not counted beforehand, they are those that were read, once the first has ended
    or is under way: rows are told apart by their ids, for which all have to be read.
    """
    ended = counts.get("done", 0) + counts.get("failed", 0)
    if total is None and counts.get("rows") and ended + counts.get("under_way", 0.0) > 0:
        return max(int(counts["rows"]), int(ended))
    return total


def line(counts: Mapping[str, float], total: int | None, elapsed_s: float) -> str:
    """The state in words."""
    total = total_of(counts, total)
    failed = int(counts.get("failed", 0))
    ended, part = int(counts.get("done", 0)) + failed, counts.get("under_way", 0.0)
    clips = "clips" if total is None else screen.counted(total, "clip")
    of = screen.counted(ended, "clip") if total is None else f"{ended:,} of {clips}"
    long = f" and {part:.2f} of long ones" if part >= 0.005 else ""
    text = (
        f"{of}{long} after {elapsed_s:.0f} s, {failed} failed, "
        f"{counts.get('audio_s', 0.0) / max(elapsed_s, 1e-9):.1f} s of audio a second"
    )
    if total is not None and 0 < ended + part < total:
        left_s = elapsed_s / (ended + part) * (total - ended - part)
        text += f", about {left_s:.0f} s left"
    return text


NOTHING_TO_DO = "nothing to do: the manifest has no rows"
_SHOWN = ("sdri_db", "clap_score")
_MAX_GROUPS = 12
_SHOWN_FILES = 1
"""Of how many files the rows are looked through for examples; they can be millions."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """A metric over several groups of clips."""

    n: int
    mean: float | None
    std: float | None

    def __str__(self) -> str:
        """Mean ± standard deviation."""
        if self.mean is None:
            return "-"
        return f"{self.mean:.2f}" + ("" if self.std is None else f" ± {self.std:.2f}")


def pooled(groups: Iterable[Mapping[str, Any]]) -> Pooled:
    """Mean and sample standard deviation of all clips, from those of their groups."""
    parts = [(g["n"], g["mean"], g["std"] or 0.0) for g in groups if g["n"]]
    n = sum(part[0] for part in parts)
    if n == 0:
        return Pooled(n=0, mean=None, std=None)
    mean = sum(count * value for count, value, _ in parts) / n
    if n == 1:
        return Pooled(n=1, mean=mean, std=None)
    squares = sum((c - 1) * s**2 + c * (value - mean) ** 2 for c, value, s in parts)
    return Pooled(n=n, mean=mean, std=math.sqrt(squares / (n - 1)))


def read_summary(storage: Storage, uri: str) -> list[dict[str, Any]]:
    """Lines of a summary table."""
    lines: list[dict[str, Any]] = []
    for file in storage.list_files(uri, ".parquet"):
        lines.extend(pq.read_table(io.BytesIO(storage.read_bytes(file))).to_pylist())
    return lines


def coarser_lines(folder: OutputFolder) -> list[str]:
    """A line where the summary has coarser groups than the rows."""
    lines = []
    for file in folder.storage.list_files(folder.place(SUMMARY), ".parquet"):
        metadata = pq.read_schema(io.BytesIO(folder.storage.read_bytes(file))).metadata or {}
        if said := metadata.get(COARSER.encode()):
            how = ", ".join(f"{column} is {what}" for column, what in json.loads(said).items())
            lines.append(f"the summary has more than {MAX_GROUPS:,} groups without this: {how}")
    return lines


def separated_lines(
    folder: OutputFolder, row_counts: RowCounts, measured: Measurements, *, wall_s: float
) -> list[str]:
    """The table of a run of ``pipelines.separate``, and how much was done how fast."""
    audio_s, on_average = measured.audio_s, measured.line()
    rate = f", {audio_s / wall_s:.1f} times real time" if wall_s > 0 and row_counts.stems else ""
    summary = read_summary(folder.storage, folder.place(SUMMARY))
    clips, audio = screen.counted(row_counts.stems, "clip"), f"{audio_s:.0f}"
    if 0.0 < audio_s < 9.5:
        audio = f"{audio_s:.2g}"
    text = [table_text(summary)] if summary else []
    text.append(
        NOTHING_TO_DO
        if row_counts.rows == 0
        else f"{clips} ({audio} s of audio) in {wall_s:.0f} s{rate}; "
        f"{row_counts.finished_before:,} finished before; {row_counts.dead_letters:,} failed"
    )
    text += reasons(row_counts, folder)
    if on_average:
        text.append(on_average)
    if left := measured.counters.get(f"WriteStems/{NOT_KEPT}"):
        were = screen.counted(left, "stem was", "stems were")
        text.append(f"{were} measured and not kept (--keep_stems)")
    if left := measured.counters.get(f"{STEP}/{SCREENED}"):
        were = screen.counted(left, "stem is", "stems are")
        text.append(f"{were} not plausible, and not separated (--screen)")
    if lost := measured.counters.get(f"{STEP}/{UNHEARD}"):
        of = screen.counted(lost, "recording", "recordings")
        text.append(f"{of} of finished rows could not be heard, and {WINDOWS} has no file for that")
    if other := measured.counters.get(f"WriteStems/{OTHER_FORMAT}"):
        text.append(
            f"{screen.counted(other, 'stem or residual is', 'stems or residuals are')} not what "
            "--stem_format says, which cannot hold them; the column stem_note says why"
        )
    return text


def done_lines(
    folder: OutputFolder, row_counts: RowCounts, without_rows: str = NOTHING_TO_DO
) -> list[str]:
    """How many rows a job did that does not separate, and why others failed."""
    rows = screen.counted(row_counts.rows, "row")
    done = f"{row_counts.stems:,} of {rows} done, {row_counts.dead_letters:,} failed"
    if row_counts.finished_before:
        done += f", {row_counts.finished_before:,} finished before"
    return [done if row_counts.rows else without_rows, *reasons(row_counts, folder)]


def last_lines(
    folder: OutputFolder, row_counts: RowCounts, measured: Measurements, named: Mapping[str, str]
) -> list[str]:
    """What storage cost, and where to look next.

    Args:
        folder: of the run.
        row_counts: of the run.
        measured: by the run.
        named: what in the folder is worth a look, by what it is called.
    """
    text = coarser_lines(folder)
    if repeated := storage.repeated(measured.counters):
        were = screen.counted(
            repeated, "request to storage failed and was", "requests to storage failed and were"
        )
        text.append(f"{were} repeated; see {RUN}")
    last = {"failures": DEAD_LETTERS} if row_counts.dead_letters else {"run": RUN}
    return text + places(folder.storage, folder.uri, {**named, **last})


def reasons(row_counts: RowCounts, folder: OutputFolder) -> list[str]:
    """A line for each reason of which rows failed: how many, and what was said of one of them."""
    examples: dict[str, str] = {}
    for uri in folder.storage.list_files(folder.place(DEAD_LETTERS), ".parquet")[:_SHOWN_FILES]:
        columns = ["stage", "error_type", "message"]
        table = pq.read_table(io.BytesIO(folder.storage.read_bytes(uri)), columns=columns)
        for stage, error_type, message in zip(*table.to_pydict().values(), strict=True):
            examples.setdefault(f"{stage}/{error_type}", message)
    return [
        f"  {count} of {reason}"
        + (f": {screen.one_line(examples[reason])}" if reason in examples else "")
        for reason, count in row_counts.by_reason.items()
    ]


_LEFT = {
    CHANGED: "{n} finished before with other content, done again",
    GONE: "{n} no longer in the manifest, taken out of the tables (their stems stay)",
    DOUBLE: "{n} found twice in the tables, kept once",
    BROKEN: "{n} with a stem that is missing or cut, taken out of the tables and done again where "
    "the manifest has them",
    UNFOUND: "{n} whose segments or embeddings are not all there, taken from the journal, or else "
    "done again where the manifest has them",
    UNKNOWN: "{n} of which nothing says any more what they were made with, done again",
}


def resumed_lines(resumed: Resumed) -> list[str]:
    """What became of what earlier attempts had left."""
    lines = [
        f"{uri} could not be read ({reason}): its rows are done again"
        for uri, reason in resumed.damaged.items()
    ]
    for why, count in resumed.left.items():
        names = resumed.named.get(why, ())
        more = f" and {count - len(names)} more" if count > len(names) else ""
        said = _LEFT[why].format(n=screen.counted(count, "row"))
        lines.append(f"{said}: {', '.join(map(screen.one_line, names))}{more}")
    if resumed.others:
        rows = screen.counted(
            resumed.others,
            "finished row that is not in this manifest stays",
            "finished rows that are not in this manifest stay",
        )
        lines.append(rows)
    if resumed.letters:
        stay = screen.counted(resumed.letters, "dead letter stays", "dead letters stay")
        lines.append(f"{stay} of rows that this run did not read")
    return lines


def skipped_lines(row_counts: RowCounts) -> list[str]:
    """What was passed over in folders and shards of recordings."""
    return [skipped_line(row_counts.skipped)] if row_counts.skipped else []


def places(storage: Storage, output: str, named: Mapping[str, str]) -> list[str]:
    """A line for each of the files and folders in the output folder that is there.

    Args:
        storage: how files are reached.
        output: the folder.
        named: names in it, by what they are called.
    """
    uris = {label: join(output, name) for label, name in named.items()}
    return [f"{label}: {uri}" for label, uri in uris.items() if storage.exists(uri)]


def table_text(lines: list[dict[str, Any]]) -> str:
    """The lines of a summary as a table; whatever a dataset is called is text in it."""
    console = Console(file=io.StringIO(), width=100, record=True, markup=False, emoji=False)
    console.print(_table(lines))
    return console.export_text().rstrip()


def _table(lines: list[dict[str, Any]]) -> Table:
    table = Table(
        "dataset", "query", "n", "SDRi dB", "CLAPScore", box=None, pad_edge=False, expand=False
    )
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for entry in lines:
        key = (entry["dataset"] or "-", f"{entry['query_type']} {entry['polarity']}")
        groups.setdefault(key, {}).setdefault(entry["metric"], []).append(entry)
    for key in sorted(groups)[:_MAX_GROUPS]:
        table.add_row(*map(screen.one_line, key), *_cells(groups[key]))
    if len(groups) != 1:
        everything: dict[str, list[dict[str, Any]]] = {}
        for entry in lines:
            everything.setdefault(entry["metric"], []).append(entry)
        table.add_row("all", "", *_cells(everything))
    return table


def _cells(by_metric: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """How many clips there are, and each metric with the number of those that it is over."""
    some = by_metric.get(_SHOWN[0], [])
    total = sum(entry["n"] + entry["n_undefined"] for entry in some)
    means = [pooled(by_metric.get(metric, [])) for metric in _SHOWN]
    return [
        str(total),
        *(f"{each} (n = {each.n})" if 0 < each.n < total else str(each) for each in means),
    ]
