"""CLAP: text and audio → one embedding space (Wu et al. 2023), for queries and for CLAPScore."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.clap.audio import Encoder
from model.clap.text import TextTower, build_text_tower
from model.config import ClapConfig

MAX_WINDOWS = 12
"""A clip longer than the encoder's is covered by at most this many windows, spread evenly."""
INT16_FULL_SCALE = 32_767.0


class QueryEncoder(Protocol):
    """Embeds queries; also the scorer of CLAPScore."""

    embedding_dim: int
    sample_rate_hz: int
    clip_samples: int
    digest: str
    input_level_dbfs: float | None
    """The level that example clips are brought to for embedding (:mod:`model.signal`);
    None: they are embedded as they are. Whoever has an example clip scales it: ``embed_audio`` does
    not, so that stems are scored at their own level."""

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """float32[N, D] of unit norm."""

    def embed_audio(self, clips: Sequence[Tensor]) -> Tensor:
        """Clips float32[T_i], mono at ``sample_rate_hz`` → float32[N, D] of unit norm."""


class Clap(nn.Module):
    """A CLAP model: HTSAT and a text tower; parameter names as laion_clap's."""

    def __init__(self, config: ClapConfig, digest: str = "") -> None:
        """Builds both towers with random parameters."""
        super().__init__()
        self.config = config
        self.digest = digest
        self.input_level_dbfs: float | None = None
        self.embedding_dim = config.embedding_dim
        self.sample_rate_hz = config.audio.sample_rate_hz
        self.clip_samples = config.audio.clip_samples
        self.audio_branch = Encoder(config.audio)
        self.audio_projection = _projection(config.audio.num_features, config.embedding_dim)
        self.text_branch: TextTower = build_text_tower(config.text)
        self.text_projection = _projection(config.text.hidden_size, config.embedding_dim)

    def prepare(self) -> Clap:
        """Freezes the model for inference."""
        self.eval().requires_grad_(False)
        self.audio_branch.prepare()
        return self

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.audio_projection.parameters()).device

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Embeds captions, padded to the longest of the batch.

        Returns:
            float32[N, D], unit norm.
        """
        if not texts:
            return torch.zeros(0, self.embedding_dim)
        latent = self.text_branch.latent(texts).to(self.device)
        return F.normalize(self.text_projection(latent).float(), dim=-1)

    def embed_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeds token ids and their attention mask, int64[N, L] each; float32[N, D], unit norm."""
        latent = self.text_branch.token_latent(input_ids, attention_mask)
        return F.normalize(self.text_projection(latent).float(), dim=-1)

    def embed_audio(self, clips: Sequence[Tensor], *, quantise: bool = False) -> Tensor:
        """Embeds clips of any length.

        A clip shorter than the encoder's length is repeated a whole number of times and
        zero-padded, as in laion_clap. A longer one, which laion_clap crops at random, is covered by
        ⌈T / length⌉ windows spread evenly from its start to its end (at most ``MAX_WINDOWS``),
        whose embeddings are averaged.

        Args:
            clips: float32[T_i] mono at ``sample_rate_hz``, T_i ≥ 1.
            quantise: round to int16 first, as laion_clap does on its file path.

        Returns:
            float32[N, D], unit norm.

        Raises:
            ValueError: a clip is empty or not mono.
        """
        if not clips:
            return torch.zeros(0, self.embedding_dim)
        windows: list[Tensor] = []
        counts: list[int] = []
        for clip in clips:
            pieces = cover(quantise_int16(clip) if quantise else clip, self.clip_samples)
            windows.extend(pieces)
            counts.append(len(pieces))
        unit = self.embed_windows(torch.stack(windows).to(self.device))
        means = torch.stack([part.mean(dim=0) for part in unit.split(counts)])
        return F.normalize(means, dim=-1)

    def embed_windows(self, windows: Tensor) -> Tensor:
        """float32[B, clip_samples] → float32[B, D], unit norm."""
        latent = self.audio_branch.latent(windows)
        return F.normalize(self.audio_projection(latent).float(), dim=-1)


def cover(clip: Tensor, length: int) -> list[Tensor]:
    """Windows of ``length`` samples that stand for a clip; see :meth:`Clap.embed_audio`."""
    if clip.ndim != 1 or clip.shape[0] == 0:
        raise ValueError(f"expected a mono clip float32[T], T ≥ 1, found shape {tuple(clip.shape)}")
    total = clip.shape[0]
    if total <= length:
        repeated = clip.repeat(length // total)
        return [F.pad(repeated, (0, length - repeated.shape[0]))]
    count = min(math.ceil(total / length), MAX_WINDOWS)
    starts = [round(index * (total - length) / (count - 1)) for index in range(count)]
    return [clip[start : start + length] for start in starts]


def _projection(in_features: int, out_features: int) -> nn.Sequential:
    first, second = nn.Linear(in_features, out_features), nn.Linear(out_features, out_features)
    for layer in (first, second):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)  # a bias as large as the signal would make all embeddings alike
    return nn.Sequential(first, nn.ReLU(), second)


def quantise_int16(waveform: Tensor) -> Tensor:
    """To 16 bits and back, as laion-clap treats audio on one of its two paths.

    Args:
        waveform: float[..., T]; left untouched. What exceeds ±1 is clipped.

    Returns:
        float32[..., T], multiples of 1/32767, rounded towards zero.
    """
    levels = (waveform.float().clamp(-1.0, 1.0) * INT16_FULL_SCALE).trunc()
    return levels / INT16_FULL_SCALE
