"""Cnn14, the audio tagger of PANNs: universal source separation's query net.

Parameter names are those of the published weights.

Source: Kong et al. 2020, "PANNs", arXiv 1912.10211; checked against qiuqiangkong/panns_inference,
panns_inference/models.py.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.baselines.resunet import conv3x3
from model.laion import torch_hann


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cnn14Config:
    """Shapes of the network; the published ones by default."""

    sample_rate_hz: int = 32_000
    n_fft: int = 1024
    hop_samples: int = 320
    mel_bins: int = 64
    channels: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    num_classes: int = 527


class Cnn14(nn.Module):
    """Waveform → probabilities of AudioSet's classes."""

    def __init__(self, config: Cnn14Config) -> None:
        super().__init__()
        self.config = config
        self.logmel_extractor = _MelFilters(config)
        self.bn0 = nn.BatchNorm2d(config.mel_bins)
        widths = (1, *config.channels)
        self.blocks = tuple(f"conv_block{index + 1}" for index in range(len(config.channels)))
        for name, inner, outer in zip(self.blocks, widths, widths[1:], strict=False):
            self.add_module(name, _Block(inner, outer))
        self.fc1 = nn.Linear(widths[-1], widths[-1])
        self.fc_audioset = nn.Linear(widths[-1], config.num_classes)

    @property
    def shortest(self) -> int:
        """Samples below which an image dimension would be halved away, or could not be padded."""
        halvings: int = 2 ** (len(self.blocks) - 1)
        return max((halvings - 1) * self.config.hop_samples, self.config.n_fft // 2 + 1)

    def forward(self, waveform: Tensor) -> Tensor:
        """float32[B, T], T ≥ ``shortest`` → float32[B, classes] in [0, 1].

        Raises:
            ValueError: the waveforms are too short.
        """
        if waveform.shape[-1] < self.shortest:
            raise ValueError(f"{waveform.shape[-1]} samples: expected at least {self.shortest}")
        image = self._log_mel(waveform).unsqueeze(1)
        image = self.bn0(image.transpose(1, 3)).transpose(1, 3)
        for name in self.blocks[:-1]:
            image = F.avg_pool2d(self.get_submodule(name)(image), 2)
        frames = self.get_submodule(self.blocks[-1])(image).mean(dim=3)
        pooled = frames.amax(dim=2) + frames.mean(dim=2)
        return torch.sigmoid(self.fc_audioset(F.relu(self.fc1(pooled))))

    def _log_mel(self, waveform: Tensor) -> Tensor:
        """Decibels, float32[B, F, mel_bins]."""
        config = self.config
        spectrum = torch.stft(
            waveform,
            config.n_fft,
            config.hop_samples,
            window=torch_hann(config.n_fft).to(waveform.device),
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        power = (spectrum.real.square() + spectrum.imag.square()).transpose(1, 2)
        return 10.0 * torch.log10((power @ self.logmel_extractor.melW).clamp(min=1e-10))


class _MelFilters(nn.Module):
    """The filters, which weights bring along."""

    melW: Tensor

    def __init__(self, config: Cnn14Config) -> None:
        super().__init__()
        self.register_buffer("melW", torch.zeros(config.n_fft // 2 + 1, config.mel_bins))


class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, image: Tensor) -> Tensor:
        image = F.relu_(self.bn1(self.conv1(image)))
        return F.relu_(self.bn2(self.conv2(image)))
