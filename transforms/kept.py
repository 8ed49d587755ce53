"""Compares earlier attempts with the manifest: which results stay, and which rows run again.

A row stays finished while its digest is that of the manifest's row. All others leave the tables
before anything of the new attempt is written: each file that holds such rows, or lacks a column
that others have, is written again under its own name, so that a reader sees the old file or the
new one, and an attempt that is stopped at any moment leaves no row twice.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.pipeline import Pipeline
from apache_beam.pvalue import PCollection
from apache_beam.transforms.combiners import Count, Top
from apache_beam.transforms.window import GlobalWindow

from manifests.columns import (
    DEAD_LETTER_SCHEMA,
    EMBEDDINGS_SCHEMA,
    EXPORTED_SCHEMA,
    MANIFEST_SCHEMA,
    METRICS_SCHEMA,
    NOT_LISTED,
    SEGMENTS_SCHEMA,
    with_extra,
)
from manifests.recordings import looks_into
from manifests.row import EXTRA_PREFIX, SOURCE_COLUMN, ManifestRow
from transforms.audio import AudioPart
from transforms.audio.files import WriteError, describe, require_whole
from transforms.elements import (
    BROKEN,
    CHANGED,
    DOUBLE,
    GONE,
    JOURNAL,
    LETTERS,
    OF_EMBEDDINGS,
    OF_SEGMENTS,
    TABLE,
    UNFOUND,
    UNKNOWN,
    Damage,
    Failure,
    KeptAudio,
    KeptFile,
    KeptLetter,
    KeptRow,
    KeptRules,
    KeptSegments,
    Leaving,
    MetricsRow,
    TableRow,
)
from transforms.manifest_io import duplicate, first_of
from transforms.storage import Storage, join
from transforms.tables import dead_letters, metrics_rows, parquet_bytes, row_counts
from transforms.threaded import LookAhead, LookAheadFn, Overlap, in_window

MAX_NAMED = 20
"""So many ids are named for each reason."""
_ROWS_PER_BATCH = 4_096
_FILES_AT_ONCE = 16
_SURROGATE = re.compile("[\ud800-\udfff]")
"""Stands in text that is not UTF-8, which cannot be a key of Beam."""
_LETTER_FIELDS = frozenset(DEAD_LETTER_SCHEMA.names)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeptTable:
    """The table in which a job writes a row for each row of its manifest that is done.

    Attributes:
        schema: its columns.
        digest: the column with the digest of the manifest's row.
        segments: what the files of segments look like of which its rows say how many they have;
            None: they have none.
        embeddings: whether every row with segments, be it none, has a row in a table of embeddings.
    """

    schema: pa.Schema
    digest: str
    segments: pa.Schema | None = None
    embeddings: bool = False

    def name_of(self, record: Mapping[str, Any]) -> Any:
        """The name of a row for :class:`ReadAgain`: its id, and what it was made from."""
        return record["id"], record.get(self.digest)

    def num_beside(self, record: Mapping[str, Any]) -> int | None:
        """How many rows of segments and embeddings are about a row; None: it does not say."""
        count: int | None = record.get("n_segments")
        return count if count is None or not self.embeddings else count + 1


METRICS_KEPT = KeptTable(schema=METRICS_SCHEMA, digest="row_sha256", segments=SEGMENTS_SCHEMA)
EXPORTED_KEPT = KeptTable(schema=EXPORTED_SCHEMA, digest="row_sha256")
RENDERED_KEPT = KeptTable(schema=MANIFEST_SCHEMA, digest=EXTRA_PREFIX + SOURCE_COLUMN)


@dataclasses.dataclass(eq=False, kw_only=True)
class GoOn(beam.PTransform[Any, Any]):
    """Holds a manifest against what earlier attempts left, and puts that in order.

    In: ``{"rows": ManifestRow, "invalid": Failure, "names": str}``, of the manifest, with the names
    of the ``extra_…`` columns that its rows have or will have in the table. Out, by name: ``rows``
    to be done, once the tables say nothing of them any more; ``failed``, later rows of an id;
    ``recovered`` and ``in_tables``, the ``MetricsRow`` that stay, from the journal and from tables;
    ``letters`` that stay; ``names`` of the table's ``extra_…`` columns, and ``letter_names`` of
    those of dead letters; ``counted``, by the names of :mod:`transforms.tables.row_counts`.

    Attributes:
        output: folder of the run.
        listing: names the files that earlier attempts left; see :class:`ReadListing`.
        storage: how they are reached.
        rules: how what is there is held against the manifest.
        table: what the files of the table look like.
        verify: how many rows' audio is looked at at once; None: it is trusted.
        places: where the run was when its audio was written; see :func:`now_at`.
        written: ``extra_…`` columns that the job itself writes, and dead letters do not have.
        left_out: ``extra_…`` columns of the manifest that the job leaves out of the table.
    """

    output: str
    listing: str
    storage: Storage
    rules: KeptRules
    table: KeptTable = METRICS_KEPT
    verify: Overlap | None = None
    places: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def expand(self, inputs: Mapping[str, PCollection[Any]]) -> Mapping[str, Any]:
        """Reads what is there, decides, and takes out of the files what does not stay."""
        root, storage, table = inputs["rows"].pipeline, self.storage, self.table
        files = root | "ReadListing" >> ReadListing(self.listing, storage)
        kept, segments, letters, damaged, there = files | "ReadKept" >> ReadKept(
            storage, table, audio_of=self._audio_of if self.verify else None
        )
        if self.verify is not None:
            kept = kept | "CheckStems" >> CheckStems(storage, self.verify)
        every = (there, inputs["names"]) | "AllColumns" >> beam.Flatten()
        every = every | "DistinctColumns" >> beam.Distinct()
        names = every | "OfTable" >> beam.Filter(_is_not_in, self.left_out)
        found = {
            "rows": inputs["rows"],
            "invalid": inputs["invalid"],
            "kept": kept,
            "segments": segments,
            "letters": letters,
        } | "AdmitRows" >> Reconcile(self.rules)
        ready = {
            "files": files,
            "leaving": (found["leaving"], found["segments"]) | "AllLeaving" >> beam.Flatten(),
            "damaged": damaged,
            "names": names,
        } | "LeaveTables" >> LeaveTables(self.output, table.schema, storage)
        asked, others = found["kept"] | "Asked" >> beam.Partition(_is_other, 2)  # type: ignore[arg-type]
        return {
            # A file is only written over when no table says any more what was in it.
            "rows": found["rows"] | "AfterTables" >> AfterFiles(ready),
            "failed": found[dead_letters.FAILED],
            **self._rows(found["kept"]),
            "letters": found["letters"] | "ReadLetters" >> ReadLetters(storage),
            "names": names,
            "letter_names": every | "OfLetters" >> beam.Filter(_is_not_in, self.written),
            "counted": {
                row_counts.FINISHED_BEFORE: asked,
                row_counts.OTHERS: others,
                row_counts.LETTERS: found["letters"],
                row_counts.LEFT: found["leaving"],
                row_counts.NAMED: found["leaving"] | "NameLeaving" >> NameSome(),
                row_counts.DAMAGED: damaged,
            },
        }

    @property
    def _audio_of(self) -> AudioOf:
        return functools.partial(metrics_rows.audio_of, places=self.places, folder=self.output)

    def _rows(self, kept: PCollection[KeptRow]) -> dict[str, PCollection[MetricsRow]]:
        """The rows that stay, out of their files."""
        made = functools.partial(metrics_rows.from_record, schema=self.table.schema)
        parts = kept | "InTable" >> beam.Partition(_is_in_table, 2)  # type: ignore[arg-type]
        return {
            name: part
            | f"Names_{name}" >> beam.Map(name_of_row).with_output_types(tuple[str, Any])
            | f"Rows_{name}"
            >> ReadAgain(self.storage, self.table.name_of, made, MetricsRow, small=small)
            for name, part, small in zip(
                (row_counts.RECOVERED, "in_tables"), parts, (True, False), strict=True
            )
        }


def _is_not_in(name: str, names: tuple[str, ...]) -> bool:
    return name not in names


def _is_other(kept: KeptRow, _: int) -> int:
    return int(not kept.asked)


def _is_in_table(kept: KeptRow, _: int) -> int:
    return int(kept.in_table)


def name_of_row(kept: KeptRow) -> tuple[str, Any]:
    """What :class:`ReadAgain` takes for a row that stays, with the names of its table."""
    return kept.uri, (kept.id, kept.row_sha256)


@dataclasses.dataclass(eq=False)
class ReadListing(beam.PTransform[Any, Any]):
    """The files that a listing names, spread over all workers.

    A journal can have so many files that Dataflow would not take a graph with their names.

    In: a pipeline. Out: ``KeptFile``.

    Attributes:
        uri: the listing, a line for each file as :meth:`KeptFile.to_line` writes it.
        storage: how it is reached.
    """

    uri: str
    storage: Storage

    def expand(self, root: Pipeline) -> PCollection[KeptFile]:
        """Reads the listing in one place, and its files elsewhere."""
        return (
            root
            | "Listing" >> beam.Create([self.uri], reshuffle=False)
            | "Files" >> beam.FlatMap(_listed, self.storage).with_output_types(KeptFile)
            | "Spread" >> beam.Reshuffle()
        )


def _listed(uri: str, storage: Storage) -> Iterator[KeptFile]:
    return map(KeptFile.of_line, storage.read_bytes(uri).splitlines())


AudioOf = Callable[[Mapping[str, Any]], Sequence[KeptAudio]]
"""The files of audio that a row of a table names, from its columns."""


@dataclasses.dataclass(eq=False)
class ReadKept(beam.PTransform[Any, Any]):
    """What decides about rows and dead letters of earlier attempts; the rows stay in their files.

    In: ``KeptFile``. Out: ``KeptRow``, as often as it is there; ``KeptSegments``; ``KeptLetter``;
    ``Damage`` for each file that cannot be read whole, of which nothing else comes; names of
    ``extra_…`` columns. A file that is gone has been taken away by an earlier try of what comes
    after.

    Attributes:
        storage: how files are reached.
        table: what the files of the table and of the journal look like.
        audio_of: gives the files that :class:`CheckAudio` is to look at, by the columns of a row.
    """

    storage: Storage
    table: KeptTable = METRICS_KEPT
    audio_of: AudioOf | None = None

    def expand(self, files: PCollection[KeptFile]) -> tuple[PCollection[Any], ...]:
        """Reads the tables, the journal and the dead letters, a file at a time."""
        outputs = files | "Read" >> beam.ParDo(
            _ReadKeptFn(self.storage, self.table, self.audio_of)
        ).with_outputs("segments", "letters", "damaged", "names", main="rows")
        return tuple(outputs[name] for name in ("rows", "segments", "letters", "damaged", "names"))


class _FilesFn(beam.DoFn):
    """Reads the file of each element; small ones are fetched ahead, all at once in memory."""

    _ahead: LookAhead[Any, tuple[Any, bytes | None]]

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def uri_of(self, element: Any) -> str:
        """The file of an element."""
        raise NotImplementedError

    def is_small(self, element: Any) -> bool:
        """Whether several such files fit into memory."""
        raise NotImplementedError

    def results(self, element: Any, data: bytes | None) -> Iterator[Any]:
        """What the content of its file gives for an element; None: there is no such file."""
        raise NotImplementedError

    def setup(self) -> None:
        self._ahead = LookAhead(self._fetched, Overlap(), "ReadKept", "fetch")

    def teardown(self) -> None:
        self._ahead.close()

    def start_bundle(self) -> None:
        self._ahead.reset()

    def process(self, element: Any) -> Iterator[Any]:
        small = self.is_small(element)
        for fetched in self._ahead.push(element) if small else [self._fetched(element)]:
            yield from self.results(*fetched)

    def finish_bundle(self) -> Iterator[Any]:
        window = GlobalWindow()
        for fetched in self._ahead.drain():
            for result in self.results(*fetched):
                yield in_window(result, window)

    def _fetched(self, element: Any) -> tuple[Any, bytes | None]:
        try:
            return element, self._storage.read_bytes(self.uri_of(element))
        except FileNotFoundError:
            return element, None


class _ReadKeptFn(_FilesFn):
    def __init__(self, storage: Storage, table: KeptTable, audio_of: AudioOf | None) -> None:
        super().__init__(storage)
        self._names, self._table = {TABLE: tuple(table.schema.names)}, table
        self._names[JOURNAL], self._names[LETTERS] = self._names[TABLE], _LETTER_NAMES
        self._deciding = ["id", table.digest]
        if table.segments is not None:
            self._names[OF_SEGMENTS] = tuple(table.segments.names)
            self._names[OF_EMBEDDINGS] = tuple(EMBEDDINGS_SCHEMA.names)
            self._deciding.append("n_segments")
        self._audio_of = audio_of

    def uri_of(self, element: KeptFile) -> str:
        return element.uri

    def is_small(self, element: KeptFile) -> bool:
        return element.kind == JOURNAL

    def results(self, element: KeptFile, data: bytes | None) -> Iterator[Any]:
        if data is None or element.kind not in self._names:
            return
        try:
            file = _whole_file(data, self._names[element.kind])
        except (pa.ArrowException, OSError, ValueError) as err:
            reason = " ".join(str(err).split())[:200] or type(err).__name__
            damage = Damage(uri=element.uri, reason=reason, kind=element.kind)
            yield beam.pvalue.TaggedOutput("damaged", damage)
            return
        for name in file.schema_arrow.names:
            if name.startswith(EXTRA_PREFIX):
                yield beam.pvalue.TaggedOutput("names", name.removeprefix(EXTRA_PREFIX))
        if element.kind == LETTERS:
            for record in _records(file, _LETTER_COLUMNS):
                yield beam.pvalue.TaggedOutput("letters", _letter(record, element.uri))
            return
        if element.kind in (OF_SEGMENTS, OF_EMBEDDINGS):
            counts = Counter(record["id"] for record in _records(file, ["id"]))
            for row_id, count in counts.items():
                segments = KeptSegments(id=row_id, uri=element.uri, count=count)
                yield beam.pvalue.TaggedOutput("segments", segments)
            return
        for record in _records(file, None if self._audio_of else self._deciding):
            yield KeptRow(
                id=record["id"],
                row_sha256=record.get(self._table.digest),
                uri=element.uri,
                in_table=element.kind == TABLE,
                audio=tuple(self._audio_of(record)) if self._audio_of else (),
                num_segments=self._table.num_beside(record),
            )


_LETTER_NAMES = tuple(DEAD_LETTER_SCHEMA.names)
_LETTER_COLUMNS = ["id", "row_json", "manifest_uri", "manifest_row", "error_type"]


def _whole_file(data: bytes, names: Sequence[str]) -> pq.ParquetFile:
    """A file of which all can be read.

    Raises:
        ValueError: it lacks a column, or a part of it says something impossible.
        pa.ArrowException, OSError: it cannot be read.
    """
    file = pq.ParquetFile(io.BytesIO(data))
    missing = sorted(set(names) - set(file.schema_arrow.names))
    if missing:
        raise ValueError(f"has no column {missing[0]}")
    for batch in file.iter_batches(_ROWS_PER_BATCH):
        batch.validate(full=True)
    return file


def _records(file: pq.ParquetFile, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(_ROWS_PER_BATCH, columns=columns):
        yield from batch.to_pylist()


def _letter(record: Mapping[str, Any], uri: str) -> KeptLetter:
    return KeptLetter(
        key=_key(record["id"], record["row_json"]),
        place=_place(record),
        uri=uri,
        is_second=record["error_type"] == "duplicate_id",
        listed=_could_not_be_listed(record),
    )


def _could_not_be_listed(record: Mapping[str, Any]) -> str | None:
    """What could not be looked into, of a dead letter of listing recordings."""
    if record["id"] is not None or record["row_json"] is None:
        return None
    try:
        values = json.loads(record["row_json"])
    except (ValueError, RecursionError):
        return None
    is_listing = isinstance(values, dict) and values.keys() == {NOT_LISTED}
    return str(values[NOT_LISTED]) if is_listing else None


def _place(record: Mapping[str, Any]) -> str:
    return dead_letters.place_key(record["manifest_uri"], record["manifest_row"])


@dataclasses.dataclass(eq=False)
class ReadAgain(beam.PTransform[Any, Any]):
    """Rows that stay, out of their files: only their names crossed the shuffle before.

    In: the URI of a file, and the name of a row in it. Out: what ``made`` makes of that row's
    columns; of several rows of one name in a file, the first.

    Attributes:
        storage: how files are reached.
        name_of: the name of a row, from its columns.
        made: what is made of them.
        kind: the type of that.
        small: whether several files fit into memory, and are fetched ahead.
    """

    storage: Storage
    name_of: Callable[[Mapping[str, Any]], Any]
    made: Callable[[Mapping[str, Any]], Any]
    kind: type
    small: bool = False

    def expand(self, names: PCollection[tuple[str, Any]]) -> PCollection[Any]:
        """Gathers the names of each file, and reads it."""
        return (
            names
            | "ByFile" >> beam.GroupByKey()
            | "Read" >> beam.ParDo(_ReadAgainFn(self)).with_output_types(self.kind)
        )


class _ReadAgainFn(_FilesFn):
    def __init__(self, step: ReadAgain) -> None:
        super().__init__(step.storage)
        self._name_of, self._made, self._small = step.name_of, step.made, step.small

    def uri_of(self, element: tuple[str, Iterable[Any]]) -> str:
        return element[0]

    def is_small(self, element: tuple[str, Iterable[Any]]) -> bool:
        return self._small

    def results(self, element: tuple[str, Iterable[Any]], data: bytes | None) -> Iterator[Any]:
        wanted = set(element[1])
        for record in _records(pq.ParquetFile(io.BytesIO(data))) if data is not None else ():
            name = self._name_of(record)
            if name in wanted:
                wanted.remove(name)
                yield self._made(record)
        if wanted:
            raise RuntimeError(
                f"{element[0]}: {len(wanted)} rows are gone that were there when this run began, "
                f"such as {min(map(str, wanted))[:200]}; does another program write into the "
                "output folder? --resume looks again"
            )


@dataclasses.dataclass(eq=False)
class ReadLetters(beam.PTransform[Any, Any]):
    """Dead letters that stay, out of their files.

    In: ``KeptLetter``. Out: ``TableRow``.

    Attributes:
        storage: how files are reached.
    """

    storage: Storage

    def expand(self, letters: PCollection[KeptLetter]) -> PCollection[TableRow]:
        """Reads the files of the letters again."""
        names = letters | "Names" >> beam.Map(_name_of_letter).with_output_types(tuple[str, Any])
        return names | ReadAgain(self.storage, _letter_name, _letter_row, TableRow)


def _name_of_letter(letter: KeptLetter) -> tuple[str, Any]:
    return letter.uri, (letter.place, letter.key)


def _letter_name(record: Mapping[str, Any]) -> Any:
    return _place(record), _key(record["id"], record["row_json"])


def _letter_row(record: Mapping[str, Any]) -> TableRow:
    extra = {
        name.removeprefix(EXTRA_PREFIX): value
        for name, value in record.items()
        if name.startswith(EXTRA_PREFIX) and value is not None
    }
    columns = {name: value for name, value in record.items() if name in _LETTER_FIELDS}
    return TableRow(partition="", key=_place(record), record=columns, extra=extra)


def _key(row_id: str | None, row_json: str | None) -> str:
    """Which row of a manifest it is: its id, or what was read where it has none."""
    if row_id is not None:
        return row_id
    try:
        values = json.loads(row_json or "")
    except (ValueError, RecursionError):
        values = None
    found = values.get("id") if isinstance(values, dict) else None
    if isinstance(found, str) and found and not _SURROGATE.search(found):
        return found
    digest = hashlib.sha256((row_json or "").encode("utf-8", "surrogatepass")).hexdigest()
    return f"\x00{digest}"


@dataclasses.dataclass(eq=False)
class CheckStems(beam.PTransform[Any, Any]):
    """Looks whether the audio of finished rows is there, readable and as long as the row says.

    In: ``KeptRow`` with its ``audio``. Out: the same rows without it; ``broken`` says what is
    wrong. The header and the last sample are read: damage in the middle is not found.

    Attributes:
        storage: how the files are reached.
        overlap: how many are looked at beside each other.
    """

    storage: Storage
    overlap: Overlap

    def expand(self, kept: PCollection[KeptRow]) -> PCollection[KeptRow]:
        """Looks at the audio of each row, several files at once."""
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
        faults = map(self._fault, kept.audio)
        return [dataclasses.replace(kept, audio=(), broken=next(filter(None, faults), None))]

    def emit(self, result: KeptRow) -> KeptRow:
        return result

    def _fault(self, audio: KeptAudio) -> str | None:
        """What is wrong with a file; raises OSError where the store does not say."""
        part = AudioPart(
            sample_rate_hz=audio.sample_rate_hz,
            num_channels=audio.num_channels,
            start=0,
            num_samples=audio.num_samples,
        )
        try:
            with self._storage.open(audio.uri) as file:
                require_whole(file, part)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, WriteError) as err:
            return describe(err, audio.uri)
        return None


@dataclasses.dataclass(eq=False)
class Reconcile(beam.PTransform[Any, Any]):
    """Decides what is to be done, what stays finished, and what leaves the tables.

    In: ``{"rows": ManifestRow, "invalid": Failure, "kept": KeptRow, "segments": KeptSegments,
    "letters": KeptLetter}``. Out, by name: ``rows`` to be done; ``failed``, later rows of an id;
    ``kept``, each id once; ``letters`` about rows that this manifest does not have; ``leaving``;
    and ``segments`` that leave. Which of several comes first is decided by file and row number,
    never by the order of arrival. A row of the table stays only with as many segments as it says.

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
            "segments": inputs["segments"]
            | "KeySegments" >> beam.Map(_of_segments).with_output_types(tuple[str, KeptSegments]),
            "letters": inputs["letters"]
            | "KeyLetters" >> beam.Map(_of_letter).with_output_types(tuple[str, KeptLetter]),
        }
        found = (
            keyed
            | "ById" >> beam.CoGroupByKey()
            | "Decide"
            >> beam.FlatMap(_decided, self.rules).with_outputs(
                dead_letters.FAILED, "kept", "letters", "leaving", "segments", main="rows"
            )
        )
        names = ("rows", dead_letters.FAILED, "kept", "letters", "leaving", "segments")
        return {name: found[name] for name in names}


def _of_row(row: ManifestRow) -> tuple[str, ManifestRow]:
    return row.id, row


def _of_failure(failure: Failure) -> tuple[str, bool]:
    return _key(failure.row.id if failure.row is not None else None, failure.row_json), True


def _of_kept(kept: KeptRow) -> tuple[str, KeptRow]:
    return kept.id, kept


def _of_segments(segments: KeptSegments) -> tuple[str, KeptSegments]:
    return segments.id, segments


def _of_letter(letter: KeptLetter) -> tuple[str, KeptLetter]:
    return letter.key, letter


def _decided(group: tuple[str, Mapping[str, Iterable[Any]]], rules: KeptRules) -> Iterator[Any]:
    """The outputs of one id."""
    row_id, found = group
    first = yield from first_of(found["rows"])
    asked = first is not None or any(found["invalid"])
    chosen: KeptRow | None = None
    segments = list(found["segments"])
    num_segments = sum(each.count for each in segments)
    for kept in sorted(found["kept"], key=lambda kept: (not kept.in_table, kept.uri)):
        why = _why_not(kept, first, asked, rules)
        if why is None and kept.in_table and kept.num_segments not in (None, num_segments):
            why = UNFOUND
        if why is None and (chosen is None or not kept.in_table):
            chosen = chosen or kept
            continue  # what the journal has too need not leave it
        but_one = chosen is not None and chosen.uri == kept.uri
        leaving = Leaving(uri=kept.uri, id=row_id, why=why or DOUBLE, but_one=but_one)
        yield beam.pvalue.TaggedOutput("leaving", leaving)
    if chosen is None or not chosen.in_table:  # the journal brings its own
        for each in segments:
            leaving = Leaving(uri=each.uri, id=row_id, why=GONE, of_segments=True)
            yield beam.pvalue.TaggedOutput("segments", leaving)
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
    return bool(kept.row_sha256 == row.sha256)


def _why_not(kept: KeptRow, first: ManifestRow | None, asked: bool, rules: KeptRules) -> str | None:
    """Why a kept row leaves; None where it stays."""
    if kept.broken is not None:
        return BROKEN
    if not asked:
        return GONE if rules.covers else None
    if rules.retrying and (first is None or not _same(kept, first)):
        return None
    if kept.row_sha256 is None:
        return UNKNOWN
    return None if first is not None and _same(kept, first) else CHANGED


def _letters(
    letters: Iterable[KeptLetter], *, asked: bool, finished: bool, rules: KeptRules
) -> Iterator[Any]:
    """Yields the earlier dead letters that stay; rows that run again get a new result."""
    if asked or rules.covers:
        return
    seen = set()
    for letter in sorted(letters, key=lambda letter: (letter.place, letter.uri)):
        if letter.listed and any(looks_into(root, letter.listed) for root in rules.roots):
            continue
        if letter.place not in seen and (letter.is_second or not finished):
            seen.add(letter.place)
            yield beam.pvalue.TaggedOutput("letters", letter)


@dataclasses.dataclass(eq=False)
class LeaveTables(beam.PTransform[Any, Any]):
    """Takes rows out of the files of earlier attempts, and gives those the columns that they lack.

    In: ``{"files": KeptFile, "leaving": Leaving, "damaged": Damage, "names": str}``. Out: the URI
    of each file that was looked at, when it is as it should be. A file of a table that is damaged
    is set aside; one that is left without rows goes. Files of the journal that no row leaves stay
    as they are. Doing it again changes nothing.

    Attributes:
        uri: the output folder.
        schema: of the table.
        storage: how files are reached.
    """

    uri: str
    schema: pa.Schema
    storage: Storage

    def expand(self, inputs: Mapping[str, PCollection[Any]]) -> PCollection[str]:
        """Rewrites each file that rows leave, or that lacks a column."""
        names = inputs["names"] | "DistinctNames" >> beam.Distinct()
        keyed = {
            "tables": inputs["files"]
            | "Tables" >> beam.Filter(_is_table)
            | "KeyTables" >> beam.Map(_by_uri).with_output_types(tuple[str, KeptFile]),
            "leaving": inputs["leaving"]
            | "KeyLeaving" >> beam.Map(_by_uri).with_output_types(tuple[str, Leaving]),
            "damaged": inputs["damaged"]
            | "KeyDamaged" >> beam.Map(_by_uri).with_output_types(tuple[str, Damage]),
        }
        return (
            keyed
            | "ByFile" >> beam.CoGroupByKey()
            | "Rewrite"
            >> beam.ParDo(
                _RewriteFn(self.uri, self.schema, self.storage), beam.pvalue.AsList(names)
            ).with_output_types(str)
        )


def _is_table(file: KeptFile) -> bool:
    return file.kind == TABLE


def _by_uri(element: KeptFile | Leaving | Damage) -> tuple[str, Any]:
    return element.uri, element


class _RewriteFn(beam.DoFn):
    def __init__(self, output: str, schema: pa.Schema, storage: Storage) -> None:
        self._output, self._storage = output, storage
        self._schema_bytes = schema.serialize().to_pybytes()

    def process(
        self, group: tuple[str, Mapping[str, Iterable[Any]]], names: Sequence[str]
    ) -> Iterator[str]:
        uri, found = group
        damage: Damage | None = next(iter(found["damaged"]), None)
        if damage is None:
            self._rewrite(uri, list(found["leaving"]), names if any(found["tables"]) else None)
        elif damage.kind != JOURNAL:  # the journal goes at the end of the run
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

    def _schema(self) -> pa.Schema:
        return pa.ipc.read_schema(pa.py_buffer(self._schema_bytes))

    def _rewrite(self, uri: str, leaving: list[Leaving], names: Sequence[str] | None) -> None:
        try:
            with self._storage.open(uri) as stream:
                there = pq.ParquetFile(stream).schema_arrow
                wanted = there if names is None else with_extra(self._schema(), names)
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


def leave_letters_once(uris: Sequence[str], storage: Storage) -> None:
    """Takes dead letters out of files of which another file has them too.

    A run that is killed between its own and the removal of the older ones leaves them twice, and a
    manifest of them would have each row for a second time. The latest stay.

    Args:
        uris: files of dead letters, those of later attempts last.
        storage: how they are reached.
    """
    seen: set[Any] = set()
    for uri in reversed(uris) if len(uris) > 1 else ():
        table = _whole_table(uri, storage)
        if table is None or not {*_LETTER_COLUMNS} <= {*table.column_names}:
            continue
        names = list(map(_letter_name, table.select(_LETTER_COLUMNS).to_pylist()))
        once = [name not in seen for name in names]
        seen.update(names)
        if not all(once):
            storage.write_bytes(uri, parquet_bytes(table.filter(pa.array(once, pa.bool_()))))


def forget_origin(uris: Iterable[str], digest: str, storage: Storage) -> None:
    """Takes the digest out of rows of which nobody knows what they were made with.

    They stay as they are, and are done again when a manifest asks for them. Files that cannot be
    read whole are left as they are. Doing it again changes nothing.

    Args:
        uris: files of a table and of its journal.
        digest: the column.
        storage: how they are reached.
    """
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        deque(pool.map(functools.partial(_forget, digest=digest, storage=storage), uris), maxlen=0)


def _whole_table(uri: str, storage: Storage) -> pa.Table | None:
    """The table in a file; None where it cannot be read whole, which :class:`ReadKept` says."""
    data = storage.read_bytes(uri)
    try:
        return pq.ParquetFile(io.BytesIO(data)).read()
    except (pa.ArrowException, OSError, ValueError):
        return None


def _forget(uri: str, digest: str, storage: Storage) -> None:
    table = _whole_table(uri, storage)
    place = -1 if table is None else table.schema.get_field_index(digest)
    if table is not None and place >= 0 and table[digest].null_count < len(table):
        field = table.schema.field(place)
        table = table.set_column(place, field, pa.nulls(len(table), field.type))
        storage.write_bytes(uri, parquet_bytes(table))


def _stays(ids: Sequence[str], leaving: Iterable[Leaving]) -> list[bool]:
    """Of each row of a file, whether it stays: an id stands there once, but among segments."""
    seen = {each.id for each in leaving if not each.but_one}
    once = not any(each.of_segments for each in leaving)
    stays = []
    for row_id in ids:
        stays.append(row_id not in seen)
        if once:
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
        done = self.files | "Count" >> Count.Globally()
        waiting = beam.pvalue.AsSingleton(done)
        return rows | "Wait" >> beam.Map(_row, waiting).with_output_types(ManifestRow)


def _row(row: ManifestRow, _: int) -> ManifestRow:
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
