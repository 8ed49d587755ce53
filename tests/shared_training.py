"""A separation stage, for one process or for those of ``torchrun tests/shared_training.py FOLDER``.

The folder has ``corpus/``, ``plan.npz`` and ``config.json``; the weights before and after are
written to ``weights.pt``. Nothing random is drawn on the device.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.clap import Clap
from model.config import ClapSepConfig, from_json
from model.training import contrastive, engine, sound
from model.training.drawing import MixturePlanner
from model.training.material import Material
from model.training.separation import SeparationTask, build_separator
from model.training.settings import (
    OptimiserSettings,
    QuerySettings,
    SeparatorTraining,
    WindowSettings,
)

SEED = (0, 2)
BATCH_SIZE = 6
OPTIMISER = OptimiserSettings(
    steps=3, validate_every=3, precision="fp32", warmup_steps=1, learning_rate=1e-3
)


def build(folder: Path, batch_size: int) -> tuple[SeparationTask, MixturePlanner]:
    """A task that begins with the same weights every time, and what draws its batches."""
    config = from_json(ClapSepConfig, (folder / "config.json").read_text(encoding="utf-8"))
    settings = SeparatorTraining(
        batch_size=batch_size,
        windows=WindowSettings(reverberant_share=0.0),
        queries=QuerySettings(source_shares=(0.0, 1.0)),
        optimiser=OPTIMISER,
        query_variants=1,
        validation_mixtures=2,
        noisy_share=0.0,
        text_noise=0.0,
    )
    material = Material.load(folder / "plan.npz")
    rate_hz = config.signal.sample_rate_hz
    store = sound.ClipStore(
        [sound.decode(str(folder / path), rate_hz) for path in material.path.tolist()]
    )
    renderer = sound.Renderer(store, config.signal.window_samples, rate_hz)
    torch.manual_seed(5)
    clap = Clap(config.clap).eval().requires_grad_(False)
    separator = build_separator(config, clap, settings)
    task = SeparationTask(separator, clap, material, renderer, settings)
    near = contrastive.nearest_labels(contrastive.embed_wordings(clap, material), material, 2)
    lengths = store.lengths.numpy()
    return task, MixturePlanner(material, lengths, renderer.num_samples, settings, near)


def train(
    folder: Path, task: SeparationTask, planner: Any, processes: engine.Processes
) -> dict[str, Any]:
    """Trains, and gives the weights before and after, and the figures of the first process."""
    before = {name: value.clone() for name, value in _weights(task).items()}
    figures: dict[str, float] = {}
    engine.run_stage(
        task, planner, SEED, OPTIMISER, lambda learner: figures.update(learner.figures()),
        workers=0, capture=False, processes=processes,
    )  # fmt: skip
    return {"before": before, "after": _weights(task), "figures": figures}


def _weights(task: SeparationTask) -> dict[str, torch.Tensor]:
    return {
        name: value
        for name, value in task.step_module.state_dict().items()
        if value.is_floating_point()
    }


def main() -> None:
    """Trains in the processes that torchrun started."""
    folder = Path(sys.argv[1])
    processes, _ = engine.join("cpu", capture=False)
    task, planner = build(folder, processes.part_of(BATCH_SIZE, "batch_size"))
    if not processes.is_first:  # what each process has by itself does not count
        with torch.no_grad():
            for value in task.step_module.parameters():
                value += 1.0
    found = train(folder, task, planner, processes)
    torch.save(
        found | {"drawn": np.random.default_rng(0).random()}, folder / f"{processes.rank}.pt"
    )


if __name__ == "__main__":
    main()
