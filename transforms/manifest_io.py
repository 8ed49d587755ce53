"""Manifest files → rows, and the decision which of them are to be done."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
from apache_beam.metrics.metric import Metrics

from manifests.codec import Split, expand, iter_split, plan_splits
from manifests.errors import RowError
from manifests.row import ManifestRow
from transforms import failures
from transforms.access import UriAccess
from transforms.audio.parts import AudioError
from transforms.elements import Failure, failed
from transforms.storage import Storage


@dataclasses.dataclass(eq=False)
class ReadManifest(beam.PTransform[Any, Any]):
    """Rows of manifests, read in splits wherever there is a worker.

    In: a pipeline. Out: ``ManifestRow``, and ``Failure`` for each row that cannot be used; every
    row of every file once, in no particular order. A file that cannot be read fails the job.

    Attributes:
        uris: files, folders or patterns.
        rows: rows to take as they are, instead of files.
        storage: how the files are reached.
        access: what rows may name; one that names something else is a failure.
    """

    uris: tuple[str, ...] = ()
    rows: tuple[ManifestRow, ...] = ()
    storage: Storage = dataclasses.field(default_factory=Storage)
    access: UriAccess = dataclasses.field(default_factory=UriAccess)

    def __post_init__(self) -> None:
        """Either files or rows."""
        super().__init__()
        if bool(self.uris) == bool(self.rows):
            raise ValueError("expected the URIs of manifests, or rows, and not both")

    def expand(self, root: Any) -> tuple[Any, Any]:
        """Wires the steps."""
        if self.rows:
            read = root | "Create" >> beam.Create(list(self.rows), reshuffle=False)
        else:
            read = (
                root
                | "Manifests" >> beam.Create(list(self.uris), reshuffle=False)
                | "PlanSplits" >> beam.ParDo(_PlanSplitsFn(self.storage))
                | "Spread" >> beam.Reshuffle()
                | "ReadSplits" >> beam.ParDo(_ReadSplitFn(self.storage))
            )
        outputs = read | "Count" >> beam.ParDo(_CountFn(self.access)).with_outputs(
            failures.FAILED, main="rows"
        )
        return outputs["rows"], outputs[failures.FAILED]


class _PlanSplitsFn(beam.DoFn):
    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def process(self, uri: str) -> Iterator[Split]:
        storage, options = self._storage, self._storage.options_for(uri)
        for file in storage.retrying(uri, functools.partial(expand, uri, options)):
            yield from storage.retrying(file, functools.partial(plan_splits, file, options))


class _ReadSplitFn(beam.DoFn):
    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def process(self, split: Split) -> Iterator[Any]:
        options = self._storage.options_for(split.uri)
        rows = functools.partial(iter_split, split, options)
        for result in self._storage.iterate(split.uri, rows):
            yield result if isinstance(result, ManifestRow) else invalid(result)


class _CountFn(beam.DoFn):
    def __init__(self, access: UriAccess) -> None:
        self._access = access
        self._rows = Metrics.counter("ReadManifest", "in")

    def process(self, element: Any) -> Iterator[Any]:
        self._rows.inc()
        checked = element if isinstance(element, Failure) else self._checked(element)
        yield failures.dead(checked) if isinstance(checked, Failure) else checked

    def _checked(self, row: ManifestRow) -> ManifestRow | Failure:
        try:
            self._access.require_row(row)
        except AudioError as err:
            return failed(row, "manifest", err.code, str(err))
        return row


def invalid(error: RowError) -> Failure:
    """The failure of a row that did not validate."""
    return Failure(
        stage="manifest",
        error_type="invalid_row",
        message=str(error),
        row_json=error.row_json,
        manifest_uri=error.uri,
        manifest_row=error.row,
    )


@dataclasses.dataclass(eq=False)
class AdmitRows(beam.PTransform[Any, Any]):
    """Drops all but the first row of an id.

    In: ``ManifestRow``. Out: rows to be done; failures of duplicates. Which of several rows with
    one id comes first is decided by file and row number, never by the order of arrival.
    """

    def expand(self, rows: Any) -> tuple[Any, Any]:
        """Wires the steps."""
        keyed = rows | "KeyRows" >> beam.Map(_by_id).with_output_types(tuple[str, ManifestRow])
        outputs = (
            {"rows": keyed}  # labels are those of a resumed run, which joins more by id
            | "ById" >> beam.CoGroupByKey()
            | "Admit" >> beam.FlatMap(_admit).with_outputs(failures.FAILED, main="rows")
        )
        return outputs["rows"], outputs[failures.FAILED]


def _by_id(row: ManifestRow) -> tuple[str, ManifestRow]:
    return row.id, row


def _admit(group: tuple[str, Mapping[str, Iterable[ManifestRow]]]) -> Iterator[Any]:
    first = yield from first_of(group[1]["rows"])
    if first is not None:
        yield first


def first_of(rows: Iterable[ManifestRow]) -> Generator[Any, None, ManifestRow | None]:
    """Returns the first of the rows with one id; yields the others as failures."""
    first: ManifestRow | None = None
    for row in rows:
        if first is None:
            first = row
            continue
        first, later = (first, row) if _place(first) <= _place(row) else (row, first)
        yield failures.dead(duplicate(later))
    return first


def _place(row: ManifestRow) -> tuple[str, int]:
    return row.manifest_uri or "", row.manifest_row or 0


def duplicate(row: ManifestRow) -> Failure:
    """The failure of a row whose id an earlier row has."""
    return failed(
        row, "manifest", "duplicate_id", f"id {row.id[:200]!r} stands in an earlier row too"
    )
