"""Builds the graph of ``pipelines.score``: stems that any system made → the tables of ours."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, cast

import apache_beam as beam
from apache_beam.pipeline import Pipeline
from apache_beam.pvalue import PCollection

from manifests.row import STEMS_FOLDER, ManifestRow
from model import devices
from pipelines import console, flags
from pipelines.config import ScoreConfig
from pipelines.flags import UsageError
from pipelines.output_folder import OutputFolder, num_shards
from pipelines.output_folder.contents import (
    DEAD_LETTERS,
    JOURNAL,
    LISTING,
    METRICS,
    ROW_COUNTS,
    RUN,
    SEGMENTS,
    SUMMARY,
    require_apart,
)
from pipelines.preflight import code_version
from pipelines.runners import Measurements
from transforms import model_cache
from transforms.audio import AudioError
from transforms.audio.mixtures import ReadSettings
from transforms.elements import MetricsRow, MixtureQueries, MixtureRows
from transforms.external_stems import (
    STEM_COLUMN,
    MetricsOf,
    StemPlaces,
    TakeStems,
    without_embeddings,
)
from transforms.kept import GoOn
from transforms.manifest_io import (
    AdmitRows,
    GroupByMixture,
    ReadManifest,
    extra_names,
    pieces_of,
)
from transforms.queries import AttachQueries, EmbedExamples
from transforms.scoring import ClapScores, ScoreStems, ScoringSettings
from transforms.storage import Storage, fixed_folder, join
from transforms.storage.access import UriAccess, uris_of
from transforms.tables.dead_letters import WriteDeadLetters, write_and_count
from transforms.tables.metrics_rows import WriteJournal, interval_s, write_metrics
from transforms.tables.row_counts import RowCounts


def _require_no_run(storage: Storage, stems: str) -> None:
    """Raises UsageError where the folder of a run is named, and not that of its stems."""
    try:
        is_run = "{" not in stems and storage.exists(join(stems, RUN))
        is_run = is_run and STEMS_FOLDER in storage.list_folders(stems)
    except OSError:  # a store that lists nothing; whatever is wrong with it, the rows say
        return
    if is_run:
        raise UsageError(
            f"--stems {stems}: is the folder of a run; its stems are in {join(stems, STEMS_FOLDER)}"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class ScoreJob:
    """Scores stems that any system made; see :class:`pipelines.launch.Job`."""

    config: ScoreConfig
    command = flags.SCORE

    @property
    def places(self) -> StemPlaces:
        """Where stems are."""
        return StemPlaces(where=self.config.stems, access=self.config.access)

    @property
    def access(self) -> UriAccess:
        """What rows may name, and where stems are.

        Raises:
            UsageError: --stems cannot be used.
        """
        try:
            return self.places.reachable
        except ValueError as err:
            raise UsageError(f"--stems: {err}") from err

    def check(self, storage: Storage) -> None:
        """Checks the device, and that the stems lie outside of the output folder.

        Raises:
            UsageError: they lie in it, are of parts of different divisions, or a run is named and
                not its stems.
            ValueError: there is no such device.
        """
        config = self.config
        devices.require_name(config.device)
        if config.execution.is_local:
            devices.gpus(config.device)
        if config.stems:
            if num_shards(storage, config.stems) == 0:
                _require_no_run(storage, config.stems)
            require_apart(config, storage, [("the stems", fixed_folder(config.stems))])

    def reads(self, row: ManifestRow) -> Iterator[tuple[str, str]]:
        """The URIs that a row makes the job read; of several places for its stem, all."""
        yield from uris_of(row)
        with contextlib.suppress(AudioError, ValueError):  # said when the row is done
            for uri in self.places.candidates(row):
                yield STEM_COLUMN, uri

    def load(self) -> str | None:
        """Loads the scorer; elsewhere than here it needs none of its devices.

        Returns:
            The digest of its weights; None where there is no scorer.
        """
        device = self.config.device if self.config.execution.in_process else "cpu"
        scorer = self._scorer(device)
        if scorer is None:
            return None
        if self.config.execution.is_local:
            devices.require_precision(self.config.precision, scorer.model.resolved_device())
        digest = model_cache.load_scorer(scorer).digest
        if not self.config.execution.in_process:
            model_cache.forget()
        return digest

    def _scorer(self, device: str) -> model_cache.ScorerChoice | None:
        config = self.config
        model = model_cache.ModelChoice(
            name=config.model,
            device=device,
            precision=config.precision,
            storage_options=config.storage_options,
        )
        return model_cache.scorer_choice(model, config.scorer)

    def settings(self, digest: str | None) -> dict[str, Any]:
        """What decides the results."""
        return {**self.config.settings(), "scorer_sha256": digest}

    def graph(self, folder: OutputFolder, digest: str | None) -> ScoreManifest:
        """The graph of the run."""
        config = self.config
        return ScoreManifest(
            config=config,
            folder=folder,
            places=dataclasses.replace(
                self.places, num_shards=num_shards(folder.storage, config.stems)
            ),
            scoring=ScoringSettings(
                scorer=self._scorer(config.execution.device_of_worker),
                device=config.execution.device_of_worker,
                model_rate_hz=config.score_rate_hz,
                batch_size=config.batch_size,
                num_threads=config.execution.num_threads,
                activity=config.activity,
                score_segments=config.segment_scores,
                clap_scores=cast(ClapScores, config.clap_scores),
            ),
        )

    def closing(
        self, folder: OutputFolder, digest: str | None, row_counts: RowCounts,
        measured: Measurements, wall_s: float,
    ) -> list[str]:  # fmt: skip
        """What is said at the end."""
        text = console.done_lines(folder, row_counts)
        return text + console.last_lines(
            folder, row_counts, measured, {"numbers": METRICS, "segments": SEGMENTS}
        )


@dataclasses.dataclass(eq=False, kw_only=True)
class ScoreManifest(beam.PTransform[Any, Any]):
    """Manifests → metrics, summary, dead letters and row counts.

    In: a pipeline. Out: nothing that anybody needs; everything is in files.
    """

    config: ScoreConfig
    folder: OutputFolder
    places: StemPlaces
    scoring: ScoringSettings

    def expand(self, root: Pipeline) -> PCollection[str]:
        """Builds the job: the URI of the row counts comes out last."""
        folder = self.folder
        rows, invalid = root | "ReadManifest" >> ReadManifest(
            uris=self.config.manifests,
            storage=self.folder.storage,
            access=self.places.access,
            shard=self.config.shard,
        )
        names = rows | "Columns" >> beam.FlatMap(extra_names).with_output_types(str)
        left: Mapping[str, Any] = {}
        if folder.earlier.kept:
            left = {"rows": rows, "invalid": invalid, "names": names} | "GoOn" >> GoOn(
                output=folder.uri,
                listing=folder.place(LISTING),
                storage=folder.storage,
                rules=folder.earlier.rules,
                left_out=(STEM_COLUMN,),
            )
            admitted, duplicates, names = left["rows"], left["failed"], left["letter_names"]
        else:
            admitted, duplicates = rows | "AdmitRows" >> AdmitRows()
            names = names | "DistinctColumns" >> beam.Distinct()
        done, failed = self._scored(admitted)
        metrics = write_metrics(
            done,
            left,
            names | "OfMetrics" >> beam.Filter(_is_of_metrics),
            metrics_uri=folder.place(METRICS),
            segments_uri=folder.place(SEGMENTS),
            summary_uri=folder.place(SUMMARY),
            storage=folder.storage,
            prefix=folder.prefix,
            shards=self.config.shards,
        )
        return write_and_count(
            {**metrics, **left.get("counted", {})},
            rows=rows,
            invalid=invalid,
            done=done,
            failed=(invalid, duplicates, *failed),
            letters=WriteDeadLetters(
                folder.place(DEAD_LETTERS),
                folder.storage,
                folder.prefix,
                names,
                left.get("letters"),
            ),
            counts_uri=folder.place(ROW_COUNTS),
        )

    def _scored(self, rows: Any) -> tuple[PCollection[MetricsRow], list[PCollection[Any]]]:
        """Reads and scores the stems of rows; gives their metrics, and the failures."""
        queries, unembedded = self._queries(rows)
        reading = ReadSettings(
            model_rate_hz=self.scoring.model_rate_hz,
            max_in_memory_s=self.config.max_clip_in_memory_s,
        )
        taken, untaken = queries | "TakeStems" >> TakeStems(
            self.places, self.folder.storage, reading
        )
        is_local = self.config.execution.is_local
        done = (
            taken
            | "ScoreStems" >> ScoreStems(self.scoring)
            | "Metrics"
            >> beam.FlatMap(
                MetricsOf(
                    system=self.config.system,
                    rate_hz=self.scoring.model_rate_hz,
                    code_version=code_version(),
                )
            ).with_output_types(MetricsRow)
            | "Journal"
            >> WriteJournal(
                self.folder.place(JOURNAL),
                self.folder.storage,
                interval_s=interval_s(is_local=is_local),
            )
        )
        return done, [*unembedded, untaken]

    def _queries(self, rows: Any) -> tuple[Any, list[Any]]:
        mixtures = (
            rows
            | "GroupByMixture" >> GroupByMixture()
            | "Pieces" >> beam.FlatMap(pieces_of).with_output_types(MixtureRows)
        )
        if self.scoring.scorer is None:
            queries = mixtures | "NoQueries" >> beam.Map(without_embeddings).with_output_types(
                MixtureQueries
            )
            return queries, []
        max_values = ReadSettings(
            model_rate_hz=self.scoring.model_rate_hz,
            max_in_memory_s=self.config.max_clip_in_memory_s,
        ).max_values
        scorer = self.scoring.scorer
        examples = rows | "EmbedExamples" >> EmbedExamples(scorer, self.folder.storage, max_values)
        queries, failed = (mixtures, examples, examples) | "AttachQueries" >> AttachQueries(
            None, scorer, self.scoring.num_threads
        )
        return queries, [failed]


def _is_of_metrics(name: str) -> bool:
    """Whether a further column of the manifest is one of the metrics too, under its own name."""
    return name != STEM_COLUMN
