"""Symmetric Toeplitz systems: how much of a signal a short filter of another one explains."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

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
    filters = np.full(crosscorrelations.shape, np.nan)
    rows = autocorrelation.numpy()
    for index, right in enumerate(crosscorrelations.numpy()):
        try:
            filters[index] = scipy.linalg.solve_toeplitz(rows[index], right.T).T
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
