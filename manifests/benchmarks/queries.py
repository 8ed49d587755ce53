"""The paper's query settings: modality, polarity and shots, as columns of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from manifests.benchmarks.clips import clip_uri
from manifests.errors import ManifestError, quoted

MODALITIES = ("text", "audio", "both")
POLARITIES = ("P", "N", "P+N")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuerySetting:
    """How a benchmark's captions and example clips become queries.

    Attributes:
        modality: ``text``, ``audio`` or ``both``.
        polarity: ``P``, ``N`` or ``P+N``; the other polarity is left out.
        shots: example clips of each class: the first so many of its list.
        samples: example clips of each class, by caption; needed unless ``modality`` is ``text``.
        samples_root: absolute folder of the example clips.
        text_weight: share of the text where a query is both; None for the pipeline's default.
    """

    modality: str = "text"
    polarity: str = "P+N"
    shots: int = 1
    samples: Mapping[str, Sequence[str]] = field(default_factory=dict, hash=False)
    samples_root: str = ""
    text_weight: float | None = None

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: an unknown modality or polarity, no shots, or no samples to take them from.
        """
        if self.modality not in MODALITIES:
            raise ValueError(f"modality {self.modality!r}; expected one of {MODALITIES}")
        if self.polarity not in POLARITIES:
            raise ValueError(f"polarity {self.polarity!r}; expected one of {POLARITIES}")
        if self.shots < 1:
            raise ValueError(f"shots {self.shots}; expected 1 or more")
        if self.modality != "text" and not self.samples:
            raise ValueError(f"modality {self.modality!r} without samples; expected example clips")

    def columns(self, positive: Sequence[str], negative: Sequence[str]) -> dict[str, Any]:
        """Columns of a query for what ``positive`` captions name, without what ``negative`` do.

        Several captions are joined by ``and``; each adds its own example clips.

        Raises:
            ManifestError: a caption has fewer example clips than ``shots``.
        """
        columns: dict[str, Any] = {}
        sides = {"positive": positive, "negative": negative}
        if self.polarity != "P+N":
            del sides["negative" if self.polarity == "P" else "positive"]
        for side, captions in sides.items():
            if not captions:
                continue
            if self.modality != "audio":
                columns[f"{side}_text"] = " and ".join(captions)
            if self.modality != "text":
                clips = [uri for caption in captions for uri in self._shots(caption)]
                columns[f"{side}_audio_uris"] = tuple(clips)
        if self.modality == "both":
            columns["text_weight"] = self.text_weight
        return columns

    def _shots(self, caption: str) -> list[str]:
        clips = self.samples.get(caption, ())
        if len(clips) < self.shots:
            raise ManifestError(
                f"class {quoted(caption)} has {len(clips)} example clips; expected {self.shots}"
            )
        return [clip_uri(self.samples_root, name) for name in clips[: self.shots]]
