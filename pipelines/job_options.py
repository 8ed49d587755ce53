"""Flags that only the smaller jobs have."""

from __future__ import annotations

from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions


class SynthesizeOptions(PipelineOptions):
    """How mixtures are rendered."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        group = parser.add_argument_group("mixtures")
        group.add_argument(
            "--mix_rate_hz",
            type=int,
            default=32_000,
            metavar="HZ",
            help="Of everything that is rendered. Default %(default)s.",
        )
        group.add_argument(
            "--mix_level_range_db",
            type=float,
            nargs=2,
            metavar=("LOW", "HIGH"),
            help="Draw the level of the target above the interferers of each row evenly from here, "
            "instead of taking the manifest's. Example: --mix_level_range_db -5 5",
        )
        group.add_argument(
            "--mix_seed",
            type=int,
            default=0,
            metavar="N",
            help="Of what is drawn: with a row's id (and its seed, if it has one) it decides the "
            "row, on any runner. Default %(default)s.",
        )


class ScoreOptions(PipelineOptions):
    """Whose stems are scored."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        group = parser.add_argument_group("stems")
        group.add_argument(
            "--stems",
            metavar="URI",
            help="A folder with <id>.flac or <id>.wav (or else aiff, ogg, mp3 and the like, the "
            "first that is there), or a template with {id}, {name} (the id "
            "as a file name of ours), {dataset}, {split}, {label} or a further column of the "
            "manifest. Without it the manifest has a column stem_uri of absolute URIs. "
            "Example: 'out/{name}_estimate.wav'",
        )
        group.add_argument(
            "--system",
            default="unnamed",
            metavar="NAME",
            help="What made the stems; the column model of the metrics. Default %(default)s.",
        )
        group.add_argument(
            "--score_rate_hz",
            type=int,
            default=32_000,
            metavar="HZ",
            help="Rate at which ratios are computed; what is at another is resampled. "
            "Default %(default)s.",
        )
