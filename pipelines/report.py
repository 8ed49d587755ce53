"""``python -m pipelines.report RUN --output DIR``: writes metrics as tables, plots and a page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from manifests.columns import METRIC_COLUMNS, SHOWN_METRICS
from manifests.files import absolute
from pipelines.config import prefixes_of, storage_options_of
from pipelines.flags import EXIT_USAGE
from terminal import flags, screen
from transforms.storage.access import configure_logging, redact, secrets_of

if TYPE_CHECKING:  # it brings pandas, which a wrong flag need not wait for
    from pipelines.reporting.runs import ReportConfig

_EXAMPLES = """writes:
  report.html            a page that opens from disk; nothing is fetched from a network
  tables.md .csv .tex    every figure with model, scorer, protocol, n, undefined and failed
  plots/*.png            the plots of the page
  precision.csv          with --reviews: what a listener judged of each query

examples:
  python -m pipelines.report out/ --output report/
  python -m pipelines.report baseline/ new/ --names before after --output report/
"""


def parser() -> flags.Parser:
    """The flags."""
    found = flags.Parser(
        prog="python -m pipelines.report",
        description="Metrics of one or more runs → tables, plots and a page to look at and listen "
        "to. With several runs, each is compared with the first on the ids that both have.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.confidential = frozenset({"--storage_options"})
    found.add_argument(
        "runs", nargs="+", metavar="RUN", help="Folder that pipelines.separate or score wrote."
    )
    found.add_argument("--output", required=True, metavar="URI", help="Folder for the report.")
    found.add_argument("--names", nargs="+", metavar="NAME", help="Of the runs, in their order.")
    found.add_argument(
        "--title", default="Separation report", help="Of the page. Default: %(default)s."
    )
    found.add_argument(
        "--metric",
        default=SHOWN_METRICS[0],
        choices=METRIC_COLUMNS,
        metavar="COLUMN",
        help="What plots and examples are about; a column of the metrics. Default: %(default)s.",
    )
    found.add_argument(
        "--listen",
        type=int,
        default=1,
        metavar="N",
        help="Best, median and worst clips of each run to put into the page, so many of each kind. "
        "About 2 MB a clip. Default: %(default)s.",
    )
    found.add_argument(
        "--reviews",
        metavar="URI",
        help="What a listener judged of segments, as the page of an earlier report saved it: gives "
        "for each query the part that is right, and the score from which 90 %% are.",
    )
    found.add_argument(
        "--allowed_uri_prefix",
        action="append",
        default=[],
        metavar="URI",
        help="Folder, bucket or host from which clips may be read to be put into the page, beside "
        "the run folders; to be given once for each. For runs of somebody else. Default: what each "
        "run itself was allowed to read, as its run.json says.",
    )
    found.add_argument(
        "--storage_options",
        default="{}",
        metavar="JSON",
        help='fsspec options by protocol. Example: \'{"gs": {"token": "anon"}}\'',
    )
    return found


def config_of(argv: Sequence[str]) -> ReportConfig:
    """The configuration that the command line asks for.

    Raises:
        ValueError: a value that cannot be used.
        SystemExit: ``--help``, or a flag that there is not.
    """
    from pipelines.reporting.runs import ReportConfig, run_names

    options = parser().parse_args(list(argv))
    runs = tuple(absolute(uri) for uri in options.runs)
    names = options.names or run_names(runs)
    if len(names) != len(runs) or len(set(names)) != len(names):
        raise ValueError(f"--names: expected {len(runs)} different names, found {names}")
    if not 0 <= options.listen <= 20:
        raise ValueError(f"--listen={options.listen}: expected 0 to 20")
    return ReportConfig(
        runs=runs,
        names=tuple(names),
        output=absolute(options.output),
        title=options.title,
        metric=options.metric,
        listen=options.listen,
        allowed_uri_prefix=prefixes_of(options.allowed_uri_prefix),
        storage_options=storage_options_of(options.storage_options),
        reviews=None if options.reviews is None else absolute(options.reviews),
    )


def run(argv: Sequence[str] | None = None) -> int:
    """Writes the report that the command line asks for; gives the exit code."""
    screen.steady()

    secrets: tuple[str, ...] = ()
    try:
        config = config_of(sys.argv[1:] if argv is None else argv)
        secrets = secrets_of(config.storage_options)
        configure_logging("warning", secrets)
        from pipelines.reporting.build import build

        written = build(config)
    except (ValueError, OSError, ImportError) as err:  # RunError is a ValueError
        sys.stderr.write(
            f"error: {redact(str(err), secrets)}\nSee python -m pipelines.report --help\n"
        )
        return EXIT_USAGE
    except SystemExit as err:
        return int(err.code or 0)
    sys.stdout.write(redact("\n".join(written)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run())
