"""Reads, separates, scores and writes recordings that do not fit into memory, block by block."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import apache_beam as beam
import numpy as np
import torch
from apache_beam.pvalue import PCollection

from manifests.row import ManifestRow
from model import signal as waveforms
from model.clap import MAX_WINDOWS
from model.inference import RecordingStream, SeparationError
from model.metrics import Outcomes, PairScorer
from transforms.audio import AudioError, AudioPart
from transforms.audio.files import (
    READ_ERRORS,
    StemWriter,
    WriteError,
    Written,
    describe,
    error_code,
    held_by,
    open_audio,
    stem_blocks,
    within,
    write_errors,
)
from transforms.audio.mixtures import ReadSettings, require_equal_length
from transforms.elements import Failure, LongRecording, MetricsRow, RowQuery, Samples, Stage, failed
from transforms.scoring import (
    Embeddings,
    Powers,
    Scoring,
    ScoringSettings,
    power_of,
    scores_of,
    without_reference,
)
from transforms.separation import Separation, SeparationSettings, mean_gain_db, told
from transforms.storage import Storage
from transforms.tables import dead_letters
from transforms.tables.metrics_rows import StemFacts
from transforms.writing import WriteSettings, count_result, note_of, row_of

T = TypeVar("T")


class Branches(Generic[T]):
    """Splits one iterator of tuples into an iterator for each position in the tuple.

    What a slower branch has not taken yet is kept, so branches are to be read in turn. Nothing is
    kept for a branch that is closed. What the source raises, every branch raises.
    """

    def __init__(self, source: Iterable[Sequence[T]], count: int) -> None:
        """Reads ``source``, whose items have ``count`` places."""
        self._source = iter(source)
        self._waiting: list[deque[T] | None] = [deque() for _ in range(count)]
        self._error: Exception | None = None
        self._ended = False

    def branch(self, index: int) -> Iterator[T]:
        """The items at one place."""
        while True:
            waiting = self._waiting[index]
            if waiting is None:
                return
            if waiting:
                yield waiting.popleft()
            elif not self._advance():
                return

    def close(self, index: int) -> None:
        """Ends one branch."""
        self._waiting[index] = None

    def _advance(self) -> bool:
        if self._error is not None:
            raise self._error
        if self._ended:
            return False
        try:
            items = next(self._source)
        except StopIteration:
            self._ended = True
            return False
        except Exception as err:
            self._error = err
            raise
        for waiting, item in zip(self._waiting, items, strict=True):
            if waiting is not None:
                waiting.append(item)
        return True


BLOCK_S = 4.0
ERRORS = (SeparationError, *READ_ERRORS)


class LongMixture:
    """A recording in blocks, as often as it is needed."""

    def __init__(
        self, row: ManifestRow, storage: Storage, *, mix_down: bool, model_rate_hz: int
    ) -> None:
        """Looks at the file.

        Raises:
            AudioError: it cannot be used.
            OSError: it cannot be reached.
        """
        self.row, self.storage, self.model_rate_hz = row, storage, model_rate_hz
        self._where = within(row.mixture_uri or "", row.offset_s, row.duration_s)
        self.uri = self._where[0]
        self._mix_down = mix_down
        with open_audio(storage, *self._where) as file:
            self.part = file.part
        self.num_channels = 1 if mix_down else self.part.num_channels

    def blocks(self) -> Iterator[Samples]:
        """As in the file, mixed down if it is to be: float32[C', n] each."""
        with open_audio(self.storage, *self._where, known=self.part) as file:
            for block in file.blocks(_block_samples(file.part)):
                yield waveforms.to_mono(block)[None] if self._mix_down else block

    def at_model_rate(self) -> Iterator[Samples]:
        """At the model's rate."""
        rate_hz = self.part.sample_rate_hz
        return waveforms.resample_blocks(self.blocks(), rate_hz, self.model_rate_hz)

    def part_of_reference(self, uri: str) -> tuple[str, AudioPart]:
        """The file of a reference, and the part of it that belongs to the mixture."""
        file, offset_s, _ = within(uri, self.row.offset_s, self.row.duration_s)
        start = round((offset_s or 0.0) * self.part.sample_rate_hz)
        return file, dataclasses.replace(self.part, start=start)

    def reference(self, uri: str) -> Iterator[Samples]:
        """The same part of a reference, mono at the model's rate, float32[1, n] each.

        Raises:
            AudioError: it cannot be used, or is not as long as the mixture.
        """
        row = self.row
        with open_audio(self.storage, uri, row.offset_s, row.duration_s) as file:
            require_equal_length(uri, file.part.duration_s, self.part.duration_s)
            blocks = file.blocks(_block_samples(file.part))
            yield from waveforms.resample_blocks(
                (waveforms.to_mono(block)[None] for block in blocks),
                file.part.sample_rate_hz,
                self.model_rate_hz,
            )


def _block_samples(part: AudioPart) -> int:
    return max(1, round(BLOCK_S * part.sample_rate_hz))


class _GrowingFile:
    """A temporary file of a stem; float WAV as soon as it turns out that FLAC does not hold it.

    What was in the FLAC until then is what FLAC holds of it: it is exact to 2⁻²⁴ of full scale.
    """

    def __init__(
        self,
        row: ManifestRow,
        ending: str,
        part: AudioPart,
        settings: WriteSettings,
        stack: contextlib.ExitStack,
    ) -> None:
        self._row, self._ending, self._part = row, ending, part
        self._settings, self._stack = settings, stack
        self._num_samples = 0
        self._begin(peak=0.0)

    def _begin(self, peak: float) -> None:
        settings = self._settings
        form, note = held_by(settings.stem_format, self._part.sample_rate_hz, peak)
        uri = settings.stem_uri(self._row, self._ending, form)
        with write_errors(uri):
            self.path = self._stack.enter_context(settings.storage.temporary(uri))
        self._writer = StemWriter(self.path, self._part, form, uri)
        self._stack.callback(self._writer.close)
        self.written = Written(uri=uri, form=form, note=note, peak=peak)

    def write(self, block: Samples) -> None:
        """Appends float32[C, T]."""
        peak = max(self.written.peak, waveforms.peak(block))
        if held_by(self.written.form, self._part.sample_rate_hz, peak)[1] is not None:
            self._writer.end()
            before = self.path
            self._begin(peak)
            with write_errors(self.written.uri):
                for earlier in stem_blocks(before) if self._num_samples else ():
                    self._writer.write(earlier)
                os.unlink(before)
        self._writer.write(block)
        self._num_samples += block.shape[1]
        self.written = dataclasses.replace(self.written, peak=peak)

    def complete(self) -> None:
        """Completes the file and reads it back."""
        self._writer.complete()


class LongStem:
    """A stem and its residual in temporary files, until they are whole."""

    def __init__(
        self,
        query: RowQuery,
        mixture: LongMixture,
        pieces: Iterator[Samples],
        settings: WriteSettings,
        stack: contextlib.ExitStack,
    ) -> None:
        """Nothing is read or written yet.

        Args:
            query: what was asked.
            mixture: the recording.
            pieces: the stem at the model's rate, float32[C', n ≥ 0] each.
            settings: where the stem goes.
            stack: closes and removes the temporary files.
        """
        self.failure: Failure | None = None
        self.paths: dict[str, str] = {}
        self.power = 0.0
        self.stem: Written | None = None
        self.residual: Written | None = None
        self._query, self._mixture, self._pieces = query, mixture, pieces
        self._settings, self._stack = settings, stack
        self._scorer = PairScorer() if query.row.reference_uri is not None else None
        self._steps = self._write()

    def advance(self) -> bool:
        """Goes on by one block; False when there is no more to do, or no point in it."""
        if self.failure is not None:
            return False
        try:
            next(self._steps)
        except StopIteration:
            return False
        except ERRORS as err:
            self.fail(err)
            return False
        return True

    def fail(self, error: Exception) -> Failure:
        """Marks the stem as failed, and returns the failure for its row."""
        row = self._query.row
        stage: Stage = "write" if isinstance(error, WriteError) else "read"
        if isinstance(error, SeparationError):
            self.failure = failed(row, "separate", error.code, str(error))
        else:
            said = str(error) if stage == "write" else describe(error, self._mixture.uri)
            self.failure = failed(row, stage, error_code(error), said)
        return self.failure

    def ratios(self) -> Outcomes:
        """How the stem compares with its reference."""
        if self._scorer is None:
            return without_reference()
        (outcomes,) = self._scorer.scores()
        return outcomes

    def _write(self) -> Iterator[None]:
        mixture, settings = self._mixture, self._settings
        part = AudioPart(
            sample_rate_hz=mixture.part.sample_rate_hz,
            num_channels=mixture.num_channels,
            start=0,
            num_samples=mixture.part.num_samples,
        )
        stem = self._file("", part)
        residual = self._file(".residual", part) if settings.residual else None
        again = waveforms.Cutter(mixture.blocks())
        left = part.num_samples
        resampled = waveforms.resample_blocks(
            self._compared(), mixture.model_rate_hz, part.sample_rate_hz
        )
        for block in resampled:
            samples = block[:, :left]
            left -= samples.shape[1]
            stem.write(samples)
            if residual is not None:
                residual.write(again.take(samples.shape[1]) - samples)
            yield
        stem.complete()
        self.stem = stem.written
        self.paths[stem.written.uri] = stem.path
        if residual is not None:
            residual.complete()
            self.residual = residual.written
            self.paths[residual.written.uri] = residual.path

    def _file(self, ending: str, part: AudioPart) -> _GrowingFile:
        return _GrowingFile(self._query.row, ending, part, self._settings, self._stack)

    def _compared(self) -> Iterator[Samples]:
        """The pieces as they pass, compared with the reference."""
        mixture = waveforms.Cutter(self._mixture.at_model_rate())
        reference = waveforms.Cutter(self._mixture.reference(self._query.row.reference_uri or ""))
        for piece in self._pieces:
            if piece.shape[1] == 0:
                continue
            if not np.isfinite(piece).all():
                raise SeparationError("not_finite", "the network's output is not finite")
            if self._scorer is not None:
                heard, target = mixture.take(piece.shape[1]), reference.take(piece.shape[1])
                self._scorer.update(_mono_row(piece), _mono_row(heard), _mono_row(target))
            self.power += power_of(waveforms.to_mono(piece))
            yield piece


def _mono_row(block: Samples) -> torch.Tensor:
    return torch.from_numpy(waveforms.to_mono(block))[None]


def embed_file(scoring: Scoring, storage: Storage, uri: str, part: AudioPart) -> Samples | None:
    """Embeds windows spread over a long file with the scorer, and averages them.

    Args:
        scoring: the scorer.
        storage: how the file is reached.
        uri: the file.
        part: what to hear of it.

    Returns:
        float32[D], or None where all windows are silent or nothing is scored.
    """
    if scoring.encoder is None:
        return None
    clip_s = scoring.encoder.clip_samples / scoring.encoder.sample_rate_hz
    starts_s, length_s = window_starts_s(part, clip_s), min(clip_s, part.duration_s)
    windows = _windows_in_passing(storage, uri, part, starts_s, length_s, scoring.model_rate_hz)
    if windows is None:
        windows = [
            _window(storage, uri, start_s, length_s, scoring.model_rate_hz) for start_s in starts_s
        ]
    heard = [vector for vector in scoring.embed(windows) if vector is not None]
    if not heard:
        return None
    mean = np.mean(heard, axis=0, dtype=np.float64)
    unit: Samples = (mean / np.linalg.norm(mean)).astype(np.float32)
    return unit


def window_starts_s(part: AudioPart, length_s: float) -> Sequence[float]:
    """Where the windows begin that stand for a part of a file; see ``Clap.embed_audio``."""
    count = min(-int(-part.duration_s // length_s), MAX_WINDOWS)
    if count <= 1:
        return [part.start_s]
    step_s = (part.duration_s - length_s) / (count - 1)
    return [part.start_s + index * step_s for index in range(count)]


def _window(storage: Storage, uri: str, start_s: float, duration_s: float, rate_hz: int) -> Samples:
    with open_audio(storage, uri, start_s, duration_s) as file:
        samples = waveforms.to_mono(file.read())
    return waveforms.resample(samples, file.part.sample_rate_hz, rate_hz)


def _windows_in_passing(
    storage: Storage,
    uri: str,
    part: AudioPart,
    starts_s: Sequence[float],
    length_s: float,
    rate_hz: int,
) -> list[Samples] | None:
    """Reads all windows in one pass; None for a file that can be decoded from any place."""
    pieces: list[list[Samples]] = [[] for _ in starts_s]
    position = 0
    with open_audio(storage, uri, part.start_s, part.duration_s) as file:
        found = file.part
        if not found.from_start:
            return None
        begins = [round(start_s * found.sample_rate_hz) - found.start for start_s in starts_s]
        length = round(length_s * found.sample_rate_hz)
        for block in file.blocks(_block_samples(found)):
            mono = waveforms.to_mono(block)
            for begin, window in zip(begins, pieces, strict=True):
                inside = mono[max(0, begin - position) : max(0, begin + length - position)]
                window.append(inside.copy())
            position += len(mono)
    return [
        waveforms.resample(np.concatenate(window), found.sample_rate_hz, rate_hz)
        for window in pieces
    ]


def require_audible(peak: float, uri: str) -> None:
    """Raises AudioError where a recording turned out to be silent."""
    if peak == 0.0:
        raise AudioError("silent", f"{uri}: all samples are zero")


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
        separation = job.separation
        self._stream = RecordingStream(
            separation.network,
            separation.plan,
            positive=np.stack([query.positive for query in queries]),
            negative=np.stack([query.negative for query in queries]),
        )
        self._peak = self._power = 0.0
        self._heard: list[Samples | None] = []

    def answers(self) -> Iterator[list[Samples]]:
        """Pieces of the stems, float32[C', n ≥ 0] at the model's rate for each query."""
        gain = self._job.separation.gain_of(self._mixture.at_model_rate())
        yield from self._stream.pieces(self._watched(), gain)

    def finish(self, stem: LongStem, index: int) -> MetricsRow | Failure:
        """Scores a stem that is complete and puts it in its place."""
        if stem.failure is not None:
            return stem.failure
        query, job = self._queries[index], self._job
        written, residual = stem.stem, stem.residual
        if written is None:
            raise RuntimeError("a stem is finished before it is complete")
        try:
            require_audible(self._peak, self._mixture.uri)
            heard = self._embeddings(query, stem.paths[written.uri])
            has_reference = query.row.reference_uri is not None
            powers = Powers(stem=stem.power, mixture=self._power)
            others = job.scoring.others(
                query,
                heard,
                powers,
                None,
                has_reference=has_reference,
                presence_odds=told(float(self._stream.presence[index])),
            )
            scores = scores_of(stem.ratios() | others)
            for uri, path in reversed(stem.paths.items()):
                with write_errors(uri):
                    job.writing.storage.publish(uri, path)
        except ERRORS as err:
            return stem.fail(err)
        facts = StemFacts(
            duration_s=self._mixture.part.duration_s,
            sample_rate_hz=self._mixture.part.sample_rate_hz,
            n_channels=self._mixture.num_channels,
            n_windows=self._stream.num_windows,
            peak=written.peak,
            inference_s=float(self._stream.inference_s[index]),
            stem_uri=written.uri,
            residual_uri=None if residual is None else residual.uri,
            stem_format=written.form,
            stem_note=note_of(written, residual),
            input_gain_db=mean_gain_db(self._stream.gains),
        )
        provenance = job.separation.provenance
        return row_of(query.row, facts, scores, provenance, job.scoring.digest, job.writing)

    def _watched(self) -> Iterator[Samples]:
        for block in self._mixture.at_model_rate():
            self._peak = max(self._peak, waveforms.peak(block))
            self._power += power_of(waveforms.to_mono(block))
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
            else embed_file(self._job.scoring, storage, *mixture.part_of_reference(uri)),
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

    def expand(
        self, recordings: PCollection[LongRecording]
    ) -> tuple[PCollection[MetricsRow], PCollection[Failure]]:
        """Streams each recording through the network."""
        outputs = recordings | "Stream" >> beam.ParDo(
            _SeparateLongFn(self.separation, self.scoring, self.reading, self.writing)
        ).with_outputs(dead_letters.FAILED, main="metrics")
        return outputs["metrics"], outputs[dead_letters.FAILED]


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
