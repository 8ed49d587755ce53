"""docs/architecture.md leads a reader through the files that one row really passes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
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


def test_a_row_passes_every_file_of_the_walk() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PASSED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    passed = json.loads(done.stdout.splitlines()[-1])
    assert [file for file in walk() if file not in passed] == []
