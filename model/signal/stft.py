"""Computes short-time Fourier transforms and resamples, on tensors and inside of networks.

The inverse transform does not look at its result, which would make the processor wait for a GPU.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.signal import resampled_length

SINC_ZERO_CROSSINGS = 6
SINC_ROLLOFF = 0.99


def torch_hann(n_fft: int) -> Tensor:
    """The periodic Hann window, computed in float64; float32[n_fft]."""
    return torch.hann_window(n_fft, periodic=True, dtype=torch.float64).float()


@functools.lru_cache(maxsize=32)
def hann_on(n_fft: int, device: torch.device) -> Tensor:
    """:func:`torch_hann` on a device, kept: copying it there would wait for the device."""
    with torch.inference_mode(False):  # a window first needed in inference must serve training too
        return torch_hann(n_fft).to(device)


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
    frames = torch.fft.irfft(spectrum.transpose(1, 2), n=size) * window
    weights = window.square().expand(1, num_frames, size)
    kept = slice(size // 2, size // 2 + length)
    return _joined(frames, hop_samples)[:, kept] / _joined(weights, hop_samples)[:, kept]


def _joined(frames: Tensor, hop_samples: int) -> Tensor:
    """The sum of frames float32[B, F, n_fft], each ``hop_samples`` after the one before."""
    _, num_frames, size = frames.shape
    if size % hop_samples:
        total = size + hop_samples * (num_frames - 1)
        columns = frames.transpose(1, 2)
        sizes = {"kernel_size": (1, size), "stride": (1, hop_samples)}
        return F.fold(columns, (1, total), **sizes)[:, 0, 0]
    # Frames that overlap by whole hops are sums of pieces: few operations, forward and backward.
    pieces = frames.unflatten(2, (-1, hop_samples)).unbind(2)
    last = len(pieces) - 1
    silence = frames.new_zeros(len(frames), last, hop_samples)
    # Not F.pad: going back, it copies what a concatenation only looks at.
    padded = [
        torch.cat((silence[:, :place], piece, silence[:, place:]), dim=1)
        for place, piece in enumerate(pieces)
    ]
    return functools.reduce(torch.add, padded).flatten(1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spectrum:
    """A batch of mixtures: samples, and their STFT."""

    mixture: Tensor
    """float32[B, T]."""
    values: Tensor
    """complex64[B, K, F]."""

    def index(self, rows: Tensor) -> Spectrum:
        """Repeats or reorders mixtures."""
        return Spectrum(mixture=self.mixture[rows], values=self.values[rows])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """An STFT and its inverse: periodic Hann window, centred frames, reflected ends.

    Attributes:
        n_fft: samples of a frame.
        hop_samples: distance of frames.
        whole_hops: pad with zeros to a whole number of hops, so that a window covers the last
        sample well.
    """

    n_fft: int
    hop_samples: int
    whole_hops: bool = False

    def encode(self, mixture: Tensor) -> Spectrum:
        """Computes the spectrum of float32[B, T], T ≥ 1; short signals are padded with zeros.

        Raises:
            ValueError: not [B, T], or T is 0.
        """
        if mixture.ndim != 2 or mixture.shape[-1] < 1:
            raise ValueError(f"mixture {tuple(mixture.shape)}: expected [B, T] with T ≥ 1")
        return Spectrum(mixture=mixture, values=self.forward(mixture))

    def forward(self, waveform: Tensor) -> Tensor:
        """float32[B, T] → complex64[B, K, F]."""
        length = self.padded(waveform.shape[-1])
        return torch.stft(
            F.pad(waveform, (0, length - waveform.shape[-1])),
            self.n_fft,
            self.hop_samples,
            window=self.window(waveform.device),
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )

    def inverse(self, values: Tensor, num_samples: int) -> Tensor:
        """complex64[B, K, F] → float32[B, T]."""
        length = self.padded(num_samples)
        waveform = inverse_stft(values, self.window(values.device), self.hop_samples, length)
        return waveform[:, :num_samples]

    def padded(self, num_samples: int) -> int:
        """Returns the length that ``num_samples`` samples are padded to for the transform."""
        length = max(num_samples, self.n_fft // 2 + 1)
        return -(-length // self.hop_samples) * self.hop_samples if self.whole_hops else length

    def window(self, device: torch.device) -> Tensor:
        """Float32[n_fft]."""
        return hann_on(self.n_fft, device)


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
