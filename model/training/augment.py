"""Crops, speed and level changes, and SpecAugment, all from explicit random generators."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Audio = npt.NDArray[np.float32]

_SILENCE_RMS = 1e-4


def change_speed(audio: Audio, factor: float) -> Audio:
    """Plays faster (``factor`` > 1) or slower, pitch included, by linear interpolation."""
    if factor == 1.0 or len(audio) < 2:
        return audio
    positions = np.arange(0, len(audio) - 1, factor)
    return np.interp(positions, np.arange(len(audio)), audio).astype(np.float32)


def place(
    audio: Audio, num_samples: int, rng: np.random.Generator, repeat_share: float = 0.5
) -> Audio:
    """A window of ``num_samples`` with the clip in it.

    A longer clip is cut at random, to a part that is not silent where one is found in eight tries.
    A shorter one is placed at random in silence or, with the probability ``repeat_share``, repeated
    with random pauses.
    """
    if len(audio) >= num_samples:
        for _ in range(8):
            start = int(rng.integers(0, len(audio) - num_samples + 1))
            part = audio[start : start + num_samples]
            if np.sqrt(np.mean(np.square(part))) > _SILENCE_RMS:
                break
        return part.copy()
    window = np.zeros(num_samples, dtype=np.float32)
    if rng.random() >= repeat_share:
        start = int(rng.integers(0, num_samples - len(audio) + 1))
        window[start : start + len(audio)] = audio
        return window
    start = -int(rng.integers(0, len(audio)))
    while start < num_samples:
        first, last = max(start, 0), min(start + len(audio), num_samples)
        window[first:last] = audio[first - start : last - start]
        start += len(audio) + int(rng.exponential(0.3) * len(audio))
    return window


def shift(window: Audio, rng: np.random.Generator) -> Audio:
    """Moves a window's content by up to half the window, and leaves silence behind it.

    So a sound begins or ends within the window, as in most windows of a longer recording.
    """
    size = len(window)
    offset = int(rng.integers(-size // 2, size // 2 + 1))
    moved = np.zeros_like(window)
    moved[max(offset, 0) : size + min(offset, 0)] = window[max(-offset, 0) : size - max(offset, 0)]
    return moved


def at_rms(audio: Audio, rms: float) -> Audio:
    """Scales to a root mean square over the whole window; silence stays as it is."""
    level = float(np.sqrt(np.mean(np.square(audio))))
    return audio * np.float32(rms / level) if level > _SILENCE_RMS * 1e-2 else audio


class SpecAugment:
    """Masks stripes of time and of frequency (Park et al. 2019), as HTSAT was trained.

    Args:
        generator: source of the random stripes.
        time_share: widest time stripe, as a share of the frames.
        band_share: widest frequency stripe, as a share of the bands.
    """

    def __init__(
        self, generator: torch.Generator, time_share: float = 1 / 16, band_share: float = 1 / 8
    ) -> None:
        self._generator = generator
        self._shares = (time_share, band_share)

    def __call__(self, image: Tensor) -> Tensor:
        """float[B, F, mel_bins], two stripes of either kind zeroed a clip."""
        keep = torch.ones_like(image)
        for clip in keep:
            for axis, share in enumerate(self._shares):
                size = clip.shape[axis]
                for _ in range(2):
                    width = self._draw(int(size * share) + 1)
                    start = self._draw(size - width + 1)
                    clip.narrow(axis, start, width).zero_()
        return image * keep

    def _draw(self, limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=self._generator))
