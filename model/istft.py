"""The inverse STFT without a look at its result, which would make the processor wait for a GPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def inverse_stft(spectrum: Tensor, window: Tensor, hop_samples: int, length: int) -> Tensor:
    """``torch.istft`` with ``center=True``; on a CPU it is that.

    Elsewhere frames are overlap-added and divided by the sum of the squared windows, which
    ``torch.istft`` reads back to check that it is nowhere zero. A window and hop that leave gaps
    give values that are not finite here, and an exception there.

    Args:
        spectrum: complex64[B, K, F], one-sided.
        window: float32[n_fft].
        hop_samples: distance of the frames.
        length: samples of the result, which the frames must cover.

    Returns:
        float32[B, length].

    Source:
        Griffin and Lim 1984, IEEE TASSP 32(2), equation 6.
    """
    if spectrum.device.type == "cpu":
        return torch.istft(
            spectrum, len(window), hop_samples, window=window, center=True, length=length
        )
    return overlap_added(spectrum, window, hop_samples, length)


def overlap_added(spectrum: Tensor, window: Tensor, hop_samples: int, length: int) -> Tensor:
    """As :func:`inverse_stft`, on any device."""
    size, num_frames = len(window), spectrum.shape[-1]
    frames = torch.fft.irfft(spectrum, n=size, dim=1) * window[:, None]
    weights = window.square()[None, :, None].expand(1, size, num_frames)
    total = size + hop_samples * (num_frames - 1)
    joined = F.fold(
        torch.cat([frames, weights]), (1, total), kernel_size=(1, size), stride=(1, hop_samples)
    )[:, 0, 0]
    kept = joined[:, size // 2 :][:, :length]
    return kept[:-1] / kept[-1:]
