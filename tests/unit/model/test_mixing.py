"""Levels in closed form and against the stored torchaudio result; peaks; refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from golden import published, synth
from model import signal


def _noise(seed: int, num_samples: int = 4000, scale: float = 0.05) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (scale * generator.standard_normal(num_samples)).astype(np.float32)


def _snr_db(target: np.ndarray, interferer: np.ndarray) -> float:
    powers = [np.mean(np.square(x, dtype=np.float64)) for x in (target, interferer)]
    return float(10 * np.log10(powers[0] / powers[1]))


def _coloured(seed: int, scale: float) -> np.ndarray:
    noise = synth.noise(seed, 320_000, scale)
    coloured = noise.copy()
    coloured[1:] += np.float32(0.9) * noise[:-1]
    return coloured


@pytest.fixture(scope="module")
def sources() -> tuple[np.ndarray, np.ndarray]:
    return _coloured(1200, 0.1), _coloured(1201, 0.05)


class TestAgainstTheStoredResult:
    def test_scale_and_sum(self, sources: tuple[np.ndarray, np.ndarray]) -> None:
        target, interferer = sources
        mixture = signal.mix(target, [interferer], 0.0)
        scale = mixture.interferers[0].std() / interferer.std() / mixture.gain
        with np.load(published.DATA / "metrics.npz") as stored:
            assert scale == pytest.approx(float(stored["mixed_scale"]), rel=1e-5)
            np.testing.assert_allclose(
                mixture.mixture[:2000] / mixture.gain, stored["mixed_head"], rtol=0, atol=1e-6
            )

    def test_gain_where_the_sum_exceeds_full_scale(
        self, sources: tuple[np.ndarray, np.ndarray]
    ) -> None:
        target, interferer = sources
        mixture = signal.mix(target * 8, [interferer], 0.0)
        with np.load(published.DATA / "metrics.npz") as stored:
            assert mixture.gain == pytest.approx(float(stored["big_gain"]), rel=1e-6)


@given(levels_db=st.lists(st.floats(-40, 40), min_size=1, max_size=4))
def test_every_interferer_has_its_own_level(levels_db: list[float]) -> None:
    interferers = [_noise(10 + index, scale=0.3**index) for index in range(len(levels_db))]
    mixture = signal.mix(_noise(1), interferers, levels_db)
    for level_db, interferer in zip(levels_db, mixture.interferers, strict=True):
        assert _snr_db(mixture.target, interferer) == pytest.approx(level_db, abs=1e-4)
    np.testing.assert_allclose(
        mixture.mixture, mixture.target + np.sum(mixture.interferers, axis=0), rtol=0, atol=1e-6
    )
    assert np.abs(mixture.mixture).max() <= 1.0


def test_one_level_serves_all() -> None:
    interferers = [_noise(2), _noise(3, scale=0.5)]
    mixture = signal.mix(_noise(1), interferers, -5.0)
    levels_db = [_snr_db(mixture.target, interferer) for interferer in mixture.interferers]
    assert levels_db == pytest.approx([-5.0, -5.0], abs=1e-4)


def test_peaks_up_to_full_scale_are_left_alone() -> None:
    target = np.array([0.5, -0.5, 0.5, -0.5], np.float32)
    mixture = signal.mix(target, [target], 0.0)
    assert mixture.gain == 1.0
    np.testing.assert_array_equal(mixture.mixture, 2 * target)
    np.testing.assert_array_equal(mixture.target, target)


def test_peaks_beyond_full_scale_bring_everything_down_together() -> None:
    target = np.array([0.75, -0.75, 0.75, -0.75], np.float32)
    mixture = signal.mix(target, [np.sign(target)], 0.0)
    assert mixture.gain == pytest.approx(0.9 / 1.5)
    np.testing.assert_allclose(np.abs(mixture.mixture), 0.9, rtol=1e-6)
    np.testing.assert_allclose(np.abs(mixture.target), 0.45, rtol=1e-6)
    np.testing.assert_allclose(np.abs(mixture.interferers[0]), 0.45, rtol=1e-6)


def test_levels_hold_where_float32_would_overflow() -> None:
    mixture = signal.mix(_noise(1), [_noise(2)], -900.0)
    assert np.abs(mixture.mixture).max() == pytest.approx(0.9, rel=1e-6)
    assert np.isfinite(mixture.target).all()


def test_channels_keep_their_balance() -> None:
    target = np.stack([_noise(1), _noise(2)])
    interferer = np.stack([_noise(3), np.zeros_like(_noise(3))])
    mixture = signal.mix(target, [interferer], 3.0)
    assert _snr_db(mixture.target, mixture.interferers[0]) == pytest.approx(3.0, abs=1e-4)
    np.testing.assert_array_equal(mixture.interferers[0][1], 0.0)


def test_sources_are_left_untouched() -> None:
    target, interferer = _noise(1, scale=2.0), _noise(2, scale=2.0)
    before = target.copy(), interferer.copy()
    signal.mix(target, [interferer])
    np.testing.assert_array_equal(target, before[0])
    np.testing.assert_array_equal(interferer, before[1])


SILENCE = np.zeros(4000, np.float32)
BROKEN = np.full(4000, np.nan, np.float32)


@pytest.mark.parametrize(
    ("target", "interferers", "snr_db", "message"),
    [
        (SILENCE, [_noise(2)], 0.0, "target is silent"),
        (_noise(1), [_noise(2), SILENCE], 0.0, "interferer 1 is silent"),
        (BROKEN, [_noise(2)], 0.0, "target holds samples that are not finite"),
        (_noise(1), [BROKEN], 0.0, "interferer 0 holds samples that are not finite"),
        (_noise(1), [], 0.0, "at least one interferer"),
        (_noise(1), [_noise(2, 3)], 0.0, r"interferer 0 has shape \(3,\), the target \(4000,\)"),
        (SILENCE[:0], [SILENCE[:0]], 0.0, "target is empty"),
        (_noise(1), [_noise(2)], [0.0, 1.0], "2 levels in snr_db for 1 interferers"),
        (_noise(1), [_noise(2)], 1001.0, "snr_db must be within ±1000 dB, got 1001.0"),
        (_noise(1), [_noise(2)], float("nan"), "snr_db must be within ±1000 dB, got nan"),
    ],
)
def test_what_cannot_be_mixed_is_refused(
    target: np.ndarray, interferers: list[np.ndarray], snr_db: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        signal.mix(target, interferers, snr_db)
