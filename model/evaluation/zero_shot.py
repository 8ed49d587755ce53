"""Zero-shot classification by text: does the small CLAP know the classes of a split?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from model.clap import QueryEncoder
from model.evaluation.queries import embed_clips, embed_texts
from model.evaluation.results import Summary, ZeroShot, summarise
from model.evaluation.sets import UNLABELLED, Phrasings
from model.training.corpus import Clip, Corpus

HELDOUT_PHRASINGS = 3
"""How many of a class's held-out phrasings are tried, one at a time for all classes."""


def classify(
    clap: QueryEncoder, corpus: Corpus, *, split: str, heldout: Phrasings, limit: int | None = None
) -> tuple[ZeroShot, ZeroShot]:
    """Ranks the split's classes for each of its clips by the cosine of clip and text.

    Args:
        clap: embeds both.
        corpus: the clips.
        split: which of them.
        heldout: phrasings a label that training has not seen, at least three.
        limit: how many clips, the classes evenly; all by default. All classes compete in any case.

    Returns:
        The results for the corpus's captions, and for held-out phrasings.
    """
    clips = [clip for clip in corpus.clips if clip.split == split and clip.label != UNLABELLED]
    caption_of = {clip.label: clip.caption for clip in clips}
    labels = sorted(caption_of)
    chosen = _evenly(clips, limit)
    embedded = embed_clips([clip.path for clip in chosen], clap, corpus)
    audio = torch.stack([embedded[clip.path] for clip in chosen]).numpy()
    truth = np.array([labels.index(clip.label) for clip in chosen])
    rounds = {
        "caption": [[caption_of[label] for label in labels]],
        "heldout": [
            [heldout[label][turn] for label in labels] for turn in range(HELDOUT_PHRASINGS)
        ],
    }
    found = []
    for phrasing, turns in rounds.items():
        ranks = np.stack([_ranks(audio, truth, texts, clap) for texts in turns])
        found.append(_zero_shot(phrasing, labels, chosen, truth, ranks))
    return found[0], found[1]


def _evenly(clips: Sequence[Clip], limit: int | None) -> list[Clip]:
    """At most ``limit`` clips: the first of every label, then the second, and so on."""
    turn: dict[str, int] = {}
    order = []
    for clip in clips:
        turn[clip.label] = turn.get(clip.label, -1) + 1
        order.append(turn[clip.label])
    indices = sorted(range(len(clips)), key=lambda index: order[index])[:limit]
    return [clips[index] for index in indices]


def _ranks(
    audio: npt.NDArray[np.float32],
    truth: npt.NDArray[np.int64],
    texts: Sequence[str],
    clap: QueryEncoder,
) -> npt.NDArray[np.int64]:
    """How many classes come before the right one, int64[N]."""
    known = embed_texts(texts, clap)
    similarity = audio @ torch.stack([known[text] for text in texts]).numpy().T
    right = similarity[np.arange(len(truth)), truth]
    before: npt.NDArray[np.int64] = (similarity > right[:, None]).sum(axis=1)
    return before


def _zero_shot(
    phrasing: str,
    labels: Sequence[str],
    clips: Sequence[Clip],
    truth: npt.NDArray[np.int64],
    ranks: npt.NDArray[np.int64],
) -> ZeroShot:
    hits = (ranks < 1).mean(axis=0)
    groups = [clip.group for clip in clips]

    def share(top: int) -> Summary:
        return summarise((ranks < top).mean(axis=0), groups)

    per_class: Mapping[str, float] = {
        label: float(hits[truth == number].mean())
        for number, label in enumerate(labels)
        if (truth == number).any()
    }
    return ZeroShot(
        phrasing=phrasing,
        num_classes=len(labels),
        top1=share(1),
        top5=share(5),
        per_class=per_class,
    )
