"""Runs at the start of every process that has this folder on its PYTHONPATH: workers of tests."""

from __future__ import annotations

import broken_machine

broken_machine.install()
