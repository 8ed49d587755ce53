"""``python -m manifests.validate URI``: says what a manifest holds and what is wrong with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from manifests.checking import as_dict, as_text, check
from manifests.errors import ManifestError
from terminal import flags, screen


def run(argv: Sequence[str] | None = None) -> int:
    """Checks a manifest.

    Args:
        argv: command line without the program's name; None for that of the process.

    Returns:
        0 if every row can be used, 1 if a row cannot or repeats an id, 2 if a file cannot be read
        or the report in JSON cannot be written.
    """
    screen.steady()
    parser = flags.Parser(
        prog="python -m manifests.validate",
        description="Says what a manifest holds and what is wrong with it, row by row.",
        epilog="Exit code: 0 valid, 1 rows that cannot be used, 2 a file that cannot be read. "
        "Example: python -m manifests.validate gs://bucket/m.parquet --max_errors 100",
    )
    parser.add_argument(
        "uri", help="CSV, JSONL or Parquet: a file, folder or pattern; any fsspec URI"
    )
    parser.add_argument("--max_errors", type=int, default=20, help="how many to show (default 20)")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default text")
    options = parser.parse_args(argv)
    if options.max_errors < 0:
        parser.error(f"--max_errors {options.max_errors}; expected 0 or more")
    try:
        report = check(options.uri, max_errors=options.max_errors)
    except ManifestError as err:
        sys.stderr.write(f"{err}\n")
        return 2
    if options.format == "json":
        sys.stdout.write(json.dumps(as_dict(report), indent=2) + "\n")
        if (error := screen.lost()) is not None:
            sys.stderr.write(f"the report was not written: {error.strerror}\n")
            return 2
    else:
        sys.stdout.write(as_text(report))
    return 0 if report.is_valid else 1


if __name__ == "__main__":
    sys.exit(run())
