from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow as pa

import manifests
from manifests import columns
from manifests.row import ManifestRow, json_schema


def test_shipped_json_schema_is_current():
    shipped = Path(manifests.__file__).with_name("manifest.schema.json")
    assert json.loads(shipped.read_text("utf-8")) == json.loads(json.dumps(json_schema()))


def test_every_field_of_the_row_is_a_column_of_each_manifest_schema():
    names = [
        field.name
        for field in dataclasses.fields(ManifestRow)
        if field.name not in {"extra", "manifest_uri", "manifest_row", "manifest_sha256", "place"}
    ]
    assert columns.MANIFEST_SCHEMA.names == names
    assert list(json_schema()["properties"]) == names
    assert columns.DEAD_LETTER_SCHEMA.names == [*columns.DEAD_LETTER_COLUMNS, *names]


def test_manifest_types():
    types = {field.name: field.type for field in columns.MANIFEST_SCHEMA}
    assert types["id"] == pa.string()
    assert types["interferer_uris"] == pa.list_(pa.string())
    assert types["snr_db"] == pa.list_(pa.float64())
    assert types["offset_s"] == pa.float64()
    assert types["seed"] == pa.int64()
    assert [f.name for f in columns.MANIFEST_SCHEMA if not f.nullable] == ["id"]


def test_metrics_schema_keeps_the_three_kinds_of_decibels_apart():
    for kind in ("sdr", "si_sdr", "snr"):
        for column in (f"{kind}_db", f"{kind}_mixture_db", f"{kind}i_db"):
            assert columns.METRICS_SCHEMA.field(column).type == pa.float64()
    assert set(columns.METRIC_COLUMNS) < set(columns.METRICS_SCHEMA.names)
    assert len(set(columns.METRICS_SCHEMA.names)) == len(columns.METRICS_SCHEMA.names)


def test_extra_columns_are_appended_as_text_in_sorted_order():
    extended = columns.with_extra(columns.METRICS_SCHEMA, ["b", "a", "b"])
    assert extended.names == [*columns.METRICS_SCHEMA.names, "extra_a", "extra_b"]
    assert extended.field("extra_a").type == pa.string()
