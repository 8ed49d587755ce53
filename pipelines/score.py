"""Scores stems that any system made: ``python -m pipelines.score``."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines import flags


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the job that the command line asks for; gives the exit code."""
    if flags.asks_for_help(flags.SCORE, argv):
        return flags.EXIT_OK
    from pipelines.config import answered, score_config

    code = answered(flags.SCORE, score_config, argv)
    if code is not None:
        return code
    with flags.without_collections():  # up to here without Beam and torch, which take seconds
        from pipelines import launch
        from pipelines.score_graph import ScoreJob

    return launch.main(
        flags.SCORE, lambda given, execution: ScoreJob(score_config(given, execution)), argv
    )


if __name__ == "__main__":
    flags.leave(run)
