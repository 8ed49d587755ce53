"""Builds the graph of ``pipelines.export``: results that a condition picks → a data set."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import apache_beam as beam
import duckdb
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from apache_beam.metrics.metric import Metrics
from apache_beam.pipeline import Pipeline
from apache_beam.pvalue import PCollection

from manifests.columns import EXPORT_FIELDS, EXPORTED_SCHEMA, METRICS_SCHEMA, SEGMENTS_SCHEMA
from manifests.files import without_span
from manifests.row import EXPORT_FOLDER, ManifestRow
from pipelines import console, flags, output_folder
from pipelines.config import ExportConfig
from pipelines.flags import UsageError
from pipelines.output_folder import OutputFolder, contents
from pipelines.output_folder.contents import (
    DEAD_LETTERS,
    EXPORTED,
    JOURNAL,
    LISTING,
    METRICS,
    ROW_COUNTS,
    RUN,
    SEGMENTS,
)
from pipelines.runners import Measurements
from transforms.audio.files import StemFormat
from transforms.elements import Failure, Shard, TableRow, failed
from transforms.exporting import (
    AUDIO_URI,
    END_S,
    FIELDS,
    LABELS,
    START_S,
    STEM_RATE_HZ,
    STEM_START_S,
    STEM_URI,
    ExportSettings,
    WriteItems,
    WriteList,
    plain,
    table_row,
)
from transforms.kept import EXPORTED_KEPT, GoOn
from transforms.manifest_io import AdmitRows, extra_names
from transforms.storage import Storage, join, now_at, written_to
from transforms.storage.access import UriAccess
from transforms.tables import WriteTable, dead_letters, row_counts
from transforms.tables.dead_letters import WriteDeadLetters, write_and_count
from transforms.tables.metrics_rows import WriteJournal, interval_s
from transforms.tables.row_counts import RowCounts

_FIELD_NAMES = tuple(column.name for column in EXPORT_FIELDS)
_ROWS_AT_ONCE = 4_096
_HAS_SEGMENTS = "coalesce(n_segments, (stem_uri IS NOT NULL)::INT) > 0"
"""Of a clip: segments/ has rows about it, or may have, where an earlier version does not say."""
_DIGEST = "md5_number_lower(CAST(row(*COLUMNS(*)) AS VARCHAR)) AS number"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """A run whose results are taken along.

    Attributes:
        uri: where it is now.
        places: where it was when it was written, with one of which its stems' URIs begin.
        allowed: what its rows were allowed to name; empty: anything.
        name: put before ids, with a slash; empty where one run is exported.
        finished: whether its record says so: a table that is not there then has no rows.
    """

    uri: str
    places: tuple[str, ...]
    allowed: tuple[str, ...]
    name: str
    finished: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which results are taken.

    Attributes:
        runs: run folders.
        where: a condition in SQL over the columns of metrics and segments.
        cut: ``segments`` or ``clips``.
        signal: ``stem`` or ``mixture``.
        margin_s: that segments gain on either side.
        labels: times in recordings are meant, and not audio.
    """

    runs: tuple[RunFolder, ...]
    where: str
    cut: str
    signal: str
    margin_s: float
    labels: bool

    def rows(self, storage: Storage) -> Iterator[ManifestRow]:
        """The rows that the condition picks, sorted by id.

        Raises:
            UsageError: the condition is none, or a run has nothing of what is asked for.
        """
        with duckdb.connect(config={"enable_external_access": "false"}) as database:
            for folder in self.runs:
                reader = self._picked(database, folder, storage).to_arrow_reader(_ROWS_AT_ONCE)
                for batch in reader:
                    for record in batch.to_pylist():
                        yield self._row(record, folder)

    def check(self, storage: Storage) -> None:
        """Raises UsageError where :meth:`rows` would."""
        with duckdb.connect(config={"enable_external_access": "false"}) as database:
            for folder in self.runs:
                picked = self._picked(database, folder, storage)
                with self._conditioned(folder):
                    picked.aggregate("count(*)").fetchall()

    def digest(self, storage: Storage) -> str:
        """What tells this selection from another: how many rows there are, and what they say.

        Raises:
            UsageError: as :meth:`rows`.
        """
        count, digest = 0, 0
        with duckdb.connect(config={"enable_external_access": "false"}) as database:
            for folder in self.runs:
                picked = self._picked(database, folder, storage).project(_DIGEST)
                for rows, number in picked.aggregate("count(*), bit_xor(number)").fetchall():
                    count, digest = count + rows, digest ^ (number or 0)
        return f"{count} rows ({digest:016x})"

    def _picked(
        self, database: duckdb.DuckDBPyConnection, folder: RunFolder, storage: Storage
    ) -> duckdb.DuckDBPyRelation:
        kept = _table(folder, METRICS, METRICS_SCHEMA, storage)
        if kept is None and not folder.finished:
            raise UsageError(
                f"--runs {folder.uri}: has no {METRICS}/; expected a folder in which "
                "pipelines.separate has finished a run; its --resume goes on with a stopped one"
            )
        clips = database.from_arrow(METRICS_SCHEMA.empty_table() if kept is None else kept)
        items = clips
        if self.cut == SEGMENTS:
            found = _table(folder, SEGMENTS, SEGMENTS_SCHEMA, storage)
            if found is None and clips.filter(_HAS_SEGMENTS).limit(1).fetchall():
                raise UsageError(
                    f"--runs {folder.uri}: has no {SEGMENTS}/ (runs of earlier versions have "
                    "none); take --cut clips"
                )
            segments = database.from_arrow(
                SEGMENTS_SCHEMA.empty_table() if found is None else found
            )
            items = _joined(clips, segments)
        with self._conditioned(folder):
            return items.filter(self.where).order("id")

    @contextlib.contextmanager
    def _conditioned(self, folder: RunFolder) -> Iterator[None]:
        """Raises UsageError where the condition cannot be read, or computed on what is there."""
        try:
            yield
        except duckdb.Error as err:
            said = _first_lines(err)
            if "Arrow source failed" in said:  # pages are only read now
                raise UsageError(f"--runs {folder.uri}: a table is damaged ({said})") from err
            raise UsageError(f"--where {self.where!r}: {said}") from err

    def _row(self, record: Mapping[str, Any], folder: RunFolder) -> ManifestRow:
        """A row that names the clip's own sources, and in further columns what is taken."""
        row_id = record["id"]
        start_s, end_s = self._part(record)
        mixture_uri, begin_s = record["mixture_uri"], record["offset_s"] or 0.0
        if mixture_uri:
            mixture_uri, span = without_span(mixture_uri)
            begin_s += span.start_s
        if self.cut == SEGMENTS:
            row_id = f"{row_id}/{record['segment']:04d}"
        if folder.name:
            row_id = f"{folder.name}/{row_id}"
        fields = {name: plain(record.get(name)) for name in _FIELD_NAMES}
        fields.update(
            id=row_id,
            start_s=begin_s + (start_s or 0.0),
            end_s=begin_s + (record["duration_s"] or 0.0 if end_s is None else end_s),
        )
        stem = record["stem_uri"]
        if stem:
            stem = now_at(stem, folder.places, folder.uri)
        uri, of_stem = stem, {}
        if self.labels:
            begin = "" if start_s is None else repr(start_s)
            rate_hz = str(record["sample_rate_hz"] or "")
            of_stem = {STEM_URI: stem or "", STEM_START_S: begin, STEM_RATE_HZ: rate_hz}
        if self.signal != "stem" or self.labels:
            uri, start_s, end_s = mixture_uri, fields["start_s"], fields["end_s"]
        extra = {
            **of_stem,
            AUDIO_URI: uri or "",
            START_S: "" if start_s is None else repr(start_s),
            END_S: "" if end_s is None else repr(end_s),
            FIELDS: json.dumps(fields),
        }
        return ManifestRow(
            id=row_id,
            mixture_uri=record["mixture_uri"],
            target_uris=tuple(record["target_uris"] or ()),
            interferer_uris=tuple(record["interferer_uris"] or ()),
            positive_text=record["positive_text"],
            negative_text=record["negative_text"],
            dataset=record["dataset"],
            split=record["split"],
            label=record["label"],
            group=record["group"],
            extra=extra,
        )

    def _part(self, record: Mapping[str, Any]) -> tuple[float | None, float | None]:
        """Where the item begins and ends in the stem; None: where the stem does."""
        if self.cut != SEGMENTS:
            return None, None
        start_s, end_s = record["start_s"] - self.margin_s, record["end_s"] + self.margin_s
        return max(0.0, start_s), min(end_s, record["duration_s"] or end_s)


def _table(
    folder: RunFolder, name: str, schema: pa.Schema, storage: Storage
) -> pyarrow.dataset.Dataset | None:
    """The files of a table, read when they are asked for; None where there are none."""
    uris = storage.list_files(join(folder.uri, name), ".parquet")
    if not uris:
        return None
    further: dict[str, pa.Field] = {}
    paths = []
    for uri in uris:
        fs, path = storage.resolve(uri)
        paths.append(path)
        with storage.open(uri) as stream:
            try:
                found = pq.read_schema(stream)
            except (pa.ArrowException, OSError) as err:  # a damaged footer is either
                raise UsageError(f"{uri}: is not Parquet ({_first_lines(err)})") from err
        further.update({each.name: each for each in found if each.name not in schema.names})
    return pyarrow.dataset.dataset(
        paths, schema=pa.schema([*schema, *further.values()]), filesystem=fs, format="parquet"
    )


def _joined(
    clips: duckdb.DuckDBPyRelation,
    segments: duckdb.DuckDBPyRelation,
) -> duckdb.DuckDBPyRelation:
    """Segments with the columns of their clips; what both have is the segment's.

    The clip's is there as ``clip_…``.
    """

    def column(name: str) -> duckdb.Expression:
        found = duckdb.ColumnExpression("clips", name)
        return found.alias(f"clip_{name}") if name in segments.columns else found

    number = "*, row_number() OVER (PARTITION BY id ORDER BY start_s) AS segment"
    return (
        segments.project(number)
        .set_alias("segments")
        .join(
            clips.set_alias("clips"),
            duckdb.ColumnExpression("segments", "id") == duckdb.ColumnExpression("clips", "id"),
        )
        .select(
            *(duckdb.ColumnExpression("segments", name) for name in (*segments.columns, "segment")),
            *(column(name) for name in clips.columns if name != "id"),
        )
    )


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])


@dataclasses.dataclass(frozen=True, slots=True)
class ExportJob:
    """Takes results along; see :class:`pipelines.launch.Job`."""

    config: ExportConfig
    command = flags.EXPORT

    @property
    def access(self) -> UriAccess:
        """The audio that may be read: what the flags name, and the runs themselves."""
        return self._beside_runs(self.config.access)

    def _beside_runs(self, found: UriAccess) -> UriAccess:
        for uri in self.config.runs:
            found = found.beside(uri)
        return found

    def _access(self, selection: Selection) -> UriAccess:
        """The same; where the flags say nothing, what the runs themselves were allowed."""
        allowed = [each.allowed for each in selection.runs]
        if self.config.allowed_uri_prefix or not all(allowed):
            return self.access
        prefixes = tuple(prefix for each in allowed for prefix in each)
        return self._beside_runs(dataclasses.replace(self.config.access, prefixes=prefixes))

    def check(self, storage: Storage) -> None:
        """Checks the condition on the runs, and that these lie outside of what is deleted.

        Raises:
            UsageError: the condition is none, or a run has nothing to export.
        """
        contents.require_apart(
            self.config, storage, [("what is exported", uri) for uri in self.config.runs]
        )
        for uri in self.config.runs:
            parts = output_folder.num_shards(storage, uri)
            done = sum(_run_folder(part, "", storage).finished for part in _parts(uri, storage))
            if done < max(parts, 1):
                said = f"{done} of {parts} parts have finished" if parts else "has not finished"
                output_folder.say(
                    f"--runs {uri}: {said}: what --resume would add or do again is not exported"
                )
        self._selection(storage).check(storage)

    def _selection(self, storage: Storage) -> Selection:
        config = self.config
        return Selection(
            runs=tuple(
                _run_folder(part, name, storage)
                for uri, name in _named(config.runs)
                for part in _parts(uri, storage)
            ),
            where=config.where,
            cut=config.cut,
            signal=config.signal,
            margin_s=config.margin_s,
            labels=config.layout in LABELS,
        )

    def reads(self, row: ManifestRow) -> Iterable[tuple[str, str]]:
        """No manifest is read."""
        return ()

    def load(self) -> None:
        """Loads nothing: no model is needed."""

    def settings(self, loaded: None) -> dict[str, Any]:
        """What decides the results: where the runs have changed, files would lack or have rows."""
        storage = output_folder.storage_of(self.config, self.access)
        return {**self.config.settings(), "selected": self._selection(storage).digest(storage)}

    def graph(self, folder: OutputFolder, loaded: None) -> ExportRuns:
        """The graph of the run."""
        config = self.config
        selection = self._selection(folder.storage)
        return ExportRuns(
            folder=folder,
            is_local=config.execution.is_local,
            selection=selection,
            layout=config.layout,
            settings=ExportSettings(
                uri=folder.uri,
                storage=folder.storage,
                access=self._access(selection),
                clip_format=cast(StemFormat, config.clip_format),
                clip_quality=config.clip_quality,
                shard_rows=config.shard_rows,
                max_in_memory_s=config.max_clip_in_memory_s,
            ),
        )

    def closing(
        self, folder: OutputFolder, loaded: None, row_counts: RowCounts, measured: Measurements,
        wall_s: float,
    ) -> list[str]:  # fmt: skip
        """What is said at the end."""
        text = console.done_lines(folder, row_counts, "nothing to do: --where picks nothing")
        named = {"data set": EXPORT_FOLDER, "list": EXPORTED}
        return text + console.last_lines(folder, row_counts, measured, named)


def _named(uris: Sequence[str]) -> list[tuple[str, str]]:
    """The run folders with what is put before their ids: nothing where there is one."""
    if len(uris) == 1:
        return [(uris[0], "")]
    names: list[str] = []
    for uri in uris:
        name = base = uri.rstrip("/").rsplit("/", 1)[-1] or "run"
        numbers = itertools.count(len(names) + 1)
        while name in names:
            name = f"{base}_{next(numbers)}"
        names.append(name)
    return list(zip(uris, names, strict=True))


def _parts(uri: str, storage: Storage) -> list[str]:
    """The folders of a run that was done in parts (``shard=…``), or the one of any other."""
    folders = storage.list_folders(uri)
    parts = [join(uri, name) for name in sorted(folders) if Shard.in_folder(name) is not None]
    return parts or [uri]


def _run_folder(uri: str, name: str, storage: Storage) -> RunFolder:
    try:
        record: Any = json.loads(storage.read_bytes(join(uri, RUN)))
    except FileNotFoundError:
        record = {}
    except ValueError as err:
        raise UsageError(f"{join(uri, RUN)}: is not JSON ({err})") from err
    if not isinstance(record, dict):
        record = {}
    allowed = record.get("config", {}).get("allowed_uri_prefix") or ()
    return RunFolder(
        uri=uri.rstrip("/"),
        places=written_to(record),
        allowed=tuple(map(str, allowed)),
        name=name,
        finished=record.get("status") == "finished",
    )


@dataclasses.dataclass(eq=False, kw_only=True)
class ExportRuns(beam.PTransform[Any, Any]):
    """Runs → the files of a data set, their list, dead letters and row counts.

    In: a pipeline. Out: nothing that anybody needs; everything is in files.
    """

    folder: OutputFolder
    is_local: bool
    selection: Selection
    layout: str
    settings: ExportSettings

    def expand(self, root: Pipeline) -> PCollection[str]:
        """Builds the job: the URI of the row counts comes out last."""
        folder, storage = self.folder, self.folder.storage
        selected = (
            root
            | "Selection" >> beam.Create([self.selection], reshuffle=False)
            | "Select"
            >> beam.ParDo(_SelectFn(self.settings)).with_outputs(dead_letters.FAILED, main="rows")
        )
        rows, unusable = selected["rows"], selected[dead_letters.FAILED]
        left: Mapping[str, Any] = {}
        if folder.earlier.kept:
            names = rows | "Columns" >> beam.FlatMap(extra_names).with_output_types(str)
            left = {"rows": rows, "invalid": unusable, "names": names} | "GoOn" >> GoOn(
                output=folder.uri,
                listing=folder.place(LISTING),
                storage=storage,
                rules=folder.earlier.rules,
                table=EXPORTED_KEPT,
                left_out=(AUDIO_URI, START_S, END_S, FIELDS, STEM_URI, STEM_START_S, STEM_RATE_HZ),
            )
            admitted, duplicates = left["rows"], left["failed"]
        else:
            admitted, duplicates = rows | "AdmitRows" >> AdmitRows()
        items, unwritten = {"rows": admitted, "selected": rows} | "WriteItems" >> WriteItems(
            self.settings, self.layout, goes_on=bool(left)
        )
        done = items | "Journal" >> WriteJournal(
            folder.place(JOURNAL),
            storage,
            interval_s=interval_s(is_local=self.is_local),
            schema=EXPORTED_SCHEMA,
        )
        return write_and_count(
            {**self._write_tables(done, left), **left.get("counted", {})},
            rows=rows,
            invalid=unusable,
            done=done,
            failed=(unusable, duplicates, unwritten),
            letters=WriteDeadLetters(
                folder.place(DEAD_LETTERS),
                storage,
                folder.prefix,
                left.get("letter_names"),
                left.get("letters"),
            ),
            counts_uri=folder.place(ROW_COUNTS),
        )

    def _write_tables(self, done: Any, left: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the table and the list of what is exported; gives what is to be counted."""
        new, every_item, counted = done, done, {}
        if left:
            counted[row_counts.RECOVERED] = left[row_counts.RECOVERED]
            new = (done, left[row_counts.RECOVERED]) | "NewRows" >> beam.Flatten()
            every_item = (new, left["in_tables"]) | "EveryRow" >> beam.Flatten()
        _ = every_item | "WriteList" >> WriteList(self.settings, self.layout)
        counted[row_counts.METRICS_FILES] = (
            new
            | "TableRows" >> beam.Map(table_row).with_output_types(TableRow)
            | "WriteTable"
            >> WriteTable(
                uri=self.folder.place(EXPORTED),
                schema=EXPORTED_SCHEMA,
                storage=self.folder.storage,
                prefix=self.folder.prefix,
            )
        )
        return counted


class _SelectFn(beam.DoFn):
    """Selection → the rows that it picks, and failures of those that have no audio."""

    def __init__(self, settings: ExportSettings) -> None:
        self._settings = settings
        self._rows = Metrics.counter("ReadManifest", "in")

    def process(self, selection: Selection) -> Iterator[Any]:
        for row in selection.rows(self._settings.storage):
            self._rows.inc()
            row_counts.add(rows=1)
            failure = self._failure(row, selection)
            yield row if failure is None else dead_letters.dead(failure)

    def _failure(self, row: ManifestRow, selection: Selection) -> Failure | None:
        if not row.extra[AUDIO_URI]:
            message = "the clip was mixed on the fly and has no recording"
            if selection.signal == "stem" and not selection.labels:
                message = (
                    "the clip has no stem, as where --keep_stems left it out; --signal mixture "
                    "takes the recording"
                )
            return failed(row, "manifest", "no_audio", message)
        return None
