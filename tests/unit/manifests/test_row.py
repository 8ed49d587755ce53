from __future__ import annotations

import dataclasses
import pickle

import pytest

from manifests.row import MANIFEST_COLUMNS, ManifestRow


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
