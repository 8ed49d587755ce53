"""Makes the rows of metrics and their segments, and keeps finished ones in a journal meanwhile.

The tables of a run are written when all rows are there. What a killed run had finished is found in
its journal, and ``--resume`` goes on from there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import GlobalWindow

from manifests.columns import EMBEDDINGS_SCHEMA, METRICS_SCHEMA, SEGMENTS_SCHEMA, with_extra
from manifests.row import EXTRA_PREFIX, SCHEMA_VERSION, ManifestRow, partition_value
from model.metrics import Undefined
from transforms.elements import (
    KeptAudio,
    MetricsRow,
    Provenance,
    Scores,
    Segment,
    StemEmbedding,
    TableRow,
)
from transforms.storage import Storage, join, now_at
from transforms.storage.access import redacted
from transforms.tables import WriteTable, parquet_bytes, row_counts, sorted_table
from transforms.tables.summary import SummariseMetrics
from transforms.threaded import in_window

_KEYS = ("id", "dataset", "split")
LOCAL_JOURNAL_S, REMOTE_JOURNAL_S = 2.0, 30.0
_EMBEDDING_WEIGHT = 9
"""A row of embeddings takes 2 kB."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StemFacts:
    """What is known of a written stem.

    Attributes:
        duration_s: its length.
        sample_rate_hz: of the file; None: nothing was separated.
        n_channels: of the file; None likewise.
        n_windows: decoder passes that made it.
        peak: largest absolute sample, before a fixed-point format saturates it.
        inference_s: its share of the time in the network.
        stem_uri: the file.
        residual_uri: the mixture minus the stem, where it was asked for.
        stem_format: of the file, where this run wrote it.
        stem_note: why that is not the format that was asked for.
        input_gain_db: what the network heard the recording multiplied by, the mean in dB over its
            windows; 0 for a system that hears recordings as they are.
    """

    duration_s: float
    sample_rate_hz: int | None
    n_channels: int | None
    n_windows: int
    peak: float | None
    inference_s: float | None
    stem_uri: str | None
    residual_uri: str | None
    stem_format: str | None = None
    stem_note: str | None = None
    input_gain_db: float | None = None


def metrics_row(
    row: ManifestRow,
    facts: StemFacts,
    scores: Scores,
    provenance: Provenance | None,
    *,
    scorer_sha256: str | None,
    code_version: str,
) -> MetricsRow:
    """The row of the metrics table; a value that is not finite becomes null."""
    values: dict[str, Any] = dict.fromkeys(METRICS_SCHEMA.names)
    values.update(
        label=row.label,
        group=row.group,
        query_type=row.query_type,
        polarity=row.polarity,
        n_shots=row.num_shots,
        n_sources=row.num_sources,
        input_snr_db=row.input_snr_db,
        **_asked(row),
        **{name: _finite(value) for name, value in scores.values.items()},
        **_suppression(row, scores),
        **_activity(scores),
        undefined_reason=_reasons(scores),
        **dataclasses.asdict(facts),
        **(dataclasses.asdict(provenance) if provenance is not None else {}),
        scorer_sha256=scorer_sha256,
        code_version=code_version,
        schema_version=SCHEMA_VERSION,
    )
    for key in _KEYS:
        del values[key]
    return MetricsRow(
        id=row.id,
        dataset=row.dataset,
        split=row.split,
        values=values,
        extra=dict(row.extra),
        segments=scores.segments or (),
        embedding=scores.embedding,
    )


def _activity(scores: Scores) -> dict[str, Any]:
    """For how long the stem is active, in how many segments."""
    if scores.segments is None:
        return {"active_s": None, "n_segments": None}
    active_s = round(math.fsum(each.end_s - each.start_s for each in scores.segments), 6)
    return {"active_s": active_s, "n_segments": len(scores.segments)}


def _asked(row: ManifestRow) -> dict[str, Any]:
    """What was asked of what, without credentials."""
    uris = {
        "mixture_uri": row.mixture_uri,
        "target_uris": row.targets or None,
        "interferer_uris": row.interferer_uris or None,
        "reference_uri": row.reference_uri,
        "positive_audio_uris": row.positive_audio_uris or None,
        "negative_audio_uris": row.negative_audio_uris or None,
    }
    return {
        "row_sha256": row.sha256,
        **{name: redacted(value) for name, value in uris.items()},
        "offset_s": row.offset_s or 0.0,
        "positive_text": row.positive_text,
        "negative_text": row.negative_text,
        "text_weight": row.weight_of_text,
        "seed": row.seed,
    }


_NOT_LOOKED_AT = (Undefined.NOT_SEPARATED.value, Undefined.OUT_OF_MEMORY.value)
"""Why ratios are undefined where nobody knows whether the reference is silent."""


def _suppression(row: ManifestRow, scores: Scores) -> dict[str, Any]:
    """Whether the target is absent, and how far the mixture is suppressed where it is.

    A stem that is silent suppresses it entirely: null, and `stem_to_mixture_db` says why.
    """
    absent, reason = row.target_absent, scores.reasons.get("snr_db")
    has_reference = row.reference_uri is not None and reason not in _NOT_LOOKED_AT
    if absent is None and (row.targets or has_reference):
        absent = reason == Undefined.SILENT_REFERENCE.value
    level_db = scores.values.get("stem_to_mixture_db") if absent else None
    return {
        "target_absent": absent,
        "suppression_db": None if level_db is None else -level_db,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _reasons(scores: Scores) -> str | None:
    return "; ".join(f"{name}={why}" for name, why in sorted(scores.reasons.items())) or None


def table_row(row: MetricsRow) -> TableRow:
    """The row on its way to a file, in the partition of its dataset and split."""
    return TableRow(
        partition=_partition_of(row),
        key=row.id,
        record={"id": row.id, "dataset": row.dataset, "split": row.split, **row.values},
        extra=row.extra,
    )


def _partition_of(row: MetricsRow) -> str:
    return "/".join(
        f"{name}={partition_value(value)}"
        for name, value in (("dataset", row.dataset), ("split", row.split))
    )


def segment_rows(row: MetricsRow) -> Iterator[TableRow]:
    """The row's segments on their way to a file."""
    for segment in row.segments:
        yield TableRow(
            partition="",
            key=f"{row.id}\x00{segment.start_s:012.3f}",
            record={
                "id": row.id,
                **{name: row.values[name] for name in ("mixture_uri", "label", "positive_text")},
                **dataclasses.asdict(segment),
                "schema_version": SCHEMA_VERSION,
            },
            extra={},
        )


def embedding_rows(row: MetricsRow) -> Iterator[TableRow]:
    """The stem's embedding on its way to a file, in the partition of the row."""
    if row.embedding is None:
        return
    asked = ("mixture_uri", "label", "positive_text", "scorer_sha256")
    yield TableRow(
        partition=_partition_of(row),
        key=row.id,
        record={
            "id": row.id,
            "dataset": row.dataset,
            "split": row.split,
            "signal": "stem",
            "embedding": vector_of(row.embedding.vector),
            "undefined_reason": row.embedding.undefined_reason,
            "schema_version": SCHEMA_VERSION,
            **{name: row.values[name] for name in asked},
        },
        extra={},
    )


def vector_of(data: bytes) -> Any:
    """Little-endian float32[D] as an array; None where there is nothing."""
    return np.frombuffer(data, "<f4") if data else None


_SEGMENT_FIELDS = [field.name for field in dataclasses.fields(Segment)]
_SEGMENTS = pa.field(
    "segments", pa.list_(pa.struct([SEGMENTS_SCHEMA.field(name) for name in _SEGMENT_FIELDS]))
)
_EMBEDDING = pa.field("embedding", pa.struct([("vector", pa.binary()), ("reason", pa.string())]))
"""The columns that a journal has beside those of a table whose rows say how many there are."""


def _journal_row(row: MetricsRow) -> TableRow:
    there = table_row(row)
    segments = [dataclasses.asdict(segment) for segment in row.segments]
    record = {**there.record, _SEGMENTS.name: segments, _EMBEDDING.name: None}
    if row.embedding is not None:
        found = {"vector": row.embedding.vector, "reason": row.embedding.undefined_reason}
        record[_EMBEDDING.name] = found
    return dataclasses.replace(there, record=record)


def from_record(record: Mapping[str, Any], schema: pa.Schema = METRICS_SCHEMA) -> MetricsRow:
    """The row again, from the columns of a file of a table with that schema, or of its journal."""
    extra = {
        name.removeprefix(EXTRA_PREFIX): value
        for name, value in record.items()
        if name.startswith(EXTRA_PREFIX) and value is not None
    }
    values = {name: record.get(name) for name in schema.names if name not in _KEYS}
    return MetricsRow(
        id=record["id"],
        dataset=record["dataset"],
        split=record["split"],
        values=values,
        extra=extra,
        segments=tuple(Segment(**each) for each in record.get(_SEGMENTS.name) or ()),
        embedding=None
        if (kept := record.get(_EMBEDDING.name)) is None
        else StemEmbedding(vector=kept["vector"], undefined_reason=kept["reason"]),
    )


def audio_of(
    record: Mapping[str, Any], places: Sequence[str] = (), folder: str = ""
) -> list[KeptAudio]:
    """The stem and the residual of a row, from the columns of a file, and how long they are.

    Args:
        record: the columns.
        places: where the run was when its files were written.
        folder: where it is.
    """
    uris = (record["stem_uri"], record["residual_uri"])
    return [
        KeptAudio(
            uri=now_at(uri, places, folder),
            sample_rate_hz=record["sample_rate_hz"],
            num_channels=record["n_channels"],
            num_samples=round(record["duration_s"] * record["sample_rate_hz"]),
        )
        for uri in uris
        if uri is not None
    ]


def interval_s(*, is_local: bool) -> float:
    """How often a worker keeps its finished rows; elsewhere, many of them write to one bucket."""
    return LOCAL_JOURNAL_S if is_local else REMOTE_JOURNAL_S


@dataclasses.dataclass(eq=False)
class WriteJournal(beam.PTransform[Any, Any]):
    """Keeps rows as they come.

    In: ``MetricsRow``. Out: the same rows, each after it was written. A file's name follows from
    the ids in it; a bundle that is tried again and cut otherwise leaves rows twice, and readers
    take one of each id.

    Attributes:
        uri: folder of the journal.
        storage: how it is reached.
        interval_s: rows wait at most about so long, while others come.
        max_rows: rows in one file.
        schema: of the table that the rows are for.
    """

    uri: str
    storage: Storage
    interval_s: float = LOCAL_JOURNAL_S
    max_rows: int = 1_000
    schema: pa.Schema = METRICS_SCHEMA

    def expand(self, rows: PCollection[MetricsRow]) -> PCollection[MetricsRow]:
        """Keeps the rows in small files while they pass."""
        return rows | "Write" >> beam.ParDo(
            _JournalFn(self.uri, self.storage, self.interval_s, self.max_rows, self.schema)
        ).with_output_types(MetricsRow)


class _JournalFn(beam.DoFn):
    def __init__(
        self, uri: str, storage: Storage, interval_s: float, max_rows: int, schema: pa.Schema
    ) -> None:
        self._uri, self._storage, self._schema = uri, storage, schema
        self._interval_s, self._max_rows = interval_s, max_rows
        self._rows: list[MetricsRow] = []
        self._written_at_s = float("-inf")

    def start_bundle(self) -> None:
        self._rows = []

    def process(self, row: MetricsRow) -> Iterator[MetricsRow]:
        self._rows.append(row)
        waited_s = time.monotonic() - self._written_at_s
        if len(self._rows) >= self._max_rows or waited_s >= self._interval_s:
            yield from self._flush()

    def finish_bundle(self) -> Iterator[Any]:
        window = GlobalWindow()
        for row in self._flush():
            yield in_window(row, window)

    def _flush(self) -> list[MetricsRow]:
        rows, self._rows = self._rows, []
        if rows:
            write_piece(self._storage, self._uri, rows, self._schema)
            self._written_at_s = time.monotonic()
        return rows


def write_piece(
    storage: Storage, uri: str, rows: list[MetricsRow], schema: pa.Schema = METRICS_SCHEMA
) -> None:
    """Writes one file of the journal, once the files that its rows name will last."""
    files = (row.values.get(name) for row in rows for name in ("stem_uri", "residual_uri"))
    storage.settle(uri for uri in files if uri is not None)
    made = table_row
    if "n_segments" in schema.names:
        schema, made = schema.append(_SEGMENTS).append(_EMBEDDING), _journal_row
    schema = with_extra(schema, {name for row in rows for name in row.extra})
    ids = sorted(row.id for row in rows)
    name = hashlib.sha256("\x00".join(ids).encode("utf-8", "surrogatepass")).hexdigest()[:32]
    table = sorted_table(map(made, rows), schema)
    storage.write_bytes(join(uri, f"{name}.parquet"), parquet_bytes(table))


def write_metrics(
    done: PCollection[MetricsRow],
    left: Mapping[str, Any],
    names: PCollection[str] | None,
    *,
    metrics_uri: str,
    segments_uri: str,
    summary_uri: str,
    storage: Storage,
    prefix: str,
    shards: int,
    embeddings_uri: str | None = None,
) -> dict[str, PCollection[Any]]:
    """Adds the steps that write the metrics, their segments, embeddings and summary.

    Args:
        done: rows of this attempt.
        left: by :class:`transforms.kept.GoOn` where earlier attempts left something; else empty.
        names: ``extra_…`` columns that every file has; None: those of the rows.
        metrics_uri: folder of the metrics.
        segments_uri: folder of the segments; there is none where no row has one.
        summary_uri: folder of the summary.
        storage: how they are reached.
        prefix: of the names of this attempt's files.
        shards: files a partition; 0: by size.
        embeddings_uri: folder of the stems' embeddings; None: no row has one.

    Returns:
        What is to be counted, by its name.
    """
    new, every_row, counted = done, done, dict[str, PCollection[Any]]()
    if left:
        counted[row_counts.RECOVERED] = left[row_counts.RECOVERED]
        new = (done, left[row_counts.RECOVERED]) | "NewRows" >> beam.Flatten()
        every_row = (new, left["in_tables"]) | "EveryRow" >> beam.Flatten()
    counted[row_counts.METRICS_FILES] = (
        new
        | "TableRows" >> beam.Map(table_row).with_output_types(TableRow)
        | "WriteMetrics"
        >> WriteTable(
            uri=metrics_uri,
            schema=METRICS_SCHEMA,
            storage=storage,
            prefix=prefix,
            shards=shards,
            names=names,
        )
    )
    counted[row_counts.SEGMENTS] = new
    counted[row_counts.SEGMENTS_FILES] = (
        new
        | "SegmentRows" >> beam.FlatMap(segment_rows).with_output_types(TableRow)
        | "WriteSegments"
        >> WriteTable(uri=segments_uri, schema=SEGMENTS_SCHEMA, storage=storage, prefix=prefix)
    )
    if embeddings_uri is not None:
        embeddings = new | "EmbeddingRows" >> beam.FlatMap(embedding_rows).with_output_types(
            TableRow
        )
        counted[row_counts.EMBEDDINGS] = embeddings
        counted[row_counts.EMBEDDINGS_FILES] = embeddings | "WriteEmbeddings" >> WriteTable(
            uri=embeddings_uri,
            schema=EMBEDDINGS_SCHEMA,
            storage=storage,
            prefix=prefix,
            shards=shards,
            weight=_EMBEDDING_WEIGHT,
        )
    _ = every_row | "Summarise" >> SummariseMetrics(uri=summary_uri, storage=storage)
    return counted
