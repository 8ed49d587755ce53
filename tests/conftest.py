"""Settings for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    import tone_runs

# Before torch is imported. Two OpenMP threads that wait for each other, on a core that others use,
# take ten times as long: single tests ran into their 300 s.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A deadline asserts a time, and machines differ.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")


@pytest.fixture
def loaded() -> Iterator[tone_runs.Loaded]:
    """The tone separator in the place of every model."""
    import tone_runs  # for those who ask only

    with tone_runs.tones_as_models() as found:
        yield found
