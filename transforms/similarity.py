"""CLAPScores of one stem, from what a scorer hears and what the query says."""

from __future__ import annotations

import dataclasses

import torch

from manifests.schema import METRIC_COLUMNS
from model import similarity
from transforms.elements import RowQuery, Samples, Scores

CLAP_COLUMNS = tuple(name for name in METRIC_COLUMNS if "clap_score" in name)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embeddings:
    """What the scorer hears in one query's signals, float32[D] each; None: silent or absent."""

    stem: Samples | None
    mixture: Samples | None
    reference: Samples | None


def clap_scores(query: RowQuery, heard: Embeddings, *, has_reference: bool) -> Scores:
    """The CLAPScores that there is something for, and why the others are undefined.

    Args:
        query: with the scorer's embeddings of its texts, or of its example clips.
        heard: the scorer's embeddings of the signals.
        has_reference: whether the row has a reference, be it silent.
    """
    positive, negative = query.scorer_positive, query.scorer_negative
    values: dict[str, float] = {}
    if heard.stem is not None:
        found = similarity.clap_scores(
            _row(heard.stem),
            positive=_optional(positive),
            mixture=_optional(heard.mixture),
            negative=_optional(negative),
            reference=_optional(heard.reference),
        )
        columns = {name: float(getattr(found, name)) for name in CLAP_COLUMNS}
        values = {name: value for name, value in columns.items() if value == value}
    elif heard.mixture is not None and positive is not None:
        # The mixture's score does not need the stem.
        before = similarity.clap_scores(_row(heard.mixture), positive=_row(positive))
        values = {"clap_score_mixture": float(before.clap_score)}
    return Scores(
        values=values,
        reasons={
            name: _reason(name, query, heard, has_reference)
            for name in CLAP_COLUMNS
            if name not in values
        },
    )


def _reason(name: str, query: RowQuery, heard: Embeddings, has_reference: bool) -> str:
    """Why one of the scores is undefined, the strongest reason first."""
    if name != "clap_score_mixture" and heard.stem is None:
        return "silent_stem"
    if name != "clap_score_negative" and query.scorer_positive is None:
        return "no_positive_query"
    if name in ("clap_score_negative", "clap_score_contrast"):
        return "no_negative_query"
    if name == "ref_clap_score":
        return "silent_reference" if has_reference else "no_reference"
    return "silent_mixture"


def _row(embedding: Samples) -> torch.Tensor:
    return torch.from_numpy(embedding)[None]


def _optional(embedding: Samples | None) -> torch.Tensor | None:
    return None if embedding is None else _row(embedding)
