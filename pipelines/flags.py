"""Declares every flag of every job once, with units in its name, and parses command lines strictly.

Words that are not ours are passed on to Beam. ``--help`` needs neither Beam nor torch.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import importlib.metadata
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from manifests import QUERY_FLAGS
from terminal import flags, screen

EXIT_OK = 0
EXIT_FAILURE_RATE = 1
EXIT_USAGE = 2
EXIT_JOB_FAILED = 3
EXIT_INTERRUPTED = 130
LABEL_LAYOUTS = ("audacity", "raven")
"""Of exports: times in a recording, without audio."""
_STEM_FORMATS = ("flac", "wav", "flac16", "wav16", "opus", "mp3")
"""The names of ``transforms.audio.files.STEM_FORMATS``, which a wrong flag need not wait for."""
_HELP = frozenset({"-h", "--help"})


class UsageError(ValueError):
    """Something about the command line that the user can put right."""


def _add_input(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("input: a manifest, or recordings and queries")
    group.add_argument(
        "--manifest",
        nargs="+",
        action="extend",
        metavar="URI",
        help="CSV, JSONL or Parquet: files, folders or patterns, local or remote; to be given "
        "once or several times. Example: --manifest gs://bucket/rows/*.parquet",
    )
    group.add_argument(
        "--shard",
        metavar="I/N",
        help="Do part I of N of the manifest's rows, counted from 0, into the folder shard=I-of-N "
        "of --output: as many commands share a manifest, on as many machines. All name the "
        "manifest by the same address. Example: --shard 0/4",
    )
    group.add_argument(
        "--mixture",
        metavar="URI",
        help="One recording, instead of a manifest; its stems have its name. "
        "Example: --mixture talk.wav",
    )
    for name, settings in QUERY_FLAGS.items():
        group.add_argument(name, **settings)
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


def _add_model(parser: argparse.ArgumentParser) -> None:
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
        "--clap_scores",
        choices=("stem", "all"),
        default="all",
        help="Which CLAPScores there are: 'stem' leaves out those that compare the stem with its "
        "mixture or its reference, which have to be embedded too. Default %(default)s.",
    )
    group.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda or cuda:N. With --num_workers each worker process has one GPU, in "
        "turn of all, or of those that are named: cuda:0,2. Default %(default)s.",
    )
    group.add_argument(
        "--precision",
        choices=("fp32", "tf32", "bf16"),
        default="fp32",
        help="Of the network and the scorer: fp32; tf32, on NVIDIA GPUs from Ampere on; bf16, "
        "where the processor or GPU has instructions for it. Default %(default)s.",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="Run the network through torch.compile: minutes at the start, for long runs on a "
        "GPU, whose CUDA graphs then hold what was compiled. Where it cannot be done, a warning is "
        "logged. Changes results by rounding.",
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
        help="CPU threads of the network, a process. Default 0: the cores that this process may "
        "use (in a container, its quota), divided among --num_workers; on a Dask cluster 1.",
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


_ACTIVITY = (
    (
        "level_db",
        "DB",
        "A stretch needs a moment at which the stem is at least so high over the mixture.",
    ),
    ("percentile", "0..100", "Of the stem's own level around a moment."),
    ("percentile_s", "S", "Over so many seconds around it."),
    (
        "rise_db",
        "DB",
        "At the same moment, the stem is at least so high over that percentile; below 0 with a "
        "high percentile.",
    ),
    ("hysteresis_db", "DB", "A stretch goes on while neither level is missed by more."),
    ("min_gap_s", "S", "Stretches that are nearer to each other are one."),
    (
        "min_length_s",
        "S",
        "After that, the moments of a stretch at which the stem is that high last at least so long "
        "together.",
    ),
)
"""The flags of ``model.signal.ActivityOptions``: name, what stands for a value, and help."""


def _add_segments(parser: argparse.ArgumentParser) -> None:
    from model.signal import ActivityOptions  # its defaults; whoever parses nothing needs no numpy

    usual = ActivityOptions()
    group = parser.add_argument_group(
        "segments", "Where a stem is active, in steps of 100 ms; one row of segments/ a stretch."
    )
    for name, metavar, text in _ACTIVITY:
        group.add_argument(
            f"--segment_{name}",
            type=float,
            default=getattr(usual, name),
            metavar=metavar,
            help=f"{text} Default %(default)g.",
        )
    group.add_argument(
        "--segment_scores",
        action="store_true",
        help="Give each segment a CLAPScore of its own: one more pass of the scorer for each.",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output",
        metavar="URI",
        help="Folder for stems, metrics, summary, dead letters and run.json. Required.",
    )
    group.add_argument(
        "--stem_format",
        choices=_STEM_FORMATS,
        default="flac",
        help="flac: 24 bits; wav: 32-bit float; flac16 and wav16: 16 bits; opus and mp3, for "
        "listening, resampled where they lack the rate. Default %(default)s. What else a format "
        "cannot hold (samples over full scale, channels) becomes float WAV or FLAC all the same.",
    )
    group.add_argument(
        "--stem_quality",
        type=float,
        metavar="0..1",
        help="Of opus and mp3: 1 is the best and largest. Default: what libsndfile chooses.",
    )
    group.add_argument(
        "--residual", action="store_true", help="Write the mixture minus the stem too."
    )
    group.add_argument(
        "--keep_stems",
        choices=("all", "present", "none"),
        default="all",
        help="Which stems become files: all, those of a presence from --min_presence on (and "
        "those of which nobody says it: models without presence, negative queries), or none. "
        "The tables have a row for each in any case. Default %(default)s.",
    )
    group.add_argument(
        "--min_presence",
        type=float,
        metavar="0..1",
        help="With --keep_stems present. Default 0.5.",
    )
    group.add_argument(
        "--embeddings",
        action="store_true",
        help="Keep the scorer's embedding of each stem, which it computes for the CLAPScores, in "
        "embeddings/. 2 kB a stem.",
    )
    group.add_argument(
        "--windows",
        action="store_true",
        help="Embed every 10 s of every recording once by the model's CLAP, and keep that in "
        "windows/, where it is found again by later runs into the same output.",
    )
    group.add_argument(
        "--screen",
        metavar="auto|VALUE",
        help="Separate only what is plausible by these windows, which are kept as with --windows: "
        "a presence in one of them of at least VALUE, 0 to 1, or for a model that does not tell it "
        "a similarity to the positive query, -1 to 1. The tables have a row for each in any case. "
        "auto: as measured for the model, which only the bundled one has.",
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
        "(stems and residuals, or rendered mixtures, references and interferers, or a data set), "
        "the tables (metrics, segments, summary, embeddings, windows, dead_letters, manifest and "
        "events.csv, exported), the working files in _work, and run.json. "
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


def _add_run(parser: argparse.ArgumentParser) -> None:
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
        help="Of the separation step, whose workers then fail where they have no GPU. Example: "
        "'type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver;use_nvidia_mps'",
    )
    group.add_argument("--min_ram", metavar="SIZE", help="Of the separation step. Example: 16GB")
    group.add_argument(
        "--cpu_count",
        type=int,
        metavar="N",
        help="Cores of a machine of the separation step, where the runner heeds that hint.",
    )
    group.add_argument(
        "--max_active_bundles_per_worker",
        type=int,
        metavar="N",
        help="Bundles that a machine of the separation step works on at once, where the runner "
        "heeds that hint.",
    )
    group.add_argument(
        "--isolate_decoder",
        action="store_true",
        help="Decode audio in processes of its own: a file that crashes the decoder becomes a "
        "dead letter instead of ending the run. For archives of unknown origin.",
    )
    group.add_argument(
        "--max_silence_s",
        type=float,
        default=900.0,
        metavar="S",
        help="A worker process of --num_workers that gives no sign of life for so long, after the "
        "first result, hangs: the run ends with exit code 3. An isolated decoder hangs after "
        "half of that, or 60 s; its clip is a dead letter. 0: never, and 60 s. "
        "Default %(default)s.",
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


def _add_mixtures(parser: argparse.ArgumentParser) -> None:
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


def _add_stems(parser: argparse.ArgumentParser) -> None:
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


def _add_export(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is taken")
    group.add_argument(
        "--runs",
        nargs="+",
        action="extend",
        metavar="URI",
        help="Output folders of pipelines.separate; to be given once or several times.",
    )
    group.add_argument(
        "--where",
        default="true",
        metavar="SQL",
        help="A condition in DuckDB's SQL over the columns of metrics/ and segments/ "
        "(docs/columns.md). With segments, what both have is the segment's, and the clip's is "
        "clip_…. Default: everything. Example: \"presence > 0.8 AND label = 'dog'\"",
    )
    group.add_argument(
        "--cut",
        choices=("segments", "clips"),
        default="segments",
        help="Take the stretches of segments/, or whole stems. Default %(default)s.",
    )
    group.add_argument(
        "--signal",
        choices=("stem", "mixture"),
        default="stem",
        help="Take the sound from the stem, or from the recording as it was. Default %(default)s.",
    )
    group.add_argument(
        "--margin_s",
        type=float,
        default=0.0,
        metavar="S",
        help="Take so much more on either side of a segment. Default %(default)s.",
    )
    group = parser.add_argument_group("how it is laid out")
    group.add_argument(
        "--layout",
        choices=("audiofolder", "webdataset", "parquet", "nemo", *LABEL_LAYOUTS),
        default="audiofolder",
        help="audiofolder: files and metadata.jsonl, for Hugging Face's datasets; webdataset: "
        "tars; parquet: audio inside, for datasets and SQL; nemo: files and manifest.jsonl; "
        "audacity, raven: label tracks and selection tables, one a recording. "
        "Default %(default)s.",
    )
    group.add_argument(
        "--clip_format",
        choices=_STEM_FORMATS,
        help="As --stem_format of pipelines.separate; not with layouts that hold no audio. "
        "Default flac.",
    )
    group.add_argument(
        "--clip_quality",
        type=float,
        metavar="0..1",
        help="Of opus and mp3: 1 is the best and largest. Default: what libsndfile chooses.",
    )
    group.add_argument(
        "--shard_rows",
        type=int,
        default=1_000,
        metavar="N",
        help="Items near which a tar or Parquet file ends. Default %(default)s.",
    )


_EXIT_CODES = """exit codes:
  0    every row is done, or failed within --max_failure_rate
  1    more rows failed than --max_failure_rate allows; all results are written
  2    a flag, a manifest, a model or the output folder cannot be used; nothing was run
"""
_ENDS = """  3    the job itself failed; --resume goes on
  130  interrupted; only complete files are left, --resume goes on
"""


class JobParser(flags.Parser):
    """Raises instead of exiting."""

    def error(self, message: str) -> NoReturn:
        """Raises ``UsageError``."""
        raise UsageError(message)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A job's command line.

    Attributes:
        name: module that is run.
        usage: how it is called.
        description: what it does.
        examples: calls, a line each.
        groups: add its own groups of flags.
        shared: names of flags of ``pipelines.separate`` that it has too.
        helps: what some of those mean here, where it is something else.
    """

    name: str
    usage: str
    description: str
    examples: str
    groups: tuple[Callable[[argparse.ArgumentParser], None], ...]
    shared: tuple[str, ...] = ()
    helps: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)

    def parser(self) -> JobParser:
        """Builds the parser; shared flags are those of the main job, declared there."""
        found = JobParser(
            prog=f"python -m {self.name}",
            usage=f"%(prog)s {self.usage}",
            description=self.description,
            epilog=f"examples:\n{self.examples}\n{_EXIT_CODES}{_ENDS}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for add in self.groups:
            add(found)
        if self.shared:
            group = found.add_argument_group(
                "shared with pipelines.separate", "Flags of Beam and its runners work too."
            )
            for action in SEPARATE.parser()._actions:
                if action.dest in self.shared:
                    action.help = self.helps.get(action.dest, action.help)
                    group._add_action(action)
        found.confidential = frozenset({"--storage_options"})
        found.instead_of_several = {
            "--mixture": "several recordings are given with --recordings",
            "--queries": "several tables are one, with all their rows",
        }
        return found


SEPARATE = Command(
    name="pipelines.separate",
    usage="(--manifest URI | --recordings URI --positive TEXT) --output URI [flags]",
    description="Separates recordings: manifest rows → stems, metrics and dead letters.",
    examples="""  python -m pipelines.separate --mixture talk.wav --positive "a dog barking" \\
      --negative "rain" --output out/
  python -m pipelines.separate --mixture talk.wav --positive "a dog" --positive speech \\
      --negative others --output out/
  python -m pipelines.separate --recordings 'gs://b/**/*.flac' talks/ --queries queries.csv \\
      --output out/
  python -m pipelines.separate --manifest rows.csv --output out/ --num_workers 4
  python -m pipelines.separate --manifest rows.csv --output out/ --resume
  python -m pipelines.separate --manifest out/dead_letters --output out2/
""",
    groups=(_add_input, _add_model, _add_segments, _add_output, _add_run),
)
_SHARED = (
    *("manifest", "shard", "max_clip_in_memory_s", "allowed_uri_prefix", "storage_options"),
    *("output", "resume", "overwrite", "force_unlock", "max_failure_rate"),
    *("progress", "log_level", "num_threads", "isolate_decoder", "max_silence_s"),
    "dask_client_address",
)
_SEGMENTS = (*(f"segment_{name}" for name, *_ in _ACTIVITY), "segment_scores")
SCORE = Command(
    name="pipelines.score",
    usage="--manifest URI --stems URI --system NAME --output URI [flags]",
    description="Scores stems against references, where the manifest has them, and against the "
    "queries: the same tables as pipelines.separate writes.",
    examples="""  python -m pipelines.score --manifest rows.csv --stems stems/ --system AudioSep \\
      --output scores/
  python -m pipelines.score --manifest rows.csv --stems 'gs://b/{dataset}/{id}_est.wav' \\
      --scorer none --output scores/
""",
    groups=(_add_stems,),
    shared=(
        *_SHARED,
        *_SEGMENTS,
        *("model", "scorer", "clap_scores", "device", "precision", "batch_size", "shards"),
    ),
    helps={"output": "Folder for metrics, summary, dead letters and run.json. Required."},
)
SYNTHESIZE = Command(
    name="pipelines.synthesize",
    usage="--manifest URI --output URI [flags]",
    description="Renders mixtures, references and interferers, and the manifest to separate them: "
    "the same bytes for the same seed, on any runner.",
    examples="""  python -m pipelines.synthesize --manifest esc50.parquet --output gs://bucket/esc50/
  python -m pipelines.separate --manifest gs://bucket/esc50/manifest --output out/
""",
    groups=(_add_mixtures,),
    shared=(*_SHARED, "stem_format"),
    helps={
        "output": "Folder for mixtures, references, interferers, their manifest, dead letters and "
        "run.json. Required."
    },
)
EXPORT = Command(
    name="pipelines.export",
    usage="--runs URI --output URI [--where SQL] [--layout NAME] [flags]",
    description="Takes results along as a data set, or as labels for an annotation program.",
    examples="""  python -m pipelines.export --runs out/ --where "label = 'dog'" --output dogs/
  python -m pipelines.export --runs out/ --layout webdataset --output gs://bucket/dogs/
  python -m pipelines.export --runs out/ --layout raven --output selections/
""",
    groups=(_add_export,),
    shared=tuple(name for name in _SHARED if name not in ("manifest", "shard", "num_threads")),
    helps={
        "output": "Folder for the data set (data/), the list of what is in it (exported/), dead "
        "letters and run.json. Required.",
        "resume": "Go on with an export that was stopped: finished items are skipped. --runs must "
        "say the same as then and the flags that decide what is picked must be the same; where "
        "they are not, --overwrite begins again.",
    },
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """A parsed command line.

    Attributes:
        own: values of our flags.
        beam: the words that belong to Beam and its runners; none of them holds a credential.
        command: the whole command line, for the record of the run.
    """

    own: argparse.Namespace
    beam: tuple[str, ...]
    command: tuple[str, ...]


def parse(command: Command, words: Sequence[str], beam: Iterable[argparse.Action]) -> Arguments:
    """Parses the words of a command line; what belongs to Beam is told apart, and not looked into.

    Args:
        command: whose flags are ours.
        words: the command line.
        beam: the flags of Beam and its runners.

    Raises:
        UsageError: a word that belongs to no flag, an unknown flag, a missing or an unusable value.
    """
    for word in words:
        require_text(word)
    parser = command.parser()
    parser.others = tuple(beam)
    own, rest = parser.parse_known_args(words)
    return Arguments(own=own, beam=tuple(rest), command=("python", "-m", command.name, *words))


def require_text(word: str) -> None:
    """Refuses what is no text in the encoding of the process: no record or name could hold it.

    Raises:
        UsageError: it is none.
    """
    try:
        word.encode("utf-8")
    except UnicodeEncodeError as err:
        encoding = sys.getfilesystemencoding()
        hint = "" if encoding == "utf-8" else "; set PYTHONUTF8=1, or a locale such as C.UTF-8"
        raise UsageError(f"{word!r}: has bytes that are no text in {encoding}{hint}") from err


BEAM_FLAGS = Path(__file__).with_name("beam_flags.json")
"""The flags of one version of Beam and of its runners, which ``make beam-flags`` writes."""


def recorded_beam_flags() -> tuple[argparse.Action, ...] | None:
    """Gives the flags of Beam and its runners without importing Beam.

    Returns:
        None where the Beam that is installed is not of the version that was recorded.
    """
    record = json.loads(BEAM_FLAGS.read_text(encoding="utf-8"))
    try:
        installed = importlib.metadata.version("apache-beam")
    except importlib.metadata.PackageNotFoundError:
        return None
    if record["version"] != installed:
        return None
    parser = argparse.ArgumentParser(add_help=False)
    for each in record["flags"]:
        given: dict[str, Any] = {"action": each["action"]}
        if "nargs" in each:
            given["nargs"] = each["nargs"]
        if each["typed"]:
            given["type"] = float
        parser.add_argument(*each["flags"], **given)
    return tuple(parser._actions)


def record_of(actions: Iterable[argparse.Action]) -> list[dict[str, Any]]:
    """Describes flags as far as it matters for telling words of a command line apart."""
    described = []
    for action in actions:
        each: dict[str, Any] = {"flags": list(action.option_strings)}
        takes_none = action.nargs == 0
        typed = not takes_none and (action.type not in (None, str) or action.choices is not None)
        each["typed"] = typed
        if takes_none:
            each["action"] = "store_true"
        else:
            repeats = not isinstance(action, argparse._StoreAction)
            each["action"] = "append" if repeats else "store"
            if action.nargs is not None:
                each["nargs"] = action.nargs
        described.append(each)
    return sorted(described, key=lambda each: str(each["flags"]))


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Imports what follows without looking for garbage; afterwards it is never looked through.

    Modules and their functions stay. To go through all of them again and again, as Python does
    while their number grows, takes a quarter of the time of importing torch and Beam.
    """
    if not gc.isenabled() or "apache_beam" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def asks_for_help(command: Command, argv: Sequence[str] | None) -> bool:
    """Prints the help of a command where its words ask for it, and says whether they do."""
    words = sys.argv[1:] if argv is None else argv
    if _HELP.isdisjoint(words):
        return False
    screen.steady()
    sys.stdout.write(command.parser().format_help())
    return True


def leave(run: Callable[[], int]) -> NoReturn:
    """Runs a command and ends the process with its exit code, at once.

    Threads of a job that was given up may still wait for its runner; nothing that they would write
    is wanted, and files appear by renaming. An interrupt that the launcher does not see, as it
    comes while libraries are imported, ends the process with a line too. SIGTERM, with which
    schedulers of clusters end a job, is an interrupt; the first process of a container would not
    heed it otherwise.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        code = EXIT_INTERRUPTED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
