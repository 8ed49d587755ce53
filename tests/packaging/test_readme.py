"""What the README names exists."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from pipelines.clapsep import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z-]+)", TEXT))))
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m ([a-z_]+\.[a-z_.]+)", TEXT))))
def test_commands_exist(module: str) -> None:
    assert importlib.util.find_spec(module) is not None


@pytest.mark.parametrize(
    ("word", "module"), re.findall(r"^\| `clapsep (\w+)[^`]*` \| `([\w.]+)` \|", TEXT, re.MULTILINE)
)
def test_words_of_the_console_script_run_the_modules_beside_them(word: str, module: str) -> None:
    assert COMMANDS[word][0] == module


def test_every_word_of_the_console_script_is_in_the_table() -> None:
    assert set(re.findall(r"^\| `clapsep (\w+)", TEXT, re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http|#)([^)#]+)", TEXT))))
def test_linked_files_exist(link: str) -> None:
    assert (ROOT / link).exists()
