"""Rows of metrics with made-up values."""

from __future__ import annotations

from typing import Any

import tone_clips
from transforms.elements import MetricsRow, Provenance, Scores
from transforms.metrics_rows import StemFacts, metrics_row

PROVENANCE = Provenance(
    model="tones", model_sha256="m", clap_sha256="c", device="cpu", precision="fp32"
)
FACTS = StemFacts(
    duration_s=1.0,
    sample_rate_hz=8_000,
    n_channels=1,
    n_windows=3,
    peak=0.5,
    inference_s=0.1,
    stem_uri="x.flac",
    residual_uri=None,
)


def metrics(row_id: str, sdri_db: float | None = 1.0, **fields: Any) -> MetricsRow:
    """A row of metrics that has an SDRi, or a reason why not."""
    given = {"dataset": "d", "split": "test", "extra": {"colour": "red"}, **fields}
    known = sdri_db is not None
    return metrics_row(
        tone_clips.row(row_id, **given),
        FACTS,
        Scores(
            values={"sdri_db": sdri_db} if known else {},
            reasons={} if known else {"sdri_db": "silent_reference"},
        ),
        PROVENANCE,
        scorer_sha256="s",
        code_version="1",
    )
