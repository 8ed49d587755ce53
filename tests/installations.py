"""Environments in which the project is what its source distribution brings, away from the tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "clapsep-beam"


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """An environment with nothing of the project but what its source distribution brought."""

    python: Path
    site_packages: Path
    elsewhere: Path

    def environment(self) -> dict[str, str]:
        """Variables with which ``python`` is this environment's, and imports from it alone."""
        hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
        kept = {key: value for key, value in os.environ.items() if key not in hidden}
        return {**kept, "PATH": os.pathsep.join([str(self.python.parent), os.environ["PATH"]])}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs this environment's Python in a folder that has nothing to do with the project."""
        return subprocess.run(
            [self.python, *arguments],
            cwd=self.elsewhere,
            env=self.environment(),
            capture_output=True,
            text=True,
        )


def install(sdist: Path, home: Path, *, clean: bool = False) -> Installation:
    """Installs a source distribution into a new environment, without the network.

    The dependencies are the running environment's, all of them. With ``clean`` only those are there
    which the project requires, and what these require: their files, linked into the new one. pip
    then checks that nothing is missing, and at which versions.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "venv"], check=True)
    prefix = {"base": str(home / "venv"), "platbase": str(home / "venv")}
    site_packages = Path(sysconfig.get_path("purelib", vars=prefix))
    (home / "elsewhere").mkdir()
    made = Installation(
        python=home / "venv" / "bin" / "python",
        site_packages=site_packages,
        elsewhere=home / "elsewhere",
    )
    command = ["-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation"]
    if clean:
        for name in (*sorted(_required()), "pip"):
            _link(name, site_packages)
    else:
        running = dict.fromkeys(map(sysconfig.get_path, ("purelib", "platlib")))
        (site_packages / "running_environment.pth").write_text("\n".join(running) + "\n")
        command += ["--no-deps", "--ignore-installed"]
    result = made.run(*command, str(sdist))
    assert result.returncode == 0, result.stderr
    return made


def _required() -> set[str]:
    """The distributions that the project requires, directly or not, without its extras."""
    found: dict[str, set[str]] = {}

    def visit(name: str, extras: set[str]) -> None:
        if name in found and extras <= found[name]:
            return
        found[name] = found.get(name, set()) | extras
        for requirement in _requirements(name, found[name]):
            visit(canonicalize_name(requirement.name), {"", *requirement.extras})

    visit(PROJECT, {""})
    return found.keys() - {PROJECT}


def _requirements(name: str, extras: set[str]) -> Iterator[Requirement]:
    for requirement in map(Requirement, metadata.distribution(name).requires or ()):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
            yield requirement


def _link(name: str, site_packages: Path) -> None:
    """Links a distribution's files, or copies them to another disk; scripts stay where they are."""
    for file in metadata.distribution(name).files or ():
        source, target = Path(str(file.locate())), site_packages / file
        if ".." in file.parts or target.exists() or not source.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)
