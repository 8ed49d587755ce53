"""Mean, spread and a bootstrap interval of one metric over clips."""

from __future__ import annotations

import dataclasses

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


def summarise(values: NDArray[np.float64]) -> Summary:
    """A percentile bootstrap of the mean over clips beside the usual numbers.

    A manifest does not say which clips are of one recording; where that is known,
    :func:`model.evaluation.results.summarise` draws recordings.

    Args:
        values: float64[n], one a clip, in any order: the result does not depend on it. What is not
            finite counts as undefined.

    Source:
        Efron 1979, The Annals of Statistics 7(1).
    """
    defined = np.sort(values[np.isfinite(values)])
    n = len(defined)
    low, high = _interval(defined) if n > 1 else (None, None)
    return Summary(
        n=n,
        n_undefined=len(values) - n,
        mean=float(defined.mean()) if n else None,
        std=float(defined.std(ddof=1)) if n > 1 else None,
        median=float(np.median(defined)) if n else None,
        ci_low=low,
        ci_high=high,
    )


def _interval(defined: NDArray[np.float64]) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    n = len(defined)
    at_once = max(1, _DRAWS_AT_ONCE // n)
    means = [
        defined[rng.integers(0, n, (min(at_once, NUM_RESAMPLES - begin), n))].mean(axis=1)
        for begin in range(0, NUM_RESAMPLES, at_once)
    ]
    low, high = np.percentile(np.concatenate(means), INTERVAL_PERCENT)
    return float(low), float(high)
