"""Rows that name the same mixture, brought together so that it is read and encoded once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from manifests.row import ManifestRow
from transforms.elements import MixtureRows

MAX_ROWS = 64


def mixture_key(row: ManifestRow) -> str:
    """Equal for rows whose mixtures are the same samples, on any machine."""
    what = (
        row.mixture_uri,
        row.targets if row.mixture_uri is None else (),
        row.interferer_uris if row.mixture_uri is None else (),
        row.levels_db if row.mixture_uri is None else (),
        row.offset_s or 0.0,
        row.duration_s,
    )
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


@dataclasses.dataclass(eq=False)
class GroupByMixture(beam.PTransform[Any, Any]):
    """Rows → ``MixtureRows`` of at most ``max_rows``; only rows cross the shuffles.

    In: ``ManifestRow``. Out: ``MixtureRows``, each row in exactly one. The second shuffle spreads
    the pieces of a mixture that very many rows name, and keeps the reading of audio out of the
    stage that gathers rows.
    """

    max_rows: int = MAX_ROWS

    def __post_init__(self) -> None:
        """Checks the size of a piece."""
        super().__init__()
        if self.max_rows < 1:
            raise ValueError(f"max_rows={self.max_rows}; expected at least 1")

    def expand(self, rows: Any) -> Any:
        """Wires the steps."""
        return (
            rows
            | "Key" >> beam.Map(_keyed).with_output_types(tuple[str, ManifestRow])
            | "ByMixture" >> beam.GroupByKey()
            | "Cut" >> beam.ParDo(_CutFn(self.max_rows)).with_output_types(MixtureRows)
            | "Spread" >> beam.Reshuffle()
        )


def _keyed(row: ManifestRow) -> tuple[str, ManifestRow]:
    return mixture_key(row), row


class _CutFn(beam.DoFn):
    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows

    def process(self, group: tuple[str, Iterable[ManifestRow]]) -> Iterator[Any]:
        piece: list[ManifestRow] = []
        for row in group[1]:
            piece.append(row)
            if len(piece) == self._max_rows:
                yield _piece(piece)
                piece = []
        if piece:
            yield _piece(piece)


def _piece(rows: list[ManifestRow]) -> MixtureRows:
    return MixtureRows(rows=tuple(sorted(rows, key=lambda row: row.id)))
