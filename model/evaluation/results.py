"""Scores of an evaluation and their summaries."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

METRICS = ("sdri_db", "si_sdri_db", "snri_db")
BOOTSTRAP_DRAWS = 2_000
INTERVAL = (2.5, 97.5)
"""Percentiles of the bootstrapped means: a 95 % interval."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One row's improvements over the mixture, in dB; NaN where undefined."""

    id: str
    dataset: str
    label: str
    group: str
    phrase: str
    """The positive query in words; empty where there is none."""
    sdri_db: float
    si_sdri_db: float
    snri_db: float
    undefined_reason: str
    """Why a figure is undefined; empty where none is."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Figures over rows; NaN where no value is defined.

    Attributes:
        n: rows with a defined value.
        n_undefined: rows without.
        mean: of the defined values.
        std: of a sample (n − 1); NaN for a single value.
        median: of the defined values.
        low: end of the 95 % interval of the mean.
        high: the other end.
    """

    n: int
    n_undefined: int
    mean: float
    std: float
    median: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ZeroShot:
    """How often a class's text is the nearest, or among the five nearest, to a clip's embedding.

    Attributes:
        phrasing: ``caption``, the corpus's own, or ``heldout``, the mean over the first three
            phrasings that training has not seen.
        num_classes: that compete.
        top1: share of clips, over clips.
        top5: share of clips, over clips.
        per_class: top-1 share of each label.
    """

    phrasing: str
    num_classes: int
    top1: Summary
    top5: Summary
    per_class: Mapping[str, float]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What the model takes up, and how fast it is with metrics off.

    Attributes:
        parameters: by part of the model.
        parameters_in_all: tensors that parts share counted once.
        file_bytes: by file of the bundle.
        device: where the speed was measured.
        threads: torch's threads there.
        real_time_factor: seconds of audio that are separated in a second.
    """

    parameters: Mapping[str, int]
    parameters_in_all: int
    file_bytes: Mapping[str, int]
    device: str
    threads: int
    real_time_factor: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All that an evaluation found; scores in the order of the data sets."""

    split: str
    seed: int
    limit: int | None
    scores: tuple[Score, ...]
    zero_shot: tuple[ZeroShot, ...] = ()
    cost: Cost | None = None

    @property
    def datasets(self) -> list[str]:
        """Names of the data sets, in order."""
        return list(dict.fromkeys(score.dataset for score in self.scores))

    def of(self, dataset: str) -> list[Score]:
        """The scores of one data set."""
        return [score for score in self.scores if score.dataset == dataset]

    def summary(self, dataset: str, metric: str = "sdri_db") -> Summary:
        """The figures of one data set.

        Raises:
            ValueError: there is no such metric, or no row of that data set.
        """
        scores = self.of(dataset)
        if not scores:
            raise ValueError(f"data set {dataset!r}: expected one of {self.datasets}")
        return summarise_scores(scores, metric)

    def mean(self, dataset: str, metric: str = "sdri_db") -> float:
        """The mean of one metric over one data set, in dB."""
        return self.summary(dataset, metric).mean


def summarise_scores(scores: Sequence[Score], metric: str = "sdri_db") -> Summary:
    """The figures of some rows.

    Raises:
        ValueError: there is no such metric.
    """
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r}: expected one of {METRICS}")
    values = np.array([getattr(score, metric) for score in scores], dtype=np.float64)
    return summarise(values, [score.group for score in scores])


def summarise(values: npt.NDArray[np.float64], groups: Sequence[str]) -> Summary:
    """Figures with an interval that counts recordings, not clips.

    Clips cut from one recording are alike, so the bootstrap draws whole recordings (of the target);
    drawing clips would make the interval too narrow.

    Args:
        values: float64[N]; NaN where undefined.
        groups: the recording of each.
    """
    defined = ~np.isnan(values)
    known = values[defined]
    if known.size == 0:
        return Summary(
            n=0, n_undefined=len(values), mean=math.nan, std=math.nan, median=math.nan,
            low=math.nan, high=math.nan,
        )  # fmt: skip
    names, member = np.unique(np.array(groups)[defined], return_inverse=True)
    sums = np.bincount(member, weights=known)
    counts = np.bincount(member)
    seed = int(hashlib.sha256("\x00".join(names).encode()).hexdigest()[:16], 16)
    drawn = np.random.default_rng(seed).integers(len(names), size=(BOOTSTRAP_DRAWS, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, INTERVAL)
    return Summary(
        n=int(known.size),
        n_undefined=int((~defined).sum()),
        mean=float(known.mean()),
        std=float(known.std(ddof=1)) if known.size > 1 else math.nan,
        median=float(np.median(known)),
        low=float(low),
        high=float(high),
    )
