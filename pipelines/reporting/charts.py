"""Plots as PNG files and as SVG for the page, which takes its colours from the page's theme."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from model import plain_text
from pipelines.reporting.chart_types import Bar, Chart, Curve

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
            title = plain_text.one_line(chart.title, _CAPTION_CHARS)
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
    plain = plain_text.one_line(text, _MAX_LABEL_CHARS)
    return f" {plain}" if plain.startswith("_") else plain  # a legend leaves out "_…"


def _wrapped(chart: Chart) -> str:
    caption = plain_text.one_line(chart.caption, _MAX_CAPTION_CHARS)
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
