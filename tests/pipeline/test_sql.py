"""Every example of docs/sql.md, executed on the output of a run."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pandas as pd
import pytest

import tone_runs

DOCUMENT = Path(__file__).parents[2] / "docs" / "sql.md"
BLOCKS = re.findall(r"^```([a-z ]+)\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.M | re.S)
DUCKDB = [code for kind, code in BLOCKS if kind == "sql"]
BIGQUERY = [code for kind, code in BLOCKS if kind == "sql bigquery"]
PANDAS = "".join(code for kind, code in BLOCKS if kind == "python")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``out/`` is."""
    folder = tmp_path_factory.mktemp("sql")
    rows = tone_runs.write_mixtures(folder / "in", count=8)
    rows[1]["snr_db"] = 3.0
    rows.append({**rows[0], "id": "unscored", "reference_uri": None})
    rows.append({**rows[0], "id": "nowhere", "dataset": None, "split": None})
    rows.append({**rows[0], "id": "gone", "mixture_uri": "gone.wav"})
    manifest = tone_runs.write_manifest(folder / "rows.jsonl", rows)
    with tone_runs.tones_as_models():
        assert tone_runs.run("--manifest", manifest, "--output", folder / "out") == 1
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def _query(code: str) -> pd.DataFrame:
    return duckdb.connect().execute(code).df()


def test_the_page_has_examples_of_all_three() -> None:
    assert len(DUCKDB) >= 6
    assert len(BIGQUERY) >= 3
    assert "pd.read_parquet" in PANDAS


@pytest.mark.parametrize("code", DUCKDB, ids=lambda code: code.splitlines()[0].strip("- "))
def test_a_duckdb_example_gives_rows(here: Path, code: str) -> None:
    assert len(_query(code)) >= 1


def test_duckdb_sees_the_partitions_and_the_nulls(here: Path) -> None:
    found = _query(DUCKDB[0]).set_index(["dataset"])
    assert found.loc["even", "clips"] == 5
    assert found.loc["even", "defined"] == 4
    assert found.loc["odd", "sdri_db"] > 30
    assert found.index.isna().sum() == 1


def test_duckdb_and_the_summary_agree(here: Path) -> None:
    found = _query(DUCKDB[0]).set_index("dataset")
    lines = [row for row in tone_runs.table(here / "out", "summary") if row["metric"] == "sdri_db"]
    odd = [line for line in lines if line["dataset"] == "odd"]
    mean = sum(line["n"] * line["mean"] for line in odd) / sum(line["n"] for line in odd)
    assert found.loc["odd", "sdri_db"] == pytest.approx(mean, abs=0.006)


def test_the_pandas_examples_run_and_agree(here: Path) -> None:
    names: dict[str, pd.DataFrame] = {}
    exec(PANDAS, names)  # noqa: S102 - our own document
    assert len(names["metrics"]) == 10
    assert names["table"].loc[("odd", "text", "P+N"), "count"] == 4
    assert names["wide"].loc["even", "clap_score"] == pytest.approx(1.0)
    assert list(names["retry"]["id"]) == ["gone"]
    output = here / "again"
    with tone_runs.tones_as_models():
        code = tone_runs.run("--manifest", here / "retry.parquet", "--output", output)
    assert code == 1
    assert [row["id"] for row in tone_runs.table(output, "dead_letters")] == ["gone"]


@pytest.mark.parametrize("code", BIGQUERY, ids=range(len(BIGQUERY)))
def test_a_bigquery_example_runs_in_standard_sql(here: Path, code: str) -> None:
    database = duckdb.connect()
    database.execute("CREATE SCHEMA results")
    for name in ("metrics", "dead_letters"):
        database.execute(
            f"CREATE VIEW results.{name} AS "  # noqa: S608 - fixed names
            f"SELECT * FROM read_parquet('out/{name}/**/*.parquet', hive_partitioning = false)"
        )
    assert len(database.execute(code).df()) >= 2


def test_files_can_be_read_without_their_folders(here: Path) -> None:
    for file in (here / "out" / "metrics").rglob("*.parquet"):
        table = pd.read_parquet(file, partitioning=None)
        folder = file.parent.parent.name.removeprefix("dataset=")
        expected = None if folder.startswith("__") else folder
        assert set(table["dataset"].astype(object).where(table["dataset"].notna(), None)) == {
            expected
        }
