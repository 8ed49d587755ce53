"""The whole training, on one device: the contrastive stage, then the separation stage."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model.checkpoints import convert
from model.checkpoints.loading import Networks
from model.clap import Clap
from model.config import ClapSepConfig
from model.systems.clapsep import lora
from model.training import contrastive, engine
from model.training.drawing import Chooser, ClapPlanner, MixturePlanner, Planner
from model.training.material import Material
from model.training.separation import SeparationTask, build_separator
from model.training.settings import OptimiserSettings, TrainingSettings
from model.training.sound import ClipStore, Renderer, decode_all

logger = logging.getLogger(__name__)

_MAX_FILE_BYTES = 19_000_000
_WEIGHTS = "weights"
_RESUMED = "resume.pt"


class TrainingRun:
    """Trains a CLAP and then a separator, on one device, from clips that it holds in memory."""

    def __init__(
        self,
        *,
        config: ClapSepConfig,
        settings: TrainingSettings,
        plan: Path,
        corpora: Sequence[Path],
        output: Path,
        device: str,
        workers: int,
        capture: bool,
    ) -> None:
        """Reads the plan and the clips.

        Args:
            config: of the networks.
            settings: of both stages.
            plan: what :mod:`model.training.material` prepared.
            corpora: the folders of its clips.
            output: folder for the weights and the curve.
            device: a torch device.
            workers: processes that draw batches ahead.
            capture: whether a GPU runs the steps as CUDA graphs.

        Raises:
            ValueError: the settings are not those of the run that the output folder holds, or one
                of the stages cannot be trained by them.
        """
        self._config, self._settings = config, settings
        self._output, self._workers, self._capture = output, workers, capture
        self._processes, device = engine.join(device, capture=capture)
        size = self._processes.part_of(settings.clap.batch_size, "clap.batch_size")
        self._clap_settings = dataclasses.replace(settings.clap, batch_size=size)
        size = self._processes.part_of(settings.separation.batch_size, "separation.batch_size")
        self._separation_settings = dataclasses.replace(settings.separation, batch_size=size)
        self._material, queries = Material.load(plan), settings.separation.queries
        chooser = Chooser(self._material, queries.open_share, queries.plain_text_share)
        chooser.require_strangers(len(queries.source_shares))
        self._device = torch.device(device)
        if self._processes.is_first:
            self._output.mkdir(parents=True, exist_ok=True)
            self._record()
        if self._device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cuda.enable_cudnn_sdp(False)  # not in a capture, torch 2.11
        torch.manual_seed(self._settings.seed)
        rate, samples = self._config.signal.sample_rate_hz, self._config.signal.window_samples
        store = ClipStore(decode_all(self._material.files_in(corpora), rate))
        self._lengths = store.lengths.numpy().copy()
        self._renderer = Renderer(store, samples, rate).to(self._device)
        self._curve: list[dict[str, Any]] = []
        self._best = float("-inf")
        self._left = self._stored()

    def _record(self) -> None:
        """Writes the settings, or checks that they are those of the run that is gone on with."""
        text = json.dumps(
            {
                "config": dataclasses.asdict(self._config),
                "settings": dataclasses.asdict(self._settings),
            },
            indent=1,
        )
        path = self._output / "settings.json"
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            raise ValueError(f"{path}: the run there has other settings; choose another --output")
        path.write_text(text, encoding="utf-8")

    def _stored(self) -> dict[str, Any]:
        path = self._output / _RESUMED
        if not path.is_file():
            return {}
        stored: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        self._curve, self._best = stored["curve"], stored["best"]
        return stored

    def run(self) -> None:
        """Trains what is left to train."""
        clap = Clap(self._config.clap)
        clap.input_level_dbfs = self._config.signal.input_level_dbfs
        clap.to(self._device)
        if "clap" in self._left:
            clap.load_state_dict(self._left["clap"])
            torch.set_rng_state(self._left["begun"])
        else:
            clap = self._train_clap(clap)
            self._left = {}
            if self._processes.is_first:
                self._store(clap=clap.state_dict(), begun=torch.get_rng_state())
        self._train_separator(clap.requires_grad_(False).eval())

    def _train_clap(self, clap: Clap) -> Clap:
        settings = self._clap_settings
        task = contrastive.ClapTask(clap, self._material, self._renderer, settings)
        planner = ClapPlanner(
            self._material,
            self._lengths,
            self._renderer.num_samples,
            settings,
            self._settings.separation.queries,
        )

        def validate(learner: engine.Learner) -> None:
            self._follow("clap", learner, task.validate())
            self._store(learner=learner.state())

        self._train(task, planner, 1, settings.optimiser, validate)
        trained = task.average.module
        contrastive.refit(trained, self._material, self._settings.words)
        self._processes.share(trained)
        return trained

    def _train_separator(self, clap: Clap) -> None:
        settings, begun = self._separation_settings, torch.get_rng_state()
        separator = build_separator(self._config, clap, settings)
        task = SeparationTask(separator, clap, self._material, self._renderer, settings)
        near = contrastive.nearest_labels(
            contrastive.embed_wordings(clap, self._material),
            self._material,
            settings.queries.near_classes,
        )
        planner = MixturePlanner(
            self._material, self._lengths, self._renderer.num_samples, settings, near
        )

        def validate(learner: engine.Learner) -> None:
            figures = task.validate()
            self._follow("separation", learner, figures)
            if figures["score"] > self._best:
                self._best = figures["score"]
                self._write(clap, task)
            self._store(clap=clap.state_dict(), begun=begun, learner=learner.state())

        self._train(task, planner, 2, settings.optimiser, validate)
        if self._processes.is_first:
            logger.info("%s: the weights of the best validation", self._output / _WEIGHTS)

    def _train(
        self,
        task: engine.Task,
        planner: Planner,
        stage: int,
        settings: OptimiserSettings,
        validate: Any,
    ) -> None:
        engine.run_stage(
            task,
            planner,
            (self._settings.seed, stage),
            settings,
            validate,
            workers=self._workers,
            capture=self._capture,
            state=self._left.get("learner"),
            processes=self._processes,
        )

    def _follow(self, stage: str, learner: engine.Learner, found: dict[str, float]) -> None:
        figures = learner.figures() | found
        self._curve.append({"stage": stage, "step": learner.steps, **figures})
        text = json.dumps(self._curve, indent=1)
        (self._output / "curve.json").write_text(text, encoding="utf-8")
        shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        logger.info("%s %d: %s", stage, learner.steps, shown)

    def _store(self, **state: Any) -> None:
        path = self._output / _RESUMED
        partial = path.with_suffix(".partial")
        torch.save({"curve": self._curve, "best": self._best} | state, partial)
        partial.replace(path)

    def _write(self, clap: Clap, task: SeparationTask) -> None:
        separator = copy.deepcopy(task.average.module).cpu()
        separator.precision = "fp32"
        if self._settings.separation.encoder == "lora":
            lora.merge_adapters(separator.encoder)
        networks = Networks(
            config=self._config, clap=copy.deepcopy(clap).cpu(), separator=separator
        )
        folder = self._output / _WEIGHTS
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.safetensors"):
            old.unlink()
        convert.save(
            str(folder / "model.safetensors"),
            networks,
            dtype="fp16",
            max_file_bytes=_MAX_FILE_BYTES,
            notes=self._output.name,
        )
