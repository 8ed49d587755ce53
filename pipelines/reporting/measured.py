"""Computes the figures of runs by setting, with everything that says what they are.

Two runs are compared on the ids that both have.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from manifests.columns import LOWER_IS_BETTER, METRIC_COLUMNS, SHOWN_METRICS
from manifests.published import PublishedResult, load
from model.bootstrap import Summary, summarise
from pipelines.reporting.runs import Run, Setting, or_none

_MULTISOURCE = "multisource"


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureOrigin:
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
    provenance: FigureOrigin


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultLine:
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


def summary_of(clips: pd.DataFrame, metric: str) -> Summary:
    """Summarises a metric of some clips; its interval draws recordings."""
    return summarise(clips[metric].to_numpy(), or_none(clips["group"]))


def origin_of(clips: pd.DataFrame, metric: str, n_failed: int) -> FigureOrigin:
    """What is to be said of a figure that is made of ``clips``."""
    defined = int(np.isfinite(clips[metric]).sum())
    return FigureOrigin(
        models=distinct(clips["made_by"]),
        scorers=distinct(clips["scorer"]),
        protocols=distinct(clips["protocol"]),
        n=defined,
        n_undefined=len(clips) - defined,
        n_failed=n_failed,
    )


def origin_in_runs(runs: Sequence[Run], metric: str) -> FigureOrigin:
    """What is to be said of a figure that is made of whole runs."""
    clips = pd.concat([run.clips for run in runs])
    return origin_of(clips, metric, sum(len(run.failures) for run in runs))


def distinct(values: pd.Series[Any]) -> tuple[str, ...]:
    """Returns the different values of a column, sorted."""
    return tuple(sorted(values.unique()))


def by_setting(run: Run) -> dict[Setting, pd.DataFrame]:
    """The clips of a run by setting, in a stable order; settings whose rows all failed too."""
    found: dict[Any, pd.DataFrame] = dict.fromkeys(run.failures["setting"].dropna(), run.clips[:0])
    found |= dict(iter(run.clips.groupby("setting", sort=False)))
    return {setting: found[setting] for setting in sorted(found, key=_sort_key)}


def lines_of(run: Run) -> list[ResultLine]:
    """The lines of the results table of a run."""
    paper = load()
    failed = run.failures["setting"].value_counts().to_dict()
    lines = []
    for setting, clips in by_setting(run).items():
        cells = [
            Cell(
                metric=metric,
                summary=summary_of(clips, metric),
                provenance=origin_of(clips, metric, failed.get(setting, 0)),
            )
            for metric in SHOWN_METRICS
        ]
        lines.append(
            ResultLine(
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
        difference: of ``other`` minus ``baseline``, over pairs in which both are defined and, of
            similarities, to the same query by the same scorer.
        win_rate: part of those pairs in which ``other`` is better, ties counted as half; None
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
    provenance: tuple[FigureOrigin, FigureOrigin]


def compare(baseline: Run, other: Run, metrics: Sequence[str]) -> list[Comparison]:
    """Paired comparisons, over everything and, where there are several, by dataset."""
    first, second = _by_id(baseline), _by_id(other)
    datasets = sorted(first.index.intersection(second.index).unique("dataset"))
    scopes = [ALL, *datasets] if len(datasets) > 1 else [ALL]
    return [
        _compare((baseline, first), (other, second), metric, scope)
        for metric in metrics
        for scope in scopes
    ]


def _by_id(run: Run) -> pd.DataFrame:
    named = run.clips.assign(dataset=run.clips["dataset"].fillna("-"))
    return named.drop_duplicates(["dataset", "id"], keep="last").set_index(["dataset", "id"])


_TO_NEGATIVE = frozenset(("clap_score_negative", "clap_score_contrast"))
_TO_POSITIVE = {name for name in METRIC_COLUMNS if "clap_score" in name} - {"clap_score_negative"}


def _comparable(first: pd.DataFrame, second: pd.DataFrame, metric: str) -> pd.Series[Any]:
    """Says of clips whether a metric of both is of one kind.

    A similarity to words is another quantity than one to example clips, and so is one by another
    scorer. What runs of schema version 1 were asked is not known, and taken to be the same.
    """
    same = pd.Series(True, index=first.index)
    if metric in _TO_POSITIVE | _TO_NEGATIVE:
        same &= first["scorer"] == second["scorer"]
    for name, metrics in (("positive", _TO_POSITIVE), ("negative", _TO_NEGATIVE)):
        if metric in metrics:
            one, other = first[name], second[name]
            same &= (one == other) | one.isna() | other.isna()
    return same


def _compare(
    baseline: tuple[Run, pd.DataFrame], other: tuple[Run, pd.DataFrame], metric: str, scope: str
) -> Comparison:
    (run_a, first), (run_b, second) = baseline, other
    if scope != ALL:
        first, second = first.loc[[scope]], second.loc[[scope]]
    shared = first.index.intersection(second.index)
    num_only_one = len(first) + len(second) - 2 * len(shared)
    first, second = first.loc[shared], second.loc[shared]
    gain = (second[metric] - first[metric]).where(_comparable(first, second, metric)).to_numpy()
    defined = gain[np.isfinite(gain)]
    better = defined < 0 if metric in LOWER_IS_BETTER else defined > 0
    wins = better.sum() + 0.5 * (defined == 0).sum()
    return Comparison(
        baseline=run_a.name,
        other=run_b.name,
        dataset=scope,
        metric=metric,
        difference=summarise(gain, or_none(first["group"])),
        win_rate=float(wins / len(defined)) if len(defined) else None,
        num_only_one=num_only_one,
        provenance=(
            origin_of(first, metric, _num_failed(run_a, scope)),
            origin_of(second, metric, _num_failed(run_b, scope)),
        ),
    )


def _num_failed(run: Run, scope: str) -> int:
    """Failures of a run, or of one dataset; what was not a valid row is of no dataset."""
    if scope == ALL:
        return len(run.failures)
    return sum((setting.dataset or "-") == scope for setting in run.failures["setting"].dropna())
