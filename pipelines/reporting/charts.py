"""Draws plots as PNG files and as SVG for the page, which takes its colours from the page's theme.

Shown are distributions, classes and levels of measured clips, and curves over level, sources and
shots beside those of the paper's tables IV to VI.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from manifests.columns import METRIC_COLUMNS, TITLES
from manifests.published import PublishedResult, load
from pipelines.reporting.measured import by_setting, origin_of, summary_of
from pipelines.reporting.runs import Run, Setting
from terminal import screen

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


def caption_of(runs: Sequence[Run], clips: Sequence[pd.DataFrame], metric: str) -> str:
    """Origin of a plot."""
    failed = sum(len(run.failures) for run in runs)
    return str(origin_of(pd.concat(clips), metric, failed))


def left_out(found: int, limit: int, what: str) -> str:
    """Says that not everything is drawn, where that is so."""
    return f" · {limit} of {found} {what} shown" if found > limit else ""


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


_Series = tuple[Run, Setting, dict[float, pd.DataFrame]]


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
        used = [clips for _, _, at in shown for clips in at.values()]
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
        groups: dict[Setting, dict[float, pd.DataFrame]] = {}
        for setting, clips in by_setting(run).items():
            x = axis.read(setting)
            if x is not None and np.isfinite(clips[metric]).any():
                groups.setdefault(axis.without(setting), {})[float(x)] = clips
        for setting, at in groups.items():
            found.setdefault(setting.dataset, []).append((run, setting, at))
    return found


def _setting_name(setting: Setting) -> str:
    targets = f", {setting.n_targets} targets" if (setting.n_targets or 1) > 1 else ""
    return f"{setting.query}{targets}"


def _points(at: dict[float, pd.DataFrame], metric: str) -> tuple[Point, ...]:
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


MAX_BARS = 40
MAX_CLOUD = 4_000


def charts_of(runs: Sequence[Run], metric: str) -> list[Chart]:
    """Every plot that the runs have data for."""
    found = [*distributions(runs, metric)]
    found += curve_charts(runs, metric)
    found += [chart for run in runs for chart in _class_charts(runs, run, metric)]
    found += _level_scatter(runs, metric)
    return found


def distributions(runs: Sequence[Run], metric: str) -> list[Chart]:
    """Histograms by dataset, a series for each run and kind of query (the paper's Fig. 4)."""
    named = [
        clips.assign(
            dataset=clips["dataset"].fillna("no dataset"),
            series=series_name(runs, run, setting.query),
            run=run.name,
        )
        for run in runs
        for setting, clips in by_setting(run).items()
    ]
    charts: list[Chart] = []
    for dataset, of_dataset in pd.concat(named).groupby("dataset") if named else ():
        groups = [clips for _, clips in of_dataset.groupby(["run", "series"], sort=False)]
        series = [clips for clips in groups if np.isfinite(clips[metric]).any()]
        if not series:
            continue
        shown = series[:MAX_SERIES]
        charts.append(
            Chart(
                name=f"distribution-{len(charts) + 1:02d}",
                title=f"Distribution of {TITLES[metric]}: {dataset}",
                x_label=TITLES[metric],
                y_label="clips",
                caption=caption_of(runs, shown, metric)
                + left_out(len(series), MAX_SERIES, "series"),
                histograms=tuple(
                    Histogram(name=clips["series"].iloc[0], values=_defined(clips[metric]))
                    for clips in shown
                ),
            )
        )
    return charts


def _defined(values: pd.Series[Any]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values[np.isfinite(values)].to_numpy()
    return found


def _class_charts(runs: Sequence[Run], run: Run, metric: str) -> list[Chart]:
    labelled = run.clips[run.clips["label"].notna() & np.isfinite(run.clips[metric])]
    charts: list[Chart] = []
    for dataset, clips in labelled.groupby(labelled["dataset"].fillna("no dataset")):
        bars = [_bar(str(label), of_class, metric) for label, of_class in clips.groupby("label")]
        if len(bars) < 2:
            continue
        bars.sort(key=_mean)
        shown = bars if len(bars) <= MAX_BARS else bars[: MAX_BARS // 2] + bars[-MAX_BARS // 2 :]
        what = "the lowest and highest classes"
        charts.append(
            Chart(
                name=f"classes-{runs.index(run) + 1:02d}-{len(charts) + 1:02d}",
                title=f"{TITLES[metric]} by class: {series_name(runs, run, str(dataset))}",
                x_label=f"{TITLES[metric]}, mean and 95 % (clips)",
                y_label="",
                caption=caption_of([run], [clips], metric) + left_out(len(bars), MAX_BARS, what),
                bars=tuple(reversed(shown)),
            )
        )
    return charts


def _bar(label: str, clips: pd.DataFrame, metric: str) -> Bar:
    found = summary_of(clips, metric)
    mean = found.mean or 0.0
    low = mean if found.ci_low is None else found.ci_low
    high = mean if found.ci_high is None else found.ci_high
    return Bar(label=label, mean=mean, low=low, high=high, n=found.n)


def _mean(bar: Bar) -> float:
    return bar.mean


def _level_scatter(runs: Sequence[Run], metric: str) -> list[Chart]:
    x_metric = f"{metric.removesuffix('i_db')}_mixture_db"
    if x_metric not in METRIC_COLUMNS:
        x_metric = "snr_mixture_db"
    clouds: list[Cloud] = []
    used: list[pd.DataFrame] = []
    for run in runs[:MAX_SERIES]:
        x, y = run.clips[x_metric].to_numpy(), run.clips[metric].to_numpy()
        defined = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        if len(defined):
            kept = defined[:: -(-len(defined) // MAX_CLOUD)]
            clouds.append(Cloud(name=run.name, x=x[kept], y=y[kept]))
            used.append(run.clips)
    if not clouds:
        return []
    return [
        Chart(
            name="improvement-by-input",
            title=f"{TITLES[metric]} against the level of the input",
            x_label=TITLES[x_metric],
            y_label=TITLES[metric],
            caption=caption_of(runs, used, metric)
            + (
                f" · {sum(len(cloud.x) for cloud in clouds):,} points drawn, evenly chosen"
                if any(
                    len(cloud.x) < len(run.clips) for cloud, run in zip(clouds, runs, strict=False)
                )
                else ""
            ),
            clouds=tuple(clouds),
        )
    ]


INK, MUTED, LINE = "#1c2128", "#59636e", "#d1d9e0"
SERIES = ("#1f6feb", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#57606b")
_MARKERS = "os^Dv*"
_DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (3, 1, 1, 1)), (0, (1, 1)), "-.", "--")
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)},
}
_STYLE: Any = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.dpi": 160,
}
_WIDTH_IN, _HEIGHT_IN = 5.6, 3.3
_CAPTION_CHARS = 105
_MAX_CAPTION_CHARS = 1_000
_MAX_LABEL_CHARS = 40
_MAX_FILLED = 3
_FEW_POINTS = 200
_MAX_TICKS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A chart drawn: for a file, and for the page."""

    png: bytes
    svg: str


def draw(chart: Chart) -> Drawing:
    """Draws a chart; the same chart gives the same bytes."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": chart.name}):
        with _figure(chart) as figure:
            svg = _svg(figure)
        with _figure(chart) as figure:
            title = screen.one_line(chart.title, _CAPTION_CHARS)
            figure.suptitle(title, fontsize=10, color=INK)
            # Below the title: constrained layout would put a footer over the legend.
            figure.axes[0].set_title(_wrapped(chart), fontsize=5.5, color=MUTED, loc="left")
            png = _png(figure)
    return Drawing(png=png, svg=svg)


@contextmanager
def _figure(chart: Chart) -> Iterator[Figure]:
    num_series = len(chart.curves) + len(chart.histograms) + len(chart.clouds)
    height = max(_HEIGHT_IN + 0.17 * -(-num_series // 2), 0.9 + 0.2 * len(chart.bars))
    figure = Figure(figsize=(_WIDTH_IN, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    if chart.bars:
        _bars(axes, chart.bars)
    elif chart.histograms:
        _histograms(axes, chart)
    elif chart.clouds:
        _clouds(axes, chart)
    else:
        _curves(axes, chart.curves)
    if axes.get_legend_handles_labels()[1]:
        figure.legend(loc="outside lower center", ncols=2)
    yield figure


def _histograms(axes: Any, chart: Chart) -> None:
    everything = np.concatenate([series.values for series in chart.histograms])
    edges = np.histogram_bin_edges(everything, bins=min(60, max(10, int(len(everything) ** 0.5))))
    for number, series in enumerate(chart.histograms):
        colour = SERIES[number % len(SERIES)]
        if len(chart.histograms) <= _MAX_FILLED:
            axes.hist(series.values, bins=edges, histtype="stepfilled", color=colour, alpha=0.2)
        axes.hist(
            series.values,
            bins=edges,
            histtype="step",
            color=colour,
            linestyle=_DASHES[number % len(_DASHES)],
            linewidth=1.6,
            label=_cut(series.name),
        )
    axes.axvline(0.0, color=MUTED, linewidth=0.8)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _clouds(axes: Any, chart: Chart) -> None:
    for number, series in enumerate(chart.clouds):
        axes.scatter(
            series.x,
            series.y,
            s=9 if len(series.x) > _FEW_POINTS else 25,
            alpha=0.45 if len(series.x) > _FEW_POINTS else 0.85,
            linewidths=0,
            color=SERIES[number % len(SERIES)],
            marker=_MARKERS[number % len(_MARKERS)],
            label=_cut(series.name),
            rasterized=True,
        )
    axes.axhline(0.0, color=MUTED, linewidth=0.8)


def _curves(axes: Any, curves: Sequence[Curve]) -> None:
    measured = [curve for curve in curves if not curve.is_published]
    for number, curve in enumerate(measured):
        axes.errorbar(
            [point.x for point in curve.points],
            [point.mean for point in curve.points],
            yerr=np.array([[p.mean - p.low, p.high - p.mean] for p in curve.points]).T,
            color=SERIES[number % len(SERIES)],
            marker=_MARKERS[number % len(_MARKERS)],
            linestyle=_DASHES[number % len(_DASHES)],
            markersize=5,
            capsize=3,
            linewidth=1.5,
            label=_cut(curve.name),
        )
    for curve, dash in zip((c for c in curves if c.is_published), _DASHES[2:] * 9, strict=False):
        axes.plot(
            [point.x for point in curve.points],
            [point.mean for point in curve.points],
            color=MUTED,
            marker="x",
            linestyle=dash,
            linewidth=1.0,
            label=_cut(curve.name),
        )
    ticks = sorted({point.x for curve in curves for point in curve.points})
    if len(ticks) <= _MAX_TICKS:  # of levels that were drawn, thousands differ
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def _bars(axes: Any, bars: Sequence[Bar]) -> None:
    positions = np.arange(len(bars))[::-1]
    means = np.array([bar.mean for bar in bars])
    error = np.array([[bar.mean - bar.low, bar.high - bar.mean] for bar in bars]).T
    axes.barh(positions, means, height=0.7, color=SERIES[0], alpha=0.85)
    axes.errorbar(means, positions, xerr=error, fmt="none", ecolor=INK, elinewidth=0.9, capsize=2)
    axes.set_yticks(positions, [f"{_cut(bar.label)} ({bar.n})" for bar in bars])
    axes.set_ylim(-0.7, len(bars) - 0.3)
    axes.axvline(0.0, color=MUTED, linewidth=0.8)


def _cut(text: str) -> str:
    plain = screen.one_line(text, _MAX_LABEL_CHARS)
    return f" {plain}" if plain.startswith("_") else plain  # a legend leaves out "_…"


def _wrapped(chart: Chart) -> str:
    caption = screen.one_line(chart.caption, _MAX_CAPTION_CHARS)
    return "\n".join(textwrap.wrap(caption, _CAPTION_CHARS, break_on_hyphens=False))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", text, count=1)
    return re.sub(r"<[^>]*>", _themed, text)


def _themed(tag: re.Match[str]) -> str:
    """A tag with the page's colours; text beside tags may name a colour too."""
    text = tag[0]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text
