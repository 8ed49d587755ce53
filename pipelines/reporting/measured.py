"""Computes the figures of runs by setting, with everything that says what they are.

Two runs are compared on the ids that both have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manifests.columns import METRICS
from manifests.published import PublishedResult, load
from model.bootstrap import Summary, summarise
from pipelines.reporting.runs import ReportClip, Run, Setting, short

SHOWN_METRICS = tuple(column.name for column in METRICS if column.shown)
TITLES = {column.name: column.title or column.name for column in METRICS}
_MULTISOURCE = "multisource"


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What every figure says of itself."""

    models: tuple[str, ...]
    scorers: tuple[str, ...]
    protocols: tuple[str, ...]
    n: int
    n_undefined: int
    n_failed: int

    def __str__(self) -> str:
        """One line."""
        return (
            f"n = {self.n:,} · undefined {self.n_undefined:,} · failed {self.n_failed:,} · model "
            f"{', '.join(self.models) or 'none'} · scorer {', '.join(self.scorers) or 'none'} · "
            f"protocol {', '.join(self.protocols) or 'none'}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A metric over the clips of a run and a setting."""

    metric: str
    summary: Summary
    provenance: Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A run under one setting: a line of the results table."""

    run: str
    setting: Setting
    cells: tuple[Cell, ...]
    published: tuple[PublishedResult, ...]

    def cell(self, metric: str) -> Cell:
        """The figure of one metric."""
        return next(cell for cell in self.cells if cell.metric == metric)

    def published_for(self, metric: str) -> list[PublishedResult]:
        """The paper's figures for the same dataset, query and mixtures."""
        return [result for result in self.published if result.column == metric]


def values_of(clips: Sequence[ReportClip], metric: str) -> NDArray[np.float64]:
    """float64[n]; NaN where the metric is undefined."""
    return np.array([clip.value(metric) for clip in clips], dtype=np.float64)


def summary_of(clips: Sequence[ReportClip], metric: str) -> Summary:
    """Summarises a metric of some clips; its interval draws recordings."""
    return summarise(values_of(clips, metric), [clip.group for clip in clips])


def provenance_of(clips: Sequence[ReportClip], metric: str, n_failed: int) -> Provenance:
    """What is to be said of a figure that is made of ``clips``."""
    defined = sum(math.isfinite(clip.value(metric)) for clip in clips)
    return Provenance(
        models=_distinct(f"{c.model or 'unnamed'} {short(c.model_sha256)}" for c in clips),
        scorers=_distinct(short(clip.scorer_sha256) for clip in clips),
        protocols=_distinct(clip.setting.protocol for clip in clips),
        n=defined,
        n_undefined=len(clips) - defined,
        n_failed=n_failed,
    )


def provenance_of_runs(runs: Sequence[Run], metric: str) -> Provenance:
    """What is to be said of a figure that is made of whole runs."""
    clips = [clip for run in runs for clip in run.clips]
    return provenance_of(clips, metric, sum(len(run.failures) for run in runs))


def by_setting(run: Run) -> dict[Setting, list[ReportClip]]:
    """The clips of a run by setting, in a stable order; settings whose rows all failed too."""
    found: dict[Setting, list[ReportClip]] = {}
    for clip in run.clips:
        found.setdefault(clip.setting, []).append(clip)
    for failure in run.failures:
        if failure.setting is not None:
            found.setdefault(failure.setting, [])
    return {setting: found[setting] for setting in sorted(found, key=_sort_key)}


def lines_of(run: Run) -> list[Line]:
    """The lines of the results table of a run."""
    paper = load()
    lines = []
    for setting, clips in by_setting(run).items():
        n_failed = sum(failure.setting == setting for failure in run.failures)
        cells = [
            Cell(
                metric=metric,
                summary=summary_of(clips, metric),
                provenance=provenance_of(clips, metric, n_failed),
            )
            for metric in SHOWN_METRICS
        ]
        lines.append(
            Line(
                run=run.name,
                setting=setting,
                cells=tuple(cells),
                published=tuple(published_for(setting, paper)),
            )
        )
    return lines


def published_for(setting: Setting, paper: Iterable[PublishedResult]) -> Iterable[PublishedResult]:
    """The paper's figures for a dataset, a kind of query and mixtures such as those of a setting.

    A dataset is the paper's where it has its name, which the benchmark builders give and importers
    of other protocols do not.
    """
    for result in paper:
        if result.column is not None and _same(setting, result):
            yield result


def _same(setting: Setting, result: PublishedResult) -> bool:
    level = result.input_snr_db if result.input_snr_db is not None else 0.0
    return (
        (setting.dataset == (result.dataset or _MULTISOURCE))
        and setting.query_type == result.query_type
        and setting.polarity == result.polarity
        and (setting.n_shots or None) == result.shots
        and (setting.n_sources or 2) == result.num_sources
        and (setting.n_targets or 1) == result.num_targets
        and (setting.input_snr_db if setting.input_snr_db is not None else 0.0) == level
    )


def _sort_key(setting: Setting) -> tuple[object, ...]:
    return setting.sort_key


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(values)))


def mean_std(summary: Summary, digits: int = 2) -> str:
    """``mean ± std``, the paper's form."""
    if summary.mean is None:
        return "-"
    spread = f" ± {summary.std:.{digits}f}" if summary.std is not None else ""
    return f"{summary.mean:.{digits}f}{spread}"


def interval(summary: Summary, digits: int = 2) -> str:
    """The 95 % interval of the mean."""
    if summary.ci_low is None or summary.ci_high is None:
        return ""
    return f"[{summary.ci_low:.{digits}f}, {summary.ci_high:.{digits}f}]"


def digits_of(metric: str) -> int:
    """Decimals of a metric in tables."""
    return 2 if metric.endswith("_db") else 3


ALL = "all datasets"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A metric of two runs, clip by clip.

    Attributes:
        baseline: name of the run that is compared with.
        other: name of the run whose gain is given.
        dataset: the dataset, or ``all datasets``.
        metric: which.
        difference: of ``other`` minus ``baseline``, over pairs in which both are defined.
        win_rate: part of those pairs in which ``other`` is higher, ties counted as half; None
            without pairs.
        num_only_one: ids that only one of the runs has.
        provenance: of ``baseline`` and of ``other``, over the ids that both have.
    """

    baseline: str
    other: str
    dataset: str
    metric: str
    difference: Summary
    win_rate: float | None
    num_only_one: int
    provenance: tuple[Provenance, Provenance]


def compare(baseline: Run, other: Run, metrics: Sequence[str]) -> list[Comparison]:
    """Paired comparisons, over everything and, where there are several, by dataset."""
    first, second = _by_id(baseline), _by_id(other)
    datasets = sorted({key[0] for key in first.keys() & second.keys()})
    scopes = [ALL, *datasets] if len(datasets) > 1 else [ALL]
    return [
        _compare((baseline, first), (other, second), metric, scope)
        for metric in metrics
        for scope in scopes
    ]


def _by_id(run: Run) -> dict[tuple[str, str], ReportClip]:
    return {(clip.setting.dataset or "-", clip.id): clip for clip in run.clips}


_Clips = Mapping[tuple[str, str], ReportClip]


def _compare(
    baseline: tuple[Run, _Clips], other: tuple[Run, _Clips], metric: str, scope: str
) -> Comparison:
    (run_a, first), (run_b, second) = baseline, other
    in_a = {key for key in first if scope in (ALL, key[0])}
    in_b = {key for key in second if scope in (ALL, key[0])}
    shared = sorted(in_a & in_b)
    before = np.array([first[key].value(metric) for key in shared], dtype=np.float64)
    after = np.array([second[key].value(metric) for key in shared], dtype=np.float64)
    gain = after - before
    defined = gain[np.isfinite(gain)]
    wins = (defined > 0).sum() + 0.5 * (defined == 0).sum()
    return Comparison(
        baseline=run_a.name,
        other=run_b.name,
        dataset=scope,
        metric=metric,
        difference=summarise(gain, [first[key].group for key in shared]),
        win_rate=float(wins / len(defined)) if len(defined) else None,
        num_only_one=len(in_a ^ in_b),
        provenance=(
            provenance_of([first[key] for key in shared], metric, len(run_a.failures)),
            provenance_of([second[key] for key in shared], metric, len(run_b.failures)),
        ),
    )
