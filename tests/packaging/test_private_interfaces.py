"""docs/architecture.md names each private interface of a library that is used, and its test."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from transforms import storage

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("terminal", "manifests", "model", "transforms", "pipelines")
PUBLIC = {"_exit"}
"""Of ``os``: documented, for all its underscore."""


def rows() -> list[list[str]]:
    """The cells of each row of the page's table of private interfaces."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split("\n## Private interfaces", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


ROWS = rows()


def own_names(tree: ast.Module) -> set[str]:
    """Private names that a module, or a class in it, gives its own things."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return names


def foreign_names() -> Iterator[tuple[str, str]]:
    """Each private attribute that is read and is of nothing of ours, with its file."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            own = own_names(tree)
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and re.match(r"_[a-zA-Z]", node.attr):
                    is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                    if node.attr not in PUBLIC and not (is_own or node.attr in own):
                        yield path.relative_to(ROOT).as_posix(), node.attr


@pytest.mark.parametrize(("file", "name"), sorted(set(foreign_names())))
def test_each_private_name_is_on_the_page(file: str, name: str) -> None:
    assert any(name in re.findall(r"\w+", names) and file in files for _, names, files, _ in ROWS)


@pytest.mark.parametrize(
    ("names", "files"), [row[1:3] for row in ROWS if re.search(r"\b_[a-z]", row[1])]
)
def test_the_files_use_what_the_page_names(names: str, files: str) -> None:
    text = "".join((ROOT / file).read_text("utf-8") for file in re.findall(r"`(.+?)`", files))
    for name in re.findall(r"\b_[a-zA-Z]\w+", names):
        assert re.search(rf"\b{name}\b", text), f"{files}: {name}"


@pytest.mark.parametrize("library", sorted({row[0] for row in ROWS}))
def test_versions_are_those_that_are_pinned(library: str) -> None:
    name, version = library.split()
    if name == "Python":
        assert f'python_version = "{version}"' in (ROOT / "pyproject.toml").read_text("utf-8")
    else:
        assert f"{name}=={version}" in (ROOT / "constraints.txt").read_text("utf-8").splitlines()


@pytest.mark.parametrize(
    "test", sorted({t for row in ROWS for t in re.findall(r"`(.+?)`", row[3])})
)
def test_the_tests_exist(test: str) -> None:
    file, _, function = test.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize("name", ["_linear_pointwise", "_is_mkldnn_bf16_supported"])
def test_torch_has_onednn_products(name: str) -> None:
    assert hasattr(torch.ops.mkldnn, name)


@pytest.mark.parametrize(
    ("client", "module"),
    [
        ("gcsfs", "gcsfs.retry"),
        ("s3fs", "s3fs.core"),
        ("botocore.retryhandler", "botocore.retryhandler"),
    ],
)
def test_clients_log_their_retries_in_these_words(client: str, module: str) -> None:
    pytest.importorskip(module.partition(".")[0], reason="an extra that is not installed")
    source = inspect.getsource(importlib.import_module(module))
    assert re.search(rf'logger\.debug\(\s*f?".*{re.escape(storage._REPEATED[client])}', source)
