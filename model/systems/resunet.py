"""ResUNets: the common parts of AudioSep, USS and LASS-Net, and ResUNet30 of the first two.

Parameter names of ResUNet30 are those of the published checkpoints' ``ss_model``.

Source: Kong et al. 2023, "Universal Source Separation with Weakly Labelled Data", arXiv 2305.07447;
Liu et al. 2023, "Separate Anything You Describe", arXiv 2308.05037; checked against
models/resunet.py of Audio-AGI/AudioSep at 944583f and uss/models/resunet.py of bytedance/uss at
c19e2c5, which are the same network.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.signal.stft import Transform

LEAK = 0.01
"""Negative slope of every leaky rectifier of the family."""


def run_unet(
    image: Tensor,
    condition: Any,
    encoders: Iterable[nn.Module],
    centre: Callable[[Tensor, Any], Tensor],
    decoders: Iterable[nn.Module],
) -> Tensor:
    """Down, through the centre, and up again with the skips.

    Args:
        image: float32[B, C, F, K].
        condition: what every block is given beside its input.
        encoders: ``block(image, condition)`` → (pooled, skip).
        centre: ``block(image, condition)`` → image.
        decoders: ``block(image, skip, condition)`` → image.

    Returns:
        float32[B, C', F, K].
    """
    skips: list[Tensor] = []
    for encoder in encoders:
        image, skip = encoder(image, condition)
        skips.append(skip)
    image = centre(image, condition)
    for decoder in decoders:
        image = decoder(image, skips.pop(), condition)
    return image


def pad_frames(image: Tensor, multiple: int) -> Tensor:
    """Zeros after the last frame of float32[B, C, F, K], up to a multiple of frames."""
    num_frames = image.shape[2]
    return F.pad(image, (0, 0, 0, math.ceil(num_frames / multiple) * multiple - num_frames))


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """The family's convolution: 3 × 3, same size, no bias."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)


def shortcut(in_channels: int, out_channels: int) -> nn.Conv2d:
    """The 1 × 1 convolution of a residual path whose ends differ in width."""
    return nn.Conv2d(in_channels, out_channels, 1)


_MIN_POWER = 1e-10
_MIN_NORM = 1e-10
_OUTPUTS = 3
"""Maps the network gives: the mask's magnitude, and its rotation's real and imaginary part."""

Shifts = Mapping[str, Tensor]
"""What the condition adds after each normalisation, float32[B, C, 1, 1] by the layer's name."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResUNet30Config:
    """Shapes of the network; the published ones by default.

    Attributes:
        condition_size: of the query's embedding.
        n_fft: of the STFT.
        hop_samples: of the STFT.
        channels: of the six encoder stages, outermost first.
    """

    condition_size: int
    n_fft: int = 2048
    hop_samples: int = 320
    channels: tuple[int, ...] = (32, 64, 128, 256, 384, 384)

    @property
    def transform(self) -> Transform:
        """The STFT."""
        return Transform(n_fft=self.n_fft, hop_samples=self.hop_samples)


class ResUNet30(nn.Module):
    """Magnitude of a mixture and a condition → a mask for its spectrum."""

    def __init__(self, config: ResUNet30Config) -> None:
        super().__init__()
        self.config = config
        self.base = _Network(config)
        self.film = nn.ModuleDict(
            {
                name: nn.Linear(config.condition_size, width)
                for name, width in _shift_widths(self.base).items()
            }
        )

    def forward(self, spectrum: Tensor, condition: Tensor) -> Tensor:
        """The mask, which also rotates the mixture's phase.

        Args:
            spectrum: complex64[B, K, F] of the mixture.
            condition: float32[B, D].

        Returns:
            complex64[B, K, F].
        """
        shifts = {name: layer(condition)[:, :, None, None] for name, layer in self.film.items()}
        power = spectrum.real.square() + spectrum.imag.square()
        magnitude = power.clamp(min=_MIN_POWER).sqrt().transpose(1, 2).unsqueeze(1)
        maps = self.base(magnitude, shifts).float().transpose(2, 3)
        real, imaginary = torch.tanh(maps[:, 1]), torch.tanh(maps[:, 2])
        norm = (real.square() + imaginary.square()).sqrt().clamp(min=_MIN_NORM)
        return torch.sigmoid(maps[:, 0]) * torch.complex(real / norm, imaginary / norm)


class _Network(nn.Module):
    def __init__(self, config: ResUNet30Config) -> None:
        super().__init__()
        widths = config.channels
        self.bn0 = nn.BatchNorm2d(config.n_fft // 2 + 1)
        self.pre_conv = nn.Conv2d(1, widths[0], 1)
        # Every stage halves both sides, but the last one frequency only.
        steps = [(2, 2)] * (len(widths) - 1) + [(1, 2)]
        names = [f"encoder_block{index + 1}" for index in range(len(widths))]
        for name, inner, outer, step in zip(
            names, widths, (widths[0], *widths), steps, strict=False
        ):
            self.add_module(name, _EncoderBlock(name, outer, inner, step))
        self.encoders = tuple(names)
        self.centre = f"conv_block{len(widths) + 1}a"
        self.add_module(self.centre, _EncoderBlock(self.centre, widths[-1], widths[-1], (1, 1)))
        below = (widths[-1], *widths[::-1])
        self.decoders = tuple(f"decoder_block{index + 1}" for index in range(len(widths)))
        for name, deeper, width, step in zip(
            self.decoders, below, widths[::-1], steps[::-1], strict=False
        ):
            self.add_module(name, _DecoderBlock(name, deeper, width, step))
        self.after_conv = nn.Conv2d(widths[0], _OUTPUTS, 1)
        self._multiple = 2 ** (len(widths) - 1)

    def forward(self, magnitude: Tensor, shifts: Shifts) -> Tensor:
        """float32[B, 1, F, K] → float32[B, 3, F, K]; the highest bin is left out and gives 0."""
        num_frames = magnitude.shape[2]
        image = self.bn0(magnitude.transpose(1, 3)).transpose(1, 3)
        image = self.pre_conv(pad_frames(image, self._multiple)[..., :-1])
        centre = self.get_submodule(self.centre)

        def deepest(image: Tensor, shifts: Shifts) -> Tensor:
            skip: Tensor = centre(image, shifts)[1]  # pooling does nothing here
            return skip

        encoders = map(self.get_submodule, self.encoders)
        decoders = map(self.get_submodule, self.decoders)
        image = run_unet(image, shifts, encoders, deepest, decoders)
        return F.pad(self.after_conv(image), (0, 1))[:, :, :num_frames]


class _ResidualBlock(nn.Module):
    def __init__(self, name: str, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.name = name
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        if in_channels != out_channels:
            self.shortcut = shortcut(in_channels, out_channels)

    def forward(self, image: Tensor, shifts: Shifts) -> Tensor:
        inner = self.conv1(_shifted(self.bn1, image, shifts[f"{self.name}->beta1"]))
        inner = self.conv2(_shifted(self.bn2, inner, shifts[f"{self.name}->beta2"]))
        if hasattr(self, "shortcut"):
            image = self.shortcut(image)
        total: Tensor = inner.add_(image)
        return total


class _EncoderBlock(nn.Module):
    def __init__(self, name: str, in_channels: int, out_channels: int, step: tuple[int, int]):
        super().__init__()
        self.step = step
        self.conv_block1 = _ResidualBlock(f"{name}->conv_block1", in_channels, out_channels)

    def forward(self, image: Tensor, shifts: Shifts) -> tuple[Tensor, Tensor]:
        image = self.conv_block1(image, shifts)
        return F.avg_pool2d(image, self.step), image


class _DecoderBlock(nn.Module):
    def __init__(self, name: str, in_channels: int, out_channels: int, step: tuple[int, int]):
        super().__init__()
        self.name = name
        self.conv1 = nn.ConvTranspose2d(in_channels, out_channels, step, step, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        # Never used, but the published weights hold it, and a shift for it.
        self.bn2 = nn.BatchNorm2d(in_channels)
        self.conv_block2 = _ResidualBlock(f"{name}->conv_block2", 2 * out_channels, out_channels)

    def forward(self, image: Tensor, skip: Tensor, shifts: Shifts) -> Tensor:
        image = self.conv1(_shifted(self.bn1, image, shifts[f"{self.name}->beta1"]))
        joined: Tensor = self.conv_block2(torch.cat((image, skip), dim=1), shifts)
        return joined


def _shifted(norm: nn.Module, image: Tensor, shift: Tensor) -> Tensor:
    return F.leaky_relu_(norm(image) + shift, negative_slope=LEAK)


def _shift_widths(network: nn.Module) -> dict[str, int]:
    """How many channels each layer's shift has: every named block's two normalisations."""
    widths = {}
    for block in network.modules():
        if isinstance(block, (_ResidualBlock, _DecoderBlock)):
            widths[f"{block.name}->beta1"] = block.bn1.num_features
            widths[f"{block.name}->beta2"] = block.bn2.num_features
    return widths
