"""The main job: ``python -m pipelines.separate``; manifest rows → stems, metrics, dead letters."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipelines import config as configuration
from pipelines import flags
from terminal import screen
from transforms.storage.redaction import redact


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the job that the command line asks for; gives the exit code."""
    screen.steady()
    secrets: tuple[str, ...] = ()
    try:
        given = sys.argv[1:] if argv is None else argv
        options = flags.parse(flags.separate_parser(), given)
        command = ("python", "-m", "pipelines.separate", *given)
        config = configuration.separate_config(options, command)
        secrets = config.secrets
        flags.forget_secrets(options)
        from pipelines import launch

        return launch.run_separate(config, options)
    except flags.UsageError as err:
        sys.stderr.write(
            f"error: {redact(str(err), secrets)}\nSee python -m pipelines.separate --help\n"
        )
        return flags.EXIT_USAGE
    except SystemExit as err:  # --help
        return int(err.code or 0)


if __name__ == "__main__":
    flags.leave(run())
