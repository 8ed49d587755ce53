"""Command line of the training stages."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator

from model import config as configs
from model.clap import Clap
from model.training.bundle import bundle, part
from model.training.captions import BUNDLED, CaptionBook
from model.training.contrastive import ContrastiveTask
from model.training.corpus import Corpus
from model.training.loop import BEST, Task, Trainer
from model.training.separation import SeparationTask, build_separator
from model.training.settings import MixingSettings, OptimiserSettings, SeparationSettings
from model.training.wording import WordingSettings, refit
from terminal import flags, screen

PRESETS = {"mini": configs.MINI, "tiny": configs.TINY, "published": configs.PUBLISHED}
_DRY_STEPS = 3
_T = TypeVar("_T")

_EXAMPLES = """examples:
  python -m model.training contrastive --corpus corpus/ --output runs/clap --steps 8000
  python -m model.training wording --corpus corpus/ --clap runs/clap/best.pt --output runs/words
  python -m model.training separation --corpus corpus/ --clap runs/words/best.pt --output runs/sep
  python -m model.training bundle --clap runs/words/best.pt --separation runs/sep/best.pt \\
      --output mini.safetensors
  torchrun --nproc_per_node 4 -m model.training separation …     (4 GPUs, or with --cpu 4 CPU
  processes)

A run that was stopped goes on from its newest checkpoint when the same command is given again.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line; trains, or bundles what was trained."""
    screen.steady()
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = _config(arguments.config)
    if arguments.stage == "wording":
        return _refit_wording(arguments, config)
    if arguments.stage == "bundle":
        digest = bundle(config, arguments.clap, arguments.separation, arguments.output)
        sys.stdout.write(f"{arguments.output}: SHA-256 {digest}\n")
        return 0
    return _train(arguments, config)


def _refit_wording(arguments: argparse.Namespace, config: configs.ClapSepConfig) -> int:
    clap = Clap(config.clap)
    clap.input_level_dbfs = config.signal.input_level_dbfs
    clap.load_state_dict(part(arguments.clap, "clap."))
    clap.prepare()
    corpus = Corpus.load(arguments.corpus, sample_rate_hz=config.signal.sample_rate_hz)
    settings = _settings(WordingSettings, arguments)
    refit(clap, CaptionBook.load(corpus, arguments.captions), settings)
    arguments.output.mkdir(parents=True, exist_ok=True)
    module = {f"clap.{name}": value for name, value in clap.state_dict().items()}
    torch.save({"module": module, "step": settings.steps}, arguments.output / BEST)
    record = {"stage": arguments.stage, "settings": dataclasses.asdict(settings)}
    text = json.dumps(record, indent=1)
    (arguments.output / "settings.json").write_text(text, encoding="utf-8")
    sys.stdout.write(f"step {settings.steps}: {arguments.output / BEST}\n")
    return 0


def _train(arguments: argparse.Namespace, config: configs.ClapSepConfig) -> int:
    if arguments.num_threads:
        torch.set_num_threads(arguments.num_threads)
    accelerator = Accelerator(cpu=arguments.cpu)
    optimiser = _settings(OptimiserSettings, arguments)
    if arguments.dry_run:
        optimiser = dataclasses.replace(
            optimiser, steps=_DRY_STEPS, validate_every=_DRY_STEPS, decay_steps=0
        )
    torch.manual_seed(optimiser.seed)  # of the weights that the run begins with
    corpora = _Corpora.load(arguments, config.signal.sample_rate_hz)
    clap = Clap(config.clap)
    clap.input_level_dbfs = config.signal.input_level_dbfs
    task: Task
    if arguments.stage == "contrastive":
        clap.to(accelerator.device)
        task = ContrastiveTask(
            clap, corpora.train, corpora.book, corpora.held_out, optimiser.precision
        )
        settings: OptimiserSettings | SeparationSettings = optimiser
    else:
        clap.load_state_dict(part(arguments.clap, "clap."))
        clap.prepare().to(accelerator.device)
        settings = _settings(
            SeparationSettings,
            arguments,
            optimiser=optimiser,
            mixing=_settings(MixingSettings, arguments),
        )
        separator = build_separator(config, clap, settings)
        if arguments.initial:
            separator.load_state_dict(part(arguments.initial, "separator."))
        separator.to(accelerator.device)
        task = SeparationTask(
            separator, clap, corpora.train, corpora.book, corpora.held_out, settings
        )
    arguments.output.mkdir(parents=True, exist_ok=True)
    record = {
        "stage": arguments.stage,
        "config": json.loads(configs.to_json(config)),
        "settings": dataclasses.asdict(settings),
        "processes": accelerator.num_processes,
    }
    text = json.dumps(record, indent=1)
    (arguments.output / "settings.json").write_text(text, encoding="utf-8")
    trainer = Trainer(task, optimiser, arguments.output, accelerator)
    trainer.run(max_minutes=arguments.max_minutes)
    if accelerator.is_main_process:
        sys.stdout.write(f"step {trainer.step}: {arguments.output / BEST}\n")
    return 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Corpora:
    train: Corpus
    held_out: Corpus
    book: CaptionBook

    @classmethod
    def load(cls, arguments: argparse.Namespace, rate: int) -> _Corpora:
        train = Corpus.load(arguments.corpus, sample_rate_hz=rate)
        held_out = Corpus.load(arguments.corpus, sample_rate_hz=rate, splits=("val",))
        book = CaptionBook.load(train, arguments.captions)
        return cls(train=train, held_out=held_out, book=book)


def _parser() -> argparse.ArgumentParser:
    parser = flags.Parser(
        prog="python -m model.training",
        description="Train a CLAP, then a separator, from a folder of labelled clips.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    stages = parser.add_subparsers(dest="stage", required=True)
    contrastive = stages.add_parser("contrastive", help="make a CLAP from labelled clips")
    _add_common(contrastive)
    wording = stages.add_parser("wording", help="fit a CLAP's text projection to unread words")
    _add_places(wording)
    wording.add_argument(
        "--clap", type=flags.path, required=True, help="best.pt, contrastive stage"
    )
    _add_fields(wording, WordingSettings)
    separation = stages.add_parser("separation", help="train the separator against a given CLAP")
    _add_common(separation)
    separation.add_argument(
        "--clap", type=flags.path, required=True, help="best.pt of the contrastive stage"
    )
    separation.add_argument(
        "--initial", type=flags.path, help="start from this best.pt of an earlier separation run"
    )
    _add_fields(separation, MixingSettings)
    _add_fields(separation, SeparationSettings)
    bundling = stages.add_parser("bundle", help="write both stages' best as safetensors")
    bundling.add_argument(
        "--clap", type=flags.path, required=True, help="best.pt, contrastive stage"
    )
    bundling.add_argument(
        "--separation", type=flags.path, required=True, help="best.pt, separation"
    )
    bundling.add_argument("--config", default="mini", help="mini, tiny, published, or a JSON file")
    bundling.add_argument("--output", type=flags.path, required=True, help="NAME.safetensors")
    return parser


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--corpus", type=flags.path, required=True, help="folder with manifest.csv and the clips"
    )
    parser.add_argument(
        "--captions", type=flags.path, default=BUNDLED, help="JSON of label → captions"
    )
    parser.add_argument("--config", default="mini", help="mini, tiny, published, or a JSON file")
    parser.add_argument(
        "--output", type=flags.path, required=True, help="folder for best.pt and what else is kept"
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    _add_places(parser)
    parser.add_argument(
        "--max_minutes", type=float, help="stop, with a checkpoint, after this long"
    )
    parser.add_argument("--num_threads", type=int, help="CPU threads a process")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument(
        "--dry_run", action="store_true", help=f"{_DRY_STEPS} steps and one validation"
    )
    _add_fields(parser, OptimiserSettings)


def _add_fields(parser: argparse.ArgumentParser, cls: type) -> None:
    """One flag for every simple field of a settings class, with the class's default."""
    for field in dataclasses.fields(cls):
        default = field.default
        if isinstance(default, tuple):
            parser.add_argument(f"--{field.name}", type=float, nargs="+", default=default)
        elif default is None:
            parser.add_argument(f"--{field.name}", type=float)
        elif isinstance(default, int | float | str):
            parser.add_argument(f"--{field.name}", type=type(default), default=default)


def _settings(cls: type[_T], arguments: argparse.Namespace, **nested: object) -> _T:
    values = {
        field.name: getattr(arguments, field.name)
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]  # any dataclass
        if field.name not in nested
    }
    values = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return cls(**values, **nested)


def _config(name: str) -> configs.ClapSepConfig:
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if not path.is_file():
        raise SystemExit(f"--config {name}: expected one of {sorted(PRESETS)} or a JSON file")
    return configs.from_json(configs.ClapSepConfig, path.read_text(encoding="utf-8"))
