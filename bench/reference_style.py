"""CLAPSep the way it is plainly written, to measure ours against; torch is all it needs.

As laion_clap and the authors' code have it: explicit attention whose maps are kept and averaged,
biases looked up at each call, convolutional STFTs, adapters beside their layers, patches expanded
by chunks and a pixel shuffle, the masker on torch's encoder. The classification head, whose result
is not used, is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.clap.audio import Encoder, SwinBlock
from model.config import ClapSepConfig, LoraConfig
from model.systems import Condition
from model.systems.clapsep.network import Decoder


class ConvolutionalStft(nn.Module):
    """The STFT and its inverse as convolutions with cosines and sines (torchlibrosa's way)."""

    def __init__(self, n_fft: int, hop_samples: int) -> None:
        """With a periodic Hann window and reflected ends."""
        super().__init__()
        self.n_fft, self.hop = n_fft, hop_samples
        window = torch.hann_window(n_fft, dtype=torch.float64)
        turns = torch.outer(torch.arange(n_fft), torch.arange(n_fft)) % n_fft
        angles = turns.double() * (2 * math.pi / n_fft)
        bins = n_fft // 2 + 1
        kernels = {
            "real": angles[:bins].cos() * window,
            "imaginary": -angles[:bins].sin() * window,
            "inverse_real": angles.cos() * window[:, None] / n_fft,
            "inverse_imaginary": -angles.sin() * window[:, None] / n_fft,
        }
        for name, kernel in kernels.items():
            third = kernel[:, None] if "inverse" not in name else kernel[..., None]
            self.register_buffer(name, third.float())
        self.register_buffer("squares", window.square().float())

    def forward(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """float32[B, T] → real and imaginary parts, float32[B, F, K] each."""
        half = self.n_fft // 2
        padded = F.pad(signal[:, None], (half, half), mode="reflect")
        parts = (
            F.conv1d(padded, self.get_buffer(name), stride=self.hop)
            for name in ("real", "imaginary")
        )
        real, imaginary = (part.transpose(1, 2) for part in parts)
        return real, imaginary

    def inverse(self, real: Tensor, imaginary: Tensor, length: int) -> Tensor:
        """The other way, float32[B, length]."""
        real, imaginary = real.transpose(1, 2), imaginary.transpose(1, 2)
        whole = torch.cat((real, real[:, 1:-1].flip(1)), dim=1)
        mirrored = torch.cat((imaginary, -imaginary[:, 1:-1].flip(1)), dim=1)
        frames = F.conv1d(whole, self.get_buffer("inverse_real"))
        frames = frames + F.conv1d(mirrored, self.get_buffer("inverse_imaginary"))
        weights = self.get_buffer("squares")[None, :, None].expand(1, -1, frames.shape[-1])
        half = self.n_fft // 2
        added, divided = (self._overlapped(each) for each in (frames, weights))
        return (added / divided.clamp(min=1e-11))[:, half : half + length]

    def _overlapped(self, frames: Tensor) -> Tensor:
        total = self.n_fft + self.hop * (frames.shape[-1] - 1)
        size, stride = (1, self.n_fft), (1, self.hop)
        return F.fold(frames, (1, total), kernel_size=size, stride=stride)[:, 0, 0]


class LoraLinear(nn.Module):
    """A linear layer and its unmerged adapter, by loralib's formula."""

    def __init__(self, base: nn.Linear, tuned: Mapping[str, Tensor], config: LoraConfig) -> None:
        """Takes ``lora_A``, ``lora_B`` and ``bias`` from ``tuned``."""
        super().__init__()
        self.weight = base.weight
        self.bias = nn.Parameter(tuned["bias"])
        self.lora_a, self.lora_b = nn.Parameter(tuned["lora_A"]), nn.Parameter(tuned["lora_B"])
        self.scaling = config.alpha / config.rank

    def forward(self, x: Tensor) -> Tensor:
        """float[..., in_features] → float[..., out_features]."""
        added = F.linear(F.linear(x, self.lora_a), self.lora_b) * self.scaling
        return F.linear(x, self.weight, self.bias) + added


class ReferenceStyle(nn.Module):
    """Mixture and condition → estimate.

    Args:
        config: of the network.
        encoder: the encoder's state dict before adapters.
        tuned: adapters and biases under loralib's names.
        decoder: the decoder's state dict.
    """

    def __init__(
        self,
        config: ClapSepConfig,
        encoder: Mapping[str, Tensor],
        tuned: Mapping[str, Tensor],
        decoder: Mapping[str, Tensor],
    ) -> None:
        """Builds and fills the network, in evaluation mode."""
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.clap.audio)
        self.encoder.load_state_dict(encoder, strict=False)
        if config.lora is not None:
            adapt(self.encoder, tuned, config.lora)
        self.decoder = Decoder(config)
        self.decoder.load_state_dict(decoder, strict=False)
        self.masker = torch_masker(self.decoder)
        signal, audio = config.signal, config.clap.audio
        self.stft = ConvolutionalStft(signal.n_fft, signal.hop_samples)
        self.listening = ConvolutionalStft(audio.n_fft, audio.hop_samples)
        self.eval().requires_grad_(False)

    def forward(self, mixture: Tensor, condition: Condition, heard: Tensor) -> Tensor:
        """float32[B, T], its condition, the same mixture at the encoder's rate → float32[B, T]."""
        real, imaginary = self.stft(mixture)
        magnitude = (real.square() + imaginary.square()).sqrt().clamp(min=1e-10)
        cosine, sine = real / magnitude, imaginary / magnitude
        *skipped, state = self._encode(heard)
        mask = self._decode(state, skipped, magnitude, condition.vector().to(mixture.device))
        masked = F.relu(magnitude * mask)
        return self.stft.inverse(masked * cosine, masked * sine, mixture.shape[-1])

    def _encode(self, heard: Tensor) -> list[Tensor]:
        """The patch embedding and the stages' outputs."""
        network: Any = self.encoder
        config = self.config.clap.audio
        real, imaginary = self.listening(heard)
        mel = (real.square() + imaginary.square()) @ network.logmel_extractor.melW
        decibels = 10.0 * torch.log10(mel.clamp(min=1e-10))
        decibels = F.pad(decibels, (0, 0, 0, config.num_frames - decibels.shape[1]), value=-100.0)
        image = network.bn0(decibels.transpose(1, 2).unsqueeze(-1)).squeeze(-1)
        image = image.reshape(len(heard), config.mel_bins, config.freq_ratio, -1).transpose(1, 2)
        state = image.reshape(len(heard), 1, config.spec_size, config.spec_size)
        state = network.patch_embed.proj(state).flatten(2).transpose(1, 2)
        features = [network.patch_embed.norm(state)]
        for stage in network.layers:
            state = self._blocks(stage, features[-1])
            features.append(state if stage.downsample is None else merge(stage.downsample, state))
        return features

    def _blocks(self, stage: Any, state: Tensor) -> Tensor:
        maps = []
        for block in stage.blocks:
            state, attention = swin(block, state)
            maps.append(attention[None])
        torch.cat(maps).mean(dim=0)
        return state

    def _decode(
        self, state: Tensor, skipped: list[Tensor], magnitude: Tensor, condition: Tensor
    ) -> Tensor:
        network: Any = self.decoder
        embed = condition[:, None]
        state = connect(network.film, state, embed)
        for stage, skip, feature in zip(network.layers, network.skip, skipped[::-1], strict=True):
            if stage.downsample is not None:
                state = expand(stage.downsample, state)
            state = self._blocks(stage, state)
            state = connect(skip, feature, embed, state)
        image = network.inverse_patch_embed(state)
        frames = network._unfold(image)[:, : magnitude.shape[1]]
        columns = magnitude.transpose(1, 2).unsqueeze(-1)
        normalised = network.spec_norm(columns).squeeze(-1).transpose(1, 2)
        return torch.sigmoid(self.masker(torch.cat((normalised, frames), dim=-1)))


def swin(block: SwinBlock, x: Tensor) -> tuple[Tensor, Tensor]:
    """A Swin block as laion_clap writes it, and its attention maps."""
    batch, patches, channels = x.shape
    grid, side, shift, heads = block.grid, block.window, block.shift, block.attn.num_heads
    count = grid // side
    hidden = block.norm1(x).view(batch, grid, grid, channels)
    if shift:
        hidden = torch.roll(hidden, shifts=(-shift, -shift), dims=(1, 2))
    hidden = hidden.view(batch, count, side, count, side, channels).transpose(2, 3).contiguous()
    hidden = hidden.view(-1, side * side, channels)
    joint = block.attn.qkv(hidden).reshape(len(hidden), side * side, 3, heads, -1)
    query, key, value = joint.permute(2, 0, 3, 1, 4)
    attention = (query * block.attn.scale) @ key.transpose(-2, -1)
    attention = attention + block.attn.relative_bias()
    if block.attn_mask is not None:
        masked = attention.view(batch, -1, *attention.shape[1:]) + block.attn_mask[:, None]
        attention = masked.view(-1, *attention.shape[1:])
    attention = torch.softmax(attention, dim=-1)
    hidden = (attention @ value).transpose(1, 2).reshape(len(hidden), side * side, channels)
    hidden = block.attn.proj(hidden).view(batch, count, count, side, side, channels)
    hidden = hidden.transpose(2, 3).contiguous().view(batch, grid, grid, channels)
    if shift:
        hidden = torch.roll(hidden, shifts=(shift, shift), dims=(1, 2))
    x = x + hidden.view(batch, patches, channels)
    mixed: Tensor = block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    return x + mixed, attention


def merge(merging: Any, x: Tensor) -> Tensor:
    """Four neighbours become one patch."""
    batch, patches, channels = x.shape
    side = math.isqrt(patches)
    grid = x.view(batch, side, side, channels)
    places = [grid[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    joint = torch.cat(places, dim=-1).view(batch, -1, 4 * channels)
    merged: Tensor = merging.reduction(merging.norm(joint))
    return merged


def adapt(branch: Any, tuned: Mapping[str, Tensor], config: LoraConfig) -> None:
    """Puts adapters beside the layers of every window attention."""
    for number, stage in enumerate(branch.layers):
        for position, block in enumerate(stage.blocks):
            for target in config.targets:
                prefix = f"layers.{number}.blocks.{position}.attn.{target}."
                own = {k.removeprefix(prefix): v for k, v in tuned.items() if k.startswith(prefix)}
                base = getattr(block.attn, target)
                setattr(block.attn, target, LoraLinear(base, own, config))


def connect(skip: Any, feature: Tensor, embed: Tensor, state: Tensor | None = None) -> Tensor:
    """A skip connection, as it is written in the paper."""
    projected = skip.feature_proj(feature)
    modulated = skip.skip_conv.gamma(embed) * projected + skip.skip_conv.beta(embed)
    normalised: Tensor = skip.norm(modulated if state is None else modulated + state)
    return normalised


def expand(expansion: Any, x: Tensor) -> Tensor:
    """Patch expansion by ``pixel_shuffle``, which takes channels in another order."""
    batch, patches, channels = x.shape
    side = int(patches**0.5)
    first, second, third, fourth = expansion.expand(x).chunk(4, dim=-1)
    ordered = torch.stack((first, third, second, fourth), dim=-1).flatten(2)
    image = ordered.transpose(1, 2).reshape(batch, 2 * channels, side, side)
    shuffled = F.pixel_shuffle(image, 2).flatten(2).transpose(1, 2)
    normalised: Tensor = expansion.norm(shuffled)
    return normalised


def torch_masker(decoder: Decoder) -> nn.Sequential:
    """The masker on torch's own encoder, with the decoder's weights."""
    config = decoder.config.decoder
    first, norm, transformer, last = decoder.mask_net
    layer = nn.TransformerEncoderLayer(
        config.d_attn,
        config.masker_heads,
        int(config.d_attn * config.mlp_ratio),
        dropout=0.0,
        batch_first=True,
    )
    encoder = nn.TransformerEncoder(layer, config.num_masker_layers, enable_nested_tensor=False)
    encoder.load_state_dict(transformer.state_dict(), assign=True)
    return nn.Sequential(first, norm, encoder, last)
