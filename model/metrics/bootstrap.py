"""Mean, spread and a bootstrap interval of one metric over clips."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 1_000
INTERVAL_PERCENT = (2.5, 97.5)
_DRAWS_AT_ONCE = 1_000_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A metric over clips; what too few defined values leave open is None.

    Attributes:
        n: clips with a defined value.
        n_undefined: clips without one.
        mean: their mean.
        std: their sample standard deviation (n - 1).
        median: their median.
        ci_low: lower end of the 95 % interval of the mean.
        ci_high: upper end.
    """

    n: int
    n_undefined: int
    mean: float | None
    std: float | None
    median: float | None
    ci_low: float | None
    ci_high: float | None


def summarise(values: NDArray[np.float64], groups: Sequence[str | None] = ()) -> Summary:
    """Computes the usual numbers, and a percentile bootstrap of the mean over recordings.

    Clips that were cut from one recording are alike: an interval that draws clips would be too
    narrow. A clip whose recording nobody named counts as one of its own.

    Args:
        values: float64[n], one a clip, in any order: the result does not depend on it. What is not
            finite counts as undefined.
        groups: the recording of each clip; empty: every clip is a recording.

    Source:
        Efron 1979, The Annals of Statistics 7(1); for clusters: Field and Welsh 2007, Journal of
        the Royal Statistical Society B 69(3).
    """
    known = np.isfinite(values)
    defined = np.sort(values[known])
    n = len(defined)
    recordings = _recordings(values, known, groups)
    low, high = _interval(recordings) if len(recordings.counts) > 1 else (None, None)
    return Summary(
        n=n,
        n_undefined=len(values) - n,
        mean=float(defined.mean()) if n else None,
        std=float(defined.std(ddof=1)) if n > 1 else None,
        median=float(np.median(defined)) if n else None,
        ci_low=low,
        ci_high=high,
    )


def design_effect(values: NDArray[np.float64], groups: Sequence[str | None]) -> float:
    """Returns by how much the variance of the mean grows because clips share recordings.

    Args:
        values: float64[n], one a clip; what is not finite is left out.
        groups: the recording of each clip.

    Returns:
        1 where every clip is a recording of its own.

    Source:
        Kish 1965, Survey Sampling, section 8.2.
    """
    recordings = _recordings(values, np.isfinite(values), groups)
    num_groups, n = len(recordings.counts), int(recordings.counts.sum())
    if num_groups == n or num_groups < 2:
        return 1.0
    known = values[np.isfinite(values)]
    mean, variance = known.mean(), known.var(ddof=1)
    spread = ((recordings.sums - mean * recordings.counts) ** 2).sum()
    clustered = spread * num_groups / (num_groups - 1) / n**2
    return float(clustered / (variance / n)) if variance > 0 else 1.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Recordings:
    """Sums and numbers of the defined values of each recording, float64[G] and int64[G]."""

    sums: NDArray[np.float64]
    counts: NDArray[np.int64]


def _recordings(
    values: NDArray[np.float64], known: NDArray[np.bool_], groups: Sequence[str | None]
) -> _Recordings:
    names = groups or [None] * len(values)
    members: dict[str, list[float]] = {}
    alone = []
    for value, name in zip(values[known].tolist(), _chosen(names, known), strict=True):
        if name is None:
            alone.append(value)
        else:
            members.setdefault(name, []).append(value)
    named = [sorted(members[name]) for name in sorted(members)]
    return _Recordings(
        sums=np.array([*sorted(alone), *map(sum, named)], dtype=np.float64),
        counts=np.array([1] * len(alone) + [len(each) for each in named], dtype=np.int64),
    )


def _chosen(names: Sequence[str | None], known: NDArray[np.bool_]) -> list[str | None]:
    return [name for name, is_known in zip(names, known.tolist(), strict=True) if is_known]


def _interval(recordings: _Recordings) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    n = len(recordings.counts)
    at_once = max(1, _DRAWS_AT_ONCE // n)
    means = []
    for begin in range(0, NUM_RESAMPLES, at_once):
        drawn = rng.integers(0, n, (min(at_once, NUM_RESAMPLES - begin), n))
        means.append(recordings.sums[drawn].sum(axis=1) / recordings.counts[drawn].sum(axis=1))
    low, high = np.percentile(np.concatenate(means), INTERVAL_PERCENT)
    return float(low), float(high)
