"""Rows from the lists of other protocols and from a folder of labelled clips.

Their data sets have names of their own (``AudioSep-…``, ``DCASE2024-T9``): mixtures of different
protocols never share a row of a table.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from manifests.audio_formats import AUDIO_SUFFIXES
from manifests.benchmarks.clips import BenchmarkSetting, clip_uri
from manifests.benchmarks.lists import Line, filled, read_table
from manifests.benchmarks.mixtures import DURATION_S, MixtureClip, stem_of
from manifests.files import ManifestError, open_bytes, reading
from manifests.row import ManifestRow, quoted, stable_seed
from terminal import screen

logger = logging.getLogger(__name__)

_MAX_NAMED = 5
DCASE_DATASET = "DCASE2024-T9"


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedClip:
    """A mixture on disk, its target, and what they sound like.

    ``negative`` is None where the list does not say, and so is ``source``, the clip of which the
    target is a copy.
    """

    row_id: str
    mixture: str
    target: str
    positive: str
    negative: str | None = None
    source: str | None = None


def read_audiosep_csv(uri: str, query_column: str = "caption") -> Iterator[MixedClip]:
    """One of AudioSep's evaluation lists, whose mixtures are on disk.

    The lists of AudioCaps, Clotho, ESC-50 and MUSIC number their mixtures (``segment-7.wav``,
    ``mixture-7.wav``); that of VGGSound names them, and the interferer's label; that of AudioSet
    names them with the folder of the authors' machine, which is cut off before ``class_id=``.

    Args:
        uri: the list.
        query_column: ``caption``, or ``labels`` where the list has them.

    Raises:
        ManifestError: the list cannot be read or is none of these.

    Source:
        Audio-AGI/AudioSep, evaluation/evaluate_*.py and evaluation/metadata/*.csv @944583f.
    """
    for line in read_table(uri, ()):
        cells = line.cells
        if "mix_wav" in cells:
            yield MixedClip(
                row_id=filled(line, "file_id", uri),
                mixture=filled(line, "mix_wav", uri),
                target=filled(line, "s0_wav", uri),
                positive=filled(line, "s0_text", uri),
                negative=filled(line, "s1_text", uri),
            )
        elif {"idx", "src_wav", query_column} <= cells.keys():
            yield _numbered(line, uri, query_column)
        else:
            names = quoted(",".join(cells))
            raise ManifestError(f"{uri}: columns {names}; expected one of AudioSep's lists")


def _numbered(line: Line, uri: str, query_column: str) -> MixedClip:
    text = filled(line, query_column, uri)
    source, noise = line.cells["src_wav"], line.cells.get("noise_wav", "")
    if noise.endswith("mixture.wav"):
        target, mixture = (f"class_id={name.partition('class_id=')[2]}" for name in (source, noise))
        row_id = PurePosixPath(target).stem.removesuffix(",source")
        return MixedClip(row_id=row_id, mixture=mixture, target=target, positive=text)
    index = filled(line, "idx", uri)
    return MixedClip(
        row_id=index,
        mixture=f"mixture-{index}.wav",
        target=f"segment-{index}.wav",
        positive=text,
        source=source or None,
    )


_RECORDING = re.compile(r"(Y.{11})_\d+|\d-(\d+)-[A-Z]-\d+")
"""Names of AudioSep's parts of videos in MUSIC, and of clips of recordings in ESC-50."""


def _recording_of(source: str) -> str:
    """The recording that a clip was cut from, where its name tells; otherwise the clip."""
    stem = stem_of(source).strip()  # a clip of Clotho's ends in a blank, which CSV cannot say
    found = _RECORDING.fullmatch(stem)
    return (found[1] or found[2]) if found else stem


def build_mixed(
    clips: Iterable[MixedClip], setting: BenchmarkSetting, *, audio_root: str, dataset: str
) -> Iterator[ManifestRow]:
    """One row a mixture on disk, scored against its target.

    Raises:
        ManifestError: a negative query is wanted of a list without negative captions.
    """
    for clip in clips:
        if clip.negative is None and setting.polarity != "P":
            raise ManifestError(
                f"{clip.row_id}: the list has no negative captions; expected polarity P, "
                f"not {setting.polarity}"
            )
        yield ManifestRow(
            id=clip.row_id,
            mixture_uri=clip_uri(audio_root, clip.mixture),
            reference_uri=clip_uri(audio_root, clip.target),
            n_sources=2 if clip.negative is not None else None,
            dataset=dataset,
            split="test",
            group=_recording_of(clip.source) if clip.source else None,
            **setting.columns([clip.positive], [clip.negative] if clip.negative else []),
        )


def read_dcase(uri: str, *, audio_root: str) -> Iterator[ManifestRow]:
    """DCASE 2024 Task 9's synthetic lists: source, noise, level in dB and caption by position.

    Mixed on the fly; the baseline's rule for levels and peaks is the paper's. The queries are
    positive captions.

    Args:
        uri: the list, with a header of any names.
        audio_root: absolute folder of the clips, which the list names without ``.wav``.

    Raises:
        ManifestError: the list cannot be read, or a line is not as expected.

    Source:
        Audio-AGI/dcase2024_task9_baseline, dcase_evaluator.py.
    """
    with reading(uri), open_bytes(uri) as stream:
        reader = csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
        next(reader, None)
        for cells in filter(None, reader):
            place = f"{uri}, row {reader.line_num}"
            if len(cells) != 4 or not all(cell.strip() for cell in cells):
                raise ManifestError(f"{place}: {quoted(cells)}; expected source,noise,snr,caption")
            source, noise, level, caption = (cell.strip() for cell in cells)
            yield ManifestRow(
                id=f"{source}--{noise}@{level}dB--{reader.line_num}",
                target_uri=clip_uri(audio_root, f"{source}.wav"),
                interferer_uris=(clip_uri(audio_root, f"{noise}.wav"),),
                snr_db=(_level_db(level, place),),
                positive_text=caption,
                duration_s=DURATION_S,
                dataset=DCASE_DATASET,
                split="validation",
                group=source,
            )


def _level_db(text: str, place: str) -> float:
    try:
        level_db = float(text)
    except ValueError as err:
        raise ManifestError(f"{place}: level {quoted(text)}; expected a number of dB") from err
    if not -100.0 <= level_db <= 100.0:
        raise ManifestError(f"{place}: SNR of {level_db} dB; expected -100 to 100 dB")
    return level_db


def read_captioned_json(uri: str) -> list[MixtureClip]:
    """AudioSep's JSON of captioned clips: ``{"data": [{"wav": …, "caption": …}, …]}``.

    Raises:
        ManifestError: the file cannot be read or is not like this.
    """
    with reading(uri), open_bytes(uri) as stream:
        data = stream.read()
    try:
        entries: Any = json.loads(data)["data"]
        named = [(entry["wav"], entry["caption"]) for entry in entries]
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        expected = '{"data": [{"wav": …, "caption": …}, …]}'
        raise ManifestError(f"{uri}: expected {expected} ({type(err).__name__}: {err})") from err
    for index, texts in enumerate(named):
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise ManifestError(f"{uri}: entry {index} has no wav or no caption")
    return [MixtureClip(name=name, caption=caption) for name, caption in named]


def labelled_clips(root: str, files: Iterable[str], template: str) -> list[MixtureClip]:
    """Clips in folders that are named after what they sound like, ``<root>/<label>/<clip>``.

    Hidden files and folders, and what macOS puts beside its own (``._clip.wav``, ``__MACOSX``), are
    left out, as are clips that no folder labels; a warning names them.

    Args:
        root: absolute folder.
        files: URIs of the files below it.
        template: caption with ``{label}``; ``_`` in a folder's name is a space.

    Raises:
        ValueError: the template lacks ``{label}``.
    """
    if "{label}" not in template:
        raise ValueError(f"template {template!r}; expected {{label}} in it")
    clips: list[MixtureClip] = []
    left_out: dict[str, list[str]] = {"hidden": [], "in no folder that says what they are": []}
    hidden, unlabelled = left_out.values()
    for uri in sorted(files):
        name = uri.removeprefix(root).lstrip("/")
        if not name.lower().endswith(AUDIO_SUFFIXES):
            continue
        label = PurePosixPath(name).parent.name.replace("_", " ").strip()
        if any(part.startswith(".") or part == "__MACOSX" for part in name.split("/")):
            hidden.append(name)
        elif not label:
            unlabelled.append(name)
        else:
            caption = template.replace("{label}", label)
            clips.append(MixtureClip(name=name, caption=caption, label=label))
    for reason, names in left_out.items():
        if names:
            shown = ", ".join(
                [*map(quoted, names[:_MAX_NAMED]), *(["…"] * (len(names) > _MAX_NAMED))]
            )
            logger.warning("%s: left out %d clips, %s: %s", root, len(names), reason, shown)
    return clips


def build_drawn(
    clips: Sequence[MixtureClip],
    setting: BenchmarkSetting,
    *,
    audio_root: str,
    dataset: str,
    mixtures_per_clip: int = 1,
    seed: int = 0,
    snr_db: float = 0.0,
    duration_s: float = DURATION_S,
) -> Iterator[ManifestRow]:
    """Each clip as target in mixtures with drawn clips of other captions.

    What is drawn depends on ``seed`` and on the clip's name only. No pair is drawn twice.

    Args:
        clips: what to mix.
        setting: how captions become queries.
        audio_root: absolute folder of the clips.
        dataset: name of the data set.
        mixtures_per_clip: different interferers of each target.
        seed: seed of the draws.
        snr_db: target above interferer, in dB.
        duration_s: length of every mixture.

    Raises:
        ValueError: a clip has fewer clips of other captions than ``mixtures_per_clip``.
        ManifestError: a class has too few example clips.
    """
    counts = Counter(clip.caption for clip in clips)
    for clip in clips:
        num_others = len(clips) - counts[clip.caption]
        if num_others < mixtures_per_clip:
            raise ValueError(
                f"{clip.name}: {screen.counted(num_others, 'clip')} with other captions; "
                f"expected {mixtures_per_clip} or more"
            )
        for other in _draw_others(clip, clips, mixtures_per_clip, seed):
            yield ManifestRow(
                id=f"{stem_of(clip.name)}--{stem_of(other.name)}",
                target_uri=clip_uri(audio_root, clip.name),
                interferer_uris=(clip_uri(audio_root, other.name),),
                snr_db=(snr_db,),
                duration_s=duration_s,
                dataset=dataset,
                split="test",
                label=clip.label,
                group=stem_of(clip.name),
                **setting.columns([clip.caption], [other.caption]),
            )


def _draw_others(
    clip: MixtureClip, clips: Sequence[MixtureClip], num: int, seed: int
) -> list[MixtureClip]:
    """``num`` different clips whose caption is not that of ``clip``."""
    rng = np.random.Generator(np.random.PCG64(stable_seed(seed, clip.name)))
    drawn: dict[int, MixtureClip] = {}
    while len(drawn) < num:
        index = int(rng.integers(len(clips)))
        if clips[index].caption != clip.caption:
            drawn.setdefault(index, clips[index])
    return list(drawn.values())
