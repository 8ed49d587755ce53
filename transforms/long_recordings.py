"""Separates recordings that do not fit into memory: several at once, and beside the network.

A recording has a thread that decodes it and cuts it into windows, and each of its stems has one
that joins the estimates, measures, encodes and writes. What touches a model happens on the thread
of the bundle: it takes windows of all recordings together, those of the oldest first, and hands on
what the network says of them. What is on its way from a decoder to an encoder is bounded in bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import apache_beam as beam
import numpy as np
import torch
from apache_beam.pvalue import PCollection

from manifests.row import ManifestRow
from model import signal as waveforms
from model.clap import MAX_WINDOWS
from model.devices import loaded_once
from model.inference import RecordingStream, SeparationError, WindowEstimates, WindowQueries
from model.metrics import PairScorer, Undefined
from model.signal import Envelope
from model.signal.windowing import OverlapAdder
from transforms import storage as storages
from transforms.audio import AudioError, AudioPart
from transforms.audio.files import (
    READ_ERRORS,
    SILENT,
    WriteError,
    describe,
    error_code,
    open_audio,
    within,
)
from transforms.audio.mixtures import ReadSettings, require_equal_length
from transforms.elements import (
    Failure,
    LongRecording,
    MetricsRow,
    RowQuery,
    Samples,
    Scores,
    Segment,
    Stage,
    failed,
)
from transforms.scoring import (
    Embedded,
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
from transforms.tables import dead_letters, row_counts
from transforms.threaded import LookAheadFn, Overlap
from transforms.writing import StemFiles, WriteSettings, count_result, row_of

T = TypeVar("T")
BYTES_A_ROW = 2**24
"""What may be under way for each window that the network hears at once: samples that were decoded,
and estimates that were not written yet. A window of ten seconds takes 3 to 5 MB."""
_FILES_EMBEDDED_AT_ONCE = 2
"""Of how many files the windows are held that the scorer is to hear, up to 15 MB each."""
_AROUND_S = 0.1
"""What is read before and after such a window: cut there, it would ring when it is resampled. In
whole samples at the usual rates, so that the window begins where it would without."""
BLOCK_S = 4.0
ERRORS = (SeparationError, *READ_ERRORS)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LongJob:
    """What separating long recordings needs: loaded models, and settings."""

    separation: Separation
    scoring: Scoring
    reading: ReadSettings
    writing: WriteSettings


Results = list[MetricsRow | Failure]


class _StoppedError(Exception):
    """Ends a thread whose bundle has failed."""


class LongRecordings:
    """Separates long recordings on threads of their own; what is asked of a model, on the caller's.

    Like a :class:`transforms.threaded.LookAhead`, whose elements are recordings and whose results
    are a row of metrics or a failure for each query. :meth:`push` and :meth:`drain` run the
    network: a full batch whenever there is one, and what there is where waiting brings no more.
    Windows are taken from the oldest recording first, so that one after the other is finished, and
    later ones fill up what it leaves free. What comes out depends on none of this.
    """

    def __init__(self, load: Callable[[], LongJob], overlap: Overlap) -> None:
        """Nothing is loaded here.

        Args:
            load: gives the models and settings when the first recording comes.
            overlap: as many stems as it has threads are written at once, or those of one recording.
        """
        self._load, self._stems_at_once = load, overlap.num_threads
        self._job: LongJob | None = None
        self.changed = threading.Condition()
        self._active: list[_Recording] = []
        self._requests: deque[tuple[Sequence[Samples], Future[list[Embedded]]]] = deque()
        self._embedding = threading.Semaphore(_FILES_EMBEDDED_AT_ONCE)

    @property
    def job(self) -> LongJob:
        """Models and settings, loaded on first use."""
        if self._job is None:
            self._job = self._load()
        return self._job

    def push(self, element: LongRecording) -> Iterator[Results]:
        """Begins a recording, and goes on with all until there is room for one more."""
        recording = _Recording(element.queries, self.job, self)
        with self.changed:
            self._active.append(recording)
        recording.begin()
        while self._has_too_many or any(each.is_done for each in self._active):
            yield from self._step()
        storages.publish()

    def drain(self) -> Iterator[Results]:
        """Goes on until all recordings are done."""
        while self._active:
            yield from self._step()
        storages.publish()

    def reset(self) -> None:
        """Forgets what an earlier, failed bundle left behind; its threads end by themselves."""
        with self.changed:
            for recording in self._active:
                recording.count(0.0)
                recording.stop()
            for _, answer in self._requests:
                answer.set_exception(_StoppedError())
            self._active.clear()
            self._requests.clear()
            self.changed.notify_all()

    def close(self) -> None:
        """Ends all threads."""
        self.reset()

    # ----- on the threads of the recordings ---------------------------------------------------

    def put(self, recording: _Recording, passage: _Passage) -> bool:
        """Queues a window for the network as soon as there is room; False: nobody waits for it."""
        with self.changed:
            recording.is_reading = False
            self.changed.notify_all()
            while recording.is_wanted and not self._has_room(recording, passage.num_bytes):
                self.changed.wait()
            recording.is_reading = True
            if recording.is_wanted:
                recording.add(passage)
                self.changed.notify_all()
            return recording.is_wanted

    def embedded(self, recording: _Recording, uri: str, part: AudioPart) -> Embedded:
        """Embeds windows spread over a long file with the scorer, and averages them.

        Args:
            recording: for which it is; where its bundle has failed, nobody would answer.
            uri: the file.
            part: what to hear of it.

        Returns:
            float32[D]; None where all windows are silent or nothing is scored; or why the scorer
            failed.

        Raises:
            AudioError: the file cannot be used.
            OSError: it cannot be reached.
        """
        scoring = self.job.scoring
        if scoring.encoder is None:
            return None
        clip_s = scoring.encoder.clip_samples / scoring.encoder.sample_rate_hz
        answer: Future[list[Embedded]] = Future()
        with self._embedding:
            windows = spread_windows(
                self.job.writing.storage, uri, part, clip_s, scoring.model_rate_hz
            )
            if not any(window.any() for window in windows):
                return None
            with self.changed:
                recording.require_going_on()
                self._requests.append((windows, answer))
                self.changed.notify_all()
            found = answer.result()
        heard = [vector for vector in found if isinstance(vector, np.ndarray)]
        if len(heard) < len(found):
            return Undefined.SCORER_FAILED
        mean = np.mean(heard, axis=0, dtype=np.float64)
        unit: Samples = (mean / np.linalg.norm(mean)).astype(np.float32)
        return unit

    # ----- on the caller's thread -------------------------------------------------------------

    @property
    def _has_too_many(self) -> bool:
        num_stems = sum(recording.num_stems for recording in self._active)
        return len(self._active) > 1 and num_stems > self._stems_at_once

    def _step(self) -> Iterator[Results]:
        """Waits for something to do, and does it; where that fails, nothing goes on."""
        try:
            with self.changed:
                while (work := self._next()) is None:
                    self.changed.wait()
            yield from work()
        except BaseException:
            self.reset()
            raise

    def _next(self) -> Callable[[], Iterable[Results]] | None:
        """What is to be done next; None: the threads of the recordings have to go on first."""
        for recording in self._active:
            recording.hand_on_the_end()
            if recording.is_done:
                return functools.partial(self._finish, recording)
        if self._requests:
            return functools.partial(self._embed, *self._requests.popleft())
        batch = self._batch()
        return functools.partial(self._separate, batch) if batch else None

    def _finish(self, recording: _Recording) -> Iterable[Results]:
        with self.changed:
            self._active.remove(recording)
            self.changed.notify_all()  # the next one is the oldest now
        recording.count(0.0)
        return [recording.results()]

    def _embed(
        self, windows: Sequence[Samples], answer: Future[list[Embedded]]
    ) -> Iterable[Results]:
        try:
            # Silence counts in a part of what sounds, as in a clip that is held in memory.
            answer.set_result(self.job.scoring.embed(windows, silence_too=True))
        except Exception as err:  # raised by the thread that asks, and so by this one
            answer.set_exception(err)
        return ()

    def _separate(self, batch: Sequence[tuple[_Recording, _Passage]]) -> Iterable[Results]:
        groups = [
            (recording, [passage for _, passage in pairs])
            for recording, pairs in itertools.groupby(batch, key=lambda pair: pair[0])
        ]
        found = self.job.separation.estimates(
            [[passage.window for passage in passages] for _, passages in groups]
        )
        for (recording, passages), estimates in zip(groups, found, strict=True):
            if isinstance(estimates, SeparationError):
                recording.end(estimates)
            else:
                recording.hand_on(passages, estimates)
        return ()

    def _batch(self) -> list[tuple[_Recording, _Passage]]:
        """Takes the next batch: a full one, or what there is where nothing more would come."""
        ready = [(each, passage) for each in self._active for passage in each.ready]
        size = self.job.separation.network.batch_size
        if sum(passage.num_rows for _, passage in ready) < size:
            num_bytes = sum(passage.num_bytes for _, passage in ready)
            if num_bytes < self._held_bytes or any(each.is_reading for each in self._active):
                return []
        batch: list[tuple[_Recording, _Passage]] = []
        num_rows = 0
        for recording, passage in ready:
            num_rows += passage.num_rows
            if batch and num_rows > size:
                break
            batch.append((recording, passage))
        for recording, _ in batch:
            recording.ready.popleft()
        return batch

    @property
    def _held_bytes(self) -> int:
        return sum(recording.held_bytes for recording in self._active)

    def _has_room(self, recording: _Recording, num_bytes: int) -> bool:
        """The oldest recording may fill all there is; the others together half of it."""
        limit = BYTES_A_ROW * self.job.separation.network.batch_size
        if next((each for each in self._active if not each.has_ended), None) is not recording:
            limit //= 2
        held = self._held_bytes
        return held == 0 or held + num_bytes <= limit


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class _Passage:
    """A window on its way through the network, and the recording as it is in the file.

    Attributes:
        start: the window's first sample.
        window: at the model's rate, and what is asked of it.
        blocks: at the file's rate, what was decoded since the passage before.
        num_waiting: stems that are not done with it.
    """

    start: int
    window: WindowQueries
    blocks: tuple[Samples, ...]
    num_waiting: int

    @property
    def num_rows(self) -> int:
        """What the network counts: the channels."""
        return len(self.window.samples)

    @property
    def num_bytes(self) -> int:
        """Of the samples, and of the estimates that they become."""
        decoded = sum(block.nbytes for block in self.blocks)
        return decoded + self.window.samples.nbytes * (1 + len(self.window.positive))


class _Recording:
    """A recording on its way through the network.

    ``ready``, ``held_bytes`` and what says how far it is are read and changed under the lock of its
    :class:`LongRecordings`; the rest by one thread before another one looks at it.

    Attributes:
        ready: what waits for the network.
        held_bytes: what is under way: what waits, and what stems are not done with.
        is_reading: whether it may have more for the network without anybody's doing.
        has_ended: whether no more is to come.
        peak: of the mixture at the model's rate.
        power: of its mono samples there.
        envelope: of the same.
        odds: float32[Q] for each window so far, by its first sample: see ``RecordingStream``.
        stream: what the network said.
    """

    mixture: LongMixture

    def __init__(self, queries: Sequence[RowQuery], job: LongJob, owner: LongRecordings) -> None:
        """Nothing is read yet."""
        self.job, self.owner = job, owner
        self._changed = owner.changed
        self.ready: deque[_Passage] = deque()
        self.held_bytes = 0
        self.is_reading, self.has_ended = True, False
        self.peak = self.power = 0.0
        self.envelope = Envelope(job.scoring.model_rate_hz, centred=True)
        self.odds: list[tuple[int, Samples]] = []
        self.stream = RecordingStream(
            job.separation.network,
            job.separation.plan,
            positive=np.stack([query.positive for query in queries]),
            negative=np.stack([query.negative for query in queries]),
        )
        self._queries = queries
        self._num_failed = 0
        self._counted_s = 0.0
        self._stopped = self._handed_on = False
        self._error: Exception | None = None
        self._stems: list[LongStem] = []
        self._writing: list[Future[MetricsRow | Failure]] = []
        self._whole: Future[Results] = Future()

    def begin(self) -> None:
        """Starts to read."""
        self._on_thread(self._separate, self._whole)

    @property
    def num_stems(self) -> int:
        """As many as queries."""
        return len(self._queries)

    @property
    def is_wanted(self) -> bool:
        """Whether there is a stem that has not failed.

        Raises:
            _StoppedError: the bundle has failed.
        """
        self.require_going_on()
        return not self.has_ended and self._num_failed < self.num_stems

    def require_going_on(self) -> None:
        """Raises _StoppedError where the bundle has failed."""
        if self._stopped:
            raise _StoppedError

    @property
    def is_done(self) -> bool:
        """Whether there is a result, or a thread has failed that must not."""
        return self._whole.done() or self._defect is not None

    @property
    def _defect(self) -> BaseException | None:
        return next(
            (err for each in self._writing if each.done() and (err := each.exception())), None
        )

    def results(self) -> Results:
        """A row of metrics, or a failure, for each query."""
        if self._defect is not None:
            self.stop()
            raise self._defect
        return self._whole.result()

    def add(self, passage: _Passage) -> None:
        """Queues a passage for the network."""
        self.ready.append(passage)
        self.held_bytes += passage.num_bytes

    def release(self, passage: _Passage) -> None:
        """Counts a stem that is done with a passage."""
        with self._changed:
            passage.num_waiting -= 1
            if passage.num_waiting == 0:
                self.held_bytes -= passage.num_bytes
                self._changed.notify_all()

    def end(self, error: Exception | None) -> None:
        """No more is to come; after an error, what waits is not wanted either."""
        with self._changed:
            self.is_reading, self.has_ended = False, True
            if error is not None:
                self._error = self._error or error
                self._drop()
            self._changed.notify_all()

    def give_up(self) -> None:
        """Counts a stem that has failed."""
        with self._changed:
            self._num_failed += 1
            if self._num_failed == self.num_stems:
                self._drop()
                self._changed.notify_all()

    def stop(self) -> None:
        """Ends all threads."""
        self._stopped = True
        for stem in self._stems:
            stem.arriving.end(_StoppedError())

    def _drop(self) -> None:
        self.held_bytes -= sum(passage.num_bytes for passage in self.ready)
        self.ready.clear()

    def hand_on(self, passages: Sequence[_Passage], estimates: Sequence[WindowEstimates]) -> None:
        """Gives the stems what the network says of the next windows."""
        for passage, estimate in zip(passages, estimates, strict=True):
            self.stream.note(passage.window, estimate)
            self.odds.append((passage.start, estimate.presence.max(axis=1)))
            for stem, samples in zip(self._stems, estimate.samples, strict=True):
                stem.arriving.put(passage, samples)
        self.count(
            (passages[-1].start + passages[-1].window.samples.shape[1]) / self.mixture.model_rate_hz
        )

    def count(self, heard_s: float) -> None:
        """Says how much of the recording is heard, for the display of progress; 0: it is over."""
        more_s = heard_s - self._counted_s
        self._counted_s = heard_s
        if more_s:
            rows = self.num_stems * more_s / self.mixture.part.duration_s
            row_counts.under_way(rows, self.num_stems * more_s)

    def hand_on_the_end(self) -> None:
        """Tells the stems, once, that everything has been through the network, or an error."""
        if self.has_ended and not self.ready and not self._handed_on:
            self._handed_on = True
            for stem in self._stems:
                stem.arriving.end(self._error)

    # ----- on threads of its own --------------------------------------------------------------

    def _on_thread(self, function: Callable[[], T], future: Future[T]) -> Future[T]:
        """Runs a function on a thread that ends with the process, if not before."""

        def run() -> None:
            try:
                result = function()
            except BaseException as err:
                future.set_exception(err)
            else:
                future.set_result(result)
            with self._changed:
                self._changed.notify_all()

        threading.Thread(target=run, name="long recording", daemon=True).start()
        return future

    def _separate(self) -> Results:
        """Reads the recording while its stems are written, and waits for them."""
        row, job = self._queries[0].row, self.job
        if job.separation.network.separator.capabilities.needs_reference:
            message = "an oracle holds the clip in memory; see --max_clip_in_memory_s"
            return [failed(each.row, "separate", "too_long", message) for each in self._queries]
        try:
            mixture = LongMixture(
                row,
                job.writing.storage,
                mix_down=job.reading.mix_down,
                model_rate_hz=job.reading.model_rate_hz,
            )
        except READ_ERRORS as err:
            message = describe(err, row.mixture_uri or "")
            return [failed(each.row, "read", error_code(err), message) for each in self._queries]
        self.mixture = mixture
        self._stems = [LongStem(query, index, self) for index, query in enumerate(self._queries)]
        self._writing += [self._on_thread(stem.run, Future()) for stem in self._stems]
        error = None
        try:
            for passage in self._passages(mixture):
                if not self.owner.put(self, passage):
                    break
        except ERRORS as err:
            error = err
        except BaseException:  # the stems would wait for more
            self.stop()
            raise
        self.end(error)
        return [stem.result() for stem in self._writing]

    def _passages(self, mixture: LongMixture) -> Iterator[_Passage]:
        """The recording in windows, after it was decoded once for its level."""
        gain = self.job.separation.gain_of(self._until_stopped(mixture.at_model_rate()))
        decoded: list[Samples] = []
        heard = self._watched(mixture.at_model_rate(decoded.append))
        for start, window in self.stream.windows(heard, gain):
            yield _Passage(
                start=start, window=window, blocks=tuple(decoded), num_waiting=self.num_stems
            )
            decoded.clear()

    def _watched(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        for block in self._until_stopped(blocks):
            mono = waveforms.to_mono(block)
            self.peak = max(self.peak, waveforms.peak(block))
            self.power += power_of(mono)
            self.envelope.add(mono)
            yield block

    def _until_stopped(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        for block in blocks:
            self.require_going_on()
            yield block

    @loaded_once
    def mixture_embedding(self) -> Embedded:
        """The scorer's, for whichever stem asks first."""
        return self.embedded(self.mixture.uri, self.mixture.part)

    def embedded(self, uri: str, part: AudioPart) -> Embedded:
        """As :meth:`LongRecordings.embedded`."""
        return self.owner.embedded(self, uri, part)


class _Arriving:
    """What the network says of a recording's windows for one stem, in order; waits for it."""

    def __init__(self, done: Callable[[_Passage], None]) -> None:
        """Tells ``done`` of each passage when the next one is asked for."""
        self._done = done
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._last: _Passage | None = None
        self._ended = False

    def put(self, passage: _Passage, estimate: Samples) -> None:
        """Adds the next."""
        self._queue.put((passage, estimate))

    def end(self, error: Exception | None) -> None:
        """Says that this was the last, or raises an error in its place."""
        self._queue.put(error)

    def __iter__(self) -> Iterator[tuple[_Passage, Samples]]:
        """The rest."""
        while not self._ended:
            if self._last is not None:
                self._done(self._last)
                self._last = None
            item = self._queue.get()
            if isinstance(item, tuple):
                self._last = item[0]
                yield item
            else:
                self._ended = True
                if item is not None:
                    raise item


class LongStem:
    """A stem of a long recording, and the thread that writes it."""

    def __init__(self, query: RowQuery, index: int, recording: _Recording) -> None:
        """Nothing is read or written yet.

        Args:
            query: what was asked.
            index: which query of the recording it is.
            recording: the recording.
        """
        self.arriving = _Arriving(recording.release)
        self._query, self._index, self._recording = query, index, recording
        self._power = 0.0
        self._envelope = Envelope(recording.job.scoring.model_rate_hz)
        self._scorer = PairScorer() if query.row.reference_uri is not None else None
        mixture = recording.mixture
        self._part = AudioPart(
            sample_rate_hz=mixture.part.sample_rate_hz,
            num_channels=mixture.num_channels,
            start=0,
            num_samples=mixture.part.num_samples,
        )

    def run(self) -> MetricsRow | Failure:
        """Writes and scores the stem as it comes, and puts it in its place when it is whole."""
        row, job = self._query.row, self._recording.job
        try:
            tags = self._recording.mixture.tags
            with StemFiles(row, self._part, job.writing, tags=tags) as files:
                for mixture, stem in self._at_the_files_rate():
                    files.take(mixture, stem)
                files.complete()
                scores = self._scores(files.path)
                files.leave_out(job.writing.left_out(scores))
                files.publish()
        except ERRORS as err:
            self._let_pass()
            return self._failed(err)
        stream = self._recording.stream
        facts = files.facts(
            num_windows=stream.num_windows,
            inference_s=float(stream.inference_s[self._index]),
            input_gain_db=mean_gain_db(stream.gains),
        )
        provenance = job.separation.provenance
        return row_of(row, facts, scores, provenance, job.scoring.digest, job.writing)

    def _at_the_files_rate(self) -> Iterator[tuple[Samples, Samples]]:
        """Blocks of mixture and stem, float32[C, n] both, as long as the recording."""
        part, decoded = self._part, deque[Samples]()
        mixture = waveforms.Cutter(decoded.popleft() for _ in itertools.count())
        left = part.num_samples
        pieces = self._pieces(decoded)
        model_rate_hz = self._recording.mixture.model_rate_hz
        for block in waveforms.resample_blocks(pieces, model_rate_hz, part.sample_rate_hz):
            stem = block[:, :left]
            left -= stem.shape[1]
            if stem.shape[1]:
                yield mixture.take(stem.shape[1]), stem

    def _pieces(self, decoded: deque[Samples]) -> Iterator[Samples]:
        """What becomes final of the stem at the model's rate, as it passes; adds to ``decoded``."""
        mixture = self._recording.mixture
        reference = waveforms.Cutter(mixture.reference(self._query.row.reference_uri or ""))
        adder: OverlapAdder | None = None
        before = np.zeros((0, 0), np.float32)
        for passage, estimate in self.arriving:
            adder = adder or OverlapAdder(self._recording.job.separation.plan, len(estimate))
            decoded += passage.blocks
            piece = adder.push(estimate, passage.start)
            if piece.shape[1]:
                yield self._measured(piece, before, reference)
            before = passage.window.samples
        if adder is not None:
            yield self._measured(adder.flush(), before, reference)

    def _measured(self, piece: Samples, window: Samples, reference: waveforms.Cutter) -> Samples:
        """The piece, once it is compared with the reference; the window begins where it does."""
        if not np.isfinite(piece).all():
            raise SeparationError("not_finite", "the network's output is not finite")
        num_samples = piece.shape[1]
        if self._scorer is not None:
            heard, target = window[:, :num_samples], reference.take(num_samples)
            self._scorer.update(_mono_row(piece), _mono_row(heard), _mono_row(target))
        mono = waveforms.to_mono(piece)
        self._power += power_of(mono)
        self._envelope.add(mono)
        return piece

    def _scores(self, stem_path: str) -> Scores:
        recording, row = self._recording, self._query.row
        mixture, embedded = recording.mixture, recording.embedded
        require_audible(recording.peak, mixture.uri)
        uri = row.reference_uri
        scoring = recording.job.scoring
        needed = scoring.needs(self._query, has_reference=uri is not None)
        heard = Embeddings(
            mixture=recording.mixture_embedding if "mixture_embedding" in needed else None,
            stem=embedded(stem_path, self._part) if "stem_embedding" in needed else None,
            reference=embedded(*mixture.part_of_reference(uri))
            if uri is not None and "reference_embedding" in needed
            else None,
        )
        ratios = without_reference()
        if self._scorer is not None:
            (ratios,) = self._scorer.scores()
        of_mixture = recording.envelope.centred_energy(recording.power)
        powers = Powers(stem=self._power, mixture=of_mixture)
        others = scoring.others(
            self._query,
            heard,
            powers,
            None,
            has_reference=uri is not None,
            presence_odds=told(float(recording.stream.presence[self._index])),
        )
        return scores_of(ratios | others, self._segments(stem_path), scoring.kept(heard.stem))

    def _segments(self, stem_path: str) -> tuple[Segment, ...]:
        recording, part = self._recording, self._part

        def embedded(start_s: float, end_s: float) -> Samples | None:
            begin, end = (round(time_s * part.sample_rate_hz) for time_s in (start_s, end_s))
            length = min(end, part.num_samples) - begin
            stretch = dataclasses.replace(part, start=begin, num_samples=length)
            found = recording.embedded(stem_path, stretch)
            return None if isinstance(found, Undefined) else found

        odds = recording.job.separation.window_odds(
            (start, float(of_queries[self._index])) for start, of_queries in recording.odds
        )
        return recording.job.scoring.segments(
            self._query, self._envelope, recording.envelope, odds, embedded
        )

    def _let_pass(self) -> None:
        """Takes what still comes, so that nothing is held for a stem that has failed."""
        self._recording.give_up()
        try:
            for _ in self.arriving:
                pass
        except ERRORS:  # of the recording: this stem has one of its own
            pass

    def _failed(self, error: Exception) -> Failure:
        row = self._query.row
        stage: Stage = "write" if isinstance(error, WriteError) else "read"
        if isinstance(error, SeparationError):
            return failed(row, "separate", error.code, str(error))
        said = str(error) if stage == "write" else describe(error, self._recording.mixture.uri)
        return failed(row, stage, error_code(error), said)


def _mono_row(block: Samples) -> torch.Tensor:
    return torch.from_numpy(waveforms.to_mono(block))[None]


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
        with open_audio(storage, *self._where, place=row.place) as file:
            self.part, self.tags = file.part, file.tags
        self.num_channels = 1 if mix_down else self.part.num_channels

    def blocks(self) -> Iterator[Samples]:
        """As in the file, mixed down if it is to be: float32[C', n] each."""
        place = self.row.place
        with open_audio(self.storage, *self._where, known=self.part, place=place) as file:
            for block in file.blocks(_block_samples(file.part)):
                yield waveforms.to_mono(block)[None] if self._mix_down else block

    def at_model_rate(
        self, decoded: Callable[[Samples], object] = lambda block: None
    ) -> Iterator[Samples]:
        """At the model's rate; tells ``decoded`` of each block before it is resampled."""

        def told() -> Iterator[Samples]:
            for block in self.blocks():
                decoded(block)
                yield block

        return waveforms.resample_blocks(told(), self.part.sample_rate_hz, self.model_rate_hz)

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


def spread_windows(
    storage: Storage, uri: str, part: AudioPart, length_s: float, rate_hz: int
) -> list[Samples]:
    """Reads windows spread over a part of a long file, float32[T] mono at ``rate_hz`` each.

    They are what cutting the resampled part would give: what lies around a window in the part is
    resampled with it.

    Raises:
        AudioError: the file cannot be used.
        OSError: it cannot be reached.
    """
    starts_s, length_s = window_starts_s(part, length_s), min(length_s, part.duration_s)
    end_s = part.start_s + part.duration_s
    spans_s = [
        (max(part.start_s, start_s - _AROUND_S), min(end_s, start_s + length_s + _AROUND_S))
        for start_s in starts_s
    ]
    pieces = _in_passing(storage, uri, part, spans_s)
    if pieces is None:
        pieces = [_piece(storage, uri, *span_s) for span_s in spans_s]
    windows = []
    for start_s, (begin_s, _), (mono, file_hz) in zip(starts_s, spans_s, pieces, strict=True):
        begin = round((start_s - begin_s) * rate_hz)
        heard = waveforms.resample(mono, file_hz, rate_hz)
        windows.append(heard[begin : begin + math.ceil(length_s * rate_hz - 1e-6)])
    return windows


def window_starts_s(part: AudioPart, length_s: float) -> Sequence[float]:
    """Where the windows begin that stand for a part of a file; see ``Clap.embed_audio``."""
    count = min(-int(-part.duration_s // length_s), MAX_WINDOWS)
    if count <= 1:
        return [part.start_s]
    step_s = (part.duration_s - length_s) / (count - 1)
    return [part.start_s + index * step_s for index in range(count)]


def _piece(storage: Storage, uri: str, begin_s: float, end_s: float) -> tuple[Samples, int]:
    """Reads a stretch of a file: float32[T] mono, and its rate."""
    with open_audio(storage, uri, begin_s, end_s - begin_s) as file:
        return waveforms.to_mono(file.read()), file.part.sample_rate_hz


def _in_passing(
    storage: Storage, uri: str, part: AudioPart, spans_s: Sequence[tuple[float, float]]
) -> list[tuple[Samples, int]] | None:
    """Reads all stretches in one pass; None for a file that can be decoded from any place."""
    pieces: list[list[Samples]] = [[] for _ in spans_s]
    position = 0
    with open_audio(storage, uri, part.start_s, part.duration_s) as file:
        found = file.part
        if not found.from_start:
            return None
        rate_hz = found.sample_rate_hz
        spans = [[round(at_s * rate_hz) - found.start for at_s in span_s] for span_s in spans_s]
        for block in file.blocks(_block_samples(found)):
            mono = waveforms.to_mono(block)
            for (begin, end), piece in zip(spans, pieces, strict=True):
                piece.append(mono[max(0, begin - position) : max(0, end - position)].copy())
            position += len(mono)
    return [(np.concatenate(piece), rate_hz) for piece in pieces]


def require_audible(peak: float, uri: str) -> None:
    """Raises AudioError where a recording turned out to be silent."""
    if peak == 0.0:
        raise AudioError("silent", f"{uri}: {SILENT}")


@dataclasses.dataclass(eq=False)
class SeparateLongRecordings(beam.PTransform[Any, Any]):
    """Long recordings → files, and a row of metrics for each.

    In: ``LongRecording``. Out: ``MetricsRow`` for each stem that is whole and in its place;
    ``Failure`` for each query that has none. As clips are, but in constant memory.

    Attributes:
        separation: what separates.
        scoring: what scores.
        reading: how audio is read.
        writing: where stems go.
        overlap: how many stems are written at once.
    """

    separation: SeparationSettings
    scoring: ScoringSettings
    reading: ReadSettings
    writing: WriteSettings
    overlap: Overlap

    def expand(
        self, recordings: PCollection[LongRecording]
    ) -> tuple[PCollection[MetricsRow], PCollection[Failure]]:
        """Streams several recordings at once through the network."""
        outputs = recordings | "Stream" >> beam.ParDo(
            _SeparateLongFn(self.separation, self.scoring, self.reading, self.writing, self.overlap)
        ).with_outputs(dead_letters.FAILED, main="metrics")
        return outputs["metrics"], outputs[dead_letters.FAILED]


class _SeparateLongFn(LookAheadFn[LongRecording, MetricsRow | Failure]):
    def __init__(
        self,
        separation: SeparationSettings,
        scoring: ScoringSettings,
        reading: ReadSettings,
        writing: WriteSettings,
        overlap: Overlap,
    ) -> None:
        super().__init__(overlap, "SeparateLongRecordings", "long")
        self._separation, self._scoring = separation, scoring
        self._reading, self._writing = reading, writing

    def setup(self) -> None:
        # Loads nothing: most runs have no such recording, and where worker processes share a model
        # this one is a copy of its own.
        self._ahead = LongRecordings(self._load, self._overlap)

    def _load(self) -> LongJob:
        return LongJob(
            separation=Separation(self._separation),
            scoring=Scoring(self._scoring),
            reading=self._reading,
            writing=self._writing,
        )

    def emit(self, result: MetricsRow | Failure) -> Any:
        return count_result(result)
