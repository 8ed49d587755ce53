"""Recordings that do not fit into memory: read, separated, scored and written block by block."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from model import audio as waveforms
from model.windowing import OverlapAdder, iter_windows
from transforms import failures
from transforms.audio.parts import AudioPart
from transforms.audio_io import READ_ERRORS, describe, error_code, write_errors
from transforms.branches import Branches
from transforms.elements import Failure, LongRecording, MetricsRow, RowQuery, Samples, failed
from transforms.long_stems import ERRORS, LongMixture, LongStem, embed_file, require_heard
from transforms.metrics_rows import StemFacts
from transforms.mixtures import ReadSettings
from transforms.scoring import Scoring, ScoringSettings, joined
from transforms.separation import (
    Separation,
    SeparationSettings,
    mean_gain_db,
    window_queries,
)
from transforms.similarity import Embeddings
from transforms.writing import WriteSettings, count_result, note_of, row_of


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LongJob:
    """What separating long recordings needs: loaded models, and settings."""

    separation: Separation
    scoring: Scoring
    reading: ReadSettings
    writing: WriteSettings


def separate_long(queries: Sequence[RowQuery], job: LongJob) -> list[MetricsRow | Failure]:
    """Separates one recording for all its queries, in memory that does not grow with its length.

    The network hears each window once for all queries. The mixture is decoded once before, for its
    level, and with the reference again for scores and residuals: cheap beside the network.

    Args:
        queries: of one mixture, which is a file.
        job: models and settings.

    Returns:
        A row of metrics, or a failure, for each query.
    """
    row = queries[0].row
    if job.separation.network.separator.capabilities.needs_reference:
        message = "an oracle holds the clip in memory; see --max_clip_in_memory_s"
        return [failed(query.row, "separate", "too_long", message) for query in queries]
    try:
        mixture = LongMixture(
            row,
            job.writing.storage,
            mix_down=job.reading.mix_down,
            model_rate_hz=job.reading.model_rate_hz,
        )
    except READ_ERRORS as err:
        message = describe(err, row.mixture_uri or "")
        return [failed(query.row, "read", error_code(err), message) for query in queries]
    run = _Run(queries, mixture, job)
    answers = Branches(run.answers(), len(queries))
    with contextlib.ExitStack() as stack:
        stems = [
            LongStem(query, mixture, answers.branch(index), job.writing, stack)
            for index, query in enumerate(queries)
        ]
        while any([stem.advance() for stem in stems]):
            for index, stem in enumerate(stems):
                if stem.failure is not None:
                    answers.close(index)
        return [run.finish(stem, index) for index, stem in enumerate(stems)]


class _Run:
    """One recording on its way through the network."""

    def __init__(self, queries: Sequence[RowQuery], mixture: LongMixture, job: LongJob) -> None:
        self._queries, self._mixture, self._job = queries, mixture, job
        self._num_windows = 0
        self._inference_s = np.zeros(len(queries))
        self._gains: list[float] = []
        self._peak = 0.0
        self._heard: list[Samples | None] = []

    def answers(self) -> Iterator[list[Samples]]:
        """Pieces of the stems, float32[C', n ≥ 0] at the model's rate for each query."""
        separation, num_channels = self._job.separation, self._mixture.num_channels
        adders = [OverlapAdder(separation.plan, num_channels) for _ in self._queries]
        gain = separation.gain_of(self._mixture.at_model_rate())
        windows = iter_windows(self._watched(), separation.plan)
        at_once = max(1, separation.network.batch_size // num_channels)
        while group := list(itertools.islice(windows, at_once)):
            gains = [gain.at(window.start, window.samples.shape[1]) for window in group]
            self._gains += gains
            results = separation.network.answer(
                [
                    window_queries(window.samples, self._queries, gain=factor)
                    for window, factor in zip(group, gains, strict=True)
                ]
            )
            for window, result in zip(group, results, strict=True):
                self._num_windows += num_channels
                self._inference_s += result.inference_s
                yield [
                    adder.push(result.samples[index], window.start)
                    for index, adder in enumerate(adders)
                ]
        yield [adder.flush() for adder in adders]

    def finish(self, stem: LongStem, index: int) -> MetricsRow | Failure:
        """Scores a stem that is complete and puts it in its place."""
        if stem.failure is not None:
            return stem.failure
        query, job = self._queries[index], self._job
        written, residual = stem.stem, stem.residual
        if written is None:
            raise RuntimeError("a stem is finished before it is complete")
        try:
            require_heard(self._peak, self._mixture.uri)
            heard = self._embeddings(query, stem.paths[written.uri])
            has_reference = query.row.reference_uri is not None
            similarity = job.scoring.similarity(query, heard, has_reference)
            scores = joined(stem.ratios(), similarity)
            for uri, path in reversed(stem.paths.items()):
                with write_errors(uri):
                    job.writing.storage.publish(uri, path)
        except ERRORS as err:
            return stem.fail(err)
        facts = StemFacts(
            duration_s=self._mixture.part.duration_s,
            sample_rate_hz=self._mixture.part.sample_rate_hz,
            n_channels=self._mixture.num_channels,
            n_windows=self._num_windows,
            peak=written.peak,
            inference_s=float(self._inference_s[index]),
            stem_uri=written.uri,
            residual_uri=None if residual is None else residual.uri,
            stem_format=written.form,
            stem_note=note_of(written, residual),
            input_gain_db=mean_gain_db(self._gains),
        )
        provenance = job.separation.provenance
        return row_of(query.row, facts, scores, provenance, job.scoring.digest, job.writing)

    def _watched(self) -> Iterator[Samples]:
        for block in self._mixture.at_model_rate():
            self._peak = max(self._peak, waveforms.peak(block))
            yield block

    def _embeddings(self, query: RowQuery, stem_path: str) -> Embeddings:
        mixture, storage = self._mixture, self._job.writing.storage
        if not self._heard:
            self._heard.append(embed_file(self._job.scoring, storage, mixture.uri, mixture.part))
        whole = AudioPart(
            sample_rate_hz=mixture.part.sample_rate_hz,
            num_channels=mixture.num_channels,
            start=0,
            num_samples=mixture.part.num_samples,
        )
        uri = query.row.reference_uri
        return Embeddings(
            mixture=self._heard[0],
            stem=embed_file(self._job.scoring, storage, stem_path, whole),
            reference=None
            if uri is None
            else embed_file(self._job.scoring, storage, uri, mixture.part),
        )


@dataclasses.dataclass(eq=False)
class SeparateLongRecordings(beam.PTransform[Any, Any]):
    """Long recordings → files, and a row of metrics for each.

    In: ``LongRecording``. Out: ``MetricsRow`` for each stem that is whole and in its place;
    ``Failure`` for each query that has none. As clips are, but in constant memory.
    """

    separation: SeparationSettings
    scoring: ScoringSettings
    reading: ReadSettings
    writing: WriteSettings

    def expand(self, recordings: Any) -> tuple[Any, Any]:
        """Wires the step."""
        outputs = recordings | "Stream" >> beam.ParDo(
            _SeparateLongFn(self.separation, self.scoring, self.reading, self.writing)
        ).with_outputs(failures.FAILED, main="metrics")
        return outputs["metrics"], outputs[failures.FAILED]


class _SeparateLongFn(beam.DoFn):
    def __init__(
        self,
        separation: SeparationSettings,
        scoring: ScoringSettings,
        reading: ReadSettings,
        writing: WriteSettings,
    ) -> None:
        self._separation, self._scoring = separation, scoring
        self._reading, self._writing = reading, writing
        self._job: LongJob | None = None

    def process(self, recording: LongRecording) -> Iterator[Any]:
        # Not in setup: most runs have no such recording, and where worker processes share a model
        # this one is a copy of its own.
        if self._job is None:
            self._job = LongJob(
                separation=Separation(self._separation),
                scoring=Scoring(self._scoring),
                reading=self._reading,
                writing=self._writing,
            )
        yield from map(count_result, separate_long(recording.queries, self._job))
