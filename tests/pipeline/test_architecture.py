"""docs/architecture.md leads a reader through the files that one row really passes."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_MODULES, MOST_ROOMS, MOST_FILES_OF_A_ROW = 140, 20, 60
"""The bounds of docs/adr/0003-files-that-change-together-stand-together.md."""
PASSED = """
import json, sys
sys.path.insert(0, "bench")
import structure
print("", json.dumps(structure.files_of_one_row()), sep="\\n")
"""


def walk() -> list[str]:
    """The files of the page's table, in its order."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split("\n## One row, ", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return re.findall(r"`([\w/]+\.py)`", "".join(lines))


def test_the_walk_names_no_file_twice_and_begins_and_ends_where_a_row_does() -> None:
    files = walk()
    assert len(files) == len(set(files))
    assert files[0] == "pipelines/separate.py"
    assert files[-1].startswith("transforms/tables/")


def test_the_layout_keeps_within_its_bounds() -> None:
    spec = importlib.util.spec_from_file_location("structure", ROOT / "bench" / "structure.py")
    assert spec
    assert spec.loader
    structure = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(structure)
    assert len(structure.modules()) <= MOST_MODULES
    assert max(structure.floors().values()) <= MOST_ROOMS


@cache
def passed() -> list[str]:
    """The files that a row of the demo passes, recorded in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PASSED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    files: list[str] = json.loads(done.stdout.splitlines()[-1])
    return files


def test_a_row_passes_every_file_of_the_walk() -> None:
    assert [file for file in walk() if file not in passed()] == []


def test_a_row_passes_few_files() -> None:
    assert len(passed()) <= MOST_FILES_OF_A_ROW
