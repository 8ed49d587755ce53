"""HTSAT as a function: waveform → stage features, and the CLAP audio embedding's latent.

HTSAT is laion_clap's network (Chen et al. 2022); its parameters and names are kept, its forward is
written out here: no hooks, no state, no classifier, an FFT instead of a convolution for the STFT.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.clap import laion, swin
from model.config import EncoderConfig

_POWER_FLOOR = 1e-10

ImageHook = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageFeatures:
    """What the decoder reads: the patch embedding and every stage's output, float[B, N, C] each."""

    stages: tuple[Tensor, ...]


class Encoder(swin.SwinNetwork):
    """HTSAT with laion_clap's parameter names; ``prepare()`` it for inference."""

    hann: Tensor
    # Parts of laion_clap's network, which has no types.
    logmel_extractor: Any
    bn0: Any
    patch_embed: Any
    layers: Any
    norm: Any

    def __init__(self, config: EncoderConfig) -> None:
        """Builds the network with random parameters."""
        super().__init__()
        self.config = config
        network = laion.build_htsat(config)
        for name, child in network.named_children():
            self.add_module(name, child)
        self.register_buffer("hann", laion.torch_hann(config.n_fft), persistent=False)

    def stage_features(self, waveform: Tensor) -> StageFeatures:
        """Hears a mixture.

        Args:
            waveform: float32[B, T] at the encoder's rate, at most a window; the spectrogram's
                missing frames are zeros of power, as in the reference.

        Returns:
            The patch embedding and each stage's output, coarsest last.
        """
        log_mel = self._log_mel(waveform)
        missing = self.config.num_frames - log_mel.shape[1]
        silence = 10.0 * math.log10(_POWER_FLOOR)
        log_mel = F.pad(log_mel, (0, 0, 0, missing), value=silence)
        return self._transform(self._normalise(log_mel))

    def latent(self, waveform: Tensor, augment: ImageHook | None = None) -> Tensor:
        """The clip-level latent that CLAP projects into the shared space.

        Args:
            waveform: float32[B, clip_samples] at the encoder's rate.
            augment: SpecAugment or the like, on float[B, F, mel_bins] after normalisation; for
                training.

        Returns:
            float[B, num_features].
        """
        image = self._normalise(self._log_mel(waveform))
        if augment is not None:
            image = augment(image)
        if image.shape[1] < self.config.num_frames:
            size = (self.config.num_frames, image.shape[2])
            image = F.interpolate(image[:, None], size, mode="bicubic", align_corners=True)[:, 0]
        latent: Tensor = self.norm(self._transform(image).stages[-1]).mean(dim=1)
        return latent

    def _log_mel(self, waveform: Tensor) -> Tensor:
        """float32[B, T] → float32[B, F, mel_bins] in dB of power."""
        config = self.config
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = torch.stft(
                waveform.float(),
                config.n_fft,
                config.hop_samples,
                window=self.hann,
                center=True,
                pad_mode="reflect",
                return_complex=True,
            )
            power = (spectrum.real.square() + spectrum.imag.square()).transpose(1, 2)
            mel = power @ self.logmel_extractor.melW
            return 10.0 * torch.log10(mel.clamp(min=_POWER_FLOOR))

    def _normalise(self, log_mel: Tensor) -> Tensor:
        """Batch normalisation of every mel band, float[B, F, mel_bins]."""
        bands = log_mel.transpose(1, 2).unsqueeze(-1)
        normalised: Tensor = self.bn0(bands).squeeze(-1).transpose(1, 2)
        return normalised

    def _transform(self, frames: Tensor) -> StageFeatures:
        """Folds float[B, F, mel_bins] into the square image and runs the stages."""
        config = self.config
        batch, _, bands = frames.shape
        pieces = frames.transpose(1, 2).reshape(batch, bands, config.freq_ratio, -1)
        image = pieces.transpose(1, 2).reshape(batch, 1, config.spec_size, config.spec_size)
        embed = self.patch_embed
        x = embed.norm(embed.proj(image).flatten(2).transpose(1, 2))
        stages = [x]
        for stage in self.layers:
            for block in stage.blocks:
                x = swin.run_block(block, x)
            if stage.downsample is not None:
                x = swin.merge_patches(stage.downsample, x)
            stages.append(x)
        return StageFeatures(stages=tuple(stages))
