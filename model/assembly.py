"""Building networks whose weights are known, and putting the weights in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model.fetch import CheckpointError

_Module = TypeVar("_Module", bound=nn.Module)


class _WithoutRandomFill(TorchFunctionMode):
    """Skips random initialisation, most of the time of building a network whose weights follow.

    It holds for this thread alone. ``normal_`` as a method is left alone: torch's truncated normal
    draws with it until all values are in range.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        method = name in ("uniform_", "erfinv_", "kaiming_uniform_", "kaiming_normal_")
        if method or (name == "normal_" and "tensor" in options):
            return args[0] if args else options["tensor"]
        return func(*args, **options)


def build(constructor: Callable[[], _Module]) -> _Module:
    """Calls a network's constructor without the random draws; every parameter must then be set.

    Raises:
        CheckpointError: there is no such network, or it does not fit into memory.
    """
    try:
        with _WithoutRandomFill():
            return constructor()
    except (ArithmeticError, IndexError, MemoryError, RuntimeError, TypeError, ValueError) as err:
        raise CheckpointError(f"no network can be built like this: {err}") from err


def own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors out of the file that they are mapped from.

    The file may then change or go. The copies are aligned, too, which makes results independent of
    the file's format: matrix products round differently at odd addresses.
    """
    whole = torch.contiguous_format
    return {key: value.clone(memory_format=whole) for key, value in tensors.items()}


def assign(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts checked tensors in the place of a module's, in the module's types, without a copy."""
    present = module.state_dict()
    typed = {key: value.to(present[key].dtype) for key, value in tensors.items()}
    left = module.load_state_dict(typed, strict=False, assign=True).missing_keys
    unset = set(left) & {name for name, _ in module.named_parameters()}
    if unset:
        raise CheckpointError(f"parameters without a value: {sorted(unset)[:10]}")
