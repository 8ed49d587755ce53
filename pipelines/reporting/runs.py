"""Run folders as they are reported: clips with their metrics, failures, and what was run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.columns import (
    DEAD_LETTER_SCHEMA,
    METRIC_COLUMNS,
    METRICS_SCHEMA,
    SEGMENTS_SCHEMA,
    with_extra,
)
from manifests.row import EXTRA_PREFIX, MANIFEST_COLUMNS, RowError, parse_record
from transforms.elements import Shard
from transforms.storage import Storage, join, written_to

PROTOCOL_COLUMN = f"{EXTRA_PREFIX}protocol"
_DIGEST_CHARS = 12
_ROWS_AT_ONCE = 10_000
_TARGETS = re.compile(r"(?P<sources>\d+)-sources-(?P<targets>\d+)-targets")
_SETTING_COLUMNS = (
    *("dataset", "split", "query_type", "polarity", "n_shots", "n_sources", "input_snr_db"),
)
_COLUMNS = (
    *("id", "label", *_SETTING_COLUMNS, *METRIC_COLUMNS, "undefined_reason", "duration_s"),
    *("sample_rate_hz", "model", "model_sha256", "scorer_sha256", "stem_uri"),
)
_EXAMPLES = ("positive_audio_uris", "negative_audio_uris")
_LATER_COLUMNS = (
    *("group", "positive_text", "negative_text", *_EXAMPLES, "mixture_uri", "offset_s"),
    *("presence", "active_s", "n_segments", "stem_to_mixture_db"),
)
"""Columns that runs of schema version 1 lack."""
SEGMENT_COLUMNS = ("id", "start_s", "end_s", "presence", "stem_to_mixture_db")
_NAMES = ["dataset", "label", "model", "model_sha256", "scorer_sha256"]
_NO_CLIPS = pa.schema([METRICS_SCHEMA.field(name) for name in _COLUMNS]).empty_table()
FAILURE_COLUMNS = ("stage", "error_type", "message", "id", "setting")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """What is reported, and how.

    Attributes:
        runs: run folders; the first is the baseline of comparisons.
        names: of the runs.
        output: folder of the report.
        title: of the page.
        metric: what plots and examples are about.
        listen: clips to listen to of each kind (best, median, worst), a run.
        allowed_uri_prefix: what rows and metrics may name to be listened to; empty: what the runs
            themselves were allowed.
        storage_options: fsspec options by protocol.
        reviews: what a listener judged of segments, as the page saves it.
    """

    runs: tuple[str, ...]
    names: tuple[str, ...]
    output: str
    title: str
    metric: str
    listen: int
    allowed_uri_prefix: tuple[str, ...]
    storage_options: Mapping[str, Mapping[str, Any]]
    reviews: str | None = None


class RunError(ValueError):
    """A folder that does not hold the results of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What clips have in common whose metrics are put together.

    Attributes:
        dataset: as in the manifest.
        protocol: ``extra_protocol`` of the manifest, or the digest of the manifest itself: figures
            of two protocols never share a line.
        query_type: ``text``, ``audio`` or ``both``.
        polarity: ``P``, ``N`` or ``P+N``.
        n_shots: example clips of a query.
        n_sources: sources of a mixture.
        n_targets: targets among them, where several are varied; otherwise None.
        input_snr_db: level of the target above the interferers.
    """

    dataset: str | None
    protocol: str
    query_type: str | None
    polarity: str | None
    n_shots: int | None
    n_sources: int | None
    n_targets: int | None
    input_snr_db: float | None

    @property
    def query(self) -> str:
        """The kind of query in words."""
        shots = f", {self.n_shots} shots" if (self.n_shots or 0) > 1 else ""
        shots = ", 1 shot" if self.n_shots == 1 else shots
        return f"{self.query_type or '?'} {self.polarity or '?'}{shots}"

    @property
    def mixture(self) -> str:
        """The mixtures in words."""
        parts = []
        if self.n_sources is not None:
            targets = f", {self.n_targets} of them targets" if self.n_targets else ""
            parts.append(f"{self.n_sources} sources{targets}")
        if self.input_snr_db is not None:
            level = f"{self.input_snr_db:+g}" if self.input_snr_db else "0"
            parts.append(f"{level} dB")
        return ", ".join(parts) or "as recorded"

    @property
    def sort_key(self) -> tuple[Any, ...]:
        """Orders settings; what is absent comes first."""
        return tuple(
            (value is not None, value if value is not None else 0)
            for value in (
                *(self.dataset, self.protocol, self.n_sources, self.n_targets, self.query_type),
                *(self.n_shots, self.polarity, self.input_snr_db),
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """A run folder.

    Attributes:
        name: what it is called in the report.
        uri: the folder.
        record: its ``run.json``; empty where there is none.
        clips: its metrics, a line a clip, sorted by id; see :func:`read_run`.
        failures: its dead letters: ``stage``, ``error_type``, ``message``, ``id`` and ``setting``,
            which is None where the row was not valid.
        segments: where stems are active, a line a stretch: ``SEGMENT_COLUMNS``.
    """

    name: str
    uri: str
    record: Mapping[str, Any]
    clips: pd.DataFrame
    failures: pd.DataFrame
    segments: pd.DataFrame


def read_run(uri: str, name: str, storage: Storage) -> Run:
    """Reads the tables and the record of a run, or of all parts of one (``shard=…``) as one run.

    The clips have the columns of ``METRICS_SCHEMA`` that a report needs, with NaN where a metric is
    undefined, and ``setting``, a :class:`Setting`, ``protocol``, ``made_by`` (the model with the
    beginning of its digest), ``scorer`` (the same of the scorer's), and ``positive`` and
    ``negative``, what similarities are to: the words of the query, or else its example clips.

    Raises:
        RunError: there are no metrics and no dead letters, or a table is not one of ours.
    """
    shards = sorted(filter(None, map(Shard.in_folder, storage.list_folders(uri))), key=_order)
    if shards:
        return _of_shards(uri, name, shards, storage)
    record = _record(uri, storage)
    protocol = default_protocol(record)
    metrics = storage.list_files(join(uri, "metrics"), ".parquet")
    letters = storage.list_files(join(uri, "dead_letters"), ".parquet")
    if not metrics and not letters and not record:
        raise RunError(f"{uri}: has no metrics, no dead letters and no run.json")
    clips = [_clips(file, storage, protocol) for file in metrics] or [_clips_of(_NO_CLIPS, "")]
    failures = [failure for file in letters for failure in _failures(file, storage, protocol)]
    return Run(
        name=name,
        uri=uri,
        record=record,
        clips=pd.concat(clips).sort_values("id", kind="stable", ignore_index=True),
        failures=pd.DataFrame(failures, columns=FAILURE_COLUMNS, dtype=object),
        segments=_segments(uri, storage),
    )


def _segments(uri: str, storage: Storage) -> pd.DataFrame:
    schema = pa.schema([SEGMENTS_SCHEMA.field(name) for name in SEGMENT_COLUMNS])
    tables = [
        _cast(file, _table(file, storage, SEGMENT_COLUMNS), schema)
        for file in storage.list_files(join(uri, "segments"), ".parquet")
    ]
    found: pd.DataFrame = pa.concat_tables(tables or [schema.empty_table()]).to_pandas()
    return found


def _cast(file: str, table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with these columns and types; whoever wrote it anew may have others."""
    if lacking := [name for name in schema.names if name not in table.column_names]:
        raise RunError(f"{file}: has no column {lacking[0]}; expected {schema.names}")
    try:
        return table.cast(schema)
    except pa.ArrowException as err:
        raise RunError(f"{file}: has other types than such a table has ({err})") from err


def _of_shards(uri: str, name: str, shards: Sequence[Shard], storage: Storage) -> Run:
    """All parts as one run, whose record is that of the first but for where the folder is."""
    if len({shard.count for shard in shards}) > 1:
        raise RunError(f"{uri}: holds parts of several divisions, and rows would be there twice")
    parts = [read_run(join(uri, shard.folder), name, storage) for shard in shards]
    places = {
        shard.whole_of(place)
        for shard, part in zip(shards, parts, strict=True)
        for place in written_to(part.record)
    }
    finished = sum(part.record.get("status") == "finished" for part in parts)
    said = {
        "outputs": sorted(places),
        "status": f"{finished} of {shards[0].count} parts finished",
        "wall_s": None,
    }
    clips = [part.clips for part in parts if len(part.clips)] or [parts[0].clips]
    failures = [part.failures for part in parts if len(part.failures)] or [parts[0].failures]
    return Run(
        name=name,
        uri=uri,
        record={**parts[0].record, **said},
        clips=pd.concat(clips).sort_values("id", kind="stable", ignore_index=True),
        failures=pd.concat(failures, ignore_index=True),
        segments=pd.concat([part.segments for part in parts], ignore_index=True),
    )


def _order(shard: Shard) -> tuple[int, int]:
    return shard.count, shard.index


def default_protocol(record: Mapping[str, Any]) -> str:
    """What was evaluated, where the manifest does not name its protocol."""
    digests = sorted(str(facts.get("sha256", "")) for facts in record.get("manifests", ()))
    if not digests:
        return "not named"
    more = f" and {len(digests) - 1} more" if len(digests) > 1 else ""
    return f"manifest {digests[0][:_DIGEST_CHARS] or 'none'}{more}"


def run_names(uris: Sequence[str]) -> list[str]:
    """A name for each folder: its last part, with a number where two would be the same."""
    names: list[str] = []
    for uri in uris:
        base = uri.rstrip("/").rsplit("/", 1)[-1] or "run"
        name, number = base, 2
        while name in names:
            name, number = f"{base} ({number})", number + 1
        names.append(name)
    return names


def _record(uri: str, storage: Storage) -> dict[str, Any]:
    try:
        record = json.loads(storage.read_bytes(join(uri, "run.json")))
    except FileNotFoundError:
        return {}
    except ValueError as err:
        raise RunError(f"{uri}/run.json: is not JSON ({err})") from err
    if not isinstance(record, dict):
        raise RunError(f"{uri}/run.json: is not the record of a run; expected a JSON object")
    return record


def _table(file: str, storage: Storage, wanted: Sequence[str]) -> pa.Table:
    """Reads those of the wanted columns that a file has."""
    with storage.open(file) as stream:
        try:
            parquet = pq.ParquetFile(stream)
            names = [name for name in wanted if name in parquet.schema_arrow.names]
            return parquet.read(columns=names)
        except (pa.ArrowException, OSError) as err:  # damage within is either
            raise RunError(f"{file}: is not Parquet ({' '.join(str(err).split())})") from err


def _clips(file: str, storage: Storage, protocol: str) -> pd.DataFrame:
    table = _table(file, storage, (*_COLUMNS, *_LATER_COLUMNS, PROTOCOL_COLUMN))
    for name in _COLUMNS:
        if name not in table.column_names:
            raise RunError(f"{file}: has no column {name}; expected {METRICS_SCHEMA.names}")
    schema = with_extra(METRICS_SCHEMA, [PROTOCOL_COLUMN.removeprefix(EXTRA_PREFIX)])
    wanted = pa.schema([schema.field(name) for name in table.column_names])
    return _clips_of(_cast(file, table, wanted), protocol)


def _clips_of(table: pa.Table, protocol: str) -> pd.DataFrame:
    schema = with_extra(METRICS_SCHEMA, [PROTOCOL_COLUMN.removeprefix(EXTRA_PREFIX)])
    for name in (*_LATER_COLUMNS, PROTOCOL_COLUMN):
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), schema.field(name).type))
    rows = table.select([*_SETTING_COLUMNS, PROTOCOL_COLUMN]).to_pylist()
    known: dict[Setting, Setting] = {}
    settings = [known.setdefault(each, each) for each in (_setting(row, protocol) for row in rows)]
    clips: pd.DataFrame = table.drop_columns([PROTOCOL_COLUMN]).to_pandas()
    clips[_NAMES] = clips[_NAMES].where(clips[_NAMES] != "")  # stems may be nobody's
    positive, negative = (_listed(clips.pop(name)) for name in _EXAMPLES)
    return clips.assign(
        positive=clips["positive_text"].astype(object).combine_first(positive),
        negative=clips["negative_text"].astype(object).combine_first(negative),
        setting=pd.Series(settings, dtype=object),
        protocol=pd.Series([each.protocol for each in settings], dtype=clips["id"].dtype),
        made_by=clips["model"].fillna("unnamed") + " " + _short(clips["model_sha256"]),
        scorer=_short(clips["scorer_sha256"]),
    )


def _listed(uris: pd.Series[Any]) -> pd.Series[Any]:
    """Lists as one text each; None where there is none."""
    return uris.map(lambda own: None if own is None or not len(own) else "\n".join(own)).astype(
        object
    )


def _short(digests: pd.Series[Any]) -> pd.Series[Any]:
    return digests.str[:_DIGEST_CHARS].fillna("none")


def or_none(values: pd.Series[Any]) -> list[Any]:
    """Returns the values of a column as Python has them, None where one is missing."""
    return values.astype(object).where(values.notna(), None).tolist()


def _setting(row: Mapping[str, Any], protocol: str) -> Setting:
    targets = _TARGETS.fullmatch(row["split"] or "")
    return Setting(
        dataset=row["dataset"],
        protocol=row.get(PROTOCOL_COLUMN) or protocol,
        query_type=row["query_type"],
        polarity=row["polarity"],
        n_shots=row["n_shots"],
        n_sources=row["n_sources"],
        n_targets=int(targets["targets"]) if targets else None,
        input_snr_db=row["input_snr_db"],
    )


def _failures(file: str, storage: Storage, protocol: str) -> Iterator[tuple[Any, ...]]:
    columns = ("stage", "error_type", "message", *MANIFEST_COLUMNS, PROTOCOL_COLUMN)
    table = _table(file, storage, columns)
    for name in ("stage", "error_type", "message", "id"):
        if name not in table.column_names:
            raise RunError(f"{file}: has no column {name}; expected {DEAD_LETTER_SCHEMA.names}")
    for batch in table.to_batches(_ROWS_AT_ONCE):
        for row in batch.to_pylist():
            yield (
                *(row["stage"] or "unknown", row["error_type"] or "unknown", row["message"] or ""),
                *(row["id"], _setting_of_row(row, protocol)),
            )


def _setting_of_row(row: Mapping[str, Any], protocol: str) -> Setting | None:
    record = {name: row[name] for name in MANIFEST_COLUMNS if row.get(name) is not None}
    parsed = parse_record(record, uri="", row=1, folder="/")
    if isinstance(parsed, RowError):
        return None
    return _setting(
        {
            "dataset": parsed.dataset,
            "split": parsed.split,
            "query_type": parsed.query_type,
            "polarity": parsed.polarity,
            "n_shots": parsed.num_shots,
            "n_sources": parsed.num_sources,
            "input_snr_db": parsed.input_snr_db,
            PROTOCOL_COLUMN: row.get(PROTOCOL_COLUMN),
        },
        protocol,
    )
