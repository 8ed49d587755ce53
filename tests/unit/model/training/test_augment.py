"""Placing, levelling and masking of training clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.training.augment import SpecAugment, at_rms, change_speed, place, shift


@pytest.mark.parametrize("length", [1, 700, 999, 1_000, 5_000])
@pytest.mark.parametrize("repeat_share", [0.0, 1.0])
def test_placed_clip_fills_exactly_one_window(length: int, repeat_share: float) -> None:
    clip = np.full(length, 0.5, dtype=np.float32)
    window = place(clip, 1_000, np.random.default_rng(1), repeat_share)
    assert window.shape == (1_000,)
    assert window.dtype == np.float32
    if repeat_share == 0.0:
        assert window.sum() == pytest.approx(0.5 * min(length, 1_000))
    else:
        assert window.sum() >= 0.5 * min(length, 1_000) * 0.1


def test_placing_leaves_the_clip_untouched() -> None:
    clip = np.arange(2_000, dtype=np.float32)
    window = place(clip, 1_000, np.random.default_rng(0))
    window[:] = -1.0
    np.testing.assert_array_equal(clip, np.arange(2_000, dtype=np.float32))


def test_long_clip_is_cut_where_it_sounds() -> None:
    clip = np.zeros(50_000, dtype=np.float32)
    clip[:25_000] = 0.3
    windows = [place(clip, 1_000, np.random.default_rng(seed)) for seed in range(20)]
    assert sum(window.any() for window in windows) == 20


def test_a_shifted_window_is_cut_at_one_edge_and_silent_at_the_other() -> None:
    window = np.arange(1, 101, dtype=np.float32)
    for seed in range(20):
        moved = shift(window, np.random.default_rng(seed))
        kept = moved[moved > 0]
        assert len(kept) >= 50
        edge = window[: len(kept)] if moved[0] == 0 else window[-len(kept) :]
        np.testing.assert_array_equal(kept, edge)


def test_level_is_set_and_silence_stays_silent() -> None:
    tone = np.sin(np.arange(1_000, dtype=np.float32))
    assert np.sqrt(np.mean(at_rms(tone, 0.06) ** 2)) == pytest.approx(0.06, rel=1e-5)
    np.testing.assert_array_equal(at_rms(np.zeros(10, np.float32), 0.06), np.zeros(10))


def test_faster_playing_is_shorter_and_higher() -> None:
    time_s = np.arange(32_000) / 32_000
    tone = np.sin(2 * np.pi * 1_000 * time_s).astype(np.float32)
    faster = change_speed(tone, 1.1)
    assert len(faster) == pytest.approx(32_000 / 1.1, abs=2)
    peak_hz = np.abs(np.fft.rfft(faster)).argmax() * 32_000 / len(faster)
    assert peak_hz == pytest.approx(1_100, abs=3)


def test_spec_augment_masks_stripes_and_repeats_from_its_seed() -> None:
    image = torch.ones(3, 160, 80)
    first = SpecAugment(torch.Generator().manual_seed(5))(image)
    second = SpecAugment(torch.Generator().manual_seed(5))(image)
    assert torch.equal(first, second)
    assert 0 < (first == 0).sum() < first.numel() // 2
    assert torch.equal(image, torch.ones(3, 160, 80))
