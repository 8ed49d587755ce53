"""Renders mixtures and their manifest: ``python -m pipelines.synthesize``."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines import flags


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the job that the command line asks for; gives the exit code."""
    if flags.asks_for_help(flags.SYNTHESIZE, argv):
        return flags.EXIT_OK
    from pipelines.config import answered, synthesize_config

    code = answered(flags.SYNTHESIZE, synthesize_config, argv)
    if code is not None:
        return code
    with flags.without_collections():  # up to here without Beam and torch, which take seconds
        from pipelines import launch
        from pipelines.synthesize_graph import SynthesizeJob

    return launch.main(
        flags.SYNTHESIZE,
        lambda given, execution: SynthesizeJob(synthesize_config(given, execution)),
        argv,
    )


if __name__ == "__main__":
    flags.leave(run)
