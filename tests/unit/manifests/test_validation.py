from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.row import ManifestRow, RowError, as_json, parse_record, quoted

MIXTURE = {"id": "a", "mixture_uri": "m.wav", "positive_text": "a dog"}
MIXED = {"id": "a", "target_uri": "t.wav", "interferer_uris": ["x.wav", "y.wav"], "label": "l"}
MIXED |= {"positive_text": "a dog"}


def parse(values, folder="/data"):
    return parse_record(values, uri="m.jsonl", row=3, folder=folder)


def test_smallest_row():
    assert parse(MIXTURE) == ManifestRow(
        id="a", mixture_uri="/data/m.wav", positive_text="a dog", manifest_uri="", manifest_row=0
    )


def test_row_knows_where_it_was_read():
    row = parse(MIXTURE)
    assert (row.manifest_uri, row.manifest_row) == ("m.jsonl", 3)


def test_full_row():
    row = parse(
        {
            **MIXED,
            "snr_db": [0, -5.5],
            "negative_text": "rain",
            "positive_audio_uris": ["1.wav", "gs://b/2.wav"],
            "negative_audio_uris": [],
            "text_weight": 1,
            "offset_s": 0,
            "duration_s": 10,
            "dataset": "ESC-50",
            "split": "test",
            "seed": 7,
            "note": {"k": [1, None]},
        }
    )
    assert row == ManifestRow(
        id="a",
        target_uri="/data/t.wav",
        interferer_uris=("/data/x.wav", "/data/y.wav"),
        snr_db=(0.0, -5.5),
        positive_text="a dog",
        negative_text="rain",
        positive_audio_uris=("/data/1.wav", "gs://b/2.wav"),
        text_weight=1.0,
        offset_s=0.0,
        duration_s=10.0,
        dataset="ESC-50",
        split="test",
        label="l",
        seed=7,
        extra={"note": '{"k": [1, null]}'},
    )


@pytest.mark.parametrize(
    ("values", "field", "expected"),
    [
        ({"id": None}, "id", "a non-empty id"),
        ({"id": ""}, "id", "a non-empty id"),
        ({"id": " \t"}, "id", "a non-empty id"),
        ({"id": math.nan}, "id", "a non-empty id"),
        ({"id": {}}, "id", "a string"),
        ({"id": ["a"]}, "id", "a string"),
        ({"id": "a\x00b"}, "id", "without NUL"),
        ({"id": "a\ud800"}, "id", "UTF-8"),
        ({"id": "x" * 32_769}, "id", "at most 32768 characters"),
        ({"mixture_uri": None}, "mixture_uri", "mixture_uri, or target_uri with interferer_uris"),
        ({"mixture_uri": 3.5}, "mixture_uri", "a string"),
        ({"target_uri": "t.wav"}, "target_uri", "not both"),
        ({"target_uris": ["t.wav"]}, "target_uris", "not both"),
        ({"interferer_uris": "x.wav"}, "interferer_uris", "not both"),
        ({"positive_text": None}, "positive_text", "a query"),
        ({"positive_text": "  "}, "positive_text", "a query"),
        ({"positive_audio_uris": ["a", None]}, "positive_audio_uris", "without empty items"),
        ({"positive_audio_uris": "a;;b"}, "positive_audio_uris", "without empty items"),
        ({"positive_audio_uris": {"a": 1}}, "positive_audio_uris", "a list"),
        ({"positive_audio_uris": ["a"] * 1001}, "positive_audio_uris", "at most 1000 items"),
        ({"positive_audio_uris": [["a"]]}, "positive_audio_uris", "a string"),
        ({"text_weight": -0.1}, "text_weight", "from 0 to 1"),
        ({"text_weight": "1.5"}, "text_weight", "from 0 to 1"),
        ({"text_weight": math.inf}, "text_weight", "a finite number"),
        ({"snr_db": [1, math.nan]}, "snr_db", "a finite number"),
        ({"mixture_uri": 17}, "mixture_uri", "a string"),
        ({"positive_audio_uris": [17]}, "positive_audio_uris", "a string"),
        ({"offset_s": b"1"}, "offset_s", "a number"),
        ({"id": 1, "seed": "x"}, "seed", "a whole number"),
        ({"offset_s": -1e-9}, "offset_s", "from 0"),
        ({"offset_s": math.inf}, "offset_s", "a finite number"),
        ({"offset_s": "nan"}, "offset_s", "a number"),
        ({"offset_s": "1_0"}, "offset_s", "a number"),
        ({"offset_s": "0,5"}, "offset_s", "a number"),
        ({"offset_s": "\u0661"}, "offset_s", "a number"),
        ({"offset_s": True}, "offset_s", "a number"),
        ({"offset_s": "9" * 400}, "offset_s", "a number"),
        ({"offset_s": 10**400}, "offset_s", "a finite number"),
        ({"duration_s": 0}, "duration_s", "above 0"),
        ({"duration_s": "1e999"}, "duration_s", "a finite number above 0"),
        ({"snr_db": 101}, "snr_db", "from -100 to 100"),
        ({"snr_db": -math.inf}, "snr_db", "a finite number"),
        ({"seed": -1}, "seed", "a whole number from 0"),
        ({"seed": 1.5}, "seed", "a whole number"),
        ({"seed": 2**63}, "seed", "a whole number"),
        ({"seed": "x"}, "seed", "a whole number"),
        ({"dataset": "d" * 101}, "dataset", "at most 100 characters"),
        ({"note": "\x00"}, "note", "without NUL"),
        ({"n" * 201: "1"}, "n" * 200, "a column name"),
        ({"": "1"}, "", "a column name"),
        ({"note": "1", "extra_note": "2"}, "extra_note", "only one of"),
        ({f"c{i}": 1 for i in range(101)}, "extra", "at most 100 further columns"),
    ],
)
def test_what_is_wrong_with_a_mixture_row(values, field, expected):
    error = parse({**MIXTURE, **values})
    assert isinstance(error, RowError)
    assert (error.uri, error.row, error.field) == ("m.jsonl", 3, field)
    assert expected in error.expected


@pytest.mark.parametrize(
    ("values", "field", "expected"),
    [
        ({"interferer_uris": None}, "interferer_uris", "at least one interferer"),
        ({"target_uris": ["t", "u"]}, "target_uris", "either target_uri or target_uris"),
        ({"reference_uri": "r.wav"}, "reference_uri", "the target as mixed is the reference"),
        ({"snr_db": [1, 2, 3]}, "snr_db", "one for each of 2 interferers"),
        ({"snr_db": "1;2;3"}, "snr_db", "one for each of 2 interferers"),
        ({"snr_db": [1, None]}, "snr_db", "without empty items"),
        ({"onsets_s": [1, 2], "duration_s": 5}, "onsets_s", "one onset for each of 3 sources"),
        ({"onsets_s": [1, 2, 3]}, "duration_s", "the length of the mixture"),
        ({"onsets_s": "1;2;5", "duration_s": 5}, "onsets_s", "below duration_s, which is 5"),
        ({"onsets_s": [1, 2, -1], "duration_s": 5}, "onsets_s", "from 0"),
    ],
)
def test_what_is_wrong_with_a_row_to_be_mixed(values, field, expected):
    error = parse({**MIXED, **values})
    assert isinstance(error, RowError)
    assert error.field == field
    assert expected in error.expected


@pytest.mark.parametrize(
    ("snr_db", "levels_db"),
    [
        *((value, (0.0, 0.0)) for value in (None, "", [])),
        *((value, (5.0, 5.0)) for value in (5, "5", [5], "5.0e0")),
        *((value, (5.0, -5.0)) for value in ("5;-5", [5, -5], " 5 ; -5 ", "[5, -5]")),
    ],
)
def test_levels_are_one_or_one_for_each_interferer(snr_db, levels_db):
    assert parse({**MIXED, "snr_db": snr_db}).levels_db == levels_db


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a.wav", ("/data/a.wav",)),
        ("a.wav; b.wav ;", ("/data/a.wav", "/data/b.wav")),
        ('["a;b.wav", " c"]', ("/data/a;b.wav", "/data/ c")),
        ("[take 1].wav", ("/data/[take 1].wav",)),
    ],
)
def test_lists_written_as_text(text, items):
    assert parse({**MIXTURE, "positive_audio_uris": text}).positive_audio_uris == items


def test_a_level_beside_a_mixture_is_information():
    row = parse({**MIXTURE, "snr_db": 5, "n_sources": "2.0"})
    assert (row.input_snr_db, row.num_sources) == (5.0, 2)


def test_whole_numbers_that_a_table_turned_into_floats():
    assert parse({**MIXTURE, "seed": 7.0}).seed == 7
    assert parse({**MIXTURE, "seed": "7.0"}).seed == 7


@pytest.mark.parametrize(
    ("value", "truth"),
    [
        (True, True),
        ("TRUE", True),
        (1, True),
        ("1", True),
        (" false ", False),
        ("0", False),
        (0, False),
    ],
)
def test_whether_the_target_is_absent_is_said_in_the_words_of_tables(value, truth):
    assert parse(MIXTURE | {"target_absent": value}).target_absent is truth


@pytest.mark.parametrize("value", ["maybe", 2, 0.5, ["true"]])
def test_other_words_for_an_absent_target_are_refused(value):
    error = parse(MIXTURE | {"target_absent": value})
    assert (error.field, error.expected) == ("target_absent", "true or false")


def test_missing_values_of_other_columns_are_left_out():
    row = parse({**MIXTURE, "a": None, "b": "", "c": math.nan, "extra_d": 1, "e": True})
    assert row.extra == {"d": "1", "e": "true"}


@pytest.mark.parametrize(
    ("folder", "uri", "absolute"),
    [
        ("/data", "a/b.wav", "/data/a/b.wav"),
        ("/data/x", "../b.wav", "/data/b.wav"),
        ("/data", "/b.wav", "/b.wav"),
        ("/data", "gs://k/b.wav", "gs://k/b.wav"),
        ("gs://k/data", "b.wav", "gs://k/data/b.wav"),
        ("gs://k/data", "../b.wav", "gs://k/b.wav"),
        ("gs://k", "./b.wav", "gs://k/b.wav"),
        ("memory:///d", "b.wav", "memory:///d/b.wav"),
        ("/data", "zip://b.wav::gs://k/z.zip", "zip://b.wav::gs://k/z.zip"),
        ("/data", "C:\\b.wav", "C:\\b.wav"),
    ],
)
def test_relative_uris_begin_at_the_manifest(folder, uri, absolute):
    assert parse({**MIXTURE, "mixture_uri": uri}, folder).mixture_uri == absolute


@pytest.mark.parametrize("bucket", ["other", "k-other"])
def test_a_relative_uri_does_not_leave_its_bucket(bucket):
    error = parse({**MIXTURE, "mixture_uri": f"../../{bucket}/b.wav"}, "gs://k/data")
    assert isinstance(error, RowError)
    assert error.field == "mixture_uri"


def test_error_is_one_short_line_with_place_and_value():
    error = parse({**MIXTURE, "offset_s": "a\nb" + "x" * 10_000})
    text = str(error)
    assert text.startswith("m.jsonl, row 3, offset_s: found ")
    assert "\n" not in text
    assert len(text) < 400
    assert error.row_id == "a"


def test_error_keeps_the_row():
    values = {**MIXTURE, "offset_s": -1}
    assert json.loads(parse(values).row_json) == values


def test_a_row_is_kept_as_json_that_everybody_reads():
    values = {**MIXTURE, "offset_s": -math.inf, "label": math.nan, "note": [math.nan, 1.5]}

    def refuse(word):
        raise AssertionError(word)

    kept = json.loads(parse(values).row_json, parse_constant=refuse)
    assert (kept["offset_s"], kept["label"], kept["note"]) == ("-inf", None, [None, 1.5])
    assert isinstance(parse(kept), RowError)


def test_a_row_that_was_cut_is_still_refused_when_it_is_read_again():
    error = parse({**MIXTURE, "positive_text": "x" * 100_000})
    assert len(error.row_json) < 40_000
    assert isinstance(parse(json.loads(error.row_json)), RowError)


def nested(depth):
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def test_deep_nesting_is_an_error_and_not_a_crash():
    assert isinstance(parse({**MIXTURE, "note": nested(100_000)}), RowError)
    assert "too deeply" in as_json(nested(100_000))
    assert len(quoted(nested(100_000))) < 250


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from([*MIXED, "mixture_uri", "snr_db", "seed", "offset_s", "x"]), JSON_VALUES
    )
)
def test_any_values_give_a_row_or_an_error(values):
    result = parse(values)
    assert isinstance(result, ManifestRow | RowError)
    if isinstance(result, RowError):
        json.loads(result.row_json)
        assert "\n" not in str(result)
        str(result).encode("utf-8")
