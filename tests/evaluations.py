"""Scores of evaluations, as they come from the metrics of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipelines.evaluation.results import METRICS, PRESENCE, SUPPRESSION, Results


def score(number: int, dataset: str, sdri_db: float, **values: Any) -> dict[str, Any]:
    """A row of a set; each is of a recording of its own unless it says otherwise."""
    return {
        "id": f"{dataset}-{number}",
        "dataset": dataset,
        "label": "bell",
        "group": str(number),
        "positive_text": "a bell",
        "model": "tones",
        "model_sha256": "abc",
        "target_uris": [f"{number}.wav"],
        "interferer_uris": ["other.wav"],
        **dict(zip(METRICS, (sdri_db, 2 * sdri_db, 3 * sdri_db), strict=True)),
        **dict.fromkeys((*PRESENCE, SUPPRESSION), np.nan),
        "undefined_reason": None,
        **values,
    }


def results_of(rows: Sequence[dict[str, Any]], **values: Any) -> Results:
    """The results of rows."""
    given = {"split": "test", "seed": 0, "limit": None, **values}
    return Results(scores=pd.DataFrame(rows), **given)
