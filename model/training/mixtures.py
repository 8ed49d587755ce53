"""Draws training mixtures with their queries: who is in it, how loud, what is asked for."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from model.signal import input_gain
from model.training.augment import at_rms, change_speed, place, shift
from model.training.captions import CaptionBook
from model.training.corpus import Corpus
from model.training.settings import MixingSettings

Audio = npt.NDArray[np.float32]

_REFERENCE_RMS = 0.06
QUERIES = 2
"""Queries a mixture: a subset of its sources, and all the others, which are none where it has one
source: then the second query asks for something absent, and its target is silence."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PolarityQuery:
    """One polarity of a query: what it names, and how much of it is text."""

    caption: str
    clips: tuple[int, ...]
    """The shots' clip indices, one a named source; their embeddings are averaged."""
    text_weight: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """A mixture and its queries."""

    mixture: Audio
    """float32[T]."""
    targets: tuple[Audio, ...]
    """float32[T] a query."""
    positives: tuple[PolarityQuery | None, ...]
    negatives: tuple[PolarityQuery | None, ...]


class MixtureSampler:
    """Draws examples from a corpus; every draw comes from the generator it is given."""

    def __init__(
        self,
        corpus: Corpus,
        book: CaptionBook,
        settings: MixingSettings,
        num_samples: int,
        input_level_dbfs: float | None = None,
    ) -> None:
        """Draws mixtures of ``num_samples``, at the level that the network is to hear them at."""
        self._corpus = corpus
        self._book = book
        self._settings = settings
        self._num_samples = num_samples
        self._level_dbfs = input_level_dbfs
        self._members: list[list[int]] = [[] for _ in book.names]
        for index, name in enumerate(book.class_of):
            self._members[name].append(index)
        self._class_weights = book.weights(settings.open_share)

    def draw(self, rng: np.random.Generator) -> Example:
        """One mixture, with a query for some of its sources and one for the others."""
        settings = self._settings
        count = 1 + int(rng.choice(len(settings.source_shares), p=settings.source_shares))
        classes = rng.choice(len(self._members), size=count, replace=False, p=self._class_weights)
        clips = [int(rng.choice(self._members[name])) for name in classes]
        sources = [self._source(clip, rng) for clip in clips]
        gain = 10 ** (-rng.uniform(0.0, settings.gain_range_db) / 20)
        mixture = np.sum(sources, axis=0, dtype=np.float32)
        gain *= self._input_gain(mixture)
        split = int(rng.integers(1, count)) if count > 1 else 1
        order = rng.permutation(count).tolist()
        sides = (order[:split], order[split:])
        pairs = [self._query(side, clips, rng) for side in sides]
        silence = np.zeros_like(mixture)
        return Example(
            mixture=np.float32(gain) * mixture,
            targets=tuple(
                np.float32(gain) * sum((sources[index] for index in side), start=silence)
                for side in sides
            ),
            positives=tuple(pair[0] for pair in pairs),
            negatives=tuple(pair[1] for pair in pairs),
        )

    def _input_gain(self, mixture: Audio) -> float:
        """To the level of the network, or without one under full scale, as files are."""
        if self._level_dbfs is not None:
            gain = input_gain([mixture[None]], self._corpus.sample_rate_hz, self._level_dbfs)
            return gain.at(0, len(mixture))
        highest = float(np.abs(mixture).max())
        return 0.9 / highest if highest > 1.0 else 1.0

    def _source(self, clip: int, rng: np.random.Generator) -> Audio:
        audio = self._corpus.audio(clip)
        if rng.random() < 0.5:
            audio = change_speed(audio, float(rng.uniform(0.9, 1.1)))
        half = self._settings.level_range_db / 2
        level = _REFERENCE_RMS * 10 ** (rng.uniform(-half, half) / 20)
        window = place(audio, self._num_samples, rng)
        if self._settings.shifted_share and rng.random() < self._settings.shifted_share:
            window = shift(window, rng)
        return at_rms(window, level)

    def _query(
        self, side: list[int], clips: list[int], rng: np.random.Generator
    ) -> tuple[PolarityQuery | None, PolarityQuery | None]:
        wanted = [clips[index] for index in side] or [self._absent(clips, rng)]
        others = [clip for index, clip in enumerate(clips) if index not in side]
        if not others:
            others = [self._absent(clips, rng)]
        positive = self._polarity(wanted, rng)
        negative = self._polarity(others, rng)
        draw, settings = rng.random(), self._settings
        if draw < settings.positive_only_share:
            return positive, None
        if draw < settings.positive_only_share + settings.negative_only_share:
            return None, negative
        return positive, negative

    def _absent(self, clips: list[int], rng: np.random.Generator) -> int:
        """A clip of a class that the mixture does not have."""
        present = {self._book.class_of[clip] for clip in clips}
        while True:
            clip = int(rng.integers(len(self._corpus.clips)))
            if self._book.class_of[clip] not in present:
                return clip

    def _polarity(self, clips: list[int], rng: np.random.Generator) -> PolarityQuery:
        settings = self._settings
        names = [self._book.class_of[clip] for clip in clips]
        own = rng.random() < settings.own_audio_share
        shots = clips if own else [int(rng.choice(self._members[name])) for name in names]
        draw = rng.random()
        if draw < settings.pure_text_share:
            weight = 1.0
        elif draw < settings.pure_text_share + settings.pure_audio_share:
            weight = 0.0
        else:
            weight = float(rng.random())
        caption = self._book.draw(names, rng)
        return PolarityQuery(caption=caption, clips=tuple(shots), text_weight=weight)
