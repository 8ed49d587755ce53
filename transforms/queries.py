"""Embeds what rows ask for: captions where they are used, sets of example clips once a run.

Rows whose query a system cannot use as it is become dead letters, or are adapted to the nearest
setting that it can use.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import apache_beam as beam
import numpy as np
import torch
from apache_beam.metrics.metric import Metrics
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import GlobalWindow

from manifests.row import DEFAULT_TEXT_WEIGHT, ManifestRow
from model import systems
from model.clap import QueryEncoder, UnknownWordsError
from model.devices import cores, require_working
from model.metrics import Undefined
from model.systems import POLICIES, Capabilities, Policy, QuerySetting, adapt, fuse
from transforms import model_cache
from transforms.audio.files import READ_ERRORS, describe, error_code
from transforms.audio.mixtures import read_mono
from transforms.elements import (
    EmbeddedQuery,
    Failure,
    MixtureQueries,
    MixtureRows,
    Query,
    RowQuery,
    Samples,
    failed,
)
from transforms.storage import Storage
from transforms.tables import dead_letters
from transforms.threaded import LookAhead, Overlap, in_window

UNSUPPORTED = "unsupported_query"
MODEL_ERROR = "model_error"


@dataclasses.dataclass(eq=False)
class AdaptQueries(beam.PTransform[Any, Any]):
    """Rows → rows that the system can run.

    In: ``ManifestRow``. Out: the row as it is, where the system can use all of its query; else,
    with ``nearest``, the row without what it cannot use, so that all that follows (metrics
    included) speaks of the query that was really run; else, and where nothing is left, a failure
    with the reason.

    Attributes:
        capabilities: of the system.
        policy: ``dead_letter`` or ``nearest``.
    """

    capabilities: Capabilities
    policy: Policy = "dead_letter"

    def __post_init__(self) -> None:
        """Checks the policy's name."""
        super().__init__()
        if self.policy not in POLICIES:
            raise ValueError(f"policy={self.policy!r}: expected one of {POLICIES}")

    def expand(
        self, rows: PCollection[ManifestRow]
    ) -> tuple[PCollection[ManifestRow], PCollection[Failure]]:
        """Adapts each row by itself."""
        outputs = rows | "Adapt" >> beam.FlatMap(
            _routed, self.capabilities, self.policy
        ).with_outputs(dead_letters.FAILED, main="rows")
        return outputs["rows"], outputs[dead_letters.FAILED]


def adapted(row: ManifestRow, capabilities: Capabilities, policy: Policy) -> ManifestRow | Failure:
    """The row as it can be run, or why it cannot."""
    setting = setting_of(row)
    adaptation = adapt(capabilities, setting)
    if adaptation.supported:
        return row
    reasons, nearest = "; ".join(adaptation.reasons), adaptation.nearest
    if capabilities.needs_reference and not setting.reference:
        message = f"the model cannot run this row: {reasons}; give reference_uri, or sources to mix"
        return failed(row, "separate", "no_reference", message)
    if policy == "dead_letter" or nearest is None:
        message = f"the model cannot use this query: {reasons}"
        return failed(row, "embed_queries", UNSUPPORTED, message)
    return dataclasses.replace(
        row,
        manifest_sha256=row.sha256,
        positive_text=nearest.positive_text,
        negative_text=nearest.negative_text,
        positive_audio_uris=row.positive_audio_uris if nearest.positive_audio else (),
        negative_audio_uris=row.negative_audio_uris if nearest.negative_audio else (),
    )


def setting_of(row: ManifestRow) -> QuerySetting:
    """What the query of a row is made of."""
    return QuerySetting(
        positive_text=row.positive_text,
        negative_text=row.negative_text,
        positive_audio=bool(row.positive_audio_uris),
        negative_audio=bool(row.negative_audio_uris),
        reference=row.reference_uri is not None or row.mixture_uri is None,
    )


def _routed(row: ManifestRow, capabilities: Capabilities, policy: Policy) -> Iterator[Any]:
    result = adapted(row, capabilities, policy)
    yield dead_letters.dead(result) if isinstance(result, Failure) else result


Shot = Samples | EmbeddedQuery
"""An example clip float32[T], mono at the encoder's rate, or why it cannot be used."""
_EMBED_ERRORS = (RuntimeError, ValueError, MemoryError)
_PROBE = "a sound"


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
    """Makes the queries of a row: text and example clips, positive and negative."""

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
class EmbedExamples(beam.PTransform[Any, Any]):
    """The distinct sets of example clips that rows name, each embedded once.

    In: ``ManifestRow``. Out: ``(key, EmbeddedQuery)``, one for each distinct set; one that cannot
    be embedded says why. URIs cross the shuffle, samples do not. Captions are not embedded here:
    :class:`AttachQueries` does that where they are used.

    Attributes:
        encoder: the scorer, or the CLAP of the model, as which it is given.
        storage: how example clips are reached.
        max_values: samples of one example clip.
        alone: whether nothing else of the model is needed on these workers.
        batch_size: sets whose clips are read ahead.
    """

    encoder: model_cache.ScorerChoice
    storage: Storage
    max_values: int
    alone: bool = False
    batch_size: int = 32

    def expand(self, rows: PCollection[ManifestRow]) -> PCollection[tuple[str, EmbeddedQuery]]:
        """Finds the distinct sets and embeds each once."""
        return (
            rows
            | "Asks" >> beam.FlatMap(_keyed_examples).with_output_types(tuple[str, Query])
            | "Distinct" >> beam.CombinePerKey(_first)
            | "Batch"
            >> beam.BatchElements(min_batch_size=self.batch_size, max_batch_size=self.batch_size)
            | "Embed" >> beam.ParDo(_EmbedFn(self)).with_output_types(tuple[str, EmbeddedQuery])
        )


def _keyed_examples(row: ManifestRow) -> list[tuple[str, Query]]:
    return [(query.key, query) for query in asks_of(row) if query.audio_uris]


def _first(queries: Iterable[Query]) -> Query:
    return next(iter(queries))


class _EmbedFn(beam.DoFn):
    _encoder: QueryEncoder
    _ahead: LookAhead[str, Shot]

    def __init__(self, step: EmbedExamples) -> None:
        self._choice, self._storage, self._max_values = step.encoder, step.storage, step.max_values
        self._alone = step.alone
        self._queries = Metrics.counter("EmbedExamples", "in")
        self._took = Metrics.distribution("EmbedExamples", "embed_msec")

    def setup(self) -> None:
        self._encoder = model_cache.load_scorer(self._choice, alone=self._alone)
        self._ahead = LookAhead(self._read, Overlap(), "EmbedExamples", "read")

    def teardown(self) -> None:
        self._ahead.close()

    def _read(self, uri: str) -> Shot:
        return read_shot(uri, self._storage, self._encoder.sample_rate_hz, self._max_values)

    def process(self, batch: Sequence[tuple[str, Query]]) -> list[tuple[str, EmbeddedQuery]]:
        started_s = time.perf_counter()
        embedded = list(self._embedded(batch))
        self._queries.inc(len(batch))
        self._took.update(round(1_000 * (time.perf_counter() - started_s)))
        return embedded

    def _embedded(self, batch: Sequence[tuple[str, Query]]) -> Iterator[tuple[str, EmbeddedQuery]]:
        shots = self._ahead.map(uri for _, query in batch for uri in query.audio_uris)
        for key, query in batch:
            own = itertools.islice(shots, len(query.audio_uris))
            yield key, embed_query_examples(self._encoder, query.audio_uris, own)
            for _ in own:  # where one failed, the rest stand before those of the next query
                pass


def embed_query_texts(encoder: QueryEncoder, texts: Sequence[str]) -> list[EmbeddedQuery]:
    """Embeds captions; where a batch fails, each by itself."""
    if not texts:
        return []
    try:
        return [_as_record(vector) for vector in systems.embed_texts(encoder, texts)]
    except _EMBED_ERRORS as err:
        if len(texts) == 1:
            if isinstance(err, UnknownWordsError):
                return [EmbeddedQuery(error_type=UNSUPPORTED, message=str(err))]
            _require_working(encoder, err)
            return [EmbeddedQuery(error_type=MODEL_ERROR, message=f"{texts[0][:200]!r}: {err}")]
    return [result for text in texts for result in embed_query_texts(encoder, [text])]


def read_shot(uri: str, storage: Storage, rate_hz: int, max_values: int) -> Shot:
    """An example clip as float32[T] at ``rate_hz``, or why it cannot be used."""
    try:
        return read_mono(uri, storage, rate_hz, max_values, is_example=True)
    except READ_ERRORS as err:
        return EmbeddedQuery(error_type=error_code(err), message=describe(err, uri))


def embed_query_examples(
    encoder: QueryEncoder, uris: Sequence[str], shots: Iterator[Shot]
) -> EmbeddedQuery:
    """Embeds the example clips of one query and pools them.

    Args:
        encoder: hears them.
        uris: of the clips, for messages.
        shots: the clips in the same order, as :func:`read_shot` gives them.
    """
    num_taken = 0

    def usable() -> Iterator[Samples]:
        nonlocal num_taken
        for shot in shots:
            if isinstance(shot, EmbeddedQuery):
                raise _UnusableShotError(shot)
            num_taken += 1
            yield shot

    try:
        return _as_record(systems.embed_examples(encoder, usable()))
    except _UnusableShotError as err:
        return err.reason
    except _EMBED_ERRORS as err:
        _require_working(encoder, err)
        first = max(0, num_taken - 1) // systems.EXAMPLES_AT_ONCE * systems.EXAMPLES_AT_ONCE
        return EmbeddedQuery(error_type=MODEL_ERROR, message=f"{uris[first]}: {err}")


def _require_working(encoder: QueryEncoder, error: Exception) -> None:
    """See :func:`model.devices.require_working`."""
    require_working(lambda: systems.embed_texts(encoder, [_PROBE]), error)


class _UnusableShotError(Exception):
    """An example clip cannot be used, for a reason that its query is to give."""

    def __init__(self, reason: EmbeddedQuery) -> None:
        super().__init__(reason.message)
        self.reason = reason


def _as_record(vector: Samples) -> EmbeddedQuery:
    return EmbeddedQuery(embedding=vector.astype("<f4").tobytes())


Examples = Mapping[str, Iterable[EmbeddedQuery]]
"""A side input that is read by key: a worker asks for the sets of example clips that it needs."""


@dataclasses.dataclass(eq=False)
class AttachQueries(beam.PTransform[Any, Any]):
    """``MixtureRows`` → ``MixtureQueries``: the rows with the embeddings of what they ask for.

    In: ``MixtureRows``; what :class:`EmbedExamples` gives for the model; and for the scorer. Out:
    the mixtures with those rows whose queries could be embedded, and the failures. Captions are
    embedded here, on the machines that use them, with the network that is there: what is shuffled
    before is the text. A worker remembers the last captions, so that one that many rows ask for is
    embedded about once a worker, and of captions that are all different none is looked up anywhere.

    Attributes:
        encoder: the CLAP of the model; None where nothing is separated.
        scorer: the CLAP that gives the CLAPScores; None for none.
        num_threads: that embed captions on a CPU; 0: one for each core.
        batch_size: captions, or mixtures, that are gathered: on a GPU for one forward pass.
    """

    encoder: model_cache.ScorerChoice | None
    scorer: model_cache.ScorerChoice | None
    num_threads: int = 0
    batch_size: int = 32

    def expand(
        self, inputs: tuple[PCollection[MixtureRows], PCollection[Any], PCollection[Any]]
    ) -> tuple[PCollection[MixtureQueries], PCollection[Failure]]:
        """Embeds the captions of a few mixtures at a time, and looks up example clips."""
        mixtures, examples, by_scorer = inputs
        outputs = mixtures | "Attach" >> beam.ParDo(
            _AttachFn(self), beam.pvalue.AsMultiMap(examples), beam.pvalue.AsMultiMap(by_scorer)
        ).with_outputs(dead_letters.FAILED, main="queries")
        return outputs["queries"], outputs[dead_letters.FAILED]


class Remembered:
    """Embeddings by key, of which the longest unused are forgotten; a thread's own."""

    def __init__(self, max_queries: int = 10_000) -> None:
        """2 KB each: 20 MB."""
        self._max_queries = max_queries
        self._found: OrderedDict[str, EmbeddedQuery] = OrderedDict()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._found)

    def get(self, key: str) -> EmbeddedQuery | None:
        """The embedding, which is then the last to be forgotten."""
        if key in self._found:
            self._found.move_to_end(key)
        return self._found.get(key)

    def put(self, key: str, embedded: EmbeddedQuery) -> None:
        """Remembers an embedding."""
        self._found[key] = embedded
        if len(self._found) > self._max_queries:
            self._found.popitem(last=False)


class QueryBook:
    """The embeddings that one encoder gives: of captions by itself, of example clips as looked up.

    Not for several threads.
    """

    def __init__(self, encoder: QueryEncoder, pool: ThreadPoolExecutor | None) -> None:
        """An encoder, and the threads that it embeds captions on where it is on a CPU."""
        self._encoder, self._pool = encoder, pool
        self._remembered = Remembered()

    def embed(self, queries: Iterable[Query]) -> dict[Query, EmbeddedQuery]:
        """The embeddings of captions, of which those that are not remembered are computed."""
        found = {query: self._remembered.get(query.key) for query in dict.fromkeys(queries)}
        new = [query for query, known in found.items() if known is None]
        for query, embedded in zip(
            new, self._embed_texts([q.text or "" for q in new]), strict=True
        ):
            self._remembered.put(query.key, embedded)
            found[query] = embedded
        return {query: each for query, each in found.items() if each is not None}

    def look_up(self, query: Query, table: Examples) -> EmbeddedQuery:
        """The embedding of example clips."""
        known = self._remembered.get(query.key)
        if known is None:
            known = next(iter(table[query.key]))
            self._remembered.put(query.key, known)
        return known

    def _embed_texts(self, texts: Sequence[str]) -> list[EmbeddedQuery]:
        if self._pool is None:
            return embed_query_texts(self._encoder, texts)
        # Each by itself: on a CPU the last bits of a product depend on what else is in the batch.
        found = self._pool.map(lambda text: embed_query_texts(self._encoder, [text]), texts)
        return [embedding for (embedding,) in found]


@dataclasses.dataclass(frozen=True, slots=True)
class _Waiting:
    """A mixture whose captions are still to be embedded, with its example clips by role."""

    mixture: MixtureRows
    examples: Mapping[str, Mapping[Query, EmbeddedQuery]]


class _AttachFn(beam.DoFn):
    _books: Mapping[str, QueryBook]
    _pool: ThreadPoolExecutor | None

    def __init__(self, step: AttachQueries) -> None:
        choices = {"model": step.encoder, "scorer": step.scorer}
        self._choices = {role: choice for role, choice in choices.items() if choice is not None}
        self._num_threads, self._batch_size = step.num_threads, step.batch_size
        self._captions = Metrics.counter("AttachQueries", "captions")
        self._took = Metrics.distribution("AttachQueries", "embed_msec")
        self._waiting: list[_Waiting] = []
        self._texts: dict[Query, None] = {}

    def setup(self) -> None:
        on_cpu = next(iter(self._choices.values())).model.resolved_device() == "cpu"
        self._pool = ThreadPoolExecutor(self._num_threads or cores(), "embed") if on_cpu else None
        # One book where model and scorer are the same CLAP: each caption is embedded once.
        books = {
            choice: QueryBook(model_cache.load_scorer(choice), self._pool)
            for choice in dict.fromkeys(self._choices.values())
        }
        self._books = {role: books[choice] for role, choice in self._choices.items()}

    def teardown(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def start_bundle(self) -> None:
        self._waiting, self._texts = [], {}

    def process(
        self, mixture: MixtureRows, examples: Examples, by_scorer: Examples
    ) -> Iterator[Any]:
        asks = [query for row in mixture.rows for query in asks_of(row)]
        tables = {"model": examples, "scorer": by_scorer}
        found = {
            role: {q: book.look_up(q, tables[role]) for q in asks if q.audio_uris}
            for role, book in self._books.items()
        }
        self._waiting.append(_Waiting(mixture, found))
        texts = [query for query in asks if query.text is not None]
        self._captions.inc(len(texts))
        self._texts |= dict.fromkeys(texts)
        if max(len(self._texts), len(self._waiting)) >= self._batch_size:
            yield from self._flush()

    def finish_bundle(self) -> Iterator[Any]:
        window = GlobalWindow()
        for result in self._flush():
            yield in_window(result, window)

    def _flush(self) -> Iterator[Any]:
        waiting, texts = self._waiting, list(self._texts)
        self._waiting, self._texts = [], {}
        started_s = time.perf_counter()
        captions = {role: book.embed(texts) for role, book in self._books.items()}
        self._took.update(round(1_000 * (time.perf_counter() - started_s)))
        for each in waiting:
            found = {role: {**captions[role], **each.examples[role]} for role in self._books}
            yield from _attached(each.mixture, found)


def _attached(
    mixture: MixtureRows, found: Mapping[str, Mapping[Query, EmbeddedQuery]]
) -> Iterator[Any]:
    queries = []
    for row in mixture.rows:
        result = attach(row, found.get("model"), found.get("scorer"))
        if isinstance(result, Failure):
            yield dead_letters.dead(result)
        else:
            queries.append(result)
    if queries:
        yield MixtureQueries(queries=tuple(queries))


def attach(
    row: ManifestRow,
    embedded: Mapping[Query, EmbeddedQuery] | None,
    by_scorer: Mapping[Query, EmbeddedQuery] | None,
) -> RowQuery | Failure:
    """A row with its condition, and with what its stem is to resemble.

    Args:
        row: the row.
        embedded: what the row asks for, by the model; None where nothing is separated.
        by_scorer: the same by the scorer; None where nothing is scored. What only the scorer
            cannot embed leaves scores undefined; example clips that it cannot read fail the row,
            so that they are read again.
    """
    asks = asks_of(row)
    for table in (embedded, by_scorer):
        for result in () if table is None else [table[query] for query in asks]:
            is_scored_alone = table is not embedded and result.error_type in _NOT_EMBEDDED
            if result.error_type is not None and not is_scored_alone:
                return failed(row, "embed_queries", result.error_type, result.message)
    positive = negative = None
    if embedded is not None:
        positive = _fused(asks.positive_text, asks.positive_audio, embedded, row.text_weight)
        negative = _fused(asks.negative_text, asks.negative_audio, embedded, row.text_weight)
        if positive is None and negative is None:
            raise ValueError(f"{row.id}: has no query; expected a row that was validated")
    present = positive if positive is not None else negative
    absent = np.zeros(1, np.float32) if present is None else np.zeros_like(present)
    scored = by_scorer or {}
    return RowQuery(
        row=row,
        positive=absent if positive is None else positive,
        negative=absent if negative is None else negative,
        scorer_positive=_spoken(asks.positive_text, asks.positive_audio, scored),
        scorer_negative=_spoken(asks.negative_text, asks.negative_audio, scored),
    )


def _fused(
    text: Query | None,
    audio: Query | None,
    found: Mapping[Query, EmbeddedQuery],
    text_weight: float | None,
) -> Samples | None:
    weight = DEFAULT_TEXT_WEIGHT if text_weight is None else text_weight
    parts = [None if query is None else _tensor(found[query]) for query in (text, audio)]
    vector = fuse(*parts, text_weight=weight)
    return None if vector is None else vector.numpy()


def _spoken(
    text: Query | None, audio: Query | None, found: Mapping[Query, EmbeddedQuery]
) -> Samples | Undefined | None:
    """Picks the embedding for CLAPScore: that of the text, or else that of the example clips."""
    query = text or audio
    if query is None or query not in found:
        return None
    reason = _NOT_EMBEDDED.get(found[query].error_type or "")
    return _tensor(found[query]).numpy() if reason is None else reason


_NOT_EMBEDDED: Final[Mapping[str, Undefined]] = {
    UNSUPPORTED: Undefined.UNKNOWN_TO_SCORER,
    MODEL_ERROR: Undefined.SCORER_FAILED,
}
"""Why a scorer has no embedding of a query that it was given, by the code of the error."""


def _tensor(query: EmbeddedQuery) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(query.embedding, dtype="<f4").astype(np.float32))
