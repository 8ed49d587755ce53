"""The graph of ``pipelines.synthesize``."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from manifests.columns import MANIFEST_SCHEMA
from manifests.row import ManifestRow
from pipelines.config import SeparateConfig
from pipelines.dead_letters import WriteDeadLetters
from pipelines.flags import SynthesizeOptions, UsageError
from pipelines.jobs import Job
from pipelines.output_folder.clearing import SYNTHESIZE
from pipelines.plan import BOOKS, MANIFEST
from transforms.audio import MAX_RATE_HZ, MIN_RATE_HZ
from transforms.audio.files import StemFormat, held_by
from transforms.audio.mixtures import ReadSettings
from transforms.manifest_io import AdmitRows, ReadManifest
from transforms.rendering import RenderMixtures, RenderSettings
from transforms.storage import join
from transforms.storage.access import UriAccess
from transforms.tables import TableRow, WriteTable, row_counts


def job(options: PipelineOptions, config: SeparateConfig) -> Job:
    """The job that the flags ask for.

    Raises:
        UsageError: a value out of range.
    """
    from pipelines.output_folder import storage_of

    own = options.view_as(SynthesizeOptions)
    if not MIN_RATE_HZ <= own.mix_rate_hz <= MAX_RATE_HZ:
        expected = f"expected {MIN_RATE_HZ} to {MAX_RATE_HZ}"
        raise UsageError(f"--mix_rate_hz={own.mix_rate_hz}: {expected}")
    form = cast(StemFormat, config.stem_format)
    held, why = held_by(form, own.mix_rate_hz, peak=0.0)
    if held != form:
        raise UsageError(f"--mix_rate_hz={own.mix_rate_hz}: {why}; add --stem_format {held}")
    levels = own.mix_level_range_db
    reading = ReadSettings(
        model_rate_hz=own.mix_rate_hz, max_in_memory_s=config.max_clip_in_memory_s
    )
    try:
        settings = RenderSettings(
            uri=config.output,
            storage=storage_of(config),
            reading=reading,
            stem_format=form,
            seed=own.mix_seed,
            level_range_db=None if levels is None else (levels[0], levels[1]),
        )
    except ValueError as err:
        raise UsageError(f"--mix_level_range_db: {err}") from err
    return Job(
        command=SYNTHESIZE,
        config=config,
        graph=SynthesizeManifest(
            config.manifests, settings, UriAccess(prefixes=config.allowed_uri_prefix)
        ),
        settings={
            "mix_rate_hz": own.mix_rate_hz,
            "mix_level_range_db": levels,
            "mix_seed": own.mix_seed,
            "stem_format": config.stem_format,
        },
        closing={"manifest": MANIFEST},
    )


@dataclasses.dataclass(eq=False)
class SynthesizeManifest(beam.PTransform[Any, Any]):
    """Manifests → files, the manifest of them, dead letters and books.

    In: a pipeline. Out: nothing that anybody needs; everything is in files.
    """

    uris: tuple[str, ...]
    settings: RenderSettings
    access: UriAccess

    def expand(self, root: Any) -> Any:
        """Wires the steps."""
        settings = self.settings
        rows, invalid = root | "ReadManifest" >> ReadManifest(
            uris=self.uris, storage=settings.storage, access=self.access
        )
        admitted, duplicates = rows | "AdmitRows" >> AdmitRows()
        rendered, failed = (
            admitted | "Spread" >> beam.Reshuffle() | "Render" >> RenderMixtures(settings)
        )
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
            | "WriteDeadLetters" >> WriteDeadLetters(settings.uri, settings.storage),
        } | "KeepBooks" >> row_counts.KeepBooks(
            uri=join(settings.uri, BOOKS), storage=settings.storage
        )


def _manifest_row(row: ManifestRow) -> TableRow:
    record = {name: value for name, value in row.to_record().items() if name in _COLUMNS}
    return TableRow(partition="", key=row.id, record=record, extra=dict(row.extra))


_COLUMNS = frozenset(MANIFEST_SCHEMA.names)
