"""Operations, bytes and products of a pass through the network and of a training step.

    python bench/counts.py                 # a step of the bundled size, 256 mixtures, bfloat16
    python bench/counts.py --passes        # passes of 32 clips, both sizes, bfloat16

Nothing is run: forward and backward are walked on torch's ``meta`` device, where tensors have
shapes and types and no values. A batch of any size is counted in seconds, and an operation that
reads a value, for which a GPU would be waited for, is an error. CUDA's rules for bfloat16 are
played there, as are its fused attention kernels; views are not counted. Clipping, optimiser and
moving average do not depend on the batch, and are counted as they run on a CPU.

Bytes are those of each operation's arguments and results. What is taken at least, as operations are
now, follows from a card's rates: each operation the longer of moving its bytes and computing its
products, one after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from model.checkpoints.loading import build
from model.config import MINI, PUBLISHED, ClapSepConfig
from model.systems import Condition
from model.systems.clapsep.network import ClapSep
from model.training.drawing import QUERIES
from model.training.engine import MovingAverage, Optimiser
from model.training.separation import SeparationStep
from model.training.settings import OptimiserSettings, SeparatorTraining

BYTES_PER_S, FLOP_PER_S = 4.8e12, 989e12
"""An H200's memory and its dense bfloat16 products, by its data sheet."""
_WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal")
_NOT_READ = ("new_", "fill_", "zero_")
"""Arguments that only say what the result is like."""
_VIEWS = ("empty", "empty_like", "detach", "transpose_", "squeeze_", "unsqueeze_")
"""Nothing is moved by them, though torch does not call them views."""


@dataclasses.dataclass(slots=True)
class Sum:
    """What the calls of one operation come to."""

    calls: int = 0
    moved: float = 0.0
    flop: float = 0.0
    least_s: float = 0.0


class Counted(TorchDispatchMode):
    """Counts operations that are no views, and those for which a GPU would be waited for."""

    def __init__(self) -> None:
        """Nothing is counted yet."""
        super().__init__()
        self.sums: dict[str, Sum] = {}
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Runs an operation and counts it."""
        results = function(*args, **(kwargs or {}))
        packet = function.overloadpacket
        name = packet.__name__
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        made = [each for each in tree_leaves(results) if isinstance(each, Tensor)]
        if name in _WAITING or len({each.device for each in (*tensors, *made)}) > 1:
            self.waits[name] += 1
        if _is_view(function):
            return results
        flop = 0.0
        if packet in flop_registry:
            flop = float(flop_registry[packet](*args, **(kwargs or {}), out_val=results))
        read = () if name.startswith(_NOT_READ) or name.endswith("_like") else tensors
        moved = float(sum(_bytes(each) for each in (*read, *made)))
        entry = self.sums.setdefault(name, Sum())
        entry.calls += 1
        entry.moved += moved
        entry.flop += flop
        entry.least_s += max(moved / BYTES_PER_S, flop / FLOP_PER_S)
        return results

    @property
    def total(self) -> Sum:
        """All operations together."""
        each = self.sums.values()
        return Sum(
            calls=sum(one.calls for one in each),
            moved=sum(one.moved for one in each),
            flop=sum(one.flop for one in each),
            least_s=sum(one.least_s for one in each),
        )


def _is_view(function: Any) -> bool:
    name = function.overloadpacket.__name__
    return function.is_view or "view" in name or "alias" in name or name in _VIEWS


def _bytes(tensor: Tensor) -> int:
    """What of a tensor is in memory: an expanded one is read from a cache."""
    number = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        number *= size if stride else 1
    return number


_LOWER = (
    F.linear, F.conv1d, F.conv2d, F.conv_transpose2d, torch.matmul, Tensor.matmul,
    Tensor.__matmul__, torch.bmm, torch.baddbmm,
)  # fmt: skip
_FLOAT = (F.layer_norm, torch.layer_norm, F.softmax, torch.softmax, Tensor.softmax)


class CudaBfloat16(TorchFunctionMode):
    """CUDA's autocast on another device: which operations take bfloat16, which float32.

    A parameter is rounded once in a step, as autocast remembers it. Attention goes to the kernels
    that CUDA has for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._inside = False
        self._rounded: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def autocast(self, *_: object, enabled: bool = True, **__: object) -> Iterator[None]:
        """Stands in for ``torch.autocast``."""
        before, self._inside = self._inside, enabled
        yield
        self._inside = before

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Runs a function with its arguments in the type that CUDA would take."""
        options = kwargs or {}
        if not self._inside:
            return function(*args, **options)
        if function is F.scaled_dot_product_attention:
            query, key, value = args
            mask, scale = options.get("attn_mask"), options["scale"]
            operators = torch.ops.aten
            if mask is None:
                found = operators._scaled_dot_product_flash_attention(
                    query, key, value, scale=scale
                )
            else:
                found = operators._scaled_dot_product_efficient_attention(
                    query, key, value, mask, True, scale=scale
                )
            return found[0]
        wanted = None
        if function in _LOWER:
            wanted = torch.bfloat16
        elif function in _FLOAT:
            wanted = torch.float32
        if wanted is not None:
            args = tuple(self._in(each, wanted) for each in args)
            options = {name: self._in(each, wanted) for name, each in options.items()}
        return function(*args, **options)

    def inside(self, *_: object) -> bool:
        """Stands in for ``torch.is_autocast_enabled``."""
        return self._inside

    def _in(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not isinstance(value, torch.nn.Parameter):
            return value.to(dtype)
        if id(value) not in self._rounded:
            self._rounded[id(value)] = value.to(dtype)
        return self._rounded[id(value)]


@contextlib.contextmanager
def as_on_cuda() -> Iterator[CudaBfloat16]:
    """Has what the product asks of autocast answered as on CUDA."""
    rules = CudaBfloat16()
    with (
        mock.patch.object(torch, "autocast", rules.autocast),
        mock.patch.object(torch, "is_autocast_enabled", rules.inside),
        mock.patch.object(torch, "get_autocast_dtype", return_value=torch.bfloat16),
        rules,
    ):
        yield rules


def forward_pass(config: ClapSepConfig, batch: int) -> Counted:
    """A pass of clips with one query each, in bfloat16."""
    network = build(lambda: ClapSep(config, "bf16")).to("meta").prepare()
    mixture = torch.empty(batch, network.window_samples, device="meta")
    query = torch.empty(batch, network.embedding_dim, device="meta")
    condition = Condition(positive=query, negative=query)
    counted = Counted()
    with as_on_cuda(), torch.no_grad():
        network.separate(mixture, condition)  # constants
        with counted:
            network.separate(mixture, condition)
    return counted


def step_module(batch: int, config: ClapSepConfig = MINI) -> SeparationStep:
    """A network and its loss, as they are trained in bfloat16."""
    separator = ClapSep(config, "bf16").requires_grad_(True)
    separator.encoder.norm.requires_grad_(False)
    settings = dataclasses.replace(SeparatorTraining(), batch_size=batch)
    return SeparationStep(separator, settings).train()


def batch_of(batch: int, device: str, config: ClapSepConfig = MINI) -> dict[str, Tensor]:
    """What a step learns from: noise."""
    samples, dim = config.signal.window_samples, config.clap.embedding_dim
    asked = QUERIES * batch
    shapes = {
        "mixture": (batch, samples),
        "targets": (asked, samples),
        "positive": (asked, dim),
        "negative": (asked, dim),
    }
    return {name: 0.06 * torch.randn(shape, device=device) for name, shape in shapes.items()}


def network(batch: int) -> tuple[Counted, Counted]:
    """Forward and backward of a batch."""
    module = step_module(batch).to("meta")
    made = batch_of(batch, "meta")
    forward, backward = Counted(), Counted()
    with as_on_cuda() as rules:
        module(made)  # constants
        rules._rounded.clear()
        with forward:
            loss, _ = module(made)
    with backward:
        loss.backward()
    return forward, backward


def optimiser() -> tuple[Counted, Counted]:
    """Clipping and the optimiser's step; and the moving average."""
    module = step_module(1)
    settings = OptimiserSettings()
    updates, average = Optimiser(module, settings), MovingAverage(module.separator, 0.999)
    for parameter in updates.parameters:
        parameter.grad = torch.ones_like(parameter)
    moving, averaging = Counted(), Counted()
    updates.clip()
    updates.step()  # makes the state
    with moving:
        updates.clip()
        updates.step()
    with averaging:
        average.update()
    return moving, averaging


def report(parts: dict[str, Counted], top: int) -> None:
    """A line for each part and, of each, for the operations that move most."""
    print(f"{'':28}{'operations':>11}{'waits':>7}{'GB':>9}{'TFLOP':>8}{'least ms':>10}")

    def line(name: str, found: Sum, waits: int | str = "") -> None:
        print(
            f"{name:28}{found.calls:11}{waits:>7}{found.moved / 1e9:9.2f}{found.flop / 1e12:8.2f}"
            f"{1e3 * found.least_s:10.2f}"
        )

    for name, counted in parts.items():
        line(name, counted.total, sum(counted.waits.values()))
        most = sorted(counted.sums.items(), key=lambda each: -each[1].least_s)
        for operation, found in most[:top]:
            line(f"  {operation[:25]}", found)
    sums = [counted.total for counted in parts.values()]
    whole = Sum(*(sum(getattr(one, name) for one in sums) for name in Sum.__slots__))
    line("together", whole, sum(sum(counted.waits.values()) for counted in parts.values()))
    print(
        f"of which products alone {1e3 * whole.flop / FLOP_PER_S:.2f} ms, "
        f"bytes alone {1e3 * whole.moved / BYTES_PER_S:.2f} ms"
    )


def run(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passes", action="store_true", help="passes instead of a step")
    parser.add_argument("--batch_size", type=int, help="32 clips in a pass, 256 mixtures in a step")
    parser.add_argument("--top", type=int, default=12, help="operations shown of each part")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    batch = options.batch_size or (32 if options.passes else 256)
    print(f"torch {torch.__version__}, bfloat16; {BYTES_PER_S / 1e12:g} TB/s,", end=" ")
    print(f"{FLOP_PER_S / 1e12:g} TFLOP/s")
    if options.passes:
        for name, config in (("published size", PUBLISHED), ("bundled size", MINI)):
            print(f"a pass of {batch} clips, {name}")
            report({"forward": forward_pass(config, batch)}, options.top)
        return
    print(f"a training step of {batch} mixtures with {QUERIES} queries, bundled size")
    forward, backward = network(batch)
    moving, averaging = optimiser()
    parts = {
        "forward": forward, "backward": backward, "clip, optimiser": moving, "average": averaging,
    }  # fmt: skip
    report(parts, options.top)


if __name__ == "__main__":
    run()
