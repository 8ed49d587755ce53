"""Resamplers against closed form, brute force and the stored reference; levels and lengths."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from float_noise import rounding
from golden import published, synth
from model import clap
from model import signal as audio
from model.signal import stft

TAPS = 200
"""Of the longest filters: one sample out is a sum of so many."""
RATES_HZ = [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000]


def _noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _sine(rate_hz: int, num_samples: int, frequency_hz: float = 440.0) -> np.ndarray:
    return np.sin(2 * np.pi * frequency_hz * np.arange(num_samples) / rate_hz).astype(np.float32)


def _brute_force_sinc(signal: np.ndarray, source_hz: int, target_hz: int) -> np.ndarray:
    """Each output sample as an explicit sum over every input sample, in float64."""
    num_out = math.ceil(len(signal) * target_hz / source_hz)
    cutoff = min(source_hz, target_hz) * stft.SINC_ROLLOFF / source_hz  # crossings per sample
    result = np.zeros(num_out)
    for index in range(num_out):
        crossings = (np.arange(len(signal)) - index * source_hz / target_hz) * cutoff
        inside = np.abs(crossings) < stft.SINC_ZERO_CROSSINGS
        window = np.cos(np.pi * crossings / stft.SINC_ZERO_CROSSINGS / 2) ** 2
        result[index] = np.sum(signal * np.sinc(crossings) * window * inside) * cutoff
    return result


@pytest.fixture(scope="module")
def app_chunk() -> torch.Tensor:
    """The first chunk of the stored application run: scaled by its peak, 10 s at 32 kHz."""
    signals = [synth.mixture(1000 + i, 32_000, 320_000) for i in range(3)]
    signals[2] = signals[2][:108_801]
    recording = torch.from_numpy(np.concatenate(signals)) * 5
    return (recording * (0.9 / recording.abs().max()))[:320_000]


class TestSincResample:
    def test_equals_the_stored_torchaudio_output(self, app_chunk: torch.Tensor) -> None:
        with np.load(published.DATA / "app_path.npz") as stored:
            ours = stft.sinc_resample(app_chunk, 32_000, 48_000).numpy()
            assert ours.shape == (480_000,)
            for part, name in ((slice(4000), "head"), (slice(-4000, None), "tail"),
                               (slice(None, None, 97), "every97")):  # fmt: skip
                np.testing.assert_allclose(
                    ours[part], stored[f"resampled_{name}"], rtol=0, atol=rounding(ours, TAPS)
                )

    @pytest.mark.parametrize(
        ("source_hz", "target_hz"),
        [(32_000, 48_000), (48_000, 32_000), (44_100, 32_000), (16_000, 32_000), (32_000, 8_000)],
    )
    @pytest.mark.parametrize("num_samples", [1, 2, 17, 400])
    def test_equals_the_explicit_sum(
        self, source_hz: int, target_hz: int, num_samples: int
    ) -> None:
        signal = _noise(num_samples).astype(np.float64)
        ours = stft.sinc_resample(torch.from_numpy(signal), source_hz, target_hz)
        np.testing.assert_allclose(
            ours.numpy(), _brute_force_sinc(signal, source_hz, target_hz), rtol=0, atol=1e-12
        )

    def test_rows_do_not_touch_each_other(self) -> None:
        waveform = torch.from_numpy(_noise(2, 3, 500))
        together = stft.sinc_resample(waveform, 32_000, 48_000)
        assert together.shape == (2, 3, 750)
        alone = stft.sinc_resample(waveform[1, 2], 32_000, 48_000)
        torch.testing.assert_close(together[1, 2], alone, rtol=0, atol=rounding(waveform, TAPS))

    def test_equal_rates_give_the_input(self) -> None:
        waveform = torch.from_numpy(_noise(1, 9))
        assert stft.sinc_resample(waveform, 48_000, 48_000) is waveform

    def test_autocast_does_not_reach_it(self) -> None:
        waveform = torch.from_numpy(_noise(1, 4000))
        expected = stft.sinc_resample(waveform, 32_000, 48_000)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = stft.sinc_resample(waveform, 32_000, 48_000)
        assert actual.dtype == torch.float32
        assert torch.equal(actual, expected)

    def test_kernel_first_used_in_inference_serves_training(self) -> None:
        rates = (32_000, 31_000)  # used by no other test, so that the kernel is made here
        waveform = torch.from_numpy(_noise(1, 400))
        with torch.inference_mode():
            expected = stft.sinc_resample(waveform, *rates)
        trained = waveform.clone().requires_grad_()
        resampled = stft.sinc_resample(trained, *rates)
        resampled.sum().backward()
        assert torch.equal(resampled.detach(), expected)
        assert trained.grad is not None
        assert trained.grad.abs().min() > 0

    def test_threads_that_meet_at_a_new_kernel_agree(self) -> None:
        waveform = torch.from_numpy(_noise(1, 2000))
        with ThreadPoolExecutor(8) as pool:
            results = list(
                pool.map(lambda _: stft.sinc_resample(waveform, 32_000, 30_000), range(32))
            )
        assert all(torch.equal(result, results[0]) for result in results)

    def test_half_precision_is_refused(self) -> None:
        with pytest.raises(TypeError, match="float32 or float64"):
            stft.sinc_resample(torch.zeros(1, 9, dtype=torch.bfloat16), 32_000, 48_000)


class TestResample:
    @pytest.mark.parametrize("target_hz", RATES_HZ)
    @pytest.mark.parametrize("source_hz", RATES_HZ)
    def test_sine_stays_the_same_sine(self, source_hz: int, target_hz: int) -> None:
        resampled = audio.resample(_sine(source_hz, source_hz), source_hz, target_hz)
        assert resampled.shape == (target_hz,)
        inner = slice(target_hz // 4, -target_hz // 4)  # the ends ring: silence surrounds them
        np.testing.assert_allclose(
            resampled[inner], _sine(target_hz, target_hz)[inner], rtol=0, atol=2e-6
        )

    def test_what_the_lower_rate_cannot_hold_disappears(self) -> None:
        whistle = _sine(48_000, 48_000, frequency_hz=18_000.0)
        resampled = audio.resample(whistle, 48_000, 32_000)
        assert np.square(resampled[8000:-8000], dtype=np.float64).mean() < 1e-12

    @given(
        num_samples=st.integers(1, 400),
        source_hz=st.sampled_from(RATES_HZ),
        target_hz=st.sampled_from(RATES_HZ),
    )
    def test_length_is_the_quotient_rounded_up_and_survives_the_way_back(
        self, num_samples: int, source_hz: int, target_hz: int
    ) -> None:
        resampled = audio.resample(_noise(num_samples), source_hz, target_hz)
        assert resampled.shape == (math.ceil(num_samples * target_hz / source_hz),)
        assert audio.resample(resampled, target_hz, source_hz).shape[0] >= num_samples

    def test_last_sample_is_computed_where_soxr_would_drop_it(self) -> None:
        longer = audio.resample(np.concatenate([_noise(1001), np.zeros(900, "f4")]), 44_100, 32_000)
        resampled = audio.resample(_noise(1001), 44_100, 32_000)
        assert abs(longer[726]) > 0.01
        np.testing.assert_allclose(resampled, longer[:727], rtol=0, atol=rounding(longer, TAPS))

    def test_channels_are_resampled_alone_and_the_input_is_untouched(self) -> None:
        stereo = _noise(2, 3000)
        before = stereo.copy()
        resampled = audio.resample(stereo, 44_100, 32_000)
        for channel in range(2):
            alone = audio.resample(stereo[channel], 44_100, 32_000)
            np.testing.assert_array_equal(resampled[channel], alone)
        np.testing.assert_array_equal(stereo, before)

    def test_equal_rates_give_a_copy(self) -> None:
        signal = _noise(10)
        resampled = audio.resample(signal, 32_000, 32_000)
        np.testing.assert_array_equal(resampled, signal)
        assert not np.shares_memory(resampled, signal)

    @pytest.mark.parametrize(("source_hz", "target_hz"), [(0, 32_000), (32_000, -1)])
    def test_rates_must_be_positive(self, source_hz: int, target_hz: int) -> None:
        with pytest.raises(ValueError, match=f"positive, got {source_hz} and {target_hz} Hz"):
            audio.resample(_noise(4), source_hz, target_hz)

    def test_nothing_cannot_be_resampled(self) -> None:
        with pytest.raises(ValueError, match="no samples"):
            audio.resample(np.zeros((2, 0), np.float32), 44_100, 32_000)


class TestResampleBlocks:
    @given(
        lengths=st.lists(st.integers(0, 700), min_size=1, max_size=8).filter(any),
        rates_hz=st.sampled_from([(44_100, 32_000), (32_000, 48_000), (16_000, 16_000)]),
    )
    def test_any_partition_equals_the_whole(
        self, lengths: list[int], rates_hz: tuple[int, int]
    ) -> None:
        stereo = _noise(2, sum(lengths))
        blocks = np.split(stereo, np.cumsum(lengths)[:-1], axis=1)
        pieces = list(audio.resample_blocks(blocks, *rates_hz))
        assert all(piece.shape[1] for piece in pieces)
        np.testing.assert_allclose(
            np.concatenate(pieces, axis=1),
            audio.resample(stereo, *rates_hz),
            rtol=0,
            atol=rounding(stereo, TAPS),
        )

    def test_output_comes_before_the_input_has_ended(self) -> None:
        received = 0

        def blocks():
            nonlocal received
            for _ in range(50):
                received += 1
                yield _noise(1, 4410)

        next(audio.resample_blocks(blocks(), 44_100, 32_000))
        assert received < 5

    def test_nothing_cannot_be_resampled(self) -> None:
        with pytest.raises(ValueError, match="no samples"):
            list(audio.resample_blocks([np.zeros((1, 0), np.float32)], 44_100, 32_000))


def test_mono_is_the_mean_of_the_channels() -> None:
    stereo = np.array([[1.0, 0.5, -1.0], [0.0, 0.5, 1.0]], np.float32)
    np.testing.assert_array_equal(audio.to_mono(stereo), np.array([0.5, 0.5, 0.0], np.float32))
    assert audio.to_mono(stereo).dtype == np.float32


@pytest.mark.parametrize("shape", [(5,), (0, 5), (1, 2, 5)])
def test_mono_needs_channels_and_samples(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \[channels, samples\]"):
        audio.to_mono(np.zeros(shape, np.float32))


def test_length_is_fitted_by_cutting_or_by_zeros() -> None:
    signal = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    np.testing.assert_array_equal(audio.fit_length(signal, 2), [[1, 2], [4, 5]])
    np.testing.assert_array_equal(audio.fit_length(signal, 5), [[1, 2, 3, 0, 0], [4, 5, 6, 0, 0]])
    assert not np.shares_memory(audio.fit_length(signal, 3), signal)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        audio.fit_length(signal, 0)


def test_peak_is_the_largest_magnitude() -> None:
    assert audio.peak(np.array([[0.25, -2.0]], np.float32)) == 2.0
    assert audio.peak(np.zeros(0, np.float32)) == 0.0
    assert math.isnan(audio.peak(np.array([0.0, np.nan], np.float32)))


def test_quantisation_clips_and_rounds_towards_zero() -> None:
    step = 1 / 32_767
    waveform = torch.tensor([0.0, 1.0, -1.0, 3.0, -3.0, 1.9 * step, -1.9 * step, 0.4 * step])
    expected = torch.tensor([0.0, 1.0, -1.0, 1.0, -1.0, step, -step, 0.0])
    torch.testing.assert_close(clap.quantise_int16(waveform), expected, rtol=1e-7, atol=0)


def test_quantisation_passes_through_real_16_bit_integers() -> None:
    waveform = torch.from_numpy(_noise(1000, seed=3)) * 0.5
    integers = (waveform.numpy().clip(-1, 1) * 32_767.0).astype(np.int16)
    expected = (integers / 32_767.0).astype(np.float32)
    np.testing.assert_array_equal(clap.quantise_int16(waveform).numpy(), expected)
