"""Draws what a batch holds: which clips, how they are changed, what is asked about them.

Everything is drawn with numpy, in the processes that run ahead of the training; a batch depends on
the seed and its step alone. What is drawn is small and of fixed shapes: the samples themselves are
made on the device by :mod:`model.training.sound`.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.training.material import Material
from model.training.settings import ClapSettings, QuerySettings, SeparatorTraining, WindowSettings
from model.training.sound import BLOCK, band_frequencies

Drawn = dict[str, npt.NDArray[Any]]
REFERENCE_RMS = 0.06
QUERIES = 2
SHOTS = 3
NONE = -1
"""In place of a text or an example clip: there is none."""
UNKNOWN, ABSENT, PRESENT = -1, 0, 1
_NEVER = 1 << 40
"""Blocks after which a clip would be repeated that is not."""
_EQUALISER_POINTS = 10


class Planner(Protocol):
    """Draws batches of one kind."""

    def draw(self, rng: np.random.Generator) -> Drawn:
        """A batch; arrays of the same names, shapes and types every time."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """Where the arrays of a batch lie in one row of whole numbers and one of float32."""

    shapes: dict[str, tuple[bool, tuple[int, ...]]]
    """By name: whether they are whole numbers, and the shape."""

    @classmethod
    def of(cls, drawn: Drawn) -> Layout:
        """The layout of a batch like this one."""
        return cls(
            shapes={
                name: (not np.issubdtype(value.dtype, np.floating), value.shape)
                for name, value in drawn.items()
            }
        )

    def pack(self, drawn: Drawn) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """A batch as two rows.

        Raises:
            ValueError: an array has another shape than the layout's.
        """
        rows: dict[bool, list[npt.NDArray[Any]]] = {True: [], False: []}
        for name, (whole, shape) in self.shapes.items():
            if drawn[name].shape != shape:
                raise ValueError(f"{name}: drawn {drawn[name].shape}, laid out {shape}")
            rows[whole].append(drawn[name].ravel())
        return (
            np.concatenate(rows[True]).astype(np.int64),
            np.concatenate(rows[False]).astype(np.float32),
        )

    def views(self, whole: Tensor, fractional: Tensor) -> dict[str, Tensor]:
        """The arrays of a batch as views of its two rows on a device."""
        found: dict[str, Tensor] = {}
        used = {True: 0, False: 0}
        for name, (is_whole, shape) in self.shapes.items():
            size, first = int(np.prod(shape)), used[is_whole]
            row = whole if is_whole else fractional
            found[name] = row[first : first + size].view(shape)
            used[is_whole] += size
        return found


class Batches(torch.utils.data.Dataset[tuple[npt.NDArray[Any], npt.NDArray[Any]]]):
    """Packed batches by step."""

    def __init__(self, planner: Planner, layout: Layout, seed: tuple[int, ...]) -> None:
        """Draws with ``planner``; equal seeds give equal batches."""
        self._planner, self._layout, self._seed = planner, layout, seed

    def __getitem__(self, step: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The batch of a step."""
        rng = np.random.default_rng([*self._seed, step])
        return self._layout.pack(self._planner.draw(rng))

    def ahead(
        self, first: int, workers: int
    ) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        """Batches from a step on, drawn ahead by processes; by none, when they are asked for."""
        if not workers:
            return (self[step] for step in itertools.count(first))
        loader = torch.utils.data.DataLoader(
            self,
            batch_size=None,
            sampler=range(first, first + 10_000_000),
            num_workers=workers,
            prefetch_factor=4,
            collate_fn=_as_it_is,
            multiprocessing_context="fork",
            generator=torch.Generator(),  # not the one that a resumed run goes on with
        )
        return iter(loader)


def _as_it_is(batch: Any) -> Any:
    return batch


class Chooser:
    """Draws classes, their clips and their texts."""

    def __init__(self, material: Material, open_share: float, plain_text_share: float) -> None:
        """Classes are drawn by the square root of the number of their recordings."""
        self._material = material
        self._plain = plain_text_share
        names = np.array(list(material.recordings), dtype=np.int64)
        weights = np.sqrt([len(groups) for groups in material.recordings.values()])
        rare = material.is_open[names]
        if rare.any() and not rare.all():
            weights[rare] *= open_share / weights[rare].sum()
            weights[~rare] *= (1.0 - open_share) / weights[~rare].sum()
        self.classes: list[int] = names[weights > 0.0].tolist()
        """Those that are drawn."""
        self._cumulative = np.cumsum(weights[weights > 0.0] / weights.sum()).tolist()

    def require_strangers(self, most_sources: int, mistaken: Collection[int] = ()) -> None:
        """Refuses mixtures that may leave no class that is absent from them.

        Raises:
            ValueError: too few classes are drawn.
        """
        named = len(set(self.classes) - set(mistaken))
        if named <= most_sources:
            raise ValueError(
                f"{named} classes are drawn: mixtures of up to {most_sources} sources need one "
                "more, to ask for what is absent; give fewer source_shares in --settings, an "
                "open_share between 0 and 1, or more classes with training clips"
            )

    def name(self, rng: np.random.Generator) -> int:
        """A class."""
        place = bisect.bisect_right(self._cumulative, rng.random())
        return self.classes[min(place, len(self.classes) - 1)]

    def clip(self, name: int, rng: np.random.Generator) -> int:
        """A training clip of a class: any of its recordings, then any clip of it."""
        groups = self._material.recordings[name]
        group = groups[int(rng.random() * len(groups))]
        return group[int(rng.random() * len(group))]

    def text(self, name: int, rng: np.random.Generator) -> int:
        """A wording of a class."""
        plain, framed = self._material.texts_of[name]
        chosen = plain if rng.random() < self._plain or not framed else framed
        return chosen[int(rng.random() * len(chosen))]


class WindowDrawer:
    """Draws how windows are made from clips."""

    def __init__(
        self, lengths: npt.NDArray[np.int64], num_samples: int, settings: WindowSettings
    ) -> None:
        """Of clips with these lengths, for windows of ``num_samples``."""
        self._lengths, self._num_samples, self._settings = lengths, num_samples, settings
        frequencies = np.log2(band_frequencies())
        points = np.linspace(frequencies[0], frequencies[-1], _EQUALISER_POINTS)
        identity = np.eye(_EQUALISER_POINTS)
        self._smooth = np.stack([np.interp(frequencies, points, row) for row in identity])
        self._octaves = frequencies

    def draw(self, clips: npt.NDArray[np.int64], rng: np.random.Generator) -> Drawn:
        """Everything that :class:`model.training.sound.Renderer` takes, for windows of clips."""
        count = len(clips)
        drawn = {"clip": clips, **self._placed(clips, rng), "colour_db": self._colours(count, rng)}
        half = self._settings.level_range_db / 2
        drawn["rms"] = REFERENCE_RMS * 10 ** (rng.uniform(-half, half, count) / 20)
        reverberant = round(self._settings.reverberant_share * count)
        drawn["reverberant"] = rng.permutation(count)[:reverberant]
        drawn["decay_s"] = 0.12 * 8.0 ** rng.random(reverberant)
        drawn["wet"] = 10 ** (-rng.uniform(2.0, 16.0, reverberant) / 20)
        return drawn

    def _placed(self, clips: npt.NDArray[np.int64], rng: np.random.Generator) -> Drawn:
        settings, size, count = self._settings, self._num_samples, len(clips)
        speed = np.where(
            rng.random(count) < settings.speed_share,
            rng.uniform(settings.speed_lowest, settings.speed_highest, count),
            1.0,
        )
        length = self._lengths[clips] / speed
        is_long = length > size
        repeated = ~is_long & (rng.random(count) < settings.repeated_share)
        pause = rng.exponential(settings.pause_mean, count) if settings.pause_mean else 0.0
        period = np.where(repeated, np.ceil(length * (1 + pause) / BLOCK), _NEVER)
        place = rng.random(count)
        first = np.where(is_long, place * (length - size) / BLOCK, -place * (size - length) / BLOCK)
        first = np.where(repeated, place * period, first)
        cut = rng.random(count) < settings.cut_share
        kept = rng.uniform(0.25, 0.9, count) * size
        begin = rng.random(count) * (size - kept)
        return {
            "speed": speed,
            "period": period.astype(np.int64),
            "first_block": np.trunc(first).astype(np.int64),
            "begin": np.where(cut, begin, -1e5),
            "end": np.where(cut, begin + kept, size + 1e5),
        }

    def _colours(self, count: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        settings = self._settings
        gains = rng.normal(0.0, settings.equaliser_db, (count, _EQUALISER_POINTS))
        gains *= rng.random((count, 1)) < settings.equaliser_share
        corner = np.log2(2_500.0) + np.log2(5.0) * rng.random((count, 1))
        above = np.maximum(self._octaves - corner, 0.0)
        lowered = settings.low_pass_db_per_octave * above
        lowered *= rng.random((count, 1)) < settings.low_pass_share
        colours: npt.NDArray[np.float64] = np.clip(gains @ self._smooth - lowered, -60.0, 20.0)
        return colours


class ClapPlanner:
    """Draws batches of the contrastive stage."""

    def __init__(
        self,
        material: Material,
        lengths: npt.NDArray[np.int64],
        num_samples: int,
        settings: ClapSettings,
        queries: QuerySettings,
    ) -> None:
        """Draws for windows of ``num_samples``."""
        self._material, self._settings = material, settings
        self._chooser = Chooser(material, queries.open_share, queries.plain_text_share)
        self._windows = WindowDrawer(lengths, num_samples, settings.windows)

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Clips, noises, two wordings of every class and one of each of the tagger's names."""
        size, material, chooser = self._settings.batch_size, self._material, self._chooser
        names = [chooser.name(rng) for _ in range(size)]
        clips = [chooser.clip(name, rng) for name in names]
        noises = [chooser.clip(chooser.name(rng), rng) for _ in range(size)]
        drawn = self._windows.draw(np.array(clips + noises), rng)
        below = 10 ** (-rng.uniform(3.5, 19.5, size) / 20)
        below *= rng.random(size) < self._settings.noisy_share
        drawn["rms"][size:] = drawn["rms"][:size] * below
        bank = range(material.num_classes)
        known = material.texts_of
        wordings = [
            [chooser.text(name, rng) if name in known else 0 for name in bank] for _ in range(2)
        ]
        variants = rng.integers(material.tagger_names.shape[1], size=len(material.tagger_names))
        share = np.where(
            rng.random(len(bank)) < self._settings.between_share, rng.random(len(bank)), 1.0
        )
        return drawn | {
            "target": np.array(names),
            "wordings": np.array(wordings),
            "between": share,
            "names": material.tagger_names[np.arange(len(variants)), variants],
        }


@dataclasses.dataclass(slots=True)
class _Mixture:
    """The classes, clips and joint text of the two sides of a mixture."""

    classes: tuple[tuple[int, ...], tuple[int, ...]]
    clips: tuple[tuple[int, ...], tuple[int, ...]]
    texts: tuple[int, int]

    @property
    def all_classes(self) -> tuple[int, ...]:
        return self.classes[0] + self.classes[1]

    @property
    def all_clips(self) -> tuple[int, ...]:
        return self.clips[0] + self.clips[1]


Asked = tuple[int, Sequence[int]]
"""A text and the clips that are examples of it."""


class MixturePlanner:
    """Draws batches of the separation stage.

    Args:
        material: clips and words.
        lengths: of the clips, in samples.
        num_samples: of a window.
        settings: see there.
        near: int64[C, n], the labels that lie nearest to each class in the text space.
        mistaken: classes that nobody knows more of than which label they were taken for and are
            not: that label, by class. They are sources, and never asked for by words.
    """

    def __init__(
        self,
        material: Material,
        lengths: npt.NDArray[np.int64],
        num_samples: int,
        settings: SeparatorTraining,
        near: npt.NDArray[np.int64],
        mistaken: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        self._material, self._settings, self._queries = material, settings, settings.queries
        self._near, self._mistaken = near, mistaken
        queries = settings.queries
        self._chooser = Chooser(material, queries.open_share, queries.plain_text_share)
        self._windows = WindowDrawer(lengths, num_samples, settings.windows)
        self._chooser.require_strangers(len(queries.source_shares), mistaken)
        self._pools = {size: material.compounds(size) for size in (2, 3)}
        self._counts = source_counts(queries.source_shares, settings.batch_size)
        self._sure = [np.nonzero(row >= queries.sure_score)[0].tolist() for row in material.scores]

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Sources, where each belongs, and the queries."""
        settings = self._settings
        mixtures = [self._mixture(count, rng) for count in self._counts]
        clips = [clip for mixture in mixtures for clip in mixture.all_clips]
        drawn = self._windows.draw(np.array(clips), rng)
        drawn["side"] = np.array(
            [
                QUERIES * index + side
                for index, mixture in enumerate(mixtures)
                for side in range(QUERIES)
                for _ in mixture.clips[side]
            ]
        )
        size = settings.batch_size
        noise_db = rng.uniform(settings.noise_lowest_db, settings.noise_highest_db, size)
        noisy = rng.random(size) < settings.noisy_share
        drawn["noise_rms"] = REFERENCE_RMS * 10 ** (noise_db / 20) * noisy
        drawn["gain_db"] = rng.uniform(settings.lowest_gain_db, settings.highest_gain_db, size)
        return drawn | self._asked(mixtures, rng)

    def _asked(self, mixtures: Sequence[_Mixture], rng: np.random.Generator) -> Drawn:
        total = QUERIES * len(mixtures)
        text = np.full((2, total), NONE)
        shots = np.full((2, total, SHOTS), NONE)
        weight = np.ones((2, total))
        presence = np.full(total, UNKNOWN)

        def put(row: int, polarity: int, asked: Asked) -> None:
            text[polarity, row] = asked[0]
            shots[polarity, row, : len(asked[1])] = asked[1]
            if len(asked[1]):
                weight[polarity, row] = self._text_weight(rng)

        for index, mixture in enumerate(mixtures):
            for side in range(QUERIES):
                row = QUERIES * index + side
                positive, negative, found = self._side_query(mixture, side, rng)
                presence[row] = found
                if positive is not None:
                    put(row, 0, positive)
                if negative is not None:
                    put(row, 1, negative)
        variants = rng.integers(self._settings.query_variants, size=shots.shape)
        stored = np.where(shots == NONE, NONE, shots + variants * len(self._material.path))
        return {"text": text, "shots": stored, "text_weight": weight, "presence": presence}

    def _mixture(self, count: int, rng: np.random.Generator) -> _Mixture:
        first = 1 if count <= 2 else 1 + int(rng.random() * (count - 1))
        while True:
            sides = [self._side(size, rng) for size in (first, count - first)]
            classes = sides[0][0] + sides[1][0]
            if len(set(classes)) == len(classes):
                break
        clips = [tuple(self._chooser.clip(name, rng) for name in side[0]) for side in sides]
        return _Mixture(
            classes=(sides[0][0], sides[1][0]),
            clips=(clips[0], clips[1]),
            texts=(sides[0][1], sides[1][1]),
        )

    def _side(self, size: int, rng: np.random.Generator) -> tuple[tuple[int, ...], int]:
        if size == 0:
            return (), NONE
        if size == 1 or not self._pools[size]:
            name = self._chooser.name(rng)
            if size == 1:
                return (name,), self._chooser.text(name, rng)
            names = [name, *(self._chooser.name(rng) for _ in range(size - 1))]
            return tuple(names), self._chooser.text(name, rng)
        pool = self._pools[size]
        return pool[int(rng.random() * len(pool))]

    def _side_query(
        self, mixture: _Mixture, side: int, rng: np.random.Generator
    ) -> tuple[Asked | None, Asked | None, int]:
        """Positive and negative query of a side of a mixture, and what presence has to say."""
        queries = self._queries
        other = 1 - side
        mistaken = [name for name in mixture.classes[side] if name in self._mistaken]
        if mistaken:
            return self._not_that(mixture, side, self._mistaken[mistaken[0]], rng)
        absent = not mixture.classes[side] or (side == 1 and rng.random() < queries.absent_share)
        if absent:
            near = rng.random() < queries.near_share
            positive = self._absent(mixture, rng, near=near)
            negative = self._named(mixture, 0, rng) if self._has_name(mixture, 0) else None
        else:
            positive = self._named(mixture, side, rng)
            has_other = bool(mixture.classes[other])
            negative = self._named(mixture, other, rng) if has_other else self._absent(mixture, rng)
            if has_other and not self._has_name(mixture, other):
                return positive, None, PRESENT
        kind = rng.random()
        if kind < queries.negative_only_share and not absent:
            return None, negative, UNKNOWN
        alone = queries.negative_only_share <= kind
        alone = alone and kind < queries.negative_only_share + queries.positive_only_share
        return positive, None if alone else negative, ABSENT if absent else PRESENT

    def _has_name(self, mixture: _Mixture, side: int) -> bool:
        classes = mixture.classes[side]
        return bool(classes) and not any(name in self._mistaken for name in classes)

    def _not_that(
        self, mixture: _Mixture, side: int, label: int, rng: np.random.Generator
    ) -> tuple[Asked | None, Asked | None, int]:
        """A side that was taken for a label: as what is left without the other, or as that label.

        Asked for the label, the answer is that it is absent.
        """
        other = 1 - side
        negative = self._named(mixture, other, rng) if self._has_name(mixture, other) else None
        if negative is not None and (label in mixture.all_classes or rng.random() < 0.5):
            return None, negative, UNKNOWN
        positive = self._chooser.text(label, rng), [self._chooser.clip(label, rng)]
        return positive, negative, ABSENT

    def _named(self, mixture: _Mixture, side: int, rng: np.random.Generator) -> Asked:
        """A query for what is on a side of a mixture."""
        names, clips, text = mixture.classes[side], mixture.clips[side], mixture.texts[side]
        if len(names) == 1 and rng.random() < self._queries.named_share:
            others = [clip for clip in mixture.all_clips if clip != clips[0]]
            scores = self._material.scores
            fitting = [
                name
                for name in self._sure[clips[0]]
                if all(scores[clip, name] < self._queries.unsure_score for clip in others)
            ]
            if fitting:
                text = self._tagger_text(fitting[int(rng.random() * len(fitting))], rng)
        return text, [
            self._example(clip, name, rng) for clip, name in zip(clips, names, strict=True)
        ]

    def _absent(self, mixture: _Mixture, rng: np.random.Generator, *, near: bool = False) -> Asked:
        """A query for a class that is not in a mixture."""
        there = mixture.all_classes
        if near:
            around = self._near[there[int(rng.random() * len(there))]]
            name = int(around[int(rng.random() * len(around))])
            if name not in there:
                return self._chooser.text(name, rng), [self._chooser.clip(name, rng)]
        taken_for = [self._mistaken[name] for name in there if name in self._mistaken]
        if taken_for and taken_for[0] not in there:
            name = taken_for[0]
            return self._chooser.text(name, rng), [self._chooser.clip(name, rng)]
        while True:
            name = self._chooser.name(rng)
            if name not in there and name not in self._mistaken:
                return self._chooser.text(name, rng), [self._chooser.clip(name, rng)]

    def _tagger_text(self, name: int, rng: np.random.Generator) -> int:
        texts = self._material.tagger_names[name]
        return int(texts[int(rng.random() * len(texts))])

    def _example(self, clip: int, name: int, rng: np.random.Generator) -> int:
        own = rng.random() < self._queries.own_clip_share
        return clip if own else self._chooser.clip(name, rng)

    def _text_weight(self, rng: np.random.Generator) -> float:
        kind = rng.random()
        if kind < self._queries.text_only_share:
            return 1.0
        return (
            0.0
            if kind < self._queries.text_only_share + self._queries.clips_only_share
            else rng.random()
        )


def source_counts(shares: Sequence[float], batch_size: int) -> list[int]:
    """How many sources each mixture of a batch has: the same in every batch."""
    borders = np.round(np.cumsum(shares) * batch_size).astype(int)
    counts: list[int] = (1 + np.searchsorted(borders, np.arange(batch_size), side="right")).tolist()
    return counts


def as_tensors(drawn: Mapping[str, npt.NDArray[Any]], device: torch.device) -> dict[str, Tensor]:
    """A batch on a device, with the types that packed batches have."""
    layout = Layout.of(dict(drawn))
    whole, fractional = layout.pack(dict(drawn))
    return layout.views(torch.from_numpy(whole).to(device), torch.from_numpy(fractional).to(device))
