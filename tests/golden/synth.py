"""Weights and input signals made by formula, so that no file has to be shipped to have either.

Every tensor is drawn from a generator seeded by the SHA-256 of its name, every signal is analytic.
The rule is the one the stored outputs in ``data`` were made with (see ``data/README.md``): changing
a constant here changes the weights, and the stored outputs no longer apply.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SAMPLE_RATE_HZ = 32000
WINDOW_SAMPLES = 320000
CLAP_RATE_HZ = 48000
SEED_BASE = 1000

# Tensors that a constructor computes (kernels, indices, masks, counters) are not drawn.
SKIPPED = re.compile(
    r"(spectrogram_extractor\.|logmel_extractor\.|relative_position_index$|\.attn_mask$"
    r"|num_batches_tracked$|position_ids$|token_type_ids$|^logit_scale_[at]$|^stft\.|^istft\.)"
)

_NORM_WEIGHT = r"(\.norm[12]?|\.bn0|\.spec_norm|\.LayerNorm|^decoder_model\.mask_net\.1)\.weight$"


class Rule(NamedTuple):
    """How one family of tensors is drawn; the first rule whose pattern is found in the key holds.

    ``normal``: offset + scale * N; ``abs``: offset + scale * abs(N);
    ``fan``: scale * N / sqrt(inputs of one output).
    """

    pattern: re.Pattern[str]
    mode: str
    offset: float
    scale: float


RULES = tuple(
    Rule(re.compile(pattern), mode, offset, scale)
    for pattern, mode, offset, scale in (
        (r"\.bn0\.running_mean$", "normal", -30.0, 3.0),
        (r"\.bn0\.running_var$", "abs", 300.0, 30.0),
        (r"\.spec_norm\.running_mean$", "normal", 0.5, 0.05),
        (r"\.spec_norm\.running_var$", "abs", 4.0, 0.4),
        (_NORM_WEIGHT, "normal", 1.0, 0.1),
        (r"\.bias$", "normal", 0.0, 0.1),
        (r"in_proj_bias$", "normal", 0.0, 0.1),
        (r"relative_position_bias_table$", "normal", 0.0, 0.5),
        (r"\.lora_[AB]$", "normal", 0.0, 0.3),
        (r"\.skip_conv\.(gamma|beta)\.weight$", "normal", 0.0, 1.0),
        (r"word_embeddings\.weight$", "normal", 0.0, 0.5),
        (r"(position|token_type)_embeddings\.weight$", "normal", 0.0, 0.25),
        (r"inverse_patch_embed\.proj\.weight$", "normal", 0.0, 0.35),
        (r"^decoder_model\.mask_net\.3\.weight$", "fan", 0.0, 2.0),
        # Not in the published checkpoints: batch norms of convolutional maskers and phase nets.
        (r"\.running_var$", "abs", 1.0, 0.1),
        (r".", "fan", 0.0, 1.0),
    )
)


def is_skipped(key: str) -> bool:
    """Whether the constructor's value of this tensor is kept."""
    return SKIPPED.search(key) is not None


def rule_for(key: str) -> Rule:
    """The first rule that matches; the last one matches everything."""
    return next(rule for rule in RULES if rule.pattern.search(key))


def tensor(namespace: str, key: str, shape: Sequence[int], prefix: str = "") -> np.ndarray:
    """One weight tensor, float32, C order.

    Args:
        namespace: ``clap`` or ``clapsep``, the checkpoint the tensor belongs to.
        key: the published key, without ``module.``.
        shape: shape of the tensor.
        prefix: empty for the first set of weights, ``B:`` for the second.
    """
    rule = rule_for(key)
    digest = hashlib.sha256(f"{prefix}{namespace}/{key}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    drawn = rng.standard_normal(tuple(shape), dtype=np.float32)
    if rule.mode == "abs":
        drawn = np.abs(drawn)
    scale = rule.scale / math.sqrt(math.prod(shape[1:])) if rule.mode == "fan" else rule.scale
    return np.asarray(np.float32(rule.offset) + np.float32(scale) * drawn, dtype=np.float32)


def source(seed: int, sample_rate_hz: int, num_samples: int, partials: int = 48) -> np.ndarray:
    """One sound: float64[T], gated sinusoids, two chirps over 10 s and two tremolo tones.

    It is analytic, so the same seed at two sample rates is the same sound with no resampler.
    """
    rng = np.random.default_rng(seed)
    frequency = 60.0 * np.exp(rng.uniform(0.0, math.log(12000.0 / 60.0), partials))
    amplitude = rng.uniform(0.2, 1.0, partials)
    phase = rng.uniform(0.0, 2 * math.pi, partials)
    centre = rng.uniform(0.0, 10.0, partials)
    width = rng.uniform(0.05, 1.5, partials)
    chirp_start = rng.uniform(200.0, 2000.0, 2)
    chirp_end = rng.uniform(3000.0, 11000.0, 2)
    chirp_phase = rng.uniform(0.0, 2 * math.pi, 2)
    tone = rng.uniform(100.0, 3000.0, 2)
    tremolo = rng.uniform(0.5, 8.0, 2)
    tone_phase = rng.uniform(0.0, 2 * math.pi, 2)
    t = np.arange(num_samples, dtype=np.float64) / float(sample_rate_hz)
    x = np.zeros(num_samples, dtype=np.float64)
    for i in range(partials):
        gate = np.exp(-0.5 * ((t - centre[i]) / width[i]) ** 2)
        x += amplitude[i] * gate * np.sin(2 * math.pi * frequency[i] * t + phase[i])
    for i in range(2):
        sweep = 0.5 * (chirp_end[i] - chirp_start[i]) / 10.0 * t * t
        x += 0.8 * np.sin(2 * math.pi * (chirp_start[i] * t + sweep) + chirp_phase[i])
    for i in range(2):
        level = 0.8 * (0.5 + 0.5 * np.sin(2 * math.pi * tremolo[i] * t))
        x += level * np.sin(2 * math.pi * tone[i] * t + tone_phase[i])
    return x


def mixture(seed: int, sample_rate_hz: int, num_samples: int, gain: float = 0.05) -> np.ndarray:
    """Two sounds, summed: float32[T]."""
    first = source(seed, sample_rate_hz, num_samples)
    second = source(seed + 500, sample_rate_hz, num_samples)
    return (gain * (first + second)).astype(np.float32)


def noise(seed: int, num_samples: int, scale: float = 0.1) -> np.ndarray:
    """White noise: float32[T]."""
    return (scale * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def unit_embed(seed: int, dim: int = 512) -> np.ndarray:
    """A random direction: float32[D] of unit norm."""
    v = np.random.default_rng(seed).standard_normal(dim)
    return (v / np.linalg.norm(v)).astype(np.float32)


class Tokens(NamedTuple):
    """RoBERTa's inputs: int64[N, L] token ids and attention mask."""

    input_ids: np.ndarray
    attention_mask: np.ndarray


def token_batch(seed: int, lengths: Sequence[int] = (2, 5, 9, 17, 77), width: int = 77) -> Tokens:
    """Captions as tokens (0 starts, 2 ends, 1 pads); a length of 2 is the empty caption."""
    rng = np.random.default_rng(seed)
    ids = np.full((len(lengths), width), 1, dtype=np.int64)
    mask = np.zeros((len(lengths), width), dtype=np.int64)
    for row, length in enumerate(lengths):
        ids[row, 0] = 0
        ids[row, 1 : length - 1] = rng.integers(4, 50265, size=length - 2)
        ids[row, length - 1] = 2
        mask[row, :length] = 1
    return Tokens(ids, mask)
