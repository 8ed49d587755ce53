"""Trains a model from labelled clips: ``python -m model.training``."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model import config as configs
from model import devices, registry
from model.checkpoints import convert
from model.checkpoints.loading import Networks, in_bundle, load_converted
from model.checkpoints.tensorfiles import SourceFile
from model.clap import Clap, build_text_tower
from model.systems.clapsep import lora
from model.training import contrastive, engine, finetune, presence, separation, sound
from model.training.drawing import ClapPlanner, MixturePlanner, Planner
from model.training.material import BUNDLED_CAPTIONS, Material, PreparationSettings, prepare
from model.training.settings import OptimiserSettings, TrainingSettings
from terminal import flags, screen

logger = logging.getLogger(__name__)

PRESETS = {"mini": configs.MINI, "tiny": configs.TINY}
MAX_FILE_BYTES = 19_000_000
WEIGHTS = "weights"
_RESUMED = "resume.pt"
_TEXTS_AT_A_TIME = 256
_ALONE = ("prepare", "presence")
"""Stages that several processes do not share."""

_EXAMPLES = """examples:
  python -m model.training prepare --corpus corpus/ --teacher teacher.npz --output plan.npz
  python -m model.training fit --corpus corpus/ --plan plan.npz --output runs/mine
  python -m model.training presence --model runs/mine/weights/model-1-of-4.safetensors \\
      --corpus corpus/ --plan plan.npz --output runs/mine/weights/model-presence.safetensors
  python -m pipelines.separate --model runs/mine/weights/model-presence.safetensors …

  python -m model.training finetune --from clapsep-mini --corpus mine/ --output runs/tuned
  python -m pipelines.separate --model runs/tuned …

A 'fit' that was stopped goes on from its last validation when the same command is given again.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Prepares or trains, as the command line says; returns the exit code."""
    screen.steady()
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if torch.distributed.is_torchelastic_launched() and arguments.stage in _ALONE:
            raise ValueError(f"{arguments.stage} runs in one process; start it without torchrun")
        if arguments.stage == "prepare":
            _prepare(arguments)
        elif arguments.stage == "presence":
            _add_presence(arguments)
        elif arguments.stage == "finetune":
            _finetune(arguments)
        else:
            TrainingRun(arguments).run()
    except (ValueError, OSError, engine.CaptureError) as err:
        sys.stderr.write(f"error: {err}\n")
        return 2
    return 0


def _prepare(arguments: argparse.Namespace) -> None:
    config = _config(arguments.config)
    tower = build_text_tower(config.clap.text)

    def latent(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        found = np.zeros((len(texts), config.clap.text.hidden_size), dtype=np.float32)
        for start in range(0, len(order), _TEXTS_AT_A_TIME):
            chosen = order[start : start + _TEXTS_AT_A_TIME]
            with torch.no_grad():
                found[chosen] = tower.latent([texts[number] for number in chosen]).numpy()
        return found

    settings = PreparationSettings(
        pairs=arguments.pairs, triples=arguments.triples, seed=arguments.seed
    )
    material = prepare(arguments.corpus, arguments.teacher, arguments.captions, latent, settings)
    material.save(arguments.output)
    logger.info(
        "%s: %d clips for training and %d for validation, %d labels, %d texts",
        arguments.output,
        len(material.clips_of("train")),
        len(material.clips_of("val")),
        len(material.labels),
        len(material.latents),
    )


def _add_presence(arguments: argparse.Namespace) -> None:
    """Trains a presence head for a model, and writes it beside the model.

    Raises:
        ValueError: the output would be in another folder than the model, or over its file.
    """
    entry = registry.entries().get(arguments.model)
    path = Path(in_bundle(arguments.model) if entry is None else entry.file("converted").location())
    output: Path = arguments.output
    if output.resolve().parent != path.resolve().parent or output.resolve() == path.resolve():
        raise ValueError(
            f"--output {output}: expected a new file in the folder of the model, {path.parent}"
        )
    networks = load_converted(str(path))
    if networks.separator.listener is not None:
        raise ValueError(f"--model {path}: has a presence head; give the model that it stands for")
    settings = _settings(arguments.settings)
    device = torch.device(devices.resolved(arguments.device))
    clap = networks.clap.to(device).requires_grad_(False).eval()
    material = Material.load(arguments.plan)
    store = store_of(material, arguments.corpus, clap.sample_rate_hz)
    renderer = sound.Renderer(store, clap.clip_samples, clap.sample_rate_hz).to(device)
    head, figures = presence.train_presence(
        clap, material, renderer, configs.PresenceConfig(), settings.presence, settings.seed
    )
    source = SourceFile(role="model", uri=path.name, sha256=networks.model_sha256)
    notes = ", ".join(f"validation AUROC {name} {value:.3f}" for name, value in figures.items())
    digest = convert.save_presence(str(output), head, source, notes=notes)
    logger.info("%s: %s; SHA-256 %s", output, notes, digest)


def _finetune(arguments: argparse.Namespace) -> None:
    settings = _settings(arguments.settings)
    processes, device = engine.join(devices.resolved(arguments.device), capture=False)
    finetune.run(
        arguments.base,
        arguments.corpus,
        arguments.run,
        arguments.output,
        settings.finetuning,
        train=arguments.train,
        seed=settings.seed if arguments.seed is None else arguments.seed,
        device=device,
        workers=arguments.workers,
        processes=processes,
        say=logger.info if processes.is_first else lambda _: None,
    )


def store_of(material: Material, corpora: Sequence[Path], rate_hz: int) -> sound.ClipStore:
    """The clips of a plan, decoded.

    Raises:
        ValueError: the plan names another corpus.
    """
    folders = {corpus.name: corpus for corpus in corpora}
    paths = [_located(path, folders) for path in material.path]
    return sound.ClipStore(sound.decode_all(paths, rate_hz))


class TrainingRun:
    """Trains a CLAP and then a separator, on one device, from clips that it holds in memory."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Reads the settings, the plan and the clips.

        Raises:
            ValueError: the settings are not those of the run that the output folder holds.
        """
        self._output: Path = arguments.output
        self._workers: int = arguments.workers
        self._capture = not arguments.no_capture
        self._config = _config(arguments.config)
        self._settings = _settings(arguments.settings)
        self._processes, device = engine.join(
            devices.resolved(arguments.device), capture=self._capture
        )
        self._device = torch.device(device)
        if self._processes.is_first:
            self._output.mkdir(parents=True, exist_ok=True)
            self._record()
        if self._device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cuda.enable_cudnn_sdp(False)  # not in a capture, torch 2.11
        torch.manual_seed(self._settings.seed)
        self._material = Material.load(arguments.plan)
        rate, samples = self._config.signal.sample_rate_hz, self._config.signal.window_samples
        store = store_of(self._material, arguments.corpus, rate)
        self._lengths = store.lengths.numpy().copy()
        self._renderer = sound.Renderer(store, samples, rate).to(self._device)
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
        settings = self._settings.clap
        size = self._processes.part_of(settings.batch_size, "clap.batch_size")
        settings = dataclasses.replace(settings, batch_size=size)
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
        settings, begun = self._settings.separation, torch.get_rng_state()
        size = self._processes.part_of(settings.batch_size, "separation.batch_size")
        settings = dataclasses.replace(settings, batch_size=size)
        separator = separation.build_separator(self._config, clap, settings)
        task = separation.SeparationTask(separator, clap, self._material, self._renderer, settings)
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
            logger.info("%s: the weights of the best validation", self._output / WEIGHTS)

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

    def _write(self, clap: Clap, task: separation.SeparationTask) -> None:
        separator = copy.deepcopy(task.average.module).cpu()
        separator.precision = "fp32"
        if self._settings.separation.encoder == "lora":
            lora.merge_adapters(separator.encoder)
        networks = Networks(
            config=self._config, clap=copy.deepcopy(clap).cpu(), separator=separator
        )
        folder = self._output / WEIGHTS
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.safetensors"):
            old.unlink()
        convert.save(
            str(folder / "model.safetensors"),
            networks,
            dtype="fp16",
            max_file_bytes=MAX_FILE_BYTES,
            notes=self._output.name,
        )


def _located(path: str, folders: dict[str, Path]) -> Path:
    corpus, _, name = str(path).partition("/")
    if corpus not in folders:
        raise ValueError(f"the plan names the corpus {corpus!r}; --corpus has {sorted(folders)}")
    return folders[corpus] / name


def _config(name: str) -> configs.ClapSepConfig:
    if name in PRESETS:
        return PRESETS[name]
    if not Path(name).is_file():
        raise ValueError(f"--config {name}: expected one of {sorted(PRESETS)} or a JSON file")
    return configs.from_json(configs.ClapSepConfig, Path(name).read_text(encoding="utf-8"))


def _settings(path: Path | None) -> TrainingSettings:
    if path is None:
        return TrainingSettings()
    return configs.from_json(TrainingSettings, path.read_text(encoding="utf-8"))


def _parser() -> argparse.ArgumentParser:
    parser = flags.Parser(
        prog="python -m model.training",
        description="Train a CLAP, then a separator, from folders of labelled clips.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    stages = parser.add_subparsers(dest="stage", required=True)
    preparing = stages.add_parser("prepare", help="choose clips and words: the plan of a training")
    fitting = stages.add_parser("fit", help="train by a plan")
    telling = stages.add_parser(
        "presence", help="train what says whether a sound is there, for a model that is trained"
    )
    tuning = stages.add_parser(
        "finetune", help="go on from a model's weights with a few recordings of your own"
    )
    for each in (preparing, fitting, telling):
        each.add_argument(
            "--corpus", type=flags.path, nargs="+", required=True,
            help="folders with manifest.csv and the clips",
        )  # fmt: skip
    for each in (preparing, fitting):
        each.add_argument("--config", default="mini", help="mini, tiny, or a JSON file")
    preparing.add_argument(
        "--teacher", type=flags.path, required=True, help="what a tagger says about every clip"
    )
    preparing.add_argument(
        "--captions", type=flags.path, default=BUNDLED_CAPTIONS, help="JSON of label → captions"
    )
    defaults = PreparationSettings()
    preparing.add_argument("--pairs", type=int, default=defaults.pairs, help="texts of two labels")
    preparing.add_argument(
        "--triples", type=int, default=defaults.triples, help="texts of three labels"
    )
    preparing.add_argument("--seed", type=int, default=defaults.seed)
    preparing.add_argument("--output", type=flags.path, required=True, help="PLAN.npz")
    for each in (fitting, telling):
        each.add_argument("--plan", type=flags.path, required=True, help="of 'prepare'")
    for each in (fitting, telling, tuning):
        each.add_argument(
            "--settings", type=flags.path, help="JSON of what differs from the default settings"
        )
        each.add_argument("--device", default=devices.AUTO, help=devices.EXPECTED)
    telling.add_argument(
        "--model", required=True, help="a name of the registry, or the file that 'fit' wrote"
    )
    telling.add_argument(
        "--output", type=flags.path, required=True,
        help="file to write, in the folder of the model: the model with presence",
    )  # fmt: skip
    for each in (fitting, tuning):
        each.add_argument(
            "--workers", type=int, default=2 if each is fitting else 0,
            help="processes that draw batches ahead; 0: none",
        )  # fmt: skip
    fitting.add_argument(
        "--no_capture", action="store_true", help="on a GPU, run the steps without CUDA graphs"
    )
    tuning.add_argument(
        "--from", dest="base", default="clapsep-mini",
        help="a CLAPSep: a name of the registry, or a URI (default: clapsep-mini)",
    )  # fmt: skip
    tuning.add_argument(
        "--corpus", type=flags.path, nargs="+", required=True,
        help="a folder with a folder of recordings for each label; or the reviews.csv of a report, "
        "with --run",
    )  # fmt: skip
    tuning.add_argument("--run", nargs="+", default=[], help="the run folders that were reviewed")
    tuning.add_argument(
        "--train", choices=finetune.TRAINED, default="query",
        help="query: the layers by which the query steers the decoder (default); decoder; all: the "
        "encoder too, or where the model has LoRA adapters, these",
    )  # fmt: skip
    tuning.add_argument("--seed", type=int, help="of all that is drawn (default: the settings')")
    tuning.add_argument(
        "--output", type=flags.path, required=True, help="new folder: the model, for --model"
    )
    fitting.add_argument(
        "--output", type=flags.path, required=True, help="folder for the weights and the curve"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
