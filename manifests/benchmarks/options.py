"""The command line of ``python -m manifests.benchmarks``."""

from __future__ import annotations

import argparse

from manifests.benchmarks.clips import ON_MISSING
from manifests.benchmarks.multisource import DATASET as MULTISOURCE
from manifests.benchmarks.pairs import BENCHMARKS, DURATION_S, SWEEP_LEVELS_DB
from manifests.benchmarks.queries import MODALITIES, POLARITIES
from terminal import flags

_EXAMPLES = """\
examples:
  python -m manifests.benchmarks audiocaps --pairs audiocaps_eval.csv \\
      --audio_root gs://bucket/audiocaps/test --output audiocaps.parquet
  python -m manifests.benchmarks esc50 --pairs esc_eval.csv --samples esc_eval_samples.csv \\
      --query both --shots 10 --audio_root ESC-50/audio --output esc50.csv
  python -m manifests.benchmarks folder --audio_root sounds --output sounds.jsonl --seed 1
exit code: 0 written, 1 clips are missing, 2 a list or folder cannot be used
"""


def parser() -> flags.Parser:
    """Every subcommand and its flags."""
    top = flags.Parser(
        prog="python -m manifests.benchmarks",
        description="Builds the manifest of a benchmark from its lists, wherever those are.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(
            name, help=f"{benchmark.dataset}: {benchmark.num_rows:,} mixtures of two clips"
        )
        _add_pairs(command, name)
        _add_level(command)
    command = commands.add_parser("pairs", help="a list of your own in the same format")
    _add_pairs(command, None)
    _add_level(command)
    command.add_argument("--dataset", required=True, help="its name in metrics and reports")
    command = commands.add_parser("multisource", help="2 to 4 sources, 1 or more targets (Table V)")
    _add_pairs(command, "audiocaps")
    _add_level(command)
    command.add_argument("--dataset", default=MULTISOURCE, help="default %(default)s")
    command.add_argument(
        "--num_sources", type=int, nargs="+", default=[2, 3, 4], help="default 2 3 4"
    )
    _add_seed(command)
    command = commands.add_parser("input_sdr", help="every pair at several levels (Table VI)")
    _add_benchmark(command, "audiocaps")
    command.add_argument("--dataset", help="for a list of your own: its name, not --benchmark's")
    levels = list(SWEEP_LEVELS_DB)
    command.add_argument(
        "--levels_db", type=float, nargs="+", default=levels, help="default -10 -5 0 5 10"
    )
    command = commands.add_parser("zeroshot", help="classes seen and unseen in training (Fig. 6)")
    _add_benchmark(command, "esc50")
    _add_level(command)
    _add_unseen(command)
    _add_importers(commands)
    return top


def _add_importers(commands: argparse._SubParsersAction[flags.Parser]) -> None:
    command = commands.add_parser("audiosep", help="one of AudioSep's lists, mixtures on disk")
    command.add_argument("--list", required=True, help="evaluation/metadata/…_eval.csv")
    command.add_argument(
        "--query_column", choices=("caption", "labels"), default="caption", help="default caption"
    )
    command.add_argument("--dataset", required=True, help="for example AudioSep-Clotho")
    _add_common(command)
    _add_query(command, polarity="P")
    command = commands.add_parser("audiosep_json", help="AudioSep's JSON of captioned clips")
    command.add_argument("--list", required=True, help='{"data": [{"wav": …, "caption": …}]}')
    _add_drawn(command)
    command = commands.add_parser("dcase", help="DCASE 2024 Task 9: source, noise, level, caption")
    command.add_argument("--list", required=True, help="lass_synthetic_validation.csv")
    _add_common(command)
    command = commands.add_parser("folder", help="clips in folders named after their sound")
    _add_drawn(command)
    command.add_argument(
        "--template", default="the sound of {label}", help="caption of a clip; default %(default)r"
    )


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--audio_root", required=True, help="folder of the clips; any fsspec URI")
    command.add_argument("--output", required=True, help=".csv, .jsonl or .parquet; any fsspec URI")
    command.add_argument(
        "--on_missing",
        choices=ON_MISSING,
        default="error",
        help="where clips are not there: write nothing, leave their rows out, or do not look; "
        "default error",
    )


def _add_query(command: argparse.ArgumentParser, polarity: str) -> None:
    command.add_argument("--query", choices=MODALITIES, default="text", help="default text")
    command.add_argument(
        "--polarity", type=_polarity, default=polarity, help=f"P, N or P+N; default {polarity}"
    )
    command.add_argument(
        "--shots", type=int, default=1, help="example clips of a class, the first ones; default 1"
    )
    command.add_argument("--samples", help="list of example clips: class,file")
    command.add_argument("--samples_root", help="their folder; default --audio_root")
    command.add_argument("--text_weight", type=float, help="0 to 1, for --query both")


def _add_pairs(command: argparse.ArgumentParser, name: str | None) -> None:
    prefix = {"esc50": "esc", "fsdkaggle2018": "fsd", "music21": "music"}.get(name or "", name)
    example = f"the official list, {prefix}_eval.csv" if name else "CSV list"
    command.add_argument("--pairs", required=True, help=f"{example}; any fsspec URI")
    _add_common(command)
    _add_query(command, polarity="P+N")


def _add_benchmark(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument(
        "--benchmark", choices=tuple(BENCHMARKS), default=default, help="default %(default)s"
    )
    _add_pairs(command, default)


def _add_level(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--snr_db", type=float, default=0.0, help="target above each interferer; default 0"
    )


def _add_seed(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, default=0, help="of what is drawn; default 0")


def _add_drawn(command: argparse.ArgumentParser) -> None:
    _add_common(command)
    _add_query(command, polarity="P+N")
    _add_level(command)
    _add_seed(command)
    command.add_argument("--dataset", default="clips", help="default %(default)s")
    command.add_argument(
        "--mixtures_per_clip", type=int, default=1, help="interferers of each clip; default 1"
    )
    command.add_argument(
        "--duration_s", type=float, default=DURATION_S, help="of each mixture; default 10"
    )


def _add_unseen(command: argparse.ArgumentParser) -> None:
    group = command.add_mutually_exclusive_group(required=True)
    group.add_argument("--unseen", help="classes absent from training, separated by ;")
    group.add_argument(
        "--training_captions", help="CSV of the training data: absent are classes it does not name"
    )
    command.add_argument(
        "--caption_column", default="caption", help="its column; default %(default)s"
    )


def _polarity(text: str) -> str:
    value = {"PN": "P+N"}.get(text.upper(), text.upper())
    if value not in POLARITIES:
        raise argparse.ArgumentTypeError(f"{text}; expected P, N or P+N")
    return value
