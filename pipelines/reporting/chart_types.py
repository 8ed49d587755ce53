"""Plots as numbers and words, before they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.reporting.measured import provenance_of, provenance_of_runs
from pipelines.reporting.runs import ReportClip, Run

MAX_SERIES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A mean and its 95 % interval, or the mean alone twice over where there is none."""

    x: float
    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Means over something that varies."""

    name: str
    points: tuple[Point, ...]
    is_published: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A class."""

    label: str
    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Histogram:
    """Values of many clips, float64[n]."""

    name: str
    values: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cloud:
    """A point a clip, float64[n] each."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chart:
    """A plot to be drawn: one of curves, bars, histograms and clouds.

    Attributes:
        name: of its file.
        title: a line above it.
        x_label: of the axis.
        y_label: of the axis.
        caption: provenance and what was left out.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    caption: str
    curves: tuple[Curve, ...] = ()
    bars: tuple[Bar, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    clouds: tuple[Cloud, ...] = ()


def series_name(runs: Sequence[Run], run: Run, what: str) -> str:
    """What a series is about, with its run where there are several."""
    return what if len(runs) == 1 else f"{run.name}: {what}"


def caption_of(runs: Sequence[Run], clips: Sequence[ReportClip], metric: str) -> str:
    """Provenance of a plot."""
    failed = provenance_of_runs(runs, metric).n_failed
    return str(provenance_of(clips, metric, failed))


def left_out(found: int, limit: int, what: str) -> str:
    """Says that not everything is drawn, where that is so."""
    return f" · {limit} of {found} {what} shown" if found > limit else ""
