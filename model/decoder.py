"""The query-conditioned decoder: stage features, magnitude spectrogram and condition → mask.

Source: CLAPSep (Ma et al. 2024, arXiv 2402.17455), section III; parameter names as in the released
checkpoint.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import kernels, laion, swin
from model.config import ClapSepConfig, DecoderConfig
from model.encoder import StageFeatures


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mask:
    """A magnitude mask in [0, 1] and, optionally, a rotation of the mixture's phase."""

    magnitude: Tensor
    """float[B, F, K]."""
    rotation: Tensor | None = None
    """complex64[B, F, K] of unit modulus."""


class Film(nn.Module):
    """Feature-wise linear modulation by the condition (Perez et al. 2018)."""

    def __init__(self, condition_dim: int, features: int) -> None:
        """Modulates ``features`` channels by a condition."""
        super().__init__()
        self.beta = nn.Linear(condition_dim, features)
        self.gamma = nn.Linear(condition_dim, features)

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        """``gamma(condition) · hidden + beta(condition)``; float[B, N, C] and float[B, D]."""
        shift, scale = kernels.linear(self.beta, condition), kernels.linear(self.gamma, condition)
        return torch.addcmul(shift[:, None], scale[:, None], hidden)


class SkipConnection(nn.Module):
    """Adds an encoder feature, projected and modulated by the condition, to the decoder's state."""

    def __init__(self, condition_dim: int, in_features: int, out_features: int) -> None:
        """Connects ``in_features`` channels of the encoder to ``out_features`` of the decoder."""
        super().__init__()
        self.skip_conv = Film(condition_dim, out_features)
        self.feature_proj = nn.Linear(in_features, out_features)
        self.norm = nn.LayerNorm(out_features)

    def forward(self, feature: Tensor, condition: Tensor, state: Tensor | None = None) -> Tensor:
        """float[B, N, in_features] → float[B, N, out_features]."""
        out = self.skip_conv(kernels.linear(self.feature_proj, feature), condition)
        normalised: Tensor = self.norm(out if state is None else out + state)
        return normalised


class DecoderStage(nn.Module):
    """An optional patch expansion, then Swin blocks."""

    def __init__(
        self,
        dim: int,
        grid: int,
        depth: int,
        heads: int,
        window: int,
        config: DecoderConfig,
        rates: list[float],
    ) -> None:
        """``depth`` blocks of width ``dim``, shifted in turn, dropped with these rates."""
        super().__init__()
        self.blocks = nn.ModuleList(
            laion.swin_block(
                dim, grid, heads, window, index % 2 == 1, config.mlp_ratio, rates[index]
            )
            for index in range(depth)
        )
        self.downsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """float[B, N, C] → float[B, N', C']."""
        if self.downsample is not None:
            x = self.downsample(x)
        for block in self.blocks:
            x = swin.run_block(block, x)
        return x


class InversePatchEmbed(nn.Module):
    """Patches → image, by a transposed convolution."""

    def __init__(self, embed_dim: int, patch_size: int, grid: int) -> None:
        """For ``grid`` × ``grid`` patches."""
        super().__init__()
        self.grid = grid
        self.proj = nn.ConvTranspose2d(embed_dim, 1, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, N, C] → float[B, S, S]."""
        grid = self.norm(x).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        image: Tensor = self.proj(grid.contiguous())
        return image.squeeze(1)


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
        attention = layer.self_attn
        qkv = kernels.project(x, attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = kernels.attend(query, key, value, query.shape[-1] ** -0.5)
        x = layer.norm1(x + kernels.linear(attention.out_proj, mixed))
        hidden = kernels.linear(layer.linear1, x, "relu")
        out: Tensor = layer.norm2(x + kernels.linear(layer.linear2, hidden))
        return out


class Masker(nn.Sequential):
    """The layers from spectrogram and decoded frames to the mask's logits, one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        """float[B, F, in_features] → float[B, F, K]."""
        for layer in self:
            x = kernels.linear(layer, x) if isinstance(layer, nn.Linear) else layer(x)
        return x


class Decoder(swin.SwinNetwork):
    """Answers a query: what part of each spectrogram bin belongs to it."""

    def __init__(self, config: ClapSepConfig) -> None:
        """Builds the network with random parameters."""
        super().__init__()
        self.config = config
        encoder, decoder = config.clap.audio, config.decoder
        bins, bands = config.signal.num_bins, encoder.mel_bins
        rates = torch.linspace(0, decoder.drop_path_rate, sum(decoder.depths)).tolist()
        stages, skips = [], []
        for level, depth in enumerate(decoder.depths):
            dim = decoder.embed_dim << level
            first = sum(decoder.depths[:level])
            stage = DecoderStage(
                dim,
                encoder.grid_size >> level,
                depth,
                decoder.num_heads[level],
                encoder.window_size,
                decoder,
                rates[first : first + depth],
            )
            if level < len(decoder.depths) - 1:
                stage.downsample = swin.PatchExpand(2 * dim)
            stages.append(stage)
            skips.append(SkipConnection(config.condition_dim, encoder.embed_dim << level, dim))
        self.layers = nn.ModuleList(reversed(stages))
        self.skip = nn.ModuleList(reversed(skips))
        self.film = SkipConnection(
            config.condition_dim,
            encoder.num_features,
            decoder.embed_dim << (len(decoder.depths) - 1),
        )
        self.inverse_patch_embed = InversePatchEmbed(
            decoder.embed_dim, encoder.patch_size, encoder.grid_size
        )
        self.spec_norm = nn.BatchNorm2d(bins, momentum=0.01)
        self.mask_net = self._masker(bins + bands, bins)
        if decoder.phase:
            self.phase_net = _convolutional(bins + bands, 2 * bins, decoder.num_masker_layers)
        self.apply(laion.init_weights)

    def _masker(self, in_features: int, bins: int) -> Masker:
        decoder = self.config.decoder
        if decoder.conv:
            return _convolutional(in_features, bins, decoder.num_masker_layers)
        return Masker(
            nn.Linear(in_features, decoder.d_attn),
            nn.LayerNorm(decoder.d_attn),
            TransformerMasker(decoder),
            nn.Linear(decoder.d_attn, bins),
        )

    def forward(self, features: StageFeatures, magnitude: Tensor, condition: Tensor) -> Mask:
        """Predicts the mask.

        Args:
            features: the encoder's, of the same mixtures.
            magnitude: float[B, F, K], the mixtures' magnitude spectrograms.
            condition: float[B, 2·D], positive and negative embedding.

        Returns:
            Mask over float[B, F, K].
        """
        *skipped, state = features.stages
        state = self.film(state, condition)
        for layer, skip, feature in zip(self.layers, self.skip, reversed(skipped), strict=True):
            state = skip(feature, condition, layer(state))
        frames = self._unfold(self.inverse_patch_embed(state))[:, : magnitude.shape[1]]
        normalised = (
            self.spec_norm(magnitude.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2)
        )
        joint = torch.cat((normalised, frames), dim=-1)
        mask = torch.sigmoid(self.mask_net(joint))
        if not self.config.decoder.phase:
            return Mask(magnitude=mask)
        real, imaginary = torch.tanh(self.phase_net(joint)).float().chunk(2, dim=-1)
        rotation = torch.complex(real, imaginary)
        return Mask(magnitude=mask, rotation=rotation / rotation.abs().clamp(min=1e-10))

    def _unfold(self, image: Tensor) -> Tensor:
        """The square image back to float[B, F, mel_bins]."""
        ratio = self.config.clap.audio.freq_ratio
        pieces: Tensor = image.unflatten(1, (ratio, -1)).transpose(1, 2)
        return pieces.flatten(2).transpose(1, 2)


def _convolutional(in_features: int, width: int, layers: int) -> Masker:
    return Masker(
        nn.Linear(in_features, width),
        nn.LayerNorm(width),
        *(ConvolutionModule(width) for _ in range(layers)),
    )
