"""Waveforms as arrays: resampling, channels, lengths, levels and 16-bit quantisation.

Two resamplers, on purpose. `resample` (soxr) is the better one and serves between a file's rate and
the model's. `sinc_resample` is the kernel that the published weights were trained behind: inside
the model, another one changes the output by 0.06 %.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import soxr
import torch
from torch import Tensor

SOXR_QUALITY = "VHQ"
SINC_ZERO_CROSSINGS = 6
SINC_ROLLOFF = 0.99
INT16_FULL_SCALE = 32_767.0

FloatArray = npt.NDArray[np.float32]
AnyFloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]


def resampled_length(num_samples: int, source_hz: int, target_hz: int) -> int:
    """The samples that ``num_samples`` become, rounded up: there and back never loses one.

    Args:
        num_samples: a length at ``source_hz``.
        source_hz: rate of the input.
        target_hz: rate of the output.

    Returns:
        ``ceil(num_samples * target_hz / source_hz)``, in exact arithmetic.

    Raises:
        ValueError: a rate is not positive.
    """
    if source_hz <= 0 or target_hz <= 0:
        raise ValueError(f"sample rates must be positive, got {source_hz} and {target_hz} Hz")
    return -(-num_samples * target_hz // source_hz)


def resample(audio: AnyFloatArray, source_hz: int, target_hz: int) -> FloatArray:
    """Changes the sample rate with soxr at its very high quality; for files, not inside the model.

    Args:
        audio: float[..., T]; left untouched.
        source_hz: its rate.
        target_hz: the wanted rate.

    Returns:
        float32[..., ceil(T * target_hz / source_hz)], without delay; beyond its ends the signal
        counts as zero. Equal rates give a copy.

    Raises:
        ValueError: a rate is not positive, or T is 0.
    """
    length = resampled_length(audio.shape[-1], source_hz, target_hz)
    if length == 0:
        raise ValueError("there are no samples to resample")
    if source_hz == target_hz:
        return np.array(audio, dtype=np.float32)
    rows = np.asarray(audio, dtype=np.float32).reshape(-1, audio.shape[-1])
    tail = np.zeros((_tail_samples(source_hz, target_hz), rows.shape[0]), dtype=np.float32)
    frames = np.concatenate([rows.T, tail])
    resampled = soxr.resample(frames, source_hz, target_hz, quality=SOXR_QUALITY)
    return np.ascontiguousarray(resampled[:length].T).reshape(*audio.shape[:-1], length)


def resample_blocks(
    blocks: Iterable[FloatArray], source_hz: int, target_hz: int
) -> Iterator[FloatArray]:
    """`resample` for a recording that arrives in pieces, in memory for one piece.

    Args:
        blocks: float32[C, n] each, consecutive, of any lengths; C must not change.
        source_hz: their rate.
        target_hz: the wanted rate.

    Yields:
        float32[C, m], m >= 1; put together they equal `resample` of the blocks put together.

    Raises:
        ValueError: a rate is not positive, or there are no samples.
    """
    resampled_length(0, source_hz, target_hz)
    stream: soxr.ResampleStream | None = None
    received = produced = 0
    for block in blocks:
        received += block.shape[1]
        if source_hz == target_hz:
            piece = np.array(block, dtype=np.float32)
        else:
            if stream is None:
                stream = _open_stream(source_hz, target_hz, block.shape[0])
                tail = np.zeros((_tail_samples(source_hz, target_hz), block.shape[0]), np.float32)
            frames = np.ascontiguousarray(block.T, dtype=np.float32)
            piece = np.ascontiguousarray(stream.resample_chunk(frames).T)
        produced += piece.shape[1]
        if piece.shape[1]:
            yield piece
    if received == 0:
        raise ValueError("there are no samples to resample")
    missing = resampled_length(received, source_hz, target_hz) - produced
    if stream is not None and missing:
        yield np.ascontiguousarray(stream.resample_chunk(tail, last=True)[:missing].T)


class Cutter:
    """Blocks float32[C, n] of any lengths, given out in pieces of other lengths."""

    def __init__(self, blocks: Iterable[FloatArray]) -> None:
        """Reads ``blocks`` as far as needed."""
        self._blocks = iter(blocks)
        self._held: list[FloatArray] = []
        self._num_held = 0

    def take(self, num_samples: int) -> FloatArray:
        """The next float32[C, num_samples]; zeros where the blocks have ended.

        Raises:
            ValueError: there was no block at all.
        """
        while self._num_held < num_samples:
            block = next(self._blocks, None)
            if block is None:
                if not self._held:
                    raise ValueError("there are no blocks to take from")
                missing = num_samples - self._num_held
                block = np.zeros((len(self._held[-1]), missing), dtype=np.float32)
            self._held.append(block)
            self._num_held += block.shape[1]
        joined = np.concatenate(self._held, axis=1)
        self._held = [joined[:, num_samples:]]
        self._num_held -= num_samples
        return joined[:, :num_samples]


def _open_stream(source_hz: int, target_hz: int, num_channels: int) -> soxr.ResampleStream:
    return soxr.ResampleStream(
        source_hz, target_hz, num_channels, dtype="float32", quality=SOXR_QUALITY
    )


def _tail_samples(source_hz: int, target_hz: int) -> int:
    """Zeros that make soxr compute the last sample, where it would round the length down."""
    return 2 + 2 * source_hz // target_hz


def sinc_resample(waveform: Tensor, source_hz: int, target_hz: int) -> Tensor:
    """Changes the sample rate as torchaudio does by default; for use inside the model.

    A Hann-windowed sinc of 6 zero crossings on either side, cut off at 0.99 of the lower Nyquist
    frequency. The kernel is computed in float64 and kept for each pair of rates, type and device.
    Autocast does not reach it.

    Args:
        waveform: float32[..., T] or float64[..., T].
        source_hz: its rate.
        target_hz: the wanted rate.

    Returns:
        The same type, [..., ceil(T * target_hz / source_hz)]; beyond its ends the signal counts as
        zero. Equal rates give the input itself.

    Raises:
        ValueError: a rate is not positive.
        TypeError: the waveform is neither float32 nor float64.

    Source:
        Smith, "Digital Audio Resampling Home Page", 2002, with the defaults of torchaudio's
        ``transforms.Resample``.
    """
    length = resampled_length(waveform.shape[-1], source_hz, target_hz)
    if waveform.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"waveform must be float32 or float64, got {waveform.dtype}")
    if source_hz == target_hz:
        return waveform
    divisor = math.gcd(source_hz, target_hz)
    step, phases = source_hz // divisor, target_hz // divisor
    kernel = _sinc_kernel(step, phases, waveform.dtype, waveform.device)
    half_width = (kernel.shape[0] - step) // 2
    padded = torch.nn.functional.pad(waveform, (half_width, half_width + step))
    with torch.autocast(waveform.device.type, enabled=False):
        # Not conv1d: it takes twice the time here, and on CUDA it would round to TF32.
        by_phase = padded.unfold(-1, kernel.shape[0], step) @ kernel
    return by_phase.flatten(-2)[..., :length]


@functools.lru_cache(maxsize=32)
def _sinc_kernel(step: int, phases: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The filter of each output phase: [2 * half_width + step, phases]."""
    cutoff = min(step, phases) * SINC_ROLLOFF
    half_width = math.ceil(SINC_ZERO_CROSSINGS * step / cutoff)
    taps = np.arange(-half_width, half_width + step)[:, None] / step
    offsets = -np.arange(phases) / phases
    position = np.clip((taps + offsets) * cutoff, -SINC_ZERO_CROSSINGS, SINC_ZERO_CROSSINGS)
    window = np.cos(position * (math.pi / SINC_ZERO_CROSSINGS / 2)) ** 2
    kernel = np.sinc(position) * window * (cutoff / step)
    with torch.inference_mode(False):  # a kernel first needed in inference must serve training too
        return torch.from_numpy(kernel).to(dtype=dtype, device=device)


def to_mono(audio: FloatArray) -> FloatArray:
    """The mid signal: the mean of the channels.

    Args:
        audio: float32[C, T]; left untouched.

    Returns:
        float32[T].

    Raises:
        ValueError: the array is not [C, T] with C >= 1.
    """
    if audio.ndim != 2 or audio.shape[0] == 0:
        raise ValueError(f"expected [channels, samples], got shape {audio.shape}")
    mean: FloatArray = audio.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def fit_length(audio: FloatArray, num_samples: int) -> FloatArray:
    """Cuts the end off, or appends zeros.

    Args:
        audio: float32[..., T]; left untouched.
        num_samples: the wanted length, >= 1.

    Returns:
        float32[..., num_samples], a copy.

    Raises:
        ValueError: ``num_samples`` is less than 1.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    fitted = np.zeros((*audio.shape[:-1], num_samples), dtype=np.float32)
    kept = min(num_samples, audio.shape[-1])
    fitted[..., :kept] = audio[..., :kept]
    return fitted


def peak(audio: AnyFloatArray) -> float:
    """The largest absolute sample; 0 where there is none.

    Args:
        audio: float[...].

    Returns:
        The linear peak, 1 being full scale; NaN if a sample is.
    """
    return float(np.max(np.abs(audio), initial=0.0))


def rms_db(audio: AnyFloatArray) -> float:
    """The level over all samples and channels.

    Args:
        audio: float[...], at least one sample.

    Returns:
        dB relative to a full-scale square wave; ``-inf`` for digital silence.

    Raises:
        ValueError: there are no samples.
    """
    if audio.size == 0:
        raise ValueError("the level of no samples is undefined")
    power = float(np.mean(np.square(audio, dtype=np.float64)))
    return 10.0 * math.log10(power) if power > 0.0 else -math.inf


def quantise_int16(waveform: Tensor) -> Tensor:
    """To 16 bits and back, as laion-clap treats audio on one of its two paths.

    Args:
        waveform: float[..., T]; left untouched. What exceeds ±1 is clipped.

    Returns:
        float32[..., T], multiples of 1/32767, rounded towards zero.
    """
    levels = (waveform.float().clamp(-1.0, 1.0) * INT16_FULL_SCALE).trunc()
    return levels / INT16_FULL_SCALE
