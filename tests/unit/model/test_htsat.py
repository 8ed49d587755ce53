"""HTSAT's parts have laion_clap's names, shapes, filters and masks, and nothing of its weight."""

from __future__ import annotations

import dataclasses

import librosa
import numpy as np
import pytest
import scipy.signal
import torch
from torch import nn

from laion_original import whole_htsat
from model.clap.audio import Encoder, SwinBlock, init_weights, mel_filters
from model.config import MINI, PUBLISHED, TINY, EncoderConfig
from model.signal.stft import torch_hann

UNUSED = ("tscam_conv.", "head.", "spectrogram_extractor.")
CONFIGS = [TINY.clap.audio, MINI.clap.audio]


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in network.state_dict().items()}


@pytest.mark.parametrize("config", CONFIGS)
def test_tensors_have_the_original_names_and_shapes(config: EncoderConfig) -> None:
    original = shapes(whole_htsat(config))
    expected = {key: shape for key, shape in original.items() if not key.startswith(UNUSED)}
    assert shapes(Encoder(config)) == expected


@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_computed_and_not_learnt_is_the_original(config: EncoderConfig) -> None:
    ours, original = Encoder(config).state_dict(), whole_htsat(config).state_dict()
    computed = [
        key for key in ours if key.endswith(("melW", "attn_mask", "relative_position_index"))
    ]
    assert len(computed) > sum(config.depths)
    for key in computed:
        assert ours[key].dtype == original[key].dtype
        assert torch.equal(ours[key], original[key]), key


@pytest.mark.parametrize(
    "config",
    [
        PUBLISHED.clap.audio,
        dataclasses.replace(PUBLISHED.clap.audio, fmin_hz=0.0, fmax_hz=900.0, mel_bins=8),
        dataclasses.replace(
            PUBLISHED.clap.audio, sample_rate_hz=16_000, fmax_hz=8_000.0, mel_bins=32
        ),
        dataclasses.replace(PUBLISHED.clap.audio, fmin_hz=1_000.0),
    ],
)
def test_mel_filters_are_librosas(config: EncoderConfig) -> None:
    expected = librosa.filters.mel(
        sr=config.sample_rate_hz,
        n_fft=config.n_fft,
        n_mels=config.mel_bins,
        fmin=config.fmin_hz,
        fmax=config.fmax_hz,
    )
    found = mel_filters(config)
    assert found.dtype == expected.dtype
    # Both take logarithms and exponentials from NumPy, whose last bit depends on the processor.
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_a_network_that_may_learn_everything_keeps_its_mel_filters() -> None:
    network = Encoder(TINY.clap.audio).requires_grad_(True)
    learnt = {name for name, value in network.named_parameters() if value.requires_grad}
    assert "bn0.weight" in learnt
    assert not any(name.startswith("logmel_extractor") for name in learnt)


def test_block_of_a_grid_as_small_as_the_window_is_not_shifted() -> None:
    shifted, whole = (
        SwinBlock(8, grid, 1, 8, shifted=True, mlp_ratio=4.0, drop_path=0.0) for grid in (16, 8)
    )
    assert (shifted.shift, whole.shift) == (4, 0)
    assert whole.attn_mask is None


def test_stochastic_depth_grows_with_the_block() -> None:
    config = dataclasses.replace(TINY.clap.audio, drop_path_rate=0.3)
    rates = [block.drop_path.rate for stage in Encoder(config).layers for block in stage.blocks]
    assert rates == pytest.approx(np.linspace(0, 0.3, sum(config.depths)))


def test_initialisation() -> None:
    torch.manual_seed(0)
    linear, norm = nn.Linear(400, 400), nn.LayerNorm(5)
    nn.init.normal_(norm.weight)
    for module in (linear, norm, nn.Identity()):
        init_weights(module)
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not linear.bias.any()
    assert (norm.weight == 1).all()
    assert not norm.bias.any()


def test_initial_parameters_are_spread_as_the_original_ones() -> None:
    torch.manual_seed(0)
    ours, original = (
        dict(network.named_parameters())
        for network in (Encoder(MINI.clap.audio), whole_htsat(MINI.clap.audio))
    )
    for name, value in ours.items():
        expected = original[name].detach()
        if value.numel() > 1_000:  # five times the deviation of an estimated deviation
            noise = 5 * (2 * value.numel()) ** -0.5
            assert value.std().item() == pytest.approx(expected.std().item(), rel=2 * noise), name
        elif name.endswith(("bias", "norm1.weight", "norm2.weight", "norm.weight")):
            assert torch.equal(value, expected) or name == "patch_embed.proj.bias", name


@pytest.mark.parametrize("n_fft", [256, 1024])
def test_hann_window_is_periodic(n_fft: int) -> None:
    expected = scipy.signal.get_window("hann", n_fft, fftbins=True)
    np.testing.assert_allclose(torch_hann(n_fft).numpy(), expected, atol=6e-8)
