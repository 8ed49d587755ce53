"""The graph of the main job: which transform feeds which."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, cast

import apache_beam as beam
from apache_beam.pipeline import Pipeline
from apache_beam.pvalue import PCollection

from manifests.recordings import require_root
from manifests.row import STEMS_FOLDER, ManifestRow
from model import devices
from model.inference import NetworkSettings
from model.registry import LoadedModel
from model.systems import Capabilities, Normalisation, Policy, listener_of
from pipelines import console, flags
from pipelines.config import SeparateConfig
from pipelines.output_folder import OutputFolder
from pipelines.output_folder.contents import (
    DEAD_LETTERS,
    EMBEDDINGS,
    JOURNAL,
    LISTING,
    METRICS,
    ROW_COUNTS,
    SEGMENTS,
    SUMMARY,
    WINDOWS,
)
from pipelines.preflight import code_version
from pipelines.runners import Measurements
from transforms import model_cache
from transforms.audio.files import StemFormat
from transforms.audio.mixtures import ReadSettings
from transforms.elements import MetricsRow, MixtureRows
from transforms.kept import METRICS_KEPT, GoOn
from transforms.long_recordings import SeparateLongRecordings
from transforms.manifest_io import (
    AdmitRows,
    AskRecordings,
    GroupByMixture,
    ReadManifest,
    extra_names,
    mixture_key,
    pieces_of,
)
from transforms.queries import AdaptQueries, AttachQueries, EmbedExamples
from transforms.reading import ReadAudio
from transforms.scoring import ClapScores, ScoreStems, ScoringSettings
from transforms.separation import SeparateClips, SeparationSettings
from transforms.storage import Storage, written_to
from transforms.storage.access import UriAccess, uris_of
from transforms.tables import Pack, metrics_rows, row_counts, unpack
from transforms.tables.dead_letters import WriteDeadLetters, write_and_count
from transforms.tables.metrics_rows import write_metrics
from transforms.tables.row_counts import RowCounts
from transforms.threaded import Overlap
from transforms.windows import HearRecordings, ScreenMixtures, WindowSettings, unasked
from transforms.writing import RemoveOlder, WriteSettings, WriteStems

_FILES_AT_ONCE = (8, 32)
"""Files that a worker reads at a time, at least and at most: they mostly wait for storage."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """What the launcher must know of the models, which it loads once to see that they can be had.

    Attributes:
        rate_hz: of the separator.
        window_samples: of the separator.
        scorer: its name; ``own`` where it is the model's own CLAP.
        capabilities: of the separator.
        digests: of the weights, by their column.
        screen: what is less plausible is not separated; None: everything is.
    """

    rate_hz: int
    window_samples: int
    scorer: str
    capabilities: Capabilities
    digests: Mapping[str, str | None]
    screen: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class SeparateJob:
    """Separates the rows of manifests; see :class:`pipelines.launch.Job`."""

    config: SeparateConfig
    command = flags.SEPARATE

    @property
    def access(self) -> UriAccess:
        """What rows may name."""
        return self.config.access

    def check(self, storage: Storage) -> None:
        """Checks the device, and that there is something where recordings are to be.

        Of a device of other machines only the name is checked.

        Raises:
            ValueError: no device has such a name, or this machine has not the GPU that was asked
                for.
            ManifestError: nothing is there.
        """
        devices.require_name(self.config.device)
        if self.config.execution.is_local and self.config.needs_gpu:
            devices.required_gpu(self.config.device)
        if (asked := self.config.recordings) is None:
            return
        for uri in asked.roots:
            options = storage.options_for(uri)
            look = functools.partial(require_root, uri, options, asked.output)
            storage.retrying(uri, look)

    def reads(self, row: ManifestRow) -> Iterable[tuple[str, str]]:
        """The URIs that a row makes the job read, each with its column."""
        return uris_of(row)

    def load(self) -> Models:
        """Loads the models: in this process they are then there; elsewhere they are let go again.

        Raises:
            UnknownModelError: a name that no model has.
            CheckpointError: weights cannot be had.
            ValueError: the model cannot be used as it is asked to be.
        """
        config = self.config
        # The launcher needs none of the devices of workers.
        device = config.device if config.execution.in_process else "cpu"
        choice = dataclasses.replace(model_choice(config), device=device, needs_gpu=False)
        if config.execution.is_local:
            computing = [f"cuda:{number}" for number in devices.gpus(config.device)]
            for each in computing or ["cpu"]:
                devices.require_precision(config.precision, each)
        loaded = model_cache.load_model(choice)
        own = config.scorer == model_cache.OWN
        scorer = model_cache.scorer_choice(choice, config.scorer)
        models = Models(
            rate_hz=loaded.separator.sample_rate_hz,
            window_samples=loaded.separator.window_samples,
            # A baseline has no CLAP of its own, but says whose to take.
            scorer=loaded.card.scorer if own else config.scorer,
            capabilities=loaded.separator.capabilities,
            digests={
                "model_sha256": loaded.model_sha256,
                "clap_sha256": loaded.clap_sha256,
                "scorer_sha256": None if scorer is None else model_cache.load_scorer(scorer).digest,
            },
            screen=screen_of(config, loaded),
        )
        if not config.execution.in_process:
            model_cache.forget()
        return models

    def settings(self, models: Models) -> dict[str, Any]:
        """What decides the results."""
        decided = {"scorer": models.scorer, "screen": models.screen, **models.digests}
        return {**self.config.settings(), **decided}

    def graph(self, folder: OutputFolder, models: Models) -> SeparateManifest:
        """The graph of the run."""
        return SeparateManifest(self.config, folder, models, code_version())

    def closing(
        self, folder: OutputFolder, models: Models, row_counts: RowCounts, measured: Measurements,
        wall_s: float,
    ) -> list[str]:  # fmt: skip
        """What is said at the end."""
        text = console.separated_lines(folder, row_counts, measured, wall_s=wall_s)
        if (row_counts.stems or row_counts.finished_before) and models.scorer == model_cache.OWN:
            text.append("CLAPScore is by the model's own CLAP, which is circular; see --scorer.")
        named = {"listen": STEMS_FOLDER, "numbers": METRICS, "segments": SEGMENTS}
        return text + console.last_lines(folder, row_counts, measured, named)


def screen_of(config: SeparateConfig, loaded: LoadedModel) -> float | None:
    """What ``--screen`` means for a model; None where everything is separated.

    Raises:
        ValueError: it means nothing.
    """
    tells_presence = listener_of(loaded.separator) is not None
    if config.windows and not loaded.clap_sha256:
        given = "--windows" if config.screen is None else f"--screen {config.screen}"
        raise ValueError(f"{given}: {loaded.name} has no CLAP, which would hear the windows")
    if config.screen == "auto":
        if loaded.card.screen is None or not tells_presence:
            raise ValueError(
                f"--screen auto: nobody has measured a value for {loaded.name}; give a number"
            )
        return loaded.card.screen
    if config.screen is not None and config.screen < 0.0 and tells_presence:
        raise ValueError(f"--screen={config.screen}: a presence is in [0, 1]")
    return config.screen


def model_choice(config: SeparateConfig) -> model_cache.ModelChoice:
    """The model of a run."""
    return model_cache.ModelChoice(
        name=config.model,
        device=config.execution.device_of_worker,
        precision=config.precision,
        compile=config.compile,
        needs_gpu=config.needs_gpu,
        storage_options=config.storage_options,
    )


def encoders_of(
    config: SeparateConfig, *, elsewhere: bool = False
) -> tuple[model_cache.ScorerChoice, model_cache.ScorerChoice | None]:
    """The CLAP of the model of a run, and that of its scorer, if it has one.

    Args:
        config: of the run.
        elsewhere: on machines that were not asked to have the accelerator.
    """
    choice = model_choice(config)
    if elsewhere:
        choice = dataclasses.replace(choice, needs_gpu=False)
    own = model_cache.ScorerChoice(model=choice)
    return own, model_cache.scorer_choice(own.model, config.scorer)


@dataclasses.dataclass(eq=False)
class SeparateManifest(beam.PTransform[Any, Any]):
    """Manifest rows → stems, metrics, summary, dead letters and row counts.

    In: a pipeline. Out: nothing that anybody needs; everything is in files.
    """

    config: SeparateConfig
    folder: OutputFolder
    models: Models
    code_version: str

    def expand(self, root: Pipeline) -> PCollection[str]:
        """Builds the job: the URI of the row counts comes out last."""
        config, folder = self.config, self.folder
        rows, invalid, skipped = self._read(root)
        names = rows | "Columns" >> beam.FlatMap(extra_names).with_output_types(str)
        left: Mapping[str, Any] = {}
        if folder.earlier.kept:
            files_at_once = _FILES_AT_ONCE[1]
            looking = Overlap(num_threads=files_at_once, max_pending=files_at_once)
            left = {"rows": rows, "invalid": invalid, "names": names} | "GoOn" >> GoOn(
                output=folder.uri,
                listing=folder.place(LISTING),
                storage=folder.storage,
                rules=folder.earlier.rules,
                verify=looking if config.verify else None,
                places=written_to(folder.earlier.record or {}),
                table=dataclasses.replace(METRICS_KEPT, embeddings=config.embeddings),
            )
            admitted, duplicates, names = left["rows"], left["failed"], left["names"]
        else:
            admitted, duplicates = rows | "AdmitRows" >> AdmitRows()
            names = names | "DistinctColumns" >> beam.Distinct()
        policy = cast(Policy, config.on_unsupported_query)
        asked, unsupported = admitted | "AdaptQueries" >> AdaptQueries(
            self.models.capabilities, policy
        )
        mixtures = asked | "GroupByMixture" >> GroupByMixture()
        separate = Separate(config, folder, self.models, self.code_version)
        done, *failed = (mixtures, asked) | "Separate" >> separate
        if config.windows and folder.earlier.kept:
            _ = (rows, asked) | "HearOthers" >> HearOthers(separate)
        metrics = write_metrics(
            done,
            left,
            names,
            metrics_uri=folder.place(METRICS),
            segments_uri=folder.place(SEGMENTS),
            summary_uri=folder.place(SUMMARY),
            storage=folder.storage,
            prefix=folder.prefix,
            shards=config.shards,
            embeddings_uri=folder.place(EMBEDDINGS) if config.embeddings else None,
        )
        return write_and_count(
            {**metrics, **left.get("counted", {}), **skipped},
            rows=rows,
            invalid=invalid,
            done=done,
            failed=(invalid, duplicates, unsupported, *failed),
            letters=WriteDeadLetters(
                folder.place(DEAD_LETTERS),
                folder.storage,
                folder.prefix,
                names,
                left.get("letters"),
            ),
            counts_uri=folder.place(ROW_COUNTS),
        )

    def _read(self, root: Pipeline) -> tuple[Any, Any, dict[str, Any]]:
        """The rows, what can be none, and what was passed over on the way to them."""
        config, storage = self.config, self.folder.storage
        access = config.access
        if config.recordings is not None:
            rows, invalid, skipped = root | "AskRecordings" >> AskRecordings(
                config.recordings, storage, access, config.shard
            )
            return rows, invalid, {row_counts.SKIPPED: skipped}
        rows, invalid = root | "ReadManifest" >> ReadManifest(
            uris=config.manifests,
            rows=config.rows,
            storage=storage,
            access=access,
            shard=config.shard,
        )
        return rows, invalid, {}


@dataclasses.dataclass(eq=False)
class Separate(beam.PTransform[Any, Any]):
    """Grouped rows → stems in their place and metrics: all that touches samples, in one stage.

    In: what :class:`GroupByMixture` gives, and the rows whose example clips are to be embedded.
    Out: ``MetricsRow``, then failures of each step.
    """

    config: SeparateConfig
    folder: OutputFolder
    models: Models
    code_version: str

    def expand(
        self, inputs: tuple[PCollection[Any], PCollection[ManifestRow]]
    ) -> tuple[PCollection[Any], ...]:
        """Embeds example clips, and runs the one stage that touches samples of mixtures."""
        mixtures, rows = inputs
        config, reading = self.config, self.reading
        windows = self.windows if config.windows else None
        step = SeparateMixtures(
            config, self.folder, self.models, self.code_version, reading, windows
        )
        hints = dict(config.execution.resource_hints)
        taken = (mixtures, *self._examples(rows, reading.max_values))
        packs, *failed = taken | "SeparateMixtures" >> step.with_resource_hints(**hints)
        done = packs | "Unpack" >> beam.FlatMap(unpack).with_output_types(MetricsRow)
        return done, *failed

    @property
    def reading(self) -> ReadSettings:
        """How recordings are read."""
        return ReadSettings(
            model_rate_hz=self.models.rate_hz,
            mix_down=self.config.channels == "mid",
            max_in_memory_s=self.config.max_clip_in_memory_s,
        )

    @property
    def windows(self) -> WindowSettings:
        """How recordings are heard, and what is left out then."""
        config = self.config
        return WindowSettings(
            uri=self.folder.place(WINDOWS),
            storage=self.folder.storage,
            model=model_choice(config),
            reading=self.reading,
            num_threads=config.execution.num_threads,
            screen=self.models.screen,
            scorer_sha256=self.models.digests["scorer_sha256"],
            code_version=self.code_version,
        )

    def _examples(self, rows: Any, max_values: int) -> tuple[Any, Any]:
        """The example clips of rows, embedded by the model and by the scorer."""
        storage = self.folder.storage
        own, scorer = encoders_of(self.config, elsewhere=True)
        # The machines that separate are others: these need not hold the model.
        alone = not self.config.execution.is_local
        embedded = rows | "EmbedExamples" >> EmbedExamples(own, storage, max_values, alone)
        if scorer is None or scorer == own:
            return embedded, embedded
        by_scorer = EmbedExamples(scorer, storage, max_values, alone)
        return embedded, rows | "EmbedForScorer" >> by_scorer


@dataclasses.dataclass(eq=False)
class HearOthers(beam.PTransform[Any, Any]):
    """Hears recordings of which an earlier run finished all rows, but kept no windows.

    In: all rows of the manifest, and those that are done in this run. Out: nothing.
    """

    separate: Separate

    def expand(self, inputs: tuple[PCollection[ManifestRow], PCollection[ManifestRow]]) -> Any:
        """Finds a row of each such recording, on the machines that have the accelerator."""
        keyed = {
            name: rows
            | f"Key_{name}" >> beam.Map(_by_mixture).with_output_types(tuple[str, ManifestRow])
            for name, rows in zip(("rows", "asked"), inputs, strict=True)
        }
        hints = dict(self.separate.config.execution.resource_hints)
        ahead = Overlap(num_threads=_FILES_AT_ONCE[0], max_pending=_FILES_AT_ONCE[0])
        hear = HearRecordings(self.separate.windows, ahead).with_resource_hints(**hints)
        return (
            keyed
            | "ByMixture" >> beam.CoGroupByKey()
            | "Unasked" >> beam.FlatMap(unasked).with_output_types(ManifestRow)
            | "HearRecordings" >> hear
        )


def _by_mixture(row: ManifestRow) -> tuple[str, ManifestRow]:
    return mixture_key(row), row


@dataclasses.dataclass(eq=False)
class SeparateMixtures(beam.PTransform[Any, Any]):
    """Reads, separates, scores and writes: one stage on the machines that have the accelerator.

    In: what :class:`GroupByMixture` gives, which is all that is shuffled to these machines, and the
    embedded example clips by the model and by the scorer, which are looked up by key. Out:
    packs of ``MetricsRow``, then failures of reading, separating, writing, streaming and embedding.
    """

    config: SeparateConfig
    folder: OutputFolder
    models: Models
    code_version: str
    reading: ReadSettings
    windows: WindowSettings | None = None

    def expand(self, inputs: tuple[PCollection[Any], ...]) -> tuple[PCollection[Any], ...]:
        """Reads, separates, scores and writes, with nothing shuffled in between."""
        config, storage = self.config, self.folder.storage
        groups, *examples = inputs
        pieces = groups | "Pieces" >> beam.FlatMap(pieces_of).with_output_types(MixtureRows)
        queries, no_query = (pieces, *examples) | "AttachQueries" >> AttachQueries(
            *encoders_of(config), config.execution.num_threads
        )
        separation, scoring, writing = self._settings()
        fewest, most = _FILES_AT_ONCE
        pending = max(fewest, config.batch_size)
        ahead = Overlap(num_threads=min(pending, most), max_pending=pending)
        finished: list[tuple[str, PCollection[MetricsRow]]] = []
        failed: list[PCollection[Any]] = []

        def screened(name: str, mixtures: PCollection[Any], known: bool = False) -> Any:
            """The mixtures with the queries that are to be separated."""
            if self.windows is None:
                return mixtures
            screen = ScreenMixtures(self.windows, ahead, known)
            others, rows, lost = mixtures | f"Screen{name}" >> screen
            finished.append((f"Screened{name}", rows))
            failed.append(lost)
            return others

        if self.models.screen is not None and self.folder.earlier.exists:
            queries = screened("Known", queries, known=True)
        clips, long, unread = queries | "ReadAudio" >> ReadAudio(storage, self.reading, ahead)
        clips, long = screened("Clips", clips), screened("LongRecordings", long)
        separated, not_separated = clips | "SeparateClips" >> SeparateClips(
            separation, self.models.window_samples
        )
        scored = separated | "ScoreStems" >> ScoreStems(scoring)
        written, unwritten = scored | "WriteStems" >> WriteStems(writing, ahead)
        streamed, not_streamed = long | "SeparateLongRecordings" >> SeparateLongRecordings(
            separation, scoring, self.reading, writing, ahead
        )
        interval_s = metrics_rows.interval_s(is_local=config.execution.is_local)
        found = [("Clips", written), ("LongRecordings", streamed), *finished]
        if config.resume and self.folder.earlier.exists:
            found = [
                (name, rows | f"RemoveOlder{name}" >> RemoveOlder(writing, ahead))
                for name, rows in found
            ]
        # Before they are flattened: behind a Flatten the local runner begins a new stage, which
        # would see the first row when the last one is done, and keep all rows in memory until then.
        kept = [
            rows
            | f"Journal{name}"
            >> metrics_rows.WriteJournal(self.folder.place(JOURNAL), storage, interval_s=interval_s)
            | f"Pack{name}" >> Pack()
            for name, rows in found
        ]
        done = kept | "Done" >> beam.Flatten()
        return done, unread, not_separated, unwritten, not_streamed, no_query, *failed

    def _settings(self) -> tuple[SeparationSettings, ScoringSettings, WriteSettings]:
        config = self.config
        separation = SeparationSettings(
            model=model_choice(config),
            network=NetworkSettings(
                batch_size=config.batch_size,
                num_threads=config.execution.num_threads,
                normalisation=cast(Normalisation, config.condition_norm),
                fixed_shapes=config.compile,
            ),
            overlap=config.overlap,
        )
        scoring = ScoringSettings(
            scorer=model_cache.scorer_choice(model_choice(config), config.scorer),
            device=config.execution.device_of_worker,
            model_rate_hz=self.models.rate_hz,
            batch_size=config.batch_size,
            num_threads=config.execution.num_threads,
            activity=config.activity,
            score_segments=config.segment_scores,
            clap_scores=cast(ClapScores, config.clap_scores),
            keep_embeddings=config.embeddings,
        )
        writing = WriteSettings(
            uri=config.output,
            storage=self.folder.storage,
            stem_format=cast(StemFormat, config.stem_format),
            stem_quality=config.stem_quality,
            residual=config.residual,
            keep_stems=config.keep_stems,
            min_presence=config.min_presence,
            model_rate_hz=self.models.rate_hz,
            code_version=self.code_version,
        )
        return separation, scoring, writing
