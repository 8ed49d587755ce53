"""Runs the main job, ``python -m pipelines.separate``: manifest rows → stems and metrics."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines import flags


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the job that the command line asks for; gives the exit code."""
    if flags.asks_for_help(flags.SEPARATE, argv):
        return flags.EXIT_OK
    from pipelines.config import answered, separate_config

    code = answered(flags.SEPARATE, separate_config, argv)
    if code is not None:
        return code
    with flags.without_collections():  # up to here without Beam and torch, which take seconds
        from pipelines import launch
        from pipelines.separate_graph import SeparateJob

    return launch.main(
        flags.SEPARATE,
        lambda given, execution: SeparateJob(separate_config(given, execution)),
        argv,
    )


if __name__ == "__main__":
    flags.leave(run)
