"""The summary table: what a run gave, by dataset and kind of query."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import PCollection
from numpy.typing import NDArray

from manifests.columns import METRIC_COLUMNS, SUMMARY_SCHEMA
from manifests.row import SCHEMA_VERSION
from model.bootstrap import Summary, design_effect, summarise
from transforms.elements import MetricsRow, TableRow
from transforms.storage import Storage
from transforms.tables import WriteTable

MAX_KEPT = 20_000
"""Up to so many clips of a group, everything is computed from all values; beyond, mean and standard
deviation are, the median comes from a sample that depends on the names of recordings and on ids
alone, and the interval is as wide as the recordings of that sample say."""
_NORMAL_95 = 1.959964
Values = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The clips that a line of the summary is about."""

    dataset: str | None
    split: str | None
    query_type: str
    polarity: str
    n_shots: int
    n_sources: int | None
    input_snr_db: float | None
    model: str | None
    model_sha256: str | None
    scorer_sha256: str | None

    @property
    def key(self) -> str:
        """Stable name."""
        return json.dumps(dataclasses.astuple(self))


def group_of(row: MetricsRow) -> Group:
    """The group of a clip."""
    names = {field.name for field in dataclasses.fields(Group)} - {"dataset", "split"}
    values = {name: row.values[name] for name in names}
    return Group(dataset=row.dataset, split=row.split, **values)


class _Moments:
    """What is known of the clips of a group, in bounded memory; merges in any order."""

    def __init__(self) -> None:
        self.total = 0
        self.count = np.zeros(len(METRIC_COLUMNS))
        self.sum = np.zeros(len(METRIC_COLUMNS))
        self.sum_squared = np.zeros(len(METRIC_COLUMNS))
        self.kept: list[_Kept] = []

    def add(self, clip: _Kept) -> None:
        self.total += 1
        defined = np.isfinite(clip.values)
        known = np.where(defined, clip.values, 0.0)
        self.count += defined
        self.sum += known
        self.sum_squared += known**2
        self.kept.append(clip)
        self._cut(2 * MAX_KEPT)

    def merge(self, other: _Moments) -> None:
        self.total += other.total
        self.count += other.count
        self.sum += other.sum
        self.sum_squared += other.sum_squared
        self.kept.extend(other.kept)
        self._cut(2 * MAX_KEPT)

    def sample(self) -> list[_Kept]:
        """Clips in an order that follows from the names of their recordings and from their ids."""
        self._cut(MAX_KEPT)
        self.kept.sort(key=_order)
        return self.kept

    def _cut(self, limit: int) -> None:
        if len(self.kept) > limit:
            self.kept.sort(key=_order)
            del self.kept[MAX_KEPT:]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Kept:
    """A clip: ``order`` puts the clips of a recording together; ``values`` float64[metrics]."""

    order: bytes
    recording: str | None
    values: Values


def _order(kept: _Kept) -> bytes:
    return kept.order


class _SummariseFn(beam.CombineFn):
    def create_accumulator(self) -> _Moments:
        return _Moments()

    def add_input(self, moments: _Moments, clip: _Kept) -> _Moments:
        moments.add(clip)
        return moments

    def merge_accumulators(self, accumulators: Iterable[_Moments]) -> _Moments:
        merged = _Moments()
        for moments in accumulators:
            merged.merge(moments)
        return merged

    def extract_output(self, moments: _Moments) -> list[Summary]:
        return statistics(moments)


def statistics(moments: _Moments) -> list[Summary]:
    """One entry for each of ``METRIC_COLUMNS``."""
    if moments.total == 0:
        return []
    sample = moments.sample()
    values = np.stack([clip.values for clip in sample])
    recordings = [clip.recording for clip in sample]
    columns = range(len(METRIC_COLUMNS))
    found = [summarise(values[:, index], recordings) for index in columns]
    if moments.total <= MAX_KEPT:
        return found
    effects = [design_effect(values[:, index], recordings) for index in columns]
    return [_of_many(moments, index, found[index], effects[index]) for index in columns]


def _of_many(moments: _Moments, index: int, sample: Summary, design_effect: float) -> Summary:
    """Mean and deviation of all values; interval from the normal law, the rest from a sample."""
    n = int(moments.count[index])
    n_undefined = moments.total - n
    if n < 2:
        return dataclasses.replace(sample, n=n, n_undefined=n_undefined)
    mean = float(moments.sum[index] / n)
    variance = float(moments.sum_squared[index] - moments.sum[index] ** 2 / n) / (n - 1)
    std = math.sqrt(max(0.0, variance))
    half_width = _NORMAL_95 * std * math.sqrt(design_effect / n)
    return Summary(
        n=n,
        n_undefined=n_undefined,
        mean=mean,
        std=std,
        median=sample.median,
        ci_low=mean - half_width,
        ci_high=mean + half_width,
    )


@dataclasses.dataclass(eq=False)
class SummariseMetrics(beam.PTransform[Any, Any]):
    """Metrics → the summary table, one file.

    In: ``MetricsRow``, each id once. Out: ``(uri, rows)`` of the file.

    Attributes:
        uri: folder of the table.
        storage: how it is reached.
    """

    uri: str
    storage: Storage

    def expand(self, rows: PCollection[MetricsRow]) -> PCollection[tuple[str, int]]:
        """Groups the rows by setting and summarises each metric."""
        return (
            rows
            | "ByGroup" >> beam.Map(_keyed).with_output_types(tuple[str, _Kept])
            | "Summarise" >> beam.CombinePerKey(_SummariseFn())  # type: ignore[no-untyped-call]
            | "Lines" >> beam.FlatMap(_lines).with_output_types(TableRow)
            | "WriteTable"
            >> WriteTable(
                uri=self.uri,
                schema=SUMMARY_SCHEMA,
                storage=self.storage,
                prefix="summary",
                shards=1,
            )
        )


def _keyed(row: MetricsRow) -> tuple[str, _Kept]:
    values = [row.values[name] for name in METRIC_COLUMNS]
    array = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    recording = row.values["group"]
    order = _digest(row.id if recording is None else recording) + _digest(row.id)
    return group_of(row).key, _Kept(order=order, recording=recording, values=array)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:12]


def _lines(summary: tuple[str, list[Summary]]) -> Iterator[TableRow]:
    group = _group_from(summary[0])
    for index, (metric, found) in enumerate(zip(METRIC_COLUMNS, summary[1], strict=True)):
        yield TableRow(
            partition="",
            key=f"{summary[0]}|{index:03d}",
            record={
                **dataclasses.asdict(group),
                "metric": metric,
                "n": found.n,
                "n_undefined": found.n_undefined,
                "mean": found.mean,
                "std": found.std,
                "median": found.median,
                "ci95_low": found.ci_low,
                "ci95_high": found.ci_high,
                "schema_version": SCHEMA_VERSION,
            },
            extra={},
        )


def _group_from(key: str) -> Group:
    names = [field.name for field in dataclasses.fields(Group)]
    return Group(**dict(zip(names, json.loads(key), strict=True)))
