from __future__ import annotations

from pathlib import Path

import pytest

from model.training.corpus import Corpus
from tones import RATE_HZ, write_corpus


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.setenv("CLAPSEP_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "corpus"
    folder.mkdir()
    return Corpus.load(write_corpus(folder), sample_rate_hz=RATE_HZ, splits=("train", "test"))
