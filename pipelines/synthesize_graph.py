"""Builds the graph of ``pipelines.synthesize``: sources and a mixing plan → mixtures on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, cast

import apache_beam as beam
from apache_beam.pipeline import Pipeline
from apache_beam.pvalue import PCollection

from manifests.columns import MANIFEST_SCHEMA
from manifests.row import ManifestRow
from pipelines import console, flags
from pipelines.config import SynthesizeConfig
from pipelines.flags import UsageError
from pipelines.output_folder import OutputFolder
from pipelines.output_folder.names import DEAD_LETTERS, EVENTS, MANIFEST, ROW_COUNTS
from pipelines.runners import Measurements
from transforms.audio.files import StemFormat, held_by
from transforms.audio.mixtures import ReadSettings
from transforms.elements import TableRow
from transforms.manifest_io import AdmitRows, ReadManifest
from transforms.rendering import RenderMixtures, RenderSettings, WriteEvents
from transforms.storage import Storage, join
from transforms.storage.access import UriAccess, uris_of
from transforms.tables import WriteTable, row_counts
from transforms.tables.dead_letters import WriteDeadLetters
from transforms.tables.row_counts import RowCounts


@dataclasses.dataclass(frozen=True, slots=True)
class SynthesizeJob:
    """Renders mixtures; see :class:`pipelines.launch.Job`."""

    config: SynthesizeConfig
    command = flags.SYNTHESIZE

    @property
    def access(self) -> UriAccess:
        """What rows may name."""
        return UriAccess(prefixes=self.config.allowed_uri_prefix)

    def check(self, storage: Storage) -> None:
        """Checks that the format holds the rate, and the range of levels.

        Raises:
            UsageError: it does not, or the range is none.
        """
        config = self.config
        form = cast(StemFormat, config.stem_format)
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
            self.config.manifests, self._settings(folder.storage), self.access
        )

    def closing(
        self, folder: OutputFolder, loaded: None, row_counts: RowCounts, measured: Measurements,
        wall_s: float,
    ) -> list[str]:  # fmt: skip
        """What is said at the end."""
        text = console.done_lines(folder, row_counts)
        return text + console.last_lines(folder, row_counts, measured, {"manifest": MANIFEST})


@dataclasses.dataclass(eq=False)
class SynthesizeManifest(beam.PTransform[Any, Any]):
    """Manifests → files, the manifest of them, their events, dead letters and row counts.

    In: a pipeline. Out: nothing that anybody needs; everything is in files.
    """

    uris: tuple[str, ...]
    settings: RenderSettings
    access: UriAccess

    def expand(self, root: Pipeline) -> PCollection[str]:
        """Builds the job: the URI of the row counts comes out last."""
        settings = self.settings
        rows, invalid = root | "ReadManifest" >> ReadManifest(
            uris=self.uris, storage=settings.storage, access=self.access
        )
        admitted, duplicates = rows | "AdmitRows" >> AdmitRows()
        rendered, events, failed = (
            admitted | "Spread" >> beam.Reshuffle() | "Render" >> RenderMixtures(settings)
        )
        _ = events | "WriteEvents" >> WriteEvents(join(settings.uri, EVENTS), settings.storage)
        all_failed = (invalid, duplicates, failed) | "AllFailed" >> beam.Flatten()
        manifest = (
            rendered
            | "ManifestRows" >> beam.Map(_manifest_row).with_output_types(TableRow)
            | "WriteManifest"
            >> WriteTable(
                uri=join(settings.uri, MANIFEST),
                schema=MANIFEST_SCHEMA,
                storage=settings.storage,
                prefix="rows",
                shards=1,
            )
        )
        return {
            row_counts.ROWS: (rows, invalid) | "AllRows" >> beam.Flatten(),
            row_counts.STEMS: rendered,
            row_counts.DEAD: all_failed,
            row_counts.METRICS_FILES: manifest,
            row_counts.DEAD_LETTER_FILES: all_failed
            | "WriteDeadLetters"
            >> WriteDeadLetters(join(settings.uri, DEAD_LETTERS), settings.storage),
        } | "WriteRowCounts" >> row_counts.WriteRowCounts(
            uri=join(settings.uri, ROW_COUNTS), storage=settings.storage
        )


def _manifest_row(row: ManifestRow) -> TableRow:
    record = {name: value for name, value in row.to_record().items() if name in _COLUMNS}
    return TableRow(partition="", key=row.id, record=record, extra=dict(row.extra))


_COLUMNS = frozenset(MANIFEST_SCHEMA.names)
