"""Computes distortion ratios from sums over time, which are added up block by block.

Moments are what all the ratios are computed from. A symmetric Toeplitz system says how much of a
signal a short filter of another one explains. A ratio without a value has a reason instead.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

FFT_SAMPLES = 4096
"""Small, so that a step stays in the processor's cache: three times faster than one long FFT."""
CPU_STEP_FRAMES = 8
CUDA_STEP_FRAMES = 32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """Sums over time for a reference and K estimates of it, all float64.

    Attributes:
        num_samples: how many samples were added up.
        totals: [B, 1 + K], the sums of the samples, the reference first (so everywhere below).
        powers: [B, 1 + K], the sums of the squares.
        products: [B, 1 + K], the sums of the products with the reference.
        errors: [B, K], the sums of the squared differences from the reference.
        lagged_products: [B, 1 + K, L], the sums of the products with the reference delayed by
            0 … L - 1 samples; L is 0 if they were not asked for.
    """

    num_samples: int
    totals: Tensor
    powers: Tensor
    products: Tensor
    errors: Tensor
    lagged_products: Tensor


class MomentAccumulator:
    """Adds up `Moments` over blocks of any lengths, in memory for one block."""

    def __init__(self, num_lags: int = 0) -> None:
        """Starts at zero.

        Args:
            num_lags: L, how many delays of the reference to correlate with; 0 for none.
        """
        self._num_lags = num_lags
        self._past: Tensor | None = None  # the reference's last L - 1 samples
        self._sum: Moments | None = None

    @torch.no_grad()
    def update(self, estimates: Tensor, reference: Tensor) -> None:
        """Adds a block.

        Args:
            estimates: float[B, K, n]; B, K and the device must not change.
            reference: float[B, n].
        """
        step = self._step_samples(reference.device)
        for begin in range(0, reference.shape[-1], step):
            piece = slice(begin, begin + step)
            signals = torch.cat([reference[:, None, piece], estimates[..., piece]], dim=1).double()
            moments = self._measure(signals)
            self._sum = moments if self._sum is None else _add(self._sum, moments)

    def result(self) -> Moments:
        """The sums so far.

        Raises:
            ValueError: there were no samples.
        """
        if self._sum is None:
            raise ValueError("there are no samples to score")
        return self._sum

    def _step_samples(self, device: torch.device) -> int:
        frames = CPU_STEP_FRAMES if device.type == "cpu" else CUDA_STEP_FRAMES
        return frames * _frame_samples(self._num_lags)

    def _measure(self, signals: Tensor) -> Moments:
        reference = signals[:, :1]
        return Moments(
            num_samples=signals.shape[-1],
            totals=signals.sum(dim=-1),
            powers=signals.square().sum(dim=-1),
            products=(signals * reference).sum(dim=-1),
            errors=(signals[:, 1:] - reference).square().sum(dim=-1),
            lagged_products=self._correlate(signals),
        )

    def _correlate(self, signals: Tensor) -> Tensor:
        if self._num_lags == 0:
            return signals.new_zeros(*signals.shape[:2], 0)
        if self._past is None:
            self._past = signals.new_zeros(len(signals), self._num_lags - 1)
        reference = torch.cat([self._past, signals[:, 0]], dim=-1)
        self._past = reference[:, reference.shape[-1] - self._num_lags + 1 :].clone()
        return lag_products(signals, reference)


def measure(estimates: Tensor, reference: Tensor, num_lags: int = 0) -> Moments:
    """The moments of whole clips, on the CPU clip by clip, which its cache prefers.

    Args:
        estimates: float[B, K, T].
        reference: float[B, T].
        num_lags: L, how many delays of the reference to correlate with; 0 for none.

    Returns:
        The sums over T.

    Raises:
        ValueError: there are no samples.
    """
    clips_at_once = 1 if reference.device.type == "cpu" else len(reference)
    parts = []
    for begin in range(0, len(reference), clips_at_once):
        clips = slice(begin, begin + clips_at_once)
        accumulator = MomentAccumulator(num_lags)
        accumulator.update(estimates[clips], reference[clips])
        parts.append(accumulator.result())
    if not parts:
        raise ValueError("there are no clips to score")
    return _combine(torch.cat, parts)


def lag_products(signals: Tensor, reference: Tensor) -> Tensor:
    """Sums of products with a delayed reference, by FFTs over short frames.

    Args:
        signals: float64[B, S, n].
        reference: float64[B, L - 1 + n]: the reference over the same time and the L - 1 samples
            before it.

    Returns:
        float64[B, S, L]: for each delay l the sum over t of ``signal[t] * reference[t - l]``.
    """
    num_samples = signals.shape[-1]
    num_lags = reference.shape[-1] - num_samples + 1
    hop = _frame_samples(num_lags)
    padding = -num_samples % hop
    frames = torch.nn.functional.pad(signals, (0, padding)).unflatten(-1, (-1, hop))
    context = torch.nn.functional.pad(reference, (0, padding)).unfold(-1, FFT_SAMPLES, hop)
    spectra = torch.fft.rfft(frames, n=FFT_SAMPLES)
    product = spectra.conj() * torch.fft.rfft(context).unsqueeze(1)
    leads: Tensor = torch.fft.irfft(product.sum(dim=2), n=FFT_SAMPLES)[..., :num_lags]
    return leads.flip(-1)  # frame and context begin L - 1 samples apart


def _frame_samples(num_lags: int) -> int:
    """Samples of a frame whose products with every delay fit one FFT without wrapping round."""
    return FFT_SAMPLES - max(num_lags, 1) + 1


def _combine(combine: Callable[[list[Tensor]], Tensor], parts: Sequence[Moments]) -> Moments:
    """Joins tensor by tensor; the number of samples stays that of the first part."""
    return Moments(
        num_samples=parts[0].num_samples,
        totals=combine([part.totals for part in parts]),
        powers=combine([part.powers for part in parts]),
        products=combine([part.products for part in parts]),
        errors=combine([part.errors for part in parts]),
        lagged_products=combine([part.lagged_products for part in parts]),
    )


def _add(left: Moments, right: Moments) -> Moments:
    total = _combine(lambda pair: pair[0] + pair[1], [left, right])
    return dataclasses.replace(total, num_samples=left.num_samples + right.num_samples)


RELATIVE_LOADING = 1e-12
"""Added to the diagonal for Cholesky: well above the rounding error of 512 float64 sums."""
ACCEPTED_RESIDUAL = 1e-9
"""A Levinson solution with a larger relative residual is thrown away (a breakdown is near 1e80)."""


def explained_power(autocorrelation: Tensor, crosscorrelations: Tensor) -> Tensor:
    """The power that the best filter of a reference explains in each signal, ``b^T R^-1 b``.

    On the CPU by Levinson's recursion, clip by clip (a quarter of a Cholesky's time at 512 taps);
    elsewhere, and where the recursion breaks down because the matrix is singular to working
    precision, by a batched and slightly loaded Cholesky with one step of refinement. The result is
    formed from the filter ``h`` as ``b^T h + h^T (b - R h)``: an error in ``h`` enters squared.

    Args:
        autocorrelation: float64[B, L], of the reference, lag 0 positive: the first row of ``R``.
        crosscorrelations: float64[B, K, L], K right-hand sides ``b`` for each matrix.

    Returns:
        float64[B, K].
    """
    filters = (_levinson if autocorrelation.device.type == "cpu" else _cholesky)(
        autocorrelation, crosscorrelations
    )
    residual = crosscorrelations - multiply(autocorrelation, filters)
    size = torch.linalg.vector_norm(crosscorrelations, dim=-1)
    error = torch.linalg.vector_norm(residual, dim=-1)
    failed = ~(error <= ACCEPTED_RESIDUAL * size).all(dim=-1)
    if autocorrelation.device.type == "cpu" and bool(failed.any()):
        filters[failed] = _cholesky(autocorrelation[failed], crosscorrelations[failed])
        residual = crosscorrelations - multiply(autocorrelation, filters)
    return ((crosscorrelations + residual) * filters).sum(dim=-1)


def multiply(autocorrelation: Tensor, vectors: Tensor) -> Tensor:
    """Multiplies by the Toeplitz matrix, without building it.

    Args:
        autocorrelation: float64[B, L], its first row.
        vectors: float64[B, K, L].

    Returns:
        float64[B, K, L].
    """
    num_lags = autocorrelation.shape[-1]
    gap = autocorrelation.new_zeros(len(autocorrelation), 1)  # makes the length even
    circle = torch.cat([autocorrelation, gap, autocorrelation[:, 1:].flip(-1)], dim=-1)
    size = circle.shape[-1]
    spectrum = torch.fft.rfft(circle).unsqueeze(1) * torch.fft.rfft(vectors, n=size)
    product: Tensor = torch.fft.irfft(spectrum, n=size)[..., :num_lags]
    return product


def _levinson(autocorrelation: Tensor, crosscorrelations: Tensor) -> Tensor:
    from scipy.linalg import solve_toeplitz  # rows without a reference need not wait for it

    filters = np.full(crosscorrelations.shape, np.nan)
    rows = autocorrelation.numpy()
    for index, right in enumerate(crosscorrelations.numpy()):
        try:
            filters[index] = solve_toeplitz(rows[index], right.T).T
        except np.linalg.LinAlgError:
            continue  # stays NaN, which no accepted residual has: Cholesky takes over
    return torch.from_numpy(filters)


def _cholesky(autocorrelation: Tensor, crosscorrelations: Tensor) -> Tensor:
    lags = torch.arange(autocorrelation.shape[-1], device=autocorrelation.device)
    matrix = autocorrelation[:, (lags[:, None] - lags).abs()]
    matrix.diagonal(dim1=-2, dim2=-1).mul_(1.0 + RELATIVE_LOADING)
    factor, _ = torch.linalg.cholesky_ex(matrix)
    filters = torch.cholesky_solve(crosscorrelations.mT, factor).mT
    residual = crosscorrelations - multiply(autocorrelation, filters)
    return filters + torch.cholesky_solve(residual.mT, factor).mT


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
    reference = moments.powers[:, :1]
    equal = moments.errors < INDISTINCT_DISTORTION * reference
    return _ratios(moments, reference / moments.errors, {Problem.WITHOUT_DISTORTION: equal})


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
    return _of_share(moments, explained_power(own, others))


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
    """Computes ratios from the explained share of each estimate's power, float64[B, K]."""
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
