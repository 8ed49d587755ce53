"""Writing rows as CSV, JSONL or Parquet."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.columns import MANIFEST_SCHEMA, with_extra
from manifests.files import StorageOptions, filesystem, format_of, is_gzip, written
from manifests.files.readers import read_cell
from manifests.row import EXTRA_PREFIX, MANIFEST_COLUMNS, ManifestRow, quoted

_BATCH_ROWS = 4_096


class RowWriter:
    """Writes rows to one file, in the format of its name; a context manager.

    The file appears when the block ends without an exception, and not at all otherwise. The same
    rows give the same bytes.
    """

    def __init__(
        self,
        uri: str,
        *,
        columns: Sequence[str] = MANIFEST_COLUMNS,
        extra_names: Iterable[str] = (),
        storage_options: StorageOptions = None,
    ) -> None:
        """Prepares, without touching the file.

        Args:
            uri: where to write; ``.csv`` and ``.jsonl`` may be followed by ``.gz``.
            columns: the manifest's columns that the rows use. Parquet always has all of them.
            extra_names: the further columns that rows have in ``extra``.
            storage_options: keyword arguments of the file system.

        Raises:
            ManifestError: the name says no known format.
            ValueError: a column that manifests do not have.
        """
        self._format = format_of(uri)
        unknown = sorted(set(columns) - set(MANIFEST_COLUMNS))
        if unknown:
            raise ValueError(f"columns {unknown}; expected some of {', '.join(MANIFEST_COLUMNS)}")
        self._extra = sorted(set(extra_names))
        self._columns = [name for name in MANIFEST_COLUMNS if name in {"id", *columns}]
        self._columns += [EXTRA_PREFIX + name for name in self._extra]
        self._schema = with_extra(MANIFEST_SCHEMA, self._extra)
        self._gzip = is_gzip(uri)
        self._files, self._path = filesystem(uri, storage_options)
        self._stack = contextlib.ExitStack()
        self._batch: list[dict[str, Any]] = []
        self.num_rows = 0

    def __enter__(self) -> Self:
        """Opens a hidden file, beside the one to be written where that is local."""
        with contextlib.ExitStack() as stack:
            unfinished = stack.enter_context(written(self._files, self._path))
            self._raw = stack.enter_context(open(unfinished, "wb"))
            self._begin()
            self._stack = stack.pop_all()
        return self

    def _begin(self) -> None:
        if self._format == "parquet":
            self._parquet = pq.ParquetWriter(self._raw, self._schema)
            return
        # No name and no time in the gzip header: the same rows give the same bytes.
        binary = gzip.GzipFile("", "wb", fileobj=self._raw, mtime=0) if self._gzip else self._raw
        self._binary = binary
        self._text = io.TextIOWrapper(binary, encoding="utf-8", newline="", write_through=False)
        if self._format == "csv":
            self._text.write(",".join(csv_cell(name) for name in self._columns) + "\n")

    def write(self, row: ManifestRow) -> None:
        """Appends a row.

        Raises:
            ValueError: the row uses a column that was not announced, or CSV cannot hold a value.
        """
        record = {name: value for name, value in row.to_record().items() if value is not None}
        columns = self._schema.names if self._format == "parquet" else self._columns
        unknown = sorted(record.keys() - set(columns))
        if unknown:
            raise ValueError(f"row {row.id!r} has {unknown}; expected only {', '.join(columns)}")
        self.num_rows += 1
        if self._format == "csv":
            cells = (csv_cell(cell_of(name, record.get(name))) for name in columns)
            self._text.write(",".join(cells) + "\n")
        elif self._format == "jsonl":
            self._text.write(json.dumps(record, ensure_ascii=False) + "\n")
        else:
            self._batch.append(record)
            if len(self._batch) == _BATCH_ROWS:
                self._flush()

    def _flush(self) -> None:
        if self._batch:
            table = pa.Table.from_pylist(self._batch, schema=self._schema)
            self._parquet.write_table(table, row_group_size=_BATCH_ROWS)
            self._batch.clear()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Puts the file in its place, or removes what was written of it."""
        if kind is None:
            with self._stack:
                self._end()
            return
        self._batch.clear()
        with contextlib.suppress(OSError):  # what went wrong first is what is said
            self._end()
        self._stack.__exit__(kind, error, traceback)

    def _end(self) -> None:
        if self._format == "parquet":
            self._flush()
            self._parquet.close()
            return
        self._text.flush()
        self._text.detach()
        if self._gzip:
            self._binary.close()


def write_rows(
    uri: str, rows: Iterable[ManifestRow], storage_options: StorageOptions = None
) -> int:
    """Writes rows that are in memory, with the columns that they use, and returns their number.

    Raises:
        ManifestError: the name says no known format.
    """
    rows = list(rows)
    used = {name for row in rows for name, value in row.to_record().items() if value is not None}
    extra = {name for row in rows for name in row.extra}
    columns = [name for name in MANIFEST_COLUMNS if name in used]
    with RowWriter(
        uri, columns=columns, extra_names=extra, storage_options=storage_options
    ) as writer:
        for row in rows:
            writer.write(row)
    return len(rows)


def cell_of(name: str, value: Any) -> str:
    """A value in a CSV cell; a list has ``;`` between items, or is JSON where that is unclear.

    Raises:
        ValueError: a reader would take the text for another one.
    """
    if value is None:
        return ""
    if not isinstance(value, list):
        text = str(value)
        if read_cell(name, text) != text:
            raise ValueError(
                f"{name} {quoted(text)} cannot be said in CSV, where blanks around a value do not "
                "count and words like NA stand for nothing; write JSONL or Parquet"
            )
        return text
    items = [str(item) for item in value]
    joined = ";".join(items)
    if (
        items[0].startswith("[")
        or any(";" in item or item != item.strip() for item in items)
        or read_cell(name, joined) is None
    ):
        return json.dumps(items, ensure_ascii=False)
    return joined


def csv_cell(text: str) -> str:
    """A CSV cell. The csv module leaves a lone CR unquoted, which its reader then refuses."""
    if any(char in text for char in ',"\r\n') or text.startswith("#"):
        return '"' + text.replace('"', '""') + '"'
    return text
