"""ResUNets: what the networks of AudioSep, USS and LASS-Net have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

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
