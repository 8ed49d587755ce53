"""Which parameters each optimiser gets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.training.optimisers import optimisers_for
from model.training.settings import OptimiserSettings


def _module() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 16, 3), nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 4))


def _shapes(optimiser: torch.optim.Optimizer) -> set[tuple[int, ...]]:
    return {tuple(value.shape) for group in optimiser.param_groups for value in group["params"]}


def test_muon_gets_the_matrices_and_adamw_the_rest() -> None:
    adamw, muon = optimisers_for(_module(), OptimiserSettings(optimiser="muon"))
    assert isinstance(muon, torch.optim.Muon)
    assert _shapes(muon) == {(32, 16)}
    assert _shapes(adamw) == {(16, 2, 3), (16,), (32,), (4, 32), (4,)}


def test_adamw_alone_gets_everything() -> None:
    (adamw,) = optimisers_for(_module(), OptimiserSettings())
    assert isinstance(adamw, torch.optim.AdamW)
    assert len(adamw.param_groups[0]["params"]) == len(list(_module().parameters()))


def test_frozen_parameters_are_left_out() -> None:
    module = _module()
    module[1].requires_grad_(False)
    (adamw,) = optimisers_for(module, OptimiserSettings(optimiser="muon"))
    assert (32, 16) not in _shapes(adamw)
    with pytest.raises(ValueError, match="every parameter is frozen"):
        optimisers_for(module.requires_grad_(False), OptimiserSettings())


def test_an_unknown_optimiser_is_refused() -> None:
    with pytest.raises(ValueError, match="optimiser='sgd': expected 'adamw' or 'muon'"):
        OptimiserSettings(optimiser="sgd")
