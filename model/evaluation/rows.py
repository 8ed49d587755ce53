"""What is asked of a model: one extraction from one mixture of clips."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Clips of a mixture, each at one level relative to the first."""

    paths: tuple[str, ...]
    """Clips relative to the corpus; targets come first."""
    levels_db: tuple[float, ...]
    """Level of the first clip above each of the others, in dB."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to extract and what to suppress, in words or by an example clip each."""

    positive_text: str | None = None
    negative_text: str | None = None
    positive_clip: str | None = None
    negative_clip: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRow:
    """One extraction, scored against the sum of the mixture's first ``num_targets`` clips."""

    id: str
    dataset: str
    split: str
    label: str
    """Class of the first target."""
    group: str
    """The recording that the first target is from."""
    sources: Sources
    num_targets: int = 1
    query: Query

    def record(self, duration_s: float) -> dict[str, Any]:
        """The row as a manifest has it, URIs relative to the corpus; absent columns left out."""
        targets = self.sources.paths[: self.num_targets]
        query = self.query
        columns: dict[str, Any] = {
            "id": self.id,
            "target_uri": targets[0] if self.num_targets == 1 else None,
            "target_uris": list(targets) if self.num_targets > 1 else None,
            "interferer_uris": list(self.sources.paths[self.num_targets :]),
            "snr_db": list(self.sources.levels_db[self.num_targets - 1 :]),
            "positive_text": query.positive_text,
            "negative_text": query.negative_text,
            "positive_audio_uris": _one(query.positive_clip),
            "negative_audio_uris": _one(query.negative_clip),
            "duration_s": duration_s,
            "dataset": self.dataset,
            "split": self.split,
            "label": self.label,
            "extra_group": self.group,
        }
        return {name: value for name, value in columns.items() if value is not None}


def _one(path: str | None) -> list[str] | None:
    return None if path is None else [path]


def write_manifests(
    rows: Iterable[EvaluationRow], folder: Path, duration_s: float
) -> Sequence[Path]:
    """Writes one JSONL manifest a data set; its URIs are relative to the corpus.

    Returns:
        The files, in the order of the data sets.
    """
    by_dataset: dict[str, list[str]] = {}
    for row in rows:
        line = json.dumps(row.record(duration_s), ensure_ascii=False)
        by_dataset.setdefault(row.dataset, []).append(line)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for dataset, lines in by_dataset.items():
        paths.append(folder / f"{dataset}.jsonl")
        paths[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths
