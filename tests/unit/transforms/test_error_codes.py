"""docs/errors.md lists the codes that the source can give, and no others."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PATTERNS = (
    r'AudioError\(\s*"(\w+)"',
    r'SeparationError\(\s*"(\w+)"',
    r'error_type="(\w+)"',
    r'failed\(\s*[\w.]+,\s*"\w+",\s*"(\w+)"',
    r'code, message = "(\w+)"',
    r'UNSUPPORTED = "(\w+)"',
)


def _given() -> set[str]:
    codes = set()
    for path in (ROOT / "transforms").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        for pattern in PATTERNS:
            codes.update(re.findall(pattern, source))
        if path.name == "audio_io.py":
            body = source.split("def error_code")[1].split("\ndef ")[0]
            codes.update(re.findall(r'return "(\w+)"', body))
    return codes


def test_every_code_is_documented_and_every_documented_code_exists() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(\w+)` \|", text, re.M)) - {"error_type"}
    assert documented == _given()
