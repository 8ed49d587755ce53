"""Curves over level, sources and shots, beside those of the paper's tables IV to VI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from manifests.published.results import PublishedResult, load
from pipelines.reporting.chart_types import (
    MAX_SERIES,
    Chart,
    Curve,
    Point,
    caption_of,
    left_out,
    series_name,
)
from pipelines.reporting.measured import TITLES, by_setting, summary_of, values_of
from pipelines.reporting.runs import ReportClip, Run, Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    name: str
    title: str
    label: str
    read: Callable[[Setting], float | None]
    without: Callable[[Setting], Setting]
    published: Callable[[PublishedResult], float | None]
    table: str


_AXES = (
    _Axis(
        name="levels",
        title="by input level",
        label="target above interferers (dB)",
        read=lambda setting: setting.input_snr_db,
        without=lambda setting: replace(setting, input_snr_db=None),
        published=lambda result: result.input_snr_db,
        table="VI",
    ),
    _Axis(
        name="sources",
        title="by number of sources",
        label="sources in the mixture",
        read=lambda setting: setting.n_sources,
        without=lambda setting: replace(setting, n_sources=None),
        published=lambda result: result.num_sources,
        table="V",
    ),
    _Axis(
        name="shots",
        title="by number of example clips",
        label="shots",
        read=lambda setting: setting.n_shots or None,
        without=lambda setting: replace(setting, n_shots=None),
        published=lambda result: result.shots,
        table="IV",
    ),
)


def curve_charts(runs: Sequence[Run], metric: str) -> list[Chart]:
    """Means over whatever the runs vary."""
    return [chart for axis in _AXES for chart in _charts_over(runs, metric, axis)]


_Series = tuple[Run, Setting, dict[float, list[ReportClip]]]


def _charts_over(runs: Sequence[Run], metric: str, axis: _Axis) -> list[Chart]:
    charts: list[Chart] = []
    for dataset, found in _by_dataset(runs, metric, axis).items():
        if len({x for _, _, at in found for x in at}) < 2:
            continue
        shown = found[:MAX_SERIES]
        curves = [
            Curve(name=series_name(runs, run, _setting_name(setting)), points=_points(at, metric))
            for run, setting, at in shown
        ]
        used = [clip for _, _, at in shown for clips in at.values() for clip in clips]
        charts.append(
            Chart(
                name=f"{axis.name}-{len(charts) + 1:02d}",
                title=f"{TITLES[metric]} {axis.title}: {dataset or 'no dataset'}",
                x_label=axis.label,
                y_label=f"{TITLES[metric]}, mean and 95 %",
                caption=caption_of(runs, used, metric) + left_out(len(found), MAX_SERIES, "series"),
                curves=(*curves, *_published_curves(dataset, metric, axis)),
            )
        )
    return charts


def _by_dataset(runs: Sequence[Run], metric: str, axis: _Axis) -> dict[str | None, list[_Series]]:
    found: dict[str | None, list[_Series]] = {}
    for run in runs:
        groups: dict[Setting, dict[float, list[ReportClip]]] = {}
        for setting, clips in by_setting(run).items():
            x = axis.read(setting)
            if x is not None and np.isfinite(values_of(clips, metric)).any():
                groups.setdefault(axis.without(setting), {})[float(x)] = clips
        for setting, at in groups.items():
            found.setdefault(setting.dataset, []).append((run, setting, at))
    return found


def _setting_name(setting: Setting) -> str:
    targets = f", {setting.n_targets} targets" if (setting.n_targets or 1) > 1 else ""
    return f"{setting.query}{targets}"


def _points(at: dict[float, list[ReportClip]], metric: str) -> tuple[Point, ...]:
    points = []
    for x, clips in sorted(at.items()):
        found = summary_of(clips, metric)
        if found.mean is not None:
            low = found.mean if found.ci_low is None else found.ci_low
            high = found.mean if found.ci_high is None else found.ci_high
            points.append(Point(x=x, mean=found.mean, low=low, high=high, n=found.n))
    return tuple(points)


def _published_curves(dataset: str | None, metric: str, axis: _Axis) -> list[Curve]:
    """The paper's curves of the same dataset, dashed and named as published."""
    paper_dataset = None if dataset == "multisource" else dataset
    series: dict[str, list[Point]] = {}
    for result in load():
        x = axis.published(result)
        if result.table != axis.table or result.column != metric or x is None:
            continue
        if result.dataset != paper_dataset or not result.method.startswith("CLAPSep"):
            continue
        targets = f", {result.num_targets} targets" if result.num_targets > 1 else ""
        name = f"published: {result.method} {result.query_type} {result.polarity}{targets}"
        mean = result.mean
        series.setdefault(name, []).append(Point(x=x, mean=mean, low=mean, high=mean, n=0))
    return [
        Curve(name=name, points=tuple(sorted(points, key=_x)), is_published=True)
        for name, points in series.items()
        if len(points) > 1
    ]


def _x(point: Point) -> float:
    return point.x
