"""The README's pictures are small, and a command makes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import browser

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "pictures"
NAMES = ("extraction.png", "report.png")
MAX_BYTES = 150_000


def _require_a_picture(path: Path) -> None:
    assert 10_000 < path.stat().st_size < MAX_BYTES
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width >= 1_000
        assert len(picture.convert("RGB").getcolors(maxcolors=2**24) or []) >= 16


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_small(name: str) -> None:
    _require_a_picture(PICTURES / name)


@pytest.mark.slow
@pytest.mark.browser
def test_the_command_makes_the_pictures(tmp_path: Path) -> None:
    if browser.CHROMIUM is None:
        pytest.skip("needs chromium")
    command = [sys.executable, PICTURES / "make.py", "--output", tmp_path / "made"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == sorted(NAMES)
    for name in NAMES:
        _require_a_picture(tmp_path / "made" / name)
