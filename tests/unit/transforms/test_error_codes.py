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
    r'MODEL_ERROR = "(\w+)"',
    r'NOT_ALLOWED = "(\w+)"',
    r'OWN_OUTPUT = "(\w+)"',
    r'BROKEN: Final = "(\w+)"',
    r'AUDIO_COLUMN: Final = "(\w+)"',
    r'f"(stem_)\{error_code\(',
)
LITERAL = re.compile(
    r"(?<!class )(?:failed\(\s*[\w.]+,\s*[\w\"]+,|AudioError\(|SeparationError\(|error_type=)\s*"
    r'(?P<code>f?"[^"]*"|[\w.]+(?:\([^()]*\))?)'
)
PASSED_ON = re.compile(
    r"NOT_ALLOWED|OWN_OUTPUT|UNSUPPORTED|MODEL_ERROR|BROKEN|AUDIO_COLUMN|code|error_type|error_code\(err(or)?\)|(err(or)?|found)\.code"
    r"|(result|failure)\.error_type"
)


def _given() -> set[str]:
    codes = set()
    further = [
        ROOT / "manifests" / "shards.py",
        ROOT / "model" / "inference.py",
        ROOT / "pipelines" / "export_graph.py",
    ]
    for path in [*(ROOT / "transforms").rglob("*.py"), *further]:
        source = path.read_text(encoding="utf-8")
        for pattern in PATTERNS:
            codes.update(re.findall(pattern, source))
        if path.name == "files.py":
            body = source.split("def error_code")[1].split("\ndef ")[0]
            codes.update(re.findall(r'return "(\w+)"', body))
    return codes


def test_every_code_is_documented_and_every_documented_code_exists() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(\w+)…?` \|", text, re.M)) - {"error_type"}
    of_exports = (ROOT / "docs" / "exporting.md").read_text(encoding="utf-8")
    documented |= set(re.findall(r"`(\w+)`\s+\(", of_exports.split("is a dead letter:")[1]))
    assert documented == _given()


def test_no_code_is_given_in_a_way_that_the_test_above_does_not_see() -> None:
    given = _given()
    for path in [*(ROOT / "transforms").rglob("*.py"), ROOT / "model" / "inference.py"]:
        for found in LITERAL.finditer(path.read_text(encoding="utf-8")):
            code = found["code"]
            known = (
                code.strip('f"').split("{")[0] in given
                if '"' in code
                else PASSED_ON.fullmatch(code)
            )
            assert known, f"{path.name}: {found[0]}"
