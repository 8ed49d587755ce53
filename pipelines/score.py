"""Stems that any system made → the metrics tables of ours: ``pipelines.score``."""

from __future__ import annotations

from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions

from pipelines import flags, jobs
from pipelines.config import SeparateConfig
from pipelines.flags import ScoreOptions

COMMAND = jobs.Command(
    name="pipelines.score",
    usage="--manifest URI --stems URI --system NAME --output URI [flags]",
    description="Scores stems against references, where the manifest has them, and against the "
    "queries: the same tables as pipelines.separate writes.",
    examples="""  python -m pipelines.score --manifest rows.csv --stems stems/ --system AudioSep \\
      --output scores/
  python -m pipelines.score --manifest rows.csv --stems 'gs://b/{dataset}/{id}_est.wav' \\
      --scorer none --output scores/
""",
    shared=(
        *(
            "manifest",
            "max_clip_in_memory_s",
            "allowed_uri_prefix",
            "storage_options",
            "output",
            "overwrite",
            "force_unlock",
        ),
        *("model", "scorer", "device", "batch_size", "max_failure_rate", "shards"),
    ),
    own=ScoreOptions,
)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the job that the command line asks for; gives the exit code."""

    def build(options: PipelineOptions, config: SeparateConfig) -> jobs.Job:
        from pipelines import score_graph

        return score_graph.job(options, config)

    return jobs.main(COMMAND, build, argv)


if __name__ == "__main__":
    flags.leave(run())
