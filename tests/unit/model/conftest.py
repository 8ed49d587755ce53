"""What several tests of weights share."""

from __future__ import annotations

from pathlib import Path

import pytest

from golden import pairs
from model.checkpoints.loading import Networks
from model.config import TINY


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests that other tests remembered are not known here."""
    monkeypatch.setenv("CLAPSEP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pair() -> pairs.Pair:
    """A published pair of the tiny size, which may be changed."""
    made = pairs.formula_pair(TINY)
    return pairs.Pair(clap=dict(made.clap), clapsep=dict(made.clapsep))


@pytest.fixture
def networks(tmp_path: Path, pair: pairs.Pair) -> Networks:
    """The network of that pair."""
    return pairs.load(pairs.write(tmp_path, pair))
