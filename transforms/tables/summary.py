"""The summary table: what a run gave, by dataset and kind of query."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import apache_beam as beam
import numpy as np
from apache_beam.coders.typecoders import registry
from apache_beam.pvalue import PCollection
from numpy.typing import NDArray

from manifests.columns import COARSER, MAX_GROUPS, METRIC_COLUMNS, SUMMARY_SCHEMA
from manifests.row import SCHEMA_VERSION
from model.bootstrap import Summary, design_effect, summarise
from transforms.elements import MetricsRow, TableRow
from transforms.storage import Storage
from transforms.tables import Pack, WriteTable, unpack
from transforms.threaded import RecordCoder

MAX_KEPT = 20_000
"""Up to so many clips of a group, everything is computed from all values; beyond, mean and standard
deviation are, the median comes from a sample that depends on the names of recordings and on ids
alone, and the interval is as wide as the recordings of that sample say."""
ROUNDED, LEFT_OUT = "rounded to whole dB", "left out"
_LEVEL = "input_snr_db"
_NORMAL_95 = 1.959964
_UTF_8 = ("utf-8", "surrogatepass")
_ORDER_BYTES = 24
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
        return json.dumps([getattr(self, name) for name in _COLUMNS])


def group_of(row: MetricsRow) -> Group:
    """The group of a clip."""
    values = {name: row.values[name] for name in _COLUMNS if name not in ("dataset", "split")}
    return Group(dataset=row.dataset, split=row.split, **values)


_COLUMNS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(Group))
Step = tuple[str, str]
"""A column, and how it is made coarser."""
_STEPS: tuple[Step, ...] = (
    (_LEVEL, ROUNDED),
    *((name, LEFT_OUT) for name in (_LEVEL, "n_sources", "n_shots", "dataset", "split")),
    *((name, LEFT_OUT) for name in ("scorer_sha256", "model_sha256", "model")),
    *((name, LEFT_OUT) for name in ("polarity", "query_type")),
)
"""What can be done about more than ``MAX_GROUPS`` groups: first to columns that have more values
than that by themselves, then in this order."""


def coarser(key: str, steps: list[Step]) -> str:
    """Returns the key of the group that a group becomes a part of when columns are made coarser."""
    if not steps:
        return key
    values = dict(zip(_COLUMNS, json.loads(key), strict=True))
    for column, how in steps:
        values[column] = _whole(values[column]) if how == ROUNDED else None
    return json.dumps(list(values.values()))


def _whole(level: float | None) -> float | None:
    return float(round(level)) if level is not None and math.isfinite(level) else level


class _Gathered(Protocol):
    """What is known of the elements so far, in bounded memory; merges in any order."""

    def add(self, element: Any, /) -> None: ...

    def merge(self, other: Any, /) -> None: ...

    def result(self) -> Any: ...


class _GatherFn(beam.CombineFn):
    """Combines elements by a :class:`_Gathered`."""

    def __init__(self, empty: Callable[[], _Gathered]) -> None:
        self._empty = empty

    def create_accumulator(self) -> _Gathered:
        return self._empty()

    def add_input(self, gathered: _Gathered, element: Any) -> _Gathered:
        gathered.add(element)
        return gathered

    def merge_accumulators(self, accumulators: Iterable[_Gathered]) -> _Gathered:
        merged = self._empty()
        for gathered in accumulators:
            merged.merge(gathered)
        return merged

    def extract_output(self, gathered: _Gathered) -> Any:
        return gathered.result()


class _Distinct:
    """Groups, and values that a step would do away with: at most ``MAX_GROUPS`` + 1 of each."""

    def __init__(self) -> None:
        self.groups: set[str] = set()
        self.values: dict[Step, set[Any]] = {step: set() for step in _STEPS}

    def add(self, key: str) -> None:
        if key in self.groups:
            return
        _add(self.groups, [key])
        values = dict(zip(_COLUMNS, json.loads(key), strict=True))
        for step, known in self.values.items():
            value = values[step[0]]
            _add(known, [_whole(value) if step == (_LEVEL, LEFT_OUT) else value])

    def merge(self, other: _Distinct) -> None:
        _add(self.groups, other.groups)
        for step, values in other.values.items():
            _add(self.values[step], values)

    def result(self) -> list[Step]:
        """The steps in the order in which they are to be taken; none where groups are few."""
        if len(self.groups) <= MAX_GROUPS:
            return []
        return sorted(_STEPS, key=lambda step: len(self.values[step]) <= MAX_GROUPS)


def _add(values: set[Any], more: Iterable[Any]) -> None:
    for value in more:
        if len(values) > MAX_GROUPS:
            return
        values.add(value)


class _Coarsened:
    """Groups after the fewest steps that leave no more than ``MAX_GROUPS`` of them.

    How many steps that takes does not depend on how rows come and are parted: after any number of
    steps, some of the groups are never more than all of them.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.taken = 0
        self.groups: set[str] = set()

    def add(self, asked: tuple[str, list[Step]]) -> None:
        key, self.steps = asked
        self.groups.add(coarser(key, self.steps[: self.taken]))
        self._shrink(self.taken)

    def merge(self, other: _Coarsened) -> None:
        self.steps = self.steps or other.steps
        self._shrink(other.taken)
        self.groups.update(coarser(key, self.steps[: self.taken]) for key in other.groups)
        self._shrink(self.taken)

    def result(self) -> list[Step]:
        return self.steps[: self.taken]

    def _shrink(self, taken: int) -> None:
        """Takes at least so many steps."""
        while self.taken < taken or len(self.groups) > MAX_GROUPS:
            self.taken += 1
            self.groups = {coarser(key, self.steps[: self.taken]) for key in self.groups}


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

    def result(self) -> list[Summary]:
        return statistics(self)

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


registry.register_coder(_Kept, RecordCoder)


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

    In: ``MetricsRow``, each id once. Out: ``(uri, rows)`` of the file. There are at most
    ``MAX_GROUPS`` groups, whatever the rows hold; what was made coarser to that end is in the
    file's metadata.

    Attributes:
        uri: folder of the table.
        storage: how it is reached.
    """

    uri: str
    storage: Storage

    def expand(self, rows: PCollection[MetricsRow]) -> PCollection[tuple[str, int]]:
        """Groups the rows by setting and summarises each metric."""
        clips = rows | "ByGroup" >> beam.Map(_keyed).with_output_types(tuple[str, _Kept])
        keys = clips | "Keys" >> beam.Keys()
        steps = keys | "Distinct" >> beam.CombineGlobally(_GatherFn(_Distinct))
        packs = clips | "Pack" >> Pack()
        taken = (
            packs
            | "WithSteps" >> beam.FlatMap(_with_steps, beam.pvalue.AsSingleton(steps))
            | "Coarsen" >> beam.CombineGlobally(_GatherFn(_Coarsened))
        )
        return (
            packs
            | "Coarser"
            >> beam.FlatMap(_coarser, beam.pvalue.AsSingleton(taken)).with_output_types(
                tuple[str, _Kept]
            )
            | "Summarise" >> beam.CombinePerKey(_GatherFn(_Moments))
            | "Lines" >> beam.FlatMap(_lines).with_output_types(TableRow)
            | "WriteTable"
            >> WriteTable(
                uri=self.uri,
                schema=SUMMARY_SCHEMA,
                storage=self.storage,
                prefix="summary",
                shards=1,
                metadata=taken | "Said" >> beam.FlatMap(_said).with_output_types(tuple[str, str]),
            )
        )


def _with_steps(packed: bytes, steps: list[Step]) -> Iterator[tuple[str, list[Step]]]:
    return ((key, steps) for key in {key for key, _ in unpack(packed)})


def _coarser(packed: bytes, steps: list[Step]) -> Iterator[tuple[str, _Kept]]:
    return ((coarser(key, steps), clip) for key, clip in unpack(packed))


def _said(steps: list[Step]) -> Iterator[tuple[str, str]]:
    if steps:
        yield COARSER, json.dumps(dict(steps))


def _keyed(row: MetricsRow) -> tuple[str, _Kept]:
    values = [row.values[name] for name in METRIC_COLUMNS]
    array = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    recording = row.values["group"]
    order = _digest(row.id if recording is None else recording) + _digest(row.id)
    return group_of(row).key, _Kept(order=order, recording=recording, values=array)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(*_UTF_8)).digest()[: _ORDER_BYTES // 2]


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
    return Group(**dict(zip(_COLUMNS, json.loads(key), strict=True)))
