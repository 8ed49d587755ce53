"""Rows of metrics with made-up values."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np

import tone_clips
from manifests.columns import METRIC_COLUMNS
from transforms.elements import MetricsRow, Provenance, Scores
from transforms.tables import metrics_rows
from transforms.tables.metrics_rows import StemFacts, metrics_row

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


def realistic(count: int) -> Iterator[MetricsRow]:
    """Rows as different from one another as those of a long run: every metric, long names."""
    rng = np.random.default_rng(0)
    for number in range(count):
        name = f"recordings/2024/{rng.integers(1 << 40):x}"
        uri = f"gs://a-bucket/runs/first/stems/dataset=d/{name}.flac"
        values = {column: float(rng.normal()) for column in METRIC_COLUMNS}
        yield metrics_row(
            tone_clips.row(
                name,
                mixture_uri=f"gs://a-bucket/{name}.wav",
                reference_uri=f"gs://a-bucket/references/{name}.wav",
                positive_text=f"the sound of label {number % 50}",
                negative_text=f"the sound of label {number % 49}",
                dataset="d",
                split="test",
                label=f"label {number % 50}",
            ),
            dataclasses.replace(FACTS, stem_uri=uri, inference_s=float(rng.random())),
            Scores(values=values, reasons={}),
            PROVENANCE,
            scorer_sha256="s" * 64,
            code_version="1",
        )


@contextlib.contextmanager
def journal_that_fails() -> Iterator[list[Any]]:
    """Ends a job at the second piece of its journal; yields the rows of the first."""
    write_piece, written = metrics_rows.write_piece, list[Any]()

    def failing(*given: Any) -> None:
        if written:
            raise MemoryError("injected")
        written.extend(given[2])
        write_piece(*given)

    with mock.patch.object(metrics_rows, "write_piece", failing):
        yield written
