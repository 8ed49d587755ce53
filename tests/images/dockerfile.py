"""As much of a Dockerfile's grammar as ours uses: stages, instructions, variables."""

from __future__ import annotations

import re
import shlex
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction: its name in capitals, and the rest of its line(s)."""

    name: str
    text: str

    def words(self) -> list[str]:
        """The words of the text that are not ``--options``."""
        return [word for word in shlex.split(self.text) if not word.startswith("--")]

    def option(self, name: str) -> str | None:
        """The value of ``--name=value``."""
        found = re.search(rf"--{name}=(\S+)", self.text)
        return found[1] if found else None


@dataclass(slots=True, kw_only=True)
class Stage:
    """What follows one FROM."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def named(self, name: str) -> list[Instruction]:
        """The instructions of one kind, in order."""
        return [instruction for instruction in self.instructions if instruction.name == name]


@dataclass(slots=True, kw_only=True)
class Dockerfile:
    """The arguments before the first FROM with their defaults, and the stages in order."""

    arguments: dict[str, str]
    stages: dict[str, Stage]


def parse(path: Path) -> Dockerfile:
    """Reads a Dockerfile; an instruction may be continued by a backslash."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    parsed = Dockerfile(arguments={}, stages={})
    stage: Stage | None = None
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        name, _, text = line.strip().partition(" ")
        if name == "FROM":
            base, _, alias = text.partition(" AS ")
            stage = Stage(name=alias, base=base)
            parsed.stages[alias] = stage
        elif stage is None:
            parsed.arguments.update([assignment(text)])
        else:
            stage.instructions.append(Instruction(name=name, text=text.strip()))
    return parsed


def assignment(text: str) -> tuple[str, str]:
    """``NAME=value`` as a pair; the value may be quoted or absent."""
    name, _, value = text.partition("=")
    return name, "".join(shlex.split(value))


def expand(text: str, values: Mapping[str, str]) -> str:
    """``${NAME}`` replaced by its value, as Docker does outside RUN."""
    return string.Template(text).substitute(values)
