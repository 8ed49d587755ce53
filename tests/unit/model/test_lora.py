"""Adapters: where they sit, what they add, what is trained and merged."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import Tensor

from float_noise import rounding
from model.clap.audio import Encoder
from model.config import TINY, LoraConfig
from model.systems.clapsep import lora

CONFIG = LoraConfig(rank=2)
BLOCKS = sum(TINY.clap.audio.depths)
TERMS = 500 * BLOCKS
"""Of sums one after the other."""


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(TINY.clap.audio).eval()


@pytest.fixture
def adapted(encoder: Encoder) -> Encoder:
    lora.add_adapters(encoder, CONFIG)
    _tune(encoder)
    return encoder


def _tune(encoder: Encoder) -> None:
    """Random adapters and biases: a fresh adapter adds nothing."""
    generator = torch.Generator().manual_seed(1)
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)


def latent(encoder: Encoder) -> Tensor:
    clips = torch.randn(2, TINY.clap.audio.clip_samples, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        return encoder.latent(clips)


def test_every_window_attention_is_adapted_and_nothing_else(adapted: Encoder) -> None:
    layers = lora.adapted_layers(adapted)
    assert len(layers) == 2 * BLOCKS
    assert {name.rpartition(".")[2] for name in layers} == {"qkv", "proj"}
    assert all(".attn." in name for name in layers)
    assert type(adapted.patch_embed.proj) is torch.nn.Conv2d


def test_only_adapters_and_their_layers_biases_are_trained(adapted: Encoder) -> None:
    trained = {name for name, value in adapted.named_parameters() if value.requires_grad}
    assert len(trained) == 3 * 2 * BLOCKS
    endings = {name.split(".attn.")[1].split(".", 1)[1] for name in trained}
    assert endings == {"lora_A.default.weight", "lora_B.default.weight", "base_layer.bias"}


def test_fresh_adapters_add_nothing(encoder: Encoder) -> None:
    before = latent(encoder)
    lora.add_adapters(encoder, CONFIG)
    torch.testing.assert_close(latent(encoder), before, rtol=0, atol=rounding(before, TERMS))


@pytest.mark.parametrize(("rank", "alpha"), [(2, 1.0), (4, 1.0), (4, 8.0), (1, 0.5)])
def test_scale_is_alpha_over_rank(encoder: Encoder, rank: int, alpha: float) -> None:
    lora.add_adapters(encoder, LoraConfig(rank=rank, alpha=alpha))
    _tune(encoder)
    layer = lora.adapted_layers(encoder)["layers.0.blocks.0.attn.qkv"]
    down, up = layer.lora_A[lora.ADAPTER].weight, layer.lora_B[lora.ADAPTER].weight
    assert (down.shape, up.shape) == ((rank, 8), (24, rank))
    x = torch.randn(5, 8)
    expected = layer.get_base_layer()(x) + alpha / rank * x @ down.T @ up.T
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=rounding(expected, 8 + rank))


def test_targets_are_chosen(encoder: Encoder) -> None:
    lora.add_adapters(encoder, LoraConfig(rank=2, targets=("proj",)))
    layers = lora.adapted_layers(encoder)
    assert len(layers) == BLOCKS
    assert all(name.endswith(".attn.proj") for name in layers)


def test_unknown_target_is_refused(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="query"):
        lora.add_adapters(encoder, LoraConfig(targets=("query",)))


def test_merged_equals_unmerged(adapted: Encoder) -> None:
    keys = set(Encoder(TINY.clap.audio).state_dict())
    before = latent(adapted)
    lora.merge_adapters(adapted)
    torch.testing.assert_close(latent(adapted), before, rtol=0, atol=rounding(before, TERMS))
    assert set(adapted.state_dict()) == keys
    assert not lora.adapted_layers(adapted)


def test_training_an_adapter_changes_no_other_weight(adapted: Encoder) -> None:
    frozen = {
        name: value.clone() for name, value in adapted.named_parameters() if not value.requires_grad
    }
    tuned = [value for value in adapted.parameters() if value.requires_grad]
    optimiser = torch.optim.SGD(tuned, lr=0.1)
    adapted.stage_features(torch.randn(1, 20_000)).stages[-1].square().mean().backward()
    assert all(value.grad is not None for value in tuned)
    optimiser.step()
    after = dict(adapted.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())


def test_pattern_matches_whole_names_only() -> None:
    pattern = lora.target_pattern(dataclasses.replace(CONFIG, targets=("qkv",)))
    assert re.fullmatch(pattern, "layers.2.blocks.11.attn.qkv")
    assert not re.fullmatch(pattern, "layers.2.blocks.11.attn.proj")
    assert not re.fullmatch(pattern, "patch_embed.proj")
