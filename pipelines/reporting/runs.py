"""Run folders as they are reported: clips with their metrics, failures, and what was run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.columns import METRIC_COLUMNS, METRICS_SCHEMA
from manifests.row import EXTRA_PREFIX, MANIFEST_COLUMNS, RowError, parse_record
from transforms.storage import Storage, join

PROTOCOL_COLUMN = f"{EXTRA_PREFIX}protocol"
_DIGEST_CHARS = 12
_TARGETS = re.compile(r"(?P<sources>\d+)-sources-(?P<targets>\d+)-targets")
_COLUMNS = (
    *("id", "dataset", "split", "label", "query_type", "polarity", "n_shots", "n_sources"),
    *("input_snr_db", *METRIC_COLUMNS, "undefined_reason", "duration_s", "sample_rate_hz"),
    *("model", "model_sha256", "scorer_sha256", "stem_uri"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """What is reported, and how.

    Attributes:
        runs: run folders; the first is the baseline of comparisons.
        names: of the runs.
        output: folder of the report.
        title: of the page.
        metric: what plots and examples are about.
        listen: clips to listen to of each kind (best, median, worst), a run.
        allowed_uri_prefix: what rows and metrics may name to be listened to; empty: what the runs
            themselves were allowed.
        storage_options: fsspec options by protocol.
    """

    runs: tuple[str, ...]
    names: tuple[str, ...]
    output: str
    title: str
    metric: str
    listen: int
    allowed_uri_prefix: tuple[str, ...]
    storage_options: Mapping[str, Mapping[str, Any]]


class RunError(ValueError):
    """A folder that does not hold the results of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What clips have in common whose metrics are put together.

    Attributes:
        dataset: as in the manifest.
        protocol: ``extra_protocol`` of the manifest, or the digest of the manifest itself: figures
            of two protocols never share a line.
        query_type: ``text``, ``audio`` or ``both``.
        polarity: ``P``, ``N`` or ``P+N``.
        n_shots: example clips of a query.
        n_sources: sources of a mixture.
        n_targets: targets among them, where several are varied; otherwise None.
        input_snr_db: level of the target above the interferers.
    """

    dataset: str | None
    protocol: str
    query_type: str | None
    polarity: str | None
    n_shots: int | None
    n_sources: int | None
    n_targets: int | None
    input_snr_db: float | None

    @property
    def query(self) -> str:
        """The kind of query in words."""
        shots = f", {self.n_shots} shots" if (self.n_shots or 0) > 1 else ""
        shots = ", 1 shot" if self.n_shots == 1 else shots
        return f"{self.query_type or '?'} {self.polarity or '?'}{shots}"

    @property
    def mixture(self) -> str:
        """The mixtures in words."""
        parts = []
        if self.n_sources is not None:
            targets = f", {self.n_targets} of them targets" if self.n_targets else ""
            parts.append(f"{self.n_sources} sources{targets}")
        if self.input_snr_db is not None:
            level = f"{self.input_snr_db:+g}" if self.input_snr_db else "0"
            parts.append(f"{level} dB")
        return ", ".join(parts) or "as recorded"

    @property
    def sort_key(self) -> tuple[Any, ...]:
        """Orders settings; what is absent comes first."""
        return tuple(
            (value is not None, value if value is not None else 0)
            for value in (
                *(self.dataset, self.protocol, self.n_sources, self.n_targets, self.query_type),
                *(self.n_shots, self.polarity, self.input_snr_db),
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportClip:
    """A row of the metrics table; ``values`` as in ``METRIC_COLUMNS``, NaN for null."""

    id: str
    split: str | None
    label: str | None
    group: str | None
    setting: Setting
    values: tuple[float, ...]
    undefined_reason: str | None
    duration_s: float | None
    sample_rate_hz: int | None
    model: str | None
    model_sha256: str | None
    scorer_sha256: str | None
    stem_uri: str | None

    def value(self, metric: str) -> float:
        """A metric; NaN where it is undefined."""
        return self.values[METRIC_COLUMNS.index(metric)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFailure:
    """A dead letter; ``setting`` is None where its row was not valid."""

    stage: str
    error_type: str
    message: str
    row_id: str | None
    setting: Setting | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run folder.

    Attributes:
        name: what it is called in the report.
        uri: the folder.
        record: its ``run.json``; empty where there is none.
        clips: its metrics, sorted by id.
        failures: its dead letters.
    """

    name: str
    uri: str
    record: Mapping[str, Any]
    clips: tuple[ReportClip, ...]
    failures: tuple[ReportFailure, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """Model names with their digests."""
        return _distinct(f"{c.model or 'unnamed'} {short(c.model_sha256)}" for c in self.clips)

    @property
    def scorers(self) -> tuple[str, ...]:
        """Digests of scorers."""
        return _distinct(short(clip.scorer_sha256) for clip in self.clips)

    @property
    def protocols(self) -> tuple[str, ...]:
        """Protocols of the clips."""
        return _distinct(clip.setting.protocol for clip in self.clips)


def short(digest: str | None) -> str:
    """The beginning of a digest."""
    return digest[:_DIGEST_CHARS] if digest else "none"


def read_run(uri: str, name: str, storage: Storage) -> Run:
    """Reads the tables and the record of a run.

    Raises:
        RunError: there are no metrics and no dead letters, or a table is not one of ours.
    """
    record = _record(uri, storage)
    protocol = default_protocol(record)
    metrics = storage.list_files(join(uri, "metrics"), ".parquet")
    letters = storage.list_files(join(uri, "dead_letters"), ".parquet")
    if not metrics and not letters and not record:
        raise RunError(f"{uri}: has no metrics, no dead letters and no run.json")
    clips = [clip for file in metrics for clip in _clips(file, storage, protocol)]
    failures = [failure for file in letters for failure in _failures(file, storage, protocol)]
    return Run(
        name=name,
        uri=uri,
        record=record,
        clips=tuple(sorted(clips, key=lambda clip: clip.id)),
        failures=tuple(failures),
    )


def default_protocol(record: Mapping[str, Any]) -> str:
    """What was evaluated, where the manifest does not name its protocol."""
    digests = sorted(str(facts.get("sha256", "")) for facts in record.get("manifests", ()))
    if not digests:
        return "not named"
    more = f" and {len(digests) - 1} more" if len(digests) > 1 else ""
    return f"manifest {short(digests[0])}{more}"


def run_names(uris: Sequence[str]) -> list[str]:
    """A name for each folder: its last part, with a number where two would be the same."""
    names: list[str] = []
    for uri in uris:
        base = uri.rstrip("/").rsplit("/", 1)[-1] or "run"
        name, number = base, 2
        while name in names:
            name, number = f"{base} ({number})", number + 1
        names.append(name)
    return names


def _record(uri: str, storage: Storage) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(storage.read_bytes(join(uri, "run.json")))
    except FileNotFoundError:
        return {}
    except ValueError as err:
        raise RunError(f"{uri}/run.json: is not JSON ({err})") from err
    return record


def _rows(file: str, storage: Storage, wanted: Sequence[str]) -> Iterator[dict[str, Any]]:
    with storage.open(file) as stream:
        try:
            parquet = pq.ParquetFile(stream)
            names = [name for name in wanted if name in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(columns=names):
                yield from batch.to_pylist()
        except pa.ArrowInvalid as err:
            raise RunError(f"{file}: is not Parquet ({err})") from err


def _clips(file: str, storage: Storage, protocol: str) -> Iterator[ReportClip]:
    for row in _rows(file, storage, (*_COLUMNS, "group", PROTOCOL_COLUMN)):
        missing = [name for name in _COLUMNS if name not in row]
        if missing:
            raise RunError(f"{file}: has no column {missing[0]}; expected {METRICS_SCHEMA.names}")
        yield ReportClip(
            id=row["id"],
            split=row["split"],
            label=row["label"],
            group=row.get("group"),  # version 1 has none
            setting=_setting(row, protocol),
            values=tuple(_number(row[name]) for name in METRIC_COLUMNS),
            undefined_reason=row["undefined_reason"],
            duration_s=row["duration_s"],
            sample_rate_hz=row["sample_rate_hz"],
            model=row["model"],
            model_sha256=row["model_sha256"],
            scorer_sha256=row["scorer_sha256"],
            stem_uri=row["stem_uri"],
        )


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _setting(row: Mapping[str, Any], protocol: str) -> Setting:
    targets = _TARGETS.fullmatch(row["split"] or "")
    return Setting(
        dataset=row["dataset"],
        protocol=row.get(PROTOCOL_COLUMN) or protocol,
        query_type=row["query_type"],
        polarity=row["polarity"],
        n_shots=row["n_shots"],
        n_sources=row["n_sources"],
        n_targets=int(targets["targets"]) if targets else None,
        input_snr_db=row["input_snr_db"],
    )


def _failures(file: str, storage: Storage, protocol: str) -> Iterator[ReportFailure]:
    columns = ("stage", "error_type", "message", *MANIFEST_COLUMNS, PROTOCOL_COLUMN)
    for row in _rows(file, storage, columns):
        yield ReportFailure(
            stage=row["stage"] or "unknown",
            error_type=row["error_type"] or "unknown",
            message=row["message"] or "",
            row_id=row["id"],
            setting=_setting_of_row(row, protocol),
        )


def _setting_of_row(row: Mapping[str, Any], protocol: str) -> Setting | None:
    record = {name: row[name] for name in MANIFEST_COLUMNS if row.get(name) is not None}
    parsed = parse_record(record, uri="", row=1, folder="/")
    if isinstance(parsed, RowError):
        return None
    return _setting(
        {
            "dataset": parsed.dataset,
            "split": parsed.split,
            "query_type": parsed.query_type,
            "polarity": parsed.polarity,
            "n_shots": parsed.num_shots,
            "n_sources": parsed.num_sources,
            "input_snr_db": parsed.input_snr_db,
            PROTOCOL_COLUMN: row.get(PROTOCOL_COLUMN),
        },
        protocol,
    )


def _distinct(values: Iterator[str]) -> tuple[str, ...]:
    return tuple(sorted(set(values)))
