"""Rows → Parquet files of bounded number and size, in Hive partitions, with names that repeat."""

from __future__ import annotations

import dataclasses
import io
import itertools
import pickle
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.pvalue import PCollection
from apache_beam.transforms.combiners import Count
from apache_beam.transforms.window import GlobalWindow

from manifests.columns import with_extra
from manifests.row import EXTRA_PREFIX
from transforms.elements import TableRow
from transforms.storage import Storage, join
from transforms.threaded import in_window

ROWS_PER_FILE = 550_000
"""A row of metrics takes 200 to 250 bytes in Parquet: files land near 128 MB."""
_ROWS_PER_BATCH = 4_096
_PACK_SIZE = 4_096


@dataclasses.dataclass(eq=False)
class WriteTable(beam.PTransform[Any, Any]):
    """Rows → Parquet files.

    In: ``TableRow``. Out: ``(uri, number of rows)`` of each file. A file is written whole or not at
    all; the same rows give the same files, in whatever order they come.

    Attributes:
        uri: folder of the table.
        schema: its columns; ``extra_…`` columns are added to every file.
        storage: how files are reached.
        prefix: of the files' names: an earlier attempt's files are left alone.
        shards: files a partition; 0: as many as it takes to stay near ``ROWS_PER_FILE`` rows each.
        names: PCollection of ``extra_…`` columns that every file has; None: those of the rows.
        metadata: PCollection of names and texts that every file has in its metadata; None: none.
        weight: as how many rows of metrics a row counts, by its size.
    """

    uri: str
    schema: pa.Schema
    storage: Storage
    prefix: str = "part"
    shards: int = 0
    names: Any = None
    metadata: Any = None
    weight: int = 1

    def expand(self, rows: PCollection[TableRow]) -> PCollection[tuple[str, int]]:
        """Counts the rows, shards them and writes each shard as a file."""
        names = self.names
        if names is None:
            names = (
                rows
                | "ExtraNames" >> beam.FlatMap(_extra_names).with_output_types(str)
                | "DistinctNames" >> beam.Distinct()
            )
        counts = (
            rows
            | "Partitions" >> beam.Map(_partition).with_output_types(str)
            | "CountRows" >> Count.PerElement()
        )
        return (
            rows
            | "Pack" >> Pack()
            | "Shard"
            >> beam.ParDo(
                _ShardFn(self.shards, self.weight), beam.pvalue.AsDict(counts)
            ).with_output_types(tuple[str, bytes])
            | "ByFile" >> beam.GroupByKey()
            | "Write"
            >> beam.ParDo(
                _WriteFileFn(self.uri, self.schema, self.storage, self.prefix),
                beam.pvalue.AsList(names),
                {} if self.metadata is None else beam.pvalue.AsDict(self.metadata),
            ).with_output_types(tuple[str, int])
        )


def _extra_names(row: TableRow) -> Iterable[str]:
    return row.extra.keys()


def _partition(row: TableRow) -> str:
    return row.partition


@dataclasses.dataclass(eq=False)
class Pack(beam.PTransform[Any, Any]):
    """Elements → packs of them, for where many have to wait for something.

    In: anything that can be pickled, in the global window. Out: ``bytes``, which :func:`unpack`
    gives the elements of. A row of metrics that waits as an object takes 5 kB, in a pack 0.2.
    """

    def expand(self, elements: PCollection[Any]) -> PCollection[bytes]:
        """Packs what comes together in a bundle."""
        return elements | "Pack" >> beam.ParDo(_PackFn()).with_output_types(bytes)


class _PackFn(beam.DoFn):
    def __init__(self) -> None:
        self._elements: list[Any] = []

    def start_bundle(self) -> None:
        self._elements = []

    def process(self, element: Any) -> Iterator[bytes]:
        self._elements.append(element)
        if len(self._elements) == _PACK_SIZE:
            yield pack(self._elements)
            self._elements = []

    def finish_bundle(self) -> Iterator[Any]:
        if self._elements:
            yield in_window(pack(self._elements), GlobalWindow())
        self._elements = []


def pack(elements: Sequence[Any]) -> bytes:
    """Elements as few bytes; they are mostly alike."""
    return zlib.compress(pickle.dumps(elements, protocol=5), level=1)


def unpack(data: bytes) -> Sequence[Any]:
    """The elements of a pack."""
    elements: Sequence[Any] = pickle.loads(zlib.decompress(data))  # noqa: S301 - written by `pack`
    return elements


class _ShardFn(beam.DoFn):
    """Packs of rows → packs of the rows of one file each, keyed by its name."""

    def __init__(self, shards: int, weight: int) -> None:
        self._shards, self._weight = shards, weight
        self._rows: defaultdict[str, list[TableRow]] = defaultdict(list)
        self._num_rows = 0

    def start_bundle(self) -> None:
        self._rows, self._num_rows = defaultdict(list), 0

    def process(self, data: bytes, counts: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
        for row in unpack(data):
            self._rows[_file_of(row, counts, self._shards, self._weight)].append(row)
            self._num_rows += 1
        if self._num_rows >= 2 * _PACK_SIZE:
            yield from self._flush()

    def finish_bundle(self) -> Iterator[Any]:
        for each in self._flush():
            yield in_window(each, GlobalWindow())

    def _flush(self) -> Iterator[tuple[str, bytes]]:
        for file, rows in self._rows.items():
            yield file, pack(rows)
        self.start_bundle()


def _file_of(row: TableRow, counts: Mapping[str, int], shards: int, weight: int = 1) -> str:
    total = shards or -(-counts[row.partition] * weight // ROWS_PER_FILE)
    shard = zlib.crc32(row.key.encode("utf-8", "surrogatepass")) % total
    return f"{row.partition}|{shard:05d}-of-{total:05d}"


class _WriteFileFn(beam.DoFn):
    def __init__(self, uri: str, schema: pa.Schema, storage: Storage, prefix: str) -> None:
        self._uri, self._storage, self._prefix = uri, storage, prefix
        self._schema_bytes = schema.serialize().to_pybytes()

    def process(
        self,
        group: tuple[str, Iterable[bytes]],
        extra: Sequence[str],
        metadata: Mapping[str, str],
    ) -> Iterator[tuple[str, int]]:
        partition, shard = group[0].rsplit("|", 1)
        schema = with_extra(pa.ipc.read_schema(pa.py_buffer(self._schema_bytes)), extra)
        schema = schema.with_metadata({**(schema.metadata or {}), **metadata})
        rows = itertools.chain.from_iterable(map(unpack, group[1]))
        table = sorted_table(rows, schema)
        parts = [part for part in (partition, f"{self._prefix}-{shard}.parquet") if part]
        uri = join(self._uri, *parts)
        self._storage.write_bytes(uri, parquet_bytes(table))
        yield uri, table.num_rows


def sorted_table(rows: Iterable[TableRow], schema: pa.Schema) -> pa.Table:
    """Rows as a table with the columns of ``schema``, sorted by their keys.

    Raises:
        ValueError: a row has a column that the schema lacks.
    """
    keyed = schema.append(pa.field(_KEY, pa.string()))
    batches = [
        pa.RecordBatch.from_pylist([_columns(row, schema) for row in chunk], schema=keyed)
        for chunk in _chunks(rows)
    ]
    table = pa.Table.from_batches(batches, schema=keyed)
    return table.sort_by(_KEY).drop_columns([_KEY])


_KEY = "__key"


def _columns(row: TableRow, schema: pa.Schema) -> dict[str, Any]:
    columns = dict(row.record)
    columns.update({EXTRA_PREFIX + name: value for name, value in row.extra.items()})
    unknown = columns.keys() - set(schema.names)
    if unknown:
        raise ValueError(f"columns {sorted(unknown)} are not in the schema")
    return {_KEY: row.key, **columns}


def _chunks(rows: Iterable[TableRow]) -> Iterator[list[TableRow]]:
    chunk: list[TableRow] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _ROWS_PER_BATCH:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
