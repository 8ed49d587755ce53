"""Failures on their way to ``dead_letters/``: where each row that gave no stem is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics.metric import Metrics
from apache_beam.pvalue import PCollection, TaggedOutput

from manifests.columns import DEAD_LETTER_SCHEMA
from transforms.elements import Failure, TableRow
from transforms.storage import Storage
from transforms.storage.access import redact, secrets_of
from transforms.tables import WriteTable, row_counts

FAILED = "failed"
MAX_MESSAGE_CHARS = 2_000


def dead(failure: Failure) -> TaggedOutput[str, Failure]:
    """A failure as an output of a DoFn, counted by its stage and type."""
    Metrics.counter(failure.stage, "dead").inc()
    Metrics.counter(failure.stage, failure.error_type).inc()
    row_counts.add(failed=1)
    return TaggedOutput(FAILED, failure)


def split(good_or_failed: PCollection[Any], label: str) -> tuple[Any, Any]:
    """Parts a PCollection of elements and failures into one of each.

    Returns:
        The elements, and the failures.
    """
    outputs = good_or_failed | label >> beam.Map(_part).with_outputs(FAILED, main="good")
    return outputs["good"], outputs[FAILED]


def _part(element: Any) -> Any:
    return dead(element) if isinstance(element, Failure) else element


def extra_of(failure: Failure) -> dict[str, str]:
    """Columns of the failed row that the schema does not know."""
    return dict(failure.row.extra) if failure.row is not None else {}


def dead_letter_record(failure: Failure) -> dict[str, Any]:
    """A row of the dead letter table."""
    record: dict[str, Any] = dict.fromkeys(DEAD_LETTER_SCHEMA.names)
    if failure.row is not None:
        record.update(failure.row.to_record())
    record.update(
        stage=failure.stage,
        error_type=failure.error_type,
        message=failure.message[:MAX_MESSAGE_CHARS],
        manifest_uri=failure.manifest_uri,
        manifest_row=failure.manifest_row,
        row_json=failure.row_json,
    )
    return record


def sort_key(failure: Failure) -> str:
    """Orders dead letters as the manifest does."""
    return place_key(failure.manifest_uri, failure.manifest_row)


def place_key(manifest_uri: str | None, manifest_row: int | None) -> str:
    """Orders rows as their manifests do."""
    return f"{manifest_uri or ''}\x00{manifest_row or 0:012d}"


@dataclasses.dataclass(eq=False)
class WriteDeadLetters(beam.PTransform[Any, Any]):
    """Failures → the table of dead letters, without credentials in its messages.

    Out: ``(uri, rows)`` of its files.

    Attributes:
        uri: the folder of the table.
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

    def expand(self, failed: PCollection[Failure]) -> PCollection[tuple[str, int]]:
        """Turns failures into rows of the table and writes them."""
        rows = failed | "Rows" >> beam.Map(
            _dead_letter, secrets_of(self.storage.options)
        ).with_output_types(TableRow)
        if self.kept is not None:
            rows = (rows, self.kept) | "WithKept" >> beam.Flatten()
        return rows | "Write" >> WriteTable(
            uri=self.uri,
            schema=DEAD_LETTER_SCHEMA,
            storage=self.storage,
            prefix=self.prefix,
            names=self.names,
        )


def write_and_count(
    counted: Mapping[str, Any],
    *,
    rows: Any,
    invalid: Any,
    done: Any,
    failed: Sequence[Any],
    letters: WriteDeadLetters,
    counts_uri: str,
) -> PCollection[str]:
    """Ends a job: writes its dead letters, and counts what became of every row.

    Args:
        counted: what else is counted, by the names of :mod:`transforms.tables.row_counts`.
        rows: that can be done.
        invalid: failures of those that cannot.
        done: the results, one a row.
        failed: every PCollection of failures, the invalid ones too.
        letters: where dead letters go.
        counts_uri: where the counts go.

    Returns:
        The URI of the counts.
    """
    all_failed = tuple(failed) | "AllFailed" >> beam.Flatten()
    return {
        **counted,
        row_counts.ROWS: (rows, invalid) | "AllRows" >> beam.Flatten(),
        row_counts.STEMS: done,
        row_counts.DEAD: all_failed,
        row_counts.DEAD_LETTER_FILES: all_failed | "WriteDeadLetters" >> letters,
    } | "WriteRowCounts" >> row_counts.WriteRowCounts(uri=counts_uri, storage=letters.storage)


def _dead_letter(failure: Failure, secrets: Sequence[str]) -> TableRow:
    failure = dataclasses.replace(failure, message=redact(failure.message, secrets))
    record = dead_letter_record(failure)
    return TableRow(
        partition="",
        key=_as_utf8(sort_key(failure)),
        record={name: _as_utf8(value) for name, value in record.items()},
        extra=extra_of(failure),
    )


def _as_utf8(value: Any) -> Any:
    """A value as a table can hold it: names of files need not be UTF-8."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode("utf-8")
