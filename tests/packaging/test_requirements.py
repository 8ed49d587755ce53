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

from pipelines.preflight import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[A-Za-z0-9.]+)")
RUN_EXTRAS = ("s3", "dask", "train")


@pytest.fixture(scope="module")
def build() -> dict[str, Any]:
    """The arguments that ``setup.py`` gives to ``setuptools.setup``."""
    given: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
        runpy.run_path(str(ROOT / "setup.py"))
    return given


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    matches = [PIN.fullmatch(line) for line in lines if not line.startswith("#")]
    assert all(matches), "a line of constraints.txt is not name==version"
    return {canonicalize_name(match["name"]): match["version"] for match in matches if match}


def requirements(build: dict[str, Any], *extras: str) -> list[Requirement]:
    chosen = [build["install_requires"], *(build["extras_require"][extra] for extra in extras)]
    return [Requirement(text) for group in chosen for text in group]


def third_party_imports() -> Iterator[tuple[str, str]]:
    """Top-level modules that the packages import, each with the file that does."""
    for name in PACKAGES:
        for path in (ROOT / name).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                found: list[str] = []
                if isinstance(node, ast.Import):
                    found = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found = [node.module]
                for module in {item.partition(".")[0] for item in found}:
                    if module not in sys.stdlib_module_names and module not in PACKAGES:
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


def test_what_the_packages_import_is_declared(build: dict[str, Any]) -> None:
    declared = {canonicalize_name(item.name) for item in requirements(build, *RUN_EXTRAS)}
    owners = importlib.metadata.packages_distributions()
    undeclared = [
        f"{path} imports {module}"
        for module, path in third_party_imports()
        if not declared & {canonicalize_name(owner) for owner in owners.get(module, ())}
    ]
    assert undeclared == []


def test_the_distribution_cannot_be_uploaded(build: dict[str, Any]) -> None:
    assert build["name"] == "clapsep-beam"
    assert "Private :: Do Not Upload" in build["classifiers"]
    assert {name.partition(".")[0] for name in build["packages"]} == set(PACKAGES)
