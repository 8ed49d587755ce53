"""Whatever the documents name exists: files, modules, what stands in them, and links."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
from pathlib import Path

import pytest

from model.systems import reference_points

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("terminal", "manifests", "model", "transforms", "pipelines")
FOLDERS = (*PACKAGES, "tests", "bench", "docs", "findings", ".ci")
PAGES = [
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    ROOT / "Makefile",
    ROOT / "Dockerfile",
    ROOT / "model" / "weights" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
MARKDOWN = [page for page in PAGES if page.suffix == ".md"]
FILE = re.compile(rf"(?<![\w./*…-])(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*\w")
PYTHON_FILE = re.compile(r"(?<![\w./*…-])(\w+\.py)\b")
DOTTED = re.compile(rf"(?<![\w./-])(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+\b(?!/)")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
FILE_SUFFIXES = ("safetensors", "json", "csv", "parquet", "md")


def found(pattern: re.Pattern[str], pages: list[Path]) -> list[tuple[str, str]]:
    """Each match with the page that it is on, once."""
    pairs = {
        (page.relative_to(ROOT).as_posix(), match)
        for page in pages
        for match in pattern.findall(page.read_text(encoding="utf-8"))
    }
    return sorted(pairs)


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or stands in one."""
    parts = name.split(".")
    if parts[-1] in FILE_SUFFIXES and len(parts) == 2:
        return True  # the name of a file, which is not ours to check
    path = ROOT.joinpath(*parts)
    if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
        return importlib.util.find_spec(name) is not None
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize(("page", "name"), found(FILE, PAGES))
def test_named_files_exist(page: str, name: str) -> None:
    assert (ROOT / name).exists(), f"{page} names {name}"


@pytest.mark.parametrize(("page", "name"), found(PYTHON_FILE, MARKDOWN))
def test_python_files_that_are_named_without_a_folder_exist(page: str, name: str) -> None:
    places = [ROOT, *(ROOT / folder for folder in FOLDERS)]
    assert any((place / name).exists() for place in places[:1]) or any(
        next(place.rglob(name), None) for place in places[1:]
    ), f"{page} names {name}"


@pytest.mark.parametrize(("page", "name"), found(DOTTED, PAGES))
def test_named_modules_and_their_members_exist(page: str, name: str) -> None:
    assert exists(name), f"{page} names {name}"


@pytest.mark.parametrize(("page", "link"), found(LINK, MARKDOWN))
def test_linked_files_exist(page: str, link: str) -> None:
    assert ((ROOT / page).parent / link).exists(), f"{page} links to {link}"


def test_the_separator_that_is_walked_through_has_the_methods_that_are_shown() -> None:
    page = (ROOT / "docs" / "adding-a-separator.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^    def (\w+)\(self", page, re.MULTILINE))
    assert {"__init__", "encode", "separate"} < shown
    assert shown <= set(vars(reference_points.OracleIrm))


@pytest.mark.parametrize("name", ["pipelines.launcher", "model.config.MAXI", "transforms.row.x"])
def test_a_name_that_is_gone_is_noticed(name: str) -> None:
    assert not exists(name)


@pytest.mark.parametrize(
    "record", sorted((ROOT / "docs" / "adr").glob("*.md"))[1:], ids=lambda path: path.stem
)
def test_records_have_the_number_of_their_file(record: Path) -> None:
    title = record.read_text(encoding="utf-8").splitlines()[0]
    assert title.startswith(f"# {record.name[:4]}. ")
