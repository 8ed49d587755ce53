from __future__ import annotations

import dataclasses
import gzip
import string

import fsspec
import jsonschema
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifests import columns
from manifests.files import ManifestError
from manifests.files.readers import iter_rows, read_cell
from manifests.files.writing import RowWriter, write_rows
from manifests.row import ManifestRow, json_schema

FORMATS = ["csv", "jsonl", "parquet", "csv.gz", "jsonl.gz"]

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
SHOWN = TEXT.filter(lambda text: bool(text.strip()) and not text.isspace())
URIS = SHOWN.map(lambda text: f"gs://bucket/{text.replace(':', '')}x")  # no chain: x is a path
AUDIO = st.lists(URIS, max_size=3).map(tuple)
LEVEL = st.floats(-100, 100)
COMMON = {
    "id": SHOWN,
    "positive_text": SHOWN,
    "negative_text": st.none() | SHOWN,
    "positive_audio_uris": AUDIO,
    "negative_audio_uris": AUDIO,
    "text_weight": st.none() | st.floats(0, 1),
    "offset_s": st.none() | st.floats(0, 1e6),
    "duration_s": st.none() | st.floats(1e-6, 1e6),
    "dataset": st.none() | SHOWN,
    "label": st.none() | SHOWN,
    "seed": st.none() | st.integers(0, 2**63 - 1),
    "extra": st.dictionaries(st.sampled_from(["k", "extra_x", "a b"]), SHOWN),
}
MIXED = st.builds(
    ManifestRow,
    **COMMON,
    target_uri=URIS,
    interferer_uris=st.lists(URIS, min_size=2, max_size=2).map(tuple),
    snr_db=st.sampled_from([(), (0.0,)]) | st.tuples(LEVEL, LEVEL),
)
READ = st.builds(
    ManifestRow,
    **COMMON,
    mixture_uri=URIS,
    reference_uri=st.none() | URIS,
    n_sources=st.none() | st.integers(1, 9),
)
EXAMPLE = ManifestRow(id="a", mixture_uri="/m.wav", positive_text="rain", extra={"k": "v"})


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(MIXED | READ, max_size=5))
@pytest.mark.parametrize("form", FORMATS)
def test_what_is_written_is_read_back(tmp_path, form, rows):
    uri = str(tmp_path / f"m.{form}")
    if form.startswith("csv"):
        rows = [_as_csv_can_say(row) for row in rows]
    assert write_rows(uri, rows) == len(rows)
    assert list(iter_rows(uri)) == rows


def _as_csv_can_say(row):
    names = ("id", "positive_text", "negative_text", "dataset", "label")
    texts = {name: getattr(row, name) for name in names}
    stripped = {name: text and (read_cell(name, text) or "x") for name, text in texts.items()}
    extra = {name: text.strip() for name, text in row.extra.items()}
    return dataclasses.replace(row, **stripped, extra=extra)


@pytest.mark.parametrize(
    "values", [{"positive_text": " x"}, {"label": "NA"}, {"id": "a\t"}, {"extra": {"k": "v "}}]
)
def test_what_csv_cannot_say_is_not_written_as_something_else(tmp_path, values):
    row = dataclasses.replace(EXAMPLE, **values)
    with pytest.raises(ValueError, match="cannot be said in CSV"):
        write_rows(str(tmp_path / "m.csv"), [row])
    for form in ("jsonl", "parquet"):
        write_rows(str(tmp_path / f"m.{form}"), [row])
        assert list(iter_rows(str(tmp_path / f"m.{form}"))) == [row]


def test_what_would_be_read_as_json_or_as_a_comment_is_written_otherwise(tmp_path):
    row = dataclasses.replace(EXAMPLE, id="#1", positive_audio_uris=("[1]",))
    write_rows(str(tmp_path / "m.csv"), [row])
    assert (tmp_path / "m.csv").read_text().splitlines()[1].startswith('"#1",')  # pandas' comments
    (found,) = iter_rows(str(tmp_path / "m.csv"))
    assert (found.id, found.positive_audio_uris) == ("#1", (f"{tmp_path}/[1]",))


def test_an_example_clip_called_like_nothing_is_written_as_a_list(tmp_path):
    row = dataclasses.replace(EXAMPLE, id="NA", positive_audio_uris=("/NA",))
    write_rows(str(tmp_path / "m.csv"), [row])
    assert list(iter_rows(str(tmp_path / "m.csv"))) == [row]


@settings(deadline=None, max_examples=40)
@given(row=MIXED | READ)
def test_rows_satisfy_the_json_schema(row):
    record = {name: value for name, value in row.to_record().items() if value is not None}
    jsonschema.validate(record, json_schema())


def test_json_schema_refuses_what_validation_refuses():
    validator = jsonschema.Draft202012Validator(json_schema())
    good = {"id": "a", "mixture_uri": "m", "positive_text": "x", "snr_db": 5}
    assert validator.is_valid(good)
    for change in (
        {"id": ""},
        {"id": 7},
        {"positive_text": None},
        {"mixture_uri": None},
        {"target_uri": "t", "interferer_uris": ["x"]},
        {"snr_db": 101},
        {"duration_s": 0},
        {"text_weight": 2},
        {"seed": 1.5},
        {"interferer_uris": "x", "positive_audio_uris": [1]},
    ):
        assert not validator.is_valid(good | change), change


@pytest.mark.parametrize("form", FORMATS)
def test_same_rows_give_same_bytes(tmp_path, form):
    rows = [dataclasses.replace(EXAMPLE, id=char) for char in string.ascii_letters]
    for name in ("a", "b"):
        write_rows(str(tmp_path / name / f"m.{form}"), rows)
    first, second = ((tmp_path / name / f"m.{form}").read_bytes() for name in ("a", "b"))
    assert first == second


def test_csv_has_the_columns_in_use(tmp_path):
    write_rows(str(tmp_path / "m.csv"), [EXAMPLE])
    text = (tmp_path / "m.csv").read_text()
    assert text == "id,mixture_uri,positive_text,extra_k\na,/m.wav,rain,v\n"


def test_parquet_has_the_schema_of_every_manifest(tmp_path):
    write_rows(str(tmp_path / "m.parquet"), [EXAMPLE])
    written = pq.read_schema(tmp_path / "m.parquet")
    assert written.remove_metadata().equals(
        columns.with_extra(columns.MANIFEST_SCHEMA, ["k"]).remove_metadata()
    )


def test_row_groups_are_bounded(tmp_path):
    with RowWriter(str(tmp_path / "m.parquet"), extra_names=["k"]) as writer:
        for i in range(5_000):
            writer.write(dataclasses.replace(EXAMPLE, id=str(i)))
    metadata = pq.read_metadata(tmp_path / "m.parquet")
    assert [metadata.row_group(i).num_rows for i in range(2)] == [4096, 904]


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_appears_whole_or_not_at_all(tmp_path, form):
    def write_one_and_fail():
        with RowWriter(str(tmp_path / f"m.{form}"), extra_names=["k"]) as writer:
            writer.write(EXAMPLE)
            raise KeyError("stop")

    with pytest.raises(KeyError):
        write_one_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_a_column_that_was_not_announced_is_refused(tmp_path):
    with (
        RowWriter(str(tmp_path / "m.csv"), columns=["mixture_uri"]) as writer,
        pytest.raises(ValueError, match=r"\['extra_k', 'positive_text'\]"),
    ):
        writer.write(EXAMPLE)
    with pytest.raises(ValueError, match="expected some of id, mixture_uri"):
        RowWriter(str(tmp_path / "m.csv"), columns=["mixture"])
    with pytest.raises(ManifestError, match="expected a name that ends in"):
        RowWriter(str(tmp_path / "m.txt"))


def test_remote_and_compressed():
    write_rows("memory://writing/m.csv.gz", [EXAMPLE])
    memory = fsspec.filesystem("memory")
    assert memory.ls("/writing", detail=False) == ["/writing/m.csv.gz"]
    assert gzip.decompress(memory.cat("/writing/m.csv.gz")).startswith(b"id,mixture_uri")
    assert list(iter_rows("memory://writing/m.csv.gz")) == [EXAMPLE]
    memory.rm("/writing", recursive=True)
