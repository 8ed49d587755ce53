"""From run folders to the files of a report."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from manifests.columns import SHOWN_METRICS, TITLES
from pipelines.reporting import charts, found, listening, page, tables
from pipelines.reporting.charts import Chart, charts_of
from pipelines.reporting.listening import Example, clip_data, examples_of, script_json
from pipelines.reporting.measured import (
    Comparison,
    ResultLine,
    compare,
    digits_of,
    lines_of,
    origin_in_runs,
)
from pipelines.reporting.runs import ReportConfig, Run, read_run
from transforms.audio.files import write_errors
from transforms.storage import Storage, join

PLOTS = "plots"


def build(config: ReportConfig) -> list[str]:
    """Reads the runs, writes the report; gives the URIs of what was written.

    Raises:
        RunError: a folder is not that of a run.
        OSError: a file cannot be read or written.
    """
    storage = Storage(options=config.storage_options)
    pairs = zip(config.runs, config.names, strict=True)
    runs = [read_run(uri, name, storage) for uri, name in pairs]
    lines = [line for run in runs for line in lines_of(run)]
    metrics = [name for name in SHOWN_METRICS if any(line.cell(name).summary.n for line in lines)]
    compared = [each for run in runs[1:] for each in compare(runs[0], run, metrics)]
    examples = [example for run in runs if config.listen for example in examples_of(run, config)]
    files = _tables(lines, compared)
    drawn = [(chart, charts.draw(chart)) for chart in charts_of(runs, config.metric)]
    files.update({f"{PLOTS}/{chart.name}.png": drawing.png for chart, drawing in drawn})
    files.update(_spectrograms(examples, runs, config.metric))
    judged = []
    if config.reviews is not None:
        judged = found.judged(runs, found.read_reviews(config.reviews, storage))
        files["precision.csv"] = tables.precision(judged).encode("utf-8", "replace")
    svgs = [(chart, drawing.svg) for chart, drawing in drawn]
    shown = _page(config, runs, lines, compared, svgs, examples, judged)
    files["report.html"] = shown.encode("utf-8")
    for name, data in files.items():
        with write_errors(uri := join(config.output, name)):
            storage.write_bytes(uri, data)
    return [join(config.output, name) for name in files]


def _tables(lines: Sequence[ResultLine], compared: Sequence[Comparison]) -> dict[str, bytes]:
    shown = [tables.results_table(lines)]
    if compared:
        shown.append(tables.comparison_table(compared))
    files = {
        f"tables.{name}": write(shown, page.NOTES).encode("utf-8", "replace")
        for name, write in tables.FORMATS.items()
    }
    return {**files, "tables.csv": tables.comma_separated(lines).encode("utf-8", "replace")}


def _spectrograms(
    examples: Sequence[Example], runs: Sequence[Run], metric: str
) -> dict[str, bytes]:
    files = {}
    seen = [example for example in examples if example.signals]
    for number, (_, group) in enumerate(groupby(seen, key=_run_of), 1):
        rows = list(group)
        caption = str(origin_in_runs([r for r in runs if r.name == rows[0].run], metric))
        pictures = [[signal.picture for signal in example.signals] for example in rows]
        files[f"{PLOTS}/spectrograms-{number:02d}.png"] = listening.grid(pictures, caption)
    return files


def _run_of(example: Example) -> str:
    return example.run


def _page(
    config: ReportConfig,
    runs: Sequence[Run],
    lines: Sequence[ResultLine],
    compared: Sequence[Comparison],
    drawn: Sequence[tuple[Chart, str]],
    examples: Sequence[Example],
    judged: Sequence[found.Judged],
) -> str:
    metrics = page.metrics_shown(lines)
    digits = digits_of(config.metric)
    context = {
        "title": config.title,
        "headline": TITLES[config.metric],
        "num_clips": sum(len(run.clips) for run in runs),
        "num_failures": sum(len(run.failures) for run in runs),
        "metrics": [{"title": TITLES[name]} for name in metrics],
        "lines": page.lines_view(lines),
        "comparisons": tables.comparison_table(compared) if compared else None,
        "charts": [page.chart_view(chart, svg, digits) for chart, svg in drawn],
        "examples": [page.example_view(example, config.metric) for example in examples],
        "found": found.views(runs, config),
        "judged": [found.judged_view(each) for each in judged],
        "failures": page.failures_view(runs),
        "runs": [page.run_view(run) for run in runs],
        "notes": page.NOTES,
    }
    return page.render(
        context, script_json(clip_data(runs, config.output, found.segment_data(runs)))
    )
