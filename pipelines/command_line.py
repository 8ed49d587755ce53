"""The command line: our flags checked strictly, Beam's passed on; ``--help`` without torch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.options import InputOptions, ModelOptions, OutputOptions, RunOptions, UsageError
from terminal import flags

_EXIT_CODES = """exit codes:
  0    every row is done, or failed within --max_failure_rate
  1    more rows failed than --max_failure_rate allows; all results are written
  2    a flag, a manifest, a model or the output folder cannot be used; nothing was run
  3    the job itself failed; --resume goes on from what was finished
  130  interrupted; only complete files are left, --resume goes on
"""

SEPARATE_OPTIONS: tuple[type[PipelineOptions], ...] = (
    InputOptions,
    ModelOptions,
    OutputOptions,
    RunOptions,
)

_SEPARATE_EXAMPLES = """examples:
  python -m pipelines.separate --mixture talk.wav --positive "a dog barking" --negative "rain" \\
      --output out/
  python -m pipelines.separate --mixture talk.wav --positive "a dog" --positive speech \\
      --negative others --output out/
  python -m pipelines.separate --manifest rows.csv --output out/ --num_workers 4
  python -m pipelines.separate --manifest rows.csv --output out/ --resume
  python -m pipelines.separate --manifest out/dead_letters --output out2/

"""


class JobParser(flags.Parser):
    """Raises instead of exiting."""

    def error(self, message: str) -> NoReturn:
        """Raises ``UsageError``."""
        raise UsageError(message)


def separate_parser() -> JobParser:
    """The flags of ``pipelines.separate`` that are its own."""
    parser = JobParser(
        prog="python -m pipelines.separate",
        usage="%(prog)s (--manifest URI | --mixture URI --positive TEXT) --output URI [flags]",
        description="Separates recordings: manifest rows → stems, metrics and dead letters.",
        epilog=_SEPARATE_EXAMPLES + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for options in SEPARATE_OPTIONS:
        _declare(options, parser)
    parser.confidential = frozenset({"--storage_options"})
    parser.instead_of_several = {
        "--mixture": "several recordings are the rows of a manifest, which "
        "python -m manifests.example begins for you"
    }
    return parser


def _declare(options: type[PipelineOptions], parser: argparse.ArgumentParser) -> None:
    declare: Any = options._add_argparse_args  # Beam annotates its own parser class
    declare(parser)


def parse(parser: JobParser, argv: Sequence[str]) -> PipelineOptions:
    """Checks the command line and gives Beam's view of it.

    Raises:
        UsageError: a word that belongs to no flag, an unknown flag, a missing or an unusable value.
        SystemExit: ``--help``, after it was printed.
    """
    for word in argv:
        _require_text(word)
    beam = _beam_parser()
    parser.others = tuple(beam._actions)
    parser.parse_known_args(argv)
    beam.parse_known_args(list(argv))
    return PipelineOptions(list(argv))


def _require_text(word: str) -> None:
    """Refuses what is no text in the encoding of the process: no record or name could hold it."""
    try:
        word.encode("utf-8")
    except UnicodeEncodeError as err:
        encoding = sys.getfilesystemencoding()
        hint = "" if encoding == "utf-8" else "; set PYTHONUTF8=1, or a locale such as C.UTF-8"
        raise UsageError(f"{word!r}: has bytes that are no text in {encoding}{hint}") from err


def beam_flags() -> set[str]:
    """The flags of Beam and its runners."""
    return {flag for action in _beam_parser()._actions for flag in action.option_strings}


class _BeamParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _beam_parser() -> argparse.ArgumentParser:
    """Beam's flags and those of its runners, with its own checks of their values."""
    parser = _BeamParser(add_help=False, conflict_handler="resolve", allow_abbrev=False)
    for options in _all_subclasses(PipelineOptions):
        if options.__module__.startswith("apache_beam."):
            _declare(options, parser)
    return parser


def _all_subclasses(cls: type[PipelineOptions]) -> list[type[PipelineOptions]]:
    found = []
    for child in cls.__subclasses__():
        found += [child, *_all_subclasses(child)]
    return found


def leave(code: int) -> NoReturn:
    """Ends the process at once: threads of a job that was given up may still wait for its engine.

    Nothing that they would write is wanted, and files appear by renaming.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
