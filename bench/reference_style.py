"""CLAPSep the way it is plainly written, to measure ours against.

laion_clap's own modules run their own forward: explicit attention whose maps are kept and averaged,
a convolutional STFT, the classification head, features collected by hooks. Adapters stay beside
their layers, patches are expanded by chunks and a pixel shuffle, the masker is torch's encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchlibrosa.stft import ISTFT, STFT, magphase

from laion_original import whole_htsat
from model.config import ClapSepConfig, LoraConfig
from model.systems import Condition
from model.systems.clapsep.network import Decoder

AUDIOSET_CLASSES = 527


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
        self.audio_branch = whole_htsat(config.clap.audio, AUDIOSET_CLASSES)
        self.audio_branch.load_state_dict(encoder, strict=False)
        if config.lora is not None:
            adapt(self.audio_branch, tuned, config.lora)
        self.decoder = Decoder(config)
        self.decoder.load_state_dict(decoder, strict=False)
        self.masker = torch_masker(self.decoder)
        signal = config.signal
        options: dict[str, Any] = {
            "n_fft": signal.n_fft,
            "hop_length": signal.hop_samples,
            "win_length": signal.n_fft,
        }
        self.stft, self.istft = STFT(**options), ISTFT(**options)
        self.features: list[Tensor] = []
        self._install_hooks()
        self.eval().requires_grad_(False)

    def _install_hooks(self) -> None:
        frames = self.config.clap.audio.num_frames
        branch: Any = self.audio_branch
        branch.spectrogram_extractor.register_forward_hook(
            lambda _, __, out: F.pad(out, (0, 0, 0, frames - out.shape[2]))
        )
        branch.patch_embed.register_forward_hook(lambda _, __, out: self.features.append(out))
        for layer in branch.layers:
            layer.register_forward_hook(lambda _, __, out: self.features.append(out[0]))

    def forward(self, mixture: Tensor, condition: Condition, heard: Tensor) -> Tensor:
        """float32[B, T], its condition, the same mixture at the encoder's rate → float32[B, T]."""
        real, imaginary = self.stft(mixture)
        magnitude, cosine, sine = magphase(real, imaginary)
        self.features.clear()
        self.audio_branch({"waveform": heard})
        *skipped, state = self.features
        mask = self._decode(state, skipped, magnitude, condition.vector().to(mixture.device))
        masked = F.relu(magnitude * mask)
        estimate: Tensor = self.istft(masked * cosine, masked * sine, length=mixture.shape[-1])
        return estimate

    def _decode(
        self, state: Tensor, skipped: list[Tensor], magnitude: Tensor, condition: Tensor
    ) -> Tensor:
        network: Any = self.decoder
        embed = condition[:, None]
        state = connect(network.film, state, embed)
        for stage, skip, feature in zip(network.layers, network.skip, skipped[::-1], strict=True):
            if stage.downsample is not None:
                state = expand(stage.downsample, state)
            maps = []
            for block in stage.blocks:
                state, attention = block(state)
                maps.append(attention[None])
            torch.cat(maps).mean(dim=0)
            state = connect(skip, feature, embed, state)
        image = network.inverse_patch_embed(state)
        frames = network._unfold(image)[:, None, : magnitude.shape[2]]
        normalised = network.spec_norm(magnitude.transpose(1, 3)).transpose(1, 3)
        joint = torch.cat((normalised, frames), dim=-1)[:, 0]
        return torch.sigmoid(self.masker(joint))[:, None]


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
