"""The evaluation sets of a labelled corpus: mixtures of a split, and what is asked of them.

A corpus is a folder with clips and a ``manifest.csv`` that names them. Every clip of the split that
has a class is a target once, mixed with a clip of a class that is distinct from its own. Each draw
has a generator of its own, seeded by what it is drawn for: no row depends on which sets are asked
for, on their order, or on how many mixtures are taken. All sets share their mixtures of two clips
at 0 dB, so that figures can be compared mixture by mixture and a mixture is encoded once for all of
them. A set's name is the ``dataset`` of its rows, and ``group`` is the target's recording.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import numpy as np

from manifests.benchmarks.clips import clip_uri
from manifests.benchmarks.lists import filled, optional, read_table
from manifests.benchmarks.mixtures import DURATION_S, SWEEP_LEVELS_DB
from manifests.benchmarks.sound_classes import distinct, family_of
from manifests.files import ManifestError, StorageOptions
from manifests.row import ManifestRow

UNLABELLED: Final = "open"
"""The label of clips that have a caption and no class."""
SPARE_SPLIT: Final = "train"
"""Where example clips come from that the split does not have."""
QUERY_SETS: Final = ("text_pn", "text_p", "text_n", "audio_pn")
"""The sets that ask the same mixtures for the same target in different ways."""
ABSENT_SETS: Final = ("absent", "absent_near")
"""The sets that ask the mixtures of ``text_pn`` for what is not in them."""
_PHRASES_LABEL = "dog_bark"
_ABSENT_CLASSES = 3
_FEWER = 232
"""Mixtures of a set that does not use every clip as a target."""

Phrasings = Mapping[str, Sequence[str]]
"""Ways to ask for each class that no model was trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusClip:
    """A clip of a corpus.

    Attributes:
        path: relative to the corpus.
        label: its class; :data:`UNLABELLED` where it has none.
        caption: what it sounds like, in words.
        split: what it is for.
        group: the recording that it was cut from.
        duration_s: its length; None where the list does not say.
    """

    path: str
    label: str
    caption: str
    split: str
    group: str
    duration_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusQuery:
    """What to extract and what to suppress, in words or by an example clip (its path) each."""

    positive_text: str | None = None
    negative_text: str | None = None
    positive_clip: str | None = None
    negative_clip: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSet:
    """How the rows of a set are made from a mixture.

    Attributes:
        about: what the set is for, in words.
        queries: what is asked of a mixture, given its clips with the targets first; a mixture of
            which nothing is asked is left out.
        num_sources: clips of a mixture.
        num_targets: how many of them are wanted.
        level_db: the first target above each other clip.
        max_mixtures: the set takes the first so many mixtures; None: all.
    """

    about: str
    queries: Callable[[Draw, Sequence[CorpusClip]], Iterable[CorpusQuery]]
    num_sources: int = 2
    num_targets: int = 1
    level_db: float = 0.0
    max_mixtures: int | None = None


def read_corpus(root: str, storage_options: StorageOptions = None) -> list[CorpusClip]:
    """Reads ``manifest.csv`` of a corpus: path, label, caption, split, and group and duration_s.

    The last two may be missing. A clip without a group counts as a recording of its own.

    Args:
        root: absolute folder of the corpus, any fsspec URI.
        storage_options: keyword arguments of the file system.

    Raises:
        ManifestError: the list cannot be read, lacks a column, or a cell is empty.
    """
    uri = f"{root.rstrip('/')}/manifest.csv"
    names = ("path", "label", "caption", "split")
    clips = []
    for line in read_table(uri, names, storage_options):
        cells = {name: filled(line, name, uri) for name in names}
        group = optional(line, "group") or cells["path"]
        duration_s = _duration_s(optional(line, "duration_s"), f"{uri}: {cells['path']}")
        clips.append(CorpusClip(**cells, group=group, duration_s=duration_s))
    return clips


def _duration_s(text: str | None, place: str) -> float | None:
    if text is None:
        return None
    try:
        duration_s = float(text)
    except ValueError:
        duration_s = 0.0
    if not 0.0 < duration_s < math.inf:
        raise ManifestError(f"{place}: duration_s {text!r}; expected a length in seconds")
    return duration_s


def heldout_phrasings() -> Phrasings:
    """Reads the bundled phrasings of the 107 classes that ``clapsep-mini`` was trained on."""
    file = resources.files("manifests.benchmarks").joinpath("heldout_phrasings.json")
    phrasings: Phrasings = json.loads(file.read_text(encoding="utf-8"))
    return phrasings


def chosen_sets(patterns: Iterable[str]) -> list[str]:
    """Returns the sets that some names or patterns such as ``levels_*`` stand for, in their order.

    Raises:
        ValueError: a pattern stands for no set.
    """
    wanted: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(SETS, pattern)
        if not found:
            raise ValueError(f"set {pattern!r}; expected some of {', '.join(SETS)}, or a pattern")
        wanted.update(found)
    return [name for name in SETS if name in wanted]


class Draw:
    """The mixtures of one split of a corpus, and the queries that are asked of them."""

    def __init__(
        self,
        clips: Sequence[CorpusClip],
        *,
        audio_root: str,
        split: str = "test",
        seed: int = 0,
        duration_s: float = DURATION_S,
        phrasings: Phrasings | None = None,
    ) -> None:
        """Pairs every clip of the split that has a class with an interferer.

        Args:
            clips: of the corpus; example clips may come from another split of it.
            audio_root: absolute folder of the clips.
            split: whose clips are mixed.
            seed: of every draw.
            duration_s: length of every mixture; clips are cut or padded with zeros.
            phrasings: that no model was trained on; None: the bundled ones.

        Raises:
            ManifestError: the split has no clip with a class, or only classes that sound alike.
        """
        self.split, self.phrasings = split, heldout_phrasings() if phrasings is None else phrasings
        self._root, self._seed, self._duration_s = audio_root, seed, duration_s
        self.clips = [clip for clip in clips if clip.split == split and clip.label != UNLABELLED]
        if not self.clips:
            raise ManifestError(f"{audio_root}: no clip of the split {split!r} has a class")
        self._by_label: dict[str, list[CorpusClip]] = {}
        for clip in clips:
            if clip.split in (split, SPARE_SPLIT):
                self._by_label.setdefault(clip.label, []).append(clip)
        ordered = sorted(self.clips, key=lambda clip: self._digest("order", clip.path))
        self.pairs = tuple((target, self._other(target, (target,))) for target in ordered)

    def rows(self, name: str, limit: int | None = None) -> Iterator[ManifestRow]:
        """Draws the rows of a set.

        Args:
            name: one of :data:`SETS`.
            limit: the first so many of the set's mixtures, a fair sample since their order is
                drawn; None: all.
        """
        kind = SETS[name]
        limits = [each for each in (limit, kind.max_mixtures) if each is not None]
        left = min(limits, default=len(self.pairs))
        for pair in self.pairs:
            if left == 0:
                return
            clips = self._several(pair, kind.num_sources)
            queries = list(dict.fromkeys(kind.queries(self, clips)))  # each once: ids name them
            left -= bool(queries)
            for query in queries:
                yield self._row(name, kind, clips, query)

    def labels(self) -> list[str]:
        """Returns the classes of the split, sorted."""
        return sorted({clip.label for clip in self.clips})

    def example(self, *clips: CorpusClip) -> str | None:
        """Draws another recording of the clips' class, of the split or else of the spare one."""
        groups = {clip.group for clip in clips}
        others = [other for other in self._by_label[clips[0].label] if other.group not in groups]
        own = [other for other in others if other.split == self.split]
        candidates = own or others
        if not candidates:
            return None
        return candidates[int(self.rng("shot", clips[0].path).integers(len(candidates)))].path

    def stranger(self, clips: Sequence[CorpusClip]) -> Sequence[CorpusClip]:
        """Draws another mixture of two, whose classes are distinct from all of these clips'.

        Raises:
            ManifestError: there is none.
        """
        candidates = self._strangers(tuple(clip.label for clip in clips))
        if not candidates:
            labels = ", ".join(clip.label for clip in clips)
            raise ManifestError(
                f"{self._root}: every other mixture of the split {self.split!r} has a class that "
                f"sounds like one of {labels}; expected more classes"
            )
        return candidates[int(self.rng("blind", clips[0].path).integers(len(candidates)))]

    def absent(self, clips: Sequence[CorpusClip], family: str | None) -> list[CorpusClip]:
        """Draws clips of three classes that are distinct from those of a mixture.

        Args:
            clips: of the mixture.
            family: from which the classes are taken; None: from all of them.

        Returns:
            One clip a class; fewer where the split has fewer such classes.
        """
        heard = [clip.label for clip in clips]
        candidates = [
            label
            for label in self.labels()
            if distinct(label, heard) and (family is None or family_of(label) == family)
        ]
        rng = self.rng("absent", family or "", clips[0].path)
        drawn = rng.permutation(len(candidates))[:_ABSENT_CLASSES]
        own = [[c for c in self.clips if c.label == candidates[int(index)]] for index in drawn]
        return [of_class[int(rng.integers(len(of_class)))] for of_class in own]

    def rng(self, *key: str) -> np.random.Generator:
        """Returns a generator whose seed is made of the draw's and of what is drawn."""
        return np.random.default_rng(int(self._digest(*key)[:16], 16))

    @functools.cache  # noqa: B019 - lives as long as the draw, which a run keeps anyway
    def _strangers(self, labels: tuple[str, ...]) -> list[Sequence[CorpusClip]]:
        return [pair for pair in self.pairs if all(distinct(clip.label, labels) for clip in pair)]

    def _several(self, pair: tuple[CorpusClip, CorpusClip], count: int) -> Sequence[CorpusClip]:
        """The pair and further clips, no two classes of which sound alike."""
        chosen: tuple[CorpusClip, ...] = pair
        while len(chosen) < count:
            chosen += (self._other(pair[0], chosen),)
        return chosen

    def _other(self, target: CorpusClip, chosen: Sequence[CorpusClip]) -> CorpusClip:
        labels = tuple(clip.label for clip in chosen)
        candidates = self._clips_without(labels)
        if not candidates:
            raise ManifestError(
                f"{self._root}: every clip of the split {self.split!r} sounds like one of "
                f"{', '.join(labels)}; expected more classes"
            )
        rng = self.rng(f"source {len(chosen)}", target.path)
        return candidates[int(rng.integers(len(candidates)))]

    @functools.cache  # noqa: B019 - likewise
    def _clips_without(self, labels: tuple[str, ...]) -> list[CorpusClip]:
        return [clip for clip in self.clips if distinct(clip.label, labels)]

    def _row(
        self, name: str, kind: EvaluationSet, clips: Sequence[CorpusClip], query: CorpusQuery
    ) -> ManifestRow:
        paths = [clip.path for clip in clips]
        uris = tuple(clip_uri(self._root, path) for path in paths)
        key = (*paths, query.positive_text or query.positive_clip or "")
        several = kind.num_targets > 1
        return ManifestRow(
            id=f"{name}-{self._digest(*key)[:12]}",
            target_uri=None if several else uris[0],
            target_uris=uris[: kind.num_targets] if several else (),
            interferer_uris=uris[kind.num_targets :],
            snr_db=(kind.level_db,) * (len(uris) - kind.num_targets),
            positive_text=query.positive_text,
            negative_text=query.negative_text,
            positive_audio_uris=self._uris(query.positive_clip),
            negative_audio_uris=self._uris(query.negative_clip),
            duration_s=self._duration_s,
            dataset=name,
            split=self.split,
            label=clips[0].label,
            group=clips[0].group,
            target_absent=True if name in ABSENT_SETS else None,
        )

    def _uris(self, path: str | None) -> tuple[str, ...]:
        return () if path is None else (clip_uri(self._root, path),)

    def _digest(self, *key: str) -> str:
        return hashlib.sha256("\x00".join((str(self._seed), *key)).encode()).hexdigest()


def compound(captions: Sequence[str]) -> str:
    """Joins several sounds into one query: ``a dog barking, rain falling and a bell ringing``."""
    if len(captions) == 1:
        return captions[0]
    return f"{', '.join(captions[:-1])} and {captions[-1]}"


def _text(
    draw: Draw, clips: Sequence[CorpusClip], polarity: str = "P+N", num_targets: int = 1
) -> list[CorpusQuery]:
    captions = [clip.caption for clip in clips]
    return [
        CorpusQuery(
            positive_text=compound(captions[:num_targets]) if "P" in polarity else None,
            negative_text=compound(captions[num_targets:]) if "N" in polarity else None,
        )
    ]


def _audio(draw: Draw, clips: Sequence[CorpusClip]) -> list[CorpusQuery]:
    target, interferer = clips
    positive, negative = draw.example(target), draw.example(interferer)
    if positive is None or negative is None:
        return []
    return [CorpusQuery(positive_clip=positive, negative_clip=negative)]


def _blind(draw: Draw, clips: Sequence[CorpusClip], asked: str) -> Iterable[CorpusQuery]:
    return SETS[asked].queries(draw, draw.stranger(clips))


def _swapped(draw: Draw, clips: Sequence[CorpusClip]) -> list[CorpusQuery]:
    return _text(draw, clips[::-1])


def _paraphrase(draw: Draw, clips: Sequence[CorpusClip]) -> list[CorpusQuery]:
    if any(clip.label not in draw.phrasings for clip in clips):
        return []
    rng = draw.rng("paraphrase", *(clip.path for clip in clips))
    positive, negative = (str(rng.choice(draw.phrasings[clip.label])) for clip in clips)
    return [CorpusQuery(positive_text=positive, negative_text=negative)]


def _phrases(draw: Draw, clips: Sequence[CorpusClip]) -> list[CorpusQuery]:
    target, interferer = clips
    if target.label != _PHRASES_LABEL:
        return []
    phrases = (target.caption, *draw.phrasings.get(_PHRASES_LABEL, ()))
    return [CorpusQuery(positive_text=text, negative_text=interferer.caption) for text in phrases]


def _absent(draw: Draw, clips: Sequence[CorpusClip], near: bool = False) -> list[CorpusQuery]:
    family = family_of(clips[0].label) if near else None
    if near and family is None:
        return []
    return [
        CorpusQuery(positive_text=clip.caption, negative_text=clips[1].caption)
        for clip in draw.absent(clips, family)
    ]


def _sets() -> Iterator[tuple[str, EvaluationSet]]:
    for name, polarity in (("text_pn", "P+N"), ("text_p", "P"), ("text_n", "N")):
        about = f"the corpus's captions, {polarity}"
        yield name, EvaluationSet(about=about, queries=functools.partial(_text, polarity=polarity))
    yield (
        "audio_pn",
        EvaluationSet(
            about="one example clip each of target and interferer, of other recordings",
            queries=_audio,
        ),
    )
    for name in QUERY_SETS:
        yield (
            f"{name}_blind",
            EvaluationSet(
                about=f"as {name}, with the query of another mixture (control)",
                queries=functools.partial(_blind, asked=name),
            ),
        )
    yield (
        "text_pn_swapped",
        EvaluationSet(
            about="as text_pn, positive and negative exchanged (control)",
            queries=_swapped,
            max_mixtures=_FEWER,
        ),
    )
    yield (
        "paraphrase",
        EvaluationSet(about="as text_pn, in words that training has not seen", queries=_paraphrase),
    )
    yield (
        "dog_phrases",
        EvaluationSet(about="the dogs, asked for in each way in turn", queries=_phrases),
    )
    for level_db in SWEEP_LEVELS_DB:
        yield (
            f"levels_{level_db:g}db",
            EvaluationSet(
                about=f"as text_pn, the target at {level_db:+g} dB",
                queries=_text,
                level_db=level_db,
                max_mixtures=_FEWER,
            ),
        )
    for count in (3, 4):
        for num_targets in range(1, count):
            yield (
                f"sources_{count}_targets_{num_targets}",
                EvaluationSet(
                    about=f"{count} sources at equal power, {num_targets} of them wanted",
                    queries=functools.partial(_text, num_targets=num_targets),
                    num_sources=count,
                    num_targets=num_targets,
                    max_mixtures=_FEWER,
                ),
            )
    yield (
        "absent",
        EvaluationSet(
            about="as text_pn, asked in turn for three classes that are not in the mixture",
            queries=_absent,
            max_mixtures=_FEWER,
        ),
    )
    yield (
        "absent_near",
        EvaluationSet(
            about="as absent, classes of the target's family",
            queries=functools.partial(_absent, near=True),
            max_mixtures=_FEWER,
        ),
    )


SETS: Final[Mapping[str, EvaluationSet]] = dict(_sets())
"""The sets by name, in the order of the tables."""


def build_corpus_sets(
    clips: Sequence[CorpusClip],
    sets: Sequence[str] = tuple(SETS),
    *,
    limit: int | None = None,
    **settings: Any,
) -> Iterator[ManifestRow]:
    """Draws the rows of some sets.

    Args:
        clips: of the corpus.
        sets: names of :data:`SETS`.
        limit: the first so many mixtures of each set; None: all of them.
        settings: of :class:`Draw`.

    Raises:
        ValueError: the limit is below 1.
        ManifestError: the split cannot be drawn from.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit}; expected 1 or more")
    draw = Draw(clips, **settings)
    for name in sets:
        yield from draw.rows(name, limit)


EVENTS: Final = "events"
"""The ``dataset`` of mixtures with known onsets."""
EVENTS_S: Final = 30.0
EVENT_GAP_S: Final = 1.0
"""Between two events of one class at least."""
_MOST_EVENTS = 3
_OTHERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSettings:
    """How mixtures with known onsets are drawn.

    Attributes:
        audio_root: absolute folder of the clips.
        split: whose clips are mixed.
        seed: of every draw.
        num_mixtures: how many.
        duration_s: length of each.
        num_others: clips of other classes in each, of classes that do not sound alike.
        snr_db: the target's level above each of them, while they last.
        query: ``text``, ``audio`` or ``both``.
    """

    audio_root: str
    split: str = "test"
    seed: int = 0
    num_mixtures: int = 200
    duration_s: float = EVENTS_S
    num_others: int = _OTHERS
    snr_db: float = 0.0
    query: str = "both"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.num_mixtures < 1 or self.num_others < 1 or not 0.0 < self.duration_s <= 3_600.0:
            raise ValueError(
                f"{self.num_mixtures} mixtures of {self.duration_s:g} s with {self.num_others} "
                "other clips; expected 1 or more, and up to 3600 s"
            )


def build_events(clips: Sequence[CorpusClip], settings: EventSettings) -> Iterator[ManifestRow]:
    """Draws mixtures in which one to three clips of a class begin at known times among others.

    Every class of the split has its turn. Clips of the class follow each other with at least a
    second between them; the others begin anywhere. The query is the first clip's caption, and a
    clip of the class that is not in the mixture, of another recording.

    Raises:
        ManifestError: a clip of the split has no length, the clips are longer than the mixtures,
            or there are too few classes or recordings.
    """
    draw = Draw(clips, audio_root=settings.audio_root, split=settings.split, seed=settings.seed)
    for clip in draw.clips:
        if clip.duration_s is None:
            raise ManifestError(f"{settings.audio_root}: {clip.path} has no duration_s in the list")
    fitting = [clip for clip in draw.clips if (clip.duration_s or 0.0) <= settings.duration_s]
    labels = sorted({clip.label for clip in fitting if draw.example(clip) is not None})
    if not labels:
        raise ManifestError(
            f"{settings.audio_root}: no class of the split {settings.split!r} has clips of two "
            f"recordings, one of them up to {settings.duration_s:g} s long"
        )
    order = draw.rng("classes").permutation(len(labels))
    for index in range(settings.num_mixtures):
        label = labels[int(order[index % len(labels)])]
        yield _events_of(draw, fitting, label, index, settings)


def _events_of(
    draw: Draw, clips: Sequence[CorpusClip], label: str, index: int, settings: EventSettings
) -> ManifestRow:
    rng = draw.rng(EVENTS, str(index), label)
    own = [clip for clip in clips if clip.label == label and draw.example(clip) is not None]
    count = int(rng.integers(1, _MOST_EVENTS + 1))
    targets = [own[int(each)] for each in rng.permutation(len(own))[:count]]
    while _room_s(targets, settings.duration_s) < 0.0 or draw.example(*targets) is None:
        targets.pop()
    steps = np.sort(rng.uniform(0.0, _room_s(targets, settings.duration_s), len(targets)))
    lengths_s = [(clip.duration_s or 0.0) + EVENT_GAP_S for clip in targets]
    onsets = [float(step) + sum(lengths_s[:place]) for place, step in enumerate(steps)]
    others = _others_of(label, clips, rng, settings)
    for clip in others:
        onsets.append(float(rng.uniform(0.0, _room_s([clip], settings.duration_s))))
    uris = [clip_uri(settings.audio_root, clip.path) for clip in (*targets, *others)]
    example = clip_uri(settings.audio_root, draw.example(*targets) or "")
    several = len(targets) > 1
    return ManifestRow(
        id=f"{EVENTS}-{index:05d}",
        target_uri=None if several else uris[0],
        target_uris=tuple(uris[: len(targets)]) if several else (),
        interferer_uris=tuple(uris[len(targets) :]),
        snr_db=(settings.snr_db,),
        onsets_s=tuple(round(onset, 3) for onset in onsets),
        duration_s=settings.duration_s,
        positive_text=targets[0].caption if settings.query != "audio" else None,
        positive_audio_uris=(example,) if settings.query != "text" else (),
        dataset=EVENTS,
        split=settings.split,
        label=label,
        group=targets[0].group,
    )


def _others_of(
    label: str, clips: Sequence[CorpusClip], rng: np.random.Generator, settings: EventSettings
) -> list[CorpusClip]:
    others: list[CorpusClip] = []
    while len(others) < settings.num_others:
        heard = (label, *(clip.label for clip in others))
        candidates = [clip for clip in clips if distinct(clip.label, heard)]
        if not candidates:
            raise ManifestError(
                f"{settings.audio_root}: every clip of the split {settings.split!r} sounds like "
                f"one of {', '.join(heard)}; expected more classes"
            )
        others.append(candidates[int(rng.integers(len(candidates)))])
    return others


def _room_s(clips: Sequence[CorpusClip], duration_s: float) -> float:
    """What is left of a mixture beside clips that follow each other with gaps."""
    gaps_s = EVENT_GAP_S * (len(clips) - 1)
    return duration_s - gaps_s - sum(clip.duration_s or 0.0 for clip in clips)
