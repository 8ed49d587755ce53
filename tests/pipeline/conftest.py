"""What several tests of whole jobs share."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny_model
import tone_runs


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint of a tiny network with random weights."""
    return tiny_model.write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with mixtures and references."""
    folder = tmp_path_factory.mktemp("clips")
    tone_runs.write_mixtures(folder)
    return folder
