"""The schemas of everything that is read and written as a table.

That of a manifest is generated from :class:`manifests.row.ManifestRow`, for pyarrow and as the
JSON Schema that is shipped beside this module. The tables that a run writes have types that never
depend on the data.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

import pyarrow as pa

from manifests.row import (
    EXTRA_PREFIX,
    MANIFEST_COLUMNS,
    MAX_LIST_ITEMS,
    MAX_TEXT_CHARS,
    ManifestRow,
)

__all__ = [
    "DEAD_LETTER_COLUMNS",
    "DEAD_LETTER_SCHEMA",
    "MANIFEST_COLUMNS",
    "MANIFEST_SCHEMA",
    "METRICS_SCHEMA",
    "METRIC_COLUMNS",
    "SCHEMA_VERSION",
    "SUMMARY_SCHEMA",
    "ManifestRow",
    "column_rules",
    "column_type",
    "json_schema",
    "shipped_json_schema",
    "with_extra",
]

SCHEMA_VERSION = 2
"""Raised whenever a column of any schema below is added, removed or changes its meaning."""

JSON_SCHEMA_FILE = "manifest.schema.json"

_ROW_FIELDS = {f.name: f for f in dataclasses.fields(ManifestRow)}
_ROW_TYPES: dict[str, Any] = {
    name: hint
    for name, hint in typing.get_type_hints(ManifestRow).items()
    if name in MANIFEST_COLUMNS
}
_SCALARS: Mapping[Any, tuple[pa.DataType, str]] = {
    str: (pa.string(), "string"),
    float: (pa.float64(), "number"),
    int: (pa.int64(), "integer"),
}


@functools.cache
def column_type(name: str) -> tuple[type, bool]:
    """Scalar type of a manifest column, and whether it is a list of them."""
    hint = _ROW_TYPES[name]
    arguments = typing.get_args(hint)
    scalar: type = arguments[0] if arguments else hint
    return scalar, typing.get_origin(hint) is tuple


@functools.cache
def column_rules(name: str) -> Mapping[str, Any]:
    """JSON Schema keywords that bound each value of a manifest column."""
    rules: Mapping[str, Any] = _ROW_FIELDS[name].metadata["rules"]
    return {"maxLength": MAX_TEXT_CHARS, **rules} if column_type(name)[0] is str else rules


def _arrow_field(name: str) -> pa.Field:
    scalar, is_list = column_type(name)
    arrow = _SCALARS[scalar][0]
    return pa.field(
        name,
        pa.list_(arrow) if is_list else arrow,
        nullable=name != "id",
        metadata={"description": _ROW_FIELDS[name].metadata["description"]},
    )


def _json_property(name: str) -> dict[str, Any]:
    scalar, is_list = column_type(name)
    description = _ROW_FIELDS[name].metadata["description"]
    item = {"type": _SCALARS[scalar][1], **column_rules(name)}
    if name == "id":
        return {"description": description, **item}
    if not is_list:
        return {"description": description, **item, "type": [item["type"], "null"]}
    shapes = [{"type": "array", "items": item, "maxItems": MAX_LIST_ITEMS}, {"type": "null"}]
    if scalar is float:
        shapes.insert(0, item)
    return {"description": description, "anyOf": shapes}


def _given(*names: str) -> dict[str, Any]:
    """JSON Schema of a row that has all of the columns ``names``."""
    return {
        "required": list(names),
        "properties": {name: {"not": {"type": "null"}} for name in names},
    }


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a line of a JSONL manifest, generated from the row type."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Manifest row",
        "description": "One extraction. Keys that are not listed are carried along as extra_….",
        "version": SCHEMA_VERSION,
        "type": "object",
        "properties": {name: _json_property(name) for name in MANIFEST_COLUMNS},
        "required": ["id"],
        "allOf": [
            {"anyOf": [_given(name) for name in _QUERY]},
            {"oneOf": [_given(*names) for names in _SOURCES]},
        ],
    }


def shipped_json_schema() -> dict[str, Any]:
    """The JSON Schema file that is installed beside this module."""
    text = resources.files("manifests").joinpath(JSON_SCHEMA_FILE).read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


_QUERY = ("positive_text", "negative_text", "positive_audio_uris", "negative_audio_uris")
_SOURCES = (("mixture_uri",), ("target_uri", "interferer_uris"), ("target_uris", "interferer_uris"))
_METADATA = {"schema_version": str(SCHEMA_VERSION)}


def _table(**columns: pa.DataType) -> list[pa.Field]:
    return [pa.field(name, arrow) for name, arrow in columns.items()]


def _each(arrow: pa.DataType, names: str) -> dict[str, pa.DataType]:
    return {name: arrow for name in names.split()}


MANIFEST_SCHEMA = pa.schema([_arrow_field(name) for name in MANIFEST_COLUMNS], metadata=_METADATA)

METRIC_COLUMNS: tuple[str, ...] = (
    *("sdr_db", "sdr_mixture_db", "sdri_db"),
    *("si_sdr_db", "si_sdr_mixture_db", "si_sdri_db"),
    *("snr_db", "snr_mixture_db", "snri_db"),
    *("clap_score", "clap_score_mixture", "clap_score_negative"),
    *("clap_score_improvement", "clap_score_contrast", "ref_clap_score"),
)
"""The measured columns, each null where it is undefined."""

METRICS_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        *_table(
            **_each(pa.string(), "dataset split label group query_type polarity"),
            **_each(pa.int32(), "n_shots n_sources"),
            **_each(pa.float64(), "input_snr_db"),
            **_each(pa.string(), "row_sha256 mixture_uri"),
            **_each(pa.list_(pa.string()), "target_uris interferer_uris"),
            **_each(pa.string(), "reference_uri"),
            **_each(pa.float64(), "offset_s"),
            **_each(pa.string(), "positive_text negative_text"),
            **_each(pa.list_(pa.string()), "positive_audio_uris negative_audio_uris"),
            **_each(pa.float64(), "text_weight"),
            **_each(pa.int64(), "seed"),
            **dict.fromkeys(METRIC_COLUMNS, pa.float64()),
            **_each(pa.string(), "undefined_reason"),
            **_each(pa.bool_(), "target_absent"),
            **_each(pa.float64(), "suppression_db stem_to_mixture_db presence active_s"),
            **_each(pa.int32(), "n_segments"),
            **_each(pa.float64(), "duration_s"),
            **_each(pa.int32(), "sample_rate_hz n_channels n_windows"),
            **_each(pa.float64(), "peak input_gain_db inference_s"),
            **_each(pa.string(), "device precision model model_sha256 clap_sha256 scorer_sha256"),
            **_each(pa.string(), "code_version"),
            **_each(pa.int32(), "schema_version"),
            **_each(pa.string(), "stem_uri residual_uri stem_format stem_note"),
        ),
    ],
    metadata=_METADATA,
)
"""One row a clip. ``undefined_reason`` is ``metric=reason`` joined by ``; ``; null without one.

What was asked of what is that of the manifest's row, whose digest is ``row_sha256``; credentials in
its URIs are hidden. ``input_gain_db`` is the gain with which the network heard a recording, the
mean over its windows. Columns that nothing computes yet are null.
"""

SUMMARY_SCHEMA = pa.schema(
    _table(
        **_each(pa.string(), "dataset split query_type polarity"),
        **_each(pa.int32(), "n_shots n_sources"),
        **_each(pa.float64(), "input_snr_db"),
        **_each(pa.string(), "model model_sha256 scorer_sha256 metric"),
        **_each(pa.int64(), "n n_undefined"),
        **_each(pa.float64(), "mean std median ci95_low ci95_high"),
        **_each(pa.int32(), "schema_version"),
    ),
    metadata=_METADATA,
)
"""One row a metric and group of clips; ``n`` counts the defined values."""

DEAD_LETTER_COLUMNS: tuple[str, ...] = (
    *("stage", "error_type", "message", "manifest_uri", "manifest_row", "row_json"),
)
"""What a dead letter says beside its row. ``row_json``: the row as read, if it is not valid."""

DEAD_LETTER_SCHEMA = pa.schema(
    [
        *_table(
            **_each(pa.string(), "stage error_type message manifest_uri"),
            **_each(pa.int64(), "manifest_row"),
            **_each(pa.string(), "row_json"),
        ),
        *(_arrow_field(name).with_nullable(True) for name in MANIFEST_COLUMNS),
    ],
    metadata=_METADATA,
)
"""A failure and the row it befell, so that a folder of dead letters is itself a manifest."""


def with_extra(schema: pa.Schema, names: Iterable[str]) -> pa.Schema:
    """``schema`` with one text column ``extra_…`` for each name, in sorted order."""
    for name in sorted(set(names)):
        schema = schema.append(pa.field(EXTRA_PREFIX + name, pa.string()))
    return schema
