"""Fine-tunes a separator with a few recordings of somebody's own sounds.

The recordings are a folder of folders, one a label, or what a listener judged of the segments of a
run. CLAP stays as it is; the separator learns from mixtures of these recordings with one another
and with bundled sounds of other kinds, by the trainer of :mod:`model.training.engine`. A part of
the recordings is never trained on: the figures before and after are of mixtures of those.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import hashlib
import io
import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model import registry
from model.bootstrap import Summary, summarise
from model.checkpoints import convert
from model.checkpoints.fetch import CheckpointError, open_filesystem
from model.checkpoints.loading import (
    BUNDLE_MODEL,
    BUNDLE_PRESENCE,
    Networks,
    load_converted,
)
from model.checkpoints.tensorfiles import SourceFile
from model.clap import Clap
from model.config import to_json
from model.metrics import FILTER_TAPS, distortion
from model.systems.clapsep import lora
from model.systems.clapsep.network import ClapSep
from model.training import engine, sound
from model.training.contrastive import text_latents
from model.training.drawing import MixturePlanner
from model.training.material import BUNDLED_CAPTIONS, TEMPLATES, Material
from model.training.separation import SeparationTask, Validation, choose_trained
from model.training.settings import FinetuneSettings, SeparatorTraining

logger = logging.getLogger(__name__)

MODES = {"text_pn": "what is wanted and what is not", "text_p": "what is wanted alone"}
CARD, FIGURES, CLIPS, CONFIG = "README.md", "figures.json", "clips.csv", "config.json"
_SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".aiff", ".aif")
_FEWEST_RECORDINGS = 3
_SHORTEST_S = 0.1
_SILENT = 1e-4
_PARTNERS = 4
"""Mixtures of each held-out clip: with that many other sounds."""
_REST = ("cat_meowing", "fireworks", "guitar_chord", "river")
"""Bundled sounds that are never trained on: what other sounds lost is measured by them."""
_SAME_KIND = 0.55
"""A bundled sound whose words are nearer than this to a label's is left out: it may be the same."""
_SPAN = re.compile(r"(?P<uri>.+)#t=(?:npt:)?(?P<start>[0-9:.]*)(?:,[0-9:.]*)?")
"""A stretch of a recording, as :mod:`manifests.files` reads it; a run has checked its times."""
_REVIEW_COLUMNS = ("run", "id", "start_s", "end_s", "present")
_SEGMENT_COLUMNS = ("id", "mixture_uri", "label", "positive_text", "start_s", "end_s")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A recording, or a stretch of one, that somebody says what it is of."""

    uri: str
    span_s: sound.Span
    recording: str
    """What is held out as a whole."""
    label: str
    present: bool = True
    """False: it was taken for the label and is something else."""

    @property
    def name(self) -> str:
        """The clip as a URI."""
        start_s, end_s = self.span_s
        if not start_s and end_s is None:
            return self.uri
        span = f"{start_s:.3f}" if end_s is None else f"{start_s:.3f},{end_s:.3f}"
        return f"{self.uri}#t={span}"


class CorpusError(ValueError):
    """Recordings that cannot be trained with."""


def clips_in_folders(corpus: Path) -> list[Clip]:
    """The clips of a folder that has a folder for each label.

    A file is a recording. Files in a folder inside of a label's were cut from one recording, which
    has the folder's name. A recording beside the labels' folders has no label.

    Raises:
        CorpusError: it is no such folder.
    """
    if not corpus.is_dir():
        raise CorpusError(f"--corpus {corpus}: expected a folder, or a reviews.csv with --run")
    found = []
    for folder in sorted(corpus.iterdir()):
        if folder.name.startswith("."):
            continue
        if folder.suffix.lower() in _SOUNDS and folder.is_file():
            lost = Clip(uri=str(folder), span_s=(0.0, None), recording=str(folder), label="")
            found.append(lost)
        if not folder.is_dir():
            continue
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            if path.is_file() and not any(part.startswith(".") for part in inside.parts):
                recording = folder / inside.parts[0]
                found.append(
                    Clip(
                        uri=str(path),
                        span_s=(0.0, None),
                        recording=str(recording),
                        label=folder.name,
                    )
                )
    if not any(clip.label for clip in found):
        raise CorpusError(
            f"--corpus {corpus}: has no folders with recordings; expected a folder for each label, "
            f"such as {corpus / 'owl' / '1.wav'}"
        )
    return found


def clips_judged(reviews: Path, runs: Sequence[str]) -> list[Clip]:
    """The segments of runs that a listener judged, from what ``pipelines.report`` saves.

    Raises:
        CorpusError: it is no such table, or is not of these runs.
    """
    rows = _read_reviews(reviews)
    found: list[Clip] = []
    for run in runs:
        name = run.rstrip("/").rpartition("/")[2]
        own = {
            (row["id"], _seconds(row, "start_s", reviews)): row["present"].strip().lower() == "yes"
            for row in rows
            if len(runs) == 1 or row["run"] == name
        }
        segments = _segments_of(run, sorted({clip_id for clip_id, _ in own}))
        found += [
            _judged(segments[place], present=present)
            for place, present in own.items()
            if place in segments
        ]
    if not found:
        raise CorpusError(
            f"--corpus {reviews}: none of its rows is about a segment of --run {' '.join(runs)}"
        )
    return found


def _read_reviews(reviews: Path) -> list[dict[str, str]]:
    try:
        text = reviews.read_text(encoding="utf-8-sig")
        header = text.partition("\n")[0]
        separator = next((each for each in ",;\t" if each in header), ",")  # as spreadsheets save
        lines = io.StringIO(text, newline="")
        rows = list(csv.DictReader(lines, delimiter=separator, strict=True))
    except (UnicodeDecodeError, csv.Error) as err:
        raise CorpusError(f"--corpus {reviews}: is not CSV in UTF-8 ({err})") from err
    lacking = [name for name in _REVIEW_COLUMNS if not rows or name not in rows[0]]
    if lacking:
        what = f"column {lacking[0]}" if rows else "rows"
        raise CorpusError(
            f"--corpus {reviews}: has no {what}; expected what the page of pipelines.report saves"
        )
    for number, row in enumerate(rows, 2):
        if (row["present"] or "").strip().lower() not in ("yes", "no"):
            raise CorpusError(
                f"--corpus {reviews}, line {number}: {row['present']!r}; expected yes or no"
            )
        row.update({name: _plain(row[name] or "") for name in ("run", "id")})
    return rows


def _plain(text: str) -> str:
    """Takes away the ``'`` before what a spreadsheet would take for a formula, as the page puts."""
    return re.sub(r"^'(?=[=+\-@\t\r'\uff1d\uff0b\uff0d\uff20])", "", text)


def _seconds(row: Mapping[str, str], name: str, reviews: Path) -> float:
    try:
        return round(float(row[name].replace(",", ".")), 3)
    except (AttributeError, ValueError) as err:
        raise CorpusError(f"--corpus {reviews}, id {row['id']!r}, {name}: {row[name]!r}") from err


def _segments_of(run: str, ids: Sequence[str]) -> dict[tuple[str, float], dict[str, Any]]:
    """The segments of clips by id and start, with ``offset_s`` of what was separated."""
    segments = _table(run, "segments", _SEGMENT_COLUMNS, ids)
    clips = _table(run, "metrics", ("id", "offset_s"), ids)
    offsets = {row["id"]: row["offset_s"] for row in clips}
    return {
        (row["id"], round(row["start_s"], 3)): {**row, "offset_s": offsets.get(row["id"]) or 0.0}
        for row in segments
    }


def _table(run: str, name: str, columns: Sequence[str], ids: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a table of a run, which may have been done in parts (``shard=…``), about some ids."""
    import pyarrow as pa
    import pyarrow.dataset

    filesystem, path = open_filesystem(run.rstrip("/"))
    try:
        inside = filesystem.ls(path, detail=False) if filesystem.isdir(path) else []
        parts = [each for each in inside if "shard=" in each.rpartition("/")[2]] or [path]
        found = [file for part in parts for file in filesystem.find(f"{part}/{name}")]
        files = sorted(file for file in found if file.endswith(".parquet"))
        if not files:
            raise CorpusError(
                f"--run {run}: has no {name}/; expected what pipelines.separate wrote"
            )
        table = pyarrow.dataset.dataset(files, filesystem=filesystem, format="parquet")
        wanted = pyarrow.dataset.field("id").isin(list(ids))
        chosen = table.to_table(columns=list(columns), filter=wanted)
        rows: list[dict[str, Any]] = chosen.to_pylist()
    except (OSError, pa.ArrowException) as err:
        raise CorpusError(f"--run {run}: {name}/ cannot be read: {err}") from err
    return rows


def _judged(segment: Mapping[str, Any], *, present: bool) -> Clip:
    uri, begin = segment["mixture_uri"] or "", segment["offset_s"]
    part = _SPAN.fullmatch(uri)
    if part is not None:
        uri = part["uri"]
        clock = reversed(part["start"].split(":"))  # seconds, minutes, hours
        begin += sum(60.0**place * float(number or 0) for place, number in enumerate(clock))
    return Clip(
        uri=uri,
        span_s=(begin + segment["start_s"], begin + segment["end_s"]),
        recording=uri,
        label=segment["positive_text"] or segment["label"] or "",
        present=present,
    )


def with_one_label(clips: Iterable[Clip]) -> list[Clip]:
    """Gives clips whose labels are the same words (``Garden_gate``, ``garden gate``) the first one.

    Otherwise the same query would ask for one of them and for silence of the other.
    """
    first: dict[str, str] = {}
    return [
        dataclasses.replace(clip, label=first.setdefault(_words(clip.label).casefold(), clip.label))
        for clip in clips
    ]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Heard:
    """Clips with their samples; what cannot be used is left out, and said."""

    clips: list[Clip]
    samples: list[sound.Int16Array]
    sha256: list[str]
    left_out: list[str]


def hear(clips: Sequence[Clip], rate_hz: int) -> Heard:
    """Reads clips; names those that cannot be read, are silent or too short."""
    import soundfile

    heard = Heard(clips=[], samples=[], sha256=[], left_out=[])
    for clip in clips:
        try:
            if not clip.uri:
                raise ValueError("its row has no mixture_uri")
            if not clip.label:
                raise ValueError(
                    "has no label: lies in no label's folder, or its row has neither label nor "
                    "positive_text"
                )
            samples = _read(clip, rate_hz)
            if len(samples) < _SHORTEST_S * rate_hz:
                raise ValueError(f"shorter than {_SHORTEST_S:g} s")
            if not samples.any():
                raise ValueError("silent")
        except (OSError, ValueError, CheckpointError, soundfile.SoundFileError) as err:
            reason = getattr(err, "error_string", "") or str(err).splitlines()[0]
            heard.left_out.append(f"{clip.name}: {reason}")
            continue
        heard.clips.append(clip)
        heard.samples.append(samples)
        heard.sha256.append(hashlib.sha256(samples.tobytes()).hexdigest())
    return dataclasses.replace(heard, clips=with_copies_joined(heard.clips, heard.sha256))


def with_copies_joined(clips: list[Clip], sha256: Sequence[str]) -> list[Clip]:
    """Makes recordings that hold the same samples one, so that no copy of them is trained on."""
    first: dict[str, str] = {}
    for number, digest in enumerate(sha256):
        copy_of, own = first.setdefault(digest, clips[number].recording), clips[number].recording
        if own != copy_of:
            clips = [
                dataclasses.replace(clip, recording=copy_of) if clip.recording == own else clip
                for clip in clips
            ]
            first = {each: copy_of if name == own else name for each, name in first.items()}
    return clips


def _read(clip: Clip, rate_hz: int) -> sound.Int16Array:
    """Reads a clip so that its loudest sample is full scale, whatever its level; silence as zeros.

    Windows get levels of their own, and 16 bits are too few for a quiet recording, and too many are
    clipped of a loud one. A constant offset is no sound.
    """
    filesystem, path = open_filesystem(clip.uri)
    with filesystem.open(path, "rb") as stream:
        mono = sound.read_mono(cast(BinaryIO, stream), rate_hz, clip.span_s)
    mono = mono - mono.mean(dtype=np.float64).astype(np.float32)
    loudest = float(np.abs(mono).max())
    return sound.quantised(mono / loudest if loudest >= _SILENT else np.zeros_like(mono))


def held_out(clips: Sequence[Clip], share: float, seed: int) -> set[str]:
    """Recordings that are not trained on: about ``share`` of each label's, at least one.

    A recording that several labels have is held out for all of them, or for none.

    Raises:
        CorpusError: a label has too few recordings.
    """
    recordings: dict[str, set[str]] = {}
    for clip in clips:
        if clip.present:
            recordings.setdefault(clip.label, set()).add(clip.recording)
    if not recordings:
        raise CorpusError("--corpus: no clip of any label can be used")
    few = {name: len(own) for name, own in recordings.items() if len(own) < _FEWEST_RECORDINGS}
    if few:
        name = min(few)
        raise CorpusError(
            f"--corpus: {name!r} has {few[name]} recordings that can be used; expected "
            f"{_FEWEST_RECORDINGS} or more, one of which is held out (ten are better)"
        )
    rng = np.random.default_rng([seed, 41])
    out: set[str] = set()
    kept: set[str] = set()
    for name in sorted(recordings, key=lambda name: (len(recordings[name]), name)):
        own = sorted(recordings[name])
        wanted = min(max(1, round(share * len(own))), len(own) - 1) - len(out & recordings[name])
        free = [each for each in own if each not in out | kept]
        chosen = rng.permutation(len(free))[: max(0, wanted)]
        out |= {free[place] for place in chosen}
        kept |= recordings[name] - out
        if not recordings[name] - out or not recordings[name] & out:
            raise CorpusError(
                f"--corpus: {name!r} shares all of its recordings with other labels, so that none "
                "can be held out; give recordings of its own"
            )
    return out


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corpus:
    """What is trained on, and the mixtures that are measured."""

    material: Material
    mistaken: dict[int, int]
    samples: list[sound.Int16Array]
    clips: list[Clip]
    pairs: npt.NDArray[np.int64]
    """int64[P, 2]: the first of each is asked for. Held-out clips, then sounds of other kinds."""
    num_own: int
    """Pairs whose first clip is the user's."""


def gather(
    heard: Heard, out: set[str], clap: Clap, rate_hz: int, seed: int, templates: int = 3
) -> Corpus:
    """Puts clips, bundled sounds and their words together.

    Args:
        heard: the user's clips.
        out: recordings that are held out.
        clap: embeds the words.
        rate_hz: of the samples.
        seed: of the partners that held-out clips are mixed with.
        templates: sentences around each wording.
    """
    labels = sorted({clip.label for clip in heard.clips if clip.present})
    words = [_words_of(label) for label in labels]
    background = _background(clap, [each[0] for each in words])
    names = [*labels, *(name for name, _ in background)]
    words += [[caption] for _, caption in background]
    refused = sorted({clip.label for clip in heard.clips if not clip.present} & set(labels))
    mistaken = {len(names) + place: labels.index(label) for place, label in enumerate(refused)}
    names += [f"not {label}" for label in refused]
    words += [words[labels.index(label)][:1] for label in refused]
    texts: dict[str, int] = {}
    framed = TEMPLATES[:templates]
    wordings = [
        (number, texts.setdefault(text, len(texts)), bare)
        for number, own in enumerate(words)
        for wording in own
        for text, bare in [(wording, 1), *((each.format(wording), 0) for each in framed)]
    ]
    clips, samples, split = [], [], []
    for clip, sample in zip(heard.clips, heard.samples, strict=True):
        if clip.present or (clip.label in refused and clip.recording not in out):
            clips.append(clip)
            samples.append(sample)
            split.append("val" if clip.recording in out else "train")
    for name, _ in background:
        uri = _bundled(name)
        clips.append(Clip(uri=uri, span_s=(0.0, None), recording=name, label=name))
        samples.append(sound.decode(uri, rate_hz))
        split.append("rest" if name in _REST else "train")
    class_of = np.array(
        [names.index(clip.label if clip.present else f"not {clip.label}") for clip in clips]
    )
    first = {number: text for number, text, _ in reversed(wordings)}
    is_open = np.array([number >= len(labels) for number in range(len(names))])
    is_open[list(mistaken)] = False
    none = np.zeros((len(clips), 0), dtype=np.float32)
    pair = np.zeros((0, 2), dtype=np.int64)
    material = Material(
        path=np.array([clip.name for clip in clips]),
        class_of=class_of,
        split=np.array(split),
        group=np.array([clip.recording for clip in clips]),
        caption_of=np.array([first[number] for number in class_of.tolist()]),
        logits=none, scores=none, embedding=none,
        is_open=is_open,
        class_names=np.array(names),
        latents=text_latents(clap.text_branch, list(texts)),
        wordings=np.array(wordings),
        tagger_names=np.zeros((0, 1), dtype=np.int64),
        pairs=pair, pair_texts=pair[:, 0], triples=pair, triple_texts=pair[:, 0],
    )  # fmt: skip
    own, rest = _pairs(material, seed)
    return Corpus(
        material=material,
        mistaken=mistaken,
        samples=samples,
        clips=clips,
        pairs=np.array([*own, *rest]),
        num_own=len(own),
    )


def _pairs(material: Material, seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """Each held-out clip with other sounds that are not trained on; and bundled ones among them.

    The others are of other recordings: one of the same may hold what is asked for.
    """
    rng = np.random.default_rng([seed, 43])
    rest = material.clips_of("rest").tolist()
    mine = material.clips_of("val").tolist()
    own = []
    for clip in mine:
        others = [
            each
            for each in (*mine, *rest)
            if material.class_of[each] != material.class_of[clip]
            and material.group[each] != material.group[clip]
        ]
        chosen = rng.permutation(len(others))[:_PARTNERS]
        own += [[clip, others[place]] for place in sorted(chosen.tolist())]
    return own, [[first, second] for first in rest for second in rest if first != second]


def _words(label: str) -> str:
    return re.sub(r"[_\s]+", " ", label).strip()


def _words_of(label: str) -> list[str]:
    """A label as it is, with spaces; and the captions that training had for such a label."""
    known: dict[str, list[str]] = json.loads(BUNDLED_CAPTIONS.read_text(encoding="utf-8"))
    plain = _words(label)
    captions = known.get(re.sub(r"[\s-]+", "_", plain.lower()), [])
    return [plain, *(text for text in captions if text != plain)]


def _bundled(name: str) -> str:
    return str(resources.files("manifests") / "examples" / "audio" / f"{name}.flac")


def _background(clap: Clap, labels: Sequence[str]) -> list[tuple[str, str]]:
    """Bundled sounds that are none of these labels, with what they are."""
    table = resources.files("manifests") / "examples" / "audio" / "sources.csv"
    rows = [
        (row["file"].removesuffix(".flac"), row["content"])
        for row in csv.DictReader(io.StringIO(table.read_text(encoding="utf-8")))
        if not row["file"].startswith("mixture")
    ]
    with torch.no_grad():
        mine = clap.embed_text([*labels])
        theirs = clap.embed_text([caption for _, caption in rows])
    near = (theirs @ mine.T).amax(dim=1).tolist()
    return [row for row, similar in zip(rows, near, strict=True) if similar < _SAME_KIND]


def load_base(name_or_uri: str) -> Networks:
    """The networks of a CLAPSep, its adapters merged.

    Raises:
        CheckpointError: it cannot be had, or is another system.
    """
    if registry.is_uri(name_or_uri):
        return load_converted(name_or_uri)
    entry = registry.find(name_or_uri)
    if not registry.is_clapsep(entry):
        raise CheckpointError(f"--from {name_or_uri}: is no CLAPSep; others are not trained here")
    return registry.networks_of(entry)


def separator_settings(settings: FinetuneSettings, encoder: str, decoder: str) -> SeparatorTraining:
    """The settings of the separation stage."""
    return SeparatorTraining(
        encoder=encoder,
        decoder=decoder,
        batch_size=settings.batch_size,
        fixed_statistics=True,
        query_variants=settings.query_variants,
        queries=settings.queries,
        optimiser=settings.optimiser,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """SDR improvements in dB before and after, and what they differ by."""

    before: Summary
    after: Summary
    difference: Summary


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Finetuned:
    """A separator that was fine-tuned, and its figures by set of mixtures and kind of query."""

    networks: Networks
    figures: dict[str, dict[str, Change]]


def finetune(
    base: Networks,
    corpus: Corpus,
    settings: FinetuneSettings,
    *,
    train: str,
    seed: int,
    device: str,
    workers: int,
    processes: engine.Processes,
) -> Finetuned:
    """Trains a separator on a corpus, from the weights that it has.

    Args:
        base: the networks, on the CPU.
        corpus: see :func:`gather`.
        settings: how.
        train: one of :data:`model.training.settings.TRAINED`.
        seed: of what is drawn.
        device: a torch device.
        workers: processes that draw batches ahead.
        processes: those that train together; the first one measures.

    Raises:
        ValueError: a batch cannot be divided among the processes.
    """
    torch.manual_seed(seed)
    config, listener = base.config, base.separator.listener
    clap = base.clap.to(device).requires_grad_(False).eval()
    base.separator.listener = None
    separator = copy.deepcopy(base.separator)  # which shares tensors with the CLAP
    decoder = "query" if train == "query" else "whole"
    encoder = "frozen" if train != "all" else "whole" if config.lora is None else "lora"
    choose_trained(separator, encoder, decoder)
    separator.to(device)
    size = processes.part_of(settings.batch_size, "finetuning.batch_size")
    options = separator_settings(dataclasses.replace(settings, batch_size=size), encoder, decoder)
    store = sound.ClipStore(corpus.samples)
    rate_hz = config.signal.sample_rate_hz
    renderer = sound.Renderer(store, config.signal.window_samples, rate_hz).to(device)
    task = SeparationTask(separator, clap, corpus.material, renderer, options, pairs=corpus.pairs)
    before = _improvements(task.validation, task.average.module) if processes.is_first else {}
    separator.precision = "bf16" if options.optimiser.precision == "bf16" else "fp32"
    near = np.zeros((corpus.material.num_classes, 0), dtype=np.int64)
    lengths = store.lengths.cpu().numpy()
    planner = MixturePlanner(
        corpus.material, lengths, renderer.num_samples, options, near, corpus.mistaken
    )

    def report(learner: engine.Learner) -> None:
        terms = ", ".join(f"{name} {value:.2f}" for name, value in learner.figures().items())
        logger.info("step %d of %d: %s", learner.steps, options.optimiser.steps, terms)

    engine.run_stage(
        task, planner, (seed, 3), options.optimiser, report,
        workers=workers, capture=False, processes=processes,
    )  # fmt: skip
    tuned = task.average.module
    if encoder == "lora":
        lora.merge_adapters(tuned.encoder)
    _step_back(tuned, base.separator.state_dict(), settings.moved_share)
    after = _improvements(task.validation, tuned) if processes.is_first else {}
    tuned.cpu()
    tuned.listener = listener
    return Finetuned(
        networks=dataclasses.replace(base, clap=clap.cpu(), separator=tuned, model_sha256=""),
        figures=_changes(corpus, before, after) if processes.is_first else {},
    )


def _step_back(network: nn.Module, start: Mapping[str, Tensor], share: float) -> None:
    """Leaves each weight at ``share`` of its way from ``start``."""
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                value.lerp_(start[name].to(value), 1.0 - share)


def _improvements(validation: Validation, separator: ClapSep) -> dict[str, npt.NDArray[np.float64]]:
    """SDR improvement of the first of each pair, in dB, float64[P], by kind of query."""
    target, mixture = validation.sources[0].cpu(), validation.mixtures.cpu()
    found = {}
    for mode in MODES:
        estimate = validation.estimates(separator, mode, 0).cpu()
        moments = distortion.measure(torch.stack([estimate, mixture], 1), target, FILTER_TAPS)
        ours, theirs = distortion.filtered(moments).value_db.unbind(1)
        found[mode] = (ours - theirs).numpy()
    return found


def _changes(
    corpus: Corpus, before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, dict[str, Change]]:
    material, first = corpus.material, corpus.pairs[:, 0]
    is_own = np.arange(len(first)) < corpus.num_own
    names = material.class_names[material.class_of[first]]
    sets = {"held-out recordings": is_own}
    own_labels = sorted(set(names[is_own].tolist()))
    if len(own_labels) > 1:
        sets |= {f"held out: {name}": is_own & (names == name) for name in own_labels}
    sets["bundled sounds of other kinds"] = ~is_own
    return {
        title: {
            mode: _change(before[mode][chosen], after[mode][chosen], material.group[first[chosen]])
            for mode in MODES
        }
        for title, chosen in sets.items()
        if chosen.any()
    }


def _change(
    before: npt.NDArray[np.float64], after: npt.NDArray[np.float64], recordings: npt.NDArray[Any]
) -> Change:
    groups = recordings.tolist()
    return Change(
        before=summarise(before, groups),
        after=summarise(after, groups),
        difference=summarise(after - before, groups),
    )


def table(figures: Mapping[str, Mapping[str, Change]]) -> str:
    """The figures as lines of text."""
    lines = ["SDRi in dB (95 % interval over recordings)", ""]
    lines += [
        "| mixtures of | asked by | n | before | after | change |",
        "|---|---|---|---|---|---|",
    ]
    for title, by_mode in figures.items():
        for mode, change in by_mode.items():
            cells = [_shown(each) for each in (change.before, change.after, change.difference)]
            shown = title.replace("|", "\\|")
            lines.append(f"| {shown} | {MODES[mode]} | {change.before.n} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(summary: Summary) -> str:
    if summary.mean is None:
        return "-"
    if summary.ci_low is None or summary.ci_high is None:
        return f"{summary.mean:.2f}"
    return f"{summary.mean:.2f} ({summary.ci_low:.2f} to {summary.ci_high:.2f})"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bundle:
    """What is written: a folder that ``--model`` takes.

    Attributes:
        base: the model that was fine-tuned, as it was named.
        base_sha256: its digest.
        tuned: what came out.
        corpus: what it was trained on.
        heard: the user's clips, with those that were left out.
        settings: how.
        train: one of :data:`model.training.settings.TRAINED`.
        seed: of what was drawn.
    """

    base: str
    base_sha256: str
    tuned: Finetuned
    corpus: Corpus
    heard: Heard
    settings: FinetuneSettings
    train: str
    seed: int

    def write(self, folder: Path) -> str:
        """Writes weights, configuration, figures, clips and card, whole or not at all.

        Returns:
            The SHA-256 of the model.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
            parts = Path(name) / "bundle"
            parts.mkdir()
            sha256 = self._write(parts)
            if folder.is_dir():
                folder.rmdir()
            parts.rename(folder)
        return sha256

    def _write(self, folder: Path) -> str:
        networks = self.tuned.networks
        source = SourceFile(role="fine-tuned from", uri=self.base, sha256=self.base_sha256)
        networks = dataclasses.replace(networks, sources=(source, *networks.sources))
        notes = f"fine-tuned on {len(self.heard.clips)} clips; {CARD} beside it says how"
        digests = {BUNDLE_MODEL: convert.save(str(folder / BUNDLE_MODEL), networks, notes=notes)}
        listener = networks.separator.listener
        if listener is not None:
            model = SourceFile(role="model", uri=BUNDLE_MODEL, sha256=digests[BUNDLE_MODEL])
            digests[BUNDLE_PRESENCE] = convert.save_presence(
                str(folder / BUNDLE_PRESENCE), listener.head, model, notes="that of the base"
            )
        (folder / CONFIG).write_text(to_json(networks.config) + "\n", encoding="utf-8")
        record = {
            "from": {"model": self.base, "sha256": self.base_sha256},
            "train": self.train,
            "seed": self.seed,
            "settings": dataclasses.asdict(self.settings),
            "files": digests,
            "sdri_db": {
                title: {mode: dataclasses.asdict(change) for mode, change in by_mode.items()}
                for title, by_mode in self.tuned.figures.items()
            },
        }
        text = json.dumps(record, indent=1) + "\n"
        (folder / FIGURES).write_text(text, encoding="utf-8")
        self._write_clips(folder / CLIPS)
        (folder / CARD).write_text(self._card(digests), encoding="utf-8")
        return digests.get(BUNDLE_PRESENCE, digests[BUNDLE_MODEL])

    def _write_clips(self, path: Path) -> None:
        """Every clip, what became of it, and the digest of its samples as they were trained on."""
        material = self.corpus.material
        digests = dict(
            zip((clip.name for clip in self.heard.clips), self.heard.sha256, strict=True)
        )
        uses = {"train": "trained on", "val": "held out", "rest": "held out"}
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(("clip", "label", "recording", "use", "sha256_of_samples"))
            for number, clip in enumerate(self.corpus.clips):
                label = str(material.class_names[material.class_of[number]])
                use = uses[str(material.split[number])]
                recording = str(material.group[number])
                writer.writerow((clip.name, label, recording, use, digests.get(clip.name, "")))
            for clip in self._unused:
                row = (clip.name, f"not {clip.label}", clip.recording, "left out")
                writer.writerow((*row, digests[clip.name]))
            for line in self.heard.left_out:
                writer.writerow((line, "", "", "left out", ""))

    @property
    def _unused(self) -> list[Clip]:
        """Clips of other sounds than their label, which is no clip's, or of held-out recordings."""
        used = set(self.corpus.clips)
        return [clip for clip in self.heard.clips if clip not in used]

    def _card(self, digests: Mapping[str, str]) -> str:
        material = self.corpus.material
        rows = []
        for number, name in enumerate(material.class_names.tolist()):
            own = material.class_of == number
            counts = [
                f"{int((own & (material.split == split)).sum())} of "
                f"{len(set(material.group[own & (material.split == split)].tolist()))}"
                for split in ("train", "val", "rest")
            ]
            rows.append(f"| {_cell(name)} | {' | '.join(counts)} |")
        trained = (
            "the decoder, and adapters (LoRA) on the encoder's window attention, merged into it"
        )
        if self.train == "query":
            trained = "the layers by which the query steers the decoder"
        elif self.train == "decoder":
            trained = "the decoder"
        elif self.tuned.networks.config.lora is None:
            trained = "decoder and encoder"
        count = len(self.heard.left_out) + len(self._unused)
        return _CARD.format(
            base=self.base,
            base_sha256=self.base_sha256 or "not known",
            trained=trained,
            steps=self.settings.optimiser.steps,
            batch_size=self.settings.batch_size,
            seed=self.seed,
            figures=table(self.tuned.figures),
            rows="\n".join(rows),
            left_out=f"{count} clips were left out; `{CLIPS}` names them." if count else "",
            files="\n".join(f"- `{name}`: SHA-256 `{sha}`" for name, sha in digests.items()),
        )


_CARD = f"""# A fine-tuned separator

From `{{base}}` (SHA-256 `{{base_sha256}}`), by
`python -m model.training finetune`: {{trained}}, {{steps}} steps of {{batch_size}} mixtures, seed
{{seed}}. CLAP, which embeds the queries, is that of the base, and so is what tells presence, where
the base has it. `{FIGURES}` has all settings, `{CLIPS}` every clip with a digest of its samples.
The licence is that of the base and of the recordings.

## Figures

Two sounds at 0 dB, of recordings that were not trained on. {{figures}}

## Trained on

Clips, and the recordings that they are of; `not …` is what was taken for the label and is something
else. The bundled sounds were mixed in: how this model does on the demo is no test of it.

| sounds | trained on | held out | held out, bundled |
|---|---|---|---|
{{rows}}

{{left_out}}

## Files

{{files}}
"""


def _cell(text: str) -> str:
    return re.sub(r"([|`*_<\[\\])", r"\\\1", text).replace("\n", " ")


def require_new(folder: Path) -> None:
    """Refuses a folder that holds something.

    Raises:
        CorpusError: it does.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CorpusError(f"--output {folder}: is there already; choose another folder")


def run(
    base: str,
    corpora: Sequence[Path],
    runs: Sequence[str],
    output: Path,
    settings: FinetuneSettings,
    *,
    train: str,
    seed: int,
    device: str,
    workers: int,
    processes: engine.Processes,
    say: Callable[[str], None],
) -> None:
    """Fine-tunes a model, says the figures, and writes the bundle.

    Args:
        base: a name of the registry, or a URI.
        corpora: folders of folders, and tables of reviews.
        runs: run folders that the reviews are of.
        output: folder to write.
        settings: how.
        train: one of :data:`model.training.settings.TRAINED`.
        seed: of all that is drawn.
        device: a torch device.
        workers: processes that draw batches ahead.
        processes: those that train together; the first one writes.
        say: is given lines for the user.

    Raises:
        CorpusError: the recordings cannot be trained with, or ``output`` holds something.
        CheckpointError: the model cannot be had, or is no CLAPSep.
    """
    require_new(output)
    reviews = [path for path in corpora if path.suffix.lower() == ".csv"]
    if bool(reviews) != bool(runs):
        raise CorpusError(
            f"--corpus {reviews[0]}: give the run that was reviewed, --run FOLDER"
            if reviews
            else f"--run {runs[0]}: is for reviews; give them as --corpus reviews.csv"
        )
    clips = [clip for path in corpora if path not in reviews for clip in clips_in_folders(path)]
    clips += [clip for path in reviews for clip in clips_judged(path, runs)]
    networks = load_base(base)
    rate_hz = networks.config.signal.sample_rate_hz
    heard = hear(with_one_label(clips), rate_hz)
    for line in heard.left_out:
        say(f"left out: {line}")
    out = held_out(heard.clips, settings.held_out_share, seed)
    corpus = gather(heard, out, networks.clap.eval(), rate_hz, seed)
    say(_counted(corpus, len(out)))
    base_sha256 = networks.model_sha256
    tuned = finetune(
        networks, corpus, settings,
        train=train, seed=seed, device=device, workers=workers,
        processes=processes,
    )  # fmt: skip
    if not processes.is_first:
        return
    bundle = Bundle(
        base=base, base_sha256=base_sha256, tuned=tuned, corpus=corpus, heard=heard,
        settings=settings, train=train, seed=seed,
    )  # fmt: skip
    sha256 = bundle.write(output)
    say(table(tuned.figures))
    say(f"\n{output}: give it as --model {output}; SHA-256 {sha256}")


def _counted(corpus: Corpus, num_out: int) -> str:
    material = corpus.material
    own = [name for number, name in enumerate(material.class_names.tolist())
           if not material.is_open[number] and number not in corpus.mistaken]  # fmt: skip
    trained = {str(material.group[clip]) for clip in material.clips_of("train").tolist()}
    bundled = {str(material.group[clip]) for clip in material.clips_of("train").tolist()
               if material.is_open[material.class_of[clip]]}  # fmt: skip
    return (
        f"{', '.join(own)}: {len(trained - bundled)} recordings to train on, {num_out} held out, "
        f"{len(bundled)} bundled sounds of other kinds mixed in"
    )
