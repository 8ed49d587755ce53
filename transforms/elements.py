"""Records in flight between transforms.

Those of the first part cross shuffles: rows, URIs and embeddings. Those of the second part hold
samples and live inside one fused stage. Their coders are in :mod:`transforms.threaded`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from manifests.row import ManifestRow
from transforms.audio import NO_TAGS, Tags

Samples = NDArray[np.float32]
Stage = Literal["manifest", "embed_queries", "read", "separate", "score", "write"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a manifest row has no stem.

    Attributes:
        stage: where in the job.
        error_type: what went wrong, as one of the codes in docs/errors.md.
        message: for a person.
        row: the row; None where it did not validate.
        row_json: the row as read, where it did not validate.
        manifest_uri: where the row was read.
        manifest_row: its number there, counted as the manifest reader counts.
    """

    stage: Stage
    error_type: str
    message: str
    row: ManifestRow | None = None
    row_json: str | None = None
    manifest_uri: str | None = None
    manifest_row: int | None = None


def failed(row: ManifestRow, stage: Stage, error_type: str, message: str) -> Failure:
    """The failure of a valid row."""
    return Failure(
        stage=stage,
        error_type=error_type,
        message=message,
        row=row,
        manifest_uri=row.manifest_uri,
        manifest_row=row.manifest_row,
    )


_SHARD = re.compile(r"(\d{1,6})/(\d{1,6})")
_SHARD_FOLDER = re.compile(r"shard=(\d{1,6})-of-(\d{1,6})")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Part ``index`` of ``count`` parts of the rows of a manifest."""

    index: int
    count: int

    def __post_init__(self) -> None:
        """Checks that there is such a part."""
        if not 0 <= self.index < self.count:
            last = max(self.count - 1, 0)
            parts = f"0/{self.count} to {last}/{self.count}" if self.count else "0/1 for all"
            raise ValueError(f"{self}: expected {parts}")

    @classmethod
    def of(cls, text: str) -> Shard:
        """The part that a command line names: ``0/4`` is the first of four, ``3/4`` the last.

        Raises:
            ValueError: the text names none.
        """
        found = _SHARD.fullmatch(text)
        if found is None or not int(found[2]):
            raise ValueError(f"{text}: expected I/N, such as 0/4 for the first of four parts")
        return cls(index=int(found[1]), count=int(found[2]))

    @classmethod
    def in_folder(cls, name: str) -> Shard | None:
        """The part whose results are in a folder of that name; None where it is no such name."""
        found = _SHARD_FOLDER.fullmatch(name)
        if found is None or int(found[1]) >= int(found[2]):
            return None
        return cls(index=int(found[1]), count=int(found[2]))

    @property
    def folder(self) -> str:
        """Name of the folder of its results."""
        return f"shard={self.index}-of-{self.count}"

    def whole_of(self, uri: str) -> str:
        """The folder in which the folders of all parts are, given that of this part."""
        return uri.rstrip("/").removesuffix(f"/{self.folder}")

    @property
    def parts(self) -> list[Shard]:
        """All parts of the same division."""
        return [Shard(index=index, count=self.count) for index in range(self.count)]

    def __str__(self) -> str:
        """As it stands on a command line."""
        return f"{self.index}/{self.count}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A caption, or the example clips of one query."""

    text: str | None = None
    audio_uris: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks that the query is either a text or example clips."""
        if (self.text is None) == (not self.audio_uris):
            raise ValueError(f"{self}: expected a text or example clips, and not both")

    @property
    def key(self) -> str:
        """Stable name: equal queries have equal keys, on any machine."""
        parts = ("text", self.text) if self.text is not None else ("audio", *self.audio_uris)
        data = "\x00".join(part or "" for part in parts)
        return hashlib.sha256(data.encode("utf-8", "surrogatepass")).hexdigest()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedQuery:
    """A query's embedding, little-endian float32[D], or why it has none."""

    embedding: bytes = b""
    error_type: str | None = None
    message: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MixtureRows:
    """Rows that ask for something from one and the same mixture, to be read and encoded once."""

    rows: tuple[ManifestRow, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch in which a stem is active; see :class:`model.signal.Stretch`.

    Attributes:
        start_s: where it begins in the stem.
        end_s: where it ends there.
        peak_db: the level of its loudest 100 ms.
        stem_to_mixture_db: power of the stem over that of the mixture in it.
        presence: the highest of the windows that it meets; None where the model does not say.
        clap_score: of the stretch, where that was asked for.
    """

    start_s: float
    end_s: float
    peak_db: float
    stem_to_mixture_db: float | None
    presence: float | None = None
    clap_score: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StemEmbedding:
    """The scorer's embedding of a stem, little-endian float32[D], or why it has none."""

    vector: bytes = b""
    undefined_reason: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MetricsRow:
    """What a job writes for a row that is done: a row of the metrics, or of a rendered manifest.

    ``values`` are by column, ``extra`` columns without their prefix. ``segments`` and the stem's
    ``embedding``, which have tables of their own, stay with their row until all are written.
    """

    id: str
    dataset: str | None
    split: str | None
    values: Mapping[str, Any]
    extra: Mapping[str, str]
    segments: tuple[Segment, ...] = ()
    embedding: StemEmbedding | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What computed a stem."""

    model: str
    model_sha256: str
    clap_sha256: str
    device: str
    precision: str


# ----- samples: never across a shuffle ---------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowQuery:
    """A row with the embeddings of what it asks for.

    Attributes:
        row: the manifest row.
        positive: float32[D]; zeros where there is no positive query.
        negative: float32[D]; zeros where there is no negative query.
        scorer_positive: float32[D'] by the scorer, or None: nothing to score against; or why the
            scorer cannot embed it, in one word.
        scorer_negative: likewise.
    """

    row: ManifestRow
    positive: Samples
    negative: Samples
    scorer_positive: Samples | str | None = None
    scorer_negative: Samples | str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MixtureQueries:
    """A mixture still to be read, and its queries."""

    queries: tuple[RowQuery, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clip:
    """A mixture in memory.

    Attributes:
        queries: what is asked of it.
        references: for each query float32[T'] mono at the model's rate, or None.
        audio: float32[C, T], as in the file.
        sample_rate_hz: of ``audio``.
        model_audio: float32[C', T'] at the model's rate; C' is 1 where channels are mixed down.
        tags: what its file says of it.
    """

    queries: tuple[RowQuery, ...]
    references: tuple[Samples | None, ...]
    audio: Samples
    sample_rate_hz: int
    model_audio: Samples
    tags: Tags = NO_TAGS


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LongRecording:
    """A mixture that is not held in memory, and its queries."""

    queries: tuple[RowQuery, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WindowOdds:
    """The log odds that what is asked for is in a window, and where in the recording that is."""

    start_s: float
    end_s: float
    log_odds: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stem:
    """What was extracted for one query.

    Attributes:
        query: what was asked.
        reference: float32[T'] mono at the model's rate, or None.
        audio: float32[C', T'] at the model's rate.
        num_windows: forward passes of the decoder, over all channels.
        inference_s: this query's share of the time in the network.
        input_gain_db: what the network heard the clip multiplied by, the mean in dB over its
            windows; None where this run did not separate.
        presence_odds: the log odds that what is asked for is in a window, the highest of all
            windows and channels; None where the separator does not say.
        window_odds: those of each window, the highest of its channels; empty likewise.
    """

    query: RowQuery
    reference: Samples | None
    audio: Samples
    num_windows: int
    inference_s: float
    input_gain_db: float | None = None
    presence_odds: float | None = None
    window_odds: tuple[WindowOdds, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeparatedClip:
    """A clip, the stems it gave, and the queries it failed."""

    clip: Clip
    stems: tuple[Stem, ...]
    provenance: Provenance
    failures: tuple[Failure, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The measured columns of one stem: values by name, and why others are undefined.

    ``segments`` are the stretches in which it is active; None where nobody looked for them.
    ``embedding`` is the stem's, where it is to be kept.
    """

    values: Mapping[str, float]
    reasons: Mapping[str, str]
    segments: tuple[Segment, ...] | None = None
    embedding: StemEmbedding | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredClip:
    """A separated clip with one ``Scores`` for each stem."""

    separated: SeparatedClip
    scores: tuple[Scores, ...]
    scorer_sha256: str | None


def num_bytes(record: object) -> int:
    """Size of the samples in a record, shared arrays counted as often as they appear."""
    if isinstance(record, np.ndarray):
        return int(record.nbytes)
    if isinstance(record, tuple):
        return sum(num_bytes(item) for item in record)
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return sum(num_bytes(getattr(record, f.name)) for f in dataclasses.fields(record))
    return 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One row on its way to a file.

    Attributes:
        partition: folder below the table's, such as ``dataset=a/split=b``; may be empty.
        key: orders the rows, and with the partition decides the file.
        record: values by column.
        extra: values of the columns that the schema does not know.
    """

    partition: str
    key: str
    record: Mapping[str, Any]
    extra: Mapping[str, str]


CHANGED, GONE, DOUBLE = "changed", "gone", "double"
BROKEN, UNFOUND, UNKNOWN = "broken", "unfound", "unknown"
"""Why a finished row of an earlier attempt leaves the tables."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeptRules:
    """How what was kept is held against the manifest.

    Attributes:
        covers: the manifest has all rows that the output is about: what is not in it leaves.
        retrying: the manifest is the output's own dead letters: a row of an id that is finished
            with other content is the second of that id, as it was before.
        roots: of recordings that are listed anew: what could not be listed there before is a
            failure again, or none any more.
    """

    covers: bool = False
    retrying: bool = False
    roots: tuple[str, ...] = ()


TABLE, OF_SEGMENTS, JOURNAL, LETTERS = "table", "segments", "journal", "letters"
OF_EMBEDDINGS = "embeddings"
"""What a file of an earlier attempt is a part of."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeptFile:
    """A file that an earlier attempt left.

    Attributes:
        kind: ``table``, ``segments``, ``embeddings``, ``journal`` or ``letters``.
        uri: the file.
    """

    kind: str
    uri: str

    def to_line(self) -> bytes:
        """A line of a listing."""
        return f"{json.dumps([self.kind, self.uri])}\n".encode("ascii")

    @classmethod
    def of_line(cls, line: bytes) -> KeptFile:
        """The file that a line of a listing names."""
        kind, uri = json.loads(line)
        return cls(kind=kind, uri=uri)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeptAudio:
    """A file of audio that a finished row names, and how long it should be."""

    uri: str
    sample_rate_hz: int
    num_channels: int
    num_samples: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeptRow:
    """A row that an earlier attempt finished: what decides whether it stays, and not the row.

    Attributes:
        id: of the row.
        row_sha256: digest of the manifest's row that it was made from; None where nothing says it.
        uri: the file that it was read from.
        in_table: whether that is a file of the table, and not of the journal.
        audio: the files of audio that it names; only where they are still to be looked at.
        broken: what is wrong with one of them, where that was looked at.
        num_segments: how many rows of the tables of segments and embeddings are about it; None
            where it does not say.
        asked: whether the manifest of this attempt has it.
    """

    id: str
    row_sha256: str | None
    uri: str
    in_table: bool
    audio: tuple[KeptAudio, ...] = ()
    broken: str | None = None
    num_segments: int | None = None
    asked: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeptSegments:
    """How many rows of a file of segments or embeddings are about a row."""

    id: str
    uri: str
    count: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeptLetter:
    """A dead letter of an earlier attempt: what decides whether it stays.

    Attributes:
        key: says which row of a manifest it is about.
        place: where that row stands, as :func:`transforms.tables.dead_letters.place_key` writes it.
        uri: the file that it was read from.
        is_second: whether it is a later row of an id that has another row.
        listed: the folder, shard or list that could not be looked into; None: it is about a row.
    """

    key: str
    place: str
    uri: str
    is_second: bool
    listed: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A file that cannot be read, what it is a part of, and why."""

    uri: str
    reason: str
    kind: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """A row to remove from a file; ``but_one``: remove all copies of it but the first.

    ``of_segments``: all its segments, in a file that has several of an id.
    """

    uri: str
    id: str
    why: str
    but_one: bool = False
    of_segments: bool = False
