"""Imports have no cycle, and what needs neither Beam nor torch is imported without them."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pipelines.preflight import PACKAGES

ROOT = Path(__file__).resolve().parents[2]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, str]:
    """The text of each module of the product, by the module's name."""
    files = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    return {module_name(path): path.read_text(encoding="utf-8") for path in files}


def named_modules(source: str, modules: Mapping[str, str]) -> Iterator[str]:
    """The modules that a source names in its import statements, inside of functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield from [full] if full in modules else {node.module} & modules.keys()


def with_packages(name: str) -> Iterator[str]:
    """A module and the packages around it, which Python imports before it."""
    parts = name.split(".")
    yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def imports_of(modules: Mapping[str, str]) -> dict[str, set[str]]:
    """What each module has imported, without itself and the packages around it."""
    return {
        name: {
            imported
            for named in named_modules(source, modules)
            for imported in with_packages(named)
        }
        - set(with_packages(name))
        for name, source in modules.items()
    }


def test_no_module_imports_itself_through_others() -> None:
    graph = imports_of(sources())
    assert graph["pipelines.launch"] > {"pipelines.runners", "pipelines.config"}
    graphlib.TopologicalSorter(graph).prepare()  # the CycleError names the modules


@pytest.mark.parametrize(
    "other",
    [
        "import b",
        "from b import name",
        "def late():\n    from b import name",
        "from b.c import name",
        "from b import c",
    ],
)
def test_a_cycle_is_found_wherever_the_import_stands(other: str) -> None:
    modules = {"a": other, "b": "import a" if "c" not in other else "", "b.c": "import a"}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(imports_of(modules)).prepare()


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("pipelines.report", {"apache_beam", "torch", "pandas", "matplotlib"}),
        ("pipelines.reporting.build", {"apache_beam", "torch"}),
        ("pipelines.output_folder", {"apache_beam", "torch"}),
        ("pipelines.flags", {"apache_beam", "torch"}),
        ("transforms.audio.mixtures", {"apache_beam", "torch"}),
        ("transforms.storage", {"apache_beam", "torch"}),
    ],
)
def test_a_fresh_interpreter_loads_no_framework(module: str, absent: set[str]) -> None:
    script = f"import sys, {module}; print(sorted({absent!r} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout == "[]\n"
