"""The main job: ``python -m pipelines.separate``; manifest rows → stems, metrics, dead letters."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipelines import command_line
from pipelines import config as configuration
from pipelines import options as flags
from terminal import screen
from transforms.redaction import redact


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the job that the command line asks for; gives the exit code."""
    screen.steady()
    secrets: tuple[str, ...] = ()
    try:
        given = sys.argv[1:] if argv is None else argv
        options = command_line.parse(command_line.separate_parser(), given)
        command = ("python", "-m", "pipelines.separate", *given)
        config = configuration.separate_config(options, command)
        secrets = config.secrets
        flags.forget_secrets(options)
        from pipelines import launch  # torch, which --help and a wrong flag do without

        return launch.run_separate(config, options)
    except flags.UsageError as err:
        sys.stderr.write(
            f"error: {redact(str(err), secrets)}\nSee python -m pipelines.separate --help\n"
        )
        return flags.EXIT_USAGE
    except SystemExit as err:  # --help
        return int(err.code or 0)


if __name__ == "__main__":
    command_line.leave(run())
