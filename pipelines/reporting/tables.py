"""Results as Markdown, CSV and LaTeX; whatever a manifest says is text and nothing else in them."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from manifests.columns import SHOWN_METRICS, TITLES
from manifests.published import PublishedResult
from pipelines.reporting.found import Judged
from pipelines.reporting.measured import Cell, Comparison, ResultLine, digits_of, interval, mean_std
from terminal import screen

CSV_COLUMNS = (
    *("source", "system", "dataset", "query_type", "polarity", "n_shots", "n_sources"),
    *("n_targets", "input_snr_db", "metric", "mean", "std", "median", "ci95_low", "ci95_high"),
    *("n", "n_undefined", "n_failed", "model", "scorer", "protocol"),
)
_OURS = "CLAPSep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells as plain text, to be written in any format."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def shown_metrics(lines: Sequence[ResultLine]) -> list[str]:
    """The metrics that any line has a value of."""
    return [name for name in SHOWN_METRICS if any(line.cell(name).summary.n for line in lines)]


def results_table(lines: Sequence[ResultLine]) -> Table:
    """A line for each run and setting; the paper's figures in columns of their own, at the end."""
    metrics = shown_metrics(lines) or list(SHOWN_METRICS[:1])
    with_paper = [name for name in metrics if any(line.published_for(name) for line in lines)]
    header = (
        *("Run", "Dataset", "Query", "Mixtures"),
        *(f"{TITLES[name]}, mean ± std [95 %]" for name in metrics),
        *("n", "Undefined", "Failed", "Model", "Scorer", "Protocol"),
        *(f"Published {TITLES[name]}" for name in with_paper),
    )
    rows = []
    for line in lines:
        main = line.cell(metrics[0]).provenance
        rows.append(
            (
                *(line.run, line.setting.dataset or "-", line.setting.query, line.setting.mixture),
                *(cell_text(line.cell(name)) for name in metrics),
                *(f"{main.n:,}", f"{main.n_undefined:,}", f"{main.n_failed:,}"),
                *(", ".join(each) or "-" for each in (main.models, main.scorers, main.protocols)),
                *(_paper_text(line.published_for(name)) for name in with_paper),
            )
        )
    return Table(title="Results", header=header, rows=tuple(rows))


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """A line for each paired comparison."""
    header = ("Runs", "Dataset", "Metric", "Difference, mean ± std [95 %]", "Win rate")
    rows = []
    for each in comparisons:
        digits = digits_of(each.metric)
        wins = "-" if each.win_rate is None else f"{100 * each.win_rate:.1f} %"
        spread = f"{mean_std(each.difference, digits)} {interval(each.difference, digits)}".strip()
        rows.append(
            (
                *(f"{each.other} minus {each.baseline}", each.dataset, TITLES[each.metric]),
                *(spread, wins, f"{each.difference.n:,}", f"{each.difference.n_undefined:,}"),
                *(f"{each.num_only_one:,}", " / ".join(str(p.n_failed) for p in each.provenance)),
                *(" / ".join(_joined(p.models) for p in each.provenance),),
                *(" / ".join(_joined(p.scorers) for p in each.provenance),),
                *(" / ".join(_joined(p.protocols) for p in each.provenance),),
            )
        )
    more = ("Pairs", "Undefined", "In one run only", "Failed", "Models", "Scorers", "Protocols")
    return Table(title="Paired comparisons", header=(*header, *more), rows=tuple(rows))


def _joined(values: Sequence[str]) -> str:
    return ", ".join(values) or "none"


def cell_text(cell: Cell) -> str:
    """Mean, deviation, interval; and how many values, where some are missing."""
    digits = digits_of(cell.metric)
    text = f"{mean_std(cell.summary, digits)} {interval(cell.summary, digits)}".strip()
    return f"{text} (n = {cell.summary.n:,})" if cell.summary.n_undefined else text


def paper_text(result: PublishedResult) -> str:
    """A figure of the paper, and where it stands."""
    return f"{result.method}: {result.mean:.2f} ± {result.std:.2f} (Table {result.table})"


def _paper_text(results: Iterable[PublishedResult]) -> str:
    ours = [paper_text(result) for result in results if result.method.startswith(_OURS)]
    return "; ".join(ours) or "-"


def markdown(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Tables one below the other, then notes."""
    parts = []
    for table in tables:
        lines = [table.header, ("---",) * len(table.header), *table.rows]
        escaped = [[screen.markdown(cell) if number != 1 else cell for cell in line]
                   for number, line in enumerate(lines)]  # fmt: skip
        body = "\n".join("| " + " | ".join(line) + " |" for line in escaped)
        parts.append(f"## {screen.markdown(table.title)}\n\n{body}\n")
    parts.append("\n".join(f"- {screen.markdown(note)}" for note in notes) + "\n")
    return "\n".join(parts)


def latex(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Tables for booktabs, notes as comments."""
    parts = [f"% {screen.comment(note)}" for note in notes]
    for table in tables:
        columns = "l" * len(table.header)
        body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _tex_line(table.header)]
        body += [r"\midrule", *(_tex_line(row) for row in table.rows), r"\bottomrule"]
        parts += [f"% {table.title}", *body, r"\end{tabular}", ""]
    return "\n".join(parts)


def _tex_line(cells: Sequence[str]) -> str:
    return " & ".join(screen.latex(cell) for cell in cells) + r" \\"


def comma_separated(lines: Sequence[ResultLine]) -> str:
    """Every figure in a line of its own; ``source`` says whether it was measured or published."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for line in lines:
        for cell in line.cells:
            writer.writerow(_as_text(_measured_record(line, cell)))
    published = {result: None for line in lines for result in line.published}
    for result in published:
        writer.writerow(_as_text(_published_record(result)))
    return text.getvalue()


def precision(judged: Sequence[Judged]) -> str:
    """What was judged of each query, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(Judged))
    for each in judged:
        writer.writerow(_as_text(list(dataclasses.asdict(each).values())))
    return text.getvalue()


def _measured_record(line: ResultLine, cell: Cell) -> list[object]:
    setting, summary, provenance = line.setting, cell.summary, cell.provenance
    return [
        *("measured", line.run, setting.dataset, setting.query_type),
        *(setting.polarity, setting.n_shots, setting.n_sources, setting.n_targets),
        *(setting.input_snr_db, cell.metric, summary.mean, summary.std, summary.median),
        *(summary.ci_low, summary.ci_high, summary.n, summary.n_undefined, provenance.n_failed),
        *(", ".join(each) for each in (provenance.models, provenance.scorers)),
        ", ".join(provenance.protocols),
    ]


def _published_record(result: PublishedResult) -> list[object]:
    return [
        *(f"published, Table {result.table}", result.method, result.dataset, result.query_type),
        *(result.polarity, result.shots, result.num_sources, result.num_targets),
        *(result.input_snr_db, result.column, result.mean, result.std, *[None] * 9),
    ]


def _as_text(record: Sequence[object]) -> list[object]:
    """A line in which no name is taken for a formula; numbers stay numbers."""
    return [screen.spreadsheet(item) if isinstance(item, str) else item for item in record]


FORMATS: dict[str, Callable[[Sequence[Table], Sequence[str]], str]] = {
    "md": markdown,
    "tex": latex,
}
