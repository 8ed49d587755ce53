"""Renders the page: one file that needs nothing else, with its style, script, data and pictures."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import BaseLoader, Environment, StrictUndefined

from manifests import published
from manifests.columns import SHOWN_METRICS, TITLES
from pipelines.reporting.charts import Chart
from pipelines.reporting.listening import Example
from pipelines.reporting.measured import (
    ResultLine,
    digits_of,
    distinct,
    interval,
    mean_std,
    origin_of,
)
from pipelines.reporting.runs import Run, or_none
from pipelines.reporting.tables import paper_text, shown_metrics
from transforms.storage.access import redact


def render(context: Mapping[str, Any], data: str) -> str:
    """Fills the template; every value in ``context`` is text and is escaped as such.

    What the template marks ``safe`` is this project's own style and script, JSON without any "<",
    and drawings by :mod:`pipelines.reporting.charts`, in which matplotlib escaped all text.

    The page's Content-Security-Policy lets its own script run and no other, and nothing be fetched
    but audio files beside it.

    Args:
        context: what the template shows.
        data: JSON of :func:`pipelines.reporting.listening.script_json`.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=BaseLoader(),
        trim_blocks=True,
        finalize=_discreet,
    )
    script = _read("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(_read("report.html")).render(
        **context,
        style=_read("report.css"),
        script=script,
        script_hash=f"'sha256-{digest}'",
        data=data,
    )


def _discreet(value: Any) -> Any:
    """Text without credentials; what is marked safe holds none."""
    return redact(value) if type(value) is str else value


def _read(name: str) -> str:
    return resources.files("pipelines.reporting.page").joinpath(name).read_text(encoding="utf-8")


_FOLDED_TABLES = ("VI", "VII")
"""Levels and ablations: shown at once only where no other table has the figure."""
NOTES = (
    "SDRi is the improvement of the 512-tap BSS SDR over the mixture (torchmetrics' "
    "signal_distortion_ratio), the paper's metric. SI-SDRi is scale-invariant, without mean "
    "removal. SNRi is plain signal-to-noise, which AudioSep and DCASE call SDR. They are not "
    "interchangeable.",
    "CLAPScore is the similarity of the stem to the positive query; improvement is the score minus "
    "the mixture's, contrast the score minus the similarity to the negative query, Ref-CLAPScore "
    "the harmonic mean with the similarity to the reference, undefined where one of the two is not "
    "above 0. A score by the separator's own CLAP is circular: compare the scorer's digest with "
    "that of the model's CLAP. Scores of two runs are compared where they are by the same scorer "
    "and to the same words or example clips: to others they are other quantities.",
    "n counts the clips with a defined value. A value that is undefined (silent reference, silent "
    "stem, no reference) is left out of every mean and counted as such; a row that failed gave no "
    "stem and is counted under failed.",
    "Intervals are percentile bootstraps of the mean, which draw recordings where the manifest "
    "names them in its column group, and clips where it does not.",
    "A protocol is what the manifest calls it in its column protocol, or else the digest of the "
    "manifest; two protocols never share a line of the results. Plots and comparisons may join "
    "them, and then name each.",
    "Published figures are from Ma et al., CLAPSep, IEEE/ACM TASLP 2024 (arXiv 2402.17455), tables "
    "II to VII, as transcribed from the slides of its talk. They are shown where a dataset has the "
    "paper's name and the query and mixtures are of the same kind, and were not measured here.",
)


def metrics_shown(lines: Sequence[ResultLine]) -> list[str]:
    """The columns of the results table."""
    return shown_metrics(lines) or list(SHOWN_METRICS[:1])


def lines_view(lines: Sequence[ResultLine]) -> list[dict[str, Any]]:
    """The results table."""
    metrics = metrics_shown(lines)
    return [_line_view(line, metrics) for line in lines]


def _line_view(line: ResultLine, metrics: Sequence[str]) -> dict[str, Any]:
    main = line.cell(metrics[0]).provenance
    results = [
        result
        for name in published.METRICS.values()
        if name is not None
        for result in line.published_for(name)
    ]
    ours = [result for result in results if result.method.startswith("CLAPSep")]
    ours = [result for result in ours if result.table not in _FOLDED_TABLES] or ours
    others = [result for result in results if result not in ours]
    cells = []
    for name in metrics:
        cell = line.cell(name)
        cells.append(
            {
                "mean": mean_std(cell.summary, digits_of(name)),
                "interval": interval(cell.summary, digits_of(name)),
                "n": f"{cell.summary.n:,}" if cell.summary.n != main.n else "",
            }
        )
    return {
        "run": line.run,
        "dataset": line.setting.dataset or "no dataset",
        "query": line.setting.query,
        "mixture": line.setting.mixture,
        "cells": cells,
        "n": f"{main.n:,}",
        "undefined": f"{main.n_undefined:,}",
        "failed": f"{main.n_failed:,}",
        "models": ", ".join(main.models) or "no model",
        "scorers": f"scorer {', '.join(main.scorers) or 'none'}",
        "protocols": ", ".join(main.protocols) or line.setting.protocol,
        "published": [f"{TITLES[r.column or '']} {paper_text(r)}" for r in ours],
        "others": [f"{TITLES[r.column or '']} {paper_text(r)}" for r in others],
    }


def chart_view(chart: Chart, svg: str, digits: int) -> dict[str, Any]:
    """A plot, what it shows in words, and its figures with so many decimals."""
    header, rows = _figures(chart, digits)
    description = f"{chart.title}. {chart.x_label}; {chart.y_label}. {chart.caption}"
    return {
        "title": chart.title,
        "svg": svg,
        "caption": chart.caption,
        "description": description,
        "header": header,
        "rows": rows,
    }


def _figures(chart: Chart, digits: int) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    if chart.bars:
        rows = [_row(b.label, (b.mean, b.low, b.high), b.n, digits) for b in chart.bars]
        return ("Class", "Mean", "95 % from", "to", "n"), rows
    if chart.curves:
        rows = [
            _row(f"{curve.name} at {p.x:g}", (p.mean, p.low, p.high), p.n, digits)
            if not curve.is_published
            else (f"{curve.name} at {p.x:g}", f"{p.mean:.{digits}f}", "-", "-", "-")
            for curve in chart.curves
            for p in curve.points
        ]
        return ("Series", "Mean", "95 % from", "to", "n"), rows
    header = ("Series", "Lowest", "25 %", "Median", "75 %", "Highest", "n")
    parts = [(h.name, h.values) for h in chart.histograms] or [(c.name, c.y) for c in chart.clouds]
    quantiles = [(name, np.quantile(values, (0.0, 0.25, 0.5, 0.75, 1.0))) for name, values in parts]
    sizes = [len(values) for _, values in parts]
    return header, [_row(*each, n, digits) for each, n in zip(quantiles, sizes, strict=True)]


def _row(name: str, values: Iterable[float], n: int, digits: int) -> tuple[str, ...]:
    return name, *(f"{value:.{digits}f}" for value in values), f"{n:,}"


def example_view(example: Example, metric: str) -> dict[str, Any]:
    """A clip to listen to."""
    clip, row = example.clip, example.row
    return {
        "kind": example.kind,
        "run": example.run,
        "id": clip["id"].item(),
        "dataset": or_none(clip["dataset"])[0],
        "query": clip["setting"].item().query,
        "value": f"{clip[metric].item():.{digits_of(metric)}f}",
        "positive": row.positive_text if row else None,
        "negative": row.negative_text if row else None,
        "provenance": str(origin_of(clip, metric, 0)),
        "signals": example.signals,
        "note": example.note,
    }


def failures_view(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """How often each thing went wrong, and one case of it."""
    return [
        {
            "run": run.name,
            **cases.iloc[0][["stage", "error_type", "id", "message"]],
            "count": f"{len(cases):,}",
        }
        for run in runs
        for _, cases in sorted(
            run.failures.groupby(["stage", "error_type"], sort=False), key=_fewest_last
        )
    ]


def _fewest_last(group: tuple[Any, pd.DataFrame]) -> int:
    return -len(group[1])


def run_view(run: Run) -> dict[str, Any]:
    """The record of a run."""
    record = run.record
    facts = [
        ("Folder", run.uri),
        ("Status", record.get("status", "no run.json")),
        ("Started", record.get("started_at", "unknown")),
        ("Clips", f"{len(run.clips):,}"),
        ("Failures", f"{len(run.failures):,}"),
        ("Models", ", ".join(distinct(run.clips["made_by"])) or "none"),
        ("Scorers", ", ".join(distinct(run.clips["scorer"])) or "none"),
        ("Protocols", ", ".join(distinct(run.clips["protocol"])) or "none"),
    ]
    if record.get("wall_s") is not None:
        facts.append(("Wall time", f"{record['wall_s']:.0f} s"))
    versions = record.get("versions", {})
    facts += [(name, versions[name]) for name in ("clapsep-beam", "torch") if name in versions]
    facts += [(name, str(value)) for name, value in record.get("settings", {}).items()]
    return {"name": run.name, "facts": facts}
