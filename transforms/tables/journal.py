"""Metrics that survive the process: written in small files while the job runs.

The tables of a run are written when all rows are there. What a killed run had finished is found in
its journal, and ``--resume`` goes on from there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow

from manifests.columns import METRICS_SCHEMA, with_extra
from transforms.elements import MetricsRow
from transforms.storage import Storage, join
from transforms.tables import parquet_bytes, sorted_table
from transforms.tables.metrics_rows import table_row
from transforms.threaded import in_window


@dataclasses.dataclass(eq=False)
class WriteJournal(beam.PTransform[Any, Any]):
    """Keeps rows as they come.

    In: ``MetricsRow``. Out: the same rows, each after it was written. A file's name follows from
    the ids in it; a bundle that is tried again and cut otherwise leaves rows twice, and readers
    take one of each id.

    Attributes:
        uri: folder of the journal.
        storage: how it is reached.
        interval_s: rows wait at most about so long, while others come.
        max_rows: rows in one file.
    """

    uri: str
    storage: Storage
    interval_s: float = 2.0
    max_rows: int = 1_000

    def expand(self, rows: Any) -> Any:
        """Wires the step."""
        return rows | "Write" >> beam.ParDo(
            _JournalFn(self.uri, self.storage, self.interval_s, self.max_rows)
        ).with_output_types(MetricsRow)


class _JournalFn(beam.DoFn):
    def __init__(self, uri: str, storage: Storage, interval_s: float, max_rows: int) -> None:
        self._uri, self._storage = uri, storage
        self._interval_s, self._max_rows = interval_s, max_rows
        self._rows: list[MetricsRow] = []
        self._written_at_s = float("-inf")

    def start_bundle(self) -> None:
        self._rows = []

    def process(self, row: MetricsRow) -> Iterator[MetricsRow]:
        self._rows.append(row)
        waited_s = time.monotonic() - self._written_at_s
        if len(self._rows) >= self._max_rows or waited_s >= self._interval_s:
            yield from self._flush()

    def finish_bundle(self) -> Iterator[Any]:
        window = GlobalWindow()
        for row in self._flush():
            yield in_window(row, window)

    def _flush(self) -> list[MetricsRow]:
        rows, self._rows = self._rows, []
        if rows:
            write_piece(self._storage, self._uri, rows)
            self._written_at_s = time.monotonic()
        return rows


def write_piece(storage: Storage, uri: str, rows: list[MetricsRow]) -> None:
    """Writes one file of the journal, once the files that its rows name will last."""
    files = (row.values[name] for row in rows for name in ("stem_uri", "residual_uri"))
    storage.settle(uri for uri in files if uri is not None)
    schema = with_extra(METRICS_SCHEMA, {name for row in rows for name in row.extra})
    ids = sorted(row.id for row in rows)
    name = hashlib.sha256("\x00".join(ids).encode("utf-8", "surrogatepass")).hexdigest()[:32]
    table = sorted_table((table_row(row) for row in rows), schema)
    storage.write_bytes(join(uri, f"{name}.parquet"), parquet_bytes(table))
