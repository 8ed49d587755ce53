"""Turns parsed flags into the configuration of a run: checked, frozen, recorded in ``run.json``.

A configuration is `CommonConfig` and a small class for each job; nothing replaces it later.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from manifests import QUERY_FLAGS
from manifests.files import ManifestError, absolute, is_url, split_fragment
from manifests.recordings import NamedQuery, Recordings, asked_queries, stem_of
from manifests.row import (
    EXPORT_FOLDER,
    INTERFERERS,
    MIXTURES,
    REFERENCES,
    STEMS_FOLDER,
    ManifestRow,
    RowError,
    parse_record,
)
from model.signal import ActivityOptions
from pipelines.flags import (
    EXIT_USAGE,
    LABEL_LAYOUTS,
    Arguments,
    Command,
    UsageError,
    parse,
    recorded_beam_flags,
    require_text,
)
from terminal import screen
from transforms.audio import MAX_RATE_HZ, MIN_RATE_HZ
from transforms.audio.files import STEM_FORMATS
from transforms.elements import Shard
from transforms.storage import Storage
from transforms.storage.access import UriAccess, redact, redacted_command, secrets_of, uris_of

_MAX_CLIP_S = 1e6


MAX_SILENCE_S = 900.0
IN_PROCESS = "FnApiRunner"
"""The runner of this process and of worker processes on this machine."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """Where a run computes; changes nothing about its results.

    Attributes:
        runner: a Beam runner; ``FnApiRunner`` on this machine.
        num_workers: worker processes of a local run.
        num_threads: threads of the network in each; 0: the cores of whichever machine it runs on.
        resource_hints: of the separation step.
        isolate_decoder: audio is decoded in processes of its own.
        progress: ``auto``, ``bar``, ``log`` or ``none``.
        log_level: for the root logger.
        cluster: address of the Dask scheduler; None for every other runner.
        device: a torch device, ``auto``, or several GPUs for the worker processes of a local run.
        max_silence_s: a worker process without a sign of life for so long hangs; 0: never.
    """

    runner: str
    num_workers: int
    num_threads: int
    resource_hints: Mapping[str, str]
    isolate_decoder: bool
    progress: str
    log_level: str
    cluster: str | None = None
    device: str = "cpu"
    max_silence_s: float = MAX_SILENCE_S

    @property
    def is_local(self) -> bool:
        """Whether everything happens on this machine."""
        return self.runner == IN_PROCESS

    @property
    def in_process(self) -> bool:
        """Whether everything happens in this process."""
        return self.is_local and self.num_workers == 1

    @property
    def device_of_worker(self) -> str:
        """The device by the name that it has in the process that computes.

        Each worker process of this machine has one GPU, which is its first.
        """
        several = self.is_local and not self.in_process
        return "cuda" if several and self.device.startswith("cuda") else self.device


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CommonConfig:
    """What every job is told.

    Attributes:
        manifests: URIs of manifests; empty where ``rows`` is given.
        rows: rows made from the command line, of one recording.
        recordings: what is asked of which recordings, instead.
        storage_options: fsspec options by protocol.
        allowed_uri_prefix: what rows may read from; empty: anything.
        max_clip_in_memory_s: longer recordings are streamed, or refused by jobs that do not stream.
        output: folder.
        resume: go on with what is in ``output``.
        overwrite: delete what earlier runs wrote into ``output`` first.
        force_unlock: take ``output`` although another run holds it.
        max_failure_rate: above it the exit code is 1.
        execution: where it runs.
        command: the command line, without credentials.
        shard: the part of the rows that is done, into a folder of its own; None: all.
    """

    audio_folders: ClassVar[tuple[str, ...]] = ()
    """Into which the job writes audio, below its output folder."""

    manifests: tuple[str, ...]
    rows: tuple[ManifestRow, ...]
    recordings: Recordings | None
    storage_options: Mapping[str, Mapping[str, Any]]
    allowed_uri_prefix: tuple[str, ...]
    max_clip_in_memory_s: float
    output: str
    resume: bool
    overwrite: bool
    force_unlock: bool
    max_failure_rate: float
    execution: Execution
    command: tuple[str, ...] = ()
    shard: Shard | None = None

    @property
    def access(self) -> UriAccess:
        """What rows may name: nothing that the run writes, or other parts of the same rows do."""
        outputs = [self.output.rstrip("/")]
        if self.shard is not None:
            whole = self.shard.whole_of(self.output)
            outputs = [f"{whole}/{part.folder}" for part in self.shard.parts]
        written = tuple(f"{each}/{name}" for each in outputs for name in self.audio_folders)
        return UriAccess(prefixes=self.allowed_uri_prefix, written=written)

    @property
    def named(self) -> list[tuple[str, str]]:
        """The audio that the command line names for the job to read, each with its flag."""
        recordings = self.recordings
        found = [("--recordings", uri) for uri in (() if recordings is None else recordings.roots)]
        for query in () if recordings is None else recordings.queries:
            for name in ("positive_audio", "negative_audio"):
                found += [(f"--{name}", uri) for uri in query.fields.get(f"{name}_uris") or ()]
        for row in self.rows:
            found += [(f"--{name.split('_ur')[0]}", uri) for name, uri in uris_of(row)]
        return found

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be said, logged or recorded."""
        return secrets_of(self.storage_options)

    def to_json(self) -> dict[str, Any]:
        """Everything, for ``run.json``; options of storage may hold secrets and are left out."""
        left_out = ("rows", "shard", "storage_options", "execution", "command")
        record: dict[str, Any] = {"shard": None if self.shard is None else str(self.shard)}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in left_out:
                is_own = isinstance(value, ActivityOptions | Recordings)
                record[field.name] = dataclasses.asdict(value) if is_own else value
        record["rows"] = [row.to_record() for row in self.rows]
        record["storage_options"] = {protocol: "not recorded" for protocol in self.storage_options}
        record["execution"] = dataclasses.asdict(self.execution)
        return record


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SeparateConfig(CommonConfig):
    """A run of ``pipelines.separate``.

    Attributes:
        model: name or URI.
        scorer: ``own``, ``none``, a name or a URI.
        clap_scores: ``stem`` or ``all``.
        device: a torch device or ``auto``.
        precision: ``fp32``, ``tf32`` or ``bf16``.
        compile: whether the network goes through ``torch.compile``.
        batch_size: windows in one forward pass.
        overlap: of windows, in [0, 1).
        channels: ``per_channel`` or ``mid``.
        condition_norm: ``normalised`` or ``unnormalised``.
        on_unsupported_query: ``dead_letter`` or ``nearest``.
        activity: when a stem counts as active.
        segment_scores: whether each segment has a CLAPScore of its own.
        embeddings: whether the scorer's embeddings of stems are kept.
        stem_format: a name of ``STEM_FORMATS``.
        stem_quality: of a lossy one, in [0, 1]; None: as libsndfile likes.
        residual: whether residuals are written.
        keep_stems: ``all``, ``present`` or ``none``.
        min_presence: from which on a stem is kept as present.
        windows: whether the windows of recordings are kept.
        screen: what is less plausible by them is not separated; ``auto``: as the model has it;
            None: everything is.
        verify: look at the stems of finished rows before they are trusted.
        shards: files of metrics a partition; 0: by size.
    """

    audio_folders: ClassVar[tuple[str, ...]] = (STEMS_FOLDER,)
    model: str
    scorer: str
    clap_scores: str
    device: str
    precision: str
    compile: bool
    batch_size: int
    overlap: float
    channels: str
    condition_norm: str
    on_unsupported_query: str
    activity: ActivityOptions
    segment_scores: bool
    embeddings: bool
    stem_format: str
    stem_quality: float | None
    residual: bool
    keep_stems: str
    min_presence: float
    windows: bool
    screen: float | Literal["auto"] | None
    verify: bool
    shards: int

    @property
    def needs_gpu(self) -> bool:
        """Whether the machines that separate were asked to have an accelerator."""
        return "accelerator" in self.execution.resource_hints

    def settings(self) -> dict[str, Any]:
        """What decides the results: a run may only be resumed with the same."""
        names = (
            "model", "scorer", "clap_scores", "precision", "overlap", "channels",
            "condition_norm", "on_unsupported_query", "stem_format", "residual", "segment_scores",
            "keep_stems", "min_presence", "stem_quality", "embeddings",
            "screen",
        )  # fmt: skip
        named = {name: getattr(self, name) for name in names}
        return {**named, "activity": dataclasses.asdict(self.activity)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig(CommonConfig):
    """A run of ``pipelines.score``.

    Attributes:
        stems: folder or template of the stems; None: the manifest names them.
        system: what made them.
        score_rate_hz: rate at which ratios are computed.
        model: whose CLAP is ``own``.
        scorer: ``own``, ``none``, a name or a URI.
        clap_scores: ``stem`` or ``all``.
        device: a torch device or ``auto``.
        precision: of the scorer.
        batch_size: windows that are embedded in one forward pass.
        activity: when a stem counts as active.
        segment_scores: whether each segment has a CLAPScore of its own.
        shards: files of metrics a partition; 0: by size.
    """

    stems: str | None
    system: str
    score_rate_hz: int
    model: str
    scorer: str
    clap_scores: str
    device: str
    precision: str
    batch_size: int
    activity: ActivityOptions
    segment_scores: bool
    shards: int

    def settings(self) -> dict[str, Any]:
        """What decides the results."""
        names = (
            *("system", "stems", "score_rate_hz", "scorer", "clap_scores", "precision"),
            "segment_scores",
        )
        named = {name: getattr(self, name) for name in names}
        return {**named, "activity": dataclasses.asdict(self.activity)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SynthesizeConfig(CommonConfig):
    """A run of ``pipelines.synthesize``.

    Attributes:
        mix_rate_hz: of everything that is rendered.
        mix_level_range_db: between which the target's level is drawn; None: as the manifest says.
        mix_seed: of what is drawn.
        stem_format: ``flac`` or ``wav``.
    """

    audio_folders: ClassVar[tuple[str, ...]] = (MIXTURES, REFERENCES, INTERFERERS)
    mix_rate_hz: int
    mix_level_range_db: tuple[float, float] | None
    mix_seed: int
    stem_format: str

    def settings(self) -> dict[str, Any]:
        """What decides the results."""
        names = ("mix_rate_hz", "mix_level_range_db", "mix_seed", "stem_format")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig(CommonConfig):
    """A run of ``pipelines.export``.

    Attributes:
        runs: output folders whose results are taken.
        where: a condition in SQL.
        cut: ``segments`` or ``clips``.
        signal: ``stem`` or ``mixture``.
        margin_s: that segments gain on either side.
        layout: a name of ``transforms.exporting.LAYOUTS``.
        clip_format: a name of ``STEM_FORMATS``.
        clip_quality: of a lossy one, in [0, 1]; None: as libsndfile likes.
        shard_rows: items near which a file that holds many ends.
    """

    audio_folders: ClassVar[tuple[str, ...]] = (EXPORT_FOLDER,)
    runs: tuple[str, ...]
    where: str
    cut: str
    signal: str
    margin_s: float
    layout: str
    clip_format: str
    clip_quality: float | None
    shard_rows: int

    def settings(self) -> dict[str, Any]:
        """What decides the results."""
        names = (
            *("runs", "where", "cut", "signal", "margin_s"),
            *("layout", "clip_format", "clip_quality", "shard_rows"),
        )
        return {name: getattr(self, name) for name in names}


NOWHERE = Execution(
    runner=IN_PROCESS,
    num_workers=1,
    num_threads=1,
    resource_hints={},
    isolate_decoder=False,
    progress="none",
    log_level="warning",
)
"""Stands for where a run computes, while only its flags are looked at."""


def answered(
    command: Command,
    build: Callable[[Arguments, Execution], CommonConfig],
    argv: Sequence[str] | None,
) -> int | None:
    """Answers a command line that cannot be used, as far as that can be told without Beam.

    What only Beam can tell, such as an unknown runner, is left to the launcher.

    Args:
        command: its flags.
        build: makes the configuration of parsed flags.
        argv: the words; None: those of the process.

    Returns:
        The exit code; None for a command line that can be used so far.
    """
    beam = recorded_beam_flags()
    if beam is None:
        return None
    screen.steady()
    try:
        build(parse(command, list(sys.argv[1:] if argv is None else argv), beam), NOWHERE)
    except UsageError as err:
        return refused(command, err)
    return None


def refused(command: Command, error: Exception, secrets: Sequence[str] = ()) -> int:
    """Says in a line why a command line cannot be used; gives the exit code."""
    sys.stderr.write(f"error: {redact(str(error), secrets)}\nSee python -m {command.name} --help\n")
    return EXIT_USAGE


def separate_config(arguments: Arguments, execution: Execution) -> SeparateConfig:
    """Builds the configuration that the flags of ``pipelines.separate`` ask for.

    Raises:
        UsageError: flags that do not go together, or a value out of range.
    """
    given = arguments.own
    common = _common(arguments, execution)
    if given.min_presence is not None and given.keep_stems != "present":
        raise UsageError("--min_presence goes with --keep_stems present")
    _check_range("--min_presence", given.min_presence or 0.0, 0.0, 1.0)
    if given.residual and given.keep_stems == "none":
        raise UsageError("--residual: --keep_stems none keeps no file; leave one of them out")
    if given.embeddings and given.scorer == "none":
        raise UsageError("--embeddings needs a scorer; leave out --scorer none")
    if given.verify and not given.resume:
        raise UsageError("--verify goes with --resume: it looks at stems of an earlier run")
    if given.device == "cpu" and "accelerator" in execution.resource_hints:
        raise UsageError(
            f"--device cpu: --accelerator {execution.resource_hints['accelerator']} would be paid "
            "for and not used; leave one of them out"
        )
    _check_range("--overlap", given.overlap, 0.0, 1.0, top_included=False)
    _check_least("--batch_size", given.batch_size, 1)
    _check_least("--shards", given.shards, 0)
    return SeparateConfig(
        **common,
        model=_name_or_uri("--model", given.model),
        scorer=_name_or_uri("--scorer", given.scorer),
        clap_scores=given.clap_scores,
        device=given.device,
        precision=given.precision,
        compile=given.compile,
        batch_size=given.batch_size,
        overlap=given.overlap,
        channels=given.channels,
        condition_norm=given.condition_norm,
        on_unsupported_query=given.on_unsupported_query,
        **_segments(given),
        embeddings=given.embeddings,
        stem_format=given.stem_format,
        stem_quality=_quality("stem", given),
        residual=given.residual,
        keep_stems=given.keep_stems,
        min_presence=0.5 if given.min_presence is None else given.min_presence,
        windows=given.windows or given.screen is not None,
        screen=_screen(given.screen),
        verify=given.verify,
        shards=given.shards,
    )


def score_config(arguments: Arguments, execution: Execution) -> ScoreConfig:
    """Builds the configuration that the flags of ``pipelines.score`` ask for.

    Raises:
        UsageError: a value out of range.
    """
    given = arguments.own
    common = _common(arguments, execution)
    _check_least("--batch_size", given.batch_size, 1)
    _check_least("--shards", given.shards, 0)
    _check_rate("--score_rate_hz", given.score_rate_hz)
    return ScoreConfig(
        **common,
        stems=None if given.stems is None else _absolute("--stems", given.stems),
        system=given.system,
        score_rate_hz=given.score_rate_hz,
        model=_name_or_uri("--model", given.model),
        scorer=_name_or_uri("--scorer", given.scorer),
        clap_scores=given.clap_scores,
        device=given.device,
        precision=given.precision,
        batch_size=given.batch_size,
        **_segments(given),
        shards=given.shards,
    )


def _screen(given: str | None) -> float | Literal["auto"] | None:
    if given is None:
        return None
    if given == "auto":
        return "auto"
    try:
        value = float(given)
    except ValueError as err:
        raise UsageError(f"--screen {given}: expected auto or a number") from err
    _check_range("--screen", value, -1.0, 1.0)
    return value


def _segments(given: argparse.Namespace) -> dict[str, Any]:
    """The fields that say what a segment is."""
    if given.segment_scores and given.scorer == "none":
        raise UsageError("--segment_scores needs a scorer; leave out --scorer none")
    names = [field.name for field in dataclasses.fields(ActivityOptions)]
    try:
        activity = ActivityOptions(**{name: getattr(given, f"segment_{name}") for name in names})
    except ValueError as err:
        raise UsageError(f"--segment_{err}") from err
    return {"activity": activity, "segment_scores": given.segment_scores}


def synthesize_config(arguments: Arguments, execution: Execution) -> SynthesizeConfig:
    """Builds the configuration that the flags of ``pipelines.synthesize`` ask for.

    Raises:
        UsageError: a value out of range.
    """
    given = arguments.own
    common = _common(arguments, execution)
    _check_rate("--mix_rate_hz", given.mix_rate_hz)
    levels = given.mix_level_range_db
    return SynthesizeConfig(
        **common,
        mix_rate_hz=given.mix_rate_hz,
        mix_level_range_db=None if levels is None else (levels[0], levels[1]),
        mix_seed=given.mix_seed,
        stem_format=given.stem_format,
    )


def _quality(what: str, given: argparse.Namespace) -> float | None:
    """The value of ``--stem_quality`` or ``--clip_quality``, which goes with lossy formats only."""
    quality: float | None = getattr(given, f"{what}_quality")
    if quality is None:
        return None
    form = getattr(given, f"{what}_format")
    if form is None or not STEM_FORMATS[form].is_lossy:
        raise UsageError(f"--{what}_quality goes with --{what}_format opus or mp3")
    _check_range(f"--{what}_quality", quality, 0.0, 1.0)
    return quality


def export_config(arguments: Arguments, execution: Execution) -> ExportConfig:
    """Builds the configuration that the flags of ``pipelines.export`` ask for.

    Raises:
        UsageError: a flag is missing, or a value out of range.
    """
    given = arguments.own
    if not given.runs:
        raise UsageError("--runs is required")
    common = _common(arguments, execution)
    _check_least("--shard_rows", given.shard_rows, 1)
    _check_range("--margin_s", given.margin_s, 0.0, _MAX_CLIP_S)
    if given.margin_s and given.cut != "segments":
        raise UsageError("--margin_s goes with --cut segments: a clip is whole")
    if not given.where.strip():
        raise UsageError("--where: found an empty condition; leave the flag out to take everything")
    if given.layout in LABEL_LAYOUTS and given.clip_format is not None:
        raise UsageError(
            f"--clip_format {given.clip_format}: --layout {given.layout} holds no audio; leave the "
            "flag out"
        )
    runs = _absolutes("--runs", given.runs)
    if repeated := [uri for uri, count in Counter(runs).items() if count > 1]:
        raise UsageError(f"--runs: {repeated[0]} is given twice")
    return ExportConfig(
        **common,
        runs=tuple(runs),
        where=given.where,
        cut=given.cut,
        signal=given.signal,
        margin_s=given.margin_s,
        layout=given.layout,
        clip_format=given.clip_format or "flac",
        clip_quality=_quality("clip", given),
        shard_rows=given.shard_rows,
    )


def _common(arguments: Arguments, execution: Execution) -> dict[str, Any]:
    """The fields of ``CommonConfig``."""
    given = arguments.own
    if not (given.output or "").strip():
        raise UsageError("--output is required")
    if is_url(given.output) and not given.output.partition("://")[2].strip("/"):
        raise UsageError(f"--output {given.output}: expected a bucket or a folder after ://")
    resume = getattr(given, "resume", False)
    if resume and given.overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    _check_range("--max_failure_rate", given.max_failure_rate, 0.0, 1.0)
    if not 0 < given.max_clip_in_memory_s <= _MAX_CLIP_S:
        raise UsageError(
            f"--max_clip_in_memory_s={given.max_clip_in_memory_s}: expected above 0, "
            f"up to {_MAX_CLIP_S:g}"
        )
    storage_options = storage_options_of(given.storage_options)
    output = _absolute("--output", given.output)
    rows, recordings = _rows(given, storage_options)
    shard = _shard(getattr(given, "shard", None), rows)
    return {
        "manifests": tuple(_absolutes("--manifest", getattr(given, "manifest", None))),
        "rows": rows,
        "recordings": recordings,
        "storage_options": storage_options,
        "allowed_uri_prefix": prefixes_of(given.allowed_uri_prefix or ()),
        "max_clip_in_memory_s": given.max_clip_in_memory_s,
        "output": output if shard is None else f"{output.rstrip('/')}/{shard.folder}",
        "shard": shard,
        "resume": resume,
        "overwrite": given.overwrite,
        "force_unlock": given.force_unlock,
        "max_failure_rate": given.max_failure_rate,
        "execution": execution,
        "command": tuple(redacted_command(arguments.command, secrets_of(storage_options))),
    }


def _shard(text: str | None, rows: Sequence[ManifestRow]) -> Shard | None:
    if text is None:
        return None
    if rows:
        raise UsageError("--shard goes with --manifest or --recordings: one recording has no parts")
    try:
        return Shard.of(text)
    except ValueError as err:
        raise UsageError(f"--shard {err}") from err


def _rows(
    given: argparse.Namespace, storage_options: Mapping[str, Mapping[str, Any]]
) -> tuple[tuple[ManifestRow, ...], Recordings | None]:
    """The rows of one recording, or what is asked of several; neither beside a manifest."""
    if "manifest" not in given:  # a job that reads none
        return (), None
    if "mixture" not in given:
        if not given.manifest:
            raise UsageError("--manifest is required")
        return (), None
    sources = [name for name in ("manifest", "mixture", "recordings") if getattr(given, name)]
    if len(sources) > 1:
        raise UsageError(f"--{sources[0]} and --{sources[1]} exclude each other")
    if not sources:
        raise UsageError(
            "expected --manifest URI, or --mixture URI or --recordings URI with --positive or "
            "--negative"
        )
    if given.recordings is None and given.audio_column is not None:
        raise UsageError("--audio_column goes with --recordings")
    if given.manifest:
        for flag in (*QUERY_FLAGS, "--reference"):
            if getattr(given, flag.removeprefix("--")) is not None:
                raise UsageError(f"{flag} goes with --mixture; a manifest's rows say their own")
        return (), None
    queries = _queries(given, storage_options, sources[0])
    if given.mixture:
        return tuple(_row(record) for record in _records(given, queries)), None
    if given.reference is not None:
        raise UsageError("--reference goes with --mixture: a manifest's rows say their own")
    return (), Recordings(
        roots=tuple(_absolutes("--recordings", given.recordings)),
        queries=queries,
        audio_column=given.audio_column,
        output=_absolute("--output", given.output),
    )


def _queries(
    given: argparse.Namespace, storage_options: Mapping[str, Mapping[str, Any]], source: str
) -> tuple[NamedQuery, ...]:
    options = Storage(options=storage_options).options_for(given.queries or "")
    try:
        queries = asked_queries(given, options)
    except (ValueError, ManifestError) as err:
        raise UsageError(str(err)) from err
    if not queries:
        raise UsageError(
            f"--{source} needs a query: --positive TEXT, --negative TEXT, --queries TABLE, or "
            "example clips with --positive_audio or --negative_audio"
        )
    return queries


def _records(given: argparse.Namespace, queries: Sequence[NamedQuery]) -> Iterator[dict[str, Any]]:
    """A record for each query of the command line, over the one recording."""
    if given.reference is not None and len(queries) > 1:
        raise UsageError(
            "--reference goes with one --positive: it is the target of that one; with several "
            "queries, a manifest's rows say their own"
        )
    mixture = _absolute("--mixture", given.mixture)
    references = [given.reference] if given.reference is not None else []
    name = _name_of(mixture)
    for query in queries:
        yield {
            **query.fields,
            "id": name if len(queries) == 1 else f"{name}/{query.name}",
            "mixture_uri": mixture,
            "reference_uri": next(iter(_absolutes("--reference", references)), None),
        }


def _name_of(uri: str) -> str:
    """What a recording is called: the last part of its path without what follows the last dot."""
    address, fragment = split_fragment(uri)
    path = urlsplit(address).path if address.startswith(("http://", "https://")) else address
    if fragment.row is not None:
        return f"{_name_of(address)}/{fragment.row}"
    return stem_of(fragment.member or path) or "recording"


def _row(record: Mapping[str, Any]) -> ManifestRow:
    row = parse_record(record, uri="command line", row=1, folder=os.getcwd())
    if isinstance(row, RowError):
        raise UsageError(f"{row.field}: found {row.value}; expected {row.expected}")
    return row


def prefixes_of(given: Sequence[str]) -> tuple[str, ...]:
    """Reads the values of ``--allowed_uri_prefix``.

    Raises:
        UsageError: one is no folder, bucket or host.
    """
    prefixes = tuple(_absolutes("--allowed_uri_prefix", given))
    try:
        UriAccess(prefixes=prefixes)
    except ValueError as err:
        raise UsageError(f"--allowed_uri_prefix: {err}") from err
    return prefixes


def storage_options_of(text: str) -> Mapping[str, Mapping[str, Any]]:
    """Reads the value of ``--storage_options``: fsspec options by protocol.

    Raises:
        UsageError: it is not JSON of that form.
    """
    try:
        options = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise UsageError(f"--storage_options: not JSON ({err})") from err
    if not isinstance(options, dict) or not all(isinstance(v, dict) for v in options.values()):
        raise UsageError('--storage_options: expected {"protocol": {"option": value}}')
    return options


def _absolute(flag: str, uri: str) -> str:
    try:
        split_fragment(uri)
        found = absolute(uri)
        require_text(found)  # the working folder, with which it now begins, may be no text
        return found
    except ValueError as err:
        raise UsageError(f"{flag}: {err}") from err


def _absolutes(flag: str, uris: Sequence[str] | None) -> list[str]:
    return [_absolute(flag, uri) for uri in uris or ()]


def _name_or_uri(flag: str, given: str) -> str:
    """A name as it is; a URI, which a name never looks like, as an absolute one."""
    return _absolute(flag, given) if given.startswith("~") or is_url(given) else given


def _check_range(
    flag: str, value: float, low: float, high: float, *, top_included: bool = True
) -> None:
    if not (low <= value <= high) or (value == high and not top_included):
        end = "]" if top_included else ")"
        raise UsageError(f"{flag}={value}: expected a number in [{low:g}, {high:g}{end}")


def _check_least(flag: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"{flag}={value}: expected at least {least}")


def _check_rate(flag: str, rate_hz: int) -> None:
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise UsageError(f"{flag}={rate_hz}: expected {MIN_RATE_HZ} to {MAX_RATE_HZ}")
