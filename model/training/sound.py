"""Windows of sound made on the device that trains, from clips that it holds as 16-bit samples.

What is drawn comes as small arrays from :mod:`model.training.drawing`; the work on samples is here,
in operations of fixed shapes, which a CUDA graph can hold.

A window is cut into blocks of :data:`BLOCK` samples. Where a block begins in its clip is computed
in float64, the steps within it in float32: exact to a hundred-thousandth of a sample at half the
memory traffic. A clip is repeated at block borders; every clip is stored with silence behind it,
and blocks that lie outside read from silence.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.signal import resample

BLOCK = 128
_SILENCE = 2 * BLOCK
"""Samples of silence before the first clip and behind each: a block of the fastest, and more."""
_MOST_SAMPLES = 2**31 - 1
"""Places in the store are computed in int32."""
_FADE = 480
_SCALE = 32_767.0
_LOWEST_HZ, _HIGHEST_HZ = 60.0, 15_000.0
NUM_BANDS = 28
"""Frequencies, evenly spaced by octaves, that a source's colour is given at."""
_QUIETEST = 1e-4

Int16Array = npt.NDArray[np.int16]
Span = tuple[float, float | None]
"""From and to, in seconds; None: to the end."""


def band_frequencies() -> npt.NDArray[np.float64]:
    """Where colours are given, float64[NUM_BANDS] in Hz."""
    return np.geomspace(_LOWEST_HZ, _HIGHEST_HZ, NUM_BANDS)


def decode(path: str, sample_rate_hz: int) -> Int16Array:
    """Reads a clip as :func:`read_mono` does, in 16 bits: what exceeds full scale is clipped."""
    return quantised(read_mono(path, sample_rate_hz))


def read_mono(
    path: str | BinaryIO, sample_rate_hz: int, span_s: Span = (0.0, None)
) -> npt.NDArray[np.float32]:
    """Reads a clip, or a stretch of a recording, mono, at a rate; float32[T].

    Raises:
        ValueError: the stretch is empty, or a sample is not finite.
        soundfile.LibsndfileError: libsndfile does not read the file.
    """
    import soundfile

    start_s, end_s = span_s
    with soundfile.SoundFile(path) as file:
        rate = file.samplerate
        end = file.frames if end_s is None else min(round(end_s * rate), file.frames)
        start = round(start_s * rate)
        if start >= end:
            raise ValueError(f"no sound from {start_s:g} s on")
        file.seek(start)
        audio = file.read(end - start, dtype="float32", always_2d=True)
    if not np.isfinite(audio).all():
        raise ValueError("holds samples that are not finite")
    return resample(audio.mean(axis=1), rate, sample_rate_hz)


def quantised(mono: npt.NDArray[np.float32]) -> Int16Array:
    """Rounds float32[T], ±1 being full scale, to 16 bits; what exceeds it is clipped."""
    scaled: Int16Array = np.rint(np.clip(mono, -1.0, 1.0) * _SCALE).astype(np.int16)
    return scaled


def decode_all(paths: Sequence[Path], sample_rate_hz: int) -> list[Int16Array]:
    """Reads clips on all processors; in order.

    Raises:
        ValueError: a clip cannot be read; it is named.
    """
    workers = min(os.cpu_count() or 1, 16)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
        return list(pool.map(_decode_named, paths, [sample_rate_hz] * len(paths), chunksize=16))


def _decode_named(path: Path, sample_rate_hz: int) -> Int16Array:
    import soundfile

    try:
        with path.open("rb"):  # libsndfile does not say that there is no file
            return decode(str(path), sample_rate_hz)
    except (OSError, ValueError, soundfile.LibsndfileError) as err:
        reason = getattr(err, "error_string", "") or getattr(err, "strerror", "") or err
        raise ValueError(f"{path}: {reason}") from err


class ClipStore(nn.Module):
    """Clips in the device's memory, one after the other."""

    samples: Tensor
    starts: Tensor
    lengths: Tensor

    def __init__(self, clips: Sequence[Int16Array]) -> None:
        """Joins clips, int16[T_i].

        Raises:
            ValueError: they have more samples together than an int32 counts.
        """
        super().__init__()
        lengths = np.array([len(clip) for clip in clips], dtype=np.int64)
        starts = _SILENCE + np.concatenate([[0], np.cumsum(lengths + _SILENCE)[:-1]])
        total = int(starts[-1] + lengths[-1]) + _SILENCE
        if total > _MOST_SAMPLES:
            raise ValueError(
                f"the clips have {total:,} samples together; expected {_MOST_SAMPLES:,} at most, "
                "which are 18 hours at 32 kHz"
            )
        joined = np.zeros(total, dtype=np.int16)
        for start, clip in zip(starts.tolist(), clips, strict=True):
            joined[start : start + len(clip)] = clip
        self.register_buffer("samples", torch.from_numpy(joined), persistent=False)
        self.register_buffer("starts", torch.from_numpy(starts), persistent=False)
        self.register_buffer("lengths", torch.from_numpy(lengths), persistent=False)

    def clip(self, number: int) -> npt.NDArray[np.float32]:
        """A whole clip as it is, float32[T]."""
        start, length = int(self.starts[number]), int(self.lengths[number])
        samples: npt.NDArray[np.int16] = self.samples[start : start + length].cpu().numpy()
        return samples.astype(np.float32) / np.float32(_SCALE)


class Renderer(nn.Module):
    """Makes windows of clips, augmented as :func:`model.training.drawing.draw_windows` drew."""

    blocks: Tensor
    steps: Tensor
    bands: Tensor
    tail: Tensor

    def __init__(self, store: ClipStore, num_samples: int, sample_rate_hz: int) -> None:
        """Makes windows of ``num_samples``."""
        super().__init__()
        self.store = store
        self.num_samples, self.sample_rate_hz = num_samples, sample_rate_hz
        self._tail_samples = sample_rate_hz
        self.size = _fast_size(num_samples + self._tail_samples)
        count = -(-num_samples // BLOCK)
        self.register_buffer("blocks", torch.arange(count), persistent=False)
        self.register_buffer("steps", torch.arange(BLOCK).float(), persistent=False)
        bins = np.linspace(0.0, sample_rate_hz / 2, self.size // 2 + 1)
        weights = _interpolation(np.log(np.maximum(bins, 1.0)), np.log(band_frequencies()))
        octaves = math.log2(10.0) / 20.0  # decibels to powers of two
        self.register_buffer("bands", torch.from_numpy(weights * octaves).float(), persistent=False)
        seconds = torch.arange(self._tail_samples) / sample_rate_hz
        self.register_buffer("tail", seconds, persistent=False)

    def forward(self, drawn: Mapping[str, Tensor]) -> Tensor:
        """float32[N, T], each window at its level."""
        sound = self._played(drawn)
        spectrum = torch.fft.rfft(sound, self.size)
        spectrum *= torch.exp2(drawn["colour_db"] @ self.bands)
        rows = drawn["reverberant"]
        if len(rows):
            echoed = spectrum.index_select(0, rows) * torch.fft.rfft(self._room(drawn), self.size)
            spectrum.index_copy_(0, rows, echoed)
        sound = torch.fft.irfft(spectrum, self.size)[:, : self.num_samples]
        return at_rms(sound, drawn["rms"])

    def _played(self, drawn: Mapping[str, Tensor]) -> Tensor:
        """Clips at their speed and place, repeated, cut; float32[N, T]."""
        clip, speed = drawn["clip"], drawn["speed"]
        store = self.store
        block = torch.remainder(
            self.blocks + drawn["first_block"][:, None], drawn["period"][:, None]
        )
        place = block.double() * (speed.double()[:, None] * BLOCK)
        whole = place.floor()
        inside = whole < store.lengths[clip][:, None]
        base = (store.starts[clip][:, None] + whole.long()).masked_fill(~inside, 0).int()
        offset = (place - whole).float()
        local = torch.addcmul(offset[..., None], speed[:, None, None], self.steps)
        index = local.int()
        local -= index
        index += base[..., None]
        flat = index.flatten()
        sound = store.samples.index_select(0, flat).float()
        following = store.samples[1:].index_select(0, flat).float()
        sound = torch.lerp(sound, following, local.flatten(), out=following).view(local.shape)
        edges = self._fades(drawn)
        sound *= torch.lerp(edges[:, :-1, None], edges[:, 1:, None], self.steps / BLOCK)
        return sound.flatten(1)[:, : self.num_samples]

    def _fades(self, drawn: Mapping[str, Tensor]) -> Tensor:
        """From 16 bits to ±1, at the borders of the blocks, float32[N, blocks + 1]."""
        time = torch.cat([self.blocks, self.blocks[-1:] + 1]).float() * BLOCK
        inner = torch.minimum(time - drawn["begin"][:, None], drawn["end"][:, None] - time)
        return (inner / _FADE).clamp(0.0, 1.0) / _SCALE

    def _room(self, drawn: Mapping[str, Tensor]) -> Tensor:
        """Decaying noise behind the direct sound, float32[R, tail]."""
        decay, wet = drawn["decay_s"][:, None], drawn["wet"][:, None]
        noise = torch.randn(len(decay), len(self.tail), device=decay.device)
        noise *= torch.exp(self.tail * (-6.9 / decay))
        noise *= wet / torch.linalg.vector_norm(noise, dim=1, keepdim=True)
        noise[:, 0] += 1.0
        return noise


def at_rms(sound: Tensor, rms: Tensor) -> Tensor:
    """Scales windows float32[N, T] to root mean squares float32[N]; silence stays silent."""
    level = torch.linalg.vector_norm(sound, dim=-1) / math.sqrt(sound.shape[-1])
    scaled: Tensor = sound * (rms / level.clamp(min=_QUIETEST))[:, None]
    return scaled


def _interpolation(
    at: npt.NDArray[np.float64], points: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Weights of values at increasing ``points`` for those at ``at``, constant beyond the ends."""
    right = np.clip(np.searchsorted(points, at), 1, len(points) - 1)
    share = np.clip((at - points[right - 1]) / (points[right] - points[right - 1]), 0.0, 1.0)
    weights = np.zeros((len(points), len(at)))
    columns = np.arange(len(at))
    weights[right - 1, columns] = 1.0 - share
    weights[right, columns] += share
    return weights


def _fast_size(least: int) -> int:
    """The smallest even product of 2, 3 and 5 that is at least this large."""
    size = least + least % 2
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2
