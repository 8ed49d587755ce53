from __future__ import annotations

import csv
import io
from pathlib import Path

import report_runs
from pipelines.reporting.measured import compare, lines_of
from pipelines.reporting.runs import read_run
from pipelines.reporting.tables import comma_separated, comparison_table, results_table
from transforms.storage import Storage

HOSTILE = "=1+1|<script>&_%\n**x**"


def test_measured_and_published_have_columns_of_their_own(tmp_path: Path) -> None:
    report_runs.write_run(tmp_path, [report_runs.clip(1), report_runs.clip(3)])
    table = results_table(lines_of(read_run(str(tmp_path), "mine", Storage())))
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["SDRi (dB), mean ± std [95 %]"] == "2.00 ± 1.41 [1.00, 3.00]"
    assert "CLAPSep-hybrid: 10.05 ± 4.41 (Table II)" in row["Published SDRi (dB)"]
    assert row["n"] == "2"
    assert row["Model"] == "tones a1a1a1a1a1a1"
    assert row["Protocol"] == "manifest c3c3c3c3c3c3"


def test_every_line_of_the_csv_says_measured_or_published(tmp_path: Path) -> None:
    report_runs.write_run(tmp_path, [report_runs.clip(4)])
    lines = lines_of(read_run(str(tmp_path), "mine", Storage()))
    rows = list(csv.DictReader(io.StringIO(comma_separated(lines))))
    measured = [row for row in rows if row["source"] == "measured"]
    assert {row["metric"]: row["mean"] for row in measured}["sdri_db"] == "4.0"
    assert {row["system"] for row in measured} == {"mine"}
    published = [row for row in rows if row["source"] != "measured"]
    assert {row["source"] for row in published} >= {"published, Table II"}
    assert all(row["model"] == "" for row in published)


def test_a_spreadsheet_takes_no_name_for_a_formula(tmp_path: Path) -> None:
    report_runs.write_run(tmp_path, [report_runs.clip(1, dataset=HOSTILE)])
    lines = lines_of(read_run(str(tmp_path), "@name", Storage()))
    first = next(csv.DictReader(io.StringIO(comma_separated(lines))))
    assert first["dataset"] == "'=1+1|<script>&_% **x**"
    assert first["system"] == "'@name"


def test_a_comparison_says_what_was_compared(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 2.5)):
        report_runs.write_run(tmp_path / name, [report_runs.clip(n, sdri_db=value) for n in (1, 2)])
    runs = [read_run(str(tmp_path / name), name, Storage()) for name in ("a", "b")]
    table = comparison_table(compare(runs[0], runs[1], ["sdri_db"]))
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["Runs"] == "b minus a"
    assert row["Difference, mean ± std [95 %]"] == "1.50 ± 0.00 [1.50, 1.50]"
    assert row["Win rate"] == "100.0 %"
    assert row["Models"] == "tones a1a1a1a1a1a1 / tones a1a1a1a1a1a1"
