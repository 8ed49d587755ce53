"""The paper's five benchmarks from their pair lists, and the input-level sweep of its Table VI."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from manifests.benchmarks.clips import clip_uri
from manifests.benchmarks.lists import Pair
from manifests.benchmarks.queries import QuerySetting
from manifests.row import ManifestRow

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
    """

    dataset: str
    num_rows: int
    has_classes: bool


BENCHMARKS: Final = {
    "audiocaps": Benchmark(dataset="AudioCaps", num_rows=4_785, has_classes=False),
    "audioset": Benchmark(dataset="AudioSet", num_rows=18_869, has_classes=False),
    "music21": Benchmark(dataset="MUSIC21", num_rows=19_805, has_classes=True),
    "esc50": Benchmark(dataset="ESC-50", num_rows=7_500, has_classes=True),
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
    setting: QuerySetting,
    *,
    audio_root: str,
    snr_db: float = 0.0,
    duration_s: float = DURATION_S,
    split_of: Callable[[str], str] = lambda _: "test",
) -> Iterator[ManifestRow]:
    """One row a pair: the target with its interferer at ``snr_db``, asked as ``setting`` says.

    Args:
        pairs: the official list, or one like it.
        benchmark: names the data set.
        setting: how captions and example clips become queries.
        audio_root: absolute folder of the clips.
        snr_db: target above interferer, in dB.
        duration_s: length of every mixture; clips are cut or padded with zeros.
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
            duration_s=duration_s,
            dataset=benchmark.dataset,
            split=split_of(name),
            label=name if benchmark.has_classes else None,
            **setting.columns([pair.positive_caption], [pair.negative_caption]),
        )


def build_input_sdr(
    pairs: Iterable[Pair],
    benchmark: Benchmark,
    setting: QuerySetting,
    *,
    audio_root: str,
    levels_db: Iterable[float] = SWEEP_LEVELS_DB,
    duration_s: float = DURATION_S,
) -> Iterator[ManifestRow]:
    """Every pair at every level, for Table VI. Ids end in the level: ``…@-10dB``.

    Raises:
        ManifestError: a class has too few example clips.
    """
    pairs = list(pairs)
    for level_db in levels_db:
        rows = build_pairs(
            pairs,
            benchmark,
            setting,
            audio_root=audio_root,
            snr_db=level_db,
            duration_s=duration_s,
        )
        for row in rows:
            yield dataclasses.replace(row, id=f"{row.id}@{level_db:+g}dB")
