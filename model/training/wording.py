"""The wording stage: a text projection that places words it has not read near those it has.

The contrastive stage fits the projection to its captions so closely that other wordings of the same
sound land elsewhere. Here it is fitted again, from nothing, to the places that the labels'
captions have on average: from mixtures of two captions of a label, with noise. Captions of single
clips and of several sounds keep the places they had.
"""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.clap import Clap
from model.training.captions import CaptionBook, LatentCache

_NUM_COMPOUNDS = 2_000
_KEPT_A_STEP = 128
_SCALE = 20.0
_CLOSENESS_WEIGHT = 5.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WordingSettings:
    """How the projection is fitted again."""

    steps: int = 1_000
    learning_rate: float = 1e-3
    """Falls linearly to zero."""
    weight_decay: float = 1.0
    noise: float = 1.0
    """Added to latents, as a share of their root mean square."""
    mixed_share: float = 0.5
    """Share of the latents that lie between two captions of the label."""
    seed: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Words:
    """Latents, and where they belong."""

    labels: tuple[Tensor, ...]
    """float32[captions of the label, H] a label."""
    centres: Tensor
    """float32[labels, D], unit norm."""
    kept: Tensor
    """float32[K, H]: captions of single clips and of several sounds."""
    kept_places: Tensor
    """float32[K, D], unit norm."""


def refit(clap: Clap, book: CaptionBook, settings: WordingSettings) -> None:
    """Replaces the text projection of a CLAP.

    Args:
        clap: after the contrastive stage; its towers and audio projection stay as they are.
        book: captions of every class; at least two of the classes are labels.
        settings: see there.
    """
    rng = np.random.default_rng(settings.seed)
    words = _gather(clap, book, rng)
    torch.manual_seed(settings.seed)
    projection = copy.deepcopy(clap.text_projection).requires_grad_(True)
    for layer in projection.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    optimiser = torch.optim.AdamW(
        projection.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    for step in range(settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * (1 - step / settings.steps)
        loss = _loss(projection, words, settings, rng)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    clap.text_projection.load_state_dict(projection.state_dict())


def _loss(
    projection: nn.Module, words: _Words, settings: WordingSettings, rng: np.random.Generator
) -> Tensor:
    drawn = torch.stack([_between(label, settings, rng) for label in words.labels])
    drawn += settings.noise * drawn.square().mean().sqrt() * torch.randn_like(drawn)
    placed = F.normalize(projection(drawn), dim=-1)
    truth = torch.arange(len(words.labels))
    told_apart = F.cross_entropy(_SCALE * placed @ words.centres.T, truth)
    distance = 1 - (placed * words.centres).sum(dim=-1).mean()
    chosen = torch.from_numpy(rng.integers(len(words.kept), size=_KEPT_A_STEP))
    kept = F.normalize(projection(words.kept[chosen]), dim=-1)
    moved = 1 - (kept * words.kept_places[chosen]).sum(dim=-1).mean()
    loss: Tensor = told_apart + _CLOSENESS_WEIGHT * (distance + moved)
    return loss


def _between(latents: Tensor, settings: WordingSettings, rng: np.random.Generator) -> Tensor:
    first, second = (latents[int(index)] for index in rng.integers(len(latents), size=2))
    share = float(rng.random()) if rng.random() < settings.mixed_share else 1.0
    return share * first + (1 - share) * second


def _gather(clap: Clap, book: CaptionBook, rng: np.random.Generator) -> _Words:
    cache = LatentCache(clap.text_branch)
    labels = [index for index, rare in enumerate(book.is_open) if not rare]
    rare = [index for index in range(len(book.names)) if index not in labels]
    texts = [text for index in rare for text in book.captions[index]]
    for _ in range(_NUM_COMPOUNDS):
        named = rng.choice(labels, size=min(len(labels), int(rng.integers(2, 4))), replace=False)
        texts.append(book.draw(named.tolist(), rng))
    latents = tuple(cache(book.phrasings(index)) for index in labels)
    kept = cache(texts)
    with torch.no_grad():
        places = [F.normalize(clap.text_projection(latent), dim=-1) for latent in (*latents, kept)]
    centres = torch.stack([F.normalize(place.mean(dim=0), dim=0) for place in places[:-1]])
    return _Words(labels=latents, centres=centres, kept=kept, kept_places=places[-1])
