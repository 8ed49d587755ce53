"""CLAPScore and its relatives: cosine similarities between CLAP embeddings."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClapScores:
    """Similarities in [-1, 1] and their differences, float64[B]; NaN where undefined.

    Attributes:
        clap_score: stem to positive query.
        clap_score_mixture: mixture to positive query.
        clap_score_negative: stem to negative query.
        clap_score_improvement: ``clap_score - clap_score_mixture``.
        clap_score_contrast: ``clap_score - clap_score_negative``; what the paper's tables fit.
        ref_clap_score: harmonic mean of ``clap_score`` and the stem's similarity to the reference,
            where both are positive.
    """

    clap_score: Tensor
    clap_score_mixture: Tensor
    clap_score_negative: Tensor
    clap_score_improvement: Tensor
    clap_score_contrast: Tensor
    ref_clap_score: Tensor


def clap_scores(
    stem: Tensor,
    *,
    positive: Tensor | None = None,
    mixture: Tensor | None = None,
    negative: Tensor | None = None,
    reference: Tensor | None = None,
) -> ClapScores:
    """All scores that the given embeddings allow; the others are NaN.

    Zeros stand for an absent embedding, as in a condition: single clips may lack a query.

    Args:
        stem: float[B, D], audio embeddings of the stems, any scale.
        positive: float[B, D], text embeddings of the queries.
        mixture: float[B, D], audio embeddings of the mixtures.
        negative: float[B, D], text embeddings of the negative queries.
        reference: float[B, D], audio embeddings of the references.

    Returns:
        The scores; NaN where an embedding is absent, zero or not finite.

    Raises:
        ValueError: shapes differ.

    Source:
        Xiao et al. 2024, arXiv 2407.04936 (CLAPScore, RefCLAPScore).
    """
    audio = _normalise(stem)
    absent = torch.full_like(audio, torch.nan)
    query, before, unwanted, target = (
        absent if other is None else _normalise(other).to(audio.device)
        for other in (positive, mixture, negative, reference)
    )
    score = _dot(audio, query)
    score_mixture = _dot(before, query)
    score_negative = _dot(audio, unwanted)
    return ClapScores(
        clap_score=score,
        clap_score_mixture=score_mixture,
        clap_score_negative=score_negative,
        clap_score_improvement=score - score_mixture,
        clap_score_contrast=score - score_negative,
        ref_clap_score=_harmonic_mean(score, _dot(audio, target)),
    )


def _normalise(embeddings: Tensor) -> Tensor:
    """To float64[B, D] of unit norm; what is zero or not finite becomes NaN."""
    rows = embeddings.detach().double()
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return torch.where((norms > 0.0) & norms.isfinite(), rows / norms, torch.nan)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    if left.ndim != 2 or left.shape != right.shape:
        raise ValueError(
            f"embeddings of shapes {tuple(left.shape)} and {tuple(right.shape)} do not match"
        )
    return (left * right).sum(dim=-1).clamp(-1.0, 1.0)


def _harmonic_mean(left: Tensor, right: Tensor) -> Tensor:
    mean = 2.0 * left * right / (left + right)
    return torch.where((left > 0.0) & (right > 0.0), mean, torch.nan)
