"""Signals that ratios are tried on, and the ratios."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from golden import synth
from model import metrics

Metric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
ALL = [metrics.sdr_db, metrics.si_sdr_db, metrics.si_snr_db, metrics.snr_db]
NUM_SAMPLES = 12_000


def white_noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def references() -> dict[str, torch.Tensor]:
    """References of many kinds, float32[T]: easy, resonant, band-limited, transient, offset."""
    seconds = np.arange(NUM_SAMPLES) / 32_000
    noise = np.random.default_rng(5).standard_normal(NUM_SAMPLES)
    signals = {
        "noise": noise,
        "harmonic": synth.source(3, 32_000, NUM_SAMPLES),
        "band-limited": np.convolve(noise, np.hanning(30), mode="same"),
        "tone": np.sin(2 * np.pi * 440 * seconds),
        "decaying tone": np.exp(-20 * seconds) * np.sin(2 * np.pi * 200 * seconds),
        "click": np.eye(1, NUM_SAMPLES, 4000)[0],
        "offset": 0.5 + 0.1 * noise,
        "half silent": noise * (seconds < seconds[-1] / 2),
        "faint": 1e-5 * noise,
        "loud": 1e3 * noise,
    }
    return {name: torch.from_numpy(array).float() for name, array in signals.items()}


def stems_and_mixtures() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch with a row for each of the signals."""
    reference = torch.stack(list(references().values()))
    level = reference.square().mean(dim=1, keepdim=True).sqrt()
    interferer = level * white_noise(*reference.shape, seed=6)
    delayed = reference.roll(3, dims=1)
    stem = 0.6 * reference + 0.2 * delayed + 0.1 * interferer + 0.01 * level
    return stem, reference + interferer, reference
