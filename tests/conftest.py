"""Settings for every test."""

from __future__ import annotations

import hypothesis

# A deadline asserts a time, and machines differ.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")
