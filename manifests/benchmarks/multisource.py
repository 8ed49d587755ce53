"""Mixtures of several sources with one or more targets, as in the paper's Table V."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from manifests.benchmarks.clips import clip_uri
from manifests.benchmarks.lists import Pair
from manifests.benchmarks.pairs import DURATION_S, stem_of
from manifests.benchmarks.queries import QuerySetting
from manifests.ids import stable_seed
from manifests.row import ManifestRow

DATASET = "multisource"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A clip, what it sounds like, and its class where clips have classes."""

    name: str
    caption: str
    label: str | None = None


def clips_of(pairs: Iterable[Pair]) -> list[Clip]:
    """Every target of a pair list once, in the order of the list."""
    captions: dict[str, str] = {}
    for pair in pairs:
        captions.setdefault(pair.source_file, pair.positive_caption)
    return [Clip(name=name, caption=caption) for name, caption in captions.items()]


def build_multisource(
    clips: Sequence[Clip],
    setting: QuerySetting,
    *,
    audio_root: str,
    dataset: str = DATASET,
    num_sources: Iterable[int] = (2, 3, 4),
    seed: int = 0,
    snr_db: float = 0.0,
    duration_s: float = DURATION_S,
) -> Iterator[ManifestRow]:
    """For each number n of sources and each clip, its mixture with n - 1 drawn clips.

    Each mixture gives n - 1 rows, which ask for its first 1, 2 … n - 1 sources; the positive query
    covers those, the negative one the rest. All sources have the power of the first where
    ``snr_db`` is 0. No two sources of a mixture share a caption. What is drawn depends on ``seed``
    and on the clip's name only.

    Args:
        clips: what to draw from; each is the first source of one mixture for each n.
        setting: how captions and example clips become queries.
        audio_root: absolute folder of the clips.
        dataset: name of the data set.
        num_sources: numbers of sources, each from 2.
        seed: seed of the draws.
        snr_db: the targets' level, each, above every interferer's, in dB.
        duration_s: length of every mixture.

    Raises:
        ValueError: a number of sources below 2, or more than there are captions.
        ManifestError: a class has too few example clips.
    """
    num_captions = len({clip.caption for clip in clips})
    for num in num_sources:
        if not 2 <= num <= num_captions:
            raise ValueError(f"num_sources {num}; expected 2 to {num_captions}, one a caption")
        for clip in clips:
            sources = _draw(clip, clips, num, seed)
            uris = tuple(clip_uri(audio_root, source.name) for source in sources)
            captions = [source.caption for source in sources]
            for num_targets in range(1, num):
                targets = uris[:num_targets]
                yield ManifestRow(
                    id=f"{stem_of(clip.name)}@{num}s{num_targets}t",
                    target_uri=targets[0] if num_targets == 1 else None,
                    target_uris=targets if num_targets > 1 else (),
                    interferer_uris=uris[num_targets:],
                    snr_db=(snr_db,),
                    duration_s=duration_s,
                    dataset=dataset,
                    split=f"{num}-sources-{num_targets}-targets",
                    label=clip.label,
                    **setting.columns(captions[:num_targets], captions[num_targets:]),
                )


def _draw(first: Clip, clips: Sequence[Clip], num: int, seed: int) -> list[Clip]:
    """``first`` and ``num - 1`` further clips, all with different captions."""
    rng = np.random.Generator(np.random.PCG64(stable_seed(seed, f"{num}/{first.name}")))
    sources = [first]
    captions = {first.caption}
    while len(sources) < num:
        clip = clips[int(rng.integers(len(clips)))]
        if clip.caption not in captions:
            sources.append(clip)
            captions.add(clip.caption)
    return sources
