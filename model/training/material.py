"""Prepares what a training run is made from: clips, classes, their words, a tagger's answers.

A corpus is a folder with ``manifest.csv`` and the clips it names; its columns are path, label,
caption, alt_caption, split and group. The clips of the label ``open`` are captioned one by one:
there every caption is a class. A teacher file holds what a tagger with AudioSet's classes says
about every clip; docs/training.md has the script that makes one.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
_BY_CLIP = (
    "path", "class_of", "split", "group", "caption_of", "logits", "scores", "embedding"
)  # fmt: skip
TEMPLATES = (
    "the sound of {}",
    "{} in the background",
    "a recording of {}",
    "I hear {}",
    "{}, close up",
)
BUNDLED_CAPTIONS = Path(__file__).parent / "captions.json"
_OPEN = "open"
_FEWEST_LABELS = 2
_COLUMNS = ("path", "label", "caption", "split")
_TEACHER = ("path", "classes", "logits", "embedding")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """Clips and words, by number; texts are known by their latents alone."""

    path: npt.NDArray[Any]
    """str[N]: the name of the corpus's folder, a slash, and the path in its manifest."""
    class_of: Ints
    split: npt.NDArray[Any]
    """str[N], ``train`` or ``val``."""
    group: npt.NDArray[Any]
    """str[N], the recording that a clip was cut from; its own path where none is named."""
    caption_of: Ints
    """int64[N], the text that is a clip's own caption."""
    logits: Floats
    """float[N, K], a tagger's mean logits."""
    scores: Floats
    """float[N, K], its mean probabilities."""
    embedding: Floats
    is_open: npt.NDArray[np.bool_]
    """bool[C], classes that are a single caption."""
    class_names: npt.NDArray[Any]
    latents: Floats
    """float[M, H], of every text."""
    wordings: Ints
    """int64[W, 3]: class, text, and 1 where the caption stands alone, 0 in a template."""
    tagger_names: Ints
    """int64[K, V], texts that name the tagger's classes."""
    pairs: Ints
    pair_texts: Ints
    triples: Ints
    triple_texts: Ints

    @classmethod
    def load(cls, path: Path) -> Material:
        """Reads the file that :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(**{field.name: stored[field.name] for field in dataclasses.fields(cls)})

    def save(self, path: Path) -> None:
        """Writes everything to a compressed ``.npz`` file."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        with path.open("wb") as stream:
            np.savez_compressed(stream, **values)

    def only(self, chosen: npt.NDArray[Any]) -> Material:
        """Some of the clips, by mask or number, and everything else."""
        return dataclasses.replace(self, **{name: getattr(self, name)[chosen] for name in _BY_CLIP})

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.is_open)

    def clips_of(self, split: str) -> Ints:
        """Numbers of the clips of a split."""
        return np.nonzero(self.split == split)[0]

    def files_in(self, corpora: Sequence[Path]) -> list[Path]:
        """The clips in the folders of their corpora.

        Raises:
            ValueError: the plan names another corpus, or two of them have one name.
        """
        folders = _by_name(corpora)
        files = []
        for path in self.path.tolist():
            corpus, _, name = path.partition("/")
            if corpus not in folders:
                raise ValueError(
                    f"the plan names the corpus {corpus!r}; --corpus has {sorted(folders)}"
                )
            files.append(folders[corpus] / name)
        return files

    @functools.cached_property
    def recordings(self) -> dict[int, list[list[int]]]:
        """Training clips by class and, within a class, by recording."""
        tree: dict[int, dict[str, list[int]]] = {}
        for clip in self.clips_of("train").tolist():
            groups = tree.setdefault(int(self.class_of[clip]), {})
            groups.setdefault(str(self.group[clip]), []).append(clip)
        return {name: list(tree[name].values()) for name in sorted(tree)}

    @functools.cached_property
    def labels(self) -> list[int]:
        """Classes with training clips that are not single captions."""
        return [name for name in self.recordings if not self.is_open[name]]

    @functools.cached_property
    def held_out(self) -> dict[int, list[int]]:
        """Validation clips by class, without those of single captions."""
        found: dict[int, list[int]] = {}
        for clip in self.clips_of("val").tolist():
            name = int(self.class_of[clip])
            if not self.is_open[name]:
                found.setdefault(name, []).append(clip)
        return found

    @functools.cached_property
    def texts_of(self) -> dict[int, tuple[list[int], list[int]]]:
        """By class: its captions as written, and in templates."""
        found: dict[int, tuple[list[int], list[int]]] = {}
        for name, text, bare in self.wordings.tolist():
            found.setdefault(name, ([], []))[0 if bare else 1].append(text)
        return found

    def compounds(self, size: int) -> list[tuple[tuple[int, ...], int]]:
        """Classes and the text that names them together, of classes with training clips."""
        classes, texts = {
            2: (self.pairs, self.pair_texts),
            3: (self.triples, self.triple_texts),
        }[size]
        return [
            (tuple(names), int(text))
            for names, text in zip(classes.tolist(), texts, strict=True)
            if all(name in self.recordings for name in names)
        ]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PreparationSettings:
    """Which clips are taken, and how many texts are made of the words for them."""

    clips_per_recording: int = 6
    worst_rank: int = 60
    """Training clips whose own label the teacher puts at this place or a later one are left out, if
    the teacher file has the places (``rank``)."""
    pairs: int = 4_800
    triples: int = 1_700
    """Texts that name two and three labels."""
    templates_per_caption: int = 3
    seed: int = 0


class _Texts:
    """Texts by number, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    @property
    def all(self) -> list[str]:
        return list(self._numbers)


def prepare(
    corpora: Sequence[Path],
    teacher: Path,
    captions: Path,
    latent: Callable[[Sequence[str]], npt.NDArray[np.float32]],
    settings: PreparationSettings,
) -> Material:
    """Chooses clips and words.

    Args:
        corpora: folders of labelled clips, with different names.
        teacher: ``.npz`` file of ``path`` str[N] (as :attr:`Material.path`), ``classes`` str[K],
            ``logits`` float[N, K], ``embedding`` float[N, E] and, if it has them, ``scores``
            float[N, K] (the sigmoid of the logits by default) and ``rank`` int[N].
        captions: JSON object of label → further captions.
        latent: gives the latents of texts, float32[M, H] with a mean square of 1.
        settings: see there.

    Raises:
        ValueError: a manifest or the teacher file lacks a column, a cell, an array or a clip, there
            are too few labels, or two corpora have one name.
    """
    rng = np.random.default_rng(settings.seed)
    heard, folders = _read_teacher(teacher), _by_name(corpora).values()
    rows = _chosen([row for corpus in folders for row in _rows(corpus)], heard, settings, rng)
    _require_labels(rows, settings.worst_rank)
    where = {path: number for number, path in enumerate(heard["path"].tolist())}
    missing = [row["path"] for row in rows if row["path"] not in where]
    if missing:
        raise ValueError(f"{teacher}: {len(missing)} clips are not in it, {missing[0]} first")
    picked = np.array([where[row["path"]] for row in rows])
    texts, known = _Texts(), json.loads(captions.read_text(encoding="utf-8"))
    words = _captions_by_class(rows, known)
    names = list(words)
    is_open = [
        all(_class_of(row) != name or row["label"] == _OPEN for row in rows) for name in names
    ]
    wordings = []
    for number, name in enumerate(names):
        for caption in words[name]:
            wordings.append((number, texts(caption), 1))
            count = 1 if is_open[number] else settings.templates_per_caption
            for template in rng.permutation(len(TEMPLATES))[:count]:
                wordings.append((number, texts(TEMPLATES[template].format(caption)), 0))
    labels = [number for number, rare in enumerate(is_open) if not rare]
    compounds = {
        size: [
            _compound(size, labels, [words[name] for name in names], texts, rng) for _ in range(n)
        ]
        if len(labels) >= size
        else []
        for size, n in ((2, settings.pairs), (3, settings.triples))
    }
    number_of = {name: number for number, name in enumerate(names)}
    return Material(
        path=np.array([row["path"] for row in rows]),
        class_of=np.array([number_of[_class_of(row)] for row in rows]),
        split=np.array([row["split"] for row in rows]),
        group=np.array([row["group"] for row in rows]),
        caption_of=np.array([texts(row["caption"]) for row in rows]),
        logits=heard["logits"][picked],
        scores=heard["scores"][picked],
        embedding=heard["embedding"][picked],
        is_open=np.array(is_open),
        class_names=np.array(names),
        wordings=np.array(wordings),
        tagger_names=np.array(
            [
                [texts(text) for text in (low, f"the sound of {low}", low.split(",")[0])]
                for low in (name.lower() for name in heard["classes"].tolist())
            ]
        ),
        pairs=np.array([classes for classes, _ in compounds[2]]).reshape(-1, 2),
        pair_texts=np.array([text for _, text in compounds[2]], dtype=np.int64),
        triples=np.array([classes for classes, _ in compounds[3]]).reshape(-1, 3),
        triple_texts=np.array([text for _, text in compounds[3]], dtype=np.int64),
        latents=latent(texts.all),
    )


def _read_teacher(path: Path) -> dict[str, npt.NDArray[Any]]:
    with np.load(path, allow_pickle=False) as stored:
        heard = {name: stored[name] for name in stored.files}
    missing = [name for name in _TEACHER if name not in heard]
    if missing:
        raise ValueError(
            f"{path}: arrays {missing} are missing; docs/training.md describes the file"
        )
    if "scores" not in heard:
        heard["scores"] = 1.0 / (1.0 + np.exp(-heard["logits"].astype(np.float32)))
    return heard


def _rows(corpus: Path) -> list[dict[str, str]]:
    manifest = corpus / "manifest.csv"
    with manifest.open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    missing = [name for name in _COLUMNS if rows and name not in rows[0]]
    if missing or not rows:
        raise ValueError(f"{manifest}: no rows, or no columns {missing}; needed: {_COLUMNS}")
    used = [row for row in rows if row["split"] in ("train", "val")]
    for row in used:
        if lacking := [name for name in _COLUMNS if not row[name]]:
            raise ValueError(f"{manifest}: the row of {row['path']!r} has no {lacking[0]}")
    return [
        row
        | {
            "path": f"{corpus.name}/{row['path']}",
            "group": f"{corpus.name}/{row.get('group') or row['path']}",
        }
        for row in used
    ]


def _require_labels(rows: Sequence[Mapping[str, str]], worst_rank: int) -> None:
    """Refuses clips that mixtures, or the pairs that validate, cannot be made of."""
    for split in ("train", "val"):
        found = {row["label"] for row in rows if row["split"] == split} - {_OPEN}
        if len(found) < _FEWEST_LABELS:
            raise ValueError(
                f"manifest.csv: clips of {len(found)} labels have the split {split!r}; expected "
                f"{_FEWEST_LABELS} or more, without {_OPEN!r} and training clips that the teacher "
                f"file gives a rank from {worst_rank}"
            )


def _chosen(
    rows: list[dict[str, str]],
    heard: dict[str, npt.NDArray[Any]],
    settings: PreparationSettings,
    rng: np.random.Generator,
) -> list[dict[str, str]]:
    """The clips that are used, in the order of the manifests."""
    ranks: dict[str, int] = {}
    if "rank" in heard:
        ranks = dict(zip(heard["path"].tolist(), heard["rank"].tolist(), strict=True))
    taken: collections.Counter[tuple[str, str]] = collections.Counter()
    kept = []
    for place in rng.permutation(len(rows)).tolist():
        row = rows[place]
        of_recording = row["group"], row["label"]
        if row["split"] == "train":
            if ranks.get(row["path"], 0) >= settings.worst_rank:
                continue
            if taken[of_recording] >= settings.clips_per_recording:
                continue
            taken[of_recording] += 1
        kept.append(place)
    return [rows[place] for place in sorted(kept)]


def _by_name(corpora: Sequence[Path]) -> dict[str, Path]:
    """The folders of corpora by their names, with which the paths of a plan begin."""
    folders: dict[str, Path] = {}
    for corpus in corpora:
        if corpus.name in folders:
            raise ValueError(
                f"--corpus {folders[corpus.name]} and {corpus}: a plan tells corpora apart by the "
                "names of their folders; rename one of them"
            )
        folders[corpus.name] = corpus
    return folders


def _captions_by_class(
    rows: Sequence[dict[str, str]], known: dict[str, list[str]]
) -> dict[str, list[str]]:
    """The captions of each class: those that are known for its label, then those of its clips."""
    words: dict[str, list[str]] = {}
    for row in rows:
        fresh = () if row["label"] == _OPEN else known.get(row["label"], ())
        own = words.setdefault(_class_of(row), list(fresh))
        own += [
            text for text in (row["caption"], row.get("alt_caption")) if text and text not in own
        ]
    return words


def _class_of(row: dict[str, str]) -> str:
    return row["caption"] if row["label"] == _OPEN else row["label"]


def _compound(
    size: int,
    labels: Sequence[int],
    words: Sequence[Sequence[str]],
    texts: _Texts,
    rng: np.random.Generator,
) -> tuple[list[int], int]:
    """Several labels, and a text that names them all."""
    classes = rng.choice(labels, size=size, replace=False).tolist()
    parts = [str(rng.choice(words[name])).removesuffix(".") for name in classes]
    joined = ", ".join([*parts[:-2], f"{parts[-2]} and {parts[-1]}"])
    template = TEMPLATES[int(rng.integers(len(TEMPLATES)))] if rng.random() < 0.6 else "{}"
    return classes, texts(template.format(joined))
