"""Rows that name the same mixture, brought together so that it is read and encoded once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.util import ReshufflePerKey

from manifests.audio_formats import FROM_START_SUFFIXES
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
    stage that gathers rows. Parts of one hour of a recording that has to be decoded from its start
    stay together, so that one worker decodes it once for all of them.
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
            | "Spread" >> _Spread()
        )


class _Spread(beam.PTransform[Any, Any]):
    """Pieces → the same pieces, on whatever worker their key falls to."""

    def expand(self, pieces: Any) -> Any:
        return (
            pieces
            | "Key" >> beam.Map(_with_place).with_output_types(tuple[str, MixtureRows])
            | "ReshufflePerKey" >> ReshufflePerKey()
            | "NoKey" >> beam.Map(_without_place).with_output_types(MixtureRows)
        )


def _with_place(piece: MixtureRows) -> tuple[str, MixtureRows]:
    return spread_key(piece), piece


def _without_place(keyed: tuple[str, MixtureRows]) -> MixtureRows:
    return keyed[1]


def spread_key(piece: MixtureRows) -> str:
    """Equal for parts of one hour of a recording whose format is decoded from the start.

    The format is that of the name: a wrong guess costs time and changes no result.
    """
    row = piece.rows[0]
    name = (row.mixture_uri or "").lower()
    if row.offset_s is None or not name.endswith(FROM_START_SUFFIXES):
        return hashlib.sha256(f"{mixture_key(row)}/{row.id}".encode()).hexdigest()
    return f"{row.mixture_uri}#{int(row.offset_s // 3_600)}"


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
