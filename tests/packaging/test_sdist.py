"""What is built is what is in the tree, and it runs away from the tree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import installations
from installations import Installation
from pipelines.preflight import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "CHANGELOG.md", "LICENSE", "NOTICE", "constraints.txt")
BUILD_FILES = ("setup.py", "MANIFEST.in", "pyproject.toml", *DOCUMENTS)
NOT_SHIPPED = ("tests/unit/test_x.py", "bench/pipeline.py", "docs/sql.md", "out/run.json")


def entry_modules() -> list[str]:
    """The commands: modules that ``python -m`` runs."""
    found = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for name in PACKAGES
        for path in (ROOT / name).rglob("*.py")
        if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
    }
    return sorted(found)


def package_files(root: Path) -> set[str]:
    """The files of the packages below ``root``, compiled ones left out."""
    return {
        path.relative_to(root).as_posix()
        for name in PACKAGES
        for path in (root / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree: a build leaves files in it, and reads those that an older one left."""
    tree = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in BUILD_FILES:
        shutil.copy(ROOT / name, tree / name)
    for name in NOT_SHIPPED:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("")
    return tree


@pytest.fixture(scope="module")
def sdist(source_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, built by the command that Beam runs for ``--setup_file``."""
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(target)]
    result = subprocess.run(command, cwd=source_tree, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (archive,) = target.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def installation(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The source distribution in a new environment; the dependencies are the running one's."""
    return installations.install(sdist, tmp_path_factory.mktemp("installed"))


def test_the_sdist_holds_the_packages_and_the_documents_and_no_more(
    sdist: Path, source_tree: Path
) -> None:
    with tarfile.open(sdist) as archive:
        names = {member.name for member in archive.getmembers() if member.isfile()}
    held = {name.partition("/")[2] for name in names}
    made = {name for name in held if name.startswith("clapsep_beam.egg-info/")}
    expected = package_files(source_tree) | set(BUILD_FILES) | {"PKG-INFO", "setup.cfg"}
    assert held - made == expected


def test_every_file_of_the_packages_is_installed(
    installation: Installation, source_tree: Path
) -> None:
    assert package_files(installation.site_packages) == package_files(source_tree)


def test_every_module_imports_from_another_folder(installation: Installation) -> None:
    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in package_files(installation.site_packages)
        if name.endswith(".py")
    )
    result = installation.run("-c", "import " + ", ".join(modules))
    assert result.returncode == 0, result.stderr


def test_the_installed_packages_pass_the_preflight_check(installation: Installation) -> None:
    check = "from pipelines import preflight; print(preflight.check_packages())"
    result = installation.run("-c", check)
    assert (result.returncode, result.stdout.strip()) == (0, str(installation.site_packages)), (
        result.stderr
    )


@pytest.mark.parametrize("module", entry_modules())
def test_help_is_printed_and_without_torch_where_torch_is_not_the_subject(
    module: str, installation: Installation
) -> None:
    script = (
        "import runpy, sys\n"
        "sys.argv = [sys.argv[1], '--help']\n"
        "try:\n"
        "    runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
        "except SystemExit as err:\n"
        "    sys.exit(err.code or ('torch' in sys.modules and 'torch was imported'))\n"
    )
    result = installation.run("-c", script, module)
    assert "usage:" in result.stdout.lower(), result.stderr
    if not module.startswith("model."):
        assert result.returncode == 0, result.stderr


def test_the_console_script_is_installed_and_runs_the_commands(installation: Installation) -> None:
    def script(*words: str) -> subprocess.CompletedProcess[str]:
        return installation.run(str(installation.python.with_name("clapsep")), *words)

    made = script("example")
    assert made.returncode == 0, made.stderr
    (installation.elsewhere / "my.csv").write_text(made.stdout, encoding="utf-8")
    checked = script("validate", "my.csv")
    assert (checked.returncode, "4 rows in 1 file" in checked.stdout) == (0, True), checked.stderr
    missing = script("validate", "no.csv")
    assert (missing.returncode, "no.csv" in missing.stderr) == (2, True), missing.stdout
    wrong = script("seperate")
    assert (wrong.returncode, "did you mean separate" in wrong.stderr) == (2, True), wrong.stdout


def test_a_second_model_package_in_the_environment_is_refused(installation: Installation) -> None:
    script = (
        "import sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from pipelines import preflight\n"
        "try:\n"
        "    preflight.check_packages()\n"
        "except preflight.PackageCollisionError as err:\n"
        "    print(err)\n"
    )
    other = installation.elsewhere / "other"
    (other / "model").mkdir(parents=True)
    (other / "model" / "__init__.py").write_text("")
    result = installation.run("-c", script, str(other))
    assert f"model from {other}" in result.stdout, result.stderr
