"""Mean, spread and detection of one metric over clips, with bootstrap intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

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
    mean = float(defined.mean()) if n else None
    low = high = None
    if mean is not None and len(recordings.counts) > 1:
        low, high = _interval(recordings, mean)
    return Summary(
        n=n,
        n_undefined=len(values) - n,
        mean=mean,
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


def _interval(recordings: _Recordings, mean: float) -> tuple[float, float]:
    """The interval, which holds the mean: of equal values, sums in another order round past it."""
    means = [
        recordings.sums[drawn].sum(axis=1) / recordings.counts[drawn].sum(axis=1)
        for drawn in _resampled(len(recordings.counts))
    ]
    low, high = np.percentile(np.concatenate(means), INTERVAL_PERCENT)
    return min(float(low), mean), max(float(high), mean)


def _resampled(num_recordings: int) -> Iterator[NDArray[np.int64]]:
    """Draws recordings with replacement: int64[draws, recordings] at a time, always the same."""
    rng = np.random.default_rng(0)
    at_once = max(1, _DRAWS_AT_ONCE // num_recordings)
    for begin in range(0, NUM_RESAMPLES, at_once):
        shape = (min(at_once, NUM_RESAMPLES - begin), num_recordings)
        yield rng.integers(0, num_recordings, shape)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """How well a score tells what is there from what is not; what is undefined is None.

    Attributes:
        n_present: scores of what is there.
        n_absent: scores of what is not.
        auroc: the probability that one of the former is above one of the latter, ties counted half.
        ci_low: lower end of its 95 % interval.
        ci_high: upper end.
    """

    n_present: int
    n_absent: int
    auroc: float | None
    ci_low: float | None
    ci_high: float | None


def detection(
    scores: NDArray[np.float64], present: NDArray[np.bool_], groups: Sequence[str]
) -> Detection:
    """Computes the area under the ROC curve, and its interval by a bootstrap over recordings.

    Args:
        scores: float64[n]; may be infinite; NaN counts as not measured and is left out.
        present: bool[n]: whether what was asked for is there.
        groups: the recording of each.

    Source:
        Hanley and McNeil 1982, Radiology 143(1); the interval as in :func:`summarise`.
    """
    known = ~np.isnan(scores)
    names, recording = np.unique(np.array(groups, dtype=str)[known], return_inverse=True)
    _, place = np.unique(scores[known], return_inverse=True)
    positive = present[known]
    once = np.ones(len(names))
    value = _auroc(once, place, positive, recording)
    found = []
    if value is not None and len(names) > 1:
        for drawn in _resampled(len(names)):
            times = [np.bincount(each, minlength=len(names)) for each in drawn]
            found += [_auroc(weights, place, positive, recording) for weights in times]
    defined = [each for each in found if each is not None]
    low, high = np.percentile(defined, INTERVAL_PERCENT) if defined else (None, None)
    return Detection(
        n_present=int(positive.sum()),
        n_absent=int((~positive).sum()),
        auroc=value,
        ci_low=None if low is None else float(low),
        ci_high=None if high is None else float(high),
    )


def _auroc(
    weights: NDArray[Any],
    place: NDArray[np.int64],
    present: NDArray[np.bool_],
    recording: NDArray[np.int64],
) -> float | None:
    """The area under the curve where each recording counts so many times; None without either."""
    weight = weights[recording].astype(np.float64)
    of_present, of_absent = weight[present].sum(), weight[~present].sum()
    if not (of_present and of_absent):
        return None
    absent = np.bincount(place[~present], weight[~present], minlength=int(place.max()) + 1)
    below = np.cumsum(absent) - absent / 2
    return float((weight[present] * below[place[present]]).sum() / (of_present * of_absent))
