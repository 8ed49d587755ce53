"""Distortion ratios, in float64 and by the batch: SDR, SI-SDR, SI-SNR, SNR and improvements.

Three quantities are called "SDR" in the literature and differ by several dB. `sdr_db` lets a filter
of 512 taps account for part of the error (BSS eval; the CLAPSep paper's); `si_sdr_db` a gain only;
`snr_db` nothing (AudioSep's and DCASE's "SDR").

Where a value is undefined it is NaN, never infinite and never an artefact of an epsilon, and
`Undefined` says why. Everything comes from sums over time, so `PairScorer` scores a recording of
hours block by block, in constant memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model import ratios
from model.moments import MomentAccumulator, Moments, measure
from model.scores import ClipScore, PairScores, Undefined, pair_scores
from model.similarity import ClapScores, clap_scores

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
    return ratios.filtered(moments).value_db[:, 0]


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
    pair_db = ratios.filtered(moments).value_db
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
    return ratios.scaled(_moments([estimate], reference)).value_db[:, 0]


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
    moments = ratios.without_mean(_moments([estimate], reference))
    return ratios.scaled(moments).value_db[:, 0]


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
    return ratios.plain(_moments([estimate], reference)).value_db[:, 0]


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
