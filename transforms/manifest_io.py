"""Reads manifests or lists recordings, decides which rows are to be done, groups them by mixture.

Rows that name the same mixture are brought together so that it is read and encoded once.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics.metric import Metrics
from apache_beam.pipeline import Pipeline
from apache_beam.pvalue import PCollection

import transforms.threaded  # noqa: F401 - registers the coders of our records
from manifests.audio_formats import FROM_START_SUFFIXES
from manifests.columns import NOT_LISTED
from manifests.files import expand, split_fragment
from manifests.files.readers import Split, iter_split, plan_splits
from manifests.recordings import Recordings, apart, list_root, once, rows_of
from manifests.row import ManifestRow, RowError
from manifests.shards import Broken, Listed, Recording, Skipped, index
from transforms.audio import AudioError
from transforms.elements import Failure, MixtureRows, Shard, failed
from transforms.storage import Storage
from transforms.storage.access import UriAccess
from transforms.tables import dead_letters, row_counts


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
        shard: the part of the rows that is meant, all rows of a mixture together; None: all.
    """

    uris: tuple[str, ...] = ()
    rows: tuple[ManifestRow, ...] = ()
    storage: Storage = dataclasses.field(default_factory=Storage)
    access: UriAccess = dataclasses.field(default_factory=UriAccess)
    shard: Shard | None = None

    def __post_init__(self) -> None:
        """Either files or rows."""
        super().__init__()
        if bool(self.uris) == bool(self.rows):
            raise ValueError("expected the URIs of manifests, or rows, and not both")

    def expand(self, root: Pipeline) -> tuple[PCollection[ManifestRow], PCollection[Failure]]:
        """Splits the files, and reads each split where there is a free worker."""
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
        if self.shard is not None:
            read = read | "Shard" >> beam.Filter(_in_shard, self.shard)
        outputs = read | "Count" >> beam.ParDo(_CountFn(self.access)).with_outputs(
            dead_letters.FAILED, main="rows"
        )
        return outputs["rows"], outputs[dead_letters.FAILED]


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


def _in_shard(element: ManifestRow | Failure, shard: Shard) -> bool:
    """Whether a row, or what stands in its place, is one of a part."""
    if isinstance(element, ManifestRow):
        return shard_of(element, shard.count) == shard
    return (element.manifest_row or 0) % shard.count == shard.index


class _CountFn(beam.DoFn):
    def __init__(self, access: UriAccess) -> None:
        self._access = access
        self._rows = Metrics.counter("ReadManifest", "in")

    def process(self, element: Any) -> Iterator[Any]:
        self._rows.inc()
        row_counts.add(rows=1)
        checked = element if isinstance(element, Failure) else self._checked(element)
        yield dead_letters.dead(checked) if isinstance(checked, Failure) else checked

    def _checked(self, row: ManifestRow) -> ManifestRow | Failure:
        try:
            self._access.require_row(row)
        except AudioError as err:
            return failed(row, "manifest", err.code, str(err))
        return row


SKIPPED = "skipped"


@dataclasses.dataclass(eq=False)
class AskRecordings(beam.PTransform[Any, Any]):
    """Recordings × queries as rows; folders and shards are looked into wherever there is a worker.

    In: a pipeline. Out: ``ManifestRow``; ``Failure`` for each folder, shard or entry of one that
    cannot be read or asked; ``Skipped``, how many names were passed over. Every recording is asked
    every query, in no particular order. Folders are listed one at a time and never from a client's
    cache.

    Attributes:
        asked: which recordings, and what.
        storage: how they are reached.
        access: what rows may name.
        shard: the part of the rows that is meant, all rows of a mixture together; None: all.
    """

    asked: Recordings
    storage: Storage
    access: UriAccess
    shard: Shard | None = None

    def expand(
        self, root: Pipeline
    ) -> tuple[PCollection[ManifestRow], PCollection[Failure], PCollection[Skipped]]:
        """Lists the roots, tells files of one path apart, and asks each where there is a worker."""
        asked = self.asked
        found = (
            root
            | "Roots" >> beam.Create(list(enumerate(asked.roots)), reshuffle=False)
            | "List"
            >> beam.ParDo(_ListFn(asked.output, self.storage)).with_outputs(
                SKIPPED, dead_letters.FAILED, main="listed"
            )
        )
        listed = found["listed"]
        if len(asked.roots) > 1:
            listed = (
                listed
                | "KeyFiles" >> beam.Map(_by_uri).with_output_types(tuple[str, Listed])
                | "ByFile" >> beam.GroupByKey()
                | "Once" >> beam.Map(_once).with_output_types(Listed)
            )
            for number in range(2):
                by_path = beam.Map(_by_path).with_output_types(tuple[str, Listed])
                told_apart = beam.FlatMap(_apart, asked.roots).with_output_types(Listed)
                listed = (
                    listed
                    | f"KeyPaths{number}" >> by_path
                    | f"ByPath{number}" >> beam.GroupByKey()
                    | f"Apart{number}" >> told_apart
                )
        rows = (
            listed
            | "Spread" >> beam.Reshuffle()
            | "Ask"
            >> beam.ParDo(_AskFn(asked, self.storage)).with_outputs(
                SKIPPED, dead_letters.FAILED, main="rows"
            )
        )
        every = {
            "": rows["rows"],
            "Listing": found[dead_letters.FAILED],
            "Asking": rows[dead_letters.FAILED],
        }
        if self.shard is not None:
            every = {
                name: each | f"Shard{name}" >> beam.Filter(_in_shard, self.shard)
                for name, each in every.items()
            }
        checked = {
            name: each
            | f"Count{name}"
            >> beam.ParDo(_CountFn(self.access)).with_outputs(dead_letters.FAILED, main="rows")
            for name, each in every.items()
        }
        failures = [each[dead_letters.FAILED] for each in checked.values()]
        return (
            checked[""]["rows"],
            failures | "Failures" >> beam.Flatten(),
            [found[SKIPPED], rows[SKIPPED]] | "Skipped" >> beam.Flatten(),
        )


class _ListFn(beam.DoFn):
    def __init__(self, output: str | None, storage: Storage) -> None:
        self._output, self._storage = output, storage

    def process(self, root: tuple[int, str]) -> Iterator[Any]:
        number, uri = root
        options = self._storage.options_for(uri)
        listing = functools.partial(list_root, number, uri, self._output, options)
        for found in self._storage.iterate(uri, listing):
            yield found if isinstance(found, Listed) else _other(found)


class _AskFn(beam.DoFn):
    def __init__(self, asked: Recordings, storage: Storage) -> None:
        self._asked, self._storage = asked, storage

    def process(self, listed: Listed) -> Iterator[Any]:
        column = self._asked.audio_column
        for found in index(listed, self._storage.open_ranges, column):
            if not isinstance(found, Recording):
                yield _other(found)
                continue
            for row in rows_of(found, self._asked.queries):
                yield row if isinstance(row, ManifestRow) else _other(row)


def _other(found: Skipped | Broken | RowError) -> Any:
    """What is no row, for its own output."""
    if isinstance(found, Skipped):
        return beam.pvalue.TaggedOutput(SKIPPED, found)
    if isinstance(found, RowError):
        return beam.pvalue.TaggedOutput(dead_letters.FAILED, invalid(found))
    failure = Failure(
        stage="manifest",
        error_type=found.code,
        message=found.message,
        row_json=json.dumps({NOT_LISTED: found.uri}),
        manifest_uri=found.uri,
        manifest_row=0,
    )
    return beam.pvalue.TaggedOutput(dead_letters.FAILED, failure)


def _by_uri(listed: Listed) -> tuple[str, Listed]:
    return listed.uri, listed


def _once(group: tuple[str, Iterable[Listed]]) -> Listed:
    return once(group[1])


def _by_path(listed: Listed) -> tuple[str, Listed]:
    return listed.path, listed


def _apart(group: tuple[str, Iterable[Listed]], roots: Sequence[str]) -> Iterator[Listed]:
    return apart(group[1], roots)


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


def extra_names(row: ManifestRow) -> Iterable[str]:
    """Names the columns of a row that are the user's own."""
    return row.extra.keys()


@dataclasses.dataclass(eq=False)
class AdmitRows(beam.PTransform[Any, Any]):
    """Drops all but the first row of an id.

    In: ``ManifestRow``. Out: rows to be done; failures of duplicates. Which of several rows with
    one id comes first is decided by file and row number, never by the order of arrival.
    """

    def expand(
        self, rows: PCollection[ManifestRow]
    ) -> tuple[PCollection[ManifestRow], PCollection[Failure]]:
        """Groups rows by id and keeps the first of each."""
        keyed = rows | "KeyRows" >> beam.Map(_by_id).with_output_types(tuple[str, ManifestRow])
        outputs = (
            {"rows": keyed}  # labels are those of a resumed run, which joins more by id
            | "ById" >> beam.CoGroupByKey()
            | "Admit" >> beam.FlatMap(_admit).with_outputs(dead_letters.FAILED, main="rows")
        )
        return outputs["rows"], outputs[dead_letters.FAILED]


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
        yield dead_letters.dead(duplicate(later))
    return first


def _place(row: ManifestRow) -> tuple[str, int]:
    return row.manifest_uri or "", row.manifest_row or 0


def duplicate(row: ManifestRow) -> Failure:
    """The failure of a row whose id an earlier row has."""
    return failed(
        row,
        "manifest",
        "duplicate_id",
        f"id {row.id[:200]!r} stands in an earlier row too, which is done; give this row its own",
    )


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
        # Only where there are some: the parts of --shard follow from this key.
        *([row.onsets_s] if row.onsets_s and row.mixture_uri is None else []),
    )
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]  # it is shuffled


def shard_of(row: ManifestRow, count: int) -> Shard:
    """The part of ``count`` that a row falls to: the same for all rows of a mixture."""
    return Shard(index=int(mixture_key(row)[:16], 16) % count, count=count)


@dataclasses.dataclass(eq=False)
class GroupByMixture(beam.PTransform[Any, Any]):
    """Rows → ``MixtureRows`` of at most ``max_rows``; only rows cross the shuffles.

    In: ``ManifestRow``. Out: a key and its ``MixtureRows``, which :func:`pieces_of` takes apart;
    each row is in exactly one. The second shuffle spreads the pieces of a mixture that very many
    rows name, and keeps the reading of audio out of the stage that gathers rows. It ends with the
    shuffle itself: what takes the groups apart belongs to the step that reads audio, so that rows
    are shuffled right to its machines and are not written down for them once more. Parts of one
    hour of a recording that has to be decoded from its start stay together, and so do runs of
    neighbours of a shard: one worker reads them, in their order.
    """

    max_rows: int = MAX_ROWS

    def __post_init__(self) -> None:
        """Checks the size of a piece."""
        super().__init__()
        if self.max_rows < 1:
            raise ValueError(f"max_rows={self.max_rows}; expected at least 1")

    def expand(
        self, rows: PCollection[ManifestRow]
    ) -> PCollection[tuple[str, Iterable[MixtureRows]]]:
        """Groups rows by mixture, cuts large groups, and spreads the pieces."""
        return (
            rows
            | "Key" >> beam.Map(_keyed).with_output_types(tuple[str, ManifestRow])
            | "ByMixture" >> beam.GroupByKey()
            | "Cut" >> beam.ParDo(_CutFn(self.max_rows)).with_output_types(MixtureRows)
            | "Place" >> beam.Map(_with_place).with_output_types(tuple[str, MixtureRows])
            | "Spread" >> beam.GroupByKey()
        )


def _with_place(piece: MixtureRows) -> tuple[str, MixtureRows]:
    return spread_key(piece), piece


def pieces_of(group: tuple[str, Iterable[MixtureRows]]) -> list[MixtureRows]:
    """The pieces that fell to one place, as they follow one another in their file.

    It is the first step of whatever reads their audio.
    """
    return sorted(group[1], key=_begin)


def _begin(piece: MixtureRows) -> tuple[float, str]:
    row = piece.rows[0]
    if row.place is not None:
        return row.place.start, row.id
    return begin_s(row), row.id


def begin_s(row: ManifestRow) -> float:
    """Where the part of a recording begins that a row uses."""
    return split_fragment(row.mixture_uri or "")[1].start_s + (row.offset_s or 0.0)


def spread_key(piece: MixtureRows) -> str:
    """Equal for what one worker is to read in sequence.

    That is a run of neighbours of one shard, and the parts of one hour of a recording whose format
    is decoded from the start. The format is that of the name: a wrong guess costs time and changes
    no result.
    """
    row = piece.rows[0]
    address, fragment = split_fragment(row.mixture_uri or "")
    if row.place is not None:
        return f"{address}#{row.place.run}"
    is_part = row.offset_s is not None or fragment.start_s > 0.0
    if not is_part or not address.lower().endswith(FROM_START_SUFFIXES):
        return hashlib.sha256(f"{mixture_key(row)}/{row.id}".encode()).hexdigest()[:16]
    return f"{address}#{int(begin_s(row) // 3_600)}"


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
