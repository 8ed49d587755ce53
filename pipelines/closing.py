"""What is said when a run has ended: a short table and where to look."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from model import plain_text, registry
from pipelines.dead_letters import reasons
from pipelines.measurements import Measurements
from pipelines.plan import DEAD_LETTERS, METRICS, SUMMARY, Plan
from pipelines.run_record import FILE
from transforms import retries
from transforms.books import Books
from transforms.storage import Storage, join
from transforms.writing import OTHER_FORMAT, STEMS_FOLDER

NOTHING_TO_DO = "nothing to do: the manifest has no rows"
_SHOWN = ("sdri_db", "clap_score")
_MAX_GROUPS = 12


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


def closing_lines(plan: Plan, books: Books, measured: Measurements, *, wall_s: float) -> list[str]:
    """The table of a run and the paths to open next."""
    audio_s, on_average = measured.audio_s, measured.line()
    rate = f", {audio_s / wall_s:.1f} times real time" if wall_s > 0 and books.stems else ""
    summary = read_summary(plan.storage, plan.uri(SUMMARY))
    text = [table_text(summary)] if summary else []
    text.append(
        NOTHING_TO_DO
        if books.rows == 0
        else f"{books.stems} clips ({audio_s:.0f} s of audio) in {wall_s:.0f} s{rate}; "
        f"{books.finished_before} finished before; {books.dead_letters} failed"
    )
    text += reasons(books, plan.storage, plan.config.output)
    if on_average:
        text.append(on_average)
    if other := measured.counters.get(f"WriteStems/{OTHER_FORMAT}"):
        text.append(
            f"{other} stems or residuals are float WAV, since FLAC cannot hold them; "
            "the column stem_note says why"
        )
    if repeated := retries.repeated(measured.counters):
        text.append(f"{repeated} requests to storage failed and were repeated; see run.json")
    if summary and registry.default_scorer(plan.config.model) == plan.config.scorer == "own":
        text.append("CLAPScore is by the model's own CLAP, which is circular; see --scorer.")
    last = {"failures": DEAD_LETTERS} if books.dead_letters else {"run": FILE}
    named = {"listen": STEMS_FOLDER, "numbers": METRICS, **last}
    return text + places(plan.storage, plan.config.output, named)


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
        table.add_row(*map(plain_text.one_line, key), *_cells(groups[key]))
    if len(groups) != 1:
        everything: dict[str, list[dict[str, Any]]] = {}
        for entry in lines:
            everything.setdefault(entry["metric"], []).append(entry)
        table.add_row("all", "", *_cells(everything))
    return table


def _cells(by_metric: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    some = by_metric.get(_SHOWN[0], [])
    total = sum(entry["n"] + entry["n_undefined"] for entry in some)
    return [str(total), *(str(pooled(by_metric.get(metric, []))) for metric in _SHOWN)]
