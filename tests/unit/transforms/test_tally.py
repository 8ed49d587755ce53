from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from transforms import tally

ROOT = Path(__file__).parents[3]


def test_counts_of_this_process_add_up() -> None:
    tally.clear()
    tally.add(done=1, audio_s=0.5)
    tally.add(done=2)
    assert tally.snapshot() == {"done": 3, "audio_s": 0.5}
    tally.clear()
    assert tally.snapshot() == {}


def test_counts_of_worker_processes_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tally.clear()
    monkeypatch.setenv(tally.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(tally, "_INTERVAL_S", 0.0)
    tally.add(done=1)
    code = "from transforms import tally; tally.add(done=2, failed=1)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert tally.snapshot(str(tmp_path)) == {"done": 3, "failed": 1}
    tally.clear()
