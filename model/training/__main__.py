"""Trains a model from labelled clips: ``python -m model.training``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from model import config as configs
from model import devices
from model.training.material import BUNDLED_CAPTIONS, PreparationSettings, prepare
from model.training.settings import TRAINED, TrainingSettings
from terminal import flags, screen

logger = logging.getLogger(__name__)

PRESETS = {"mini": configs.MINI, "tiny": configs.TINY}
_ALONE = ("prepare", "presence")
"""Stages that several processes do not share."""
_INTERRUPTED = 130

_EXAMPLES = """examples:
  python -m model.training prepare --corpus corpus/ --teacher teacher.npz --output plan.npz
  python -m model.training fit --corpus corpus/ --plan plan.npz --output runs/mine
  python -m model.training presence --model runs/mine/weights/model-1-of-3.safetensors \\
      --corpus corpus/ --plan plan.npz --output runs/mine/weights/model-presence.safetensors
  python -m pipelines.separate --model runs/mine/weights/model-presence.safetensors …

  python -m model.training finetune --from clapsep-mini --corpus mine/ --output runs/tuned
  python -m pipelines.separate --model runs/tuned …

A 'fit' that was stopped goes on from its last validation when the same command is given again.
"""


def run(argv: Sequence[str] | None = None) -> int:
    """Prepares or trains, as the command line says; returns the exit code."""
    screen.steady()
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    import torch  # flags are answered without it

    from model.training.engine import CaptureError

    stages = {"prepare": _prepare, "fit": _fit, "presence": _add_presence, "finetune": _finetune}
    try:
        if torch.distributed.is_torchelastic_launched() and arguments.stage in _ALONE:
            raise ValueError(f"{arguments.stage} runs in one process; start it without torchrun")
        stages[arguments.stage](arguments)
    except (ValueError, OSError, CaptureError) as err:
        sys.stderr.write(f"error: {err}\n")
        return 2
    except KeyboardInterrupt:
        later = "; the same command goes on from the last validation"
        sys.stderr.write(f"\ninterrupted{later if arguments.stage == 'fit' else ''}\n")
        return _INTERRUPTED
    return 0


def _prepare(arguments: argparse.Namespace) -> None:
    from model.clap import build_text_tower
    from model.training.contrastive import text_latents

    tower = build_text_tower(_config(arguments.config).clap.text)
    settings = PreparationSettings(
        pairs=arguments.pairs, triples=arguments.triples, seed=arguments.seed
    )
    material = prepare(
        arguments.corpus, arguments.teacher, arguments.captions,
        lambda texts: text_latents(tower, texts), settings,
    )  # fmt: skip
    material.save(arguments.output)
    logger.info(
        "%s: %d clips for training and %d for validation, %d labels, %d texts",
        arguments.output,
        len(material.clips_of("train")),
        len(material.clips_of("val")),
        len(material.labels),
        len(material.latents),
    )


def _fit(arguments: argparse.Namespace) -> None:
    from model.training.run import TrainingRun

    TrainingRun(
        config=_config(arguments.config),
        settings=_settings(arguments.settings),
        plan=arguments.plan,
        corpora=arguments.corpus,
        output=arguments.output,
        device=devices.resolved(arguments.device),
        workers=arguments.workers,
        capture=not arguments.no_capture,
    ).run()


def _add_presence(arguments: argparse.Namespace) -> None:
    from model.training import presence

    settings = _settings(arguments.settings)
    presence.run(
        arguments.model,
        arguments.plan,
        arguments.corpus,
        arguments.output,
        settings.presence,
        seed=settings.seed,
        device=devices.resolved(arguments.device),
    )


def _finetune(arguments: argparse.Namespace) -> None:
    from model.training import engine, finetune

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
        "--train", choices=TRAINED, default="query",
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
    raise SystemExit(run())
