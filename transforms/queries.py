"""What rows ask for: each distinct query is embedded once a run."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import apache_beam as beam
import numpy as np
import torch
from apache_beam.metrics.metric import Metrics

from manifests.row import ManifestRow
from model.clap import QueryEncoder
from model.conditioning import pool_shots
from model.levels import at_level
from transforms import models
from transforms.audio_io import READ_ERRORS, describe, error_code, require_sound
from transforms.cores import cores
from transforms.elements import (
    EmbeddedQuery,
    Query,
)
from transforms.lookahead import LookAhead, Overlap
from transforms.mixtures import read_mono
from transforms.storage import Storage

Shot = torch.Tensor | EmbeddedQuery
"""An example clip, or why it cannot be used."""
_EMBED_ERRORS = (RuntimeError, ValueError, MemoryError)
_SHOTS_AT_ONCE = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RowAsks:
    """The queries of a row: a text and example clips, for either polarity."""

    positive_text: Query | None
    positive_audio: Query | None
    negative_text: Query | None
    negative_audio: Query | None

    def __iter__(self) -> Iterator[Query]:
        """Those that there are."""
        for field in dataclasses.fields(self):
            query = getattr(self, field.name)
            if query is not None:
                yield query


def asks_of(row: ManifestRow) -> RowAsks:
    """What a row asks for."""

    def text(value: str | None) -> Query | None:
        return None if value is None else Query(text=value)

    def audio(uris: tuple[str, ...]) -> Query | None:
        return Query(audio_uris=uris) if uris else None

    return RowAsks(
        positive_text=text(row.positive_text),
        positive_audio=audio(row.positive_audio_uris),
        negative_text=text(row.negative_text),
        negative_audio=audio(row.negative_audio_uris),
    )


@dataclasses.dataclass(eq=False)
class EmbedQueries(beam.PTransform[Any, Any]):
    """The distinct queries of rows, embedded.

    In: ``ManifestRow``. Out: ``(key, EmbeddedQuery)``, one for each distinct query; one that cannot
    be embedded says why. Query text and URIs cross the shuffle, samples do not.

    Attributes:
        encoder: the scorer, or the CLAP of the model, as which it is given.
        storage: how example clips are reached.
        max_values: samples of one example clip.
        num_threads: that embed texts on a CPU; 0: one for each core.
        batch_size: queries that are read ahead; on a GPU also texts in one forward pass.
    """

    encoder: models.ScorerChoice
    storage: Storage
    max_values: int
    num_threads: int = 0
    batch_size: int = 32

    def expand(self, rows: Any) -> Any:
        """Wires the steps."""
        return (
            rows
            | "Asks" >> beam.FlatMap(_keyed_asks).with_output_types(tuple[str, Query])
            | "Distinct" >> beam.CombinePerKey(_first)
            | "Spread" >> beam.Reshuffle()
            | "Batch"
            >> beam.BatchElements(min_batch_size=self.batch_size, max_batch_size=self.batch_size)
            | "Embed" >> beam.ParDo(_EmbedFn(self)).with_output_types(tuple[str, EmbeddedQuery])
        )


def _keyed_asks(row: ManifestRow) -> list[tuple[str, Query]]:
    return [(query.key, query) for query in asks_of(row)]


def _first(queries: Iterable[Query]) -> Query:
    return next(iter(queries))


class _EmbedFn(beam.DoFn):
    _encoder: QueryEncoder
    _ahead: LookAhead[str, Shot]
    _pool: ThreadPoolExecutor | None

    def __init__(self, step: EmbedQueries) -> None:
        self._choice, self._storage, self._max_values = step.encoder, step.storage, step.max_values
        self._num_threads, self._batch_size = step.num_threads, step.batch_size
        self._queries = Metrics.counter("EmbedQueries", "in")
        self._took = Metrics.distribution("EmbedQueries", "embed_msec")

    def setup(self) -> None:
        self._encoder = models.load_scorer(self._choice)
        self._ahead = LookAhead(self._read, Overlap(), "EmbedQueries", "read")
        on_cpu = self._choice.model.resolved_device() == "cpu"
        self._pool = ThreadPoolExecutor(self._num_threads or cores(), "embed") if on_cpu else None

    def teardown(self) -> None:
        self._ahead.close()
        if self._pool is not None:
            self._pool.shutdown()

    def _read(self, uri: str) -> Shot:
        return read_shot(uri, self._storage, self._encoder.sample_rate_hz, self._max_values)

    def process(self, batch: Sequence[tuple[str, Query]]) -> list[tuple[str, EmbeddedQuery]]:
        started_s = time.perf_counter()
        embedded = list(self._embedded(batch))
        self._queries.inc(len(batch))
        self._took.update(round(1_000 * (time.perf_counter() - started_s)))
        return embedded

    def _embedded(self, batch: Sequence[tuple[str, Query]]) -> Iterator[tuple[str, EmbeddedQuery]]:
        texts = [(key, query.text) for key, query in batch if query.text is not None]
        found = self._embed_texts([text for _, text in texts])
        yield from zip((key for key, _ in texts), found, strict=True)
        examples = [(key, query.audio_uris) for key, query in batch if query.audio_uris]
        shots = self._ahead.map(uri for _, uris in examples for uri in uris)
        for key, uris in examples:
            own = itertools.islice(shots, len(uris))
            yield key, embed_examples(self._encoder, uris, own)
            for _ in own:  # where one failed, the rest stand before those of the next query
                pass

    def _embed_texts(self, texts: Sequence[str]) -> list[EmbeddedQuery]:
        if self._pool is None:
            return embed_texts(self._encoder, texts)
        # Each by itself: on a CPU the last bits of a product depend on what else is in the batch.
        found = self._pool.map(lambda text: embed_texts(self._encoder, [text]), texts)
        return [embedding for (embedding,) in found]


def embed_texts(encoder: QueryEncoder, texts: Sequence[str]) -> list[EmbeddedQuery]:
    """Embeds captions; where a batch fails, each by itself."""
    if not texts:
        return []
    try:
        with torch.inference_mode():
            return [_embedded(row) for row in encoder.embed_text(texts)]
    except _EMBED_ERRORS as err:
        if len(texts) == 1:
            return [EmbeddedQuery(error_type="model_error", message=f"{texts[0][:200]!r}: {err}")]
    return [result for text in texts for result in embed_texts(encoder, [text])]


def read_shot(uri: str, storage: Storage, rate_hz: int, max_values: int) -> Shot:
    """An example clip as float32[T] at ``rate_hz``, or why it cannot be used."""
    try:
        clip = read_mono(uri, storage, rate_hz, max_values)
        require_sound(clip, uri)
    except READ_ERRORS as err:
        return EmbeddedQuery(error_type=error_code(err), message=describe(err, uri))
    return torch.from_numpy(clip)


def embed_examples(
    encoder: QueryEncoder, uris: Sequence[str], shots: Iterator[Shot]
) -> EmbeddedQuery:
    """Embeds the example clips of one query and pools them.

    Args:
        encoder: hears them.
        uris: of the clips, for messages.
        shots: the clips in the same order, as :func:`read_shot` gives them.
    """
    found: list[torch.Tensor] = []
    for begin in range(0, len(uris), _SHOTS_AT_ONCE):
        clips = []
        for shot in itertools.islice(shots, _SHOTS_AT_ONCE):
            if isinstance(shot, EmbeddedQuery):
                return shot
            clips.append(_heard(shot, encoder))
        try:
            with torch.inference_mode():
                found.extend(encoder.embed_audio(clips))
        except _EMBED_ERRORS as err:
            return EmbeddedQuery(error_type="model_error", message=f"{uris[begin]}: {err}")
    return _embedded(pool_shots(torch.stack(found)))


def _heard(shot: torch.Tensor, encoder: QueryEncoder) -> torch.Tensor:
    """An example clip at the encoder's level: a query does not depend on how loud it is."""
    level_dbfs = encoder.input_level_dbfs
    return torch.from_numpy(at_level(shot.numpy(), encoder.sample_rate_hz, level_dbfs))


def _embedded(vector: torch.Tensor) -> EmbeddedQuery:
    values = vector.detach().float().cpu().numpy().astype("<f4")
    if not np.isfinite(values).all():
        return EmbeddedQuery(error_type="model_error", message="the embedding is not finite")
    return EmbeddedQuery(embedding=values.tobytes())
