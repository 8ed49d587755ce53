"""The loop both stages share: seeded steps, checkpoints that resume exactly, validation, curves.

Every random draw of a step follows from (seed, step, process), so that a resumed run repeats an
undisturbed one bit for bit and no state of a data loader has to be kept.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from model.training import curves
from model.training.optimisers import optimisers_for
from model.training.settings import OptimiserSettings

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"
_PLATEAU_PATIENCE = 5
_PLATEAU_FACTOR = 0.3
_PLATEAU_FLOOR = 5e-6


class Task(Protocol):
    """What a stage trains."""

    step_module: nn.Module
    """Its ``forward(batch)`` is the loss; its trainable parameters are optimised."""

    def draw(self, rng: np.random.Generator, batch_size: int) -> Any:
        """A batch."""

    def validate(self) -> dict[str, float]:
        """Figures on held-out data; ``score`` is the one to maximise."""


@dataclasses.dataclass(slots=True)
class _Progress:
    step: int = 0
    best: float = float("-inf")
    stale: int = 0
    learning_rate: float = 0.0


class Trainer:
    """Runs a task to its last step, from the newest checkpoint in ``folder`` if there is one."""

    def __init__(
        self, task: Task, settings: OptimiserSettings, folder: Path, accelerator: Accelerator
    ) -> None:
        self._task = task
        self._settings = settings
        self._folder = folder
        self._accelerator = accelerator
        self._trainable = [p for p in task.step_module.parameters() if p.requires_grad]
        self._optimisers = optimisers_for(task.step_module, settings)
        self._progress = _Progress(learning_rate=settings.learning_rate)
        self._ema: dict[str, Tensor] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CHECKPOINT).is_file():
            self._restore(folder / CHECKPOINT)
        if settings.ema_decay and not self._ema:
            self._ema = {name: value.clone() for name, value in self._state().items()}
        self._module = accelerator.prepare(task.step_module)

    @property
    def step(self) -> int:
        """Steps done."""
        return self._progress.step

    def run(self, *, max_minutes: float | None = None, show_progress: bool = True) -> None:
        """Trains until the last step, or until the time is up; the last state is checkpointed."""
        settings, progress = self._settings, self._progress
        started = time.monotonic()
        bar = tqdm(
            total=settings.steps,
            initial=progress.step,
            unit="step",
            disable=not (show_progress and self._accelerator.is_main_process),
        )
        window: list[float] = []
        while progress.step < settings.steps:
            window.append(self._train_step())
            progress.step += 1
            bar.update()
            last = progress.step == settings.steps or self._out_of_time(started, max_minutes)
            if progress.step % settings.validate_every == 0 or last:
                self._validate(float(np.mean(window)))
                window = []
            if progress.step % settings.checkpoint_every == 0 or last:
                self._save(self._folder / CHECKPOINT)
            if last:
                break
            if progress.step % 20 == 0:
                bar.set_postfix(loss=f"{np.mean(window[-200:] or [np.nan]):.3f}")
        bar.close()

    def _out_of_time(self, started: float, max_minutes: float | None) -> bool:
        expired = max_minutes is not None and time.monotonic() - started > 60 * max_minutes
        flag = torch.tensor([float(expired)], device=self._accelerator.device)
        return bool(self._accelerator.reduce(flag, reduction="sum").item() > 0)

    def _train_step(self) -> float:
        settings, accelerator = self._settings, self._accelerator
        seed = [settings.seed, self._progress.step, accelerator.process_index]
        rng = np.random.default_rng(seed)
        seed_torch = int(rng.integers(2**62))
        self._set_learning_rate()
        batch = self._task.draw(rng, settings.batch_size)
        torch.manual_seed(seed_torch)  # after the draw: what it builds on first use draws too
        self._module.train()
        loss: Tensor = self._module(batch)
        accelerator.backward(loss)
        nn.utils.clip_grad_norm_(self._trainable, settings.clip_norm)
        for optimiser in self._optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self._average_weights()
        return float(loss.detach())

    def _set_learning_rate(self) -> None:
        settings, step = self._settings, self._progress.step
        plateau = settings.schedule == "plateau"
        rate = self._progress.learning_rate if plateau else settings.learning_rate
        if step < settings.warmup_steps:
            rate *= (step + 1) / settings.warmup_steps
        if settings.schedule == "constant" and settings.decay_steps:
            rate *= min(1.0, (settings.steps - step) / settings.decay_steps)
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate

    def _average_weights(self) -> None:
        if not self._ema:
            return
        decay = min(
            self._settings.ema_decay, (1 + self._progress.step) / (10 + self._progress.step)
        )
        for name, value in self._state().items():
            average = self._ema[name]
            if value.is_floating_point():
                average.lerp_(value, 1.0 - decay)
            else:
                average.copy_(value)

    def _state(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self._task.step_module.state_dict().items()}

    def _validate(self, train_loss: float) -> None:
        module, progress = self._task.step_module, self._progress
        kept = {name: value.clone() for name, value in self._state().items()} if self._ema else None
        if kept is not None:
            module.load_state_dict(self._ema)
        module.eval()
        with torch.no_grad():
            figures = self._task.validate()
        if self._accelerator.is_main_process:
            row = {"step": progress.step, "train_loss": train_loss, **figures}
            row["learning_rate"] = self._optimisers[0].param_groups[0]["lr"]
            curves.append(self._folder / "curves.csv", row)
            curves.plot(self._folder / "curves.csv", self._folder / "curves.png")
            logger.info("%s", {key: round(value, 4) for key, value in row.items()})
        if figures["score"] > progress.best:
            progress.best, progress.stale = figures["score"], 0
            self._write(
                self._folder / BEST, {"module": self._state(), "step": progress.step, **figures}
            )
        else:
            progress.stale += 1
            self._lower_plateau()
        if kept is not None:
            module.load_state_dict(kept)

    def _lower_plateau(self) -> None:
        progress = self._progress
        if self._settings.schedule == "plateau" and progress.stale > _PLATEAU_PATIENCE:
            progress.learning_rate = max(progress.learning_rate * _PLATEAU_FACTOR, _PLATEAU_FLOOR)
            progress.stale = 0

    def _save(self, path: Path) -> None:
        self._write(
            path,
            {
                "module": self._state(),
                "ema": self._ema,
                "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
                "progress": dataclasses.asdict(self._progress),
            },
        )

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        if self._accelerator.is_main_process:
            partial = path.with_suffix(".partial")
            torch.save(content, partial)
            os.replace(partial, path)
        self._accelerator.wait_for_everyone()

    def _restore(self, path: Path) -> None:
        content = torch.load(path, map_location="cpu", weights_only=True)
        self._task.step_module.load_state_dict(content["module"])
        self._ema = content["ema"]
        for optimiser, state in zip(self._optimisers, content["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        self._progress = _Progress(**content["progress"])
        logger.info("resumed from step %d", self._progress.step)
