"""Finds a benchmark's clips in a folder, and names the paper's query settings.

A query setting is modality, polarity and shots, as columns of a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from manifests.files import (
    ManifestError,
    filesystem,
    other_spellings,
    reading,
    resolve,
)
from manifests.row import ManifestRow, quoted

ON_MISSING = ("error", "skip", "ignore")
_MAX_NAMED = 20


def clip_uri(root: str, name: str) -> str:
    """The clip ``name`` of a list, below the absolute folder ``root``.

    Raises:
        ManifestError: the name leaves the bucket of ``root``.
    """
    try:
        return resolve(root, name)
    except ValueError as err:
        raise ManifestError(str(err)) from err


def listing(root: str) -> frozenset[str]:
    """URIs of all files below an absolute folder, from one listing of it.

    Raises:
        ManifestError: the folder is not there or cannot be listed.
    """
    files, path = filesystem(root)
    files.invalidate_cache()
    with reading(root):
        if not files.isdir(path):
            raise ManifestError(f"{root}: no such folder")
        found = files.find(path)
    return frozenset(root + name.removeprefix(path.rstrip("/")) for name in found)


@dataclass(slots=True, kw_only=True)
class PresenceFilter:
    """Passes on the rows whose clips are all there, and remembers what is not.

    Attributes:
        present: URIs of the files that are there; None where nobody looked.
        missing: URIs of the clips that are not, in the order in which rows name them.
        num_skipped: rows that name one of them.
    """

    present: frozenset[str] | None
    missing: dict[str, None] = field(default_factory=dict)
    num_skipped: int = 0

    def __call__(self, rows: Iterable[ManifestRow]) -> Iterator[ManifestRow]:
        """Rows whose clips are all there."""
        for row in rows:
            absent = self._absent(row)
            if absent:
                self.missing.update(dict.fromkeys(absent))
                self.num_skipped += 1
            else:
                yield row

    def _absent(self, row: ManifestRow) -> list[str]:
        if self.present is None:
            return []
        alone = (row.mixture_uri, row.reference_uri)
        uris = [uri for uri in alone if uri is not None]
        uris += [*row.targets, *row.interferer_uris]
        uris += [*row.positive_audio_uris, *row.negative_audio_uris]
        return [uri for uri in uris if not self._is_present(uri, self.present)]

    @staticmethod
    def _is_present(uri: str, present: frozenset[str]) -> bool:
        """Whether a run would find a clip: names are found in other Unicode forms too."""
        return uri in present or any(other in present for other in other_spellings(uri))

    def describe(self) -> str:
        """The missing clips, a line each, the first 20 of them."""
        names = list(self.missing)
        lines = [f"missing: {uri}" for uri in names[:_MAX_NAMED]]
        if len(names) > _MAX_NAMED:
            lines.append(f"… and {len(names) - _MAX_NAMED:,} more missing")
        return "\n".join(lines)


MODALITIES = ("text", "audio", "both")
POLARITIES = ("P", "N", "P+N")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSetting:
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
