"""Stems as files: at the rate and in the channels of the recording, whole or not at all."""

from __future__ import annotations

import dataclasses
from typing import Any

import apache_beam as beam
from apache_beam.metrics.metric import Metrics

from manifests.ids import output_name, partition_value
from manifests.row import ManifestRow
from model import audio as waveforms
from transforms import failures, tally
from transforms.audio_io import READ_ERRORS, StemFormat, describe, error_code, write_audio
from transforms.elements import (
    Clip,
    Failure,
    MetricsRow,
    Provenance,
    ScoredClip,
    Scores,
    Stem,
    failed,
)
from transforms.lookahead import LookAheadFn, Overlap
from transforms.metrics_rows import StemFacts, metrics_row
from transforms.storage import Storage, join

STEMS_FOLDER = "stems"


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

    def stem_uri(self, row: ManifestRow, ending: str = "") -> str:
        """Where a row's stem goes; ``ending`` is ``.residual`` for its residual."""
        folder = [f"dataset={partition_value(row.dataset)}"] if row.dataset is not None else []
        name = f"{output_name(row.id)}{ending}.{self.stem_format}"
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

    def expand(self, scored: Any) -> tuple[Any, Any]:
        """Wires the step."""
        outputs = scored | "Write" >> beam.ParDo(
            _WriteStemsFn(self.settings, self.overlap)
        ).with_outputs(failures.FAILED, main="metrics")
        return outputs["metrics"], outputs[failures.FAILED]


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
        return failures.dead(result)
    Metrics.counter("WriteStems", "out").inc()
    duration_s = result.values["duration_s"]
    Metrics.counter("WriteStems", "audio_msec").inc(round(1_000 * duration_s))
    tally.add(done=1, audio_s=duration_s)
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
            message = describe(err, settings.stem_uri(row))
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
    row, storage = stem.query.row, settings.storage
    stem_uri, residual_uri = settings.stem_uri(row), None
    if settings.residual:
        residual_uri = settings.stem_uri(row, ".residual")
        heard = clip.audio
        if len(heard) != len(samples):
            heard = waveforms.to_mono(clip.audio)[None]
        write_audio(storage, residual_uri, heard - samples, rate_hz, settings.stem_format)
    peak = write_audio(storage, stem_uri, samples, rate_hz, settings.stem_format)
    return StemFacts(
        duration_s=num_samples / rate_hz,
        sample_rate_hz=rate_hz,
        n_channels=len(samples),
        n_windows=stem.num_windows,
        peak=peak,
        inference_s=stem.inference_s,
        stem_uri=stem_uri,
        residual_uri=residual_uri,
        stem_format=settings.stem_format,
        input_gain_db=stem.input_gain_db,
    )
