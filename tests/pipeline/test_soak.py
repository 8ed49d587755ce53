"""The soak of ``bench/soak.py``, small: its row_counts and descriptors, not its speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEASURED = {"memory is flat", "speed holds"}  # mean something for many clips on a quiet machine


@pytest.mark.slow
def test_every_row_of_a_soak_is_accounted_for(tmp_path: Path) -> None:
    result = tmp_path / "soak.json"
    command = [sys.executable, "-m", "bench.soak", "--clips", "300", "--output", str(result)]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    found = json.loads(result.read_text(encoding="utf-8"))
    failed = {name for name, holds in found["checks"].items() if not holds}
    assert failed <= MEASURED, found
    assert found["refused"] > 0
    assert found["passing_errors"] >= 3
    assert sum(found["expected_reasons"].values()) == 15 + found["refused"]
