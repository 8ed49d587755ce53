"""Compares earlier attempts with the manifest: which results stay, and which rows run again.

A row stays finished while its digest is that of the manifest's row. All others leave the tables
before anything of the new attempt is written: each file that holds such rows, or lacks a column
that others have, is written again under its own name, so that a reader sees the old file or the
new one, and an attempt that is stopped at any moment leaves no row twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.pipeline import Pipeline
from apache_beam.pvalue import PCollection
from apache_beam.transforms.combiners import Top

from manifests.columns import DEAD_LETTER_SCHEMA, METRICS_SCHEMA, with_extra
from manifests.row import EXTRA_PREFIX, ManifestRow
from transforms.audio import AudioPart
from transforms.audio.files import WriteError, describe, require_whole
from transforms.elements import (
    BROKEN,
    CHANGED,
    DOUBLE,
    GONE,
    UNKNOWN,
    Damage,
    Failure,
    KeptLetter,
    KeptRow,
    KeptRules,
    Leaving,
    TableRow,
)
from transforms.manifest_io import duplicate, first_of
from transforms.storage import Storage, join
from transforms.tables import dead_letters, parquet_bytes
from transforms.tables.metrics_rows import from_record
from transforms.threaded import LookAheadFn, Overlap

MAX_NAMED = 20
"""So many ids are named for each reason."""
_ROWS_PER_BATCH = 4_096
_LETTER_FIELDS = frozenset(DEAD_LETTER_SCHEMA.names)


@dataclasses.dataclass(eq=False)
class ReadKept(beam.PTransform[Any, Any]):
    """Rows and dead letters of earlier attempts.

    In: a pipeline. Out: ``KeptRow``, as often as it is there; ``KeptLetter``; ``Damage`` for each
    file that cannot be read whole, of which nothing else comes; names of ``extra_…`` columns. A
    file that is gone has been taken away by an earlier try of what comes after.

    Attributes:
        table_uris: files of the metrics.
        journal_uris: files of the journal.
        letter_uris: files of dead letters.
        storage: how they are reached.
    """

    table_uris: tuple[str, ...]
    journal_uris: tuple[str, ...]
    letter_uris: tuple[str, ...]
    storage: Storage

    def expand(
        self, root: Pipeline
    ) -> tuple[
        PCollection[KeptRow], PCollection[KeptLetter], PCollection[Damage], PCollection[str]
    ]:
        """Reads the tables, the journal and the dead letters, a file at a time."""
        files = [(uri, True) for uri in self.table_uris]
        files += [(uri, False) for uri in self.journal_uris]
        rows = (
            root
            | "Files" >> beam.Create(files)
            | "Spread" >> beam.Reshuffle()
            | "Read"
            >> beam.ParDo(_ReadRowsFn(self.storage)).with_outputs("damaged", "names", main="rows")
        )
        letters = (
            root
            | "LetterFiles" >> beam.Create(list(self.letter_uris))
            | "ReadLetters"
            >> beam.ParDo(_ReadLettersFn(self.storage)).with_outputs(
                "damaged", "names", main="letters"
            )
        )
        damaged = (rows["damaged"], letters["damaged"]) | "Damaged" >> beam.Flatten()
        names = (rows["names"], letters["names"]) | "Names" >> beam.Flatten()
        return rows["rows"], letters["letters"], damaged, names


class _ReadRowsFn(beam.DoFn):
    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def process(self, file: tuple[str, bool]) -> Iterator[Any]:
        uri, in_table = file
        for record in _records(self._storage, uri, METRICS_SCHEMA):
            if isinstance(record, dict):
                yield KeptRow(row=from_record(record), uri=uri, in_table=in_table)
            else:
                yield record


class _ReadLettersFn(beam.DoFn):
    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def process(self, uri: str) -> Iterator[Any]:
        for record in _records(self._storage, uri, DEAD_LETTER_SCHEMA):
            yield _letter(record) if isinstance(record, dict) else record


def _records(storage: Storage, uri: str, schema: pa.Schema) -> Iterator[Any]:
    """Rows of a file as dicts, and its further columns as names; or its damage alone."""
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError:
        return
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        missing = sorted(set(schema.names) - set(file.schema_arrow.names))
        if missing:
            raise ValueError(f"has no column {missing[0]}")
        for batch in file.iter_batches(_ROWS_PER_BATCH):
            batch.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as err:
        reason = " ".join(str(err).split())[:200] or type(err).__name__
        yield beam.pvalue.TaggedOutput("damaged", Damage(uri=uri, reason=reason))
        return
    for name in file.schema_arrow.names:
        if name.startswith(EXTRA_PREFIX):
            yield beam.pvalue.TaggedOutput("names", name.removeprefix(EXTRA_PREFIX))
    for batch in file.iter_batches(_ROWS_PER_BATCH):
        yield from batch.to_pylist()


def _letter(record: Mapping[str, Any]) -> KeptLetter:
    extra = {
        name.removeprefix(EXTRA_PREFIX): value
        for name, value in record.items()
        if name.startswith(EXTRA_PREFIX) and value is not None
    }
    place = dead_letters.place_key(record["manifest_uri"], record["manifest_row"])
    columns = {name: value for name, value in record.items() if name in _LETTER_FIELDS}
    row = TableRow(partition="", key=place, record=columns, extra=extra)
    return KeptLetter(key=_key(record["id"], record["row_json"]), row=row)


def _key(row_id: str | None, row_json: str | None) -> str:
    """Which row of a manifest it is: its id, or what was read where it has none."""
    if row_id is not None:
        return row_id
    try:
        values = json.loads(row_json or "")
    except (ValueError, RecursionError):
        values = None
    if isinstance(values, dict) and isinstance(values.get("id"), str) and values["id"]:
        return str(values["id"])
    digest = hashlib.sha256((row_json or "").encode("utf-8", "surrogatepass")).hexdigest()
    return f"\x00{digest}"


@dataclasses.dataclass(eq=False)
class CheckStems(beam.PTransform[Any, Any]):
    """Looks whether the stems of finished rows are there, readable and as long as the row says.

    In: ``KeptRow``. Out: the same rows; ``broken`` says what is wrong. The header and the last
    sample are read: damage in the middle is not found.

    Attributes:
        storage: how stems are reached.
        overlap: how many are looked at beside each other.
    """

    storage: Storage
    overlap: Overlap

    def expand(self, kept: PCollection[KeptRow]) -> PCollection[KeptRow]:
        """Looks at the stems of each row, several files at once."""
        return (
            kept
            | "Spread" >> beam.Reshuffle()
            | "Check"
            >> beam.ParDo(_CheckStemsFn(self.storage, self.overlap)).with_output_types(KeptRow)
        )


class _CheckStemsFn(LookAheadFn[KeptRow, KeptRow]):
    def __init__(self, storage: Storage, overlap: Overlap) -> None:
        super().__init__(overlap, "CheckStems", "check")
        self._storage = storage

    def work(self, kept: KeptRow) -> list[KeptRow]:
        uris = [kept.row.values[name] for name in ("stem_uri", "residual_uri")]
        faults = (self._fault(uri, kept.row.values) for uri in uris if uri is not None)
        return [dataclasses.replace(kept, broken=next(filter(None, faults), None))]

    def emit(self, result: KeptRow) -> KeptRow:
        return result

    def _fault(self, uri: str, values: Mapping[str, Any]) -> str | None:
        """What is wrong with a stem; raises OSError where the store does not say."""
        part = AudioPart(
            sample_rate_hz=values["sample_rate_hz"],
            num_channels=values["n_channels"],
            start=0,
            num_samples=round(values["duration_s"] * values["sample_rate_hz"]),
        )
        try:
            with self._storage.open(uri) as file:
                require_whole(file, part)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, WriteError) as err:
            return describe(err, uri)
        return None


@dataclasses.dataclass(eq=False)
class Reconcile(beam.PTransform[Any, Any]):
    """Decides what is to be done, what stays finished, and what leaves the tables.

    In: ``{"rows": ManifestRow, "invalid": Failure, "kept": KeptRow, "letters": KeptLetter}``. Out,
    by name: ``rows`` to be done; ``failed``, later rows of an id; ``kept``, each id once;
    ``letters`` about rows that this manifest does not have; ``leaving``. Which of several comes
    first is decided by file and row number, never by the order of arrival.

    Attributes:
        rules: how they are compared.
    """

    rules: KeptRules

    def expand(self, inputs: Mapping[str, PCollection[Any]]) -> Mapping[str, PCollection[Any]]:
        """Groups everything that is known of an id, and decides what becomes of it."""
        keyed = {
            "rows": inputs["rows"]
            | "KeyRows" >> beam.Map(_of_row).with_output_types(tuple[str, ManifestRow]),
            "invalid": inputs["invalid"]
            | "KeyInvalid" >> beam.Map(_of_failure).with_output_types(tuple[str, bool]),
            "kept": inputs["kept"]
            | "KeyKept" >> beam.Map(_of_kept).with_output_types(tuple[str, KeptRow]),
            "letters": inputs["letters"]
            | "KeyLetters" >> beam.Map(_of_letter).with_output_types(tuple[str, KeptLetter]),
        }
        found = (
            keyed
            | "ById" >> beam.CoGroupByKey()
            | "Decide"
            >> beam.FlatMap(_decided, self.rules).with_outputs(
                dead_letters.FAILED, "kept", "letters", "leaving", main="rows"
            )
        )
        names = ("rows", dead_letters.FAILED, "kept", "letters", "leaving")
        return {name: found[name] for name in names}


def _of_row(row: ManifestRow) -> tuple[str, ManifestRow]:
    return row.id, row


def _of_failure(failure: Failure) -> tuple[str, bool]:
    return _key(failure.row.id if failure.row is not None else None, failure.row_json), True


def _of_kept(kept: KeptRow) -> tuple[str, KeptRow]:
    return kept.row.id, kept


def _of_letter(letter: KeptLetter) -> tuple[str, KeptLetter]:
    return letter.key, letter


def _decided(group: tuple[str, Mapping[str, Iterable[Any]]], rules: KeptRules) -> Iterator[Any]:
    """The outputs of one id."""
    row_id, found = group
    first = yield from first_of(found["rows"])
    asked = first is not None or any(found["invalid"])
    chosen: KeptRow | None = None
    for kept in sorted(found["kept"], key=lambda kept: (not kept.in_table, kept.uri)):
        why = _why_not(kept, first, asked, rules)
        if why is None and (chosen is None or not kept.in_table):
            chosen = chosen or kept
            continue  # what the journal has too need not leave it
        but_one = chosen is not None and chosen.uri == kept.uri
        leaving = Leaving(uri=kept.uri, id=row_id, why=why or DOUBLE, but_one=but_one)
        yield beam.pvalue.TaggedOutput("leaving", leaving)
    is_second = chosen is not None and first is not None and not _same(chosen, first)
    if is_second and first is not None:
        yield dead_letters.dead(duplicate(first))
    elif chosen is None and first is not None:
        yield first
    if chosen is not None:
        stays = dataclasses.replace(chosen, asked=first is not None and not is_second)
        yield beam.pvalue.TaggedOutput("kept", stays)
    yield from _letters(found["letters"], asked=asked, finished=chosen is not None, rules=rules)


def _same(kept: KeptRow, row: ManifestRow) -> bool:
    return bool(kept.row.values["row_sha256"] == row.sha256)


def _why_not(kept: KeptRow, first: ManifestRow | None, asked: bool, rules: KeptRules) -> str | None:
    """Why a kept row leaves; None where it stays."""
    if kept.broken is not None:
        return BROKEN
    if not asked:
        return GONE if rules.covers else None
    if rules.retrying and (first is None or not _same(kept, first)):
        return None
    if not rules.trusted:
        return UNKNOWN
    return None if first is not None and _same(kept, first) else CHANGED


def _letters(
    letters: Iterable[KeptLetter], *, asked: bool, finished: bool, rules: KeptRules
) -> Iterator[Any]:
    """Yields the earlier dead letters that stay; rows that run again get a new result."""
    if asked or rules.covers:
        return
    seen = set()
    for letter in sorted(letters, key=lambda letter: letter.row.key):
        if letter.row.key not in seen and (letter.is_second or not finished):
            seen.add(letter.row.key)
            yield beam.pvalue.TaggedOutput("letters", letter.row)


@dataclasses.dataclass(eq=False)
class LeaveTables(beam.PTransform[Any, Any]):
    """Takes rows out of the files of earlier attempts, and gives those the columns that they lack.

    In: ``{"leaving": Leaving, "damaged": Damage, "names": str}``. Out: the URI of each file, when
    it is as it should be. A file of metrics that is damaged is set aside; one that is left without
    rows goes. Doing it again changes nothing.

    Attributes:
        uri: the output folder.
        table_uris: files of the metrics.
        journal_uris: files of the journal.
        storage: how they are reached.
    """

    uri: str
    table_uris: tuple[str, ...]
    journal_uris: tuple[str, ...]
    storage: Storage

    def expand(self, inputs: Mapping[str, PCollection[Any]]) -> PCollection[str]:
        """Rewrites each file that rows leave, or that lacks a column."""
        leaving, damaged = inputs["leaving"], inputs["damaged"]
        files = [(uri, True) for uri in self.table_uris]
        files += [(uri, False) for uri in self.journal_uris]
        names = inputs["names"] | "DistinctNames" >> beam.Distinct()
        keyed = {
            "files": leaving.pipeline | "Files" >> beam.Create(files),
            "leaving": leaving
            | "KeyLeaving" >> beam.Map(_by_uri).with_output_types(tuple[str, Leaving]),
            "damaged": damaged
            | "KeyDamaged" >> beam.Map(_by_uri).with_output_types(tuple[str, Damage]),
        }
        return (
            keyed
            | "ByFile" >> beam.CoGroupByKey()
            | "Rewrite"
            >> beam.ParDo(
                _RewriteFn(self.uri, self.storage), beam.pvalue.AsList(names)
            ).with_output_types(str)
        )


def _by_uri(element: Leaving | Damage) -> tuple[str, Any]:
    return element.uri, element


class _RewriteFn(beam.DoFn):
    def __init__(self, output: str, storage: Storage) -> None:
        self._output, self._storage = output, storage

    def process(
        self, group: tuple[str, Mapping[str, Iterable[Any]]], names: Sequence[str]
    ) -> Iterator[str]:
        uri, found = group
        in_table = next(iter(found["files"]), None)  # None: dead letters
        if not any(found["damaged"]):
            if in_table is not None:
                self._rewrite(uri, list(found["leaving"]), names if in_table else None)
        elif in_table is not False:  # the journal goes at the end of the run
            self._set_aside(uri)
        yield uri

    def _set_aside(self, uri: str) -> None:
        """Gives a file a name that no reader of tables takes."""
        folder, name = uri.rsplit("/", 1)
        try:
            data = self._storage.read_bytes(uri)
        except FileNotFoundError:  # an earlier try did it
            return
        self._storage.write_bytes(join(folder, f"_{name}.damaged"), data)
        self._storage.remove_files([uri], self._output)

    def _rewrite(self, uri: str, leaving: list[Leaving], names: Sequence[str] | None) -> None:
        try:
            with self._storage.open(uri) as stream:
                there = pq.ParquetFile(stream).schema_arrow
                wanted = there if names is None else with_extra(METRICS_SCHEMA, names)
                if not leaving and there.names == wanted.names:
                    return
                stream.seek(0)
                table = pq.ParquetFile(stream).read()
        except FileNotFoundError:  # an earlier try left it without rows
            return
        stays = _stays(table["id"].to_pylist(), leaving)
        table = table.filter(pa.array(stays, pa.bool_()))
        if table.num_rows == 0:
            self._storage.remove_files([uri], self._output)
            return
        columns = [
            table[field.name] if field.name in there.names else pa.nulls(len(table), field.type)
            for field in wanted
        ]
        self._storage.write_bytes(uri, parquet_bytes(pa.table(columns, schema=wanted)))


def _stays(ids: Sequence[str], leaving: Iterable[Leaving]) -> list[bool]:
    """Of each row of a file, whether it stays: an id stands there once."""
    seen = {each.id for each in leaving if not each.but_one}
    stays = []
    for row_id in ids:
        stays.append(row_id not in seen)
        seen.add(row_id)
    return stays


@dataclasses.dataclass(eq=False)
class AfterFiles(beam.PTransform[Any, Any]):
    """Passes rows on once all files of earlier attempts are rewritten.

    In: ``ManifestRow``. Out: the same.

    Attributes:
        files: PCollection of what :class:`LeaveTables` gives.
    """

    files: Any

    def expand(self, rows: PCollection[ManifestRow]) -> PCollection[ManifestRow]:
        """Holds rows back until the side input is there."""
        waiting = beam.pvalue.AsList(self.files)
        return rows | "Wait" >> beam.Map(_row, waiting).with_output_types(ManifestRow)


def _row(row: ManifestRow, _: Sequence[str]) -> ManifestRow:
    return row


@dataclasses.dataclass(eq=False)
class NameSome(beam.PTransform[Any, Any]):
    """Rows that leave → the first few ids for each reason, as ``reason/id``."""

    def expand(self, leaving: PCollection[Leaving]) -> PCollection[str]:
        """Takes the first ids of each reason."""
        return (
            leaving
            | "ByReason" >> beam.Map(_by_reason).with_output_types(tuple[str, str])
            | "Few" >> Top.SmallestPerKey(MAX_NAMED)
            | "Names" >> beam.FlatMap(_named).with_output_types(str)
        )


def _by_reason(leaving: Leaving) -> tuple[str, str]:
    return leaving.why, leaving.id


def _named(group: tuple[str, Sequence[str]]) -> Iterator[str]:
    for row_id in group[1]:
        yield f"{group[0]}/{row_id}"
