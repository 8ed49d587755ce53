"""A mixture as an STFT, which is all that most baselines share between queries."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from model.laion import torch_hann


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

    def hear(self, mixture: Tensor) -> Spectrum:
        """float32[B, T], T ≥ 1, as a spectrum; one too short to be reflected is padded with zeros.

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
        waveform = torch.istft(
            values,
            self.n_fft,
            self.hop_samples,
            window=self.window(values.device),
            center=True,
            length=self.padded(num_samples),
        )
        return waveform[:, :num_samples]

    def padded(self, num_samples: int) -> int:
        """How many samples are transformed for so many."""
        length = max(num_samples, self.n_fft // 2 + 1)
        return -(-length // self.hop_samples) * self.hop_samples if self.whole_hops else length

    def window(self, device: torch.device) -> Tensor:
        """Float32[n_fft]."""
        return torch_hann(self.n_fft).to(device)
