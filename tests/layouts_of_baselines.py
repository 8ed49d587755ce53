"""Checkpoints of the baselines' published shapes, whole and spoiled."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Spoiled(enum.Enum):
    """A way in which one tensor of a file can be wrong."""

    MISSING = enum.auto()
    RENAMED = enum.auto()
    MISSHAPEN = enum.auto()
    OF_INTEGERS = enum.auto()
    WITH_NAN = enum.auto()
    ONE_TOO_MANY = enum.auto()


def parsed(layout: Any) -> dict[str, tuple[int, ...]]:
    """Keys and shapes, as ``golden/run_baselines.py`` stores them."""
    shapes = {}
    for line in str(layout).splitlines():
        key, _, sizes = line.partition(" ")
        shapes[key] = tuple(int(size) for size in sizes.split(",") if size)
    return shapes


def hollow(layout: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Zeros of these shapes, of one element of memory each."""
    return {
        key: torch.zeros(
            (), dtype=torch.int64 if key.endswith("num_batches_tracked") else torch.float32
        ).expand(shape)
        for key, shape in layout.items()
    }


def spoil(state: Mapping[str, Tensor], key: str, how: Spoiled) -> dict[str, Tensor]:
    """The state with one thing wrong at ``key``."""
    changed = dict(state)
    value = changed[key]
    if how is Spoiled.MISSING:
        del changed[key]
    elif how is Spoiled.RENAMED:
        changed[f"{key}_orig"] = changed.pop(key)
    elif how is Spoiled.MISSHAPEN:
        changed[key] = torch.zeros(*value.shape, 2)
    elif how is Spoiled.OF_INTEGERS:
        changed[key] = value.long()
    elif how is Spoiled.WITH_NAN:
        changed[key] = torch.full(value.shape, float("nan"))
    else:
        changed[f"{key}.extra"] = torch.zeros(1)
    return changed
