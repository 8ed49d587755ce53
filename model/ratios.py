"""From moments to decibels, and what to say where there are none."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping

import torch
from torch import Tensor

from model import toeplitz
from model.moments import Moments

INDISTINCT_DISTORTION = 1e-12
"""Distortion below this part of the power (-120 dB) is not told from rounding, so not from none."""
INDISTINCT_TARGET = 1e-16
"""Likewise what an estimate holds of the reference (-160 dB)."""
INDISTINCT_VARIANCE = 1e-13
"""Likewise what remains of a signal's power without its mean."""


class Problem(enum.IntEnum):
    """Why a ratio has no value; the strongest reason first."""

    NOT_FINITE = 1
    SILENT_REFERENCE = 2
    SILENT_ESTIMATE = 3
    WITHOUT_DISTORTION = 4
    WITHOUT_REFERENCE = 5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ratios:
    """One ratio for B clips and K estimates.

    Attributes:
        value_db: float64[B, K], NaN where undefined.
        problem: int64[B, K], 0 where defined, else a `Problem`.
    """

    value_db: Tensor
    problem: Tensor


def plain(moments: Moments) -> Ratios:
    """Power of the reference over that of the error."""
    ratio = moments.powers[:, :1] / moments.errors
    equal = moments.errors == 0.0
    return _ratios(moments, ratio, {Problem.WITHOUT_DISTORTION: equal})


def scaled(moments: Moments) -> Ratios:
    """Power that a multiple of the reference explains, over that of the rest."""
    norms = moments.powers.sqrt()
    cosine = moments.products[:, 1:] / norms[:, 1:] / norms[:, :1]
    return _of_share(moments, cosine.square())


def filtered(moments: Moments) -> Ratios:
    """Power that the reference explains through a filter of L taps, over that of the rest."""
    usable = _usable(moments)
    norms = moments.powers.sqrt().unsqueeze(-1)
    correlations = moments.lagged_products / norms / norms[:, :1]
    # Undefined clips solve the identity instead, so that they disturb neither solver nor batch.
    impulse = torch.zeros_like(correlations[:, 0])
    impulse[:, 0] = 1.0
    own = torch.where(usable.any(dim=1, keepdim=True), correlations[:, 0], impulse)
    others = torch.where(usable.unsqueeze(-1), correlations[:, 1:], 0.0)
    return _of_share(moments, toeplitz.explained_power(own, others))


def without_mean(moments: Moments) -> Moments:
    """The moments of the signals after each one's mean is subtracted (``errors`` aside)."""
    means = moments.totals / moments.num_samples
    powers = moments.powers - means * moments.totals
    constant = powers <= INDISTINCT_VARIANCE * moments.powers
    return dataclasses.replace(
        moments,
        powers=torch.where(constant, 0.0, powers),
        products=moments.products - means * moments.totals[:, :1],
    )


def _usable(moments: Moments) -> Tensor:
    """Where reference and estimate are neither silent nor broken: bool[B, K]."""
    usable = moments.powers.isfinite() & (moments.powers > 0.0)
    return usable[:, 1:] & usable[:, :1]


def _of_share(moments: Moments, share: Tensor) -> Ratios:
    """From the explained part of each estimate's power, float64[B, K] in [0, 1]."""
    own_problems = {
        Problem.WITHOUT_DISTORTION: 1.0 - share < INDISTINCT_DISTORTION,
        Problem.WITHOUT_REFERENCE: share < INDISTINCT_TARGET,
    }
    return _ratios(moments, share / (1.0 - share), own_problems)


def _ratios(moments: Moments, ratio: Tensor, own_problems: Mapping[Problem, Tensor]) -> Ratios:
    """Decibels, and the strongest problem where there is one."""
    broken, silent = ~moments.powers.isfinite(), moments.powers == 0.0
    problem = torch.zeros_like(ratio, dtype=torch.int64)
    found = {
        Problem.NOT_FINITE: broken[:, 1:] | broken[:, :1],
        Problem.SILENT_REFERENCE: silent[:, :1].expand_as(problem),
        Problem.SILENT_ESTIMATE: silent[:, 1:],
        **own_problems,
    }
    for kind, where in found.items():
        problem[(problem == 0) & where] = kind
    value_db = torch.where(problem == 0, 10.0 * ratio.log10(), torch.nan)
    return Ratios(value_db=value_db, problem=problem)
