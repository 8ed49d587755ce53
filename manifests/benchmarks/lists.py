"""Reading the lists of a benchmark: pairs of clips, example clips of a class, captions."""

from __future__ import annotations

import ast
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from manifests.files import ManifestError, StorageOptions, open_bytes, reading
from manifests.row import quoted


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A target clip, what it sounds like, and the interferer it is mixed with.

    ``group`` is the recording that the target was cut from, where the list says it.
    """

    source_file: str
    positive_caption: str
    noise_file: str
    negative_caption: str
    group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Cells of a list by column name, and the line of the file, from 1, where they begin."""

    row: int
    cells: Mapping[str, str]


def read_table(
    uri: str, columns: Sequence[str], storage_options: StorageOptions = None
) -> Iterator[Line]:
    """Lines of a CSV list; spaces after a comma do not count.

    Args:
        uri: the list; ``.gz`` is decompressed.
        columns: what its header must have; a column that occurs twice has its first value.
        storage_options: keyword arguments of the file system.

    Raises:
        ManifestError: the list cannot be read, lacks a column, or a line lacks a cell.
    """
    with reading(uri), open_bytes(uri, storage_options) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            reader = csv.reader(text, skipinitialspace=True, strict=True)
            header = next(reader, [])
            lacking = [name for name in columns if name not in header]
            if lacking:
                raise ManifestError(f"{uri}: no column {lacking[0]} in {quoted(','.join(header))}")
            row = reader.line_num + 1
            for cells in reader:
                if len(cells) not in (0, len(header)):
                    raise ManifestError(
                        f"{uri}, row {row}: {len(cells)} cells; expected {len(header)}"
                    )
                if cells:
                    named = dict(zip(reversed(header), reversed(cells), strict=True))
                    yield Line(row=row, cells=named)
                row = reader.line_num + 1
        except csv.Error as err:
            raise ManifestError(f"{uri}, row {reader.line_num}: {err}") from err
        except UnicodeDecodeError as err:
            raise ManifestError(f"{uri}: not UTF-8 text") from err


def filled(line: Line, name: str, uri: str) -> str:
    """The cell ``name`` without the space around it.

    Raises:
        ManifestError: the cell is empty.
    """
    value = line.cells[name].strip()
    if not value:
        raise ManifestError(f"{uri}, row {line.row}: {name} is empty")
    return value


def optional(line: Line, name: str) -> str | None:
    """The cell ``name`` without the space around it; None where it is empty or no column."""
    return line.cells.get(name, "").strip() or None


def read_pairs(uri: str) -> list[Pair]:
    """The official list of pairs, ``source_file,positive_caption,noise_file,negative_caption``.

    A list of one's own may have a column ``group`` too.

    Raises:
        ManifestError: the list cannot be read, or a line pairs a clip with itself.
    """
    names = ("source_file", "positive_caption", "noise_file", "negative_caption")
    pairs = []
    for line in read_table(uri, names):
        cells = {name: filled(line, name, uri) for name in names}
        pair = Pair(**cells, group=optional(line, "group"))
        if pair.source_file == pair.noise_file:
            raise ManifestError(f"{uri}, row {line.row}: {pair.source_file} is its own interferer")
        pairs.append(pair)
    return pairs


def read_samples(uri: str) -> Mapping[str, tuple[str, ...]]:
    """Example clips of each class: the official list, ``class,file``.

    ``file`` is a list in Python's notation, as in the official lists, or separated by ``;``.

    Raises:
        ManifestError: the list cannot be read, or has a class twice or without clips.
    """
    samples: dict[str, tuple[str, ...]] = {}
    for line in read_table(uri, ("class", "file")):
        name, text = filled(line, "class", uri), filled(line, "file", uri)
        files = _file_list(text)
        if not files or name in samples:
            raise ManifestError(
                f"{uri}, row {line.row}: {quoted(text)}; expected one list of clips"
            )
        samples[name] = files
    return samples


def _file_list(text: str) -> tuple[str, ...]:
    if not text.startswith("["):
        return tuple(item.strip() for item in text.split(";") if item.strip())
    try:
        items = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return ()
    if isinstance(items, list) and all(isinstance(item, str) and item for item in items):
        return tuple(items)
    return ()
