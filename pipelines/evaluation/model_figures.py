"""Measures a model itself: how well its CLAP names sounds, and what it takes up.

What it separates is measured by runs of :mod:`pipelines.separate`.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from manifests.benchmarks.clips import clip_uri
from manifests.benchmarks.corpus_sets import CorpusClip, Draw
from model.bootstrap import Summary, summarise
from model.catalogue import Entry
from model.clap import QueryEncoder
from model.registry import LoadedModel
from model.signal.windowing import WindowPlan, separate_array
from model.systems import Condition, Separator
from transforms.audio.mixtures import VALUES_PER_SECOND
from transforms.elements import EmbeddedQuery
from transforms.queries import embed_query_examples, embed_query_texts, read_shot
from transforms.storage import Storage

HELDOUT_PHRASINGS = 3
"""How many of a class's held-out phrasings are tried, one at a time for all classes."""
logger = logging.getLogger(__name__)


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
    max_in_memory_s: float = 60.0,
    max_failure_rate: float = 0.0,
) -> tuple[ZeroShot, ...]:
    """Ranks the split's classes for each of its clips by the cosine of clip and text.

    Args:
        clap: embeds both.
        draw: the clips of the split, and the held-out phrasings.
        audio_root: absolute folder of the clips.
        storage: how they are reached.
        limit: how many clips, the classes evenly; None: all. All classes compete in any case.
        max_in_memory_s: of 48 kHz stereo; a clip of more samples cannot be embedded.
        max_failure_rate: of clips that cannot be embedded, which are left out, and said.

    Returns:
        The results for the corpus's captions and, where every class has them, for held-out
        phrasings. Of a class with several captions the most frequent one counts. Nothing where no
        clip is left.

    Raises:
        ValueError: more clips than may, or a text, cannot be embedded.
    """
    labels = draw.labels()
    chosen = _evenly(draw.clips, limit)
    max_values = int(max_in_memory_s * VALUES_PER_SECOND)
    heard = [_heard(clip_uri(audio_root, clip.path), clap, storage, max_values) for clip in chosen]
    failed = [each.message for each in heard if each.error_type is not None]
    if len(failed) > max_failure_rate * len(chosen):
        raise ValueError(f"zero-shot: {failed[0]}")
    for message in failed:
        logger.warning("zero-shot: left out: %s", message)
    chosen = [clip for clip, each in zip(chosen, heard, strict=True) if each.error_type is None]
    if not chosen:
        return ()
    audio = _vectors(each for each in heard if each.error_type is None)
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


def _heard(uri: str, clap: QueryEncoder, storage: Storage, max_values: int) -> EmbeddedQuery:
    shots = iter([read_shot(uri, storage, clap.sample_rate_hz, max_values)])
    return embed_query_examples(clap, [uri], shots)


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


_TIMED_S = 60.0
_WARM_UP_S = 10.0
_WINDOWS_AT_ONCE = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a model takes up, and how fast it separates when nothing is scored or written.

    Attributes:
        parameters: by part of the model.
        parameters_in_all: tensors that parts share counted once.
        file_bytes: by file of the bundle.
        device: where the speed was measured.
        threads: torch's threads there.
        real_time_factor: seconds of audio that are separated in a second.
    """

    parameters: Mapping[str, int]
    parameters_in_all: int
    file_bytes: Mapping[str, int]
    device: str
    threads: int
    real_time_factor: float


def measure_cost(loaded: LoadedModel, device: str) -> Cost:
    """Counts the parameters of a loaded model, which is on ``device``, and times it."""
    both = {"separator": loaded.separator, "clap": loaded.query_encoder}
    parts = {name: part for name, part in both.items() if isinstance(part, nn.Module)}
    return Cost(
        parameters={
            f"{name}.{child}": sum(parameter.numel() for parameter in network.parameters())
            for name, part in parts.items()
            for child, network in part.named_children()
        },
        parameters_in_all=sum(
            {
                parameter.data_ptr(): parameter.numel()
                for part in parts.values()
                for parameter in part.parameters()
            }.values()
        ),
        file_bytes={path.name: path.stat().st_size for path in bundle_files(loaded.card)},
        device=device,
        threads=torch.get_num_threads(),
        real_time_factor=real_time_factor(loaded.separator, device),
    )


def bundle_files(card: Entry) -> list[Path]:
    """Finds the files of a model that lie on this machine, every part of those that are split."""
    paths = [Path(file.location()) for file in card.files]
    patterns = [
        (path, "*.safetensors")
        if path.is_dir()
        else (path.parent, re.sub(r"-\d+-of-", "-*-of-", path.name))
        for path in paths
    ]
    return sorted({path for folder, pattern in patterns for path in folder.glob(pattern)})


@torch.inference_mode()
def real_time_factor(separator: Separator, device: str) -> float:
    """Measures how many seconds of mono noise are separated in a second, with one query."""
    condition = Condition(
        positive=torch.full((1, separator.embedding_dim), separator.embedding_dim**-0.5),
        negative=torch.zeros(1, separator.embedding_dim),
    )

    def separate(windows: Tensor) -> Tensor:
        asked = condition.index(torch.zeros(len(windows), dtype=torch.int64))
        mixture = windows.to(device)
        if separator.capabilities.needs_reference:
            asked = dataclasses.replace(asked, reference=mixture)
        return separator.separate(mixture, asked)

    plan = WindowPlan(window_samples=separator.window_samples)
    elapsed_s = 0.0
    for duration_s in (_WARM_UP_S, _TIMED_S):
        length = round(duration_s * separator.sample_rate_hz)
        noise = np.random.default_rng(0).normal(0.0, 0.1, (1, length)).astype(np.float32)
        start = time.perf_counter()
        separate_array(noise, separate, plan, batch_size=_WINDOWS_AT_ONCE)
        elapsed_s = time.perf_counter() - start
    return _TIMED_S / elapsed_s
