"""The spectral masker: spectrogram and decoded frames → the mask's logits.

Source: CLAPSep (Ma et al. 2024, arXiv 2402.17455), section III; parameter names as in the released
checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from model import kernels
from model.config import DecoderConfig


class ConvolutionModule(nn.Module):
    """A Conformer convolution module, for maskers with ``conv=True`` and for the phase net."""

    def __init__(self, dim: int, kernel_size: int = 9) -> None:
        """For ``dim`` channels."""
        super().__init__()
        self.layers = nn.ModuleDict(
            {
                "0": nn.LayerNorm(dim, eps=1e-6),
                "2": nn.Conv1d(dim, 2 * dim, 1),
                "4": nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim),
                "5": nn.BatchNorm1d(dim),
                "7": nn.Conv1d(dim, dim, 1),
            }
        )
        self.ln = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, F, C] → float[B, F, C]."""
        norm, widen, depthwise, batch_norm, project = self.layers.values()
        hidden = F.glu(widen(norm(x).transpose(1, 2)), dim=1)
        hidden = project(F.silu(batch_norm(depthwise(hidden)))).transpose(1, 2)
        out: Tensor = self.ln(hidden + x)
        return out


class TransformerMasker(nn.Module):
    """Post-norm transformer layers with ReLU, without positions; names as in torch's encoder."""

    def __init__(self, config: DecoderConfig) -> None:
        """Builds ``num_masker_layers`` layers."""
        super().__init__()
        self.heads = config.masker_heads
        width = int(config.d_attn * config.mlp_ratio)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.d_attn, config.masker_heads, width, dropout=0.0, batch_first=True
            )
            for _ in range(config.num_masker_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """float[B, F, C] → float[B, F, C]."""
        for layer in self.layers:
            x = self._layer(layer, x)
        return x

    def _layer(self, layer: Any, x: Tensor) -> Tensor:
        x = layer.norm1(x + self._attend(layer.self_attn, x))
        mixed = kernels.feed_forward(layer.linear1, layer.linear2, x, "relu")
        out: Tensor = layer.norm2(x + mixed)
        return out

    def _attend(self, attention: Any, x: Tensor) -> Tensor:
        qkv = kernels.project(x, attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = kernels.attend(query, key, value, query.shape[-1] ** -0.5)
        return kernels.linear(attention.out_proj, mixed)


class Masker(nn.ModuleList):
    """The layers from spectrogram and decoded frames to the mask's logits, one after the other.

    The first, linear one takes the two concatenated. Its part for the spectrogram does not depend
    on the query and is computed once for each mixture.
    """

    def forward(self, spectrogram: Tensor, frames: Tensor, rows: Tensor | None = None) -> Tensor:
        """Predicts logits.

        Args:
            spectrogram: float[M, F, K], normalised.
            frames: float[B, F, mel_bins], decoded.
            rows: int64[B], the mixture that each row of ``frames`` is about; None: each its own.

        Returns:
            float[B, F, features of the last layer].
        """
        first: Any = self[0]
        of_mixture, of_query = first.weight.split((spectrogram.shape[-1], frames.shape[-1]), dim=1)
        known = kernels.project(spectrogram, of_mixture.contiguous(), first.bias)
        x = known if rows is None else known[rows]
        x = x + kernels.project(frames, of_query.contiguous(), None)
        for layer in self[1:]:
            x = kernels.linear(layer, x)
        return x


def spectral_masker(in_features: int, num_bins: int, config: DecoderConfig) -> Masker:
    """The masker that a configuration asks for."""
    if config.conv:
        return convolutional_masker(in_features, num_bins, config.num_masker_layers)
    return Masker(
        (
            nn.Linear(in_features, config.d_attn),
            nn.LayerNorm(config.d_attn),
            TransformerMasker(config),
            nn.Linear(config.d_attn, num_bins),
        )
    )


def convolutional_masker(in_features: int, width: int, num_layers: int) -> Masker:
    """A masker of convolution modules; also the phase net."""
    modules = (ConvolutionModule(width) for _ in range(num_layers))
    return Masker((nn.Linear(in_features, width), nn.LayerNorm(width), *modules))
