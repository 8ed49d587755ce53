"""Zero-shot classification by text: how well a CLAP knows the classes of a corpus's split."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from manifests.benchmarks.clips import clip_uri
from manifests.benchmarks.corpus_sets import CorpusClip, Draw
from model.bootstrap import Summary, summarise
from model.clap import QueryEncoder
from transforms.elements import EmbeddedQuery
from transforms.queries import embed_query_examples, embed_query_texts, read_shot
from transforms.storage import Storage

HELDOUT_PHRASINGS = 3
"""How many of a class's held-out phrasings are tried, one at a time for all classes."""
_MAX_VALUES = 60 * 2 * 48_000
"""Samples of a clip that are held in memory."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ZeroShot:
    """How often a class's text is the nearest, or among the five nearest, to a clip's embedding.

    Attributes:
        phrasing: ``caption``, the corpus's own, or ``heldout``, the mean over the first three
            phrasings that training has not seen.
        num_classes: that compete.
        top1: share of clips, over clips.
        top5: share of clips, over clips.
        per_class: top-1 share of each label.
    """

    phrasing: str
    num_classes: int
    top1: Summary
    top5: Summary
    per_class: Mapping[str, float]


def classify(
    clap: QueryEncoder,
    draw: Draw,
    *,
    audio_root: str,
    storage: Storage,
    limit: int | None = None,
) -> tuple[ZeroShot, ...]:
    """Ranks the split's classes for each of its clips by the cosine of clip and text.

    Args:
        clap: embeds both.
        draw: the clips of the split, and the held-out phrasings.
        audio_root: absolute folder of the clips.
        storage: how they are reached.
        limit: how many clips, the classes evenly; None: all. All classes compete in any case.

    Returns:
        The results for the corpus's captions and, where every class has them, for held-out
        phrasings. Of a class with several captions the most frequent one counts.

    Raises:
        ValueError: a clip or a text cannot be embedded.
    """
    labels = draw.labels()
    chosen = _evenly(draw.clips, limit)
    uris = [clip_uri(audio_root, clip.path) for clip in chosen]
    audio = np.stack([_heard(uri, clap, storage) for uri in uris])
    truth = np.array([labels.index(clip.label) for clip in chosen])
    rounds = {"caption": [[_caption(draw.clips, label) for label in labels]]}
    known = [draw.phrasings.get(label, ()) for label in labels]
    if all(len(each) >= HELDOUT_PHRASINGS for each in known):
        turns = range(HELDOUT_PHRASINGS)
        rounds["heldout"] = [[each[turn] for each in known] for turn in turns]
    found = []
    for phrasing, texts in rounds.items():
        ranks = np.stack([_ranks(audio, truth, each, clap) for each in texts])
        found.append(_zero_shot(phrasing, labels, chosen, truth, ranks))
    return tuple(found)


def _evenly(clips: Sequence[CorpusClip], limit: int | None) -> list[CorpusClip]:
    """At most ``limit`` clips: the first of every label, then the second, and so on."""
    turn: dict[str, int] = {}
    order = []
    for clip in clips:
        turn[clip.label] = turn.get(clip.label, -1) + 1
        order.append(turn[clip.label])
    indices = sorted(range(len(clips)), key=lambda index: order[index])[:limit]
    return [clips[index] for index in indices]


def _caption(clips: Iterable[CorpusClip], label: str) -> str:
    captions = [clip.caption for clip in clips if clip.label == label]
    return max(captions, key=captions.count)


def _heard(uri: str, clap: QueryEncoder, storage: Storage) -> NDArray[np.float32]:
    shots = iter([read_shot(uri, storage, clap.sample_rate_hz, _MAX_VALUES)])
    vector: NDArray[np.float32] = _vectors([embed_query_examples(clap, [uri], shots)])[0]
    return vector


def _vectors(found: Iterable[EmbeddedQuery]) -> NDArray[np.float32]:
    """float32[N, D] of unit norm."""

    def values() -> Iterator[NDArray[np.float32]]:
        for each in found:
            if each.error_type is not None:
                raise ValueError(each.message)
            yield np.frombuffer(each.embedding, "<f4")

    vectors = np.stack(list(values()))
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _ranks(
    audio: NDArray[np.float32],
    truth: NDArray[np.int64],
    texts: Sequence[str],
    clap: QueryEncoder,
) -> NDArray[np.int64]:
    """How many classes come before the right one, int64[N]."""
    similarity = audio @ _vectors(embed_query_texts(clap, texts)).T
    right = similarity[np.arange(len(truth)), truth]
    before: NDArray[np.int64] = (similarity > right[:, None]).sum(axis=1)
    return before


def _zero_shot(
    phrasing: str,
    labels: Sequence[str],
    clips: Sequence[CorpusClip],
    truth: NDArray[np.int64],
    ranks: NDArray[np.int64],
) -> ZeroShot:
    hits = (ranks < 1).mean(axis=0)
    groups = [clip.group for clip in clips]
    return ZeroShot(
        phrasing=phrasing,
        num_classes=len(labels),
        top1=summarise(hits, groups),
        top5=summarise((ranks < 5).mean(axis=0), groups),
        per_class={
            label: float(hits[truth == number].mean())
            for number, label in enumerate(labels)
            if (truth == number).any()
        },
    )
