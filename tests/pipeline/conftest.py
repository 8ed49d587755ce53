"""What several tests of whole jobs share."""

from __future__ import annotations

import pytest

import tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint of a tiny network with random weights."""
    return tiny_model.write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")
