"""What other programs write for nothing, for numbers and for text, as files that people had."""

from __future__ import annotations

import csv
import datetime
import json
import re
import uuid
from decimal import Decimal
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifest_files import HEADER, rows, write
from manifests.files import ManifestError
from manifests.files.readers import NOTHING_IN_CSV, iter_split, plan_splits
from manifests.row import ManifestRow, RowError
from manifests.validate import check

CASES = Path(__file__).parents[2] / "data" / "cases"
NOTHING = [
    "",
    " ",
    "NA",
    "N/A",
    "n/a",
    "None",
    "null",
    "NULL",
    r"\N",
    "nan",
    "NaN",
    "<NA>",
    "#N/A",
    "NaT",
]
WIDE = f"{HEADER},negative_text,offset_s,positive_audio_uris,dataset,seed,note"


def test_blank_rows_are_passed_over_and_not_counted():
    path = str(CASES / "csv_habits" / "excel_blank_rows.csv")
    assert [(row.id, row.manifest_row) for row in rows(path)] == [("a", 2), ("b", 3)]
    report = check(path)
    assert (report.is_valid, report.num_rows) == (True, 2)


@pytest.mark.parametrize(
    "blank",
    [",,", ",,,,,", " , ,", "   ", "\t", '"","",""', ",\u00a0,", "NA,NA,NA", "nan,,NULL,,"],
)
def test_every_blank_row(tmp_path, blank):
    uri = write(tmp_path / "m.csv", f"{HEADER}\r\n{blank}\r\na,m.wav,dog\r\n{blank}\r\n{blank}")
    (row,) = rows(uri)
    assert (row.id, row.manifest_row) == ("a", 3)
    split_rows = [row for split in plan_splits(uri, split_bytes=1) for row in iter_split(split)]
    assert split_rows == [row]


@pytest.mark.parametrize("word", NOTHING)
def test_words_for_nothing_are_nothing_in_the_optional_columns_of_csv(tmp_path, word):
    uri = write(tmp_path / "m.csv", f"{WIDE}\na,m.wav,dog{f',{word}' * 5},x\n")
    (row,) = rows(uri)
    absent = (row.negative_text, row.offset_s, row.positive_audio_uris, row.dataset, row.seed)
    assert absent == (None, None, (), None, None)


@pytest.mark.parametrize("word", [word for word in NOTHING if word.strip()])
def test_words_for_nothing_stay_in_ids_and_in_columns_of_ones_own(tmp_path, word):
    uri = write(tmp_path / "m.csv", f"{WIDE}\n{word},m.wav,dog,,,,,,{word}\n")
    (row,) = rows(uri)
    assert (row.id, row.extra) == (word, {"note": word})


def test_a_row_that_asks_for_nothing_is_said_and_kept(tmp_path):
    uri = write(tmp_path / "m.csv", f"{HEADER}\na,m.wav,NA\nb,NULL,dog\n")
    first, second = rows(uri)
    assert (first.field, second.field) == ("positive_text", "mixture_uri")
    assert json.loads(second.row_json)["id"] == "b"


@pytest.mark.parametrize("word", ["NA", "None", "null", "nan"])
def test_text_of_json_and_parquet_stays_text(tmp_path, word):
    record = {"id": word, "mixture_uri": word, "positive_text": word, "label": word}
    write(tmp_path / "m.jsonl", json.dumps(record))
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "m.parquet")
    for name in ("m.jsonl", "m.parquet"):
        (row,) = rows(tmp_path / name)
        assert (row.id, row.positive_text, row.label) == (word, word, word)


@pytest.mark.parametrize(
    ("name", "uris"),
    [("header_space.csv", ["dog.wav"]), ("trailing_space.csv", ["dog.wav"] * 3)],
)
def test_blanks_around_cells_do_not_count(name, uris):
    found = rows(CASES / "csv_habits" / name)
    assert [Path(row.mixture_uri).name for row in found] == uris
    assert all(row.id == row.id.strip() for row in found)


def test_blanks_before_quotes_and_blank_cells_beyond_the_header_do_not_count(tmp_path):
    text = f'{HEADER.replace(",", ", ")}\na, "m.wav", "dog, loud"\nb,m.wav,cat,\nc,m.wav,cat,, \n'
    found = rows(write(tmp_path / "m.csv", text))
    assert [(row.id, row.positive_text) for row in found] == [
        ("a", "dog, loud"),
        ("b", "cat"),
        ("c", "cat"),
    ]
    (error,) = rows(write(tmp_path / "x.csv", f"{HEADER}\n1,a,m.wav,dog\n"))
    assert error.expected == "3 cells, not 4"


@pytest.mark.parametrize("line", ["sep=,", '"sep=,"', "\ufeffsep=,", '\ufeff"sep=,"\r'])
def test_a_first_line_that_tells_excel_the_separator_is_passed_over(tmp_path, line):
    (row,) = rows(write(tmp_path / "m.csv", f"{line}\n{HEADER}\na,m.wav,dog\n"))
    assert row.id == "a"


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])  # Polars writes the latter
def test_lists_of_single_precision_are_what_csv_would_say(tmp_path, kind):
    levels = pa.array([[0.1, -2.5], None, []], kind(pa.float32()))
    names = {"id": ["a", "b", "c"], "target_uri": ["t.wav"] * 3, "positive_text": ["dog"] * 3}
    interferers = [["i.wav", "j.wav"]] * 3
    table = pa.table({**names, "interferer_uris": interferers, "snr_db": levels})
    pq.write_table(table, tmp_path / "m.parquet")
    assert [row.snr_db for row in rows(tmp_path / "m.parquet")] == [(0.1, -2.5), (), ()]


def test_a_time_zone_that_nobody_knows_here_is_the_row_s_error(tmp_path):
    begun = pa.array([None, 0], pa.timestamp("us", "Mars/Utopia"))
    names = {"id": ["a", "b"], "mixture_uri": ["m.wav"] * 2, "positive_text": ["dog"] * 2}
    pq.write_table(pa.table({**names, "begun": begun}), tmp_path / "m.parquet")
    fine, error = rows(tmp_path / "m.parquet")
    assert (fine.id, fine.extra) == ("a", {})
    assert "time zones known here" in error.expected


def test_an_empty_name_is_not_the_working_folder(tmp_path, monkeypatch):
    write(tmp_path / "m.csv", f"{HEADER}\na,m.wav,dog\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ManifestError, match="found an empty name"):
        rows("")


def test_ids_that_differ_by_blanks_only_are_duplicates():
    assert check(str(CASES / "csv_habits" / "trailing_space.csv")).num_duplicates == 1


def test_blanks_around_text_of_json_stay(tmp_path):
    record = {"id": "a ", "mixture_uri": "m.wav", "positive_text": " dog"}
    (row,) = rows(write(tmp_path / "m.jsonl", json.dumps(record)))
    assert (row.id, row.positive_text) == ("a ", " dog")


def test_backslashes_of_windows_are_kept():
    found = rows(CASES / "csv_habits" / "backslash.csv")
    folder = CASES / "csv_habits"
    assert [row.mixture_uri for row in found] == [
        rf"{folder}/.\dog.wav", r"C:\Users\me\dog.wav", rf"{folder}/sub\dog.wav",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (r'"a \"dog\" barking"', 'a "dog" barking'),
        (r'"\"dog\""', '"dog"'),
        (r'"dog\""', 'dog"'),
        (r'"say \"a, b\" twice"', 'say "a, b" twice'),
        (r'"C:\\\"x\""', r'C:\"x"'),
        (r'"ends in \\"', r"ends in \\"),
        (r'"C:\dir\"', "C:\\dir\\"),
        (r"C:\dir", r"C:\dir"),
        ('"a ""dog"""', 'a "dog"'),
    ],
)
def test_quotes_as_spark_escapes_them(tmp_path, cell, text):
    lines = [HEADER, "x,m.wav,bell", f"a,m.wav,{cell}", "y,m.wav,bell", 'z,m.wav,"two\nlines"']
    found = rows(write(tmp_path / "m.csv", "\n".join(lines)))
    assert [row.id for row in found] == ["x", "a", "y", "z"]
    assert (found[1].positive_text, found[1].manifest_row) == (text, 3)
    assert found[3].positive_text == "two\nlines"


def test_a_quote_that_is_never_closed_is_still_one_bad_row(tmp_path):
    found = rows(write(tmp_path / "m.csv", f'{HEADER}\na,m.wav,"x \\" y\nb,m.wav,dog\n'))
    assert [isinstance(row, RowError) for row in found] == [True, False]


@pytest.mark.parametrize(
    "name",
    [
        "blob.parquet",
        "duckdb_decimal.parquet",
        "int_id.jsonl",
        "int_id.parquet",
        "polars_nan.parquet",
    ],
)
def test_tables_of_other_programs_are_valid(name):
    assert all(isinstance(row, ManifestRow) for row in rows(CASES / "parquet_types" / name))


def test_what_they_hold():
    folder = CASES / "parquet_types"
    (decimal,) = rows(folder / "duckdb_decimal.parquet")
    assert (decimal.offset_s, decimal.duration_s, decimal.text_weight) == (0.5, 1.5, 0.5)
    assert (decimal.n_sources, decimal.seed) == (3, 7)
    assert rows(folder / "blob.parquet")[0].mixture_uri == f"{folder}/dog.wav"
    assert [row.id for row in rows(folder / "int_id.parquet")] == ["1", "2"]
    assert [row.offset_s for row in rows(folder / "int_id.parquet")] == [0.5, None]
    assert [row.offset_s for row in rows(folder / "polars_nan.parquet")] == [0.5, None]
    assert rows(folder / "int_id.jsonl")[0].id == "17"


ONE_UUID = uuid.UUID("08caf63d-6cb1-43e2-8b2e-9d24c51c1b05")
LOOKS_LIKE_TEXT = uuid.UUID("41414141-4141-4141-c3a9-414141414141")  # valid UTF-8


@pytest.mark.parametrize(
    ("column", "text"),
    [
        (pa.array([7]), "7"),
        (pa.array([7], pa.uint64()), "7"),
        (pa.array([7.0]), "7"),
        (pa.array([7.0], pa.float32()), "7"),
        (pa.array([2.5], pa.float32()), "2.5"),
        (pa.array([0.1], pa.float32()), "0.1"),
        (pa.array([Decimal("7")], pa.decimal128(20, 0)), "7"),
        (pa.array([Decimal("7.50")]), "7.50"),
        (pa.array([Decimal(10) ** 60], pa.decimal256(70, 0)), "1" + "0" * 60),
        (pa.array([ONE_UUID.bytes], pa.uuid()), str(ONE_UUID)),
        (pa.array([LOOKS_LIKE_TEXT.bytes], pa.uuid()), str(LOOKS_LIKE_TEXT)),
        (pa.array([LOOKS_LIKE_TEXT.bytes], pa.binary(16)), str(LOOKS_LIKE_TEXT)),
        (pa.array([b"sixteen letters!"], pa.binary(16)), "sixteen letters!"),
        (pa.array([ONE_UUID.bytes]), str(ONE_UUID)),
        (pa.array(["é".encode()]), "é"),
        (pa.array([b"x"], pa.binary_view()), "x"),
        (pa.array([b"\xff\x00"]), "ff00"),
        (pa.array(["x"], pa.large_string()), "x"),
        (pa.array(["x"], pa.string_view()), "x"),
        (pa.array(["x"]).dictionary_encode(), "x"),
        (pa.array([5]).dictionary_encode(), "5"),
        (pa.array([True]), "true"),
        (pa.array([datetime.date(2024, 1, 2)]), "2024-01-02"),
        (pa.array([datetime.datetime(2024, 1, 2, 3, 4, 5)]), "2024-01-02 03:04:05"),
        (pa.array([1704164645123456789], pa.timestamp("ns")), "2024-01-02 03:04:05.123456789"),
        (pa.array([1704164645120000000], pa.timestamp("ns")), "2024-01-02 03:04:05.12"),
        (pa.array([1704164640000000000], pa.timestamp("ns")), "2024-01-02 03:04:00"),
        (pa.array([1704164640000000000], pa.timestamp("ns", "UTC")), "2024-01-02 03:04:00Z"),
        (pa.array([10_000_000_000], pa.time64("ns")), "00:00:10"),
        (pa.array([datetime.time(3, 4, 5)]), "03:04:05"),
    ],
)
def test_values_of_parquet_are_what_csv_would_say(tmp_path, column, text):
    common = {"mixture_uri": ["m.wav"], "positive_text": ["dog"]}
    table = pa.table({"id": column, **common, "label": column, "note": column})
    pq.write_table(table, tmp_path / "m.parquet")
    (row,) = rows(tmp_path / "m.parquet")
    assert (row.id, row.label) == (text, text)
    assert row.extra["note"] in (text, f"{text}.0")  # a float of one's own stays one


def test_gaps_and_lists_of_parquet(tmp_path):
    table = pa.table(
        {
            "id": [1.0, 2.0, None],
            "mixture_uri": ["m.wav", "m.wav", None],
            "positive_text": ["dog", "dog", None],
            "label": pa.array(["a", None, None]).dictionary_encode(),
            "snr_db": [[1, 2.5], None, None],
            "score": [float("nan"), float("inf"), float("nan")],
            "audio": [{"bytes": b"\xff", "path": "p"}, None, None],
            "when": pa.array([1, None, None], pa.timestamp("us")),
            "code": pa.array([b"0123456789abcdef", None, None], pa.binary(16)),
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    first, second = rows(tmp_path / "m.parquet")
    assert (first.id, first.label, first.snr_db) == ("1", "a", (1.0, 2.5))
    assert first.extra == {
        "audio": '{"bytes": "ff", "path": "p"}',
        "when": "1970-01-01 00:00:00.000001",
        "code": "0123456789abcdef",
    }
    assert (second.id, second.label, second.extra) == ("2", None, {"score": "inf"})


def test_numbers_of_json(tmp_path):
    lines = [
        '{"id": 7.0, "mixture_uri": "m.wav", "positive_text": 911, "label": true, "offset_s": NaN}',
        '{"id": 12345678901234567890123, "mixture_uri": "m.wav", "positive_text": "x", '
        '"dataset": 2024}',
        '{"id": null, "mixture_uri": null, "note": NaN}',
    ]
    first, second = rows(write(tmp_path / "m.jsonl", "\n".join(lines)))
    assert (first.id, first.positive_text, first.label, first.offset_s) == (
        "7",
        "911",
        "true",
        None,
    )
    assert (second.id, second.dataset) == ("12345678901234567890123", "2024")


def test_the_id_of_a_bad_row_is_said_as_that_of_a_good_one(tmp_path):
    table = pa.table(
        {"id": [1], "mixture_uri": ["m"], "positive_text": ["x"], "seed": ["?"], "when": [b"\xff"]}
    )
    pq.write_table(table, tmp_path / "m.parquet")
    (bad,) = rows(tmp_path / "m.parquet")
    assert (bad.row_id, json.loads(bad.row_json)["when"]) == ("1", "ff")


def test_the_same_table_from_duckdb_and_pandas(tmp_path):
    duckdb.sql(
        "COPY (SELECT uuid '08caf63d-6cb1-43e2-8b2e-9d24c51c1b05' AS id, 'm.wav' AS mixture_uri, "
        "'dog' AS positive_text, 0.5 AS offset_s, 'nan'::DOUBLE AS duration_s, NULL AS label, "
        "7::HUGEINT AS seed, 'a'::ENUM ('a', 'b') AS dataset, DATE '2024-01-02' AS day) "
        f"TO '{tmp_path}/d.parquet'"
    )
    duckdb.sql(f"COPY (FROM '{tmp_path}/d.parquet') TO '{tmp_path}/d.csv'")
    assert rows(tmp_path / "d.parquet") == rows(tmp_path / "d.csv")
    frame = pd.DataFrame(
        {
            "id": [1, 2],
            "mixture_uri": ["m.wav", "n.wav"],
            "positive_text": pd.Categorical(["dog", "cat"]),
            "negative_text": ["rain", None],
            "offset_s": [0.5, float("nan")],
            "seed": pd.array([1, None], dtype="Int64"),
            "label": pd.array(["x", pd.NA], dtype="string"),
        }
    )
    frame.to_parquet(tmp_path / "p.parquet")
    frame.to_json(tmp_path / "p.jsonl", orient="records", lines=True)
    expected = rows(tmp_path / "p.parquet")
    assert [(row.id, row.seed, row.label) for row in expected] == [("1", 1, "x"), ("2", None, None)]
    assert rows(tmp_path / "p.jsonl") == expected
    for number, na in enumerate(("", "NA", "nan", "<NA>", "NULL", "None", r"\N")):
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
            frame.to_csv(tmp_path / f"p{number}.csv", index=False, na_rep=na, quoting=quoting)
            assert rows(tmp_path / f"p{number}.csv") == expected


def test_the_page_lists_every_word_for_nothing():
    page = (Path(__file__).parents[3] / "docs" / "manifests.md").read_text(encoding="utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith("| `NA` "))
    assert set(re.findall("`([^`]+)`", line.split("|")[1])) == NOTHING_IN_CSV
