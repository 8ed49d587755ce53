from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from transforms.tables import row_counts

ROOT = Path(__file__).parents[3]


def test_counts_of_this_process_add_up() -> None:
    row_counts.clear()
    row_counts.add(done=1, audio_s=0.5)
    row_counts.add(done=2)
    assert row_counts.snapshot() == {"done": 3, "audio_s": 0.5}
    row_counts.clear()
    assert row_counts.snapshot() == {}


def test_counts_of_worker_processes_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row_counts.clear()
    monkeypatch.setenv(row_counts.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(row_counts, "_INTERVAL_S", 0.0)
    row_counts.add(done=1)
    code = "from transforms.tables import row_counts; row_counts.add(done=2, failed=1)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert row_counts.snapshot(str(tmp_path)) == {"done": 3, "failed": 1}
    row_counts.clear()


def test_a_disk_without_room_for_the_counts_fails_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row_counts.clear()
    monkeypatch.setenv(row_counts.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(row_counts, "_INTERVAL_S", 0.0)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", mock.Mock(side_effect=full))
        row_counts.add(done=1)
    row_counts.add(done=1)
    assert row_counts.snapshot(str(tmp_path)) == {"done": 2}
    row_counts.clear()
