from __future__ import annotations

import pytest
import torch

from float_noise import rounding
from model.signal.stft import inverse_stft, overlap_added


@pytest.mark.parametrize(("size", "hop"), [(1024, 320), (64, 16), (64, 20)])
@pytest.mark.parametrize("length", [1_000, 1_601])
def test_overlapped_frames_are_what_torch_computes(size: int, hop: int, length: int) -> None:
    draw = torch.Generator().manual_seed(0)
    signal = torch.randn(3, length, generator=draw)
    window = torch.hann_window(size)
    spectrum = torch.stft(signal, size, hop, window=window, return_complex=True)
    mask = torch.rand(spectrum.shape, generator=draw)
    expected = inverse_stft(spectrum * mask, window, hop, length)
    torch.testing.assert_close(
        overlap_added(spectrum * mask, window, hop, length),
        expected,
        rtol=0,
        atol=rounding(expected, size),
    )


def test_an_unchanged_spectrum_gives_the_signal_again() -> None:
    signal = torch.randn(1, 3_200, generator=torch.Generator().manual_seed(1))
    window = torch.hann_window(1024)
    spectrum = torch.stft(signal, 1024, 320, window=window, return_complex=True)
    torch.testing.assert_close(
        overlap_added(spectrum, window, 320, 3_200), signal, rtol=0, atol=rounding(signal, 2 * 1024)
    )
