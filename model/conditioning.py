"""Conditions: shots pooled, text and audio fused, positive and negative joined, absent = zero."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Normalisation = Literal["normalised", "unnormalised"]
Fusion = Literal["weighted", "sum"]

NORMALISATIONS: tuple[Normalisation, ...] = ("normalised", "unnormalised")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Condition:
    """What a batch of queries asks for, and what it asks to keep out."""

    positive: Tensor
    """float32[B, D]; zeros where there is no positive query."""
    negative: Tensor
    """float32[B, D]; zeros where there is no negative query."""
    normalisation: Normalisation = "normalised"
    """The reference trains, and serves its demo, with a normalised concatenation; its evaluation
    script leaves the concatenation of two unit vectors as it is (norm √2): ``unnormalised``
    reproduces that."""
    reference: Tensor | None = None
    """float32[B, T] at the separator's rate: the target itself, for oracles, which need it."""

    def __post_init__(self) -> None:
        """Checks the shapes and the rule's name."""
        if self.positive.ndim != 2 or self.positive.shape != self.negative.shape:
            raise ValueError(
                f"positive {tuple(self.positive.shape)} and negative {tuple(self.negative.shape)} "
                "must both be [B, D]"
            )
        if self.normalisation not in NORMALISATIONS:
            raise ValueError(
                f"normalisation={self.normalisation!r}: expected one of {NORMALISATIONS}"
            )

    def vector(self) -> Tensor:
        """The decoder's input, float32[B, 2·D]."""
        joint = torch.cat((self.positive, self.negative), dim=-1)
        return F.normalize(joint, dim=-1) if self.normalisation == "normalised" else joint

    def index(self, rows: Tensor) -> Condition:
        """The conditions of some rows of the batch, in a given order."""
        return Condition(
            positive=self.positive[rows],
            negative=self.negative[rows],
            normalisation=self.normalisation,
            reference=None if self.reference is None else self.reference[rows],
        )


def pool_shots(embeddings: Tensor) -> Tensor:
    """The mean of the shots' embeddings, float32[S, D] → float32[D].

    The mean is not normalised again: shots that disagree give a shorter, less certain query, as in
    the reference's mixing of audio and text embeddings.

    Raises:
        ValueError: there is no shot.
    """
    if embeddings.ndim != 2 or embeddings.shape[0] == 0:
        raise ValueError(
            f"expected float[S, D] with at least one shot, found {tuple(embeddings.shape)}"
        )
    return embeddings.mean(dim=0)


def fuse(
    text: Tensor | None,
    audio: Tensor | None,
    *,
    text_weight: float = 0.5,
    fusion: Fusion = "weighted",
) -> Tensor | None:
    """One polarity's embedding from its text and its example clips.

    Args:
        text: float32[D], or None.
        audio: float32[D], or None.
        text_weight: 1 is text alone, 0 audio alone; used where both are given.
        fusion: ``weighted`` is the paper's ``w·text + (1 − w)·audio``; ``sum`` the plain sum of the
            authors' demo.

    Returns:
        float32[D], or None where there is neither.

    Raises:
        ValueError: the weight is outside [0, 1] or the rule is unknown.
    """
    if not 0.0 <= text_weight <= 1.0:
        raise ValueError(f"text_weight={text_weight}: expected a number from 0 to 1")
    if text is None or audio is None:
        return text if audio is None else audio
    if fusion == "sum":
        return text + audio
    if fusion != "weighted":
        raise ValueError(f"fusion={fusion!r}: expected 'weighted' or 'sum'")
    return text_weight * text + (1.0 - text_weight) * audio


def stack(
    positives: list[Tensor | None],
    negatives: list[Tensor | None],
    embedding_dim: int,
    normalisation: Normalisation = "normalised",
) -> Condition:
    """A batch of conditions from one embedding, or None, per polarity and row."""
    absent = torch.zeros(embedding_dim)
    return Condition(
        positive=torch.stack([absent if item is None else item for item in positives]),
        negative=torch.stack([absent if item is None else item for item in negatives]),
        normalisation=normalisation,
    )
