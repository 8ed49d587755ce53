"""Describes every output column once: the schemas of the written tables follow from it.

A column has a name, which ends in its unit, a type and a meaning; a metric has its title in reports
too, and says whether up or down is better. ``docs/columns.md`` is what ``python -m
manifests.columns`` prints. The columns of a manifest come from :class:`manifests.row.ManifestRow`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import pyarrow as pa

from manifests.row import EXTRA_PREFIX, MANIFEST_COLUMNS, SCHEMA_VERSION, ManifestRow, column_type
from terminal import flags, screen

_SCALARS: Mapping[Any, pa.DataType] = {
    str: pa.string(),
    float: pa.float64(),
    int: pa.int64(),
    bool: pa.bool_(),
}
_METADATA = {"schema_version": str(SCHEMA_VERSION)}
_UNITS: Mapping[str, str] = {"db": "dB", "s": "s", "hz": "Hz"}
_TEXT, _TEXTS, _REAL = pa.string(), pa.list_(pa.string()), pa.float64()


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table that is written.

    Attributes:
        name: in the files.
        type: in the files; it never depends on the data.
        meaning: one sentence, in Markdown.
        title: what reports call it; given for the metrics, which the summary has a line for.
        better: whether a higher or a lower value is better; None where neither is.
        shown: whether reports show it without being asked.
        required: whether it is never null.
    """

    name: str
    type: pa.DataType
    meaning: str
    title: str | None = None
    better: Literal["up", "down"] | None = None
    shown: bool = False
    required: bool = False

    @property
    def unit(self) -> str:
        """The unit of the values, which the name ends in; empty where they have none."""
        return _UNITS.get(self.name.rpartition("_")[2], "")

    @property
    def field(self) -> pa.Field:
        """The field of a schema."""
        return pa.field(self.name, self.type, nullable=not self.required)


def _text(name: str, meaning: str) -> Column:
    return Column(name=name, type=_TEXT, meaning=meaning)


def _real(name: str, meaning: str) -> Column:
    return Column(name=name, type=_REAL, meaning=meaning)


def _count(name: str, meaning: str, type: pa.DataType | None = None) -> Column:
    return Column(name=name, type=type or pa.int32(), meaning=meaning)


def _of_row(name: str) -> Column:
    """A column that carries a field of the manifest's row."""
    return Column(name=name, type=_arrow_type(name), meaning=_description(name))


def _arrow_type(name: str) -> pa.DataType:
    scalar, is_list = column_type(name)
    return pa.list_(_SCALARS[scalar]) if is_list else _SCALARS[scalar]


def _description(name: str) -> str:
    description: str = ManifestRow.__dataclass_fields__[name].metadata["description"]
    return description


def _ratios(name: str, title: str, definition: str) -> tuple[Column, ...]:
    """The three columns of a ratio to the reference: of the stem, of the mixture, and the gain."""
    return (
        Column(
            name=f"{name}_db",
            type=_REAL,
            title=f"{title} (dB)",
            better="up",
            meaning=f"{title} of the stem: {definition}.",
        ),
        Column(
            name=f"{name}_mixture_db",
            type=_REAL,
            title=f"{title} of the mixture (dB)",
            meaning=f"{title} of the untouched mixture.",
        ),
        Column(
            name=f"{name}i_db",
            type=_REAL,
            title=f"{title}i (dB)",
            better="up",
            shown=True,
            meaning=f"Improvement: `{name}_db` - `{name}_mixture_db`.",
        ),
    )


def _similarity(
    name: str,
    title: str,
    meaning: str,
    *,
    better: Literal["up", "down"] | None = "up",
    shown: bool = True,
) -> Column:
    return Column(name=name, type=_REAL, title=title, better=better, shown=shown, meaning=meaning)


METRICS: Final = (
    *_ratios("sdr", "SDR", "BSS-Eval style, after a filter of the reference with 512 taps"),
    *_ratios("si_sdr", "SI-SDR", "scale-invariant, without mean removal"),
    *_ratios("snr", "SNR", "10·log₁₀(Σ reference² / Σ (stem - reference)²)"),
    _similarity(
        "clap_score",
        "CLAPScore",
        "Cosine of the stem's CLAP embedding and that of the positive query. A stem that is longer "
        "than the scorer's window is encoded in at most 12 windows, spread evenly from start to "
        "end, and their mean is taken, that of silent ones too. The stem of a recording that is "
        "streamed (`--max_clip_in_memory_s`) is heard as its file sounds: as Opus or MP3 up to "
        "0.02 from the stem itself.",
    ),
    _similarity(
        "clap_score_mixture",
        "CLAPScore of the mixture",
        "Cosine of the mixture's embedding and that of the positive query.",
        better=None,
        shown=False,
    ),
    _similarity(
        "clap_score_negative",
        "CLAPScore to the negative query",
        "Cosine of the stem's embedding and that of the negative query.",
        better="down",
        shown=False,
    ),
    _similarity(
        "clap_score_improvement",
        "CLAPScore improvement",
        "`clap_score` - `clap_score_mixture`.",
    ),
    _similarity(
        "clap_score_contrast",
        "CLAPScore contrast",
        "`clap_score` - `clap_score_negative`.",
    ),
    _similarity(
        "ref_clap_score",
        "Ref-CLAPScore",
        "Harmonic mean of `clap_score` and the cosine of the embeddings of stem and reference, "
        "where both are positive (`not_similar` otherwise).",
    ),
)
"""The measured columns of which the summary has a line and reports a column."""

METRIC_COLUMNS: tuple[str, ...] = tuple(column.name for column in METRICS)
"""Their names; each is null where it is undefined."""
SHOWN_METRICS: tuple[str, ...] = tuple(column.name for column in METRICS if column.shown)
"""Those that reports show without being asked; the first is what they are about by default."""
TITLES: Mapping[str, str] = {column.name: column.title or column.name for column in METRICS}
LOWER_IS_BETTER: frozenset[str] = frozenset(
    column.name for column in METRICS if column.better == "down"
)

_QUERY: Final = (
    _text("query_type", "Whether the positive query is `text`, `audio` or `both`."),
    _text("polarity", "Whether the query is `P`, `N` or `P+N`: positive, negative or both."),
    _count("n_shots", "Example clips of the positive query, or of the negative one."),
    _count("n_sources", _description("n_sources")),
    _real("input_snr_db", "Level of the target above each interferer, where it is one."),
)

METRICS_TABLE: Final = (
    Column(name="id", type=_TEXT, required=True, meaning=_description("id")),
    *(_of_row(name) for name in ("dataset", "split", "label", "group")),
    *_QUERY,
    _text("row_sha256", "Digest of what the manifest's row asks for."),
    _of_row("mixture_uri"),
    Column(name="target_uris", type=_TEXTS, meaning="The targets of a mixture made on the fly."),
    *(_of_row(name) for name in ("interferer_uris", "reference_uri", "offset_s")),
    *(_of_row(name) for name in ("positive_text", "negative_text")),
    *(_of_row(name) for name in ("positive_audio_uris", "negative_audio_uris")),
    _of_row("text_weight"),
    _of_row("seed"),
    *METRICS,
    _text(
        "undefined_reason",
        "Why measured columns are null: `column=reason`, joined by `; `; null where none is.",
    ),
    Column(
        name="target_absent",
        type=pa.bool_(),
        meaning="Whether the mixture lacks what is asked for: as the manifest says, or else by "
        "whether the reference is silent; null where there is neither, and where nobody looked at "
        "the reference, as of what `--screen` left out.",
    ),
    Column(
        name="suppression_db",
        type=_REAL,
        better="up",
        meaning="Where the target is absent, how far the stem is below the mixture: "
        "-`stem_to_mixture_db`.",
    ),
    _real(
        "stem_to_mixture_db",
        "Power of the stem over that of the mixture, of the means of their channels at the model's "
        "rate.",
    ),
    _real(
        "presence",
        "How likely it is, from 0 to 1, that the recording holds what the positive query asks for: "
        "the highest of its windows and channels, or of its windows in `windows/` where `--screen` "
        "left it out. Null where the model does not say, or nothing is asked for but what to "
        "suppress.",
    ),
    _real("active_s", "For how long the stem is active: the length of its segments."),
    _count("n_segments", "Rows of `segments/` that are about the stem."),
    _real("duration_s", "Length of the stem."),
    _count("sample_rate_hz", "Rate of the stem; by `pipelines.score`, that of scoring."),
    _count("n_channels", "Channels of the stem."),
    _count("n_windows", "Passes of the decoder that made the stem."),
    _real("peak", "Largest absolute sample, before a fixed-point format saturates it."),
    _real(
        "input_gain_db",
        "Gain with which the network was given the recording, the mean over its windows.",
    ),
    _real("inference_s", "The stem's share of the time in the network."),
    _text("device", "What the network ran on."),
    _text("precision", "`fp32`, `tf32` or `bf16`."),
    _text("model", "What made the stem."),
    _text("model_sha256", "Digest of its weights."),
    _text("clap_sha256", "Digest of the weights that embedded the queries."),
    _text("scorer_sha256", "Digest of the weights that gave the CLAPScores."),
    _text("code_version", "Version of this project."),
    _count("schema_version", "Version of this table."),
    _text("stem_uri", "The stem."),
    _text("residual_uri", "The mixture minus the stem, where it was asked for."),
    _text("stem_format", "Format of the stem, where this run wrote it."),
    _text("stem_note", "Why there is no stem, or one of another format than was asked for."),
)
"""One row a clip. What was asked of what is that of the manifest's row; credentials in its URIs are
hidden."""

SUMMARY_TABLE: Final = (
    _of_row("dataset"),
    _of_row("split"),
    *_QUERY,
    _text("model", "What made the stems."),
    _text("model_sha256", "Digest of its weights."),
    _text("scorer_sha256", "Digest of the weights that gave the CLAPScores."),
    _text("metric", "The column of the metrics that the line is about."),
    _count("n", "Clips in which it is defined.", type=pa.int64()),
    _count("n_undefined", "Clips in which it is not.", type=pa.int64()),
    _real("mean", "Mean of the defined values."),
    _real("std", "Their sample standard deviation."),
    _real("median", "Their median."),
    _real("ci95_low", "Lower end of the 95 % interval of the mean."),
    _real("ci95_high", "Upper end."),
    _count("schema_version", "Version of this table."),
)
"""One row a metric and group of clips."""
MAX_GROUPS = 1_000
"""The most groups of clips that a summary has."""
COARSER = "coarser"
"""Metadata of a summary: as JSON, the columns that are coarser than in the rows, and how."""

SEGMENTS_TABLE: Final = (
    Column(name="id", type=_TEXT, required=True, meaning="The clip, as in the metrics."),
    *(_of_row(name) for name in ("mixture_uri", "label", "positive_text")),
    _real("start_s", "Where the stretch begins in the stem, to 100 ms."),
    _real("end_s", "Where it ends there."),
    _real(
        "peak_db",
        "Level of the loudest 100 ms of the stem in it, relative to a full-scale square wave.",
    ),
    _real(
        "stem_to_mixture_db",
        "Power of the stem over that of the mixture in it, as in the metrics; null where the "
        "mixture is silent.",
    ),
    _real("presence", "Largest presence of the windows that it meets; null for models without."),
    _real("clap_score", "As in the metrics, of the stretch; null unless it was asked for."),
    _count("schema_version", "Version of this table."),
)
"""One row a stretch in which a stem is active."""

_VECTOR = pa.list_(pa.float32())
"""Not of a fixed size: pyarrow to 25 writes null in a column of those and cannot read it again."""

EMBEDDINGS_TABLE: Final = (
    Column(name="id", type=_TEXT, required=True, meaning="The clip, as in the metrics."),
    *(_of_row(name) for name in ("dataset", "split", "mixture_uri", "label", "positive_text")),
    _text("signal", "What is embedded: `stem`."),
    Column(
        name="embedding",
        type=_VECTOR,
        meaning="The scorer's, of unit norm and of one length in all rows; of a stem longer than "
        "the scorer's window, the mean over at most 12, as for `clap_score`.",
    ),
    _text(
        "undefined_reason", "Why the embedding is null: `silent_stem`, `scorer_failed` or the like."
    ),
    _text("scorer_sha256", "Digest of the weights that embedded it."),
    _count("schema_version", "Version of this table."),
)
"""One row a stem that was separated."""

WINDOWS_TABLE: Final = (
    _of_row("mixture_uri"),
    Column(name="target_uris", type=_TEXTS, meaning="The targets of a mixture made on the fly."),
    *(_of_row(name) for name in ("interferer_uris", "offset_s")),
    _real("start_s", "Where the window begins in the clip, which begins at `offset_s`."),
    _real("end_s", "Where it ends there; the last window ends with the clip."),
    Column(
        name="embedding",
        type=_VECTOR,
        meaning="Embedding by the model's own CLAP, of unit norm and of one length in all rows, of "
        "the mean of the channels, brought to the level at which that CLAP hears.",
    ),
    _text("undefined_reason", "Why it is null: `silent_mixture` or `scorer_failed`."),
    Column(
        name="heard",
        type=pa.binary(),
        meaning="What the model's presence output hears in it, for `--screen` of later runs; null "
        "for models without.",
    ),
    _text("scorer_sha256", "Digest of the weights that embedded it."),
    _count("schema_version", "Version of this table."),
)
"""One row a window of 10 s of a recording."""

_FAILURE: Final = (
    _text("stage", "Where in the job the row failed."),
    _text("error_type", "What went wrong, as one of the codes in [Dead letters](errors.md)."),
    _text("message", "The same for a person."),
    _text("manifest_uri", "Where the row was read."),
    _count("manifest_row", "Its number there.", type=pa.int64()),
    _text("row_json", "The row as read, where it is not valid."),
)

DEAD_LETTER_COLUMNS: tuple[str, ...] = tuple(column.name for column in _FAILURE)
"""What a dead letter says beside its row."""
NOT_LISTED: Final = "recordings"
"""Alone in ``row_json``: the folder or shard that a dead letter is about, which has no row."""

DEAD_LETTER_TABLE: Final = (*_FAILURE, *(_of_row(name) for name in MANIFEST_COLUMNS))
"""A failure and the row that it is about, so that a folder of dead letters is itself a manifest."""


EXPORT_FIELDS: Final = (
    Column(
        name="id",
        type=_TEXT,
        required=True,
        meaning="Of the item: the clip's id, and for a "
        "segment a slash and its number in the clip, from 1.",
    ),
    *(_of_row(name) for name in ("dataset", "split", "label", "group")),
    *(_of_row(name) for name in ("positive_text", "negative_text", "mixture_uri")),
    _real("start_s", "Where the item begins in the recording that it was separated from."),
    _real("end_s", "Where it ends there."),
    _text(
        "recorded_at",
        "When the item begins by the clock of the recorder, such as `2024-05-04T06:30:01.250000`: "
        "of Broadcast Wave recordings; null where nothing says it.",
    ),
    _real("peak_db", "Of the segment, as in `segments/`."),
    _real("stem_to_mixture_db", "Power of the stem over that of the mixture."),
    _real("presence", "Of the segment or the clip."),
    _real("clap_score", "Of the segment or the clip."),
    _text("model", "What made the stem."),
)
"""What an exported item says of itself; the same in every one, whatever is null."""

EXPORTED_TABLE: Final = (
    *EXPORT_FIELDS,
    Column(
        name="file",
        type=_TEXT,
        required=True,
        meaning="What holds the item, as a path below the output folder.",
    ),
    _text("key", "The item's name in that file."),
    _text("row_sha256", "Digest of what was taken; `--resume` compares it."),
    _real("duration_s", "Length of its audio; null where the layout holds none."),
    _count("sample_rate_hz", "Rate of its audio."),
    _count("n_channels", "Channels of its audio."),
    _count("schema_version", "Version of this table."),
)
"""One row an item that `pipelines.export` wrote."""


def _schema(columns: Sequence[Column]) -> pa.Schema:
    return pa.schema([column.field for column in columns], metadata=_METADATA)


def _described(name: str, *, nullable: bool) -> pa.Field:
    metadata = {"description": _description(name)}
    return pa.field(name, _arrow_type(name), nullable=nullable, metadata=metadata)


MANIFEST_SCHEMA = pa.schema(
    [_described(name, nullable=name != "id") for name in MANIFEST_COLUMNS], metadata=_METADATA
)
METRICS_SCHEMA = _schema(METRICS_TABLE)
SUMMARY_SCHEMA = _schema(SUMMARY_TABLE)
SEGMENTS_SCHEMA = _schema(SEGMENTS_TABLE)
EMBEDDINGS_SCHEMA = _schema(EMBEDDINGS_TABLE)
WINDOWS_SCHEMA = _schema(WINDOWS_TABLE)
EXPORTED_SCHEMA = _schema(EXPORTED_TABLE)
DEAD_LETTER_SCHEMA = pa.schema(
    [
        *(column.field for column in _FAILURE),
        *(_described(name, nullable=True) for name in MANIFEST_COLUMNS),
    ],
    metadata=_METADATA,
)


def with_extra(schema: pa.Schema, names: Iterable[str]) -> pa.Schema:
    """``schema`` with one text column ``extra_…`` for each name, in sorted order."""
    for name in sorted(set(names)):
        schema = schema.append(pa.field(EXTRA_PREFIX + name, pa.string()))
    return schema


_PAGE: Final = (
    (
        "Metrics",
        "`metrics/`: one row a clip, and the manifest's own columns as `extra_…`. A metric is null "
        "where it is undefined. Ratios and similarities are of the mean of the channels, at the "
        "model's rate, before the stem is resampled to the recording's and written; similarities "
        "of what is longer than `--max_clip_in_memory_s` are of the stem as it is written. A "
        "reference keeps its constant offset, which stems of the bundled model lack where it is "
        "large: ratios count that as an error.",
        METRICS_TABLE,
    ),
    (
        "Summary",
        f"`summary/`: one row a metric and group of clips, in at most {MAX_GROUPS:,} groups. Where "
        "there would be more, `input_snr_db` is rounded to whole dB, and if that is not enough, it "
        "or other columns with many values are left out, which makes them null. The command says "
        f"so at its end, and the file in its metadata, under `{COARSER}` "
        "(`pyarrow.parquet.read_schema(file).metadata`).",
        SUMMARY_TABLE,
    ),
    (
        "Segments",
        "`segments/`: one row a stretch in which the mean of a stem's channels is active. A stereo "
        "recording whose channels cancel out has none, whatever its presence.",
        SEGMENTS_TABLE,
    ),
    (
        "Embeddings",
        "`embeddings/`, with `--embeddings`: one row a stem that was separated.",
        EMBEDDINGS_TABLE,
    ),
    (
        "Windows",
        "`windows/`, with `--windows` or `--screen`: one row every 10 s of a recording, in a file "
        "for each recording.",
        WINDOWS_TABLE,
    ),
    (
        "Dead letters",
        "`dead_letters/`: one row a failure, and the manifest's own columns as `extra_…`.",
        DEAD_LETTER_TABLE,
    ),
    (
        "Exported",
        "`exported/`: one row an item that `python -m pipelines.export` wrote.",
        EXPORTED_TABLE,
    ),
)


def page() -> Iterator[str]:
    """The lines of ``docs/columns.md``."""
    yield "# Columns of the tables"
    yield ""
    yield "Printed by `python -m manifests.columns` from the table from which the schemas are made."
    for title, text, columns in _PAGE:
        yield from ("", f"## {title}", "", text, "")
        yield from ("| column | type | unit | better | meaning |", "|---|---|---|---|---|")
        for column in columns:
            cells = (f"`{column.name}`", _type_name(column.type), column.unit, column.better or "")
            yield f"| {' | '.join(cells)} | {column.meaning} |"


def _type_name(type: pa.DataType) -> str:
    return f"list of {type.value_type}" if pa.types.is_list(type) else str(type)


def run(argv: Sequence[str] | None = None) -> int:
    """Writes the page to standard output; returns 0, or 1 where it could not be written."""
    screen.steady()
    flags.Parser(
        prog="python -m manifests.columns",
        description="Writes docs/columns.md: every column of the tables that a run writes.",
    ).parse_args(argv)
    sys.stdout.writelines(f"{line}\n" for line in page())
    if (error := screen.lost()) is not None:
        sys.stderr.write(f"the page was not written: {error.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
