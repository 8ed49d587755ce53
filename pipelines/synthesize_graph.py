"""Builds the graph of ``pipelines.synthesize``: sources and a mixing plan → mixtures on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import apache_beam as beam
from apache_beam.pipeline import Pipeline
from apache_beam.pvalue import PCollection

from manifests.columns import MANIFEST_SCHEMA
from manifests.row import EVENTS_COLUMN, INTERFERER_COLUMN, SOURCE_COLUMN, ManifestRow
from pipelines import console, flags
from pipelines.config import SynthesizeConfig
from pipelines.flags import UsageError
from pipelines.output_folder import OutputFolder
from pipelines.output_folder.contents import (
    DEAD_LETTERS,
    EVENTS,
    JOURNAL,
    LISTING,
    MANIFEST,
    ROW_COUNTS,
)
from pipelines.runners import Measurements
from transforms.audio.files import STEM_FORMATS, StemFormat, held_by
from transforms.audio.mixtures import ReadSettings
from transforms.elements import MetricsRow, TableRow
from transforms.kept import RENDERED_KEPT, GoOn
from transforms.manifest_io import AdmitRows, ReadManifest, extra_names
from transforms.rendering import Event, RenderMixtures, RenderSettings, WriteEvents, events_of
from transforms.storage import Storage
from transforms.storage.access import UriAccess, uris_of
from transforms.tables import WriteTable, metrics_rows, row_counts
from transforms.tables.dead_letters import WriteDeadLetters, write_and_count
from transforms.tables.metrics_rows import WriteJournal, interval_s
from transforms.tables.row_counts import RowCounts


@dataclasses.dataclass(frozen=True, slots=True)
class SynthesizeJob:
    """Renders mixtures; see :class:`pipelines.launch.Job`."""

    config: SynthesizeConfig
    command = flags.SYNTHESIZE

    @property
    def access(self) -> UriAccess:
        """What rows may name."""
        return self.config.access

    def check(self, storage: Storage) -> None:
        """Checks that the format holds the rate, and the range of levels.

        Raises:
            UsageError: it does not, or the range is none.
        """
        config = self.config
        form = cast(StemFormat, config.stem_format)
        if STEM_FORMATS[form].is_lossy:
            raise UsageError(
                f"--stem_format={form}: mixtures and references are kept as they are; take flac, "
                "flac16, wav or wav16"
            )
        held, why = held_by(form, config.mix_rate_hz, peak=0.0)
        if held != form:
            raise UsageError(f"--mix_rate_hz={config.mix_rate_hz}: {why}; add --stem_format {held}")
        try:
            self._settings(storage)
        except ValueError as err:
            raise UsageError(f"--mix_level_range_db: {err}") from err

    def _settings(self, storage: Storage) -> RenderSettings:
        config = self.config
        return RenderSettings(
            uri=config.output,
            storage=storage,
            reading=ReadSettings(
                model_rate_hz=config.mix_rate_hz, max_in_memory_s=config.max_clip_in_memory_s
            ),
            stem_format=cast(StemFormat, config.stem_format),
            seed=config.mix_seed,
            level_range_db=config.mix_level_range_db,
        )

    def reads(self, row: ManifestRow) -> Iterable[tuple[str, str]]:
        """The URIs that a row makes the job read, each with its column."""
        return uris_of(row)

    def load(self) -> None:
        """Loads nothing: no model is needed."""

    def settings(self, loaded: None) -> dict[str, Any]:
        """What decides the results."""
        return self.config.settings()

    def graph(self, folder: OutputFolder, loaded: None) -> SynthesizeManifest:
        """The graph of the run."""
        return SynthesizeManifest(
            config=self.config,
            folder=folder,
            settings=self._settings(folder.storage),
            access=self.access,
        )

    def closing(
        self, folder: OutputFolder, loaded: None, row_counts: RowCounts, measured: Measurements,
        wall_s: float,
    ) -> list[str]:  # fmt: skip
        """What is said at the end."""
        text = console.done_lines(folder, row_counts)
        return text + console.last_lines(folder, row_counts, measured, {"manifest": MANIFEST})


@dataclasses.dataclass(eq=False, kw_only=True)
class SynthesizeManifest(beam.PTransform[Any, Any]):
    """Manifests → files, the manifest of them, their events, dead letters and row counts.

    In: a pipeline. Out: nothing that anybody needs; everything is in files.
    """

    config: SynthesizeConfig
    folder: OutputFolder
    settings: RenderSettings
    access: UriAccess

    def expand(self, root: Pipeline) -> PCollection[str]:
        """Builds the job: the URI of the row counts comes out last."""
        folder = self.folder
        rows, invalid = root | "ReadManifest" >> ReadManifest(
            uris=self.config.manifests,
            storage=folder.storage,
            access=self.access,
            shard=self.config.shard,
        )
        left: Mapping[str, Any] = {}
        if folder.earlier.kept:
            names = rows | "Columns" >> beam.FlatMap(_names).with_output_types(str)
            left = {"rows": rows, "invalid": invalid, "names": names} | "GoOn" >> GoOn(
                output=folder.uri,
                listing=folder.place(LISTING),
                storage=folder.storage,
                rules=folder.earlier.rules,
                table=RENDERED_KEPT,
                written=_WRITTEN,
            )
            admitted, duplicates = left["rows"], left["failed"]
        else:
            admitted, duplicates = rows | "AdmitRows" >> AdmitRows()
        done, failed = self._rendered(admitted)
        return write_and_count(
            {**self._write_manifest(done, left), **left.get("counted", {})},
            rows=rows,
            invalid=invalid,
            done=done,
            failed=(invalid, duplicates, failed),
            letters=WriteDeadLetters(
                folder.place(DEAD_LETTERS),
                folder.storage,
                folder.prefix,
                left.get("letter_names"),
                left.get("letters"),
            ),
            counts_uri=folder.place(ROW_COUNTS),
        )

    def _rendered(self, rows: Any) -> tuple[PCollection[MetricsRow], PCollection[Any]]:
        """Renders rows; gives those of the manifest of what was rendered, and the failures."""
        rendered, failed = (
            rows | "Spread" >> beam.Reshuffle() | "Render" >> RenderMixtures(self.settings)
        )
        done = (
            rendered
            | "Done" >> beam.Map(_done).with_output_types(MetricsRow)
            | "Journal"
            >> WriteJournal(
                self.folder.place(JOURNAL),
                self.folder.storage,
                interval_s=interval_s(is_local=self.config.execution.is_local),
                schema=MANIFEST_SCHEMA,
            )
        )
        return done, failed

    def _write_manifest(self, done: Any, left: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the manifest of what was rendered, and its events; gives what is to be counted."""
        new, every_row, names, counted = done, done, None, {}
        if left:
            counted[row_counts.RECOVERED] = left[row_counts.RECOVERED]
            new = (done, left[row_counts.RECOVERED]) | "NewRows" >> beam.Flatten()
            every_row = (new, left["in_tables"]) | "EveryRow" >> beam.Flatten()
            names = left["names"]
        _ = (
            every_row
            | "Events" >> beam.FlatMap(events_of).with_output_types(Event)
            | "WriteEvents" >> WriteEvents(self.folder.uri, EVENTS, self.folder.storage)
        )
        counted[row_counts.METRICS_FILES] = (
            new
            | "ManifestRows" >> beam.Map(_manifest_row).with_output_types(TableRow)
            | "WriteManifest"
            >> WriteTable(
                uri=self.folder.place(MANIFEST),
                schema=MANIFEST_SCHEMA,
                storage=self.folder.storage,
                prefix=self.folder.prefix,
                shards=1,
                names=names,
            )
        )
        return counted


def _done(row: ManifestRow) -> MetricsRow:
    keys = ("id", "dataset", "split")
    values = {
        name: value
        for name, value in row.to_record().items()
        if name in _COLUMNS and name not in keys
    }
    return MetricsRow(
        id=row.id, dataset=row.dataset, split=row.split, values=values, extra=dict(row.extra)
    )


def _manifest_row(row: MetricsRow) -> TableRow:
    return dataclasses.replace(metrics_rows.table_row(row), partition="")


def _names(row: ManifestRow) -> Iterator[str]:
    """Names the further columns of the row that a row becomes when it is rendered."""
    yield from extra_names(row)
    yield from (name for name in _WRITTEN if name != EVENTS_COLUMN or row.onsets_s)


_COLUMNS = frozenset(MANIFEST_SCHEMA.names)
_WRITTEN = (INTERFERER_COLUMN, SOURCE_COLUMN, EVENTS_COLUMN)
