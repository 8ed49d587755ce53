"""Settings for every test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    import tone_runs

# A deadline asserts a time, and machines differ.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")


@pytest.fixture
def loaded() -> Iterator[tone_runs.Loaded]:
    """The tone separator in the place of every model."""
    import tone_runs  # for those who ask only

    with tone_runs.tones_as_models() as found:
        yield found
