"""Failures as a table that is itself a manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from manifests.schema import DEAD_LETTER_SCHEMA
from pipelines.plan import DEAD_LETTERS
from transforms import failures
from transforms.elements import Failure
from transforms.redaction import redact, secrets_of
from transforms.storage import Storage, join
from transforms.tables import TableRow, WriteTable


@dataclasses.dataclass(eq=False)
class WriteDeadLetters(beam.PTransform[Any, Any]):
    """Failures → the table of dead letters, without credentials in its messages.

    Out: ``(uri, rows)`` of its files.
    """

    uri: str
    storage: Storage
    prefix: str = "part-000"

    def expand(self, failed: Any) -> Any:
        """Wires the steps."""
        return (
            failed
            | "Rows"
            >> beam.Map(_dead_letter, secrets_of(self.storage.options)).with_output_types(TableRow)
            | "Write"
            >> WriteTable(
                uri=join(self.uri, DEAD_LETTERS),
                schema=DEAD_LETTER_SCHEMA,
                storage=self.storage,
                prefix=self.prefix,
            )
        )


def _dead_letter(failure: Failure, secrets: Sequence[str]) -> TableRow:
    failure = dataclasses.replace(failure, message=redact(failure.message, secrets))
    return TableRow(
        partition="",
        key=failures.sort_key(failure),
        record=failures.record_of(failure),
        extra=failures.extra_of(failure),
    )
