"""What the plots show: distributions, curves, classes and levels from measured clips."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipelines.reporting.chart_curves import curve_charts
from pipelines.reporting.chart_types import (
    MAX_SERIES,
    Bar,
    Chart,
    Cloud,
    Histogram,
    caption_of,
    left_out,
    series_name,
)
from pipelines.reporting.measured import TITLES, by_setting, summary_of, values_of
from pipelines.reporting.runs import ReportClip, Run

MAX_BARS = 40
MAX_CLOUD = 4_000
_MIXTURE_OF = {"sdri_db": "sdr_mixture_db", "si_sdri_db": "si_sdr_mixture_db"}


def charts_of(runs: Sequence[Run], metric: str) -> list[Chart]:
    """Every plot that the runs have data for."""
    found = [*distributions(runs, metric)]
    found += curve_charts(runs, metric)
    found += [chart for run in runs for chart in _class_charts(runs, run, metric)]
    found += _level_scatter(runs, metric)
    return found


def distributions(runs: Sequence[Run], metric: str) -> list[Chart]:
    """Histograms by dataset, a series for each run and kind of query (the paper's Fig. 4)."""
    by_dataset: dict[str, list[tuple[str, list[ReportClip]]]] = {}
    for run in runs:
        series: dict[tuple[str, str], list[ReportClip]] = {}
        for setting, clips in by_setting(run).items():
            series.setdefault((setting.dataset or "no dataset", setting.query), []).extend(clips)
        for (dataset, query), clips in series.items():
            by_dataset.setdefault(dataset, []).append((series_name(runs, run, query), clips))
    charts: list[Chart] = []
    for dataset, named in sorted(by_dataset.items()):
        parts = [(name, clips, values_of(clips, metric)) for name, clips in named]
        parts = [part for part in parts if np.isfinite(part[2]).any()]
        if not parts:
            continue
        shown = parts[:MAX_SERIES]
        charts.append(
            Chart(
                name=f"distribution-{len(charts) + 1:02d}",
                title=f"Distribution of {TITLES[metric]}: {dataset}",
                x_label=TITLES[metric],
                y_label="clips",
                caption=caption_of(runs, [clip for _, clips, _ in shown for clip in clips], metric)
                + left_out(len(parts), MAX_SERIES, "series"),
                histograms=tuple(
                    Histogram(name=name, values=values[np.isfinite(values)])
                    for name, _, values in shown
                ),
            )
        )
    return charts


def _class_charts(runs: Sequence[Run], run: Run, metric: str) -> list[Chart]:
    by_label: dict[tuple[str, str], list[ReportClip]] = {}
    for clip in run.clips:
        if clip.label and math.isfinite(clip.value(metric)):
            key = (clip.setting.dataset or "no dataset", clip.label)
            by_label.setdefault(key, []).append(clip)
    charts: list[Chart] = []
    for dataset in sorted({key[0] for key in by_label}):
        labels = {key[1]: clips for key, clips in by_label.items() if key[0] == dataset}
        if len(labels) < 2:
            continue
        bars = sorted((_bar(label, clips, metric) for label, clips in labels.items()), key=_mean)
        shown = bars if len(bars) <= MAX_BARS else bars[: MAX_BARS // 2] + bars[-MAX_BARS // 2 :]
        used = [clip for clips in labels.values() for clip in clips]
        what = "the lowest and highest classes"
        charts.append(
            Chart(
                name=f"classes-{runs.index(run) + 1:02d}-{len(charts) + 1:02d}",
                title=f"{TITLES[metric]} by class: {series_name(runs, run, dataset)}",
                x_label=f"{TITLES[metric]}, mean and 95 % (clips)",
                y_label="",
                caption=caption_of([run], used, metric) + left_out(len(bars), MAX_BARS, what),
                bars=tuple(reversed(shown)),
            )
        )
    return charts


def _bar(label: str, clips: Sequence[ReportClip], metric: str) -> Bar:
    found = summary_of(clips, metric)
    mean = found.mean or 0.0
    low = mean if found.ci_low is None else found.ci_low
    high = mean if found.ci_high is None else found.ci_high
    return Bar(label=label, mean=mean, low=low, high=high, n=found.n)


def _mean(bar: Bar) -> float:
    return bar.mean


def _level_scatter(runs: Sequence[Run], metric: str) -> list[Chart]:
    x_metric = _MIXTURE_OF.get(metric, "snr_mixture_db")
    clouds: list[Cloud] = []
    used: list[ReportClip] = []
    for run in runs[:MAX_SERIES]:
        x, y = values_of(run.clips, x_metric), values_of(run.clips, metric)
        defined = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        if len(defined):
            kept = defined[:: -(-len(defined) // MAX_CLOUD)]
            clouds.append(Cloud(name=run.name, x=x[kept], y=y[kept]))
            used += run.clips
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
