"""Sources and a mixing plan → mixtures on disk and their manifest: ``pipelines.synthesize``."""

from __future__ import annotations

from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions

from pipelines import flags, jobs
from pipelines.config import SeparateConfig
from pipelines.flags import SynthesizeOptions

COMMAND = jobs.Command(
    name="pipelines.synthesize",
    usage="--manifest URI --output URI [flags]",
    description="Renders mixtures, references and interferers, and the manifest to separate them: "
    "the same bytes for the same seed, on any runner.",
    examples="""  python -m pipelines.synthesize --manifest esc50.parquet --output gs://bucket/esc50/
  python -m pipelines.separate --manifest gs://bucket/esc50/manifest --output out/
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
        *("stem_format", "max_failure_rate"),
    ),
    own=SynthesizeOptions,
)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the job that the command line asks for; gives the exit code."""

    def build(options: PipelineOptions, config: SeparateConfig) -> jobs.Job:
        from pipelines import synthesize_graph

        return synthesize_graph.job(options, config)

    return jobs.main(COMMAND, build, argv)


if __name__ == "__main__":
    flags.leave(run())
