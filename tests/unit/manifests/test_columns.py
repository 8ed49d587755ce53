"""The table of columns is what the schemas, the documents and the report follow."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from manifests import columns

ROOT = Path(__file__).resolve().parents[3]
TABLES = {
    "metrics": (columns.METRICS_TABLE, columns.METRICS_SCHEMA),
    "summary": (columns.SUMMARY_TABLE, columns.SUMMARY_SCHEMA),
    "dead letters": (columns.DEAD_LETTER_TABLE, columns.DEAD_LETTER_SCHEMA),
}


@pytest.mark.parametrize("name", TABLES)
def test_every_column_of_the_table_is_one_of_the_schema(name: str) -> None:
    table, schema = TABLES[name]
    assert [column.name for column in table] == schema.names
    for column in table:
        field = schema.field(column.name)
        assert (field.type, field.nullable) == (column.type, not column.required)


@pytest.mark.parametrize("name", TABLES)
def test_every_column_says_in_a_sentence_what_it_means(name: str) -> None:
    for column in TABLES[name][0]:
        assert re.fullmatch(r"[A-Z`0-9].*[.]", column.meaning), column


def test_a_name_ends_in_the_unit() -> None:
    units = {column.name: column.unit for column in columns.METRICS_TABLE}
    assert (units["sdri_db"], units["offset_s"], units["sample_rate_hz"]) == ("dB", "s", "Hz")
    assert units["clap_score"] == units["n_channels"] == ""


def test_metrics_are_the_titled_columns_and_up_is_better_unless_it_is_said() -> None:
    titled = [column for column in columns.METRICS_TABLE if column.title is not None]
    assert titled == list(columns.METRICS)
    assert {column.name for column in titled if column.better == "down"} == {"clap_score_negative"}
    without = {column.name for column in titled if column.better is None}
    assert without == {name for name in columns.METRIC_COLUMNS if "mixture" in name}
    assert all(column.better is not None for column in titled if column.shown)
    assert columns.SHOWN_METRICS[0] == "sdri_db", "what reports are about by default"


def test_the_page_of_columns_is_what_the_command_prints() -> None:
    page = (ROOT / "docs" / "columns.md").read_text(encoding="utf-8")
    assert page.splitlines() == list(columns.page()), (
        "python -m manifests.columns > docs/columns.md"
    )


def test_the_readme_defines_every_metric_and_no_other() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", section))
    assert named == {*columns.METRIC_COLUMNS, "undefined_reason"}
