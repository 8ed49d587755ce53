"""Toeplitz solves against plain linear algebra, however badly conditioned."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from model.metrics import distortion


def _autocorrelation(signal: np.ndarray, num_lags: int) -> np.ndarray:
    spectrum = np.fft.rfft(signal, 2 * len(signal))
    return np.fft.irfft(np.abs(spectrum) ** 2)[:num_lags]


def _signals(num_samples: int = 4000) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    seconds = np.arange(num_samples) / 32_000
    return {
        "noise": generator.standard_normal(num_samples),
        "low-passed noise": np.convolve(generator.standard_normal(num_samples), np.hanning(40)),
        "tone": np.sin(2 * np.pi * 440 * seconds),
        "constant": np.ones(num_samples),
        "decaying tone": np.exp(-50 * seconds) * np.sin(2 * np.pi * 200 * seconds),
        "impulse": np.eye(1, num_samples)[0],
    }


@pytest.mark.parametrize("num_lags", [1, 2, 33, 128])
@pytest.mark.parametrize("name", list(_signals()))
def test_explained_power_equals_a_dense_solve(name: str, num_lags: int) -> None:
    row = _autocorrelation(_signals()[name], num_lags)
    right = np.random.default_rng(1).standard_normal((2, num_lags)) @ scipy.linalg.toeplitz(row)
    filters = np.linalg.solve(scipy.linalg.toeplitz(row), right.T).T
    actual = distortion.explained_power(torch.from_numpy(row)[None], torch.from_numpy(right)[None])
    np.testing.assert_allclose(actual[0].numpy(), (right * filters).sum(axis=1), rtol=1e-9)


def test_rows_of_a_batch_do_not_touch_each_other() -> None:
    rows = torch.from_numpy(np.stack([_autocorrelation(s[:4000], 64) for s in _signals().values()]))
    right = torch.from_numpy(np.random.default_rng(2).standard_normal((len(rows), 3, 64)))
    together = distortion.explained_power(rows, right)
    for index in range(len(rows)):
        alone = distortion.explained_power(rows[index : index + 1], right[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-12, atol=0)


def _recursion_fails(row: np.ndarray, right: np.ndarray) -> bool:
    try:
        filters = scipy.linalg.solve_toeplitz(row, right)
    except np.linalg.LinAlgError:
        return True
    return bool(np.linalg.norm(scipy.linalg.toeplitz(row) @ filters - right) > 1.0)


@pytest.mark.parametrize("width_s", [0.01, 0.02, 0.05, 0.1])
def test_singular_to_working_precision_stays_near_the_explained_power(width_s: float) -> None:
    # So smooth that the matrix has no inverse in float64: Levinson's recursion stops or explodes.
    bump = np.exp(-0.5 * ((np.arange(40_000) / 32_000 - 0.6) / width_s) ** 2)
    row = _autocorrelation(bump / np.linalg.norm(bump), 512)
    wanted = np.zeros(512)
    wanted[[0, 3, 40]] = [1.0, -0.4, 0.2]
    right = scipy.linalg.toeplitz(row) @ wanted
    assert _recursion_fails(row, right)
    actual = distortion.explained_power(
        torch.from_numpy(row)[None], torch.from_numpy(right)[None, None]
    )
    assert actual.item() == pytest.approx(right @ wanted, rel=1e-9)


@pytest.mark.parametrize("name", list(_signals()))
def test_cholesky_gives_what_levinson_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = torch.from_numpy(_autocorrelation(_signals()[name], 128))[None]
    row /= row[0, 0].clone()
    right = distortion.multiply(row, torch.from_numpy(_noise(1, 2, 128)))
    expected = distortion.explained_power(row, right)
    monkeypatch.setattr(distortion, "_levinson", distortion._cholesky)
    torch.testing.assert_close(distortion.explained_power(row, right), expected, rtol=1e-9, atol=0)


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape)


@pytest.mark.parametrize("num_lags", [1, 2, 7, 64])
def test_product_equals_the_dense_one(num_lags: int) -> None:
    rows, vectors = _noise(3, num_lags), _noise(3, 2, num_lags)
    expected = np.stack(
        [x @ scipy.linalg.toeplitz(row) for row, x in zip(rows, vectors, strict=True)]
    )
    actual = distortion.multiply(torch.from_numpy(rows), torch.from_numpy(vectors))
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-12)
