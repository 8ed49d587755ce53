"""Every example of docs/sql.md, executed on runs whose datasets look like other types."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tone_runs
import tones

DOCUMENT = Path(__file__).parents[2] / "docs" / "sql.md"
BLOCKS = re.findall(r"^```([a-z ]+)\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.M | re.S)
DUCKDB = [code for kind, code in BLOCKS if kind == "sql"]
BIGQUERY = [code for kind, code in BLOCKS if kind == "sql bigquery"]
PYTHON = "".join(code for kind, code in BLOCKS if kind == "python")
NAMES = (
    ("even", "odd"),
    ("2024", "2023"),
    ("2024-01-01", "2024-12-31"),
    ("007", "08"),
    ("Zoë's 日本 🐕 100 %", "a/b=c d+e"),
    ("__HIVE_DEFAULT_PARTITION__", "nan"),
)
"""Of two datasets each; a third has no name."""


def titled(code: str) -> str:
    return code.splitlines()[0].strip("- ")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """A folder with the runs ``out`` and ``other``, and what their datasets are called."""

    folder: Path
    first: str
    second: str

    @property
    def datasets(self) -> set[str | None]:
        return {self.first, self.second, None}

    def query(self, code: str) -> duckdb.DuckDBPyRelation:
        """What DuckDB makes of an example, which names the dataset ``even``."""
        code = code.replace("FLOAT[256]", f"FLOAT[{len(tones.LABELS)}]")
        return duckdb.connect().sql(
            code.replace("'even'", "'" + self.first.replace("'", "''") + "'")
        )


@pytest.fixture(scope="module", params=NAMES, ids=lambda names: names[0])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Two runs over one manifest, but for a row."""
    first, second = request.param
    folder = tmp_path_factory.mktemp("sql")
    rows = tone_runs.write_mixtures(folder / "in", count=8)
    for row in rows:
        row["dataset"] = {"even": first, "odd": second}[row["dataset"]]
        row["label"] = row["positive_text"].removesuffix(" one")
    rows[1]["snr_db"] = 3.0
    rows.append({**rows[0], "id": "unscored", "reference_uri": None})
    rows.append({**rows[0], "id": "nowhere", "dataset": None, "split": None})
    rows.append({**rows[0], "id": "gone", "mixture_uri": "gone.wav"})
    manifest = tone_runs.write_manifest(folder / "rows.jsonl", rows)
    with tone_runs.tones_as_models():
        words = ("--manifest", manifest, "--output", folder / "out", "--embeddings", "--windows")
        assert tone_runs.run(*words) == 1
        shutil.copytree(folder / "out", folder / "parts" / "shard=0-of-1")
    rows[0]["offset_s"] = 0.25
    manifest = tone_runs.write_manifest(folder / "rows.jsonl", rows)
    with tone_runs.tones_as_models() as loaded:
        loaded.model = dataclasses.replace(loaded.model, name="other tones")
        assert tone_runs.run("--manifest", manifest, "--output", folder / "other") == 1
    return Runs(folder=folder, first=first, second=second)


@pytest.fixture
def here(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.chdir(runs.folder)
    return runs


def test_the_page_has_examples_of_all_three() -> None:
    assert len(DUCKDB) >= 15
    assert len(BIGQUERY) >= 4
    assert "read_table" in PYTHON
    assert "pl.scan_parquet" in PYTHON


def test_every_query_leaves_names_text_and_takes_all_columns() -> None:
    for code in DUCKDB:
        reads = code.count("read_parquet(")
        assert code.count("union_by_name = true") == reads >= 1
        partitioned = code.count("hive_partitioning = true")
        assert code.count("hive_types_autocast = false") == partitioned
        assert partitioned == code.count("/metrics/") + code.count("/embeddings/")


@pytest.mark.parametrize("code", DUCKDB, ids=titled)
def test_a_duckdb_example_gives_rows_and_names_as_text(here: Runs, code: str) -> None:
    found = here.query(code)
    types = dict(zip(found.columns, map(str, found.types), strict=True))
    assert types.get("dataset", "VARCHAR") == "VARCHAR"
    rows = [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]
    assert rows
    assert {row["dataset"] for row in rows if "dataset" in row} <= here.datasets


def example(words: str) -> str:
    """The one query whose first line has these words."""
    (code,) = (code for code in DUCKDB if words in titled(code))
    return code


def records(found: duckdb.DuckDBPyRelation) -> list[dict[str, Any]]:
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def test_duckdb_sees_the_partitions_and_the_nulls(here: Runs) -> None:
    found = {row["dataset"]: row for row in records(here.query(DUCKDB[0]))}
    assert found.keys() == here.datasets
    assert (found[here.first]["clips"], found[here.first]["defined"]) == (5, 4)
    assert found[here.second]["sdri_db"] > 30
    assert found[None]["clips"] == 1


def test_a_dataset_is_found_by_its_name(here: Runs) -> None:
    found = records(here.query(example("Of other datasets")))
    assert {row["id"] for row in found} == {*(f"clip/{n}" for n in (0, 2, 4, 6)), "unscored"}


def test_duckdb_and_the_summary_agree(here: Runs) -> None:
    found = {row["dataset"]: row for row in records(here.query(DUCKDB[0]))}
    lines = [
        row for row in tone_runs.table(here.folder / "out", "summary") if row["metric"] == "sdri_db"
    ]
    some = [line for line in lines if line["dataset"] == here.second]
    mean = sum(line["n"] * line["mean"] for line in some) / sum(line["n"] for line in some)
    assert found[here.second]["sdri_db"] == pytest.approx(mean, abs=0.006)


def test_recordings_with_a_dog_are_found_by_label_and_by_what_was_asked(here: Runs) -> None:
    dogs = {str(here.folder / "in" / f"m{number}.wav") for number in (1, 7)}
    by_label = records(here.query(example("by the manifest's label")))
    assert {row["recording"] for row in by_label} == dogs
    assert [row["clips"] for row in by_label] == [1, 1]
    by_score = records(here.query(example("by the CLAPScore of the stem")))
    assert {row["recording"] for row in by_score} == dogs
    assert all(Path(row["stem_uri"]).is_file() for row in by_score)


def test_segments_say_when_a_dog_is_heard_and_what_sounds_at_the_same_time(here: Runs) -> None:
    dogs = {str(here.folder / "in" / f"m{number}.wav") for number in (1, 7)}
    heard = records(here.query(example("When a dog is heard")))
    assert {row["recording"] for row in heard} == dogs
    assert [(row["from_s"], row["to_s"]) for row in heard] == [(0.0, 1.0)] * 2
    assert all(Path(row["stem_uri"]).is_file() for row in heard)
    times = records(here.query(example("For how long, and how often")))
    assert sum(row["times"] for row in times) == len(
        tone_runs.table(here.folder / "out", "segments")
    )
    assert {row["active_s"] / row["of_s"] for row in times} == {1.0}
    together = records(here.query(example("What sounds at the same time")))
    assert len(together) == 3  # clip/0, nowhere and unscored, two by two
    assert {(row["from_s"], row["to_s"]) for row in together} == {(0.0, 1.0)}


def test_what_sounds_alike_is_found_by_embeddings(here: Runs) -> None:
    # Tones of one label have one embedding, and others are at right angles to it.
    stems = records(here.query(example("The stems that sound most like")))
    alike = {row["id"] for row in stems if row["likeness"] == 1.0}
    assert alike == {"clip/6", "nowhere", "unscored"}
    assert {row["likeness"] for row in stems} == {0.0, 1.0}
    heard = {
        row["mixture_uri"]: row["embedding"]
        for row in tone_runs.table(here.folder / "out", "windows")
    }
    places = records(here.query(example("Where in all recordings it sounds most like")))
    dog = [float(label == "dog_bark") for label in tones.LABELS]
    found = {row["recording"] for row in places if row["likeness"] == 1.0}
    assert found == {uri for uri, vector in heard.items() if vector == dog}
    assert found
    pairs = records(here.query(example("Recordings that may be the same")))
    expected = {(a, b) for a in heard for b in heard if a < b and heard[a] == heard[b]}
    assert {(row["recording"], row["other_recording"]) for row in pairs} == expected
    assert expected


def test_silence_is_last_among_what_sounds_alike(
    here: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("embeddings", "windows"):
        shutil.copytree(here.folder / "out" / name, tmp_path / "out" / name)
    monkeypatch.chdir(tmp_path)
    for name in ("embeddings", "windows"):
        file = min((tmp_path / "out" / name).rglob("*.parquet"))
        table = pq.ParquetFile(file).read()
        place = table.schema.get_field_index("embedding")
        nothing = pa.nulls(len(table), table.schema.field("embedding").type)
        pq.write_table(table.set_column(place, table.schema.field("embedding"), nothing), file)
    for words in ("The stems that sound most like", "Where in all recordings it sounds most like"):
        known = [row["likeness"] is not None for row in records(here.query(example(words)))]
        assert known == sorted(known, reverse=True)
    pairs = records(here.query(example("Recordings that may be the same")))
    assert all(row["likeness"] > 0.98 for row in pairs)


def written(folder: Path, name: str, rows: str) -> None:
    """Writes a table of a run from SQL."""
    folder = folder / "out" / name
    folder.mkdir(parents=True)
    duckdb.connect().execute(f"COPY ({rows}) TO '{folder / 'part.parquet'}' (FORMAT parquet)")


def test_times_are_compared_in_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three clips of one recording: from 0, 60 and 60.5 s on.
    written(
        tmp_path,
        "metrics",
        "FROM (VALUES ('a', 0.0, 'x'), ('b', 60.0, 'x'), ('c', 60.5, 'x')) "
        "t(id, offset_s, dataset)",
    )
    written(
        tmp_path,
        "segments",
        "FROM (VALUES ('a', 'r.wav', 'dog', 0.0, 1.0), ('b', 'r.wav', 'bell', 0.0, 1.0), "
        "('c', 'r.wav', 'rain', 0.0, 1.0)) t(id, mixture_uri, positive_text, start_s, end_s)",
    )
    vector = [1.0, *[0.0] * (len(tones.LABELS) - 1)]
    written(
        tmp_path,
        "windows",
        "SELECT uri AS mixture_uri, begin AS offset_s, 5.0 AS start_s, 's' AS scorer_sha256, "  # noqa: S608
        f"{vector}::FLOAT[] AS embedding "
        "FROM (VALUES ('p.wav', 30.0), ('q.wav', 0.0)) t(uri, begin)",
    )
    monkeypatch.chdir(tmp_path)
    here = Runs(folder=tmp_path, first="x", second="y")
    together = records(here.query(example("What sounds at the same time")))
    assert [(row["what"], row["also"]) for row in together] == [("bell", "rain")]
    assert [(row["from_s"], row["to_s"]) for row in together] == [(60.5, 61.0)]
    (pair,) = records(here.query(example("Recordings that may be the same")))
    assert (pair["from_s"], pair["other_from_s"]) == (35.0, 5.0)


def test_what_was_not_separated_does_not_count_for_the_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "FROM (VALUES (10.0, 2.0, 'x'), (90.0, NULL, 'x')) t(duration_s, inference_s, dataset)"
    written(tmp_path, "metrics", f"SELECT *, 'cpu' AS device, 'fp32' AS precision {rows}")
    monkeypatch.chdir(tmp_path)
    here = Runs(folder=tmp_path, first="x", second="y")
    (row,) = records(here.query(example("an hour of inference")))
    assert row["times_real_time"] == 5.0


def test_means_of_groups_count_by_their_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (
        "FROM (VALUES ('a', 'P', 1, 0.0), ('a', 'N', 3, 4.0), ('a', 'P+N', 0, NULL), "
        "(NULL, 'P', 2, 1.0))"
    )
    written(
        tmp_path, "summary", f"SELECT *, 'sdri_db' AS metric {rows} t(dataset, polarity, n, mean)"
    )
    monkeypatch.chdir(tmp_path)
    (code,) = (code for kind, code in BLOCKS if kind == "python" and "out/summary" in code)
    names: dict[str, Any] = {"pd": pd}
    exec(code, names)  # noqa: S102 - our own document
    assert names["wide"]["sdri_db"].tolist() == [3.0, 1.0]


def test_text_finds_what_was_asked_for_and_against(here: Runs) -> None:
    found = records(here.query(example("whose query has a dog")))
    texts = {row["id"]: (row["positive_text"], row["negative_text"]) for row in found}
    assert texts["clip/1"] == ("dog_bark one", "frog two")
    assert texts["clip/0"] == ("bell one", "dog_bark two")
    assert texts.keys() == {"clip/0", "clip/1", "clip/7", "nowhere", "unscored"}


def test_two_runs_are_joined_where_their_rows_are_the_same(here: Runs) -> None:
    found = records(here.query(example("The same row under two models")))
    assert {row["id"] for row in found} == {*(f"clip/{n}" for n in range(1, 8))} | {
        *("unscored", "nowhere"),
    }
    assert {(row["model"], row["other_model"]) for row in found} == {("tones", "other tones")}
    assert {row["difference_db"] for row in found} == {0.0, None}
    (changed,) = records(here.query(example("Rows that have the same id")))
    assert (changed["id"], changed["offset_s"], changed["other_offset_s"]) == ("clip/0", 0.0, 0.25)
    pairs = {row["dataset"]: row["pairs"] for row in records(here.query(example("By dataset:")))}
    assert pairs == {here.first: 3, here.second: 4, None: 1}


def test_the_python_examples_run_and_agree(here: Runs) -> None:
    names: dict[str, Any] = {}
    exec(PYTHON, names)  # noqa: S102 - our own document
    assert len(names["metrics"]) == 10
    assert names["table"].loc[(here.second, "text", "P+N"), "count"] == 4
    assert names["wide"].loc[here.first, "clap_score"] == pytest.approx(1.0)
    assert names["retry"]["id"].to_pylist() == ["gone"]
    assert len(names["both"]) == 9
    assert set(names["difference_db"].dropna()) == {0.0}
    assert sorted(names["with_dog"]["id"]) == ["clip/1", "clip/7"]
    assert set(names["frame"]["dataset"].to_list()) == here.datasets
    assert sorted(names["frame"].columns) == sorted(names["metrics"].columns)
    assert {row["dataset"]: row["len"] for row in names["by_dataset"].to_dicts()} == {
        here.first: 5,
        here.second: 4,
        None: 1,
    }


def test_dead_letters_that_are_chosen_keep_all_columns_and_numbers(
    here: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = 2**53 + 1
    for name in ("out", "other"):
        shutil.copytree(here.folder / name, tmp_path / name)
    (part,) = (tmp_path / "out" / "dead_letters").glob("*.parquet")
    table = pq.ParquetFile(part).read()
    place = table.schema.get_field_index("seed")
    seeded = table.set_column(place, table.schema.field("seed"), pa.array([seed] * len(table)))
    late = seeded.append_column("extra_late", pa.array(["x"] * len(table)))
    pq.write_table(late, part.with_name("part-999.parquet"))
    monkeypatch.chdir(tmp_path)
    exec(PYTHON, {})  # noqa: S102 - our own document
    found = pq.ParquetFile(tmp_path / "retry.parquet").read()
    assert set(found["seed"].to_pylist()) == {None, seed}
    assert set(found["extra_late"].to_pylist()) == {None, "x"}


def test_dead_letters_that_were_chosen_are_a_manifest(here: Runs) -> None:
    exec(PYTHON, {})  # noqa: S102 - our own document
    output = here.folder / "again"
    with tone_runs.tones_as_models():
        code = tone_runs.run("--manifest", here.folder / "retry.parquet", "--output", output)
    assert code == 1
    assert [row["id"] for row in tone_runs.table(output, "dead_letters")] == ["gone"]
    shutil.rmtree(output)


@pytest.mark.parametrize("code", BIGQUERY, ids=range(len(BIGQUERY)))
def test_a_bigquery_example_runs_in_standard_sql(here: Runs, code: str) -> None:
    database = duckdb.connect()
    database.execute("CREATE SCHEMA results")
    for name in ("metrics", "dead_letters"):
        database.execute(
            f"CREATE VIEW results.{name} AS "  # noqa: S608 - fixed names
            f"SELECT * FROM read_parquet('out/{name}/**/*.parquet', hive_partitioning = false)"
        )
    assert len(database.execute(code).df()) >= 2


def test_files_can_be_read_without_their_folders(here: Runs) -> None:
    found = set()
    for file in (here.folder / "out" / "metrics").rglob("*.parquet"):
        table = pd.read_parquet(file, partitioning=None)
        (name,) = set(table["dataset"].astype(object).where(table["dataset"].notna(), None))
        found.add(name)
    assert found == here.datasets


def test_columns_that_only_one_file_has_are_read(
    here: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("out", "other"):
        shutil.copytree(here.folder / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    last = max((tmp_path / "out" / "metrics").rglob("*.parquet"))
    table = pq.ParquetFile(last).read()
    late = table.append_column("extra_late", pa.array(["x"] * len(table)))
    pq.write_table(late, last.with_name("part-999.parquet"))

    (read, *_) = re.findall(r"read_parquet\(.*?\)", DUCKDB[0], re.DOTALL)
    counted = here.query(f"SELECT count(extra_late) FROM {read}")  # noqa: S608 - our own document
    names: dict[str, Any] = {}
    exec(PYTHON, names)  # noqa: S102 - our own document
    assert counted.fetchall() == [(len(table),)]
    assert names["metrics"]["extra_late"].count() == len(table)
    assert names["frame"]["extra_late"].count() == len(table)
