"""A small network, in every variant, equals the reference implementation's stored outputs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

import float_noise
from golden import pairs, published, small, synth
from golden.small import CASES, SMALL, Case
from model.checkpoints.loading import Networks
from model.systems import Condition

# How far the reference in float32 lies from itself in float64. A rotation's direction is unsure
# where both its components are small, hence the larger one with a phase net.
WAVEFORM_TOLERANCE = float_noise.of(3e-7)
PHASE_WAVEFORM_TOLERANCE = float_noise.of(1.1e-5)
# How far answers of two kinds of CPU lay apart: what float64 gives is not at hand for these.
MASK_TOLERANCE = float_noise.of(3.9e-6)
FEATURE_TOLERANCE = float_noise.of(1e-4)
EMBEDDING_TOLERANCE = float_noise.of(2.2e-6)
STRIDE = 8
STRETCH_SAMPLES = 1000


@pytest.fixture(scope="module")
def stored() -> Iterator[dict[str, np.ndarray]]:
    with np.load(published.DATA / "small.npz") as file:
        yield {key: file[key] for key in file.files}


@pytest.fixture(scope="module")
def networks() -> Networks:
    return pairs.networks(SMALL)


def queries(seeds: tuple[int | None, ...]) -> Tensor:
    dim = SMALL.clap.embedding_dim
    rows = [np.zeros(dim) if seed is None else synth.unit_embed(seed, dim) for seed in seeds]
    return torch.tensor(np.stack(rows), dtype=torch.float32)


def inputs(case: Case) -> tuple[Tensor, Tensor, Condition]:
    """The mixtures at both rates, and their queries."""
    count, heard_samples = len(case.positive_seeds), -(-case.num_samples * 3 // 2)
    mixtures = [synth.mixture(1000 + i, 32_000, case.num_samples) for i in range(count)]
    heard = [synth.mixture(1000 + i, 48_000, heard_samples) for i in range(count)]
    condition = Condition(
        positive=queries(case.positive_seeds), negative=queries(case.negative_seeds)
    )
    return torch.tensor(np.stack(mixtures)), torch.tensor(np.stack(heard)), condition


@pytest.mark.parametrize("name", CASES)
def test_waveform_and_mask(name: str, stored: dict[str, np.ndarray], networks: Networks) -> None:
    case = CASES[name]
    separator = networks.separator
    if case.config() != SMALL:
        separator = pairs.networks(case.config()).separator
    mixture, heard, condition = inputs(case)
    with torch.inference_mode():
        encoded = separator.encode(mixture, heard)
        mask = separator.predict_mask(encoded, condition).magnitude[:, ::20, ::4].numpy()
        waveform = separator.decode(encoded, condition).numpy()
    np.testing.assert_allclose(mask, stored[f"{name}_mask_slice"], rtol=0, atol=MASK_TOLERANCE)
    tolerance = PHASE_WAVEFORM_TOLERANCE if case.phase else WAVEFORM_TOLERANCE
    np.testing.assert_allclose(
        waveform[:, ::STRIDE], stored[f"{name}_wav_strided"], rtol=0, atol=tolerance
    )
    last = case.num_samples - STRETCH_SAMPLES
    for position, start in enumerate((0, last // 2, last)):
        np.testing.assert_allclose(
            waveform[:, start : start + STRETCH_SAMPLES],
            stored[f"{name}_wav_stretches"][:, position],
            rtol=0,
            atol=tolerance,
        )


@pytest.mark.parametrize("name", ["batch", "short"])
def test_stage_features(name: str, stored: dict[str, np.ndarray], networks: Networks) -> None:
    mixture, heard, _ = inputs(CASES[name])
    with torch.inference_mode():
        stages = networks.separator.encode(mixture, heard).features.stages
    assert len(stages) == 5
    for number, stage in enumerate(stages):
        flat = stage.reshape(-1)[:: max(1, stage.numel() // 1500)]
        np.testing.assert_allclose(
            flat.numpy(), stored[f"{name}_stage{number}"], rtol=0, atol=FEATURE_TOLERANCE
        )


def test_clap_latent(stored: dict[str, np.ndarray], networks: Networks) -> None:
    clips = [synth.mixture(1000 + i, 48_000, SMALL.clap.audio.clip_samples) for i in range(2)]
    with torch.inference_mode():
        latent = networks.clap.audio_branch.latent(torch.tensor(np.stack(clips)))
    np.testing.assert_allclose(
        latent.numpy(), stored["clap_latent"], rtol=0, atol=EMBEDDING_TOLERANCE
    )


def test_queries_matter(networks: Networks) -> None:
    mixture, heard, condition = inputs(small.CASES["short"])
    swapped = Condition(positive=condition.negative, negative=condition.positive)
    with torch.inference_mode():
        encoded = networks.separator.encode(mixture, heard)
        asked = networks.separator.decode(encoded, condition)
        other = networks.separator.decode(encoded, swapped)
    assert (asked - other).norm() > 0.1 * asked.norm()
