"""Defines the row of a manifest: its columns, rules and errors, and the names made of its id."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
import math
import re
import reprlib
import typing
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID

from manifests.files import resolve

_MAX_PLAIN_BYTES = 200
_PLAIN = re.compile(r"[A-Za-z0-9._/-]+")
_STEM_ENDINGS = (".flac", ".wav", ".mp3", ".ogg", ".opus")
"""Of every format that stems have or may come to have: names do not change when one is added."""
_RESIDUAL_ENDING = ".residual"
_MAX_READABLE_CHARS = 80
_HASH_CHARS = 20
_MAX_PARTITION_CHARS = 120
STEMS_FOLDER = "stems"
EXPORT_FOLDER = "data"
MIXTURES, REFERENCES, INTERFERERS = "mixtures", "references", "interferers"
"""Folders of what is written for rows."""
EXPORT_LISTS = ("metadata.jsonl", "manifest.jsonl")
"""In the folder of a data set, for Hugging Face and for NeMo."""
INTERFERER_COLUMN = "interferer_files"
EVENTS_COLUMN = "sound_events"
"""Of a rendered mixture: where each source sounds in it, as JSON."""
SOURCE_COLUMN = "source_row_sha256"
"""Digest of the row that a rendered mixture was made from; ``--resume`` compares it."""
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""Directory part that Hive, DuckDB and pyarrow read as null."""


def output_name(row_id: str) -> str:
    """Path, without a suffix, of everything that is written for a row, below the output folder.

    A plain id is the path as it is, and its slashes make folders: at most 200 bytes of
    ``[A-Za-z0-9._/-]``, no part of which is empty, begins with a dot or ends like a stem (the stem
    of ``a`` and the folder of ``a.flac/b`` would be one), and which does not end in ``.residual``.
    Any other id becomes a readable part in ``[A-Za-z0-9_-]``, ``~`` and 80 bits of its SHA-256: no
    plain id has a ``~``, so two ids never share a path, whatever else the manifest holds. A path
    never leaves its folder. Case distinguishes, as it does on object stores and on Linux.

    Raises:
        ValueError: the id is empty.
    """
    if not row_id:
        raise ValueError("id is empty; expected a non-empty id")
    return row_id if _is_plain(row_id) else f"{_readable(row_id)}~{_id_hash(row_id)}"


def version_1_name(row_id: str) -> str:
    """The file name, without a suffix, that runs of schema version 1 gave a row."""
    return f"{_readable(row_id)}-{_id_hash(row_id)}"


def _is_plain(row_id: str) -> bool:
    return (
        len(row_id) <= _MAX_PLAIN_BYTES
        and _PLAIN.fullmatch(row_id) is not None
        and not row_id.endswith(_RESIDUAL_ENDING)
        and all(
            part and not part.startswith(".") and not part.lower().endswith(_STEM_ENDINGS)
            for part in row_id.split("/")
        )
    )


def _readable(row_id: str) -> str:
    plain = unicodedata.normalize("NFKD", row_id).encode("ascii", "ignore").decode("ascii")
    return re.sub(r"[^A-Za-z0-9-]+", "_", plain)[:_MAX_READABLE_CHARS].strip("_-") or "clip"


def _id_hash(row_id: str) -> str:
    return _digest(row_id.encode("utf-8", "surrogatepass"))[:_HASH_CHARS]


def partition_value(value: str | None) -> str:
    """``value`` as the directory part of a Hive partition (``dataset=…``).

    Bytes outside ``[A-Za-z0-9_.-]``, and dots of a value that begins or ends with one, are
    percent-encoded, as pyarrow and Hive read it. A value that is called like the directory of null
    has its first character encoded too. A value whose code would be longer than 120 bytes is cut,
    between two characters, and ends in a hash.
    """
    if value is None:
        return NULL_PARTITION
    dots = "%2E" if value.startswith(".") or value.endswith(".") else "."
    codes = [_percent_encoded(character).replace(".", dots) for character in value]
    if value == NULL_PARTITION:
        codes[0] = f"%{ord(value[0]):02X}"
    if sum(map(len, codes)) <= _MAX_PARTITION_CHARS:
        return "".join(codes)
    lengths = itertools.accumulate(map(len, codes))
    fitting = sum(length < _MAX_PARTITION_CHARS - _HASH_CHARS for length in lengths)
    digest = _digest(value.encode("utf-8", "surrogatepass"))[:_HASH_CHARS]
    return f"{''.join(codes[:fitting])}-{digest}"


def _percent_encoded(character: str) -> str:
    return quote(character.encode("utf-8", "surrogatepass"), safe="").replace("~", "%7E")


def stable_seed(run_seed: int, row_id: str) -> int:
    """Seed of a row's random draws: the same on every machine, in every order, in every process.

    Returns:
        An integer in [0, 2**63).
    """
    data = f"{run_seed}\x00".encode() + row_id.encode("utf-8", "surrogatepass")
    return int(_digest(data)[:16], 16) >> 1


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


EXTRA_PREFIX = "extra_"
MAX_TEXT_CHARS = 32_768
MAX_LIST_ITEMS = 1_000
MAX_NAME_CHARS = 100
MAX_LEVEL_DB = 100.0
DEFAULT_TEXT_WEIGHT = 0.5
"""Of the words of a query that has example clips too."""


def _column(description: str, default: Any = None, **rules: Any) -> Any:
    """Field of a row: its description and JSON Schema keywords travel in the metadata."""
    metadata = {"description": description, "rules": rules}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlace:
    """Where a recording lies in its shard, so that nobody has to look for it again.

    Attributes:
        run: number of the run of neighbours that one worker reads in sequence.
        start: its first byte; of Parquet its row.
        stop: behind its last byte; of Parquet the next row.
        shard_bytes: size of the shard.
    """

    run: int
    start: int
    stop: int
    shard_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestRow:
    """One extraction: from this mixture, give what the query asks for.

    Built by :func:`manifests.row.parse_record`, which checks it; URIs are absolute by then.
    ``extra`` holds the columns that this type does not know, without their ``extra_`` prefix and as
    text. ``manifest_uri`` and ``manifest_row`` say where the row was read, ``manifest_sha256`` the
    digest of the row there, where this one was made from it by changing its query, and ``place``
    where the mixture lies in its shard, where that is known; the four are not columns of a manifest
    and do not take part in comparisons.
    """

    id: str = _column(
        "Unique; names the outputs.", dataclasses.MISSING, minLength=1, maxLength=MAX_TEXT_CHARS
    )
    mixture_uri: str | None = _column("The recording to separate. Either this, or a target.")
    target_uri: str | None = _column(
        "The target, where the mixture is made on the fly from it and interferer_uris."
    )
    target_uris: tuple[str, ...] = _column(
        "Instead of target_uri: several targets. The first keeps its level, every other is brought "
        "to the power of the first, and their sum is the target.",
        (),
    )
    interferer_uris: tuple[str, ...] = _column(
        "Every other source of a mixture made on the fly.", ()
    )
    snr_db: tuple[float, ...] = _column(
        "Level of the (first) target above each interferer in dB: one number for all of them or a "
        "list of one each. Default 0. Beside mixture_uri it only says how the mixture was made.",
        (),
        minimum=-MAX_LEVEL_DB,
        maximum=MAX_LEVEL_DB,
    )
    reference_uri: str | None = _column(
        "The target as it sounds in the mixture of mixture_uri; with it SDRs are scored."
    )
    positive_text: str | None = _column("What to extract, in words.")
    negative_text: str | None = _column("What to suppress, in words.")
    positive_audio_uris: tuple[str, ...] = _column("Example clips of what to extract.", ())
    negative_audio_uris: tuple[str, ...] = _column("Example clips of what to suppress.", ())
    text_weight: float | None = _column(
        "0 = audio only, 1 = text only; default 0.5 where a query has both, no effect elsewhere.",
        minimum=0.0,
        maximum=1.0,
    )
    offset_s: float | None = _column(
        "Start of the part to use, in seconds, of the mixture and reference, or of each source.",
        minimum=0.0,
        maximum=1e9,
    )
    duration_s: float | None = _column(
        "Length of the part to use, in seconds. A source that is shorter is padded with zeros.",
        exclusiveMinimum=0.0,
        maximum=1e9,
    )
    onsets_s: tuple[float, ...] = _column(
        "Where each source begins in a mixture made on the fly, in seconds, targets first; needs "
        "duration_s, which is then the mixture's length. Levels are those of the sources while "
        "they last. Beside mixture_uri it only says how the mixture was made.",
        (),
        minimum=0.0,
        maximum=1e9,
    )
    dataset: str | None = _column(
        "Carried to the metrics and partitions them.", maxLength=MAX_NAME_CHARS
    )
    split: str | None = _column(
        "Carried to the metrics and partitions them.", maxLength=MAX_NAME_CHARS
    )
    label: str | None = _column("Class of the target; carried to the metrics.")
    group: str | None = _column(
        "The recording that the clip was cut from; carried to the metrics. Intervals draw "
        "recordings where it is given, since clips of one recording are alike."
    )
    n_sources: int | None = _column(
        "Number of sources in mixture_uri, where it is known; counted where the mixture is made.",
        minimum=1,
        maximum=2 * MAX_LIST_ITEMS,
    )
    target_absent: bool | None = _column(
        "Whether the mixture lacks what the query asks for; then the stem should be silent, and "
        "the reference of a mixture made on the fly is."
    )
    seed: int | None = _column("Seed of the row's random draws.", minimum=0, maximum=2**63 - 1)
    extra: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    manifest_uri: str | None = dataclasses.field(default=None, compare=False)
    manifest_row: int | None = dataclasses.field(default=None, compare=False)
    manifest_sha256: str | None = dataclasses.field(default=None, compare=False)
    place: ShardPlace | None = dataclasses.field(default=None, compare=False)

    @property
    def targets(self) -> tuple[str, ...]:
        """URIs of the target(s) of a mixture made on the fly; empty beside ``mixture_uri``."""
        return self.target_uris or ((self.target_uri,) if self.target_uri is not None else ())

    @property
    def levels_db(self) -> tuple[float, ...]:
        """One level in dB for each of ``interferer_uris``."""
        if len(self.snr_db) == len(self.interferer_uris):
            return self.snr_db
        return (self.snr_db[0] if self.snr_db else 0.0,) * len(self.interferer_uris)

    @property
    def input_snr_db(self) -> float | None:
        """The level that all interferers share, in dB; None where they differ or it is unknown."""
        levels = set(self.levels_db if self.interferer_uris else self.snr_db)
        return levels.pop() if len(levels) == 1 else None

    @property
    def num_sources(self) -> int | None:
        """How many sources the mixture has; None where nobody said."""
        return (len(self.targets) + len(self.interferer_uris)) or self.n_sources

    @property
    def num_shots(self) -> int:
        """Example clips of the query, of the polarity that has more of them."""
        return max(len(self.positive_audio_uris), len(self.negative_audio_uris))

    @property
    def query_type(self) -> str:
        """``text``, ``audio`` or ``both``."""
        text = self.positive_text is not None or self.negative_text is not None
        if self.num_shots:
            return "both" if text else "audio"
        return "text"

    @property
    def polarity(self) -> str:
        """``P``, ``N`` or ``P+N``."""
        positive = self.positive_text is not None or bool(self.positive_audio_uris)
        negative = self.negative_text is not None or bool(self.negative_audio_uris)
        return "+".join([*(["P"] if positive else []), *(["N"] if negative else [])])

    @property
    def sha256(self) -> str:
        """Digest of all that the row says, with defaults filled in, in hexadecimal.

        Two rows that ask for the same have the same digest, however they spell it; a column that
        is absent does not take part, so that columns which later releases add change no digest.
        """
        if self.manifest_sha256 is not None:
            return self.manifest_sha256
        record = self.to_record()
        del record["target_uri"]
        record["target_uris"] = list(self.targets)
        record["snr_db"] = list(self.levels_db if self.interferer_uris else self.snr_db)
        record["offset_s"] = self.offset_s or 0.0
        record["text_weight"] = self.weight_of_text
        record["n_sources"] = self.num_sources
        given = {name: value for name, value in record.items() if value not in (None, [])}
        text = json.dumps(given, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    @property
    def weight_of_text(self) -> float | None:
        """The text's weight in a query that also has example clips; None for other queries."""
        both = (self.positive_text is not None and bool(self.positive_audio_uris)) or (
            self.negative_text is not None and bool(self.negative_audio_uris)
        )
        if not both:
            return None
        return DEFAULT_TEXT_WEIGHT if self.text_weight is None else self.text_weight

    def to_record(self) -> dict[str, Any]:
        """The row as columns: tuples are lists, what is absent is None, the rest ``extra_…``."""
        record: dict[str, Any] = {}
        for name in MANIFEST_COLUMNS:
            value = getattr(self, name)
            record[name] = (list(value) or None) if isinstance(value, tuple) else value
        record.update({EXTRA_PREFIX + name: value for name, value in self.extra.items()})
        return record


_NOT_COLUMNS = frozenset({"extra", "manifest_uri", "manifest_row", "manifest_sha256", "place"})
MANIFEST_COLUMNS: tuple[str, ...] = tuple(
    field.name for field in dataclasses.fields(ManifestRow) if field.name not in _NOT_COLUMNS
)

_ENDINGS = ("_audio_uris", "_uris", "_uri", "_text", "_db", "_s")
_UNIT = re.compile(r"_(s|secs?|seconds?|ms|db)$")


def _shortened() -> dict[str, str]:
    """The columns by what is left of their names without a type or unit: ``offset``, ``snr``."""
    short: dict[str, str] = {}
    for column in MANIFEST_COLUMNS:
        ending = next((end for end in _ENDINGS if column.endswith(end)), "")
        if ending:
            short.setdefault(column.removesuffix(ending), column)
    return short


_SHORTENED = _shortened()


def nearest_column(name: str) -> str | None:
    """The column of manifests that another column's name looks like; None where it is like none."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.removeprefix(EXTRA_PREFIX)).lower()
    plain = re.sub(r"[^a-z0-9]+", "_", words).strip("_")
    if plain in MANIFEST_COLUMNS:
        return plain
    for form in (plain, _UNIT.sub("", plain), plain.rstrip("s")):
        if form in _SHORTENED:
            return _SHORTENED[form]
    close = difflib.get_close_matches(plain, MANIFEST_COLUMNS, n=1, cutoff=0.81)
    return close[0] if close else None


def misspelt(columns: Collection[str]) -> dict[str, str]:
    """Columns that no manifest has but that look like one which is lacking; and which that is."""
    further = sorted(set(columns) - set(MANIFEST_COLUMNS))
    nearest = {name: nearest_column(name) for name in further}
    return {name: near for name, near in nearest.items() if near and near not in columns}


MAX_QUOTED_CHARS = 200
_UUID_BYTES = 16
_MAX_ROW_JSON_CHARS = 1 << 20


SCHEMA_VERSION = 2
"""Raised whenever a column of a manifest or an output is added, removed or changes its meaning."""

_ROW_FIELDS = {f.name: f for f in dataclasses.fields(ManifestRow)}
_ROW_TYPES: dict[str, Any] = {
    name: hint
    for name, hint in typing.get_type_hints(ManifestRow).items()
    if name in MANIFEST_COLUMNS
}
_JSON_TYPES: Mapping[Any, str] = {
    str: "string",
    float: "number",
    int: "integer",
    bool: "boolean",
}


@functools.cache
def column_type(name: str) -> tuple[type, bool]:
    """Scalar type of a manifest column, and whether it is a list of them."""
    hint = _ROW_TYPES[name]
    arguments = typing.get_args(hint)
    scalar: type = arguments[0] if arguments else hint
    return scalar, typing.get_origin(hint) is tuple


@functools.cache
def column_rules(name: str) -> Mapping[str, Any]:
    """JSON Schema keywords that bound each value of a manifest column."""
    rules: Mapping[str, Any] = _ROW_FIELDS[name].metadata["rules"]
    return {"maxLength": MAX_TEXT_CHARS, **rules} if column_type(name)[0] is str else rules


def _json_property(name: str) -> dict[str, Any]:
    scalar, is_list = column_type(name)
    description = _ROW_FIELDS[name].metadata["description"]
    item = {"type": _JSON_TYPES[scalar], **column_rules(name)}
    if name == "id":
        return {"description": description, **item}
    if not is_list:
        return {"description": description, **item, "type": [item["type"], "null"]}
    shapes = [{"type": "array", "items": item, "maxItems": MAX_LIST_ITEMS}, {"type": "null"}]
    if scalar is float:
        shapes.insert(0, item)
    return {"description": description, "anyOf": shapes}


def _given(*names: str) -> dict[str, Any]:
    """JSON Schema of a row that has all of the columns ``names``."""
    return {
        "required": list(names),
        "properties": {name: {"not": {"type": "null"}} for name in names},
    }


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a line of a JSONL manifest: ``manifest.schema.json`` beside here."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Manifest row",
        "description": "One extraction. Keys that are not listed are carried along as extra_….",
        "version": SCHEMA_VERSION,
        "type": "object",
        "properties": {name: _json_property(name) for name in MANIFEST_COLUMNS},
        "required": ["id"],
        "allOf": [
            {"anyOf": [_given(name) for name in _QUERY]},
            {"oneOf": [_given(*names) for names in _SOURCES]},
        ],
    }


_QUERY = ("positive_text", "negative_text", "positive_audio_uris", "negative_audio_uris")
_SOURCES = (("mixture_uri",), ("target_uri", "interferer_uris"), ("target_uris", "interferer_uris"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RowError:
    """One row that cannot be used, in place of the row.

    Attributes:
        uri: the file.
        row: line of the file, from 1, in CSV (where the row begins) and JSONL; row of data, from 1,
            in Parquet.
        field: the column; None where the row as a whole is malformed.
        value: what was found, quoted and cut to 200 characters.
        expected: what would be right.
        row_json: the row as it was read, as JSON, so that it can be kept and read again.
        row_id: its id, where it has one.
    """

    uri: str
    row: int
    field: str | None
    value: str
    expected: str
    row_json: str
    row_id: str | None = None

    def __str__(self) -> str:
        """``file, row 3, field: found "x"; expected y`` on one line."""
        place = f"{self.uri}, row {self.row}"
        if self.field:  # a column of the file's own can be called anything
            place += f", {self.field if self.field.isprintable() else quoted(self.field)}"
        return f"{place}: found {self.value}; expected {self.expected}"


def quoted(value: Any) -> str:
    """``value`` for a message: on one line, printable, at most about 200 characters."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        text = json.dumps(value[:MAX_QUOTED_CHARS], ensure_ascii=False)
        text = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
        rest = len(value) - MAX_QUOTED_CHARS
        return text + (f"… and {rest} more characters" if rest > 0 else "")
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    text = short.repr(value)
    return text if len(text) <= MAX_QUOTED_CHARS else text[:MAX_QUOTED_CHARS] + "…"


def as_json(values: Any) -> str:
    """A row as read, as ASCII JSON of bounded length.

    What is cut stays longer than any column may be: a row that was refused is not accepted when its
    JSON is read again.
    """
    try:
        text = json.dumps(_cut(values), default=as_text)
    except (RecursionError, ValueError):
        return json.dumps("a row that is nested too deeply to be kept")
    if len(text) > _MAX_ROW_JSON_CHARS:
        return json.dumps(f"a row of {len(text)} characters, which is too long to be kept")
    return text


def as_text(value: Any) -> str:
    """A value that is no text, as the same table says it in CSV.

    A float that is whole was an integer before a gap in its column made it one, and is said as one.
    Bytes are the text that they encode, otherwise the UUID that 16 of them are, or hexadecimal.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, Decimal):
        return format(value, "f")
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return str(UUID(bytes=value)) if len(value) == _UUID_BYTES else value.hex()


def is_nothing(value: Any) -> bool:
    """Whether a value stands for no value in every format: null, NaN, and empty text."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _cut(values: Any) -> Any:
    if isinstance(values, str) and len(values) > MAX_TEXT_CHARS:
        return f"{values[:MAX_TEXT_CHARS]}… and {len(values) - MAX_TEXT_CHARS} more characters"
    if isinstance(values, dict):
        return {_cut(str(key)): _cut(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_cut(value) for value in values]
    if isinstance(values, float) and not math.isfinite(values):  # JSON has no word for it
        return None if math.isnan(values) else repr(values)
    return values


MAX_EXTRA_COLUMNS = 100
_MAX_COLUMN_NAME_CHARS = 200
_TEXT = f"UTF-8 text without NUL, at most {MAX_TEXT_CHARS} characters"
_URI_COLUMNS: Final = tuple(name for name in MANIFEST_COLUMNS if name.endswith(("_uri", "_uris")))
_TRUTHS: Final[Mapping[Any, bool]] = {"true": True, "1": True, 1: True} | {
    "false": False,
    "0": False,
    0: False,
}
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class _InvalidError(ValueError):
    """A column that is not as it should be; becomes a :class:`RowError`."""

    def __init__(self, field: str, value: Any, expected: str) -> None:
        super().__init__(field, expected)
        self.field, self.value, self.expected = field, value, expected


def parse_record(
    values: Mapping[str, Any], *, uri: str, row: int, folder: str
) -> ManifestRow | RowError:
    """Checks one row.

    Text is accepted for every type, as CSV has nothing else: numbers in decimal notation, lists
    separated by ``;`` or as a JSON array of strings. Where text is expected, numbers, dates and the
    like are taken as CSV would say them. Blank text and NaN are absent values.

    Args:
        values: the columns by name; those that no manifest has are carried in ``extra``.
        uri: the file, for messages.
        row: the row in the file, for messages.
        folder: where relative URIs begin.

    Returns:
        The row with absolute URIs, or the first thing that is wrong with it.
    """
    try:
        fields = _ABSENT | {
            name: _PARSERS[name](name, value)
            for name, value in values.items()
            if name in _PARSERS and not is_nothing(value)
        }
        if fields["id"] is None:
            raise _InvalidError("id", values.get("id"), "a non-empty id")
        extra = _extra(values)
        _check_sources(fields)
        _check_query(fields)
        for name in _URI_COLUMNS:
            if fields[name]:
                fields[name] = _resolved(name, fields[name], folder)
    except _InvalidError as err:
        return RowError(
            uri=uri,
            row=row,
            field=err.field,
            value=quoted(err.value),
            expected=err.expected,
            row_json=as_json(dict(values)),
            row_id=_row_id(values),
        )
    return ManifestRow(**fields, extra=extra, manifest_uri=uri, manifest_row=row)


def _row_id(values: Mapping[str, Any]) -> str | None:
    """The id of a row that something is wrong with; None where that is its id."""
    try:
        return _string("id", values.get("id"))
    except _InvalidError:
        return None


def _is_text(value: str) -> bool:
    if "\x00" in value or len(value) > MAX_TEXT_CHARS:
        return False
    return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)


def is_column_name(name: str) -> bool:
    """Whether a further column may be called ``name``."""
    return 0 < len(name) <= _MAX_COLUMN_NAME_CHARS and not name.isspace() and _is_text(name)


def _string(name: str, value: Any) -> str | None:
    if is_nothing(value):
        return None
    if isinstance(value, list | tuple | dict) or (
        name in _URI_COLUMNS and not isinstance(value, str | bytes)
    ):
        raise _InvalidError(name, value, "a string")
    text = value if isinstance(value, str) else as_text(value)
    if not text or text.isspace():
        return None
    if not _is_text(text):
        raise _InvalidError(name, text, _TEXT)
    limit = column_rules(name)["maxLength"]
    if len(text) > limit:
        raise _InvalidError(name, text, f"at most {limit} characters")
    return text


def _number(name: str, value: Any) -> float | None:
    if isinstance(value, str):
        text = value.strip()
        if not text:
            return None
        value = float(text) if len(text) < 400 and _NUMBER.fullmatch(text) else value
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise _InvalidError(name, value, "a number")
    rules = column_rules(name)
    low, high = rules.get("minimum", -math.inf), rules["maximum"]
    above = rules.get("exclusiveMinimum", -math.inf)
    if not (low <= value <= high and value > above):
        bounds = f"above {above:g}" if above > low else f"from {low:g} to {high:g}"
        raise _InvalidError(name, value, f"a finite number {bounds}")
    return float(value) + 0.0  # -0 is 0


def _integer(name: str, value: Any) -> int | None:
    if isinstance(value, str):
        text = value.strip()
        digits = re.fullmatch(r"([+-]?\d{1,30})(\.0*)?", text, re.ASCII)
        value = int(digits[1]) if digits else text or None
    if value is None:
        return None
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        value = int(value)
    rules = column_rules(name)
    low, high = rules["minimum"], rules["maximum"]
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _InvalidError(name, value, f"a whole number from {low} to {high}")
    return value


def _truth(name: str, value: Any) -> bool | None:
    word = value.strip().lower() if isinstance(value, str) else value
    if word is None or word == "":
        return None
    if isinstance(word, str | bool | int) and word in _TRUTHS:
        return _TRUTHS[word]
    raise _InvalidError(name, value, "true or false")


def _items(name: str, value: Any) -> Sequence[Any]:
    """The items of a list, however it is written."""
    if value is None:
        return ()
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                value = None
        if not isinstance(value, list):
            value = [item.strip() for item in text.split(";")] if text else []
        if value and value[-1] == "":
            value = value[:-1]
    elif isinstance(value, int | float | Decimal) and column_type(name)[0] is float:
        value = [value]
    if not isinstance(value, list | tuple):
        raise _InvalidError(name, value, "a list")
    if len(value) > MAX_LIST_ITEMS:
        raise _InvalidError(name, value, f"at most {MAX_LIST_ITEMS} items")
    return value


def _list_of(parse: Callable[[str, Any], Any]) -> Callable[[str, Any], tuple[Any, ...]]:
    def parse_list(name: str, value: Any) -> tuple[Any, ...]:
        items = tuple(parse(name, item) for item in _items(name, value))
        if None in items:
            raise _InvalidError(name, value, "a list without empty items")
        return items

    return parse_list


def _parser_of(name: str) -> Callable[[str, Any], Any]:
    scalar, is_list = column_type(name)
    parse: Callable[[str, Any], Any] = {
        str: _string,
        float: _number,
        int: _integer,
        bool: _truth,
    }[scalar]
    return _list_of(parse) if is_list else parse


_PARSERS: Final = {name: _parser_of(name) for name in MANIFEST_COLUMNS}
_ABSENT: Final = {name: () if column_type(name)[1] else None for name in MANIFEST_COLUMNS}


def _check_sources(fields: Mapping[str, Any]) -> None:
    mixture, target, targets = fields["mixture_uri"], fields["target_uri"], fields["target_uris"]
    interferers, levels = fields["interferer_uris"], fields["snr_db"]
    if mixture is None and target is None and not targets:
        raise _InvalidError("mixture_uri", None, "mixture_uri, or target_uri with interferer_uris")
    if mixture is not None:
        for name in ("target_uri", "target_uris", "interferer_uris"):
            if fields[name]:
                raise _InvalidError(
                    name, fields[name], "either mixture_uri or sources to mix, not both"
                )
        return
    if target is not None and targets:
        raise _InvalidError("target_uris", targets, "either target_uri or target_uris, not both")
    if not interferers:
        raise _InvalidError(
            "interferer_uris", None, "at least one interferer (a clip alone goes into mixture_uri)"
        )
    if fields["reference_uri"] is not None:
        raise _InvalidError(
            "reference_uri", fields["reference_uri"], "none: the target as mixed is the reference"
        )
    if len(levels) > 1 and len(levels) != len(interferers):
        raise _InvalidError(
            "snr_db", list(levels), f"one level, or one for each of {len(interferers)} interferers"
        )
    if fields["onsets_s"]:
        _check_onsets(fields, len(targets or (target,)) + len(interferers))


def _check_onsets(fields: Mapping[str, Any], num_sources: int) -> None:
    onsets, duration_s = fields["onsets_s"], fields["duration_s"]
    if len(onsets) != num_sources:
        expected = f"one onset for each of {num_sources} sources, targets first"
        raise _InvalidError("onsets_s", list(onsets), expected)
    if duration_s is None:
        expected = "the length of the mixture in which onsets_s places its sources"
        raise _InvalidError("duration_s", None, expected)
    if max(onsets) >= duration_s:
        expected = f"onsets below duration_s, which is {duration_s:g}"
        raise _InvalidError("onsets_s", list(onsets), expected)


def _check_query(fields: Mapping[str, Any]) -> None:
    if not any(fields[name] for name in _QUERY):
        expected = f"a query: at least one of {', '.join(_QUERY)}"
        raise _InvalidError("positive_text", None, expected)


def _resolved(name: str, value: Any, folder: str) -> Any:
    try:
        if isinstance(value, tuple):
            return tuple(resolve(folder, item) for item in value)
        return resolve(folder, value)
    except ValueError as err:
        raise _InvalidError(name, value, f"an address that can be read ({err})") from err


def _extra(values: Mapping[str, Any]) -> dict[str, str]:
    """The columns that are not a manifest's, as text."""
    extra: dict[str, str] = {}
    for column, value in values.items():
        if column in _PARSERS or is_nothing(value):
            continue
        name = column.removeprefix(EXTRA_PREFIX)
        if not is_column_name(name):
            raise _InvalidError(
                column[:_MAX_COLUMN_NAME_CHARS],
                value,
                f"a column name of 1 to {_MAX_COLUMN_NAME_CHARS} characters",
            )
        text = _extra_text(column, value)
        if text is None:
            continue
        if name in extra:
            raise _InvalidError(column, value, f"only one of {name} and {EXTRA_PREFIX}{name}")
        extra[name] = text
    if len(extra) > MAX_EXTRA_COLUMNS:
        raise _InvalidError("extra", len(extra), f"at most {MAX_EXTRA_COLUMNS} further columns")
    return extra


def _extra_text(column: str, value: Any) -> str | None:
    if isinstance(value, list | tuple | dict):
        try:
            value = json.dumps(value, ensure_ascii=False, default=as_text)
        except (ValueError, RecursionError) as err:
            raise _InvalidError(column, "…", "a value that is not nested this deeply") from err
    elif not isinstance(value, str):
        value = repr(value) if isinstance(value, float) else as_text(value)
    if not value or value.isspace():
        return None
    if not _is_text(value):
        raise _InvalidError(column, value, _TEXT)
    return str(value)
