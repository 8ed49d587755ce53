"""The optimiser, the moving average and the schedule."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from model.training import engine
from model.training.contrastive import spec_augment, standardised
from model.training.engine import MovingAverage, Optimiser, orthogonalised, rate_at
from model.training.settings import OptimiserSettings


def test_singular_values_are_brought_near_one() -> None:
    matrices = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert 0.5 < values.min() < values.max() < 1.5


@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
def test_a_matrix_moves_by_its_orthogonalised_gradient(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(shape[1], shape[0])
    before = layer.weight.detach().clone()
    settings = OptimiserSettings(weight_decay=0.0)
    optimiser = Optimiser(layer, settings)
    optimiser.rate.fill_(0.01)
    layer.weight.grad = torch.randn(shape)
    layer.bias.grad = torch.zeros(shape[0])
    optimiser.step()
    moved = torch.linalg.svdvals(layer.weight.detach() - before)
    length = 0.01 * 0.2 * 50**0.5  # of every singular value
    assert 0.5 * length < moved.min() < moved.max() < 1.5 * length
    assert (layer.weight.grad * (layer.weight.detach() - before)).sum() < 0


def test_adamw_moves_the_entries_of_a_matrix_one_by_one() -> None:
    layer = nn.Linear(20, 50)
    before = layer.weight.detach().clone()
    optimiser = Optimiser(layer, OptimiserSettings(matrices="adamw", weight_decay=0.0))
    optimiser.rate.fill_(0.01)
    layer.weight.grad = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    layer.bias.grad = torch.zeros(50)
    optimiser.step()
    moved = layer.weight.detach() - before
    torch.testing.assert_close(moved, -0.01 * layer.weight.grad.sign(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_weights_without_a_gradient_decay(matrices: str) -> None:
    layer = nn.Linear(20, 50)
    before = layer.weight.detach().clone()
    optimiser = Optimiser(layer, OptimiserSettings(matrices=matrices, weight_decay=0.5))
    optimiser.rate.fill_(0.01)
    for value in layer.parameters():
        value.grad = torch.zeros_like(value)
    optimiser.step()
    torch.testing.assert_close(layer.weight.detach(), before * (1.0 - 0.01 * 0.5))


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_what_has_a_share_of_the_learning_rate_moves_by_that_share(matrices: str) -> None:
    moved = {}
    for shares in ({}, {"slow.": 0.25}):
        torch.manual_seed(0)
        module = nn.ModuleDict({"slow": nn.Linear(20, 50), "fast": nn.Linear(50, 20)})
        before = {name: value.detach().clone() for name, value in module.named_parameters()}
        optimiser = Optimiser(module, OptimiserSettings(matrices=matrices), shares)
        optimiser.rate.fill_(0.01)
        for value in module.parameters():
            value.grad = torch.randn_like(value)
        optimiser.step()
        moved[len(shares)] = {
            name: value.detach() - before[name] for name, value in module.named_parameters()
        }
    for name, whole in moved[0].items():
        share = 0.25 if name.startswith("slow.") else 1.0
        torch.testing.assert_close(moved[1][name], share * whole, rtol=1e-3, atol=1e-6)


def test_a_parameter_without_gradient_is_named() -> None:
    module = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)})
    optimiser = Optimiser(module, OptimiserSettings())
    module["used"](torch.ones(1, 2)).sum().backward()
    with pytest.raises(ValueError, match=r"to be frozen: idle\.weight, idle\.bias"):
        optimiser.clip()


def test_average_follows_quickly_at_first_and_slowly_later() -> None:
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(0.0)
    average = MovingAverage(module, 0.5)
    expected = 0.0
    for step in range(1, 9):
        module.weight.data.fill_(float(step))
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)


def test_learning_rate_rises_holds_and_falls_to_zero() -> None:
    settings = OptimiserSettings(learning_rate=1.0, steps=100, warmup_steps=10, held_share=0.25)
    rates = [rate_at(settings, step) for step in (0, 4, 9, 24, 50, 99)]
    expected = [0.1, 0.5, 1.0, 1.0, 0.5 / 0.75, 0.01 / 0.75]
    assert rates == [pytest.approx(value) for value in expected]
    constant = dataclasses.replace(settings, held_share=1.0)
    assert [rate_at(constant, step) for step in (9, 99)] == [1.0, 1.0]


def test_logits_of_a_class_are_standardised_over_the_training_clips() -> None:
    logits = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)).numpy() * 5 - 7
    training = torch.arange(400).numpy() < 300
    found = standardised(logits, training)
    assert abs(found[training].mean(0)).max() < 0.01
    assert abs(found[training].std(0) - 1).max() < 0.02


def test_stripes_are_zeroed() -> None:
    torch.manual_seed(0)
    kept = spec_augment(torch.ones(500, 120, 80))
    # Two stripes of up to a twelfth of the frames, two of up to an eighth of the bands, each half
    # as wide on average.
    assert kept.mean().item() == pytest.approx((1 - 1 / 24) ** 2 * (1 - 1 / 16) ** 2, abs=0.01)
    assert set(kept.unique().tolist()) == {0.0, 1.0}


class _OnGpu:
    """A learner as if it were on a GPU; it counts."""

    def __init__(self, *_: object) -> None:
        self.optimiser = SimpleNamespace(rate=SimpleNamespace(is_cuda=True))
        self.steps = self.warm = 0
        self.captured: list[str] = []

    def run(self, *_: object) -> None:
        self.steps, self.warm = self.steps + 1, self.warm + 1

    def capture(self, part: str) -> None:
        assert self.warm == engine.WARM_UP_STEPS
        self.captured.append(part)

    def restore(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


class _Numbers:
    """Draws the same all the time."""

    def draw(self, _rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"whole": np.zeros(1, dtype=np.int64), "fractional": np.zeros(1)}


@pytest.mark.parametrize("begun", [0, 7])
@pytest.mark.parametrize("left", [1, 3, 4, 9])
def test_however_few_steps_are_left_the_last_is_validated(
    begun: int, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "Learner", _OnGpu)
    settings = OptimiserSettings(steps=begun + left, validate_every=100)
    validated: list[tuple[int, list[str]]] = []
    engine.run_stage(
        SimpleNamespace(), _Numbers(), (0,), settings,  # type: ignore[arg-type]  # enough of a task
        lambda learner: validated.append((learner.steps, learner.captured)),  # type: ignore[arg-type]
        workers=0, capture=True, state={"steps": begun},
    )  # fmt: skip
    assert validated == [(begun + left, list(engine.PARTS) if left > 3 else [])]
