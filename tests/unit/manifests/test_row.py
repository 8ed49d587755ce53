from __future__ import annotations

import dataclasses
import pickle

import pytest

from manifests.row import MANIFEST_COLUMNS, ManifestRow, parse_record


def test_row_is_hashable_and_survives_pickling():
    row = ManifestRow(id="a", mixture_uri="m.wav", positive_text="rain", extra={"k": "v"})
    assert pickle.loads(pickle.dumps(row)) == row  # noqa: S301 - what Beam does with rows
    assert {row: 1}[dataclasses.replace(row)] == 1


def test_place_of_a_row_is_not_part_of_its_identity():
    row = ManifestRow(id="a", mixture_uri="m.wav")
    assert dataclasses.replace(row, manifest_uri="x.csv", manifest_row=3) == row


@pytest.mark.parametrize(
    ("fields", "query_type", "polarity", "num_shots"),
    [
        ({"positive_text": "rain"}, "text", "P", 0),
        ({"negative_text": "rain"}, "text", "N", 0),
        ({"positive_audio_uris": ("a", "b")}, "audio", "P", 2),
        ({"positive_text": "x", "negative_audio_uris": ("a",)}, "both", "P+N", 1),
    ],
)
def test_row_describes_its_query(fields, query_type, polarity, num_shots):
    row = ManifestRow(id="a", mixture_uri="m.wav", **fields)
    assert (row.query_type, row.polarity, row.num_shots) == (query_type, polarity, num_shots)


def test_levels_default_to_0_db_and_one_level_serves_all_interferers():
    row = ManifestRow(id="a", target_uri="t", interferer_uris=("x", "y"))
    assert row.levels_db == (0.0, 0.0)
    assert row.input_snr_db == 0.0
    assert dataclasses.replace(row, snr_db=(5.0,)).levels_db == (5.0, 5.0)
    uneven = dataclasses.replace(row, snr_db=(5.0, -5.0))
    assert uneven.levels_db == (5.0, -5.0)
    assert uneven.input_snr_db is None


def test_sources_are_counted_or_taken_from_the_row():
    assert ManifestRow(id="a", mixture_uri="m").num_sources is None
    assert ManifestRow(id="a", mixture_uri="m", n_sources=3).num_sources == 3
    row = ManifestRow(id="a", target_uris=("s", "t"), interferer_uris=("x",))
    assert row.num_sources == 3
    assert row.targets == ("s", "t")


def test_record_has_every_column_and_the_extra_ones():
    row = ManifestRow(id="a", target_uri="t", interferer_uris=("x",), extra={"note": "n"})
    record = row.to_record()
    assert list(record) == [*MANIFEST_COLUMNS, "extra_note"]
    assert record["interferer_uris"] == ["x"]
    assert record["target_uris"] is None
    assert record["extra_note"] == "n"


ROW = ManifestRow(id="a", target_uri="t", interferer_uris=("x", "y"), positive_text="rain")


@pytest.mark.parametrize(
    "same",
    [
        {"snr_db": (0.0,)},
        {"snr_db": (0.0, 0.0)},
        {"target_uri": None, "target_uris": ("t",)},
        {"offset_s": 0.0},
        {"text_weight": 0.7},
        {"n_sources": 3},
        {"manifest_uri": "m.csv", "manifest_row": 7},
    ],
)
def test_rows_that_ask_for_the_same_have_one_digest(same):
    assert dataclasses.replace(ROW, **same).sha256 == ROW.sha256


def test_minus_nothing_is_nothing():
    given = {"id": "a", "target_uri": "t", "interferer_uris": "x", "positive_text": "rain"}
    parsed = [
        parse_record({**given, "snr_db": zero}, uri="m", row=1, folder="/") for zero in ("-0", 0)
    ]
    assert len({row.sha256 for row in parsed}) == 1


def test_a_weight_of_text_counts_where_a_query_has_both():
    both = dataclasses.replace(ROW, positive_audio_uris=("e",))
    assert both.weight_of_text == 0.5
    assert dataclasses.replace(both, text_weight=0.5).sha256 == both.sha256
    assert dataclasses.replace(both, text_weight=0.7).sha256 != both.sha256
    apart = dataclasses.replace(ROW, negative_audio_uris=("e",), text_weight=0.7)
    assert apart.weight_of_text is None


@pytest.mark.parametrize(
    "other",
    [
        {"id": "b"},
        {"snr_db": (1.0,)},
        {"target_uri": "u"},
        {"interferer_uris": ("y", "x")},
        {"positive_text": "Rain"},
        {"negative_text": "rain"},
        {"offset_s": 1e-9},
        {"duration_s": 1.0},
        {"dataset": "d"},
        {"split": "s"},
        {"label": "l"},
        {"group": "g"},
        {"seed": 0},
        {"extra": {"colour": "red"}},
    ],
)
def test_rows_that_differ_have_other_digests(other):
    assert dataclasses.replace(ROW, **other).sha256 != ROW.sha256


def test_digests_are_stable_across_releases():
    """Tables keep them: a release that computes others makes --resume do everything again."""
    row = ManifestRow(id="a\ud800", mixture_uri="é.wav", positive_text="dog", extra={"n": "1"})
    assert row.sha256 == "12bde0a741ae00f713826b58956298487d5155a88f9b3c9f76129007b38d1a81"
    assert ROW.sha256 == "074f593b7d6ecb9208cd41505321726167dad9e6ffc8ac1782010be493b46b06"


def test_a_row_with_another_query_keeps_the_digest_of_the_manifest():
    nearest = dataclasses.replace(ROW, negative_text=None, manifest_sha256="0" * 64)
    assert nearest.sha256 == "0" * 64
    assert "manifest_sha256" not in nearest.to_record()
