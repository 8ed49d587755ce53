"""Mixtures and references read ahead of the network."""

from __future__ import annotations

import dataclasses
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.metrics.metric import Metrics
from apache_beam.pvalue import PCollection

from transforms.audio.files import READ_ERRORS, describe, error_code
from transforms.audio.mixtures import MixtureAudio, ReadSettings, read_mixture, read_reference
from transforms.elements import (
    Clip,
    Failure,
    LongRecording,
    MixtureQueries,
    RowQuery,
    Samples,
    failed,
)
from transforms.storage import Storage
from transforms.tables import dead_letters
from transforms.threaded import LookAheadFn, Overlap

LONG = "long"
MAX_STEM_VALUES = 64 * 320_000
"""Samples of all stems of one element: 82 MB, 64 queries of 10 s or 10 of 60 s, which the network
encodes once. A mixture with more queries is cut into several, each encoded for itself."""

ReadResult = Clip | LongRecording | Failure


@dataclasses.dataclass(eq=False)
class ReadAudio(beam.PTransform[Any, Any]):
    """Mixtures → clips in memory.

    In: ``MixtureQueries``. Out: ``Clip``; ``LongRecording`` for what is to be streamed; ``Failure``
    for each row whose mixture or reference cannot be used. Every query in exactly one. A file is
    read once for all queries of an element; reading goes on while the network computes.

    Attributes:
        storage: how files are reached.
        settings: how they are read.
        overlap: how many are read ahead.
    """

    storage: Storage
    settings: ReadSettings
    overlap: Overlap

    def expand(
        self, mixtures: PCollection[MixtureQueries]
    ) -> tuple[PCollection[Clip], PCollection[LongRecording], PCollection[Failure]]:
        """Reads several mixtures at once, ahead of the network."""
        read = beam.ParDo(_ReadAudioFn(self.storage, self.settings, self.overlap))
        typed = read.with_output_types(Clip, **{LONG: LongRecording, dead_letters.FAILED: Failure})
        outputs = mixtures | "Read" >> typed.with_outputs(dead_letters.FAILED, LONG, main="clips")
        return outputs["clips"], outputs[LONG], outputs[dead_letters.FAILED]


class _ReadAudioFn(LookAheadFn[MixtureQueries, ReadResult]):
    def __init__(self, storage: Storage, settings: ReadSettings, overlap: Overlap) -> None:
        super().__init__(overlap, "ReadAudio", "read")
        self._storage, self._settings = storage, settings

    def work(self, mixture: MixtureQueries) -> list[ReadResult]:
        return read(mixture, self._storage, self._settings)

    def emit(self, result: ReadResult) -> Any:
        if isinstance(result, Failure):
            return dead_letters.dead(result)
        Metrics.counter("ReadAudio", "out").inc(len(result.queries))
        if isinstance(result, LongRecording):
            return beam.pvalue.TaggedOutput(LONG, result)
        return result


def read(mixture: MixtureQueries, storage: Storage, settings: ReadSettings) -> list[ReadResult]:
    """Reads a mixture and the references of its rows.

    Returns:
        Clips of a bounded size, or one recording to be streamed, and a failure for each row that
        cannot be done.
    """
    first = mixture.queries[0].row
    try:
        audio = read_mixture(first, storage, settings)
    except READ_ERRORS as err:
        code, message = error_code(err), describe(err, _named(first.mixture_uri, first.targets))
        return [failed(query.row, "read", code, message) for query in mixture.queries]
    if audio is None:
        return [LongRecording(queries=mixture.queries)]
    results: list[ReadResult] = []
    ready: list[tuple[RowQuery, Samples | None]] = []
    for query in mixture.queries:
        try:
            ready.append((query, _reference(query, audio, storage, settings)))
        except READ_ERRORS as err:
            uri = query.row.reference_uri or ""
            results.append(failed(query.row, "read", error_code(err), describe(err, uri)))
    at_once = max(1, MAX_STEM_VALUES // audio.model_audio.size)
    for begin in range(0, len(ready), at_once):
        results.append(_clip(audio, ready[begin : begin + at_once]))
    return results


def _named(uri: str | None, targets: tuple[str, ...]) -> str:
    return uri if uri is not None else ", ".join(targets)


def _reference(
    query: RowQuery, audio: MixtureAudio, storage: Storage, settings: ReadSettings
) -> Samples | None:
    if query.row.mixture_uri is None:
        whole = audio.reference
        return np.zeros_like(whole) if query.row.target_absent and whole is not None else whole
    return read_reference(query.row, audio.model_audio.shape[1], storage, settings)


def _clip(audio: MixtureAudio, ready: list[tuple[RowQuery, Samples | None]]) -> Clip:
    return Clip(
        queries=tuple(query for query, _ in ready),
        references=tuple(reference for _, reference in ready),
        audio=audio.audio.samples,
        sample_rate_hz=audio.audio.sample_rate_hz,
        model_audio=audio.model_audio,
        tags=audio.tags,
    )
