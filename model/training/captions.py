"""What to call a sound: several phrasings a label, templates around them, and their embeddings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.clap import TextTower
from model.training.corpus import Corpus

TEMPLATES = (
    "{}",
    "{}",
    "{}",
    "the sound of {}",
    "{} in the background",
    "a recording of {}",
    "I hear {}",
    "{}, close up",
)
"""Query augmentation: half of the queries stay as written."""

BUNDLED = Path(__file__).parent / "captions.json"


class CaptionBook:
    """The phrasings of every class of a corpus.

    A class is a label, except for the label ``open``, whose clips are captioned one by one: there
    every distinct caption is a class.

    Args:
        corpus: names the classes and gives a caption a clip.
        phrasings: further captions a label, added to the corpus's own.
    """

    def __init__(self, corpus: Corpus, phrasings: Mapping[str, Sequence[str]]) -> None:
        captions: dict[str, list[str]] = {}
        self.class_of: list[int] = []
        self.is_open: list[bool] = []
        names: dict[str, int] = {}
        for clip in corpus.clips:
            name = clip.caption if clip.label == "open" else clip.label
            if name not in names:
                self.is_open.append(clip.label == "open")
            known = captions.setdefault(name, list(phrasings.get(clip.label, ())))
            for text in (clip.caption, clip.alt_caption):
                if text and text not in known:
                    known.append(text)
            self.class_of.append(names.setdefault(name, len(names)))
        self.names = list(names)
        self.captions = [captions[name] for name in self.names]

    def weights(self, open_share: float) -> npt.NDArray[np.float64]:
        """How often each class is drawn: by the square root of its size, ``open`` ones less."""
        sizes = np.bincount(self.class_of, minlength=len(self.names))
        weights: npt.NDArray[np.float64] = np.sqrt(sizes.astype(np.float64))
        rare = np.array(self.is_open)
        if rare.any() and not rare.all():
            weights[rare] *= open_share / weights[rare].sum()
            weights[~rare] *= (1.0 - open_share) / weights[~rare].sum()
        weights /= weights.sum()
        return weights

    @classmethod
    def load(cls, corpus: Corpus, path: Path = BUNDLED) -> CaptionBook:
        """Reads the phrasings from a JSON object of label → list of captions."""
        return cls(corpus, json.loads(path.read_text(encoding="utf-8")))

    def phrasings(self, name: int) -> list[str]:
        """Every caption of a class in every template."""
        return [
            template.format(caption)
            for template in dict.fromkeys(TEMPLATES)
            for caption in self.captions[name]
        ]

    def draw(self, classes: Sequence[int], rng: np.random.Generator) -> str:
        """A caption for one class, or a compound for several, in a random template."""
        parts = [str(rng.choice(self.captions[index])) for index in classes]
        if len(parts) > 1:
            parts = [part.removesuffix(".") for part in parts]
        compound = (
            ", ".join([*parts[:-2], f"{parts[-2]} and {parts[-1]}"]) if len(parts) > 1 else parts[0]
        )
        return str(rng.choice(TEMPLATES)).format(compound)


class LatentCache:
    """Latents of a frozen text tower, each text computed once.

    They are computed one by one: in a batch, rounding depends on its neighbours, and a resumed run,
    which meets the texts in another order, would no longer repeat an undisturbed one bit for bit.
    """

    def __init__(self, tower: TextTower) -> None:
        self._tower = tower
        self._known: dict[str, Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """float32[N, hidden_size]."""
        for text in texts:
            if text not in self._known:
                with torch.no_grad():
                    self._known[text] = self._tower.latent([text])[0].cpu()
        return torch.stack([self._known[text] for text in texts])
