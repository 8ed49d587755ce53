"""Stems as files: at the rate and in the channels of the recording, whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from typing import Any

import apache_beam as beam
from apache_beam.metrics.metric import Metrics
from apache_beam.pvalue import PCollection

from manifests.row import STEMS_FOLDER, ManifestRow, output_name, partition_value
from model import signal as waveforms
from transforms.audio import NO_TAGS, AudioPart, Tags
from transforms.audio.files import (
    FALLBACK_FORMATS,
    READ_ERRORS,
    STEM_FORMATS,
    StemFormat,
    StemWriter,
    WriteError,
    Written,
    describe,
    error_code,
    held_by,
    stem_blocks,
    write_errors,
)
from transforms.elements import (
    Clip,
    Failure,
    MetricsRow,
    Provenance,
    Samples,
    ScoredClip,
    Scores,
    Stem,
    failed,
)
from transforms.storage import Storage, join
from transforms.tables import dead_letters, row_counts
from transforms.tables.metrics_rows import StemFacts, metrics_row
from transforms.threaded import LookAheadFn, Overlap

logger = logging.getLogger(__name__)
OTHER_FORMAT = "other_format"
"""Counter of stems that are not in the format that was asked for."""
NOT_KEPT = "not_kept"
"""Counter of stems that were separated and measured, and not kept."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WriteSettings:
    """Where stems go, and as what.

    Attributes:
        uri: the output folder of the run.
        storage: how it is reached.
        stem_format: one of ``STEM_FORMATS``.
        stem_quality: of a lossy format, in [0, 1]; None: as libsndfile likes.
        residual: whether to write the mixture minus the stem too.
        keep_stems: ``all``, ``none``, or ``present``: those of a presence from ``min_presence`` on,
            and those of which nobody says it.
        min_presence: in [0, 1].
        model_rate_hz: the rate at which stems come.
        code_version: for the metrics.
    """

    uri: str
    storage: Storage
    stem_format: StemFormat = "flac"
    stem_quality: float | None = None
    residual: bool = False
    keep_stems: str = "all"
    min_presence: float = 0.5
    model_rate_hz: int
    code_version: str

    def left_out(self, scores: Scores) -> str | None:
        """Why a stem is not kept; None where it is."""
        if self.keep_stems == "none":
            return "not kept: --keep_stems none"
        presence = scores.values.get("presence")
        if self.keep_stems == "all" or presence is None or presence >= self.min_presence:
            return None
        return f"not kept: presence {presence:.4g} is below --min_presence {self.min_presence:g}"

    def stem_uri(
        self, row: ManifestRow | MetricsRow, ending: str = "", form: StemFormat | None = None
    ) -> str:
        """Where a row's stem goes, unless it needs another format than is asked for.

        Args:
            row: the row.
            ending: ``.residual`` for its residual.
            form: the format that it got; None: the one that is asked for.
        """
        folder = [f"dataset={partition_value(row.dataset)}"] if row.dataset is not None else []
        suffix = STEM_FORMATS[form or self.stem_format].ending
        name = f"{output_name(row.id)}{ending}.{suffix}"
        return join(self.stems_uri, *folder, name)

    def others(self, row: MetricsRow) -> list[str]:
        """Every place where a stem or residual of the row can have gone, but for what it names."""
        endings = ("", ".residual") if self.residual else ("",)
        forms = {self.stem_format, *FALLBACK_FORMATS}
        places = {self.stem_uri(row, ending, form) for ending in endings for form in forms}
        return sorted(places - {row.values["stem_uri"], row.values["residual_uri"]})

    @property
    def stems_uri(self) -> str:
        """The folder of all stems."""
        return join(self.uri, STEMS_FOLDER)


@dataclasses.dataclass(eq=False)
class WriteStems(beam.PTransform[Any, Any]):
    """Scored clips → files, and a row of metrics for each.

    In: ``ScoredClip``. Out: ``MetricsRow`` for each stem that is whole and in its place;
    ``Failure`` for each that could not be written. Files are named after ids: a retry writes the
    same bytes to the same place.

    Attributes:
        settings: where to, and as what.
        overlap: how many files are written beside the network.
    """

    settings: WriteSettings
    overlap: Overlap

    def expand(
        self, scored: PCollection[ScoredClip]
    ) -> tuple[PCollection[MetricsRow], PCollection[Failure]]:
        """Writes several clips at once, behind the network."""
        write = beam.ParDo(_WriteStemsFn(self.settings, self.overlap))
        typed = write.with_output_types(MetricsRow, **{dead_letters.FAILED: Failure})
        outputs = scored | "Write" >> typed.with_outputs(dead_letters.FAILED, main="metrics")
        return outputs["metrics"], outputs[dead_letters.FAILED]


class _WriteStemsFn(LookAheadFn[ScoredClip, MetricsRow | Failure]):
    def __init__(self, settings: WriteSettings, overlap: Overlap) -> None:
        super().__init__(overlap, "WriteStems", "write")
        self._settings = settings

    def work(self, scored: ScoredClip) -> list[MetricsRow | Failure]:
        return write_clip(scored, self._settings)

    def emit(self, result: MetricsRow | Failure) -> Any:
        return count_result(result)


@dataclasses.dataclass(eq=False)
class RemoveOlder(beam.PTransform[Any, Any]):
    """Removes what an earlier run kept of rows that are done again, where nothing was put over it.

    Their stem can have got another format, or was not kept: whoever looks for a stem by its id, as
    ``pipelines.score`` does, would find the old one.

    In: ``MetricsRow``. Out: the same, each after nothing else of its id is there.

    Attributes:
        settings: where stems go, and as what.
        overlap: for how many rows at a time.
    """

    settings: WriteSettings
    overlap: Overlap

    def expand(self, rows: PCollection[MetricsRow]) -> PCollection[MetricsRow]:
        """Asks the store for several rows at once."""
        remove = beam.ParDo(_RemoveOlderFn(self.settings, self.overlap))
        return rows | "Remove" >> remove.with_output_types(MetricsRow)


class _RemoveOlderFn(LookAheadFn[MetricsRow, MetricsRow]):
    def __init__(self, settings: WriteSettings, overlap: Overlap) -> None:
        super().__init__(overlap, "RemoveOlder", "remove")
        self._settings = settings

    def work(self, row: MetricsRow) -> list[MetricsRow]:
        storage, others = self._settings.storage, self._settings.others(row)
        try:
            if others and storage.link_in(others[0], self._settings.stems_uri) is None:
                # The folder stays, which another thread may be about to write into.
                storage.remove_files(others, others[0].rsplit("/", 1)[0])
        except OSError as err:
            logger.warning("an older stem stays: %s", describe(err, others[0]))
        return [row]

    def emit(self, result: MetricsRow) -> MetricsRow:
        return result


def count_result(result: MetricsRow | Failure) -> Any:
    """An output of a DoFn, entered into the counters."""
    if isinstance(result, Failure):
        return dead_letters.dead(result)
    if result.values["stem_uri"] is None:
        Metrics.counter("WriteStems", NOT_KEPT).inc()
    elif result.values["stem_note"] is not None:
        Metrics.counter("WriteStems", OTHER_FORMAT).inc()
    row_counts.done("WriteStems", result.values["duration_s"])
    return result


def write_clip(scored: ScoredClip, settings: WriteSettings) -> list[MetricsRow | Failure]:
    """Writes the stems of a clip; gives a metrics row or a failure for each."""
    separated = scored.separated
    results: list[MetricsRow | Failure] = []
    for stem, scores in zip(separated.stems, scored.scores, strict=True):
        row = stem.query.row
        try:
            facts = write_stem(separated.clip, stem, settings, settings.left_out(scores))
        except READ_ERRORS as err:
            named = isinstance(err, WriteError)
            message = str(err) if named else describe(err, settings.stem_uri(row))
            results.append(failed(row, "write", error_code(err), message))
            continue
        results.append(
            row_of(row, facts, scores, separated.provenance, scored.scorer_sha256, settings)
        )
    return results


def row_of(
    row: ManifestRow,
    facts: StemFacts,
    scores: Scores,
    provenance: Provenance,
    scorer_sha256: str | None,
    settings: WriteSettings,
) -> MetricsRow:
    """The row of metrics of a stem that was written."""
    return metrics_row(
        row,
        facts,
        scores,
        provenance,
        scorer_sha256=scorer_sha256,
        code_version=settings.code_version,
    )


def write_stem(
    clip: Clip, stem: Stem, settings: WriteSettings, left_out: str | None = None
) -> StemFacts:
    """Writes a stem and its residual, as long as the clip.

    Args:
        clip: what it is from.
        stem: at the model's rate.
        settings: where it goes, and as what.
        left_out: why no file is to be written; None: one is.

    Raises:
        OSError: a file cannot be written.
    """
    part = AudioPart(
        sample_rate_hz=clip.sample_rate_hz,
        num_channels=len(stem.audio),
        start=0,
        num_samples=clip.audio.shape[1],
    )
    resampled = waveforms.resample(stem.audio, settings.model_rate_hz, part.sample_rate_hz)
    samples = waveforms.fit_length(resampled, part.num_samples)
    mixture = clip.audio
    if len(mixture) != len(samples):
        mixture = waveforms.to_mono(mixture)[None]
    with StemFiles(stem.query.row, part, settings, left_out, clip.tags) as files:
        files.take(mixture, samples)
        files.complete()
        files.publish()
    return files.facts(
        num_windows=stem.num_windows,
        inference_s=stem.inference_s,
        input_gain_db=stem.input_gain_db,
    )


class StemFiles:
    """Writes the stem of a row and its residual block by block: whole and in place, or not at all.

    This is the one place where every block of mixture and stem of a row passes, side by side and in
    order: of a clip in memory, which is one block, as of a recording of hours. What is to be
    measured of a stem as it goes by is measured in :meth:`take`.

    Used in a ``with`` statement, whose end removes what was not published.
    """

    def __init__(
        self,
        row: ManifestRow,
        part: AudioPart,
        settings: WriteSettings,
        left_out: str | None = None,
        tags: Tags = NO_TAGS,
    ) -> None:
        """Nothing is written yet.

        Args:
            row: names the files.
            part: rate, channels and length of the stem.
            settings: where it goes, and as what.
            left_out: why nothing is to be written, where that is known; None: the stem is, and can
                still be left out before it is published.
            tags: what the recording says of itself, and its stems too.
        """
        self._part, self._settings = part, settings
        self._left_out, self._peak = left_out, 0.0
        self._stack = contextlib.ExitStack()
        self._stem = _GrowingFile(row, "", part, settings, self._stack, tags)
        self._residual: _GrowingFile | None = None
        if settings.residual:
            self._residual = _GrowingFile(row, ".residual", part, settings, self._stack, tags)

    def __enter__(self) -> StemFiles:
        """Begins."""
        return self

    def __exit__(self, *error: object) -> None:
        """Removes the temporary files."""
        self._stack.close()

    def take(self, mixture: Samples, stem: Samples) -> None:
        """Appends the next block of the recording.

        Args:
            mixture: float32[C, n], at the rate of the file.
            stem: float32[C, n], what was extracted from it.

        Raises:
            WriteError: it cannot be written.
        """
        self._peak = max(self._peak, waveforms.peak(stem))
        if self._left_out is not None:
            return
        self._stem.write(stem)
        if self._residual is not None:
            self._residual.write(mixture - stem)

    def leave_out(self, why: str | None) -> None:
        """Decides of a stem that is complete whether it is to be published: None, it is."""
        self._left_out = why

    def complete(self) -> None:
        """Completes the files and reads them back.

        Raises:
            WriteError: one is not whole.
        """
        for file in self._files:
            file.complete()

    def publish(self) -> None:
        """Puts the files that are kept in their place, the stem last: where it is, all is.

        Raises:
            WriteError: one cannot be put there.
        """
        for file in reversed(self._files):
            with write_errors(file.written.uri):
                self._settings.storage.publish(file.written.uri, file.path)

    @property
    def path(self) -> str:
        """Where the stem is until it is published."""
        return self._stem.path

    def facts(
        self, *, num_windows: int, inference_s: float | None, input_gain_db: float | None
    ) -> StemFacts:
        """What the metrics say of the files, and of what it took to make them."""
        files: dict[str, Any] = {
            "stem_uri": None,
            "residual_uri": None,
            "stem_note": self._left_out,
        }
        if self._left_out is None:
            stem = self._stem.written
            residual = None if self._residual is None else self._residual.written
            files = {
                "stem_uri": stem.uri,
                "residual_uri": None if residual is None else residual.uri,
                "stem_format": stem.form,
                "stem_note": note_of(stem, residual),
            }
        part = self._part if self._left_out is not None else self._stem.part
        return StemFacts(
            duration_s=part.duration_s,
            sample_rate_hz=part.sample_rate_hz,
            n_channels=part.num_channels,
            n_windows=num_windows,
            peak=self._peak,
            inference_s=inference_s,
            input_gain_db=input_gain_db,
            **files,
        )

    @property
    def _files(self) -> list[_GrowingFile]:
        """Those that are kept."""
        if self._left_out is not None:
            return []
        return [self._stem] if self._residual is None else [self._stem, self._residual]


class _GrowingFile:
    """A temporary file of a stem; float WAV as soon as it turns out that FLAC does not hold it.

    What was in the FLAC until then is what FLAC holds of it: it is exact to 2⁻²⁴ of full scale.
    """

    path: str
    written: Written

    def __init__(
        self,
        row: ManifestRow,
        ending: str,
        part: AudioPart,
        settings: WriteSettings,
        stack: contextlib.ExitStack,
        tags: Tags,
    ) -> None:
        self._row, self._ending, self._part, self._tags = row, ending, part, tags
        self._settings, self._stack = settings, stack
        self._writer: StemWriter | None = None

    def write(self, block: Samples) -> None:
        """Appends float32[C, T]."""
        peak = waveforms.peak(block)
        if self._writer is None:
            writer = self._begin(peak)
        else:
            peak = max(self.written.peak, peak)
            writer = self._holding(self._writer, peak)
        writer.write(block)
        self.written = dataclasses.replace(self.written, peak=peak)

    @property
    def part(self) -> AudioPart:
        """What the file holds."""
        return self._part if self._writer is None else self._writer.part

    def complete(self) -> None:
        """Completes the file and reads it back."""
        if self._writer is None:
            raise RuntimeError("a stem without a block is complete")
        self._writer.complete()

    def _begin(self, peak: float) -> StemWriter:
        settings = self._settings
        part = self._part
        form, note = held_by(settings.stem_format, part.sample_rate_hz, peak, part.num_channels)
        uri = settings.stem_uri(self._row, self._ending, form)
        with write_errors(uri):
            temporary = settings.storage.temporary(uri, settings.stems_uri)
            self.path = self._stack.enter_context(temporary)
        self._writer = StemWriter(self.path, part, form, uri, settings.stem_quality, self._tags)
        self._stack.callback(self._writer.close)
        self.written = Written(uri=uri, form=form, note=note, peak=peak)
        return self._writer

    def _holding(self, writer: StemWriter, peak: float) -> StemWriter:
        """The writer of a file that holds samples of that peak, and all that came before."""
        if held_by(self.written.form, self._part.sample_rate_hz, peak)[0] == self.written.form:
            return writer
        writer.end()
        before = self.path
        writer = self._begin(peak)
        with write_errors(self.written.uri):
            for earlier in stem_blocks(before):
                writer.write(earlier)
            os.unlink(before)
        return writer


def note_of(stem: Written, residual: Written | None) -> str | None:
    """Why files are not what was asked for."""
    notes = [] if stem.note is None else [stem.note]
    if residual is not None and residual.note is not None:
        notes.append(f"residual: {residual.note}")
    return "; ".join(notes) or None
