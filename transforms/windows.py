"""Hears every 10 s of recordings once, and leaves out queries that no window is likely to answer.

The model's own CLAP embeds each window, and where the model tells presence, what its listener heard
is kept beside the embedding. Both go to a file for each recording, named after it: whatever worker
has a recording finds its windows by one request, reads no others, and writes the same bytes when it
is tried again. A later run answers its queries from there, before it opens the recording.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, cast

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from apache_beam.metrics.metric import Metrics
from apache_beam.pvalue import PCollection

from manifests.columns import WINDOWS_SCHEMA
from manifests.row import SCHEMA_VERSION, ManifestRow
from model import devices, metrics, systems
from model.clap import cover
from model.clap.audio import Precision, computing_in
from model.devices import cores
from model.inference import MODEL_ERRORS
from model.metrics import METRICS, Undefined
from model.signal import input_gain, to_mono
from model.signal.stft import sinc_resample
from model.signal.windowing import WindowPlan, iter_windows
from transforms import model_cache
from transforms.audio.files import READ_ERRORS, WriteError, describe, error_code, write_errors
from transforms.audio.mixtures import ReadSettings, read_mixture
from transforms.elements import (
    Clip,
    Failure,
    LongRecording,
    MetricsRow,
    MixtureQueries,
    RowQuery,
    Samples,
    failed,
)
from transforms.long_recordings import LongMixture
from transforms.manifest_io import mixture_key
from transforms.scoring import scores_of
from transforms.separation import provenance_of
from transforms.storage import Storage, join
from transforms.storage.access import redacted
from transforms.tables import dead_letters, row_counts
from transforms.tables.metrics_rows import StemFacts, metrics_row
from transforms.threaded import LookAheadFn, Overlap

logger = logging.getLogger(__name__)
WINDOW_S: Final = 10.0
_ROWS_A_GROUP = 64
STEP, SCREENED = "ScreenMixtures", "screened"
"""The counter of rows that were not separated, and its step."""
UNHEARD = "unheard"
"""Counter of recordings of finished rows whose windows cannot be had."""
Blocks = Callable[[], Iterable[Samples]]
"""Gives a recording as often as it is asked: float32[1, n] each, mono at the model's rate."""
Mixture = MixtureQueries | Clip | LongRecording


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WindowSettings:
    """How recordings are heard, and what is left out then.

    Attributes:
        uri: folder of the files.
        storage: how they and the recordings are reached.
        model: whose CLAP hears.
        reading: how recordings are read.
        num_threads: that hear on a CPU; 0: one for each core.
        screen: what is less plausible is not separated: a presence in [0, 1], or for a model that
            does not tell it the similarity of window and query; None: everything is separated.
        scorer_sha256: of the run, for the metrics.
        code_version: likewise.
    """

    uri: str
    storage: Storage
    model: model_cache.ModelChoice
    reading: ReadSettings
    num_threads: int = 0
    screen: float | None = None
    scorer_sha256: str | None = None
    code_version: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeardWindow:
    """A window of a recording.

    Attributes:
        start_s: where it begins.
        end_s: where it ends.
        embedding: float32[D], or None.
        undefined_reason: why there is none.
        heard: what the model's listener keeps of it; None where it has none.
    """

    start_s: float
    end_s: float
    embedding: Samples | None
    undefined_reason: str | None = None
    heard: bytes | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the windows of a recording say to its queries.

    Attributes:
        duration_s: of the recording.
        likely: for each query the most that a window says: log odds, or a similarity; NaN where
            none says anything.
    """

    duration_s: float
    likely: tuple[float, ...]


class WindowsError(RuntimeError):
    """The windows of a recording cannot be had; ``code`` says why in one word."""

    def __init__(self, code: str, message: str) -> None:
        """An error with a code."""
        super().__init__(message)
        self.code = code


class Ear:
    """A loaded model's CLAP and listener. Safe to use from several threads."""

    def __init__(self, choice: model_cache.ModelChoice, num_threads: int = 1) -> None:
        """Loads the model."""
        loaded = model_cache.load_model(choice)
        device = choice.resolved_device()
        self.encoder = loaded.query_encoder
        self.provenance = provenance_of(loaded, choice)
        self.rate_hz = loaded.separator.sample_rate_hz
        self._device = torch.device(device)
        self._precision = cast(Precision, choice.precision)
        self._listener = systems.listener_of(loaded.separator)
        threads = (num_threads or cores()) if device == "cpu" else 1
        self._computing = threading.Semaphore(threads)

    @property
    def tells_presence(self) -> bool:
        """Whether what is likely is said as log odds, and not as a similarity."""
        return self._listener is not None

    def windows(self, blocks: Blocks) -> Iterator[HeardWindow]:
        """Hears a recording, brought to the level at which the CLAP hears; holds two windows."""
        gain = input_gain(blocks(), self.rate_hz, self.encoder.input_level_dbfs)
        plan = WindowPlan(window_samples=round(WINDOW_S * self.rate_hz), overlap=0.0)
        for window in iter_windows(blocks(), plan):
            samples = to_mono(window.samples)
            times_s = (window.start / self.rate_hz, (window.start + len(samples)) / self.rate_hz)
            start_s, end_s = (round(time_s, 6) for time_s in times_s)
            if not samples.any():
                reason: Undefined | None = Undefined.SILENT_MIXTURE
                embedding, heard = None, None
            else:
                (levelled,) = gain.heard(samples[None], window.start)
                embedding, heard, reason = self._hear(levelled)
            row_counts.add(heard=1)  # a sign of life, within long recordings too
            yield HeardWindow(
                start_s=start_s,
                end_s=end_s,
                embedding=embedding,
                undefined_reason=None if reason is None else reason.value,
                heard=heard,
            )

    def likely(self, window: HeardWindow, query: RowQuery) -> float:
        """How likely a window holds what a query asks for: log odds, or else a similarity.

        The negative part of a query does not count: what it names may be absent too.
        """
        if window.embedding is None or "P" not in query.row.polarity:
            return math.nan
        positive = torch.from_numpy(query.positive)
        if self._listener is None:
            embedding = torch.from_numpy(np.asarray(window.embedding, np.float32))
            return float(metrics.cosine(embedding[None], positive[None]))
        if window.heard is None:
            return math.nan
        with torch.inference_mode(), self._computing:
            return self._listener.answer(window.heard, positive)

    def _hear(self, samples: Samples) -> tuple[Samples | None, bytes | None, Undefined | None]:
        try:
            vector, heard = self._embed(torch.from_numpy(samples))
        except MODEL_ERRORS as err:
            if not devices.is_out_of_memory(err):
                silence = torch.zeros(len(samples))
                devices.require_working(lambda: self._embed(silence), err)
            logger.warning("a window cannot be heard: %s", devices.first_line(err))
            return None, None, Undefined.SCORER_FAILED
        if not np.isfinite(vector).all():
            return None, None, Undefined.SCORER_FAILED
        return vector, heard, None

    def _embed(self, samples: torch.Tensor) -> tuple[Samples, bytes | None]:
        """Embeds one window by itself: what else is in a batch shows in the last bits."""
        encoder = self.encoder
        with torch.inference_mode(), self._computing:
            clip = sinc_resample(samples, self.rate_hz, encoder.sample_rate_hz)
            if self._listener is None:
                vector, heard = encoder.embed_audio([clip])[0], None
            else:
                passes = torch.stack(cover(clip, encoder.clip_samples)).to(self._device)
                with computing_in(self._precision, self._device.type):
                    vectors, heard = self._listener.listen(passes)
                vector = torch.nn.functional.normalize(vectors.mean(dim=0), dim=-1)
            array: Samples = vector.float().cpu().numpy()
            return array, heard


class WindowFiles:
    """The windows of recordings: in their files, or heard now and written there."""

    def __init__(self, settings: WindowSettings) -> None:
        """Loads the model."""
        self.settings = settings
        self.ear = Ear(settings.model, settings.num_threads)
        # Pieces of one recording wait for each other, so that it is heard once.
        self._locks = [threading.Lock() for _ in range(64)]

    def uri_of(self, row: ManifestRow) -> str:
        """The file of a row's recording: another one for another model."""
        of_model = self.ear.provenance
        what = [mixture_key(row), of_model.model_sha256, of_model.clap_sha256, of_model.precision]
        name = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]
        return join(self.settings.uri, f"{name}.parquet")

    def answer(
        self, row: ManifestRow, queries: Sequence[RowQuery], blocks: Blocks | None
    ) -> Answer | None:
        """Answers queries about a recording from its file, which is written first if it must be.

        Args:
            row: names the recording.
            queries: about it.
            blocks: gives the recording; None: only the file is looked at.

        Returns:
            None where there is no usable file, and no recording either.

        Raises:
            AudioError, OSError: the recording cannot be read.
            WriteError: the file cannot be written.
            WindowsError: it is there, and the store does not give it.
        """
        uri = self.uri_of(row)
        with self._locks[int(uri[-10:-8], 16) % len(self._locks)]:
            found = self._from_file(uri, queries)
            if found is None and blocks is not None:
                heard = self._written(uri, row, self.ear.windows(blocks))
                found = self._answered(heard, queries)
            return found

    def _answered(
        self, windows: Iterable[HeardWindow], queries: Sequence[RowQuery]
    ) -> Answer | None:
        best, duration_s, has_failed = [math.nan] * len(queries), 0.0, False
        for window in windows:
            duration_s = window.end_s
            has_failed |= window.undefined_reason == Undefined.SCORER_FAILED.value
            best = [
                float(np.fmax(so_far, self.ear.likely(window, query)))
                for so_far, query in zip(best, queries, strict=True)
            ]
        if has_failed:  # what nobody heard may hold anything
            best = [math.nan] * len(queries)
        return Answer(duration_s=duration_s, likely=tuple(best)) if duration_s else None

    def _from_file(self, uri: str, queries: Sequence[RowQuery]) -> Answer | None:
        try:
            with self.settings.storage.open(uri) as stream:
                data = stream.read()
        except FileNotFoundError:
            return None
        except OSError as err:
            raise WindowsError(error_code(err), describe(err, uri)) from err
        try:  # in memory, where an OSError too is of what the file holds
            return self._answered(_windows_in(pq.ParquetFile(io.BytesIO(data))), queries)
        except (pa.ArrowException, OSError, ValueError, KeyError) as err:
            logger.warning("%s is heard again: %s", uri, devices.first_line(err))
        return None

    def _written(
        self, uri: str, row: ManifestRow, windows: Iterable[HeardWindow]
    ) -> Iterator[HeardWindow]:
        """The windows, once more, while they go to the file; it is there when they are all out."""
        storage = self.settings.storage
        of_row = {
            "mixture_uri": redacted(row.mixture_uri),
            "target_uris": redacted(row.targets or None),
            "interferer_uris": redacted(row.interferer_uris or None),
            "offset_s": row.offset_s or 0.0,
            "scorer_sha256": self.ear.encoder.digest,
            "schema_version": SCHEMA_VERSION,
        }
        with contextlib.ExitStack() as stack:
            with write_errors(uri):
                path = stack.enter_context(storage.temporary(uri))
                writer = stack.enter_context(
                    pq.ParquetWriter(path, WINDOWS_SCHEMA, compression="zstd")
                )
            rows: list[dict[str, Any]] = []
            for window in windows:
                there = {field.name: getattr(window, field.name) for field in _FIELDS}
                rows.append({**of_row, **there})
                if len(rows) == _ROWS_A_GROUP:
                    _write(uri, writer, rows)
                yield window
            _write(uri, writer, rows)
            with write_errors(uri):
                writer.close()
                storage.publish(uri, path)


_FIELDS = dataclasses.fields(HeardWindow)


def _write(uri: str, writer: pq.ParquetWriter, rows: list[dict[str, Any]]) -> None:
    if rows:
        with write_errors(uri):
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=WINDOWS_SCHEMA))
        rows.clear()


def _windows_in(file: pq.ParquetFile) -> Iterator[HeardWindow]:
    names = [field.name for field in _FIELDS]
    for batch in file.iter_batches(_ROWS_A_GROUP, columns=names):
        vectors = batch.column("embedding")
        for place, record in enumerate(batch.drop_columns(["embedding"]).to_pylist()):
            vector = vectors[place]
            known = vector.values.to_numpy() if vector.is_valid else None
            yield HeardWindow(**record, embedding=known)


def screened(
    mixture: Mixture, files: WindowFiles, *, known: bool
) -> list[Mixture | MetricsRow | Failure]:
    """Takes from a mixture the queries that none of its windows is likely to answer.

    Args:
        mixture: with its queries.
        files: of the windows.
        known: whether only windows are looked at that an earlier run left.

    Returns:
        The mixture with the other queries, if there are any, and a row of metrics for each that was
        taken; or a failure for each, where windows cannot be written, or not be had.
    """
    settings, row = files.settings, mixture.queries[0].row
    blocks = None if known else _blocks_of(mixture, settings)
    queries = () if settings.screen is None else mixture.queries
    try:
        answer = files.answer(row, queries, blocks)
    except WriteError as err:
        return [failed(q.row, "write", error_code(err), str(err)) for q in mixture.queries]
    except WindowsError as err:
        return [failed(q.row, "read", err.code, str(err)) for q in mixture.queries]
    except READ_ERRORS:  # separating it says so, and how
        return [mixture]
    if answer is None or settings.screen is None:
        return [mixture]
    rows: list[Mixture | MetricsRow | Failure] = []
    stays = []
    for index, (query, likely) in enumerate(zip(mixture.queries, answer.likely, strict=True)):
        value = metrics.presence_of(likely) if files.ear.tells_presence else likely
        if value < settings.screen:
            rows.append(_left_out(query.row, answer.duration_s, likely, value, files))
        else:  # NaN too
            stays.append(index)
    if not rows:
        return [mixture]
    if stays:
        rows.insert(0, _only(mixture, stays))
    return rows


def _only(mixture: Mixture, indices: Sequence[int]) -> Mixture:
    queries = tuple(mixture.queries[index] for index in indices)
    if isinstance(mixture, Clip):
        references = tuple(mixture.references[index] for index in indices)
        return dataclasses.replace(mixture, queries=queries, references=references)
    return dataclasses.replace(mixture, queries=queries)


def _left_out(
    row: ManifestRow, duration_s: float, likely: float, value: float, files: WindowFiles
) -> MetricsRow:
    """The row of metrics of a query that was not answered by a stem."""
    settings, tells = files.settings, files.ear.tells_presence
    inputs: dict[Any, Any] = dict.fromkeys(
        (name for metric in METRICS for name in metric.needs), Undefined.NOT_SEPARATED
    )
    inputs["presence_odds"] = [likely] if tells else Undefined.NO_PRESENCE_OUTPUT
    (outcomes,) = metrics.evaluate(inputs)
    what = "presence" if tells else "similarity"
    facts = StemFacts(
        duration_s=duration_s,
        sample_rate_hz=None,
        n_channels=None,
        n_windows=0,
        peak=None,
        inference_s=None,
        stem_uri=None,
        residual_uri=None,
        stem_note=f"not separated: {what} {value:.4g} is below --screen {settings.screen:g}",
    )
    return metrics_row(
        row,
        facts,
        scores_of(outcomes),
        files.ear.provenance,
        scorer_sha256=settings.scorer_sha256,
        code_version=settings.code_version,
    )


def _blocks_of(mixture: Mixture, settings: WindowSettings) -> Blocks:
    if isinstance(mixture, Clip):
        mono = to_mono(mixture.model_audio)[None]
        return lambda: [mono]
    return _streamed(mixture.queries[0].row, settings)


def _streamed(row: ManifestRow, settings: WindowSettings) -> Blocks:
    """Opens a recording that is not held in memory when it is first asked for."""

    @functools.cache
    def opened() -> LongMixture:
        rate_hz = settings.reading.model_rate_hz
        return LongMixture(row, settings.storage, mix_down=True, model_rate_hz=rate_hz)

    return lambda: opened().at_model_rate()


@dataclasses.dataclass(eq=False)
class ScreenMixtures(beam.PTransform[Any, Any]):
    """Mixtures → mixtures without the queries that none of their windows is likely to answer.

    In: ``MixtureQueries``, ``Clip`` or ``LongRecording``. Out: the same, with what remains of their
    queries; ``MetricsRow`` for each other query; ``Failure`` for queries whose windows cannot be
    written or had. Every query in exactly one. Each recording has its file of windows then.

    Attributes:
        settings: how recordings are heard.
        overlap: how many are looked at beside each other.
        known: whether only windows are looked at that an earlier run left.
    """

    settings: WindowSettings
    overlap: Overlap
    known: bool = False

    def expand(
        self, mixtures: PCollection[Any]
    ) -> tuple[PCollection[Any], PCollection[MetricsRow], PCollection[Failure]]:
        """Looks at several recordings at once."""
        outputs = mixtures | "Screen" >> beam.ParDo(_ScreenFn(self)).with_outputs(
            SCREENED, dead_letters.FAILED, main="mixtures"
        )
        return outputs["mixtures"], outputs[SCREENED], outputs[dead_letters.FAILED]


class _WindowsFn(LookAheadFn[Any, Any]):
    """Loads the model for the first recording: what looks at no recording needs none."""

    def __init__(self, settings: WindowSettings, overlap: Overlap) -> None:
        super().__init__(overlap, STEP, "hear")
        self._settings = settings
        self._loaded: list[WindowFiles] = []

    def setup(self) -> None:
        super().setup()
        self._loading = threading.Lock()

    @property
    def files(self) -> WindowFiles:
        """The windows of recordings."""
        with self._loading:
            if not self._loaded:
                self._loaded.append(WindowFiles(self._settings))
            return self._loaded[0]


class _ScreenFn(_WindowsFn):
    def __init__(self, step: ScreenMixtures) -> None:
        super().__init__(step.settings, step.overlap)
        self._known = step.known

    def work(self, mixture: Mixture) -> list[Mixture | MetricsRow | Failure]:
        return screened(mixture, self.files, known=self._known)

    def emit(self, result: Mixture | MetricsRow | Failure) -> Any:
        if isinstance(result, Failure):
            return dead_letters.dead(result)
        if not isinstance(result, MetricsRow):
            return result
        Metrics.counter(STEP, SCREENED).inc()
        row_counts.done(STEP, result.values["duration_s"])
        return beam.pvalue.TaggedOutput(SCREENED, result)


@dataclasses.dataclass(eq=False)
class HearRecordings(beam.PTransform[Any, Any]):
    """Hears recordings of which nothing is to be separated any more, so that their files are there.

    In: ``ManifestRow``, one for each recording. Out: ``UNHEARD`` for each that can no longer be
    read, or whose file cannot be written, which is counted and no dead letter: its rows are
    finished. A warning says why a file cannot be written.
    """

    settings: WindowSettings
    overlap: Overlap

    def expand(self, rows: PCollection[ManifestRow]) -> PCollection[Any]:
        """Hears several recordings at once."""
        return rows | "Hear" >> beam.ParDo(_HearFn(self.settings, self.overlap))


class _HearFn(_WindowsFn):
    def work(self, row: ManifestRow) -> list[str]:
        try:
            if self.files.answer(row, (), None) is None:
                self.files.answer(row, (), _whole(row, self._settings))
        except (*READ_ERRORS, WindowsError) as err:
            if isinstance(err, WriteError | WindowsError):  # no fault of the recording
                logger.warning("the windows of a recording are not there: %s", err)
            else:
                logger.debug("%s: its windows are not heard: %s", row.id, err)
            return [UNHEARD]
        return []

    def emit(self, result: str) -> Any:
        Metrics.counter(STEP, result).inc()
        return result


def _whole(row: ManifestRow, settings: WindowSettings) -> Blocks:
    audio = read_mixture(row, settings.storage, settings.reading)
    if audio is None:
        return _streamed(row, settings)
    mono = to_mono(audio.model_audio)[None]
    return lambda: [mono]


def unasked(
    group: tuple[str, dict[str, Iterable[ManifestRow]]],
) -> Iterator[ManifestRow]:
    """Gives a row of a recording of which nothing is asked in this run."""
    _, found = group
    if next(iter(found["asked"]), None) is None:
        yield from sorted(found["rows"], key=lambda row: row.id)[:1]
