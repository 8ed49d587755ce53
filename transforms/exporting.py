"""Parts of audio files → the files of a data set: AudioFolder, WebDataset, Parquet, NeMo, labels.

Each layout is a line of :data:`LAYOUTS`: a layout that puts an item's audio into a file of its own
writes item by item; one that packs many items into a file gathers rows first, never samples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from apache_beam.pvalue import PCollection
from apache_beam.transforms.combiners import Count, ToList

import transforms.threaded  # noqa: F401 - registers the coders of our records
from manifests.columns import EXPORT_FIELDS, EXPORTED_SCHEMA
from manifests.row import (
    EXPORT_FOLDER,
    EXPORT_LISTS,
    SCHEMA_VERSION,
    ManifestRow,
    output_name,
)
from transforms.audio import AudioError, AudioPart, later
from transforms.audio.files import (
    READ_ERRORS,
    STEM_FORMATS,
    StemFormat,
    StemWriter,
    WriteError,
    describe,
    error_code,
    held_by,
    open_audio,
    write_errors,
)
from transforms.elements import Failure, MetricsRow, Stage, TableRow, failed
from transforms.storage import Storage, join
from transforms.storage.access import UriAccess
from transforms.tables import dead_letters, metrics_rows, row_counts

AUDIO_URI, START_S, END_S, FIELDS = "audio_uri", "start_s", "end_s", "fields"
"""Columns of an export's rows: which part of a file is taken, and what is said of it, as JSON."""
STEM_URI, STEM_START_S, STEM_RATE_HZ = "stem_uri", "stem_start_s", "stem_rate_hz"
"""Columns of the rows of labels, which are about recordings: where in which stem an item begins."""
_BLOCK_SAMPLES = 2**16
_ROWS_PER_GROUP = 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """What a data set is made of.

    Attributes:
        uri: the output folder.
        storage: how files are reached.
        access: the audio that may be read.
        clip_format: one of ``STEM_FORMATS``.
        clip_quality: of a lossy one, in [0, 1]; None: as libsndfile likes.
        shard_rows: items in a file of a layout that packs many into one.
        max_in_memory_s: of 48 kHz stereo: what packed layouts hold of one item.
    """

    uri: str
    storage: Storage
    access: UriAccess
    clip_format: StemFormat
    clip_quality: float | None = None
    shard_rows: int
    max_in_memory_s: float

    @property
    def ending(self) -> str:
        """Of files of audio."""
        return STEM_FORMATS[self.clip_format].ending


@dataclasses.dataclass(eq=False)
class WriteItems(beam.PTransform[Any, Any]):
    """Rows of a selection → the files of a data set.

    In: ``{"rows": ManifestRow, "selected": ManifestRow}`` with the columns above: what is to be
    done, and all that is selected. Out: ``MetricsRow`` with the columns of ``EXPORTED_SCHEMA`` for
    each row that is done, and ``Failure``. A file that holds several items is written with all of
    them, whichever of them are to be done.

    Attributes:
        settings: of the data set.
        layout: a name of ``LAYOUTS``.
        goes_on: whether some of what is selected is done already.
    """

    settings: ExportSettings
    layout: str
    goes_on: bool = False

    def expand(
        self, inputs: Mapping[str, PCollection[ManifestRow]]
    ) -> tuple[PCollection[MetricsRow], PCollection[Failure]]:
        """Gathers the rows of each file, and writes the files."""
        layout, shard_rows = LAYOUTS[self.layout], self.settings.shard_rows
        count = beam.pvalue.AsSingleton(inputs["selected"] | "Count" >> Count.Globally())
        names = ("rows", "selected") if self.goes_on else ("rows",)
        keyed = {
            name: inputs[name]
            | f"Key_{name}"
            >> beam.Map(_keyed, layout, shard_rows, count).with_output_types(
                tuple[str, ManifestRow]
            )
            for name in names
        }
        outputs = (
            keyed
            | "ByFile" >> beam.CoGroupByKey()
            | "Write"
            >> beam.ParDo(_WriteFn(self.settings, layout))
            .with_output_types(MetricsRow, **{dead_letters.FAILED: Failure})
            .with_outputs(dead_letters.FAILED, main="items")
        )
        return outputs["items"], outputs[dead_letters.FAILED]


@dataclasses.dataclass(eq=False)
class WriteList(beam.PTransform[Any, Any]):
    """Every item of a data set → the file that names them, where the layout has one.

    In: ``MetricsRow`` as of :class:`WriteItems`. Out: the URI of the list; nothing where there is
    none.

    Attributes:
        settings: of the data set.
        layout: a name of ``LAYOUTS``.
    """

    settings: ExportSettings
    layout: str

    def expand(self, items: PCollection[MetricsRow]) -> PCollection[str]:
        """Gathers a line for each item in one place."""
        layout = LAYOUTS[self.layout]
        if layout.list_name is None:
            return items | "NoList" >> beam.FlatMap(_nothing).with_output_types(str)
        uri = join(self.settings.uri, layout.list_name)
        return (
            items
            | "Lines" >> beam.Map(layout.line).with_output_types(str)
            | "OneList" >> ToList()
            | "Write" >> beam.Map(_write_list, uri, self.settings.storage).with_output_types(str)
        )


def _nothing(_: MetricsRow) -> Iterator[str]:
    yield from ()


class Layout:
    """How a data set is laid out.

    Attributes:
        list_name: the file that names the items, as a path below the output folder; None: none.
    """

    list_name: str | None = None

    def file_key(self, row: ManifestRow, num_files: int) -> str:
        """Name of the file, or of the group of files, that a row goes into."""
        raise NotImplementedError

    def write(
        self, key: str, rows: Sequence[ManifestRow], settings: ExportSettings
    ) -> Iterator[Any]:
        """Writes the rows of a key; yields a ``MetricsRow`` or a ``Failure`` for each."""
        raise NotImplementedError

    def line(self, item: MetricsRow) -> str:
        """What the list says of an item: JSON on one line."""
        raise NotImplementedError


class _EachItsFile(Layout):
    """An item's audio is a file; a list names them all."""

    def file_key(self, row: ManifestRow, num_files: int) -> str:
        return row.id

    def write(
        self, key: str, rows: Sequence[ManifestRow], settings: ExportSettings
    ) -> Iterator[Any]:
        for row in rows:
            file = f"{EXPORT_FOLDER}/audio/{file_name(row.id)}.{settings.ending}"
            uri = join(settings.uri, file)
            try:
                with contextlib.ExitStack() as stack:
                    with write_errors(uri):
                        within = join(settings.uri, EXPORT_FOLDER)
                        path = stack.enter_context(settings.storage.temporary(uri, within))
                    part, fields = _encode(row, path, settings, uri)
                    _publish(settings.storage, uri, path)
            except READ_ERRORS as err:
                yield _failure(row, err, settings)
                continue
            yield _item(row, file, row.id, fields, part)


class AudioFolder(_EachItsFile):
    """Hugging Face's AudioFolder; its list is JSON, since CSV cannot keep ``001`` or ``NA``."""

    list_name = f"{EXPORT_FOLDER}/{EXPORT_LISTS[0]}"

    def line(self, item: MetricsRow) -> str:
        """A line of ``metadata.jsonl``."""
        return as_json({"file_name": _in_folder(item), **_fields(item)})


class Nemo(_EachItsFile):
    """NVIDIA NeMo's manifest."""

    list_name = f"{EXPORT_FOLDER}/{EXPORT_LISTS[1]}"

    def line(self, item: MetricsRow) -> str:
        """A line of NeMo's manifest; its ``text`` is what was asked for."""
        duration_s = item.values["duration_s"]
        told = {"audio_filepath": _in_folder(item), "duration": duration_s, "offset": 0.0}
        return as_json({**told, "text": item.values["positive_text"] or "", **_fields(item)})


class _Packed(Layout):
    """Many items in a file."""

    def file_key(self, row: ManifestRow, num_files: int) -> str:
        number = zlib.crc32(row.id.encode("utf-8", "surrogatepass")) % num_files
        return f"{number:05d}-of-{num_files:05d}"

    def _encoded(
        self, row: ManifestRow, settings: ExportSettings, scratch: str, uri: str
    ) -> tuple[bytes, AudioPart, dict[str, Any]]:
        part, fields = _encode(row, scratch, settings, uri, in_memory=True)
        return Path(scratch).read_bytes(), part, fields


class WebDataset(_Packed):
    """Tar files of neighbouring members; every sample has the same fields.

    A key has no dot, at which readers would end it. Samples of which everything is known come
    first: readers take the types of all from the first few. Whether a time of recording is known
    turns out when a sample is made: those without are gathered in a tar of their own meanwhile.
    """

    def write(
        self, key: str, rows: Sequence[ManifestRow], settings: ExportSettings
    ) -> Iterator[Any]:
        """Writes a tar."""
        file = f"{EXPORT_FOLDER}/shard-{key}.tar"
        uri = join(settings.uri, file)
        items: list[MetricsRow] = []
        with (
            _scratch(settings, uri) as (path, scratch),
            settings.storage.temporary(uri) as undated_path,
        ):
            with _tar(path) as dated:
                with _tar(undated_path) as undated:
                    for row in sorted(rows, key=_unknowns_last):
                        try:
                            audio, part, fields = self._encoded(row, settings, scratch, uri)
                        except READ_ERRORS as err:
                            yield _failure(row, err, settings)
                            continue
                        key = sample_key(row.id)
                        sample = {settings.ending: audio, "json": as_json(fields).encode()}
                        tar = undated if fields["recorded_at"] is None else dated
                        tar.write({"__key__": key, **sample})
                        items.append(_item(row, file, key, fields, part))
                has_dated = any(item.values["recorded_at"] is not None for item in items)
                if has_dated:
                    with tarfile.open(undated_path) as rest:
                        for member in rest:
                            dated.tarstream.addfile(member, rest.extractfile(member))
            if items:
                _publish(settings.storage, uri, path if has_dated else undated_path)
        yield from items


@contextlib.contextmanager
def _tar(path: str) -> Iterator[webdataset.TarWriter]:
    with (
        open(path, "wb") as raw,
        contextlib.closing(webdataset.TarWriter(raw, encoder=False, mtime=0)) as tar,
    ):
        yield tar


class ParquetDataset(_Packed):
    """Parquet with the audio's bytes inside, as Hugging Face's ``Audio`` has them."""

    def write(
        self, key: str, rows: Sequence[ManifestRow], settings: ExportSettings
    ) -> Iterator[Any]:
        """Writes a Parquet file."""
        file = f"{EXPORT_FOLDER}/part-{key}.parquet"
        uri = join(settings.uri, file)
        items: list[MetricsRow] = []
        group: list[dict[str, Any]] = []
        with _scratch(settings, uri) as (path, scratch):
            with pq.ParquetWriter(path, PARQUET_SCHEMA) as table:
                for row in rows:
                    try:
                        audio, part, fields = self._encoded(row, settings, scratch, uri)
                    except READ_ERRORS as err:
                        yield _failure(row, err, settings)
                        continue
                    name = f"{output_name(row.id)}.{settings.ending}"
                    group.append({"audio": {"bytes": audio, "path": name}, **fields})
                    items.append(_item(row, file, row.id, fields, part))
                    if len(group) == _ROWS_PER_GROUP:
                        table.write_table(pa.Table.from_pylist(group, PARQUET_SCHEMA))
                        group.clear()
                if group:
                    table.write_table(pa.Table.from_pylist(group, PARQUET_SCHEMA))
            if items:
                _publish(settings.storage, uri, path)
        yield from items


class _Labels(Layout):
    """One table of times for each recording, which is not read; when it began, stems say."""

    ending = ""

    def file_key(self, row: ManifestRow, num_files: int) -> str:
        return row.extra[AUDIO_URI]

    def write(
        self, key: str, rows: Sequence[ManifestRow], settings: ExportSettings
    ) -> Iterator[Any]:
        file = f"{EXPORT_FOLDER}/{label_name(key)}{self.ending}"
        uri = join(settings.uri, file)
        ordered = sorted(rows, key=lambda row: (float(row.extra[START_S]), row.id))
        moments = {uri: _moment(uri, settings) for uri in {row.extra[STEM_URI] for row in rows}}
        fields = [
            _dated(
                fields_of(row),
                later(moments[row.extra[STEM_URI]], float(row.extra[STEM_START_S] or 0.0)),
            )
            for row in ordered
        ]
        text = "".join(self.lines(ordered, fields))
        try:
            settings.storage.write_bytes(uri, text.encode("utf-8", "replace"))
        except OSError as err:
            for row in rows:
                yield failed(row, "write", error_code(err), describe(err, uri))
            return
        for row, each in zip(ordered, fields, strict=True):
            yield _item(row, file, row.id, each)

    def lines(
        self, rows: Sequence[ManifestRow], items: Sequence[Mapping[str, Any]]
    ) -> Iterator[str]:
        """The lines of a table, each with its end.

        Args:
            rows: of the items.
            items: their fields, in the same order.
        """
        raise NotImplementedError


class Audacity(_Labels):
    """Audacity's label tracks: start, end and a text, without a header."""

    ending = ".txt"

    def lines(
        self, rows: Sequence[ManifestRow], items: Sequence[Mapping[str, Any]]
    ) -> Iterator[str]:
        """The labels of a track."""
        for item in items:
            yield f"{item[START_S]:.6f}\t{item[END_S]:.6f}\t{annotation(item)}\n"


class Raven(_Labels):
    """Raven's selection tables.

    A selection has all frequencies, 0 to half the stem's rate: Raven does without, but libraries
    that read such tables (opensoundscape, crowsetta) refuse one that has not both columns.
    """

    ending = ".Table.1.selections.txt"

    def lines(
        self, rows: Sequence[ManifestRow], items: Sequence[Mapping[str, Any]]
    ) -> Iterator[str]:
        """A header and the selections."""
        yield (
            "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\t"
            "Low Freq (Hz)\tHigh Freq (Hz)\tAnnotation\tScore\n"
        )
        for number, (row, item) in enumerate(zip(rows, items, strict=True), 1):
            score = "" if item["presence"] is None else f"{item['presence']:.6f}"
            times = f"{item[START_S]:.6f}\t{item[END_S]:.6f}"
            band = f"0.0\t{float(row.extra[STEM_RATE_HZ] or 0) / 2}"
            yield f"{number}\tSpectrogram 1\t1\t{times}\t{band}\t{annotation(item)}\t{score}\n"


LAYOUTS: Mapping[str, Layout] = {
    "audiofolder": AudioFolder(),
    "webdataset": WebDataset(),
    "parquet": ParquetDataset(),
    "nemo": Nemo(),
    "audacity": Audacity(),
    "raven": Raven(),
}
LABELS: frozenset[str] = frozenset(
    name for name, layout in LAYOUTS.items() if isinstance(layout, _Labels)
)
"""Layouts that say times in a recording, and hold no audio."""

_HUGGING_FACE = {"string": "string", "double": "float64"}
PARQUET_SCHEMA = pa.schema(
    [
        pa.field("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        *(column.field for column in EXPORT_FIELDS),
    ],
    metadata={
        "huggingface": json.dumps(
            {
                "info": {
                    "features": {
                        "audio": {"_type": "Audio"},
                        **{
                            column.name: {
                                "dtype": _HUGGING_FACE[str(column.type)],
                                "_type": "Value",
                            }
                            for column in EXPORT_FIELDS
                        },
                    }
                }
            }
        )
    },
)


_SPLITS = re.compile(
    "(?<![a-z])(training|train|validation|valid|val|dev|testing|test|evaluation|eval)(?![a-z])",
    re.IGNORECASE,
)


def file_name(row_id: str) -> str:
    """Path of an item's file, without a suffix: that of its stem, but for the names of splits.

    Hugging Face's AudioFolder takes every file with such a word in its path for that split, and
    silently leaves all others out, whatever the metadata say (datasets 5.2): a ``~`` ends the word.
    No two ids share a path, since no plain one has a ``~``.
    """
    return _SPLITS.sub(r"\1~", output_name(row_id))


def sample_key(row_id: str) -> str:
    """The key of a WebDataset sample: the id's file name; two ids never share one.

    A name with a dot gets underscores for dots and a digest, since a key ends at the first dot.
    """
    name = output_name(row_id)
    if "." not in name:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name.replace('.', '_')}~{digest}"


def label_name(uri: str) -> str:
    """The name of a recording's label file: its own, and a digest of where it lies."""
    name = uri.rstrip("/").rsplit("/", 1)[-1]
    name = name.rpartition(".")[0] or name
    digest = hashlib.sha256(uri.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{output_name(name or 'recording').removesuffix('/')}-{digest}"


def annotation(fields: Mapping[str, Any]) -> str:
    """What a label says: the row's label, or else what was asked for; one line without tabs."""
    text = fields["label"] or fields["positive_text"] or fields["id"]
    return "".join(each if each.isprintable() else " " for each in text).strip()


def fields_of(row: ManifestRow) -> dict[str, Any]:
    """What is said of an item, by the names of ``EXPORT_FIELDS``."""
    found: dict[str, Any] = json.loads(row.extra[FIELDS])
    return found


def as_json(fields: Mapping[str, Any]) -> str:
    """One line of JSON; floats keep their point, so that readers take them for floats."""
    return json.dumps(fields, ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """A value of a table as JSON has it: what is not finite is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _unknowns_last(row: ManifestRow) -> tuple[int, str]:
    return sum(value is None for value in fields_of(row).values()), row.id


def _keyed(
    row: ManifestRow, layout: Layout, shard_rows: int, count: int
) -> tuple[str, ManifestRow]:
    return layout.file_key(row, max(1, -(-count // shard_rows))), row


class _WriteFn(beam.DoFn):
    def __init__(self, settings: ExportSettings, layout: Layout) -> None:
        self._settings, self._layout = settings, layout

    def process(self, group: tuple[str, Mapping[str, Iterable[ManifestRow]]]) -> Iterator[Any]:
        """Writes a file, with what is done already, where anything of it is to be done."""
        key, found = group
        rows = {row.id: row for row in found["rows"]}
        if not rows:
            return
        done = {row.id: row for row in found.get("selected", ()) if row.id not in rows}
        every = sorted((*rows.values(), *done.values()), key=lambda row: row.id)
        for result in self._layout.write(key, every, self._settings):
            if isinstance(result, Failure):
                if result.row is not None and result.row.id in done:
                    raise RuntimeError(
                        f"{result.message}; it was exported before, and the file that it is in has "
                        "to be written again: --overwrite begins again without it"
                    )
                yield dead_letters.dead(result)
            elif result.id in rows:
                row_counts.done("Export", result.values["duration_s"] or 0.0)
                yield result


def _item(
    row: ManifestRow, file: str, key: str, fields: Mapping[str, Any], part: AudioPart | None = None
) -> MetricsRow:
    """A row of the table of exported items.

    Args:
        row: that is done.
        file: the file that holds the item, as a path below the output folder.
        key: its name in that file.
        fields: by the names of ``EXPORT_FIELDS``.
        part: of the audio that was written; None where none was.
    """
    values = dict.fromkeys(EXPORTED_SCHEMA.names) | dict(fields)
    values.update(file=file, key=key, row_sha256=row.sha256, schema_version=SCHEMA_VERSION)
    if part is not None:
        values.update(
            duration_s=part.duration_s,
            sample_rate_hz=part.sample_rate_hz,
            n_channels=part.num_channels,
        )
    row_id, dataset, split = (values.pop(name) for name in ("id", "dataset", "split"))
    return MetricsRow(id=row_id, dataset=dataset, split=split, values=values, extra={})


def _fields(item: MetricsRow) -> dict[str, Any]:
    """What an item says of itself, by the names of ``EXPORT_FIELDS``."""
    record = table_row(item).record
    return {column.name: record[column.name] for column in EXPORT_FIELDS}


def _in_folder(item: MetricsRow) -> str:
    """Path of an item's file below the folder of the data set."""
    return str(item.values["file"]).removeprefix(f"{EXPORT_FOLDER}/")


def table_row(item: MetricsRow) -> TableRow:
    """An item on its way to the table of exported items, which has no partitions."""
    return dataclasses.replace(metrics_rows.table_row(item), partition="")


def _failure(row: ManifestRow, error: BaseException, settings: ExportSettings) -> Failure:
    is_write = isinstance(error, WriteError)
    where = settings.uri if is_write else row.extra[AUDIO_URI]
    stage: Stage = "write" if is_write else "read"
    return failed(row, stage, error_code(error), describe(error, where))


def _moment(stem_uri: str, settings: ExportSettings) -> datetime | None:
    """When a stem begins by the recorder's clock; None where it is not there or does not say."""
    try:
        settings.access.require(stem_uri)
        with open_audio(settings.storage, stem_uri) as reader:
            return reader.tags.recorded_at
    except READ_ERRORS:
        return None


def _dated(fields: dict[str, Any], moment: datetime | None) -> dict[str, Any]:
    """The fields with the time of recording, always to the microsecond.

    Readers of JSON (pyarrow, and so Hugging Face) make a date of a text with whole seconds, and
    leave one with a fraction as it is: the type would depend on the data.
    """
    text = None if moment is None else moment.isoformat(timespec="microseconds")
    return {**fields, "recorded_at": text}


def _encode(
    row: ManifestRow, path: str, settings: ExportSettings, uri: str, *, in_memory: bool = False
) -> tuple[AudioPart, dict[str, Any]]:
    """Writes the part of a row's audio as a local file; gives what was written and its fields.

    Raises:
        AudioError: it cannot be read, or the format does not hold it.
        OSError: it cannot be read or written.
    """
    source = row.extra[AUDIO_URI]
    settings.access.require(source)
    settings.access.require_unwritten("audio", source)
    start_s, end_s = (
        float(row.extra[name]) if row.extra[name] else None for name in (START_S, END_S)
    )
    duration_s = None if end_s is None else end_s - (start_s or 0.0)
    with open_audio(settings.storage, source, start_s, duration_s) as reader:
        part, tags = reader.part, reader.tags
        if in_memory and part.num_values > settings.max_in_memory_s * 2 * 48_000:
            raise AudioError(
                "too_long",
                f"{source}: {part.duration_s:.0f} s are more than --max_clip_in_memory_s allows in "
                "one sample; take --layout audiofolder, or --cut segments",
            )
        blocks = reader.blocks(_BLOCK_SAMPLES)
        _require_held(settings, part, 0.0, source)
        writer = StemWriter(path, part, settings.clip_format, uri, settings.clip_quality, tags)
        with contextlib.closing(writer):
            for block in blocks:
                writer.write(block)
            writer.complete()
    _require_held(settings, part, writer.peak, source)
    return dataclasses.replace(writer.part, start=0), _dated(fields_of(row), tags.recorded_at)


def _require_held(settings: ExportSettings, part: AudioPart, peak: float, source: str) -> None:
    """Raises AudioError where the format does not hold such audio."""
    rate_hz, num_channels = part.sample_rate_hz, part.num_channels
    form, why = held_by(settings.clip_format, rate_hz, peak, num_channels)
    if form != settings.clip_format:
        raise AudioError("cannot_hold", f"{source}: {why}; take --clip_format {form}")


@contextlib.contextmanager
def _scratch(settings: ExportSettings, uri: str) -> Iterator[tuple[str, str]]:
    """Local paths of the file that becomes ``uri``, and of one item's audio.

    Raises:
        WriteError: they cannot be written; it names the file.
    """
    with (
        write_errors(uri),
        settings.storage.temporary(uri) as path,
        settings.storage.temporary(uri) as scratch,
    ):
        yield path, scratch


def _publish(storage: Storage, uri: str, path: str) -> None:
    with write_errors(uri):
        storage.publish(uri, path)
        storage.settle([uri])


def _write_list(lines: list[str], uri: str, storage: Storage) -> str:
    text = "".join(f"{line}\n" for line in sorted(lines))
    storage.write_bytes(uri, text.encode("utf-8", "replace"))
    return uri
