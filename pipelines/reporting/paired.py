"""Two runs compared on the ids that both have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.reporting.measured import Provenance, provenance_of
from pipelines.reporting.runs import ReportClip, Run
from transforms.spread import Summary, summarise

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
