"""Scores stems against references and queries; one table names every metric.

Three quantities are called "SDR" in the literature and differ by several dB. `sdr_db` lets a filter
of 512 taps account for part of the error (BSS eval; the CLAPSep paper's); `si_sdr_db` a gain only;
`snr_db` nothing (AudioSep's and DCASE's "SDR"). Everything is computed in float64 and by the batch.

Where a value is undefined it is NaN, never infinite and never an artefact of an epsilon, and
`Undefined` says why. Everything comes from sums over time, so `PairScorer` scores a recording of
hours block by block, in constant memory.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model.metrics import distortion
from model.metrics.distortion import MomentAccumulator, Moments, Problem, measure


class Undefined(enum.StrEnum):
    """Why a ratio has no value, the strongest reason first.

    A stem *equals* the reference where the error is none or, for ratios that forgive a filter or a
    gain, below -120 dB; it is *without* the reference where it holds less than -160 dB of it.
    """

    NOT_FINITE = "not_finite"
    SILENT_REFERENCE = "silent_reference"
    SILENT_STEM = "silent_stem"
    SILENT_MIXTURE = "silent_mixture"
    STEM_EQUALS_REFERENCE = "stem_equals_reference"
    MIXTURE_EQUALS_REFERENCE = "mixture_equals_reference"
    STEM_WITHOUT_REFERENCE = "stem_without_reference"
    MIXTURE_WITHOUT_REFERENCE = "mixture_without_reference"


_STEM_REASONS = {
    Problem.NOT_FINITE: Undefined.NOT_FINITE,
    Problem.SILENT_REFERENCE: Undefined.SILENT_REFERENCE,
    Problem.SILENT_ESTIMATE: Undefined.SILENT_STEM,
    Problem.WITHOUT_DISTORTION: Undefined.STEM_EQUALS_REFERENCE,
    Problem.WITHOUT_REFERENCE: Undefined.STEM_WITHOUT_REFERENCE,
}
_MIXTURE_REASONS = _STEM_REASONS | {
    Problem.SILENT_ESTIMATE: Undefined.SILENT_MIXTURE,
    Problem.WITHOUT_DISTORTION: Undefined.MIXTURE_EQUALS_REFERENCE,
    Problem.WITHOUT_REFERENCE: Undefined.MIXTURE_WITHOUT_REFERENCE,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClipScore:
    """The ratios of one clip in dB, named as in the output's schema; undefined ones are None.

    ``reasons`` says of every undefined ratio, by name, why it is.
    """

    sdr_db: float | None
    sdr_mixture_db: float | None
    sdri_db: float | None
    si_sdr_db: float | None
    si_sdr_mixture_db: float | None
    si_sdri_db: float | None
    snr_db: float | None
    snr_mixture_db: float | None
    snri_db: float | None
    reasons: Mapping[str, Undefined]

    @property
    def undefined_reason(self) -> Undefined | None:
        """The strongest of the reasons; None where every ratio is defined."""
        return next((reason for reason in Undefined if reason in self.reasons.values()), None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairScores:
    """The ratios of stem and mixture, and the improvement of one over the other.

    Every tensor is float64[B] in dB, NaN where undefined; ``reasons`` says for each clip why, by
    the ratio's name.
    """

    sdr_db: Tensor
    sdr_mixture_db: Tensor
    sdri_db: Tensor
    si_sdr_db: Tensor
    si_sdr_mixture_db: Tensor
    si_sdri_db: Tensor
    snr_db: Tensor
    snr_mixture_db: Tensor
    snri_db: Tensor
    reasons: tuple[Mapping[str, Undefined], ...]

    def clips(self) -> tuple[ClipScore, ...]:
        """The scores clip by clip, as plain numbers."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "reasons"]
        columns = [getattr(self, name).tolist() for name in names]
        return tuple(
            ClipScore(
                **{
                    name: None if math.isnan(value) else value
                    for name, value in zip(names, values, strict=True)
                },
                reasons=reasons,
            )
            for *values, reasons in zip(*columns, self.reasons, strict=True)
        )


def pair_scores(moments: Moments) -> PairScores:
    """The scores that moments of stem (estimate 0) and mixture (estimate 1) give.

    Args:
        moments: with the lagged products of the 512-tap filter.

    Returns:
        The scores of every clip.
    """
    kinds = {
        "sdr": distortion.filtered(moments),
        "si_sdr": distortion.scaled(moments),
        "snr": distortion.plain(moments),
    }
    columns: dict[str, Tensor] = {}
    reasons: list[dict[str, Undefined]] = [{} for _ in moments.powers]
    for name, kind in kinds.items():
        stem, mixture = kind.value_db.unbind(dim=1)
        columns |= {
            f"{name}_db": stem,
            f"{name}_mixture_db": mixture,
            f"{name}i_db": stem - mixture,
        }
        for clip, problems in zip(reasons, kind.problem.tolist(), strict=True):
            clip.update(_reasons(name, *problems))
    return PairScores(**columns, reasons=tuple(reasons))


def _reasons(name: str, stem_problem: int, mixture_problem: int) -> dict[str, Undefined]:
    """The reasons of one ratio's three columns; the stem's goes first for the improvement."""
    reasons = {}
    if mixture_problem:
        reason = _MIXTURE_REASONS[Problem(mixture_problem)]
        reasons = {f"{name}_mixture_db": reason, f"{name}i_db": reason}
    if stem_problem:
        reason = _STEM_REASONS[Problem(stem_problem)]
        reasons |= {f"{name}_db": reason, f"{name}i_db": reason}
    return reasons


__all__ = [
    "ClapScores",
    "ClipScore",
    "PairScorer",
    "PairScores",
    "SdrPair",
    "Undefined",
    "clap_scores",
    "score_pair",
    "sdr_db",
    "sdr_pair_db",
    "si_sdr_db",
    "si_snr_db",
    "snr_db",
]

FILTER_TAPS = 512


class SdrPair(NamedTuple):
    """SDR before and after separation, each float64[B] in dB."""

    stem: Tensor
    mixture: Tensor


def sdr_db(estimate: Tensor, reference: Tensor) -> Tensor:
    """Signal-to-distortion ratio that forgives a filter of 512 taps, as in BSS eval.

    Args:
        estimate: float[B, T], any scale.
        reference: float[B, T], on the same device.

    Returns:
        float64[B] in dB; NaN where a signal is silent or not finite, where the distortion is under
        -120 dB of the estimate (as where it equals the reference) or the rest under -160 dB.

    Raises:
        ValueError: shapes differ, or T is 0.

    Source:
        Vincent et al. 2006, IEEE TASLP 14(4); Scheibler 2022, ICASSP (the form in correlations).
        Equals torchmetrics' ``signal_distortion_ratio`` with its defaults from 512 samples on;
        below, its correlations wrap round. Differs: NaN and not an exception or some 130 dB;
        Levinson's recursion and not LU.
    """
    moments = _moments([estimate], reference, FILTER_TAPS)
    return distortion.filtered(moments).value_db[:, 0]


def sdr_pair_db(stem: Tensor, mixture: Tensor, reference: Tensor) -> SdrPair:
    """`sdr_db` of stem and mixture, sharing what depends on the reference only.

    Args:
        stem: float[B, T], any scale.
        mixture: float[B, T].
        reference: float[B, T].

    Returns:
        Both ratios; NaN as in `sdr_db`.

    Raises:
        ValueError: shapes differ, or T is 0.
    """
    moments = _moments([stem, mixture], reference, FILTER_TAPS)
    pair_db = distortion.filtered(moments).value_db
    return SdrPair(stem=pair_db[:, 0], mixture=pair_db[:, 1])


def si_sdr_db(estimate: Tensor, reference: Tensor) -> Tensor:
    """Scale-invariant SDR, without mean removal.

    Args:
        estimate: float[B, T], any scale.
        reference: float[B, T].

    Returns:
        float64[B] in dB; NaN as in `sdr_db`.

    Raises:
        ValueError: shapes differ, or T is 0.

    Source:
        Le Roux et al. 2019, ICASSP. Differs from torchmetrics: NaN, not an epsilon.
    """
    return distortion.scaled(_moments([estimate], reference)).value_db[:, 0]


def si_snr_db(estimate: Tensor, reference: Tensor) -> Tensor:
    """Scale-invariant SDR after the mean of each signal is removed.

    Args:
        estimate: float[B, T], any scale and offset.
        reference: float[B, T].

    Returns:
        float64[B] in dB; NaN as in `sdr_db`, and where a signal is constant.

    Raises:
        ValueError: shapes differ, or T is 0.

    Source:
        Luo and Mesgarani 2018, ICASSP. Differs from torchmetrics: NaN, not an epsilon.
    """
    moments = distortion.without_mean(_moments([estimate], reference))
    return distortion.scaled(moments).value_db[:, 0]


def snr_db(estimate: Tensor, reference: Tensor) -> Tensor:
    """Power of the reference over that of the estimate's difference from it.

    Args:
        estimate: float[B, T]; its scale matters.
        reference: float[B, T].

    Returns:
        float64[B] in dB; NaN where a signal is silent or not finite, or they are equal.

    Raises:
        ValueError: shapes differ, or T is 0.

    Source:
        AudioSep's and DCASE 2024 Task 9's "SDR". A silent estimate would formally have 0 dB.
    """
    return distortion.plain(_moments([estimate], reference)).value_db[:, 0]


def score_pair(stem: Tensor, mixture: Tensor, reference: Tensor) -> PairScores:
    """All ratios of stem and mixture at once, at little more than the cost of `sdr_pair_db`.

    Args:
        stem: float[B, T].
        mixture: float[B, T].
        reference: float[B, T].

    Returns:
        The scores of every clip.

    Raises:
        ValueError: shapes differ, or T is 0.
    """
    return pair_scores(_moments([stem, mixture], reference, FILTER_TAPS))


class PairScorer:
    """`score_pair` for recordings that arrive in blocks, in memory for one block."""

    def __init__(self) -> None:
        """Starts with nothing."""
        self._moments = MomentAccumulator(FILTER_TAPS)

    def update(self, stem: Tensor, mixture: Tensor, reference: Tensor) -> None:
        """Adds a block.

        Args:
            stem: float[B, n]; n may change from block to block, B and the device may not.
            mixture: float[B, n].
            reference: float[B, n].

        Raises:
            ValueError: shapes differ.
        """
        _check([stem, mixture], reference)
        self._moments.update(torch.stack([stem, mixture], dim=1), reference)

    def scores(self) -> PairScores:
        """The scores of all blocks so far: those of the blocks put together.

        Raises:
            ValueError: there were no samples.
        """
        return pair_scores(self._moments.result())


def _check(estimates: Sequence[Tensor], reference: Tensor) -> None:
    if reference.ndim != 2:
        raise ValueError(f"expected [clips, samples], got shape {tuple(reference.shape)}")
    for estimate in estimates:
        if estimate.shape != reference.shape:
            raise ValueError(
                f"an estimate of shape {tuple(estimate.shape)} cannot be scored against a "
                f"reference of shape {tuple(reference.shape)}"
            )


def _moments(estimates: Sequence[Tensor], reference: Tensor, num_lags: int = 0) -> Moments:
    _check(estimates, reference)
    return measure(torch.stack(list(estimates), dim=1), reference, num_lags)


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
