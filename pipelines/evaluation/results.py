"""The figures of an evaluation, from the metrics of its run: as a record, and compared with one."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from manifests.benchmarks.corpus_sets import ABSENT_SETS, QUERY_SETS, SETS
from model.bootstrap import Detection, Summary, detection, summarise
from pipelines.evaluation.model_figures import Cost, ZeroShot
from transforms.storage import Storage, join

METRICS = ("sdri_db", "si_sdri_db", "snri_db")
PRESENCE = ("presence", "stem_to_mixture_db")
"""The columns by which it can be told whether what was asked for is there."""
SUPPRESSION = "suppression_db"
PHRASES = "dog_phrases"
DECIBEL_TOLERANCE = 0.05
SHARE_TOLERANCE = 0.01
_PRESENT_SET = "text_pn"
_MIXTURE = ("target_uris", "interferer_uris")
_COLUMNS = (
    *("id", "dataset", "label", "group", "positive_text", "model", "model_sha256"),
    *(*_MIXTURE, *METRICS, *PRESENCE, SUPPRESSION, "undefined_reason"),
)
_DECIMALS = 4
_SILENT = "silent_stem"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Results:
    """All that an evaluation found.

    Attributes:
        split: whose clips were mixed.
        seed: of every draw.
        limit: mixtures of each set; None: all.
        scores: a row a stem, with the columns of the metrics that are read here; None where nothing
            was separated.
        zero_shot: how well CLAP knows the classes, by wording; empty where that was not asked.
        cost: what the model takes up.
    """

    split: str
    seed: int
    limit: int | None
    scores: pd.DataFrame | None
    zero_shot: tuple[ZeroShot, ...] = ()
    cost: Cost | None = None

    def by_set(self) -> dict[str, pd.DataFrame]:
        """Returns the rows of each set that was run, in the order of the sets."""
        if self.scores is None:
            return {}
        groups = dict(list(self.scores.groupby("dataset")))
        return {name: groups[name] for name in SETS if name in groups}

    def summaries(self) -> dict[str, dict[str, Summary]]:
        """Summarises each metric of each set that asks for what is there."""
        return {
            name: {metric: summarised(frame, metric) for metric in METRICS}
            for name, frame in self.by_set().items()
            if name not in ABSENT_SETS
        }

    def by_class(self) -> dict[str, dict[str, Summary]]:
        """Summarises the SDRi of each class in the sets that ask for the same in other ways."""
        return {
            name: {str(label): summarised(rows) for label, rows in frame.groupby("label")}
            for name, frame in self.by_set().items()
            if name in QUERY_SETS
        }

    def by_phrase(self) -> dict[str, Summary]:
        """Summarises the SDRi of each way to ask for a dog."""
        frame = self.by_set().get(PHRASES)
        if frame is None:
            return {}
        phrases = frame.groupby("positive_text")
        return {str(phrase): summarised(rows) for phrase, rows in phrases}

    def presence(self) -> dict[str, dict[str, Detection]]:
        """Tells, by set of absent classes and by column, how well present and absent differ.

        A mixture of such a set is there once as a row of ``text_pn``, whose target is present. A
        stem that is silent has the lowest of all levels. A column without a value is left out.
        """
        sets = self.by_set()
        present = sets.get(_PRESENT_SET)
        found: dict[str, dict[str, Detection]] = {}
        for name in ABSENT_SETS:
            if name not in sets or present is None:
                continue
            mixtures = set(_mixtures(sets[name]))
            shared = present[[mixture in mixtures for mixture in _mixtures(present)]]
            rows = pd.concat([shared, sets[name]])
            is_present = (rows["dataset"] == _PRESENT_SET).to_numpy()
            by_column = {
                column: detection(scores, is_present, rows["group"].tolist())
                for column in PRESENCE
                if not np.isnan(scores := _levels(rows, column)).all()
            }
            if by_column:
                found[name] = by_column
        return found

    def suppression(self) -> dict[str, Summary]:
        """Summarises how far stems of what is absent lie below the mixture, by set.

        A silent stem counts as undefined. Sets without a defined value are left out.
        """
        sets = self.by_set()
        found = {name: summarised(sets[name], SUPPRESSION) for name in ABSENT_SETS if name in sets}
        return {name: summary for name, summary in found.items() if summary.n}


def summarised(rows: pd.DataFrame, metric: str = "sdri_db") -> Summary:
    """Summarises a metric over rows; its interval draws the recordings of the targets."""
    return summarise(rows[metric].to_numpy(dtype=np.float64), rows["group"].tolist())


def read_scores(run: str, storage: Storage) -> pd.DataFrame:
    """Reads what is needed of a run's metrics, sorted by id.

    Raises:
        OSError: the run has no metrics, or they cannot be read.
    """
    files = storage.list_files(join(run, "metrics"), ".parquet")
    if not files:
        raise FileNotFoundError(f"{run}: has no metrics; expected those of pipelines.separate")
    tables = []
    for file in files:
        with storage.open(file) as stream:
            tables.append(pq.ParquetFile(stream).read(columns=list(_COLUMNS)).to_pandas())
    frame = pd.concat(tables)
    for column in (*METRICS, *PRESENCE, SUPPRESSION):
        frame[column] = frame[column].astype(np.float64)
    ordered: pd.DataFrame = frame.sort_values("id", ignore_index=True)
    return ordered


def _mixtures(rows: pd.DataFrame) -> list[tuple[tuple[str, ...], ...]]:
    columns = [rows[name] for name in _MIXTURE]
    return [tuple(map(tuple, parts)) for parts in zip(*columns, strict=True)]


def _levels(rows: pd.DataFrame, column: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    values = rows[column].to_numpy(dtype=np.float64, copy=True)
    reasons = rows["undefined_reason"].fillna("")
    silent = reasons.str.contains(_SILENT, regex=False).to_numpy() & np.isnan(values)
    if not np.isnan(values).all():
        values[silent] = -math.inf
    return values


def record_of(results: Results) -> dict[str, Any]:
    """Makes the record of an evaluation: plain values in a stable order; undefined is null."""
    record: dict[str, Any] = {
        "split": results.split,
        "seed": results.seed,
        "limit": results.limit,
        "models": _models(results.scores),
        "datasets": _plain(results.summaries()),
        "per_class": _plain(results.by_class()),
        "phrases": _plain(results.by_phrase()),
        "presence": _plain(results.presence()),
        "suppression": _plain(results.suppression()),
        "zero_shot": _plain({each.phrasing: each for each in results.zero_shot}),
    }
    if results.cost is not None:
        record["cost"] = _plain(results.cost)
    return record


def _models(scores: pd.DataFrame | None) -> list[str]:
    if scores is None:
        return []
    pairs = zip(scores["model"], scores["model_sha256"], strict=True)
    return sorted({f"{name} {digest}" for name, digest in pairs})


def to_json(record: Mapping[str, Any]) -> str:
    """Writes a record as text."""
    return json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = {field.name: _SHORTER.get(field.name, field.name) for field in _fields(value)}
        return {short: _plain(getattr(value, name)) for name, short in names.items()}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, float):
        return round(value, _DECIMALS) if math.isfinite(value) else None
    return value


_SHORTER = {"ci_low": "low", "ci_high": "high"}
_fields = dataclasses.fields


def record_differences(
    recorded: Mapping[str, Any],
    found: Mapping[str, Any],
    *,
    tolerance_db: float = DECIBEL_TOLERANCE,
) -> list[str]:
    """Tells how two records of :func:`record_of` differ, a line a difference.

    The means of every set and metric, areas under the ROC curve and zero-shot shares are compared;
    what was recorded and not measured again differs. Cost is not compared: it depends on the
    machine.

    Args:
        recorded: what is expected.
        found: what was measured now.
        tolerance_db: how far a mean in dB may be off: another processor rounds differently.
    """
    lines = [
        f"{name}: recorded {recorded[name]!r}, found {found[name]!r}"
        for name in ("split", "seed", "limit")
        if recorded[name] != found[name]
    ]
    for part, figure, tolerance in (
        ("datasets", "mean", tolerance_db),
        ("presence", "auroc", SHARE_TOLERANCE),
        ("zero_shot", "mean", SHARE_TOLERANCE),
    ):
        for name, expected in recorded.get(part, {}).items():
            measured = found.get(part, {}).get(name)
            if measured is None:
                lines.append(f"{name}: recorded, but not measured")
            else:
                lines += _compared(name, expected, measured, figure, tolerance)
    return lines


def _compared(
    name: str,
    expected: Mapping[str, Any],
    measured: Mapping[str, Any],
    figure: str,
    tolerance: float,
) -> list[str]:
    lines = []
    for metric, summary in expected.items():
        if not (isinstance(summary, Mapping) and figure in summary):
            continue
        now = measured.get(metric)
        if now is None:
            lines.append(f"{name}.{metric}: recorded, but not measured")
            continue
        for count in ("n", "n_present", "n_absent"):
            if count in summary and summary[count] != now.get(count):
                lines.append(
                    f"{name}.{metric}.{count}: recorded {summary[count]}, found {now.get(count)}"
                )
        before, after = summary[figure], now[figure]
        if before != after and (
            before is None or after is None or not abs(before - after) <= tolerance
        ):
            lines.append(f"{name}.{metric}: recorded {before}, found {after}")
    return lines
