"""The evaluation sets: mixtures of the test split and what is asked of them, drawn by a fixed seed.

Every clip of the split is a target once. Each draw has a generator of its own, seeded by what it is
drawn for: no row depends on which sets are asked for, on their order, or on how many rows are run.
All two-source sets share their mixtures, so that their figures can be compared mixture by mixture.

=================  ================================================================================
``text_pn``        the corpus's captions of target and interferer as positive and negative query
``text_p``         the positive one alone
``text_n``         the negative one alone
``audio_pn``       one example clip each: another recording of the same label, from the same split
                   where there is one and else from train; a row without either is left out
``…_blind``        each of the four with the queries of another row, whose labels are distinct from
                   both of this row's: what the network gains without being asked for the target
``paraphrase``     as ``text_pn``, in words that training has not seen
``dog_phrases``    the dogs, asked for by each of their phrasings in turn
``levels``         as ``text_pn`` at −10 … +10 dB
``sources``        3 and 4 sources at equal power, of which 1 … n−1 are targets (Table V)
=================  ================================================================================
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from model.evaluation.confusable import all_distinct
from model.evaluation.rows import EvaluationRow, Query, Sources
from model.training.corpus import Clip, Corpus

BLIND = "_blind"
QUERY_SETS = ("text_pn", "text_p", "text_n", "audio_pn")
SETS = (
    *QUERY_SETS,
    *(name + BLIND for name in QUERY_SETS),
    "paraphrase",
    "dog_phrases",
    "levels",
    "sources",
)
LEVELS_DB = (-10, -5, 0, 5, 10)
SOURCE_COUNTS = (3, 4)
SPARE_SPLIT = "train"
"""Where example clips come from that the split does not have."""
PHRASES_LABEL = "dog_bark"
UNLABELLED = "open"
"""The corpus's label of clips that have no class."""
MIXTURES = {"levels": 232, "sources": 232}
"""Mixtures a data set, where it does not use every clip as a target."""

Phrasings = Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A target and its interferer, as indices into the corpus."""

    target: int
    interferer: int


class Draw:
    """The rows of one split of a corpus."""

    def __init__(self, corpus: Corpus, *, split: str, seed: int, heldout: Phrasings) -> None:
        """Pairs every clip of the split with an interferer.

        Args:
            corpus: the split's clips, and others that example clips may come from.
            split: whose clips are mixed.
            seed: of every draw.
            heldout: phrasings a label that training has not seen.

        Raises:
            ValueError: the split has no clip with a class, or only labels that sound alike.
        """
        self._corpus, self._split, self._seed, self._heldout = corpus, split, seed, heldout
        self._pool = [
            index
            for index, clip in enumerate(corpus.clips)
            if clip.split == split and clip.label != UNLABELLED
        ]
        if not self._pool:
            raise ValueError(f"no clip of the split {split!r} has a class")
        ordered = sorted(
            self._pool, key=lambda index: self._digest("order", self._clip(index).path)
        )
        self.pairs = tuple(
            Pair(target=index, interferer=self._other(index, (index,))) for index in ordered
        )

    def rows(self, name: str) -> list[EvaluationRow]:
        """The rows of one of :data:`SETS`, data set by data set.

        Raises:
            ValueError: there is no such set.
        """
        if name not in SETS:
            raise ValueError(f"set {name!r}: expected one of {SETS}")
        if name == "levels":
            return self._levels()
        if name == "sources":
            return self._multiple()
        if name == "dog_phrases":
            return self._phrases()
        query_of = self._query_rule(name)
        queries = [(pair, query_of(pair)) for pair in self.pairs]
        return [
            self._row(name, self._two(pair), query) for pair, query in queries if query is not None
        ]

    def _query_rule(self, name: str) -> Callable[[Pair], Query | None]:
        if name == "paraphrase":
            return self._paraphrase
        rules: dict[str, Callable[[Pair], Query | None]] = {
            "text_pn": self._text,
            "text_p": lambda pair: Query(positive_text=self._clip(pair.target).caption),
            "text_n": lambda pair: Query(negative_text=self._clip(pair.interferer).caption),
            "audio_pn": self._shots,
        }
        rule = rules[name.removesuffix(BLIND)]
        return (lambda pair: rule(self._stranger(pair))) if name.endswith(BLIND) else rule

    def _text(self, pair: Pair) -> Query:
        return Query(
            positive_text=self._clip(pair.target).caption,
            negative_text=self._clip(pair.interferer).caption,
        )

    def _paraphrase(self, pair: Pair) -> Query:
        key = (self._clip(pair.target).path, self._clip(pair.interferer).path)
        rng = self._rng("paraphrase", *key)
        positive, negative = (
            str(rng.choice(self._heldout[self._clip(index).label]))
            for index in (pair.target, pair.interferer)
        )
        return Query(positive_text=positive, negative_text=negative)

    def _shots(self, pair: Pair) -> Query | None:
        positive, negative = self._shot(pair.target), self._shot(pair.interferer)
        if positive is None or negative is None:
            return None
        return Query(positive_clip=positive, negative_clip=negative)

    def _shot(self, index: int) -> str | None:
        """Another recording of a clip's label."""
        clip = self._clip(index)
        others = [
            other
            for other in map(self._clip, self._corpus.by_label[clip.label])
            if other.group != clip.group
        ]
        own = [other for other in others if other.split == self._split]
        candidates = own or [other for other in others if other.split == SPARE_SPLIT]
        if not candidates:
            return None
        return candidates[int(self._rng("shot", clip.path).integers(len(candidates)))].path

    def _stranger(self, pair: Pair) -> Pair:
        """Another row's pair, both of whose labels are distinct from both of this row's."""
        own = (self._clip(pair.target).label, self._clip(pair.interferer).label)
        candidates = self._strangers(own)
        if not candidates:
            raise ValueError(f"no other row is free of what sounds like {own}: too few labels")
        rng = self._rng("blind", self._clip(pair.target).path)
        return candidates[int(rng.integers(len(candidates)))]

    @functools.cache  # noqa: B019 - lives as long as the draw, which a run keeps anyway
    def _strangers(self, labels: tuple[str, str]) -> list[Pair]:
        return [
            pair
            for pair in self.pairs
            if all_distinct(self._clip(pair.target).label, labels)
            and all_distinct(self._clip(pair.interferer).label, labels)
        ]

    def _levels(self) -> list[EvaluationRow]:
        return [
            self._row(f"levels_{level}db", self._two(pair, float(level)), self._text(pair))
            for level in LEVELS_DB
            for pair in self.pairs[: MIXTURES["levels"]]
        ]

    def _multiple(self) -> list[EvaluationRow]:
        rows = []
        for count in SOURCE_COUNTS:
            for num_targets in range(1, count):
                for pair in self.pairs[: MIXTURES["sources"]]:
                    clips = self._several(pair, count)
                    captions = [self._clip(index).caption for index in clips]
                    query = Query(
                        positive_text=compound(captions[:num_targets]),
                        negative_text=compound(captions[num_targets:]),
                    )
                    name = f"sources_{count}_targets_{num_targets}"
                    rows.append(self._row(name, self._sources(clips), query, num_targets))
        return rows

    def _phrases(self) -> list[EvaluationRow]:
        rows = []
        for pair in self.pairs:
            target, interferer = self._clip(pair.target), self._clip(pair.interferer)
            if target.label != PHRASES_LABEL:
                continue
            for phrase in (target.caption, *self._heldout[PHRASES_LABEL]):
                query = Query(positive_text=phrase, negative_text=interferer.caption)
                rows.append(self._row("dog_phrases", self._two(pair), query))
        return rows

    def _several(self, pair: Pair, count: int) -> tuple[int, ...]:
        """The pair and further clips, no two labels of which sound alike."""
        chosen: tuple[int, ...] = (pair.target, pair.interferer)
        while len(chosen) < count:
            chosen += (self._other(pair.target, chosen),)
        return chosen

    def _other(self, target: int, chosen: tuple[int, ...]) -> int:
        labels = tuple(self._clip(index).label for index in chosen)
        candidates = self._pool_without(labels)
        if not candidates:
            raise ValueError(f"every clip of the split {self._split!r} sounds like one of {labels}")
        rng = self._rng(f"source {len(chosen)}", self._clip(target).path)
        return candidates[int(rng.integers(len(candidates)))]

    def _pool_without(self, labels: tuple[str, ...]) -> list[int]:
        return [index for index in self._pool if all_distinct(self._clip(index).label, labels)]

    def _two(self, pair: Pair, level_db: float = 0.0) -> Sources:
        return self._sources((pair.target, pair.interferer), level_db)

    def _sources(self, clips: Sequence[int], level_db: float = 0.0) -> Sources:
        return Sources(
            paths=tuple(self._clip(index).path for index in clips),
            levels_db=(level_db,) * (len(clips) - 1),
        )

    def _row(
        self, dataset: str, sources: Sources, query: Query, num_targets: int = 1
    ) -> EvaluationRow:
        target = self._clips_by_path[sources.paths[0]]
        key = (*sources.paths, query.positive_text or query.positive_clip or "")
        return EvaluationRow(
            id=f"{dataset}-{self._digest(*key)[:12]}",
            dataset=dataset,
            split=self._split,
            label=target.label,
            group=target.group,
            sources=sources,
            num_targets=num_targets,
            query=query,
        )

    @functools.cached_property
    def _clips_by_path(self) -> dict[str, Clip]:
        return {clip.path: clip for clip in self._corpus.clips}

    def _clip(self, index: int) -> Clip:
        return self._corpus.clips[index]

    def _rng(self, *key: str) -> np.random.Generator:
        return np.random.default_rng(int(self._digest(*key)[:16], 16))

    def _digest(self, *key: str) -> str:
        return hashlib.sha256("\x00".join((str(self._seed), *key)).encode()).hexdigest()


def compound(captions: Sequence[str]) -> str:
    """One query for several sounds: ``a dog barking, rain falling and a bell ringing``."""
    if len(captions) == 1:
        return captions[0]
    return f"{', '.join(captions[:-1])} and {captions[-1]}"
