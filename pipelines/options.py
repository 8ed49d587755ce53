"""Every flag of the main job once, grouped, with units in the name; and the exit codes."""

from __future__ import annotations

from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

EXIT_OK = 0
EXIT_FAILURE_RATE = 1
EXIT_USAGE = 2
EXIT_JOB_FAILED = 3
EXIT_INTERRUPTED = 130


class UsageError(ValueError):
    """Something about the command line that the user can put right."""


def forget_secrets(options: PipelineOptions) -> None:
    """Takes what the configuration has by then out of the options that a runner shows to people."""
    options.view_as(InputOptions).storage_options = "{}"


class InputOptions(PipelineOptions):
    """What is to be separated."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        group = parser.add_argument_group("input: a manifest, or one recording")
        group.add_argument(
            "--manifest",
            nargs="+",
            action="extend",
            metavar="URI",
            help="CSV, JSONL or Parquet: files, folders or patterns, local or remote; to be given "
            "once or several times. Example: --manifest gs://bucket/rows/*.parquet",
        )
        group.add_argument(
            "--mixture",
            metavar="URI",
            help="One recording, instead of a manifest. Example: --mixture talk.wav",
        )
        group.add_argument(
            "--positive",
            action="append",
            metavar="TEXT",
            help="What to extract. Given several times, each is extracted into a stem of its own. "
            'Example: --positive "a dog barking" --positive speech',
        )
        group.add_argument(
            "--negative",
            metavar="TEXT",
            help="What to suppress, with every --positive. The word 'others' stands for the texts "
            "of the other --positive of the command; to suppress the text 'others' itself, write "
            'a manifest. Example: "rain"',
        )
        group.add_argument(
            "--positive_audio", nargs="+", metavar="URI", help="Example clips of what to extract."
        )
        group.add_argument(
            "--negative_audio", nargs="+", metavar="URI", help="Example clips of what to suppress."
        )
        group.add_argument(
            "--text_weight",
            type=float,
            metavar="0..1",
            help="With --mixture: 0 = example clips only, 1 = text only. "
            "Default 0.5 where a query has both.",
        )
        group.add_argument(
            "--reference",
            metavar="URI",
            help="With --mixture and one query: the target alone, to score against.",
        )
        group.add_argument(
            "--max_clip_in_memory_s",
            type=float,
            default=60.0,
            metavar="S",
            help="Recordings with more samples than so many seconds of 48 kHz stereo are streamed "
            "in constant memory. Default %(default)s.",
        )
        group.add_argument(
            "--allowed_uri_prefix",
            action="append",
            metavar="URI",
            help="Folder, bucket or host that rows may read from; to be given once for each. A row "
            "that names anything else is a dead letter. Without it rows may read whatever this "
            "process can. Example: --allowed_uri_prefix gs://bucket/clips",
        )
        group.add_argument(
            "--storage_options",
            default="{}",
            metavar="JSON",
            help='fsspec options by protocol. Example: \'{"gs": {"token": "anon"}}\'',
        )


class ModelOptions(PipelineOptions):
    """What separates, and how."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        group = parser.add_argument_group("model")
        group.add_argument(
            "--model",
            default="clapsep-mini",
            metavar="NAME",
            help="A name of the registry, or the URI of a converted checkpoint. "
            "Default %(default)s, which is bundled.",
        )
        group.add_argument(
            "--scorer",
            default="own",
            metavar="NAME",
            help="The CLAP that gives CLAPScores: 'own' (the model's, which is circular: it hears "
            "as the separator does), 'none', a name or a URI. Default %(default)s.",
        )
        group.add_argument(
            "--device", default="auto", help="auto, cpu, cuda or cuda:N. Default %(default)s."
        )
        group.add_argument(
            "--precision",
            choices=("fp32", "bf16"),
            default="fp32",
            help="Of the network. Default %(default)s.",
        )
        group.add_argument(
            "--compile",
            action="store_true",
            help="Run the network through torch.compile: minutes at the start, for long runs on a "
            "GPU. Where it cannot be done, a warning is logged. Changes results by rounding.",
        )
        group.add_argument(
            "--batch_size",
            type=int,
            default=8,
            metavar="N",
            help="Windows of 10 s, channels counted, in one forward pass. Default %(default)s.",
        )
        group.add_argument(
            "--num_threads",
            type=int,
            default=0,
            metavar="N",
            help="CPU threads of the network, a process. Default 0: the cores of the machine, "
            "divided among --num_workers; on a Dask cluster 1.",
        )
        group.add_argument(
            "--overlap",
            type=float,
            default=0.25,
            metavar="0..1",
            help="The part of a window that it shares with the next. Default %(default)s.",
        )
        group.add_argument(
            "--channels",
            choices=("per_channel", "mid"),
            default="per_channel",
            help="Separate every channel, or their mean into a mono stem. Default %(default)s.",
        )
        group.add_argument(
            "--condition_norm",
            choices=("normalised", "unnormalised"),
            default="normalised",
            help="'unnormalised' reproduces the authors' evaluation script. Default %(default)s.",
        )
        group.add_argument(
            "--on_unsupported_query",
            choices=("dead_letter", "nearest"),
            default="dead_letter",
            help="What becomes of a query that the model cannot use (negative ones, example clips, "
            "free text): a dead letter, or the nearest setting that it can use, which is what the "
            "metrics then say. Default %(default)s.",
        )


class OutputOptions(PipelineOptions):
    """What is written."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        group = parser.add_argument_group("output")
        group.add_argument(
            "--output",
            metavar="URI",
            help="Folder for stems, metrics, summary, dead letters and run.json. Required.",
        )
        group.add_argument(
            "--stem_format",
            choices=("flac", "wav"),
            default="flac",
            help="24-bit FLAC, or WAV in 32-bit float. Default %(default)s. What FLAC cannot hold "
            "(samples over full scale, some rates from 65,536 Hz) becomes WAV all the same.",
        )
        group.add_argument(
            "--residual", action="store_true", help="Write the mixture minus the stem too."
        )
        group.add_argument(
            "--resume",
            action="store_true",
            help="Go on with what an earlier run left in --output: finished rows are skipped where "
            "the manifest says the same of them, and done again where it does not. Rows that are "
            "no longer in the manifest leave the tables when all manifests of the earlier runs "
            "are given again; with another manifest, or --manifest OUTPUT/dead_letters, they stay.",
        )
        group.add_argument(
            "--verify",
            action="store_true",
            help="With --resume: look whether the stems of finished rows are there, readable and "
            "as long as they should be; rows with others are done again.",
        )
        group.add_argument(
            "--overwrite",
            action="store_true",
            help="Begin again: when manifests and model were checked, delete what earlier runs of "
            "this command wrote into --output. That is: the files of audio that its tables name "
            "(stems and residuals, or rendered mixtures, references and interferers), the tables "
            "(metrics, summary, dead_letters, manifest), the working files in _work, and run.json. "
            "Nothing else is deleted; refused where a run still writes there, or where the "
            "manifest, or something that it names, lies in --output.",
        )
        group.add_argument(
            "--force_unlock",
            action="store_true",
            help="Take --output although another run holds it: only when you know that it has "
            "ended, such as the job of a template.",
        )
        group.add_argument(
            "--max_failure_rate",
            type=float,
            default=0.05,
            metavar="0..1",
            help="More dead letters than this part of the rows make the exit code 1. "
            "Default %(default)s.",
        )
        group.add_argument(
            "--shards",
            type=int,
            default=0,
            metavar="N",
            help="Files of metrics for each dataset and split. Default 0: near 128 MB each.",
        )


class RunOptions(PipelineOptions):
    """Where it runs."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        group = parser.add_argument_group(
            "execution",
            "Flags of Beam and its runners work too, such as --num_workers N (local: so many "
            "processes; Dataflow: so many machines), --runner, --project and --temp_location. "
            "Without --runner the job runs in this process; --runner=dask runs it on a Dask "
            "cluster.",
        )
        group.add_argument(
            "--dask_client_address",
            metavar="URL",
            help="With --runner=dask: the scheduler. Example: tcp://10.0.0.5:8786",
        )
        group.add_argument(
            "--accelerator",
            metavar="SPEC",
            help="Of the separation step. Example: 'type:nvidia-l4;count:1;install-nvidia-driver'",
        )
        group.add_argument(
            "--min_ram", metavar="SIZE", help="Of the separation step. Example: 16GB"
        )
        group.add_argument(
            "--share_model",
            action="store_true",
            help="One copy of the model for all worker processes of a machine.",
        )
        group.add_argument(
            "--isolate_decoder",
            action="store_true",
            help="Decode audio in processes of its own: a file that crashes the decoder becomes a "
            "dead letter instead of ending the run. For archives of unknown origin.",
        )
        group.add_argument(
            "--progress",
            choices=("auto", "bar", "log", "none"),
            default="auto",
            help="Default %(default)s: a bar on a terminal, lines elsewhere.",
        )
        group.add_argument(
            "--log_level",
            choices=("debug", "info", "warning", "error"),
            default="warning",
            help="Default %(default)s.",
        )
