"""Embedded queries joined to the rows that ask for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import torch

from manifests.row import DEFAULT_TEXT_WEIGHT, ManifestRow
from model.conditioning import fuse
from transforms import failures
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
from transforms.queries import asks_of

Embedded = Mapping[str, Iterable[EmbeddedQuery]]


class AttachQueriesFn(beam.DoFn):
    """``MixtureRows`` → ``MixtureQueries``: looks up the embeddings of each row.

    The embeddings are a side input that is read by key: a worker holds those it used, not all.
    """

    def __init__(self, scores: bool) -> None:
        """Whether rows are to be scored by CLAPScore."""
        self._scores = scores

    def process(self, mixture: MixtureRows, embedded: Embedded, by_scorer: Embedded) -> Any:
        """Yields the mixture with the rows whose queries could be embedded, and the failures."""
        scorer = by_scorer if self._scores else None
        queries = []
        for row in mixture.rows:
            result = attach(row, embedded, scorer)
            if isinstance(result, Failure):
                yield failures.dead(result)
            else:
                queries.append(result)
        if queries:
            yield MixtureQueries(queries=tuple(queries))


def attach(row: ManifestRow, embedded: Embedded, scorer: Embedded | None) -> RowQuery | Failure:
    """A row with its condition, and with what its stem is to resemble."""
    asks = asks_of(row)
    found: dict[str, dict[Query, EmbeddedQuery]] = {"model": {}, "scorer": {}}
    tables = {"model": embedded} if scorer is None else {"model": embedded, "scorer": scorer}
    for role, table in tables.items():
        for query in asks:
            result = next(iter(table[query.key]))
            if result.error_type is not None:
                return failed(row, "embed_queries", result.error_type, result.message)
            found[role][query] = result
    positive, negative = (
        _fused(text, audio, found["model"], row.text_weight)
        for text, audio in (
            (asks.positive_text, asks.positive_audio),
            (asks.negative_text, asks.negative_audio),
        )
    )
    present = positive if positive is not None else negative
    if present is None:
        raise ValueError(f"{row.id}: has no query; expected a row that was validated")
    absent = np.zeros_like(present)
    return RowQuery(
        row=row,
        positive=absent if positive is None else positive,
        negative=absent if negative is None else negative,
        scorer_positive=_spoken(asks.positive_text, asks.positive_audio, found["scorer"]),
        scorer_negative=_spoken(asks.negative_text, asks.negative_audio, found["scorer"]),
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
) -> Samples | None:
    """What CLAPScore compares with: the words; the example clips where there are none."""
    query = text or audio
    return _tensor(found[query]).numpy() if query is not None and query in found else None


def _tensor(query: EmbeddedQuery) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(query.embedding, dtype="<f4").astype(np.float32))
