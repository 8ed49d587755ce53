"""The graph of ``pipelines.score``."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from manifests.columns import METRICS_SCHEMA
from manifests.files import absolute
from manifests.row import ManifestRow
from model import devices
from model.checkpoints.fetch import CheckpointError
from model.registry import UnknownModelError
from pipelines.config import SeparateConfig
from pipelines.dead_letters import WriteDeadLetters
from pipelines.flags import ScoreOptions, UsageError
from pipelines.jobs import Job
from pipelines.output_folder import storage_of
from pipelines.output_folder.clearing import SCORE, require_apart
from pipelines.output_folder.record import code_version
from pipelines.plan import BOOKS, METRICS, SUMMARY, scorer_choice
from transforms import model_cache
from transforms.audio import MAX_RATE_HZ, MIN_RATE_HZ, AudioError
from transforms.audio.mixtures import ReadSettings
from transforms.elements import MetricsRow, MixtureQueries
from transforms.external_stems import (
    STEM_COLUMN,
    MetricsOf,
    StemPlaces,
    TakeStems,
    fixed_folder,
    without_embeddings,
)
from transforms.manifest_io import AdmitRows, GroupByMixture, ReadManifest
from transforms.queries import AttachQueriesFn, EmbedQueries
from transforms.scoring import ScoreStems, ScoringSettings
from transforms.storage import Storage, join
from transforms.storage.access import UriAccess, uris_of
from transforms.tables import TableRow, WriteTable, dead_letters, metrics_rows, row_counts
from transforms.tables.summary import SummariseMetrics


def job(options: PipelineOptions, config: SeparateConfig) -> Job:
    """The job that the flags ask for.

    Raises:
        UsageError: a value out of range, or a scorer that cannot be had.
    """
    own = options.view_as(ScoreOptions)
    if not MIN_RATE_HZ <= own.score_rate_hz <= MAX_RATE_HZ:
        expected = f"expected {MIN_RATE_HZ} to {MAX_RATE_HZ}"
        raise UsageError(f"--score_rate_hz={own.score_rate_hz}: {expected}")
    try:
        access = UriAccess(prefixes=config.allowed_uri_prefix)
        places = StemPlaces(where=None if own.stems is None else absolute(own.stems), access=access)
        reachable = places.reachable
    except ValueError as err:
        raise UsageError(f"--stems: {err}") from err
    if config.execution.is_local:
        try:
            devices.resolved(config.device)
        except ValueError as err:
            raise UsageError(str(err)) from err
    storage = storage_of(config, reachable)
    if own.stems:
        require_apart(config, storage, [("the stems", fixed_folder(absolute(own.stems)))])
    scoring = ScoringSettings(
        scorer=scorer_choice(config),
        device=config.device,
        model_rate_hz=own.score_rate_hz,
        batch_size=config.batch_size,
        num_threads=config.execution.num_threads,
    )
    return Job(
        command=SCORE,
        config=config,
        graph=ScoreManifest(
            config=config, storage=storage, places=places, scoring=scoring, system=own.system
        ),
        settings={
            "system": own.system,
            "stems": places.where,
            "score_rate_hz": own.score_rate_hz,
            "scorer": config.scorer,
            "scorer_sha256": _digest(config),
        },
        reads=functools.partial(_reads, places=places),
        closing={"numbers": METRICS},
    )


def _reads(row: ManifestRow, places: StemPlaces) -> Iterator[tuple[str, str]]:
    """What a row makes the job read; of several places for its stem, all."""
    yield from uris_of(row)
    with contextlib.suppress(AudioError, ValueError):  # said when the row is done
        for uri in places.candidates(row):
            yield STEM_COLUMN, uri


def _digest(config: SeparateConfig) -> str | None:
    """The scorer's, which is loaded for that; elsewhere than here it needs none of its devices."""
    if not config.execution.is_local:
        config = dataclasses.replace(config, device="cpu")
    scorer = scorer_choice(config)
    if scorer is None:
        return None
    try:
        digest = model_cache.load_scorer(scorer).digest
    except (UnknownModelError, CheckpointError, ValueError) as err:
        raise UsageError(str(err)) from err
    if not config.execution.in_process:
        model_cache.forget()
    return digest


@dataclasses.dataclass(eq=False, kw_only=True)
class ScoreManifest(beam.PTransform[Any, Any]):
    """Manifests → metrics, summary, dead letters and books.

    In: a pipeline. Out: nothing that anybody needs; everything is in files.
    """

    config: SeparateConfig
    storage: Storage
    places: StemPlaces
    scoring: ScoringSettings
    system: str

    def expand(self, root: Any) -> Any:
        """Wires the steps."""
        rows, invalid = root | "ReadManifest" >> ReadManifest(
            uris=self.config.manifests, storage=self.storage, access=self.places.access
        )
        admitted, duplicates = rows | "AdmitRows" >> AdmitRows()
        queries, unembedded = self._queries(admitted)
        reading = ReadSettings(
            model_rate_hz=self.scoring.model_rate_hz,
            max_in_memory_s=self.config.max_clip_in_memory_s,
        )
        taken, untaken = queries | "TakeStems" >> TakeStems(self.places, self.storage, reading)
        scored = (
            taken
            | "ScoreStems" >> ScoreStems(self.scoring)
            | "Metrics"
            >> beam.FlatMap(
                MetricsOf(
                    system=self.system,
                    rate_hz=self.scoring.model_rate_hz,
                    code_version=code_version(),
                )
            ).with_output_types(MetricsRow)
        )
        all_failed = (invalid, duplicates, *unembedded, untaken) | "AllFailed" >> beam.Flatten()
        return {
            row_counts.ROWS: (rows, invalid) | "AllRows" >> beam.Flatten(),
            row_counts.STEMS: scored,
            row_counts.DEAD: all_failed,
            row_counts.METRICS_FILES: self._tables(scored),
            row_counts.DEAD_LETTER_FILES: all_failed
            | "WriteDeadLetters" >> WriteDeadLetters(self.config.output, self.storage),
        } | "KeepBooks" >> row_counts.KeepBooks(
            uri=join(self.config.output, BOOKS), storage=self.storage
        )

    def _queries(self, rows: Any) -> tuple[Any, list[Any]]:
        mixtures = rows | "GroupByMixture" >> GroupByMixture()
        if self.scoring.scorer is None:
            queries = mixtures | "NoQueries" >> beam.Map(without_embeddings).with_output_types(
                MixtureQueries
            )
            return queries, []
        max_values = ReadSettings(
            model_rate_hz=self.scoring.model_rate_hz,
            max_in_memory_s=self.config.max_clip_in_memory_s,
        ).max_values
        embedded = rows | "EmbedQueries" >> EmbedQueries(
            self.scoring.scorer, self.storage, max_values, self.scoring.num_threads
        )
        table = beam.pvalue.AsMultiMap(embedded)
        outputs = mixtures | "AttachQueries" >> beam.ParDo(
            AttachQueriesFn(scores=True), table, table
        ).with_outputs(dead_letters.FAILED, main="queries")
        return outputs["queries"], [outputs[dead_letters.FAILED]]

    def _tables(self, scored: Any) -> Any:
        config = self.config
        _ = scored | "Summarise" >> SummariseMetrics(
            uri=join(config.output, SUMMARY), storage=self.storage
        )
        return (
            scored
            | "TableRows" >> beam.Map(metrics_rows.table_row).with_output_types(TableRow)
            | "WriteMetrics"
            >> WriteTable(
                uri=join(config.output, METRICS),
                schema=METRICS_SCHEMA,
                storage=self.storage,
                prefix="part-000",
                shards=config.shards,
            )
        )
