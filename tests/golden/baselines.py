"""Weights made by formula for the baselines, and the inputs of their stored outputs.

The rule is that of ``golden.synth`` with namespaces ``audiosep``, ``lass``, ``uss`` and
``waveformer``: a generator seeded by the tensor's name. Scales are chosen so that masks vary and
the query matters; see ``data/baselines.md`` for what that gives.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import float_noise
from golden import synth

DATA = Path(__file__).parent / "data"
NOISE = {
    "audiosep": {"wav": 9.6e-7},
    "lass": {"queries": 4.1e-6, "wav": 8.6e-6},
    "uss": {"queries": 9.3e-7, "wav": 1.5e-6},
    "waveformer": {"wav_256_128": 3.7e-7, "wav_512_256": 2.6e-7},
}
"""How far stored outputs lie from what float64 gives; slow tests measure it again."""
DTYPES = [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)]
TOKENS = np.array([[101, 2019, 4937, 11317, 1037, 3899, 2003], [101, 4542, 4634, 0, 0, 0, 0]])
"""Two captions as BERT's token ids; 0 pads."""

# Tensors that a constructor computes, or that the network has no use for, are not drawn.
SKIPPED = re.compile(
    r"(\.i?stft\.|spectrogram_extractor\.|logmel_extractor\.|num_batches_tracked$|position_ids$"
    r"|pos_enc\.pe$)"
)
_NORMS = r"(\bbn\d|LayerNorm|\bnorm\d|label_embedding\.[14]|layers\.dcc_\d+\.layers\.[14])"

RULES = tuple(
    synth.Rule(re.compile(pattern), mode, offset, scale)
    for pattern, mode, offset, scale in (
        (r"^query_net\.base\.bn0\.running_mean$", "normal", -30.0, 3.0),
        (r"^query_net\.base\.bn0\.running_var$", "abs", 300.0, 30.0),
        (r"\.bn0\.running_mean$", "normal", 0.5, 0.05),
        (r"\.bn0\.running_var$", "abs", 4.0, 0.4),
        (r"running_mean$", "normal", 0.0, 0.1),
        (r"running_var$", "abs", 1.0, 0.1),
        (_NORMS + r"\.weight$", "normal", 1.0, 0.1),
        (r"bias$", "normal", 0.0, 0.1),
        (r"film\..*->beta\d\.weight$", "normal", 0.0, 0.5),
        (r"film(\d|_res)\.linear\.\d\.weight$", "fan", 0.0, 2.0),
        (r"_embeddings\.weight$", "normal", 0.0, 0.5),
        (r"text_embedder\.linear_layer\.0\.weight$", "fan", 0.0, 2.0),
        (r"fc_audioset\.weight$", "fan", 0.0, 3.0),
        (r"^out_conv\.0\.weight$", "fan", 0.0, 0.1),
        (r"^UNet\.after_conv2\.weight$|after_conv\.weight$", "fan", 0.0, 2.0),
        (r".", "fan", 0.0, 1.4),
    )
)


def tensor(namespace: str, key: str, shape: Sequence[int]) -> np.ndarray:
    """One weight tensor, float32, C order."""
    rule = next(rule for rule in RULES if rule.pattern.search(key))
    digest = hashlib.sha256(f"{namespace}/{key}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    drawn = rng.standard_normal(tuple(shape), dtype=np.float32)
    if rule.mode == "abs":
        drawn = np.abs(drawn)
    scale = rule.scale / math.sqrt(math.prod(shape[1:])) if rule.mode == "fan" else rule.scale
    return np.asarray(np.float32(rule.offset) + np.float32(scale) * drawn, dtype=np.float32)


def formula_state(namespace: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """The drawn tensors among those of the given names and shapes."""
    return {
        key: tensor(namespace, key, shape)
        for key, shape in shapes.items()
        if not SKIPPED.search(key)
    }


def mixture(seed: int, sample_rate_hz: int, num_samples: int) -> np.ndarray:
    """float32[T]: seconds 3 and following of two sounds, where all partials are audible."""
    start = 3 * sample_rate_hz
    return synth.mixture(seed, sample_rate_hz, start + num_samples)[start:]


def stored(name: str) -> dict[str, np.ndarray]:
    """The arrays of one stored output."""
    with np.load(DATA / f"baseline_{name}.npz") as file:
        return {key: file[key] for key in file.files}


def assert_stored(name: str, **found: torch.Tensor) -> None:
    """Checks float32 outputs against the stored ones, and with float64 ones the noise of those."""
    kept = stored(name)
    for key, values in found.items():
        distance, noise = float_noise.distance(values, kept[key]), NOISE[name][key]
        if values.dtype == torch.float64:
            assert distance == pytest.approx(noise, rel=0.02), key
        else:
            assert distance <= float_noise.of(noise), key
