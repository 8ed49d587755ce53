"""The graph of the main job: which transform feeds which."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, cast

import apache_beam as beam

from manifests.columns import METRICS_SCHEMA
from manifests.row import ManifestRow
from model.systems import Normalisation, Policy
from pipelines.dead_letters import WriteDeadLetters
from pipelines.plan import BOOKS, JOURNAL, METRICS, SUMMARY, Plan, model_choice, scorer_choice
from transforms import model_cache
from transforms.audio.files import StemFormat
from transforms.audio.mixtures import ReadSettings
from transforms.elements import MetricsRow
from transforms.kept import (
    AfterFiles,
    CheckStems,
    KeptRow,
    LeaveTables,
    NameSome,
    ReadKept,
    Reconcile,
)
from transforms.long_recordings import SeparateLongRecordings
from transforms.manifest_io import AdmitRows, GroupByMixture, ReadManifest
from transforms.network import NetworkSettings
from transforms.queries import AdaptQueries, AttachQueriesFn, EmbedQueries
from transforms.reading import ReadAudio
from transforms.scoring import ScoreStems, ScoringSettings
from transforms.separation import SeparateClips, SeparationSettings
from transforms.storage.access import UriAccess
from transforms.tables import TableRow, WriteTable, dead_letters, journal, metrics_rows, row_counts
from transforms.tables.summary import SummariseMetrics
from transforms.threaded import Overlap
from transforms.writing import WriteSettings, WriteStems

_FILES_AT_ONCE = (8, 32)
"""Files that a worker reads at a time, at least and at most: they mostly wait for storage."""


@dataclasses.dataclass(eq=False)
class SeparateManifest(beam.PTransform[Any, Any]):
    """Manifest rows → stems, metrics, summary, dead letters and books.

    In: a pipeline. Out: nothing that anybody needs; everything is in files.
    """

    plan: Plan

    def expand(self, root: Any) -> Any:
        """Wires the steps."""
        plan = self.plan
        rows, invalid = root | "ReadManifest" >> ReadManifest(
            uris=plan.config.manifests,
            rows=plan.config.rows,
            storage=plan.storage,
            access=UriAccess(prefixes=plan.config.allowed_uri_prefix),
        )
        plain = rows | "Columns" >> beam.FlatMap(_extra_names).with_output_types(str)
        if plan.kept:
            admitted, duplicates, kept, letters, names, counted = self._resumed(
                root, rows, invalid, plain
            )
        else:
            admitted, duplicates = rows | "AdmitRows" >> AdmitRows()
            kept = letters = None
            names, counted = plain | "DistinctColumns" >> beam.Distinct(), {}
        policy = cast(Policy, plan.config.on_unsupported_query)
        asked, unsupported = admitted | "AdaptQueries" >> AdaptQueries(plan.capabilities, policy)
        mixtures = asked | "GroupByMixture" >> GroupByMixture()
        done, *failed = (mixtures, asked) | "Separate" >> Separate(plan)
        not_done = (invalid, duplicates, unsupported, *failed)
        all_failed = not_done | "AllFailed" >> beam.Flatten()
        tables = self._write_tables(done, kept, all_failed, letters, names)
        return {
            **tables,
            **counted,
            row_counts.ROWS: (rows, invalid) | "AllRows" >> beam.Flatten(),
            row_counts.STEMS: done,
            row_counts.DEAD: all_failed,
        } | "KeepBooks" >> row_counts.KeepBooks(uri=plan.uri(BOOKS), storage=plan.storage)

    def _resumed(self, root: Any, rows: Any, invalid: Any, columns: Any) -> tuple[Any, ...]:
        """What earlier attempts left, held against the manifest, and taken out of their files."""
        plan = self.plan
        files = {"table_uris": plan.metrics_uris, "journal_uris": plan.journal_uris}
        kept, letters, damaged, names = root | "ReadKept" >> ReadKept(
            **files, letter_uris=plan.letter_uris, storage=plan.storage
        )
        if plan.config.verify:
            overlap = Overlap(num_threads=_FILES_AT_ONCE[1], max_pending=_FILES_AT_ONCE[1])
            kept = kept | "CheckStems" >> CheckStems(plan.storage, overlap)
        names = (names, columns) | "AllColumns" >> beam.Flatten()
        names = names | "DistinctColumns" >> beam.Distinct()
        found = {
            "rows": rows,
            "invalid": invalid,
            "kept": kept,
            "letters": letters,
        } | "AdmitRows" >> Reconcile(plan.rules)
        ready = {
            "leaving": found["leaving"],
            "damaged": damaged,
            "names": names,
        } | "LeaveTables" >> LeaveTables(uri=plan.config.output, **files, storage=plan.storage)
        # A stem is only written over when no table says any more what was in it.
        admitted = found["rows"] | "AfterTables" >> AfterFiles(ready)
        asked, others = found["kept"] | "Asked" >> beam.Partition(_is_other, 2)  # type: ignore[arg-type]
        counted = {
            row_counts.FINISHED_BEFORE: asked,
            row_counts.OTHERS: others,
            row_counts.LETTERS: found["letters"],
            row_counts.LEFT: found["leaving"],
            row_counts.NAMED: found["leaving"] | "NameLeaving" >> NameSome(),
            row_counts.DAMAGED: damaged,
        }
        return admitted, found["failed"], found["kept"], found["letters"], names, counted

    def _write_tables(
        self, done: Any, kept: Any, all_failed: Any, letters: Any, names: Any
    ) -> dict[str, Any]:
        plan = self.plan
        new, every_row, counted = done, done, {}
        if kept is not None:
            recovered, earlier = kept | "InTable" >> beam.Partition(_is_in_table, 2)  # type: ignore[arg-type]
            recovered, earlier = (
                part | f"Rows{name}" >> beam.Map(_row_of).with_output_types(MetricsRow)
                for name, part in (("Recovered", recovered), ("InTable", earlier))
            )
            new = (done, recovered) | "NewRows" >> beam.Flatten()
            every_row = (new, earlier) | "EveryRow" >> beam.Flatten()
            counted = {row_counts.RECOVERED: recovered}
        metrics_files = (
            new
            | "TableRows" >> beam.Map(metrics_rows.table_row).with_output_types(TableRow)
            | "WriteMetrics"
            >> WriteTable(
                uri=plan.uri(METRICS),
                schema=METRICS_SCHEMA,
                storage=plan.storage,
                prefix=plan.prefix,
                shards=plan.config.shards,
                names=names,
            )
        )
        _ = every_row | "Summarise" >> SummariseMetrics(uri=plan.uri(SUMMARY), storage=plan.storage)
        dead_letter_files = all_failed | "WriteDeadLetters" >> WriteDeadLetters(
            plan.config.output, plan.storage, plan.prefix, names, letters
        )
        return {
            **counted,
            row_counts.METRICS_FILES: metrics_files,
            row_counts.DEAD_LETTER_FILES: dead_letter_files,
        }


@dataclasses.dataclass(eq=False)
class Separate(beam.PTransform[Any, Any]):
    """Grouped rows → stems in their place and metrics: all that touches samples, in one stage.

    In: ``MixtureRows``, and the rows whose queries are to be embedded. Out: ``MetricsRow``, then
    failures of each step.
    """

    plan: Plan

    def expand(self, inputs: tuple[Any, Any]) -> tuple[Any, ...]:
        """Wires the steps."""
        mixtures, rows = inputs
        plan, config = self.plan, self.plan.config
        reading = ReadSettings(
            model_rate_hz=plan.model_rate_hz,
            mix_down=config.channels == "mid",
            max_in_memory_s=config.max_clip_in_memory_s,
        )
        queries, no_query = self._attach(mixtures, rows, reading.max_values)
        return self._hinted(reading, queries, no_query)

    def _attach(self, mixtures: Any, rows: Any, max_values: int) -> tuple[Any, Any]:
        plan = self.plan
        own = model_cache.ScorerChoice(model=model_choice(plan.config))
        scorer = scorer_choice(plan.config)
        threads = plan.config.execution.num_threads
        embedded = rows | "EmbedQueries" >> EmbedQueries(own, plan.storage, max_values, threads)
        by_scorer = embedded
        if scorer is not None and scorer != own:
            by_scorer = rows | "EmbedForScorer" >> EmbedQueries(
                scorer, plan.storage, max_values, threads
            )
        outputs = mixtures | "AttachQueries" >> beam.ParDo(
            AttachQueriesFn(scores=scorer is not None),
            beam.pvalue.AsMultiMap(embedded),
            beam.pvalue.AsMultiMap(by_scorer),
        ).with_outputs(dead_letters.FAILED, main="queries")
        return outputs["queries"], outputs[dead_letters.FAILED]

    def _hinted(self, reading: ReadSettings, queries: Any, no_query: Any) -> tuple[Any, ...]:
        hints = dict(self.plan.config.execution.resource_hints)
        step = SeparateMixtures(self.plan, reading).with_resource_hints(**hints)
        return (*(queries | "SeparateMixtures" >> step), no_query)


@dataclasses.dataclass(eq=False)
class SeparateMixtures(beam.PTransform[Any, Any]):
    """Reads, separates, scores and writes: one stage on the machines that have the accelerator.

    In: ``MixtureQueries``. Out: ``MetricsRow``, then failures of reading, separating, writing and
    streaming.
    """

    plan: Plan
    reading: ReadSettings

    def expand(self, queries: Any) -> tuple[Any, ...]:
        """Wires the steps."""
        plan, config = self.plan, self.plan.config
        separation, scoring, writing = self._settings()
        fewest, most = _FILES_AT_ONCE
        pending = max(fewest, config.batch_size)
        ahead = Overlap(num_threads=min(pending, most), max_pending=pending)
        clips, long, unread = queries | "ReadAudio" >> ReadAudio(plan.storage, self.reading, ahead)
        separated, not_separated = clips | "SeparateClips" >> SeparateClips(
            separation, plan.window_samples
        )
        scored = separated | "ScoreStems" >> ScoreStems(scoring)
        written, unwritten = scored | "WriteStems" >> WriteStems(writing, ahead)
        streamed, not_streamed = long | "SeparateLongRecordings" >> SeparateLongRecordings(
            separation, scoring, self.reading, writing
        )
        # Before they are flattened: behind a Flatten the local runner begins a new stage, which
        # would see the first row when the last one is done.
        kept = [
            rows
            | f"Journal{name}"
            >> journal.WriteJournal(
                plan.uri(JOURNAL), plan.storage, interval_s=plan.journal_interval_s
            )
            for name, rows in (("Clips", written), ("LongRecordings", streamed))
        ]
        done = kept | "Done" >> beam.Flatten()
        return done, unread, not_separated, unwritten, not_streamed

    def _settings(self) -> tuple[SeparationSettings, ScoringSettings, WriteSettings]:
        plan, config = self.plan, self.plan.config
        separation = SeparationSettings(
            model=model_choice(config),
            network=NetworkSettings(
                batch_size=config.batch_size,
                num_threads=config.execution.num_threads,
                normalisation=cast(Normalisation, config.condition_norm),
                fixed_shapes=config.compile,
            ),
            overlap=config.overlap,
            share_across_processes=config.execution.share_model,
        )
        scoring = ScoringSettings(
            scorer=scorer_choice(config),
            device=config.device,
            model_rate_hz=plan.model_rate_hz,
            batch_size=config.batch_size,
            num_threads=config.execution.num_threads,
        )
        writing = WriteSettings(
            uri=config.output,
            storage=plan.storage,
            stem_format=cast(StemFormat, config.stem_format),
            residual=config.residual,
            model_rate_hz=plan.model_rate_hz,
            code_version=plan.code_version,
        )
        return separation, scoring, writing


def _extra_names(row: ManifestRow) -> Iterable[str]:
    return row.extra.keys()


def _is_other(kept: KeptRow, _: int) -> int:
    return int(not kept.asked)


def _is_in_table(kept: KeptRow, _: int) -> int:
    return int(kept.in_table)


def _row_of(kept: KeptRow) -> MetricsRow:
    return kept.row
