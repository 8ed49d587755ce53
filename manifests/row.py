"""The row of a manifest: one extraction, and what it says of itself."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

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
class ManifestRow:
    """One extraction: from this mixture, give what the query asks for.

    Built by :func:`manifests.validation.parse_record`, which checks it; URIs are absolute by then.
    ``extra`` holds the columns that this type does not know, without their ``extra_`` prefix and as
    text. ``manifest_uri`` and ``manifest_row`` say where the row was read, and ``manifest_sha256``
    the digest of the row there, where this one was made from it by changing its query; the three
    are not columns of a manifest and do not take part in comparisons.
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
    seed: int | None = _column("Seed of the row's random draws.", minimum=0, maximum=2**63 - 1)
    extra: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    manifest_uri: str | None = dataclasses.field(default=None, compare=False)
    manifest_row: int | None = dataclasses.field(default=None, compare=False)
    manifest_sha256: str | None = dataclasses.field(default=None, compare=False)

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
        """Of the words of a query that has example clips too; None where there is no such query."""
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


_NOT_COLUMNS = frozenset({"extra", "manifest_uri", "manifest_row", "manifest_sha256"})
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
    close = difflib.get_close_matches(plain, MANIFEST_COLUMNS, n=1, cutoff=0.8)
    return close[0] if close else None


def misspelt(columns: Collection[str]) -> dict[str, str]:
    """Columns that no manifest has but that look like one which is lacking; and which that is."""
    further = sorted(set(columns) - set(MANIFEST_COLUMNS))
    nearest = {name: nearest_column(name) for name in further}
    return {name: near for name, near in nearest.items() if near and near not in columns}
