"""Sums over time equal their definitions, however the time is cut into blocks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.metrics import distortion


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def _assert_equal(actual: distortion.Moments, expected: distortion.Moments) -> None:
    for field in dataclasses.fields(expected):
        values = [torch.as_tensor(getattr(each, field.name)) for each in (actual, expected)]
        torch.testing.assert_close(*values, rtol=1e-11, atol=1e-9, msg=field.name)


@pytest.mark.parametrize("num_lags", [0, 1, 2, 512])
@pytest.mark.parametrize("num_samples", [1, 3, 700, 3585, 3586, 30_000])
def test_sums_equal_their_definitions(num_samples: int, num_lags: int) -> None:
    estimates, reference = _noise(2, 3, num_samples), _noise(2, num_samples, seed=1)
    found = distortion.measure(estimates, reference, num_lags)
    signals = torch.cat([reference[:, None], estimates], dim=1).double()
    target = reference.double()[:, None]
    lags = [lag for lag in (0, 1, 2, 77, 511) if lag < num_lags]
    expected_lags = [
        (signals[..., lag:] * target[..., : num_samples - lag]).sum(-1)
        if lag < num_samples
        else torch.zeros(2, 4, dtype=torch.float64)
        for lag in lags
    ]
    assert found.num_samples == num_samples
    assert found.lagged_products.shape == (2, 4, num_lags)
    for actual, expected in [
        (found.totals, signals.sum(-1)),
        (found.powers, (signals**2).sum(-1)),
        (found.products, (signals * target).sum(-1)),
        (found.errors, ((signals - target) ** 2).sum(-1)[:, 1:]),
        *zip(found.lagged_products[..., lags].unbind(-1), expected_lags, strict=True),
    ]:
        assert actual.dtype == torch.float64
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-9)


@given(
    lengths=st.lists(st.integers(0, 5000), min_size=1, max_size=6).filter(any),
    num_lags=st.sampled_from([0, 1, 16, 512]),
)
def test_any_partition_gives_the_same_sums(lengths: list[int], num_lags: int) -> None:
    estimates, reference = _noise(2, 2, sum(lengths)), _noise(2, sum(lengths), seed=1)
    accumulator = distortion.MomentAccumulator(num_lags)
    for block, target in zip(
        estimates.split(lengths, dim=-1), reference.split(lengths, dim=-1), strict=True
    ):
        accumulator.update(block, target)
    _assert_equal(accumulator.result(), distortion.measure(estimates, reference, num_lags))


def test_result_may_be_taken_midway() -> None:
    estimates, reference = _noise(1, 1, 900), _noise(1, 900, seed=1)
    accumulator = distortion.MomentAccumulator(32)
    accumulator.update(estimates[..., :400], reference[:, :400])
    midway = distortion.measure(estimates[..., :400], reference[:, :400], 32)
    _assert_equal(accumulator.result(), midway)
    accumulator.update(estimates[..., 400:], reference[:, 400:])
    _assert_equal(accumulator.result(), distortion.measure(estimates, reference, 32))


def test_no_gradient_is_kept() -> None:
    estimates = _noise(1, 1, 900).requires_grad_()
    found = distortion.measure(estimates, _noise(1, 900), 16)
    assert not found.lagged_products.requires_grad
    assert not found.powers.requires_grad


def test_nothing_has_no_moments() -> None:
    with pytest.raises(ValueError, match="no samples"):
        distortion.MomentAccumulator().result()
    with pytest.raises(ValueError, match="no samples"):
        distortion.measure(torch.zeros(1, 1, 0), torch.zeros(1, 0))
    with pytest.raises(ValueError, match="no clips"):
        distortion.measure(torch.zeros(0, 1, 9), torch.zeros(0, 9))
