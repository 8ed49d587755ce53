"""Checkpoints in the two published layouts, filled by formula: the stand-ins for the real files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from golden import synth

DATA = Path(__file__).parent / "data"


class TensorSpec(NamedTuple):
    """What a checkpoint holds under one key."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def layout(namespace: str) -> dict[str, TensorSpec]:
    """The published keys, in order: ``clap`` has 504 of them, ``clapsep`` 300."""
    with (DATA / f"keys_{namespace}.json").open() as file:
        entries = json.load(file)
    return {
        key: TensorSpec(getattr(torch, dtype), tuple(shape))
        for key, (dtype, shape) in entries.items()
    }


def formula_state(
    namespace: str,
    *,
    prefix: str = "",
    starts_with: Sequence[str] = ("",),
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Tensor]:
    """The drawn tensors of one checkpoint, under their published keys without ``module.``.

    Left out are what a constructor computes and the second copy of CLAP's biases.

    Args:
        namespace: ``clap`` or ``clapsep``.
        prefix: empty for the first set of weights, ``B:`` for the second.
        starts_with: only keys that start with one of these (the text tower takes seconds to draw).
        shapes: keys and shapes of another (small) network; the published ones by default.
    """
    if shapes is None:
        shapes = {key: spec.shape for key, spec in layout(namespace).items()}
    return {
        key: torch.from_numpy(synth.tensor(namespace, key, shape, prefix))
        for key, shape in shapes.items()
        if key.startswith(tuple(starts_with))
        and not key.startswith("clap_model.")
        and not synth.is_skipped(key)
    }


def hollow_state(namespace: str) -> dict[str, Tensor]:
    """Every published key with its shape and type: zeros that take one element of memory each."""
    return {
        key: torch.zeros((), dtype=spec.dtype).expand(spec.shape)
        for key, spec in layout(namespace).items()
    }
