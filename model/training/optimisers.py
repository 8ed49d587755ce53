"""The optimisers of a run.

Source of Muon: Jordan et al. 2024; scaled to AdamW's step as in Liu et al. 2025 (arXiv 2502.16982),
so that both take the same learning rate.
"""

from __future__ import annotations

import torch
from torch import nn

from model.training.settings import OptimiserSettings

_NARROWEST = 16
"""Narrower matrices, such as the tables of relative positions, have no spectrum to even out."""


def optimisers_for(module: nn.Module, settings: OptimiserSettings) -> list[torch.optim.Optimizer]:
    """One optimiser, or with ``muon`` one for the matrices and one for everything else.

    Args:
        module: its trainable parameters are optimised.
        settings: which optimiser, its learning rate and weight decay.

    Raises:
        ValueError: nothing of the module is trainable.
    """
    trainable = [value for value in module.parameters() if value.requires_grad]
    if not trainable:
        raise ValueError("nothing to train: every parameter is frozen")
    muon = settings.optimiser == "muon"
    matrices = [value for value in trainable if muon and _is_matrix(value)]
    others = [value for value in trainable if not (muon and _is_matrix(value))]
    rate, decay = settings.learning_rate, settings.weight_decay
    found: list[torch.optim.Optimizer] = []
    if others:
        found.append(torch.optim.AdamW(others, lr=rate, weight_decay=decay))
    if matrices:
        found.append(
            torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        )
    return found


def _is_matrix(value: nn.Parameter) -> bool:
    return value.ndim == 2 and min(value.shape) >= _NARROWEST
