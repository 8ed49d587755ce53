"""A folder of labelled clips, decoded once into a memory-mapped file that processes share."""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
from filelock import FileLock

from model.checkpoints.fetch import cache_dir
from model.signal import resample

_INT16_SCALE = 32767.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One labelled recording of one sound."""

    path: str
    label: str
    caption: str
    alt_caption: str
    split: str
    group: str
    """The recording it was cut from; splits never share a group."""
    start: int
    num_samples: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Clips of some splits, and their decoded audio."""

    folder: Path
    sample_rate_hz: int
    clips: list[Clip]
    samples: npt.NDArray[np.int16]

    @classmethod
    def load(
        cls, folder: Path, *, sample_rate_hz: int = 32_000, splits: Sequence[str] = ("train",)
    ) -> Corpus:
        """Reads ``manifest.csv`` and the clips it names.

        Columns: path, label, caption, alt_caption, split, group. The first call decodes
        everything, mono, to one int16 file in the cache; later calls map that file.

        Raises:
            FileNotFoundError: there is no manifest, or a clip is missing.
            ValueError: no clip belongs to the splits.
        """
        manifest = folder / "manifest.csv"
        if not manifest.is_file():
            raise FileNotFoundError(f"{manifest}: a corpus is a folder with manifest.csv")
        with manifest.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        store, offsets = _decoded(folder, rows, sample_rate_hz)
        clips = [
            Clip(
                path=row["path"],
                label=row["label"],
                caption=row["caption"],
                alt_caption=row.get("alt_caption", ""),
                split=row["split"],
                group=row["group"],
                start=int(offsets[index]),
                num_samples=int(offsets[index + 1] - offsets[index]),
            )
            for index, row in enumerate(rows)
            if row["split"] in splits
        ]
        if not clips:
            raise ValueError(f"{manifest}: no clip of the splits {tuple(splits)}")
        samples = np.load(store, mmap_mode="r")
        return cls(folder=folder, sample_rate_hz=sample_rate_hz, clips=clips, samples=samples)

    def audio(self, index: int) -> npt.NDArray[np.float32]:
        """The clip's waveform, float32[T] in [-1, 1]."""
        clip = self.clips[index]
        return (
            self.samples[clip.start : clip.start + clip.num_samples].astype(np.float32)
            / _INT16_SCALE
        )

    @functools.cached_property
    def labels(self) -> list[str]:
        """The labels that occur, sorted."""
        return sorted({clip.label for clip in self.clips})

    @functools.cached_property
    def by_label(self) -> dict[str, list[int]]:
        """Clip indices of every label."""
        groups: dict[str, list[int]] = {label: [] for label in self.labels}
        for index, clip in enumerate(self.clips):
            groups[clip.label].append(index)
        return groups


def _decoded(
    folder: Path, rows: Sequence[dict[str, str]], sample_rate_hz: int
) -> tuple[Path, npt.NDArray[np.int64]]:
    """Paths of the decoded store, made where it does not exist, and the clips' offsets in it."""
    key = hashlib.sha256(
        f"{folder.resolve()}|{sample_rate_hz}|{[r['path'] for r in rows]}".encode()
    )
    target = cache_dir() / "corpora" / key.hexdigest()[:24]
    target.mkdir(parents=True, exist_ok=True)
    store, index = target / "samples.npy", target / "offsets.npy"
    with FileLock(str(target / "lock")):
        if not index.is_file():
            pieces = [_decode(folder / row["path"], sample_rate_hz) for row in rows]
            offsets = np.cumsum([0, *(len(piece) for piece in pieces)], dtype=np.int64)
            _save(store, np.concatenate(pieces))
            _save(index, offsets)
    return store, np.load(index)


def _decode(path: Path, sample_rate_hz: int) -> npt.NDArray[np.int16]:
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = resample(audio.mean(axis=1), rate, sample_rate_hz)
    scaled: npt.NDArray[np.int16] = np.rint(np.clip(mono, -1.0, 1.0) * _INT16_SCALE).astype(
        np.int16
    )
    return scaled


def _save(path: Path, array: npt.NDArray[np.int16] | npt.NDArray[np.int64]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".npy")
    with os.fdopen(handle, "wb") as stream:
        np.save(stream, array)
    Path(name).replace(path)
