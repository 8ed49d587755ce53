"""What the code imports is declared, and what is declared is pinned."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from pipelines.preflight import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[A-Za-z0-9.]+)")
RUN_EXTRAS = ("s3", "dask")
RUN_ELSEWHERE = {ROOT / "tests/golden/run_baselines.py"}  # in the environments of other projects


@pytest.fixture(scope="module")
def build() -> dict[str, Any]:
    """The arguments that ``setup.py`` gives to ``setuptools.setup``."""
    given: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
        runpy.run_path(str(ROOT / "setup.py"))
    return given


def pins_of(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    matches = [PIN.fullmatch(line) for line in lines if not line.startswith("#")]
    assert all(matches), f"a line of {name} is not name==version"
    return {canonicalize_name(match["name"]): match["version"] for match in matches if match}


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    return pins_of("constraints.txt")


def requirements(build: dict[str, Any], *extras: str) -> list[Requirement]:
    chosen = [build["install_requires"], *(build["extras_require"][extra] for extra in extras)]
    return [Requirement(text) for group in chosen for text in group]


def third_party_imports(*folders: str) -> Iterator[tuple[str, str]]:
    """Top-level modules of others that these folders import, each with the file that does."""
    own = {*PACKAGES, *(path.stem for path in (ROOT / "tests").iterdir()), "bench"}
    own.add("setuptools")  # in every environment: venv's up to Python 3.11, torch's after
    for folder in folders:
        for path in sorted({*(ROOT / folder).rglob("*.py")} - RUN_ELSEWHERE):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                found: list[str] = []
                if isinstance(node, ast.Import):
                    found = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found = [node.module]
                for module in {item.partition(".")[0] for item in found}:
                    if module not in sys.stdlib_module_names and module not in own:
                        yield module, path.relative_to(ROOT).as_posix()


def test_the_pins_satisfy_every_requirement(build: dict[str, Any], pins: dict[str, str]) -> None:
    unmet = [
        str(requirement)
        for requirement in requirements(build, *build["extras_require"])
        if not requirement.specifier.contains(pins.get(canonicalize_name(requirement.name), "0.0"))
    ]
    assert unmet == []


def test_requirements_have_lower_bounds_and_no_exact_versions(build: dict[str, Any]) -> None:
    for requirement in requirements(build, *build["extras_require"]):
        operators = {specifier.operator for specifier in requirement.specifier}
        assert ">=" in operators, requirement
        assert "==" not in operators, requirement


def test_the_environment_has_the_pinned_versions(
    build: dict[str, Any], pins: dict[str, str]
) -> None:
    """Else the suite says nothing about the versions that the README tells users to install."""
    for requirement in requirements(build, "test", *RUN_EXTRAS):
        installed = importlib.metadata.version(requirement.name).partition("+")[0]
        assert installed == pins[canonicalize_name(requirement.name)], requirement.name


@pytest.mark.parametrize(
    ("folders", "extras"), [(PACKAGES, RUN_EXTRAS), (("tests",), ("test", *RUN_EXTRAS))]
)
def test_what_is_imported_is_declared(
    build: dict[str, Any], folders: tuple[str, ...], extras: tuple[str, ...]
) -> None:
    declared = {canonicalize_name(item.name) for item in requirements(build, *extras)}
    owners = importlib.metadata.packages_distributions()
    undeclared = [
        f"{path} imports {module}"
        for module, path in third_party_imports(*folders)
        if not declared & {canonicalize_name(owner) for owner in owners.get(module, ())}
    ]
    assert undeclared == []


def test_the_lowest_versions_are_the_lower_bounds(build: dict[str, Any]) -> None:
    """`make lowest-versions` tries what `constraints-lowest.txt` names: exactly the bounds."""
    lowest = pins_of("constraints-lowest.txt")
    untried = {
        str(requirement): lowest.get(canonicalize_name(requirement.name))
        for requirement in requirements(build, *build["extras_require"])
        if Version(lowest.get(canonicalize_name(requirement.name), "0.0"))
        != max(
            Version(specifier.version)
            for specifier in requirement.specifier
            if specifier.operator == ">="
        )
    }
    assert untried == {}, "make lowest-pins writes the file anew"


def test_the_distribution_cannot_be_uploaded(build: dict[str, Any]) -> None:
    assert build["name"] == "clapsep-beam"
    assert "Private :: Do Not Upload" in build["classifiers"]
    assert {name.partition(".")[0] for name in build["packages"]} == set(PACKAGES)
