"""Losses, queries and validation of the separation stage."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from bench import counts
from model.clap import Clap
from model.config import ClapSepConfig
from model.training.drawing import NONE
from model.training.engine import Optimiser
from model.training.material import Material
from model.training.separation import (
    SeparationStep,
    Sums,
    Validation,
    Words,
    build_separator,
    energy,
    negative_snr,
    residual_level,
    si_sdr,
)
from model.training.settings import OptimiserSettings, SeparatorTraining
from model.training.sound import ClipStore, Renderer

FP32 = SeparatorTraining(optimiser=OptimiserSettings(precision="fp32"))


def noise(*shape: int) -> torch.Tensor:
    return 0.06 * torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("ratio_db", [-10.0, 0.0, 20.0])
def test_loss_is_the_ratio_to_an_error_beside_the_target(ratio_db: float) -> None:
    """An error without anything of the target has an SI-SNR that is the SNR."""
    target, error = noise(3, 40_000), noise(3, 40_000).flip(-1)
    target -= target.mean(-1, True)
    error -= error.mean(-1, True)
    error -= (error * target).sum(-1, True) / target.square().sum(-1, True) * target
    error *= (target.norm(dim=-1) / error.norm(dim=-1) * 10 ** (-ratio_db / 20))[:, None]
    found = negative_snr(Sums.of(target + error, target), None)
    torch.testing.assert_close(found, torch.full((3,), -ratio_db), rtol=0, atol=0.02)
    assert (si_sdr(target + error, target) - ratio_db).abs().max() < 0.02


def test_the_loss_has_the_gradient_that_torch_finds_operation_by_operation() -> None:
    generator = torch.Generator().manual_seed(0)
    estimate, target = torch.randn(2, 6, 500, generator=generator, dtype=torch.float64)
    estimate[0] *= 0.0
    estimate.requires_grad_()

    def loss(sums: Sums) -> torch.Tensor:
        there = negative_snr(sums, 30.0) + residual_level(sums.estimated, sums.power)
        return (there * torch.arange(1.0, 7.0)).sum()

    plainly = Sums(
        estimated=(estimate**2).sum(-1),
        common=(estimate * target).sum(-1),
        sum_estimate=estimate.sum(-1),
        power=(target**2).sum(-1),
        sum_target=target.sum(-1),
        samples=500,
    )
    found, expected = loss(Sums.of(estimate, target)), loss(plainly)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, estimate), torch.autograd.grad(expected, estimate)
    )


def test_loss_weighs_the_scale_by_nine_tenths() -> None:
    """Half of a target has an SNR of 6.02 dB and no error of shape: the ceiling holds that."""
    target = noise(2, 40_000)
    target -= target.mean(-1, True)
    found = negative_snr(Sums.of(0.5 * target, target), 30.0)
    expected = -0.9 * 10 * math.log10(1 / (0.25 + 1e-3)) - 0.1 * 30.0
    torch.testing.assert_close(found, torch.full((2,), expected), rtol=0, atol=0.02)


def test_loss_of_a_perfect_estimate_is_the_ceiling() -> None:
    target = noise(2, 40_000)
    torch.testing.assert_close(
        negative_snr(Sums.of(target, target), 30.0), torch.full((2,), -30.0), rtol=0, atol=0.01
    )


def test_residual_ends_20_db_below_the_mixture() -> None:
    mixture = noise(2, 40_000)
    levels = [
        residual_level(energy(scale * mixture), energy(mixture)).mean() for scale in (1.0, 0.1, 0.0)
    ]
    assert levels == [
        pytest.approx(0.0, abs=0.05),
        pytest.approx(10 * math.log10(0.02), abs=0.05),
        pytest.approx(-20.0, abs=0.05),
    ]


def test_losses_of_silence_have_finite_gradients() -> None:
    silence, estimate = torch.zeros(2, 1_000), torch.zeros(2, 1_000, requires_grad=True)
    sums = Sums.of(estimate, silence)
    loss = negative_snr(sums, 30.0) + residual_level(sums.estimated, energy(silence))
    loss.sum().backward()
    assert estimate.grad is not None
    assert estimate.grad.isfinite().all()


class _Silence(torch.nn.Module):
    """A separator that gives silence."""

    def encode(self, mixture: torch.Tensor) -> _Silence:
        self.length = mixture.shape[-1]
        return self

    def index(self, rows: torch.Tensor) -> _Silence:
        self.count = len(rows)
        return self

    def decode(self, _encoded: object, _condition: object) -> torch.Tensor:
        return torch.zeros(self.count, self.length, requires_grad=True)


def test_a_batch_of_which_nothing_sounds_has_figures() -> None:
    step = SeparationStep(_Silence(), SeparatorTraining(batch_size=1))  # type: ignore[arg-type]
    query = torch.zeros(2, 4)
    made = {"mixture": torch.randn(1, 100), "targets": torch.zeros(2, 100)}
    loss, figures = step({**made, "positive": query, "negative": query})
    assert figures.tolist() == pytest.approx([0.0, -20.0], abs=0.1)
    assert loss.item() == pytest.approx(-20.0, abs=0.1)


class _HalfTheMixtures(Validation):
    """What is found is the mixture, at half its level."""

    def estimates(self, *_: object) -> torch.Tensor:
        return 0.5 * self.mixtures


def test_pairs_of_which_one_or_both_are_silent_do_not_count_in_the_validation(
    material: Material,
) -> None:
    clips = np.random.default_rng(0).integers(-999, 999, (len(material.path), 32_000), np.int16)
    first, second, *others = (numbers[0] for numbers in material.held_out.values())
    clips[[first, second]] = 0
    validation = _HalfTheMixtures(
        material,
        Renderer(ClipStore(list(clips)), 32_000, 32_000),
        Words(torch.zeros(1, 8), torch.zeros(1, 8)),
        -24.0,
        np.array([others, [first, others[0]], [first, second]]),
        np.random.default_rng(0),
    )
    found = validation.improvements(_Silence())  # type: ignore[arg-type]
    assert list(found.values()) == pytest.approx([0.0] * 5, abs=1e-4)


def test_queries_are_texts_examples_or_between() -> None:
    texts = torch.nn.functional.normalize(torch.randn(3, 8), dim=-1)
    shots = torch.nn.functional.normalize(torch.randn(4, 8), dim=-1)
    words = Words(texts, shots)
    text = torch.tensor([2, 1, 0, NONE])
    examples = torch.tensor([[NONE, NONE], [0, 3], [1, NONE], [1, NONE]])
    found = words(text, examples, torch.tensor([1.0, 0.0, 0.25, 1.0]))
    expected = [texts[2], (shots[0] + shots[3]) / 2, 0.25 * texts[0] + 0.75 * shots[1]]
    torch.testing.assert_close(found[:3], torch.stack(expected))
    assert not found[3].any()


def test_noise_moves_half_of_the_texts_by_its_length() -> None:
    torch.manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(1, 256), dim=-1)
    words = Words(texts, texts)
    count = 2_000
    found = words(torch.zeros(count, dtype=torch.long), torch.full((count, 1), NONE),
                  torch.ones(count), 0.3)  # fmt: skip
    moved = (found - texts).norm(dim=-1)
    assert (moved > 1e-6).float().mean() == pytest.approx(0.5, abs=0.06)
    # At right angles nearly, so that the unit sphere shortens it to sin(arctan 0.3) and a little.
    assert moved[moved > 1e-6].mean() == pytest.approx(0.29, abs=0.02)


def test_all_of_a_separator_learns_but_its_mel_filters_and_clap_norm(
    small_config: ClapSepConfig,
) -> None:
    separator = build_separator(small_config, Clap(small_config.clap), FP32)
    frozen = {n for n, p in separator.named_parameters() if not p.requires_grad}
    assert frozen == {"encoder.norm.weight", "encoder.norm.bias"}
    assert not any("melW" in name for name, _ in separator.named_parameters())


@pytest.mark.parametrize("encoder", ["whole", "lora", "frozen"])
def test_what_is_trained_of_the_encoder(small_config: ClapSepConfig, encoder: str) -> None:
    """The paper's adapters, or an ablation; the decoder always learns."""
    torch.manual_seed(0)
    settings = SeparatorTraining(
        encoder=encoder,
        batch_size=2,
        optimiser=OptimiserSettings(matrices="adamw", precision="fp32"),
        snr_ceiling_db=None,
    )
    separator = build_separator(small_config, Clap(small_config.clap), settings)
    step = SeparationStep(separator, settings).train()
    optimiser = Optimiser(step, settings.optimiser)
    optimiser.rate.fill_(1e-3)
    before = {name: value.clone() for name, value in separator.state_dict().items()}
    query = torch.nn.functional.normalize(torch.randn(4, 32), dim=-1)
    targets = noise(4, 32_000)
    made = {
        "mixture": targets.view(2, 2, -1).sum(1),
        "targets": targets,
        "positive": query,
        "negative": query.flip(0),
    }
    for _ in range(2):  # lora_A has no gradient while lora_B is zero
        optimiser.forget()
        step(made)[0].backward()
        optimiser.clip()
        optimiser.step()
    moved = {
        name for name, value in separator.state_dict().items() if not value.equal(before[name])
    }
    assert any(name.startswith("decoder.") for name in moved)
    found = {name for name in moved if name.startswith("encoder.")}
    if encoder == "whole":
        assert found >= {n for n in before if n.startswith("encoder.") and ".mlp." in n}
    else:
        tuned = (
            r"encoder\.layers\..*\.attn\.(qkv|proj)\.(lora_[AB]\.default\.weight|base_layer\.bias)"
        )
        adapters = {name for name in before if re.fullmatch(tuned, name)}
        assert len(adapters) == (18 if encoder == "lora" else 0)  # three blocks, two layers each
        assert found == adapters


@pytest.mark.parametrize(
    ("kind", "name"), [(SeparatorTraining, "encoder"), (OptimiserSettings, "matrices")]
)
def test_settings_name_what_they_do_not_know(kind: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}='some': expected "):
        kind(**{name: "some"})


def step_condition(positive: torch.Tensor) -> object:
    from model.systems import Condition

    return Condition(positive=positive, negative=torch.zeros_like(positive))


def test_a_step_never_waits_for_the_device() -> None:
    """On the meta device, where reading a value is an error; by CUDA's rules for bfloat16."""
    forward, backward = counts.network(2)
    moving, averaging = counts.optimiser()
    for part in (forward, backward, moving, averaging):
        assert part.total.calls > 0
        assert not part.waits
    assert backward.total.flop == pytest.approx(2 * forward.total.flop, rel=0.2)
    again = counts.network(4)[0]
    assert again.total.calls == forward.total.calls
    assert again.total.flop == pytest.approx(2 * forward.total.flop, rel=1e-3)
