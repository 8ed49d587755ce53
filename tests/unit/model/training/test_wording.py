"""A refitted text projection keeps the labels' places and brings other words nearer to them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.clap import Clap
from model.config import ClapSepConfig
from model.training import wording
from model.training.captions import CaptionBook
from model.training.corpus import Corpus
from model.training.wording import WordingSettings, refit


@pytest.fixture(autouse=True)
def few_compounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence encoder reads each of them by itself, and four classes have few to give."""
    monkeypatch.setattr(wording, "_NUM_COMPOUNDS", 50)


def _clap(config: ClapSepConfig) -> Clap:
    torch.manual_seed(0)
    return Clap(config.clap).prepare()


def test_labels_keep_their_places(corpus_folder, tiny_config: ClapSepConfig) -> None:
    clap = _clap(tiny_config)
    book = CaptionBook.load(Corpus.load(corpus_folder))
    labels = [index for index, rare in enumerate(book.is_open) if not rare]
    texts = [book.phrasings(index) for index in labels]
    before = torch.stack([F.normalize(clap.embed_text(each).mean(0), dim=0) for each in texts])
    audio = clap.state_dict()["audio_projection.0.weight"].clone()
    weights = clap.state_dict()["text_projection.0.weight"].clone()
    refit(clap, book, WordingSettings(steps=200, noise=0.1, weight_decay=0.0))
    after = [clap.embed_text(each) for each in texts]
    assert not torch.equal(clap.state_dict()["text_projection.0.weight"], weights)
    assert torch.equal(clap.state_dict()["audio_projection.0.weight"], audio)
    for place, embedded in zip(before, after, strict=True):
        assert (embedded @ place).mean() > 0.9


def test_same_seed_same_projection(corpus_folder, tiny_config: ClapSepConfig) -> None:
    book = CaptionBook.load(Corpus.load(corpus_folder))
    found = []
    for _ in range(2):
        clap = _clap(tiny_config)
        refit(clap, book, WordingSettings(steps=5))
        found.append(clap.embed_text(["a horn sounding"]))
    assert torch.equal(*found)
