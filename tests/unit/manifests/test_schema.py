from __future__ import annotations

import dataclasses
import json
import pickle

import pyarrow as pa
import pytest

from manifests import schema
from manifests.schema import ManifestRow


def test_shipped_json_schema_is_current():
    assert schema.shipped_json_schema() == json.loads(json.dumps(schema.json_schema()))


def test_every_field_of_the_row_is_a_column_of_each_manifest_schema():
    names = [
        field.name
        for field in dataclasses.fields(ManifestRow)
        if field.name not in {"extra", "manifest_uri", "manifest_row"}
    ]
    assert schema.MANIFEST_SCHEMA.names == names
    assert list(schema.json_schema()["properties"]) == names
    assert schema.DEAD_LETTER_SCHEMA.names == [*schema.DEAD_LETTER_COLUMNS, *names]


def test_manifest_types():
    types = {field.name: field.type for field in schema.MANIFEST_SCHEMA}
    assert types["id"] == pa.string()
    assert types["interferer_uris"] == pa.list_(pa.string())
    assert types["snr_db"] == pa.list_(pa.float64())
    assert types["offset_s"] == pa.float64()
    assert types["seed"] == pa.int64()
    assert [f.name for f in schema.MANIFEST_SCHEMA if not f.nullable] == ["id"]


def test_metrics_schema_keeps_the_three_kinds_of_decibels_apart():
    for kind in ("sdr", "si_sdr", "snr"):
        for column in (f"{kind}_db", f"{kind}_mixture_db", f"{kind}i_db"):
            assert schema.METRICS_SCHEMA.field(column).type == pa.float64()
    assert set(schema.METRIC_COLUMNS) < set(schema.METRICS_SCHEMA.names)
    assert len(set(schema.METRICS_SCHEMA.names)) == len(schema.METRICS_SCHEMA.names)


def test_extra_columns_are_appended_as_text_in_sorted_order():
    extended = schema.with_extra(schema.METRICS_SCHEMA, ["b", "a", "b"])
    assert extended.names == [*schema.METRICS_SCHEMA.names, "extra_a", "extra_b"]
    assert extended.field("extra_a").type == pa.string()


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
    assert list(record) == [*schema.MANIFEST_COLUMNS, "extra_note"]
    assert record["interferer_uris"] == ["x"]
    assert record["target_uris"] is None
    assert record["extra_note"] == "n"
