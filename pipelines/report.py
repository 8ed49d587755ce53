"""Metrics of runs as tables, plots and a page: ``python -m pipelines.report RUN --output DIR``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipelines.logs import configure_logging
from terminal import screen
from transforms.redaction import redact, secrets_of

EXIT_USAGE = 2


def run(argv: Sequence[str] | None = None) -> int:
    """Writes the report that the command line asks for; gives the exit code."""
    screen.steady()
    from pipelines.reporting import command

    secrets: tuple[str, ...] = ()
    try:
        config = command.config_of(sys.argv[1:] if argv is None else argv)
        secrets = secrets_of(config.storage_options)
        configure_logging("warning", secrets)
        from pipelines.reporting.build import build  # torch and matplotlib, which --help can spare

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
