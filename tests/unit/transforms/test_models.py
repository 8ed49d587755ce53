"""Models in a worker: loaded once, and torch's threads are set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from transforms import model_cache
from transforms.model_cache import ModelChoice, ScorerChoice

MINI = ModelChoice(name="clapsep-mini", device="cpu")


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
    model_cache.forget()


def test_a_model_is_loaded_once_and_its_scorer_with_it() -> None:
    loaded = model_cache.load_model(MINI)
    assert model_cache.load_model(MINI) is loaded
    assert model_cache.load_scorer(ScorerChoice(model=MINI)) is loaded.query_encoder
    model_cache.forget()
    assert model_cache.load_model(MINI) is not loaded


def test_on_a_cpu_an_operation_is_one_threads() -> None:
    """Else a caption's embedding, and with it a stem, would depend on the number of cores."""
    model_cache.load_model(MINI)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(2)
    model_cache.load_scorer(ScorerChoice(model=MINI))  # has been loaded, perhaps by another thread
    assert torch.get_num_threads() == 1
