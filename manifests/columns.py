"""Defines the schemas of every table that is written; their types never depend on the data.

That of a manifest is generated from :class:`manifests.row.ManifestRow`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from manifests.row import EXTRA_PREFIX, MANIFEST_COLUMNS, SCHEMA_VERSION, ManifestRow, column_type

_SCALARS: Mapping[Any, pa.DataType] = {str: pa.string(), float: pa.float64(), int: pa.int64()}


def _arrow_field(name: str) -> pa.Field:
    scalar, is_list = column_type(name)
    arrow = _SCALARS[scalar]
    return pa.field(
        name,
        pa.list_(arrow) if is_list else arrow,
        nullable=name != "id",
        metadata={"description": ManifestRow.__dataclass_fields__[name].metadata["description"]},
    )


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
mean over its windows. ``stem_to_mixture_db`` is the power of the stem over that of the mixture, of
the means of their channels at the model's rate. Columns that nothing computes yet are null.
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
