"""Counts what became of every row, from the rows themselves and not by a runner's counters.

Counts of this process, and of worker processes that were told of a folder to leave theirs in. A
bundle that is tried again counts twice here: nothing is decided by these numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.metrics.metric import Metrics
from apache_beam.pvalue import PCollection
from apache_beam.transforms.combiners import ToDict

from manifests.shards import Skipped
from transforms.elements import Damage, Failure, Leaving, MetricsRow
from transforms.storage import Storage

FOLDER_VARIABLE = "CLAPSEP_TALLY_DIR"
_INTERVAL_S = 0.5
OUT, AUDIO_MSEC = "out", "audio_msec"
"""Counters of a step that finishes rows: how many, and their audio in milliseconds."""


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
                with contextlib.suppress(OSError):  # a full disk: the display stands still, no more
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


def done(step: str, audio_s: float) -> None:
    """Counts a row that is done, here and in the counters of the runner.

    Args:
        step: which finishes rows; its counters are ``out`` and ``audio_msec``.
        audio_s: of the row.
    """
    Metrics.counter(step, OUT).inc()
    Metrics.counter(step, AUDIO_MSEC).inc(round(1_000 * audio_s))
    add(done=1, audio_s=audio_s)


def under_way(rows: float, audio_s: float) -> None:
    """Counts parts of rows that take long; they are taken back, negative, once the rows end.

    Args:
        rows: such as 0.1 for a tenth of a row.
        audio_s: of that part.
    """
    add(under_way=rows, audio_s=audio_s)


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


ROWS = "rows"
FINISHED_BEFORE = "finished_before"
STEMS = "stems"
DEAD = "dead_letters"
RECOVERED = "recovered"
OTHERS = "others"
LETTERS = "letters"
LEFT = "left"
NAMED = "named"
DAMAGED = "damaged"
SKIPPED = "skipped"
METRICS_FILES = "metrics_files"
SEGMENTS, SEGMENTS_FILES = "segments", "segments_files"
EMBEDDINGS, EMBEDDINGS_FILES = "embeddings", "embeddings_files"
DEAD_LETTER_FILES = "dead_letter_files"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RowCounts:
    """Counts of a run.

    Attributes:
        rows: of the manifest.
        finished_before: of those, that an earlier run had finished.
        stems: written by this run.
        dead_letters: rows that failed.
        recovered: rows of metrics that an earlier run had left in its journal only.
        metrics_written: rows in this run's files of metrics.
        segments: that those rows speak of.
        segments_written: rows in this run's files of segments.
        embeddings: of stems, that those rows have.
        embeddings_written: rows in this run's files of embeddings.
        dead_letters_written: rows in this run's files of dead letters, without those that stay.
        by_reason: dead letters by ``stage/error_type``.
        skipped: names in folders and shards that were passed over, by the reason.
    """

    rows: int
    finished_before: int
    stems: int
    dead_letters: int
    recovered: int
    metrics_written: int
    segments: int = 0
    segments_written: int = 0
    embeddings: int = 0
    embeddings_written: int = 0
    dead_letters_written: int
    by_reason: Mapping[str, int]
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def balanced(self) -> bool:
        """Whether every row is accounted for once, in the counts and in the files."""
        return (
            self.rows == self.finished_before + self.stems + self.dead_letters
            and self.metrics_written == self.stems + self.recovered
            and self.segments_written == self.segments
            and self.embeddings_written == self.embeddings
            and self.dead_letters_written == self.dead_letters
        )

    @property
    def failure_rate(self) -> float:
        """Dead letters over rows; 0 for an empty manifest."""
        return self.dead_letters / self.rows if self.rows else 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """What became of what earlier runs had left.

    Attributes:
        others: finished rows that stay and are not in this manifest.
        letters: dead letters that stay, about rows that are not in it.
        left: rows that left the tables, by reason.
        named: ids of some of them, by reason.
        damaged: files that could not be read, and why.
    """

    others: int
    letters: int
    left: Mapping[str, int]
    named: Mapping[str, tuple[str, ...]]
    damaged: Mapping[str, str]


@dataclasses.dataclass(eq=False)
class WriteRowCounts(beam.PTransform[Any, Any]):
    """Counts rows and writes the counts.

    In: PCollections by the names above; those of files hold ``(uri, number of rows)``. Out: the URI
    of the file.

    Attributes:
        uri: the JSON file to write.
        storage: how it is reached.
    """

    uri: str
    storage: Storage

    def expand(self, counted: Mapping[str, PCollection[Any]]) -> PCollection[str]:
        """Counts each PCollection and writes the counts."""
        entries = [
            pcoll | f"Enter_{name}" >> beam.Map(_entry, name).with_output_types(tuple[str, int])
            for name, pcoll in counted.items()
        ]
        return (
            entries
            | "Together" >> beam.Flatten()
            | "Add" >> beam.CombinePerKey(sum)
            | "Gather" >> ToDict()
            | "Write" >> beam.Map(_write, self.uri, self.storage).with_output_types(str)
        )


def _entry(element: Any, name: str) -> tuple[str, int]:
    if isinstance(element, Failure):
        return f"{name}/{element.stage}/{element.error_type}", 1
    if isinstance(element, Leaving):
        return f"{name}/{element.why}", 1
    if isinstance(element, Damage):
        return f"{name}/{json.dumps([element.uri, element.reason])}", 1
    if name == NAMED:
        return f"{name}/{element}", 1
    if isinstance(element, Skipped):
        return f"{name}/{element.why}", element.count
    if isinstance(element, MetricsRow) and name == SEGMENTS:
        return name, len(element.segments)
    return name, element[1] if name in _FILES else 1


_FILES = frozenset((METRICS_FILES, SEGMENTS_FILES, EMBEDDINGS_FILES, DEAD_LETTER_FILES))


def _write(counts: Mapping[str, int], uri: str, storage: Storage) -> str:
    storage.write_bytes(uri, json.dumps(counts, sort_keys=True).encode())
    return uri


def read_row_counts(storage: Storage, uri: str) -> RowCounts:
    """The row_counts of a run that has ended."""
    counts: dict[str, int] = json.loads(storage.read_bytes(uri))
    by_reason = _of(counts, DEAD)
    # Rows that did not validate are counted among the rows like all others.
    rows = sum(count for name, count in counts.items() if name.split("/", 1)[0] == ROWS)
    return RowCounts(
        rows=rows,
        finished_before=counts.get(FINISHED_BEFORE, 0),
        stems=counts.get(STEMS, 0),
        dead_letters=sum(by_reason.values()),
        recovered=counts.get(RECOVERED, 0),
        metrics_written=counts.get(METRICS_FILES, 0),
        segments=counts.get(SEGMENTS, 0),
        segments_written=counts.get(SEGMENTS_FILES, 0),
        embeddings=counts.get(EMBEDDINGS, 0),
        embeddings_written=counts.get(EMBEDDINGS_FILES, 0),
        dead_letters_written=counts.get(DEAD_LETTER_FILES, 0) - counts.get(LETTERS, 0),
        by_reason=by_reason,
        skipped=_of(counts, SKIPPED),
    )


def read_resumed(storage: Storage, uri: str) -> Resumed:
    """What the row_counts of a run say of earlier ones."""
    counts: dict[str, int] = json.loads(storage.read_bytes(uri))
    named: dict[str, tuple[str, ...]] = {}
    for name in _of(counts, NAMED):
        why, _, row_id = name.partition("/")
        named[why] = (*named.get(why, ()), row_id)
    damaged = dict(json.loads(text) for text in _of(counts, DAMAGED))
    return Resumed(
        others=counts.get(OTHERS, 0),
        letters=counts.get(LETTERS, 0),
        left=_of(counts, LEFT),
        named=named,
        damaged=damaged,
    )


def _of(counts: Mapping[str, int], kind: str) -> dict[str, int]:
    """The counts of one kind, by what follows its name."""
    start = f"{kind}/"
    found = sorted(name for name in counts if name.startswith(start))
    return {name.removeprefix(start): counts[name] for name in found}
