"""Builds the rows of the paper's benchmarks.

Pairs of the five benchmarks, the input-level sweep of its Table VI, mixtures of several sources
with one or more targets (Table V), and the classes that a model has not been trained on (Fig. 6).

The lists mix each target with several interferers (AudioCaps and ESC-50 with five). Such mixtures
are alike, and so are targets that were cut from one recording: a row's ``group`` is its target's
recording, where the list or the clip's name says it, and otherwise its target, so that intervals
draw these and not mixtures.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

import numpy as np

from manifests.benchmarks.clips import BenchmarkSetting, clip_uri
from manifests.benchmarks.lists import Pair
from manifests.row import ManifestRow, stable_seed

DURATION_S: Final = 10.0
SWEEP_LEVELS_DB: Final = (-10.0, -5.0, 0.0, 5.0, 10.0)
_SOUND_OF = re.compile(r"^the sounds? of ", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A published set of mixtures.

    Attributes:
        dataset: its name in the paper's tables and in metrics.
        num_rows: mixtures of the official list; 0 where there is none.
        has_classes: whether captions name one class each, "the sound of …", so that rows can be
            labelled and queried by example clips.
        recording: pattern of a clip's name without its suffix, whose first group names the
            recording that it was cut from; a clip with another name is a recording of its own.
    """

    dataset: str
    num_rows: int
    has_classes: bool
    recording: str = r"(.+)"

    def recording_of(self, name: str) -> str:
        """The recording that a clip of the list was cut from."""
        stem = stem_of(name)
        found = re.fullmatch(self.recording, stem)
        return found[1] if found else stem


BENCHMARKS: Final = {
    "audiocaps": Benchmark(dataset="AudioCaps", num_rows=4_785, has_classes=False),
    "audioset": Benchmark(dataset="AudioSet", num_rows=18_869, has_classes=False),
    "music21": Benchmark(
        dataset="MUSIC21", num_rows=19_805, has_classes=True, recording=r"(.+)_\d+"
    ),
    "esc50": Benchmark(
        dataset="ESC-50", num_rows=7_500, has_classes=True, recording=r"(?:.*/)?\d-(\d+)-[A-Z]-\d+"
    ),
    "fsdkaggle2018": Benchmark(dataset="FSDKaggle2018", num_rows=8_000, has_classes=True),
}


def class_of(caption: str) -> str:
    """``washing machine`` for ``the sound of washing machine``."""
    return _SOUND_OF.sub("", caption)


def stem_of(name: str) -> str:
    """The name of a clip in a list, with its folder and without its suffix."""
    return str(PurePosixPath(name).with_suffix(""))


def pair_id(pair: Pair) -> str:
    """Both clips of a pair: its row's id in every query setting, so that runs can be compared."""
    return f"{stem_of(pair.source_file)}--{stem_of(pair.noise_file)}"


def build_pairs(
    pairs: Iterable[Pair],
    benchmark: Benchmark,
    setting: BenchmarkSetting,
    *,
    audio_root: str,
    snr_db: float = 0.0,
    split_of: Callable[[str], str] = lambda _: "test",
) -> Iterator[ManifestRow]:
    """One row a pair: the target with its interferer at ``snr_db``, asked as ``setting`` says.

    Args:
        pairs: the official list, or one like it.
        benchmark: names the data set.
        setting: how captions and example clips become queries.
        audio_root: absolute folder of the clips.
        snr_db: target above interferer, in dB.
        split_of: from the target's class to the split.

    Raises:
        ManifestError: a class has too few example clips.

    Source:
        EVALUATION protocol of the CLAPSep paper: 10 s, 0 dB, the negative query is the
        interferer's caption. That all five sets are mixed at 0 dB and padded to 10 s is inferred:
        a script was released for AudioCaps only.
    """
    for pair in pairs:
        name = class_of(pair.positive_caption)
        yield ManifestRow(
            id=pair_id(pair),
            target_uri=clip_uri(audio_root, pair.source_file),
            interferer_uris=(clip_uri(audio_root, pair.noise_file),),
            snr_db=(snr_db,),
            duration_s=DURATION_S,
            dataset=benchmark.dataset,
            split=split_of(name),
            label=name if benchmark.has_classes else None,
            group=pair.group or benchmark.recording_of(pair.source_file),
            **setting.columns([pair.positive_caption], [pair.negative_caption]),
        )


def build_input_sdr(
    pairs: Iterable[Pair],
    benchmark: Benchmark,
    setting: BenchmarkSetting,
    *,
    audio_root: str,
    levels_db: Iterable[float] = SWEEP_LEVELS_DB,
) -> Iterator[ManifestRow]:
    """Every pair at every level, for Table VI. Ids end in the level: ``…@-10dB``.

    Raises:
        ManifestError: a class has too few example clips.
    """
    pairs = list(pairs)
    for level_db in levels_db:
        for row in build_pairs(pairs, benchmark, setting, audio_root=audio_root, snr_db=level_db):
            yield dataclasses.replace(row, id=f"{row.id}@{level_db:+g}dB")


DATASET = "multisource"


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureClip:
    """A clip, what it sounds like, and, where known, its class and the recording it is of."""

    name: str
    caption: str
    label: str | None = None
    group: str | None = None


def mixture_clips_of(pairs: Iterable[Pair]) -> list[MixtureClip]:
    """Every target of a pair list once, in the order of the list."""
    clips: dict[str, MixtureClip] = {}
    for pair in pairs:
        clip = MixtureClip(name=pair.source_file, caption=pair.positive_caption, group=pair.group)
        clips.setdefault(pair.source_file, clip)
    return list(clips.values())


def build_multisource(
    clips: Sequence[MixtureClip],
    setting: BenchmarkSetting,
    *,
    audio_root: str,
    dataset: str = DATASET,
    num_sources: Iterable[int] = (2, 3, 4),
    seed: int = 0,
    snr_db: float = 0.0,
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
                    duration_s=DURATION_S,
                    dataset=dataset,
                    split=f"{num}-sources-{num_targets}-targets",
                    label=clip.label,
                    group=clip.group or stem_of(clip.name),
                    **setting.columns(captions[:num_targets], captions[num_targets:]),
                )


def _draw(
    first: MixtureClip, clips: Sequence[MixtureClip], num: int, seed: int
) -> list[MixtureClip]:
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


_WORD = re.compile(r"[a-z]+")
_SMALL_WORDS = frozenset(
    ("a", "an", "and", "as", "at", "by", "for", "from", "in", "is", "of", "on", "or", "the", "to")
)
_ENDINGS = ("ings", "ing", "ers", "er", "ed", "es", "s", "e")


def unseen_classes(classes: Iterable[str], captions: Iterable[str]) -> frozenset[str]:
    """The classes that no caption of the training data names.

    A caption names a class if it has all of the class's words, in any order and inflection:
    "birds are chirping" names "chirping bird". Synonyms are not known: "hound" does not name "dog".
    """
    wanted = {name: _stems(name) for name in classes}
    unseen = set(wanted)
    for caption in captions:
        stems = _stems(caption)
        unseen -= {name for name in unseen if wanted[name] <= stems}
        if not unseen:
            break
    return frozenset(unseen)


def split_by(unseen: Iterable[str]) -> Callable[[str], str]:
    """From a class to ``unseen`` or ``seen``."""
    names = frozenset(unseen)
    return lambda name: "unseen" if name in names else "seen"


def _stems(text: str) -> frozenset[str]:
    """Words of a text without their endings."""
    words = (word for word in _WORD.findall(text.lower()) if word not in _SMALL_WORDS)
    return frozenset(_stem(word) for word in words)


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending)
            break
    # "clapping" and "claps", "humming" and "hums"
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    # "cry" and "cries"
    return f"{word[:-1]}i" if word.endswith("y") else word
