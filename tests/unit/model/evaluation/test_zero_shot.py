from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from model.evaluation.zero_shot import classify
from model.training.corpus import Corpus
from tones import LABELS, PHRASINGS, ToneClap


def test_a_clap_that_knows_the_tones_is_always_right(corpus: Corpus) -> None:
    for found in classify(ToneClap(), corpus, split="test", heldout=PHRASINGS):
        assert found.num_classes == 6
        assert (found.top1.n, found.top1.mean, found.top5.mean) == (11, 1.0, 1.0)
        assert found.per_class == dict.fromkeys(LABELS, 1.0)


class _Deaf(ToneClap):
    """Hears a bell in everything, and knows held-out phrasing ``two`` only for it."""

    def embed_audio(self, clips: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]]).repeat(len(clips), 1)

    def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
        rows = super().embed_text(texts)
        wrong = torch.tensor([text.endswith("two") for text in texts])
        return torch.where(wrong[:, None], rows.flip(1), rows)


def test_shares_count_clips_and_ranks_count_classes(corpus: Corpus) -> None:
    caption, heldout = classify(_Deaf(), corpus, split="test", heldout=PHRASINGS)
    assert caption.top1.mean == pytest.approx(2 / 11)
    assert caption.top5.mean == pytest.approx(10 / 11)
    assert caption.per_class == {label: float(label == "bell") for label in LABELS}
    # In one of three rounds the order of the classes is reversed: wind has one clip.
    assert heldout.top1.mean == pytest.approx((2 + 1 + 2) / 33)
    assert heldout.per_class["bell"] == pytest.approx(2 / 3)


def test_a_limit_takes_clips_of_every_class_and_all_classes_compete(corpus: Corpus) -> None:
    caption, _ = classify(_Deaf(), corpus, split="test", heldout=PHRASINGS, limit=6)
    assert caption.top1.n == 6
    assert caption.num_classes == 6
    assert set(caption.per_class) == set(LABELS)
    assert caption.top1.mean == pytest.approx(1 / 6)
    assert not math.isnan(caption.top1.low)
