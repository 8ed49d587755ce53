"""Mixtures by the benchmark's rule: levels set by power, then the peak kept under full scale."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from model import signal

PEAK_AFTER_LIMITING = 0.9
MAX_LEVEL_DB = 1000.0  # far beyond any use, and far from overflowing float64

FloatArray = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixture:
    """A mixture and its parts as they sound in it.

    Attributes:
        mixture: float32[..., T], the sum of ``target`` and ``interferers``.
        target: float32[..., T], the reference to score against.
        interferers: float32[..., T] each.
        interferer_scales: the factor that gave each interferer its level, ``gain`` not included.
        gain: the factor on the whole: 1, or ``0.9 / peak`` where the sum exceeded full scale.
    """

    mixture: FloatArray
    target: FloatArray
    interferers: tuple[FloatArray, ...]
    interferer_scales: tuple[float, ...]
    gain: float


def mix(
    target: signal.AnyFloatArray,
    interferers: Sequence[signal.AnyFloatArray],
    snr_db: float | Sequence[float] = 0.0,
) -> Mixture:
    """Adds interferers to a target at given levels.

    Each interferer is scaled so that the target's power over its own is ``snr_db``, both over the
    whole length, whatever the other interferers are. Computed in float64.

    Args:
        target: float[..., T]; left untouched.
        interferers: one or more, float[..., T] of the target's shape; see `audio.fit_length`.
        snr_db: target-to-interferer level in dB; one for all, or one for each.

    Returns:
        The mixture; where its peak exceeds 1, everything in it is scaled to a peak of 0.9.

    Raises:
        ValueError: no interferer, differing shapes, another number of levels than interferers, a
            level beyond ±1000 dB, or a source that is silent, empty or not finite.

    Source:
        The CLAPSep paper's evaluation; scaling as torchaudio's ``add_noise``, but in float64.
    """
    levels_db = _one_level_each(snr_db, len(interferers))
    clean = _checked(target, "target", target.shape)
    clean_power = _power(clean, "target")
    scales, scaled = [], []
    for index, (source, level_db) in enumerate(zip(interferers, levels_db, strict=True)):
        name = f"interferer {index}"
        noise = _checked(source, name, target.shape)
        ratio_db = 10.0 * math.log10(clean_power / _power(noise, name)) - level_db
        scales.append(10.0 ** (ratio_db / 20.0))
        scaled.append(noise * scales[-1])
    total = clean + np.sum(scaled, axis=0)
    peak = signal.peak(total)
    gain = PEAK_AFTER_LIMITING / peak if peak > 1.0 else 1.0
    return Mixture(
        mixture=(total * gain).astype(np.float32),
        target=(clean * gain).astype(np.float32),
        interferers=tuple((noise * gain).astype(np.float32) for noise in scaled),
        interferer_scales=tuple(scales),
        gain=gain,
    )


def _one_level_each(snr_db: float | Sequence[float], count: int) -> list[float]:
    if count == 0:
        raise ValueError("a mixture needs at least one interferer")
    levels_db = list(snr_db) if isinstance(snr_db, Sequence) else [snr_db] * count
    if len(levels_db) != count:
        raise ValueError(f"{len(levels_db)} levels in snr_db for {count} interferers")
    for level_db in levels_db:
        if not abs(level_db) <= MAX_LEVEL_DB:
            raise ValueError(f"snr_db must be within ±{MAX_LEVEL_DB:g} dB, got {level_db}")
    return levels_db


def _checked(
    source: signal.AnyFloatArray, name: str, shape: tuple[int, ...]
) -> npt.NDArray[np.float64]:
    if source.shape != shape:
        raise ValueError(f"{name} has shape {source.shape}, the target {shape}")
    if source.size == 0:
        raise ValueError(f"{name} is empty")
    return np.asarray(source, dtype=np.float64)


def _power(source: npt.NDArray[np.float64], name: str) -> float:
    power = float(np.mean(np.square(source)))
    if power == 0.0:
        raise ValueError(f"{name} is silent, so no level relative to it can be set")
    if not math.isfinite(power):
        raise ValueError(f"{name} holds samples that are not finite")
    return power
