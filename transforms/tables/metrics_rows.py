"""One row of the metrics table: what a stem was made from, by what, and how well."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from manifests.columns import METRIC_COLUMNS, METRICS_SCHEMA, SCHEMA_VERSION
from manifests.ids import partition_value
from manifests.row import EXTRA_PREFIX, ManifestRow
from transforms.elements import MetricsRow, Provenance, Scores, TableRow
from transforms.storage.redaction import redacted

_KEYS = ("id", "dataset", "split")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StemFacts:
    """What is known of a written stem.

    Attributes:
        duration_s: its length.
        sample_rate_hz: of the file.
        n_channels: of the file.
        n_windows: decoder passes that made it.
        peak: largest absolute sample, before a fixed-point format saturates it.
        inference_s: its share of the time in the network.
        stem_uri: the file.
        residual_uri: the mixture minus the stem, where it was asked for.
        stem_format: of the file, where this run wrote it.
        stem_note: why that is not the format that was asked for.
        input_gain_db: what the network heard the recording multiplied by, the mean in dB over its
            windows; 0 for a system that hears recordings as they are.
    """

    duration_s: float
    sample_rate_hz: int
    n_channels: int
    n_windows: int
    peak: float
    inference_s: float | None
    stem_uri: str | None
    residual_uri: str | None
    stem_format: str | None = None
    stem_note: str | None = None
    input_gain_db: float | None = None


def metrics_row(
    row: ManifestRow,
    facts: StemFacts,
    scores: Scores,
    provenance: Provenance | None,
    *,
    scorer_sha256: str | None,
    code_version: str,
) -> MetricsRow:
    """The row of the metrics table; a value that is not finite becomes null."""
    values: dict[str, Any] = dict.fromkeys(METRICS_SCHEMA.names)
    values.update(
        label=row.label,
        group=row.group,
        query_type=row.query_type,
        polarity=row.polarity,
        n_shots=row.num_shots,
        n_sources=row.num_sources,
        input_snr_db=row.input_snr_db,
        **_asked(row),
        **{name: _finite(scores.values.get(name)) for name in METRIC_COLUMNS},
        undefined_reason=_reasons(scores),
        **dataclasses.asdict(facts),
        **(dataclasses.asdict(provenance) if provenance is not None else {}),
        scorer_sha256=scorer_sha256,
        code_version=code_version,
        schema_version=SCHEMA_VERSION,
    )
    for key in _KEYS:
        del values[key]
    return MetricsRow(
        id=row.id, dataset=row.dataset, split=row.split, values=values, extra=dict(row.extra)
    )


def _asked(row: ManifestRow) -> dict[str, Any]:
    """What was asked of what, without credentials."""
    uris = {
        "mixture_uri": row.mixture_uri,
        "target_uris": row.targets or None,
        "interferer_uris": row.interferer_uris or None,
        "reference_uri": row.reference_uri,
        "positive_audio_uris": row.positive_audio_uris or None,
        "negative_audio_uris": row.negative_audio_uris or None,
    }
    return {
        "row_sha256": row.sha256,
        **{name: redacted(value) for name, value in uris.items()},
        "offset_s": row.offset_s or 0.0,
        "positive_text": row.positive_text,
        "negative_text": row.negative_text,
        "text_weight": row.weight_of_text,
        "seed": row.seed,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _reasons(scores: Scores) -> str | None:
    return "; ".join(f"{name}={why}" for name, why in sorted(scores.reasons.items())) or None


def table_row(row: MetricsRow) -> TableRow:
    """The row on its way to a file, in the partition of its dataset and split."""
    return TableRow(
        partition="/".join(
            f"{name}={partition_value(value)}"
            for name, value in (("dataset", row.dataset), ("split", row.split))
        ),
        key=row.id,
        record={"id": row.id, "dataset": row.dataset, "split": row.split, **row.values},
        extra=row.extra,
    )


def from_record(record: Mapping[str, Any]) -> MetricsRow:
    """The row again, from the columns of a file."""
    extra = {
        name.removeprefix(EXTRA_PREFIX): value
        for name, value in record.items()
        if name.startswith(EXTRA_PREFIX) and value is not None
    }
    values = {name: record.get(name) for name in METRICS_SCHEMA.names if name not in _KEYS}
    return MetricsRow(
        id=record["id"],
        dataset=record["dataset"],
        split=record["split"],
        values=values,
        extra=extra,
    )
