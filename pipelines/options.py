"""Every flag once, grouped, with units in the name; ``--help`` does without torch."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from apache_beam.options.pipeline_options import PipelineOptions

EXIT_OK = 0
EXIT_FAILURE_RATE = 1
EXIT_USAGE = 2
EXIT_JOB_FAILED = 3
EXIT_INTERRUPTED = 130

_EXIT_CODES = """exit codes:
  0    every row is done, or failed within --max_failure_rate
  1    more rows failed than --max_failure_rate allows; all results are written
  2    a flag, a manifest, a model or the output folder cannot be used; nothing was run
  3    the job itself failed; --resume goes on from what was finished
  130  interrupted; only complete files are left, --resume goes on
"""


class UsageError(ValueError):
    """Something about the command line that the user can put right."""


class InputOptions(PipelineOptions):
    """What is to be separated."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        group = parser.add_argument_group("input: a manifest, or one recording")
        group.add_argument(
            "--manifest",
            nargs="+",
            metavar="URI",
            help="CSV, JSONL or Parquet: files, folders or patterns, local or remote. "
            "Example: --manifest gs://bucket/rows/*.parquet",
        )
        group.add_argument(
            "--mixture",
            metavar="URI",
            help="One recording, instead of a manifest. Example: --mixture talk.wav",
        )
        group.add_argument(
            "--positive", metavar="TEXT", help='What to extract. Example: "a dog barking"'
        )
        group.add_argument("--negative", metavar="TEXT", help='What to suppress. Example: "rain"')
        group.add_argument(
            "--positive_audio", nargs="+", metavar="URI", help="Example clips of what to extract."
        )
        group.add_argument(
            "--negative_audio", nargs="+", metavar="URI", help="Example clips of what to suppress."
        )
        group.add_argument(
            "--text_weight",
            type=float,
            metavar="0..1",
            help="With --mixture: 0 = example clips only, 1 = text only. "
            "Default 0.5 where a query has both.",
        )
        group.add_argument(
            "--reference", metavar="URI", help="With --mixture: the target alone, to score against."
        )
        group.add_argument(
            "--max_clip_in_memory_s",
            type=float,
            default=60.0,
            metavar="S",
            help="Recordings with more samples than so many seconds of 48 kHz stereo are streamed "
            "in constant memory. Default %(default)s.",
        )
        group.add_argument(
            "--storage_options",
            default="{}",
            metavar="JSON",
            help='fsspec options by protocol. Example: \'{"gs": {"token": "anon"}}\'',
        )


class ModelOptions(PipelineOptions):
    """What separates, and how."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        group = parser.add_argument_group("model")
        group.add_argument(
            "--model",
            default="clapsep-mini",
            metavar="NAME",
            help="A name of the registry, or the URI of a converted checkpoint. "
            "Default %(default)s, which is bundled.",
        )
        group.add_argument(
            "--scorer",
            default="own",
            metavar="NAME",
            help="The CLAP that gives CLAPScores: 'own' (the model's, which is circular: it hears "
            "as the separator does), 'none', a name or a URI. Default %(default)s.",
        )
        group.add_argument(
            "--device", default="auto", help="auto, cpu, cuda or cuda:N. Default %(default)s."
        )
        group.add_argument(
            "--precision",
            choices=("fp32", "bf16"),
            default="fp32",
            help="Of the network. Default %(default)s.",
        )
        group.add_argument(
            "--batch_size",
            type=int,
            default=8,
            metavar="N",
            help="Windows of 10 s, channels counted, in one forward pass. Default %(default)s.",
        )
        group.add_argument(
            "--num_threads",
            type=int,
            default=0,
            metavar="N",
            help="CPU threads of the network, a process. Default 0: the cores of the machine, "
            "divided among --num_workers.",
        )
        group.add_argument(
            "--overlap",
            type=float,
            default=0.25,
            metavar="0..1",
            help="The part of a window that it shares with the next. Default %(default)s.",
        )
        group.add_argument(
            "--channels",
            choices=("per_channel", "mid"),
            default="per_channel",
            help="Separate every channel, or their mean into a mono stem. Default %(default)s.",
        )
        group.add_argument(
            "--condition_norm",
            choices=("normalised", "unnormalised"),
            default="normalised",
            help="'unnormalised' reproduces the authors' evaluation script. Default %(default)s.",
        )
        group.add_argument(
            "--on_unsupported_query",
            choices=("dead_letter", "nearest"),
            default="dead_letter",
            help="What becomes of a query that the model cannot use (negative ones, example clips, "
            "free text): a dead letter, or the nearest setting that it can use, which is what the "
            "metrics then say. Default %(default)s.",
        )


class OutputOptions(PipelineOptions):
    """What is written."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        group = parser.add_argument_group("output")
        group.add_argument(
            "--output",
            metavar="URI",
            help="Folder for stems, metrics, summary, dead letters and run.json. Required.",
        )
        group.add_argument(
            "--stem_format",
            choices=("flac", "wav"),
            default="flac",
            help="24-bit FLAC, or WAV in 32-bit float. Default %(default)s.",
        )
        group.add_argument(
            "--residual", action="store_true", help="Write the mixture minus the stem too."
        )
        group.add_argument(
            "--resume",
            action="store_true",
            help="Go on with what an earlier run left in --output; finished rows are skipped.",
        )
        group.add_argument(
            "--overwrite",
            action="store_true",
            help="Delete the tables of an earlier run in --output and begin again.",
        )
        group.add_argument(
            "--max_failure_rate",
            type=float,
            default=0.05,
            metavar="0..1",
            help="More dead letters than this part of the rows make the exit code 1. "
            "Default %(default)s.",
        )
        group.add_argument(
            "--shards",
            type=int,
            default=0,
            metavar="N",
            help="Files of metrics for each dataset and split. Default 0: near 128 MB each.",
        )


class RunOptions(PipelineOptions):
    """Where it runs."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        group = parser.add_argument_group(
            "execution",
            "Flags of Beam and its runners work too, such as --num_workers N (local: so many "
            "processes; Dataflow: so many machines), --runner, --project and --temp_location. "
            "Without --runner the job runs in this process.",
        )
        group.add_argument(
            "--accelerator",
            metavar="SPEC",
            help="Of the separation step. Example: 'type:nvidia-l4;count:1;install-nvidia-driver'",
        )
        group.add_argument(
            "--min_ram", metavar="SIZE", help="Of the separation step. Example: 16GB"
        )
        group.add_argument(
            "--share_model",
            action="store_true",
            help="One copy of the model for all worker processes of a machine.",
        )
        group.add_argument(
            "--progress",
            choices=("auto", "bar", "log", "none"),
            default="auto",
            help="Default %(default)s: a bar on a terminal, lines elsewhere.",
        )
        group.add_argument(
            "--log_level",
            choices=("debug", "info", "warning", "error"),
            default="warning",
            help="Default %(default)s.",
        )


SEPARATE_OPTIONS: tuple[type[PipelineOptions], ...] = (
    InputOptions,
    ModelOptions,
    OutputOptions,
    RunOptions,
)

_SEPARATE_EXAMPLES = """examples:
  python -m pipelines.separate --mixture talk.wav --positive "a dog barking" --negative "rain" \\
      --output out/
  python -m pipelines.separate --manifest rows.csv --output out/ --num_workers 4
  python -m pipelines.separate --manifest rows.csv --output out/ --resume
  python -m pipelines.separate --manifest out/dead_letters --output out2/

"""


class _Parser(argparse.ArgumentParser):
    """Raises instead of exiting; knows no abbreviations."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def separate_parser() -> argparse.ArgumentParser:
    """The flags of ``pipelines.separate`` that are its own."""
    parser = _Parser(
        prog="python -m pipelines.separate",
        usage="%(prog)s (--manifest URI | --mixture URI --positive TEXT) --output URI [flags]",
        description="Separates recordings: manifest rows → stems, metrics and dead letters.",
        epilog=_SEPARATE_EXAMPLES + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for options in SEPARATE_OPTIONS:
        _declare(options, parser)
    return parser


def _declare(options: type[PipelineOptions], parser: argparse.ArgumentParser) -> None:
    declare: Any = options._add_argparse_args  # Beam annotates its own parser class
    declare(parser)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> PipelineOptions:
    """Checks the command line and gives Beam's view of it.

    Raises:
        UsageError: an unknown flag, a missing or an unusable value.
        SystemExit: ``--help``, after it was printed.
    """
    _, rest = parser.parse_known_args(list(argv))
    known = beam_flags()
    own = {flag for action in parser._actions for flag in action.option_strings}
    for argument in rest:
        flag = argument.split("=", 1)[0]
        if flag.startswith("--") and flag not in known:
            close = difflib.get_close_matches(flag, sorted(own | known), n=1)
            raise UsageError(f"unknown flag {flag}" + (f"; is it {close[0]}?" if close else ""))
    return PipelineOptions(list(argv))


def beam_flags() -> set[str]:
    """The flags of Beam and its runners."""
    parser = argparse.ArgumentParser(add_help=False, conflict_handler="resolve")
    for options in _all_subclasses(PipelineOptions):
        if options.__module__.startswith("apache_beam."):
            _declare(options, parser)
    return {flag for action in parser._actions for flag in action.option_strings}


def _all_subclasses(cls: type[PipelineOptions]) -> list[type[PipelineOptions]]:
    found = []
    for child in cls.__subclasses__():
        found += [child, *_all_subclasses(child)]
    return found
