from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests import columns
from manifests.files import ManifestError
from manifests.files.readers import columns_of
from manifests.row import misspelt, nearest_column
from manifests.validate import check, report_text

HEADER = (
    "id,mixture_uri,target_uri,interferer_uris,positive_text,reference_uri,dataset,postive_audio\n"
)


@pytest.fixture
def manifest(tmp_path):
    def write(*lines, name="m.csv"):
        (tmp_path / name).write_text(HEADER + "".join(f"{line}\n" for line in lines))
        return str(tmp_path / name)

    return write


def test_counts_of_a_good_manifest(manifest):
    report = check(manifest("a,m,,,x,r,d1,", "b,,t,i,x,,d1,", "c,m,,,x,,,k"))
    assert report.is_valid
    assert (report.num_rows, report.num_files, report.errors) == (3, 1, ())
    assert report.counts == {
        "kind": {"mixed": 1, "recording": 2},
        "query": {"text": 3},
        "polarity": {"P": 3},
        "scored": {"no": 1, "yes": 2},
        "dataset": {"(none)": 1, "d1": 2},
    }
    assert report.extra == {"postive_audio": 1}
    assert report.hints == {"postive_audio": "positive_audio_uris"}


def test_a_misspelt_column_is_pointed_out(tmp_path):
    (tmp_path / "m.csv").write_text("id,mixture_uri,negative_text,postive_text\na,m,x,y\n")
    report = check(str(tmp_path / "m.csv"))
    assert report.hints == {"postive_text": "positive_text"}
    assert "did you mean positive_text?" in report_text(report)


def test_a_misspelt_column_is_pointed_out_where_no_row_can_be_used_for_it(tmp_path):
    (tmp_path / "m.csv").write_text("id,mixture,positive_text\na,m,x\n")
    assert "did you mean mixture_uri?" in report_text(check(str(tmp_path / "m.csv")))


def test_invalid_rows_are_listed_up_to_a_limit(manifest):
    report = check(manifest(*["a,m,,,,,,"] * 5), max_errors=2)
    assert (report.num_invalid, len(report.errors), report.is_valid) == (5, 2, False)
    assert "… and 3 more" in report_text(report)
    assert report_text(report).endswith("not valid: 5 rows cannot be used, 0 repeat an id\n")


def test_repeated_ids_are_found_across_files(manifest, tmp_path):
    first = manifest("a,m,,,x,,,", "b,m,,,x,,,", "A,m,,,x,,,", name="1.csv")
    second = manifest("b,m,,,x,,,", "c,m,,,x,,,", "b,m,,,x,,,", name="2.csv")
    report = check(str(tmp_path))
    assert report.num_duplicates == 2
    assert report.errors == tuple(
        f'{second}, row {row}, id: found "b"; expected an id that no other row has, '
        f"as {first}, row 3 does"
        for row in (2, 4)
    )


def test_repeated_ids_share_the_limit_with_other_errors(manifest):
    report = check(manifest("a,m,,,,,,", *["b,m,,,x,,,"] * 10), max_errors=3)
    assert (report.num_invalid, report.num_duplicates, len(report.errors)) == (1, 9, 3)
    none = check(manifest(*["b,m,,,x,,,"] * 3), max_errors=0)
    assert (none.num_duplicates, none.errors) == (2, ())


def test_many_datasets_are_counted_together(manifest):
    report = check(manifest(*[f"a{i},m,,,x,,d{i}," for i in range(1_200)]))
    assert len(report.counts["dataset"]) == 1_001
    assert report.counts["dataset"]["(other)"] == 200
    assert " and 993 more" in report_text(report)


def test_control_characters_do_not_reach_the_terminal(tmp_path):
    row = {"id": "a", "mixture_uri": "m", "positive_text": "x", "dataset": "\x1b[31m"}
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n{\x1b\n")
    assert "\x1b" not in report_text(check(str(tmp_path / "m.jsonl")))


def test_a_file_that_cannot_be_read_is_raised(tmp_path):
    with pytest.raises(ManifestError, match="no such file"):
        check(str(tmp_path / "none.csv"))


@pytest.mark.parametrize(
    ("column", "nearest"),
    [
        *((name, "offset_s") for name in ("offset", "Offset", "offset_sec", "offset-s", "OffsetS")),
        *((name, "duration_s") for name in ("duration", "duration_seconds", "duration_ms")),
        *((name, "negative_text") for name in ("negative_txt", "negative", "Negative Text")),
        ("extra_offset", "offset_s"),
        ("reference", "reference_uri"),
        ("snr", "snr_db"),
        ("ID", "id"),
        *((name, None) for name in ("note", "class", "stem_uri", "target_label", "text", "", "…")),
    ],
)
def test_a_name_is_near_to_a_column_or_to_none(column, nearest):
    assert nearest_column(column) == nearest


def test_a_column_that_is_there_is_not_what_another_was_meant_to_be():
    assert misspelt(["id", "reference", "reference_uri", "offset"]) == {"offset": "offset_s"}


def test_columns_of_dead_letters_are_not_misspelt(tmp_path):
    names = [*columns.DEAD_LETTER_SCHEMA.names, "extra_offset"]
    table = pa.table({name: pa.array(["a"] if name == "id" else [None]) for name in names})
    pq.write_table(table, tmp_path / "m.parquet")
    assert misspelt(columns_of(str(tmp_path / "m.parquet"), named_by=str(tmp_path))) == {}
    assert misspelt(["stage", "manifest_uri"]) == {}


def test_every_misspelt_column_of_a_manifest_that_somebody_had_is_pointed_out():
    case = Path(__file__).parents[2] / "data" / "cases" / "csv_habits" / "misspelt_columns.csv"
    assert check(str(case)).hints == {
        "duration": "duration_s",
        "negative_txt": "negative_text",
        "offset": "offset_s",
        "reference": "reference_uri",
    }


def test_an_id_column_in_capitals_is_pointed_out(tmp_path):
    (tmp_path / "m.csv").write_text("Id,mixture_uri\na,m.wav\n")
    with pytest.raises(ManifestError, match='"Id" should be called id'):
        check(str(tmp_path / "m.csv"))
