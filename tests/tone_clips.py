"""Clips and queries of tones, as they come to the transforms."""

from __future__ import annotations

import numpy as np

import tones
from manifests.row import ManifestRow
from transforms.elements import Clip, RowQuery


def row(row_id: str, label: str = "bell", **fields: object) -> ManifestRow:
    """A row that asks for a label."""
    given = {"mixture_uri": f"{row_id}.wav", "positive_text": label, **fields}
    return ManifestRow(id=row_id, **given)


def query(row_id: str, label: str = "bell", **fields: object) -> RowQuery:
    """A query for a label, embedded."""
    positive = np.eye(len(tones.LABELS), dtype=np.float32)[tones.LABELS.index(label)]
    return RowQuery(
        row=row(row_id, label, **fields),
        positive=positive,
        negative=np.zeros_like(positive),
        scorer_positive=positive,
    )


def clip(name: str, labels: tuple[str, ...] = ("bell",), duration_s: float = 1.0) -> Clip:
    """Bell and rain together, and a query for each label; references are the labels' tones."""
    audio = (tones.tone("bell", duration_s) + tones.tone("rain", duration_s, 1.0))[None]
    return Clip(
        queries=tuple(query(f"{name}-{label}", label) for label in labels),
        references=tuple(tones.tone(label, duration_s) for label in labels),
        audio=audio,
        sample_rate_hz=tones.RATE_HZ,
        model_audio=audio,
    )
