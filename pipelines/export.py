"""Takes results along as a data set: ``python -m pipelines.export``."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines import flags


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the job that the command line asks for; gives the exit code."""
    if flags.asks_for_help(flags.EXPORT, argv):
        return flags.EXIT_OK
    from pipelines.config import answered, export_config

    code = answered(flags.EXPORT, export_config, argv)
    if code is not None:
        return code
    with flags.without_collections():  # up to here without Beam and torch, which take seconds
        from pipelines import launch
        from pipelines.export_graph import ExportJob

    return launch.main(
        flags.EXPORT, lambda given, execution: ExportJob(export_config(given, execution)), argv
    )


if __name__ == "__main__":
    flags.leave(run)
