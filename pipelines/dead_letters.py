"""Failures as a table that is itself a manifest."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import pyarrow.parquet as pq

from manifests.columns import DEAD_LETTER_SCHEMA
from pipelines.plan import DEAD_LETTERS
from terminal import escaping
from transforms.elements import Failure
from transforms.storage import Storage, join
from transforms.storage.redaction import redact, secrets_of
from transforms.tables import TableRow, WriteTable, dead_letters
from transforms.tables.row_counts import Books

_SHOWN_FILES = 1
"""Of how many files the rows are looked through for examples; they can be millions."""


@dataclasses.dataclass(eq=False)
class WriteDeadLetters(beam.PTransform[Any, Any]):
    """Failures → the table of dead letters, without credentials in its messages.

    Out: ``(uri, rows)`` of its files.

    Attributes:
        uri: the output folder.
        storage: how it is reached.
        prefix: of the files' names.
        names: PCollection of ``extra_…`` columns; None: those of the rows.
        kept: PCollection of ``TableRow``: dead letters of earlier attempts that stay.
    """

    uri: str
    storage: Storage
    prefix: str = "part-000"
    names: Any = None
    kept: Any = None

    def expand(self, failed: Any) -> Any:
        """Wires the steps."""
        rows = failed | "Rows" >> beam.Map(
            _dead_letter, secrets_of(self.storage.options)
        ).with_output_types(TableRow)
        if self.kept is not None:
            rows = (rows, self.kept) | "WithKept" >> beam.Flatten()
        return rows | "Write" >> WriteTable(
            uri=join(self.uri, DEAD_LETTERS),
            schema=DEAD_LETTER_SCHEMA,
            storage=self.storage,
            prefix=self.prefix,
            names=self.names,
        )


def _dead_letter(failure: Failure, secrets: Sequence[str]) -> TableRow:
    failure = dataclasses.replace(failure, message=redact(failure.message, secrets))
    return TableRow(
        partition="",
        key=dead_letters.sort_key(failure),
        record=dead_letters.record_of(failure),
        extra=dead_letters.extra_of(failure),
    )


def reasons(books: Books, storage: Storage, output: str) -> list[str]:
    """A line for each reason of which rows failed: how many, and what was said of one of them."""
    examples: dict[str, str] = {}
    for uri in storage.list_files(join(output, DEAD_LETTERS), ".parquet")[:_SHOWN_FILES]:
        columns = ["stage", "error_type", "message"]
        table = pq.read_table(io.BytesIO(storage.read_bytes(uri)), columns=columns)
        for stage, error_type, message in zip(*table.to_pydict().values(), strict=True):
            examples.setdefault(f"{stage}/{error_type}", message)
    return [
        f"  {count} of {reason}"
        + (f": {escaping.one_line(examples[reason])}" if reason in examples else "")
        for reason, count in books.by_reason.items()
    ]
