"""``python -m manifests.benchmarks``: the manifest of a benchmark from its official lists."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from manifests.benchmarks.options import parser
from manifests.benchmarks.pairs import BENCHMARKS
from manifests.benchmarks.recipes import MissingClipsError, build
from manifests.errors import ManifestError
from terminal import screen


def run(argv: Sequence[str] | None = None) -> int:
    """Builds a manifest and says what it holds.

    Args:
        argv: command line without the program's name; None for that of the process.

    Returns:
        0 if it was written, 1 if clips are missing, 2 if a list or folder cannot be used.
    """
    screen.steady()
    options = parser().parse_args(argv)
    try:
        outcome = build(options)
    except MissingClipsError as err:
        sys.stderr.write(f"{err}; nothing was written (--on_missing skip leaves those rows out)\n")
        return 1
    except (ManifestError, ValueError, OSError) as err:
        sys.stderr.write(f"{err}\n")
        return 2
    if outcome.missing:
        sys.stderr.write(f"{outcome.missing}\n")
    text = f"{options.output}: {outcome.num_rows:,} rows"
    if outcome.num_skipped:
        text += f", {outcome.num_skipped:,} left out for missing clips"
    benchmark = BENCHMARKS.get(options.command)
    if benchmark is not None and outcome.num_rows != benchmark.num_rows:
        text += f" (the official set has {benchmark.num_rows:,})"
    sys.stdout.write(f"{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(run())
