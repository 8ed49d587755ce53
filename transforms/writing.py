"""Stems as files: at the rate and in the channels of the recording, whole or not at all."""

from __future__ import annotations

import dataclasses
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.metrics.metric import Metrics
from apache_beam.pvalue import PCollection

from manifests.row import STEMS_FOLDER, ManifestRow, output_name, partition_value
from model import signal as waveforms
from transforms.audio.files import (
    READ_ERRORS,
    StemFormat,
    WriteError,
    Written,
    describe,
    error_code,
    held_by,
    write_audio,
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

OTHER_FORMAT = "other_format"
"""Counter of stems that are not in the format that was asked for."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WriteSettings:
    """Where stems go, and as what.

    Attributes:
        uri: the output folder of the run.
        storage: how it is reached.
        stem_format: ``flac`` (24 bits) or ``wav`` (32-bit float).
        residual: whether to write the mixture minus the stem too.
        model_rate_hz: the rate at which stems come.
        code_version: for the metrics.
    """

    uri: str
    storage: Storage
    stem_format: StemFormat = "flac"
    residual: bool = False
    model_rate_hz: int
    code_version: str

    def stem_uri(self, row: ManifestRow, ending: str = "", form: StemFormat | None = None) -> str:
        """Where a row's stem goes, unless it needs another format than is asked for.

        Args:
            row: the row.
            ending: ``.residual`` for its residual.
            form: the format that it got; None: the one that is asked for.
        """
        folder = [f"dataset={partition_value(row.dataset)}"] if row.dataset is not None else []
        name = f"{output_name(row.id)}{ending}.{form or self.stem_format}"
        return join(self.uri, STEMS_FOLDER, *folder, name)


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


def count_result(result: MetricsRow | Failure) -> Any:
    """An output of a DoFn, entered into the counters."""
    if isinstance(result, Failure):
        return dead_letters.dead(result)
    if result.values["stem_note"] is not None:
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
            facts = write_stem(separated.clip, stem, settings)
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


def write_stem(clip: Clip, stem: Stem, settings: WriteSettings) -> StemFacts:
    """Writes a stem and its residual, as long as the clip.

    Raises:
        OSError: a file cannot be written.
    """
    rate_hz, num_samples = clip.sample_rate_hz, clip.audio.shape[1]
    resampled = waveforms.resample(stem.audio, settings.model_rate_hz, rate_hz)
    samples = waveforms.fit_length(resampled, num_samples)
    residual = None
    if settings.residual:
        heard = clip.audio
        if len(heard) != len(samples):
            heard = waveforms.to_mono(clip.audio)[None]
        residual = _write(stem.query.row, ".residual", heard - samples, rate_hz, settings)
    written = _write(stem.query.row, "", samples, rate_hz, settings)
    return StemFacts(
        duration_s=num_samples / rate_hz,
        sample_rate_hz=rate_hz,
        n_channels=len(samples),
        n_windows=stem.num_windows,
        peak=written.peak,
        inference_s=stem.inference_s,
        stem_uri=written.uri,
        residual_uri=None if residual is None else residual.uri,
        stem_format=written.form,
        stem_note=note_of(written, residual),
        input_gain_db=stem.input_gain_db,
    )


def _write(
    row: ManifestRow, ending: str, samples: Samples, rate_hz: int, settings: WriteSettings
) -> Written:
    peak = float(np.abs(samples).max(initial=0.0))
    form, note = held_by(settings.stem_format, rate_hz, peak)
    uri = settings.stem_uri(row, ending, form)
    write_audio(settings.storage, uri, samples, rate_hz, form)
    return Written(uri=uri, form=form, note=note, peak=peak)


def note_of(stem: Written, residual: Written | None) -> str | None:
    """Why files are not what was asked for."""
    notes = [] if stem.note is None else [stem.note]
    if residual is not None and residual.note is not None:
        notes.append(f"residual: {residual.note}")
    return "; ".join(notes) or None
