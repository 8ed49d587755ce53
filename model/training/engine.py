"""The step that trains, as two CUDA graphs on a GPU, and what it updates.

A step launches thousands of small operations: on a GPU they take longer to launch than to run. All
shapes are fixed and nothing is read back, so that the whole step (sound, forward, backward,
clipping, optimiser, moving average) is captured once and replayed. Elsewhere the same functions run
as they are.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from model.devices import captured, on_stream
from model.training.drawing import Batches, Layout, Planner
from model.training.settings import OptimiserSettings

logger = logging.getLogger(__name__)

_NARROWEST = 16
"""Narrower matrices, such as the tables of relative positions, have no spectrum to even out."""
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
PARTS = ("make", "learn")
WARM_UP_STEPS = 3
"""Steps on a stream of their own before anything is captured."""
_WARM_UP_SHARE = 0.01
"""Of the learning rate, in the steps before a capture."""
_SLOTS = 3
"""Batches on their way to the device: how far the host runs ahead of it."""

Tensors = dict[str, Tensor]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """The processes that train one model together, and which of them this one is.

    Each makes its own part of every batch; gradients and batch statistics are those of the whole
    batch, so that the networks stay the same in all of them. The first validates and writes.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one writes."""
        return self.rank == 0

    def part_of(self, batch_size: int, name: str) -> int:
        """What this process makes of a batch.

        Raises:
            ValueError: the batch cannot be divided evenly.
        """
        if batch_size % self.count:
            raise ValueError(f"{name}={batch_size} cannot be divided among {self.count} processes")
        return batch_size // self.count

    def share(self, *modules: nn.Module) -> None:
        """Gives parameters and buffers of the first process to all."""
        if self.count > 1:
            for module in modules:
                for value in module.state_dict().values():
                    dist.broadcast(value, 0)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Puts the mean over all processes in the place of each tensor."""
        if self.count == 1:
            return
        values = list(tensors)
        joined = torch.cat([value.detach().flatten() for value in values])
        dist.all_reduce(joined)
        joined /= self.count
        sizes = [value.numel() for value in values]
        for value, mean in zip(values, joined.split(sizes), strict=True):
            value.detach().copy_(mean.view_as(value))


def join(device: str, *, capture: bool) -> tuple[Processes, str]:
    """Joins the processes that ``torchrun`` started; without it there is one.

    Args:
        device: a torch device; ``cuda`` becomes the GPU of this process.
        capture: whether steps are to be captured as CUDA graphs.

    Returns:
        The processes, and the device of this one.

    Raises:
        ValueError: there are fewer GPUs than processes, one GPU is named, or a capture is wanted.
    """
    if not dist.is_torchelastic_launched():
        return Processes(), device
    found = Processes(rank=int(os.environ["RANK"]), count=int(os.environ["WORLD_SIZE"]))
    on_gpu = device.startswith("cuda")
    if on_gpu:
        place, here = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if device != "cuda":
            raise ValueError(
                f"--device {device}: under torchrun each process takes a GPU; give cuda"
            )
        if int(os.environ["LOCAL_WORLD_SIZE"]) > here:
            raise ValueError(f"torchrun: more processes than the {here} GPUs of this machine")
        if capture and found.count > 1:
            raise ValueError(
                "several processes do not train in CUDA graphs: give --no_capture, or one process"
            )
        device = f"cuda:{place}"
        torch.cuda.set_device(place)
    if found.count > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo")
    return found, device


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation by the statistics of all processes; of what needs no gradient.

    ``torch.nn.SyncBatchNorm`` does the same on GPUs alone, and for inputs with gradients.
    """

    processes = Processes()

    def forward(self, x: Tensor) -> Tensor:
        """float[B, C, H, W], normalised; as ``nn.BatchNorm2d`` where ``x`` needs a gradient."""
        if not self.training or x.requires_grad:
            return super().forward(x)
        with torch.no_grad():
            image = x.float()
            mean = image.mean((0, 2, 3))
            self.processes.average([mean])
            variance = (image - mean[:, None, None]).square().mean((0, 2, 3))
            self.processes.average([variance])
            count = x.numel() // x.shape[1] * self.processes.count
            share = self.momentum if self.momentum is not None else 0.1
            if self.running_mean is not None and self.running_var is not None:
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * (count / max(count - 1, 1)), share)
        return F.batch_norm(x, mean, variance, self.weight, self.bias, False, 0.0, self.eps)


def share_statistics(module: nn.Module, processes: Processes) -> None:
    """Lets batch norms of images see the statistics of all processes."""
    for each in module.modules():
        if type(each) is nn.BatchNorm2d:
            each.__class__ = SharedBatchNorm
            each.processes = processes  # type: ignore[assignment]


_Network = TypeVar("_Network", bound=nn.Module)


class CaptureError(RuntimeError):
    """A part of a step that cannot be captured as a CUDA graph."""

    def __init__(self, part: str, reason: BaseException) -> None:
        """Names the part, ``make`` or ``learn``."""
        super().__init__(
            f"capture of {part} failed: {type(reason).__name__}: {reason}; train with --no_capture"
        )


class Optimiser:
    """Muon for matrices, all of one shape at a time, and AdamW for the rest, or for everything.

    The learning rate is a tensor on the device, so that a captured step follows it.

    Source:
        Jordan et al. 2024 (Muon); its step scaled as in Liu et al. 2025, arXiv 2502.16982.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: OptimiserSettings,
        rates: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Optimises the trainable parameters of a module, where they are.

        Args:
            module: on its device.
            settings: see there.
            rates: shares of the learning rate, by what the names of parameters begin with.
        """
        named = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
        self.parameters = [value for _, value in named]
        self._names = [name for name, _ in named]
        self._settings = settings
        device = self.parameters[0].device
        on_gpu = device.type == "cuda"
        self.rate = torch.zeros((), device=device)
        self._dtype = torch.bfloat16 if on_gpu else torch.float32
        self._groups: dict[tuple[int, int, float], list[nn.Parameter]] = {}
        rest: dict[float, list[nn.Parameter]] = {}
        for name, value in named:
            share = next((rates[first] for first in rates if name.startswith(first)), 1.0)
            if settings.matrices == "muon" and _is_matrix(value):
                low, high = sorted(value.shape)
                self._groups.setdefault((low, high, share), []).append(value)
            else:
                rest.setdefault(share, []).append(value)
        self._momenta = {
            (low, high, share): torch.zeros(len(group), low, high, device=device)
            for (low, high, share), group in self._groups.items()
        }
        self._rates = {share: torch.zeros_like(self.rate) for share in rest}
        self._adam = torch.optim.AdamW(
            [{"params": values, "lr": self._rates[share]} for share, values in rest.items()],
            weight_decay=settings.weight_decay,
            fused=True,
            capturable=on_gpu,
        )

    def forget(self) -> None:
        """Drops the gradients of the step before."""
        for value in self.parameters:
            value.grad = None

    def clip(self) -> Tensor:
        """Scales the gradients to a norm of at most ``clip_norm``; returns the norm before.

        Raises:
            ValueError: a trainable parameter has no gradient.
        """
        idle = [
            name
            for name, value in zip(self._names, self.parameters, strict=True)
            if value.grad is None
        ]
        if idle:
            raise ValueError(f"parameters without a gradient, to be frozen: {', '.join(idle)}")
        norm: Tensor = nn.utils.clip_grad_norm_(
            self.parameters, self._settings.clip_norm, foreach=True
        )
        return norm

    def step(self) -> None:
        """Moves the parameters by their gradients."""
        for share, rate in self._rates.items():
            torch.mul(self.rate, share, out=rate)
        self._adam.step()
        if self._groups:
            self._step_matrices()

    @torch.no_grad()
    def _step_matrices(self) -> None:
        momentum = self._settings.momentum
        for key, group in self._groups.items():
            low, high, share = key
            rate, matrices = self.rate * share, list[Tensor](group)
            upright = [value.shape == (low, high) for value in matrices]
            gradient = torch.stack(
                [
                    _gradient(value) if same else _gradient(value).mT
                    for value, same in zip(group, upright, strict=True)
                ]
            )
            mean = self._momenta[key]
            mean.lerp_(gradient, 1.0 - momentum)
            even = orthogonalised(torch.lerp(gradient, mean, momentum).to(self._dtype)).float()
            even *= rate * (-0.2 * math.sqrt(high))
            moves = [
                move if same else move.mT
                for move, same in zip(even.unbind(0), upright, strict=True)
            ]
            torch._foreach_mul_(matrices, 1.0 - rate * self._settings.weight_decay)
            torch._foreach_add_(matrices, moves)

    def state(self) -> dict[str, Any]:
        """What goes on in a resumed run."""
        return {"adam": self._adam.state_dict(), "momenta": self._momenta}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state`."""
        self._adam.load_state_dict(state["adam"])
        for group, rate in zip(self._adam.param_groups, self._rates.values(), strict=True):
            group["lr"] = rate
        for key, momentum in state["momenta"].items():
            self._momenta[key].copy_(momentum)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Brings all singular values near 1, by five Newton-Schulz steps; float[N, m, n], m ≤ n."""
    first, third, fifth = _NEWTON_SCHULZ
    even: Tensor = matrices / (
        torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True) + 1e-7
    )
    for _ in range(5):
        square = even @ even.mT
        mixed = torch.baddbmm(square, square, square, beta=third, alpha=fifth)
        even = torch.baddbmm(even, mixed, even, beta=first)
    return even


def _is_matrix(value: Tensor) -> bool:
    return value.ndim == 2 and min(value.shape) >= _NARROWEST


def _gradient(value: Tensor) -> Tensor:
    if value.grad is None:
        raise ValueError("a matrix has no gradient")
    return value.grad


class MovingAverage(Generic[_Network]):
    """A copy of a network that follows its weights and statistics.

    ``torch.optim.swa_utils.AveragedModel`` does the same and reads a counter back at every update,
    for which a captured step cannot wait: here the counter stays on the device.
    """

    def __init__(self, module: _Network, decay: float) -> None:
        """Starts from the weights as they are; the decay rises to its value in the beginning."""
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._decay = decay
        mine, theirs = self.module.state_dict(), module.state_dict()
        names = [name for name, value in mine.items() if value.is_floating_point()]
        self._averages = [mine[name] for name in names]
        self._current = [theirs[name].detach() for name in names]
        self.count = torch.zeros((), device=self._averages[0].device)

    @torch.no_grad()
    def update(self) -> None:
        """Moves the averages towards the weights."""
        self.count += 1
        share = 1.0 - torch.clamp((1.0 + self.count) / (10.0 + self.count), max=self._decay)
        moves = torch._foreach_sub(self._current, self._averages)
        torch._foreach_mul_(moves, share)
        torch._foreach_add_(self._averages, moves)


class Task(Protocol):
    """What a stage trains."""

    step_module: nn.Module
    """Its ``forward(made)`` gives the loss and figures to follow, float32[len(figures)]."""
    average: MovingAverage[Any]
    figures: tuple[str, ...]
    rates: Mapping[str, float]
    """See :class:`Optimiser`."""

    def make(self, inputs: Tensors) -> Tensors:
        """What a step learns from, made of a drawn batch; without gradients, in fixed shapes."""


class Learner:
    """Steps of a task.

    Args:
        task: what is trained.
        layout: of its batches.
        settings: of its optimiser.
        processes: those that train it together.
    """

    def __init__(
        self,
        task: Task,
        layout: Layout,
        settings: OptimiserSettings,
        processes: Processes = Processes(),
    ) -> None:
        self._task, self._processes = task, processes
        if processes.count > 1:
            processes.share(task.step_module, task.average.module)
            share_statistics(task.step_module, processes)
        self.optimiser = Optimiser(task.step_module, settings, task.rates)
        device = self.optimiser.rate.device
        self._device = device
        sizes = {True: 0, False: 0}
        for whole, shape in layout.shapes.values():
            sizes[whole] += math.prod(shape)
        self._inputs = (
            torch.zeros(sizes[True], dtype=torch.int64, device=device),
            torch.zeros(sizes[False], device=device),
        )
        self._views = layout.views(*self._inputs)
        self._made: Tensors = {}
        self._totals = torch.zeros(len(task.figures) + 2, device=device)
        self._graphs: dict[str, torch.cuda.CUDAGraph] = {}
        self._slots: list[tuple[Tensor, Tensor, torch.cuda.Event]] = []
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._slots = [
                (
                    torch.empty_like(self._inputs[0], device="cpu", pin_memory=True),
                    torch.empty_like(self._inputs[1], device="cpu", pin_memory=True),
                    torch.cuda.Event(),
                )
                for _ in range(_SLOTS)
            ]
        self.steps = 0
        self.warm = 0

    @property
    def captured(self) -> tuple[str, ...]:
        """The parts that are CUDA graphs by now."""
        return tuple(self._graphs)

    def run(self, batch: tuple[npt.NDArray[Any], npt.NDArray[Any]], rate: float) -> None:
        """One step; on a GPU it is begun, and awaited some steps later."""
        slot = self._slots[self.steps % _SLOTS] if self._slots else None
        if slot is None:
            for row, values in zip(self._inputs, batch, strict=True):
                row.copy_(torch.from_numpy(values))
        else:
            slot[2].synchronize()
            for row, pinned, values in zip(self._inputs, slot[:2], batch, strict=True):
                pinned.copy_(torch.from_numpy(values))
                row.copy_(pinned, non_blocking=True)
        self.optimiser.rate.fill_(rate)
        if self._slots and self.warm < WARM_UP_STEPS:
            self._warm_up()
        else:
            for part in PARTS:
                self.play(part)
        if slot is not None:
            slot[2].record()
        self.steps += 1
        self.warm += 1

    def figures(self) -> dict[str, float]:
        """Means since the last call, with the norm of the gradient; waits for the device."""
        *sums, norms, count = self._totals.tolist()
        self._totals.zero_()
        names = (*self._task.figures, "gradient")
        return {
            name: value / max(count, 1.0) for name, value in zip(names, (*sums, norms), strict=True)
        }

    def play(self, part: str) -> None:
        """Does a part of a step, of :data:`PARTS`, with the batch that is there."""
        if part in self._graphs:
            self._graphs[part].replay()
        else:
            {"make": self._make, "learn": self._learn}[part]()

    def _warm_up(self) -> None:
        """A step on a stream of its own, as a capture will be: libraries set themselves up."""
        for part in (self._make, self._learn):
            on_stream(self._stream, part)

    def capture(self, part: str) -> None:
        """Makes a part, of :data:`PARTS`, a CUDA graph; call it after the warm-up.

        Raises:
            CaptureError: it cannot be captured.
        """
        function = {"make": self._make, "learn": self._learn}[part]
        self.optimiser.forget()
        try:
            self._graphs[part], _ = captured(function, self._stream)
        except Exception as err:
            raise CaptureError(part, err) from err
        logger.info("captured %s as a CUDA graph", part)

    @torch.no_grad()
    def _make(self) -> None:
        made = self._task.make(self._views)
        if not self._made:
            self._made = {name: torch.empty_like(value) for name, value in made.items()}
        for name, value in made.items():
            self._made[name].copy_(value)

    def _learn(self) -> None:
        self._task.step_module.train()
        self.optimiser.forget()
        loss, figures = self._task.step_module(self._made)
        loss.backward()
        self._processes.average(self._shared())
        norm = self.optimiser.clip()
        self.optimiser.step()
        self._task.average.update()
        one = torch.ones_like(norm)[None]
        self._totals += torch.cat([figures.detach(), norm.detach()[None], one])

    def _shared(self) -> Iterator[Tensor]:
        """Gradients, and the statistics of batch norms."""
        for value in self.optimiser.parameters:
            if value.grad is not None:
                yield value.grad
        for name, statistics in self._task.step_module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                yield statistics

    def state(self) -> dict[str, Any]:
        """What a resumed run goes on from: networks, optimiser, average, random numbers."""
        return {
            "steps": self.steps,
            "module": self._task.step_module.state_dict(),
            "average": self._task.average.module.state_dict(),
            "count": self._task.average.count,
            "optimiser": self.optimiser.state(),
            "random": torch.get_rng_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state`; on a CPU bit for bit as if it had not been interrupted."""
        self.steps = state["steps"]
        self._task.step_module.load_state_dict(state["module"])
        self._task.average.module.load_state_dict(state["average"])
        self._task.average.count.copy_(state["count"])
        self.optimiser.restore(state["optimiser"])
        torch.set_rng_state(state["random"].cpu())


def rate_at(settings: OptimiserSettings, step: int) -> float:
    """The learning rate: rises over the warm-up, holds, and falls linearly to zero."""
    left, falling = 1.0 - step / settings.steps, 1.0 - settings.held_share
    warm = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    return settings.learning_rate * warm * (left / falling if left < falling else 1.0)


def run_stage(
    task: Task,
    planner: Planner,
    seed: tuple[int, ...],
    settings: OptimiserSettings,
    validate: Callable[[Learner], None],
    *,
    workers: int,
    capture: bool,
    state: Mapping[str, Any] | None = None,
    processes: Processes = Processes(),
) -> None:
    """Trains a task from its beginning, or from where it was, to its last step.

    Several processes draw each their own part of the batches, and noise of their own.

    Args:
        task: what is trained.
        planner: draws its batches.
        seed: of the draws.
        settings: of the optimiser.
        validate: called every ``validate_every`` steps and at the end, in the first process.
        workers: processes that draw ahead.
        capture: capture the step as CUDA graphs, on a GPU, if more than the warm-up is left.
        state: of :meth:`Learner.state`, to go on from.
        processes: those that train together.

    Raises:
        CaptureError: the step cannot be captured.
    """
    layout = Layout.of(planner.draw(np.random.default_rng(seed)))
    own_seed = seed if processes.count == 1 else (*seed, processes.rank)
    batches = Batches(planner, layout, own_seed)
    learner = Learner(task, layout, settings, processes)
    if state is not None:
        learner.restore(state)
    if processes.count > 1:
        rng = np.random.default_rng([*own_seed, learner.steps])
        torch.manual_seed(int(rng.integers(2**31)))
    left = settings.steps - learner.steps
    if learner.optimiser.rate.is_cuda and capture and left > WARM_UP_STEPS:
        while learner.warm < WARM_UP_STEPS:
            learner.run(batches[learner.steps], settings.learning_rate * _WARM_UP_SHARE)
        for part in PARTS:
            learner.capture(part)
    ahead = batches.ahead(learner.steps, workers)
    train(learner, ahead, settings, lambda: validate(learner) if processes.is_first else None)


def train(
    learner: Learner,
    batches: Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]],
    settings: OptimiserSettings,
    validate: Callable[[], None],
) -> None:
    """Takes the steps that are left.

    Args:
        learner: does the steps.
        batches: one a step, from the learner's next on.
        settings: of the optimiser.
        validate: called every ``validate_every`` steps and at the end.
    """
    while learner.steps < settings.steps:
        learner.run(next(batches), rate_at(settings, learner.steps))
        if learner.steps % settings.validate_every == 0 or learner.steps == settings.steps:
            validate()
