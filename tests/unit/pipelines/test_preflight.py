"""A package of another distribution is refused before anything of it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import preflight

ROOT = Path(preflight.__file__).resolve().parent.parent
CHECK = "from pipelines import preflight; print(preflight.check_packages())"


def make_packages(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise RuntimeError('was imported')\n")


def make_distribution(folder: Path, name: str, *files: str) -> None:
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def run_check(*path: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, "-c", CHECK], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_the_projects_own_packages_share_one_folder() -> None:
    assert preflight.check_packages() == ROOT


@pytest.mark.parametrize("name", ["model", "manifests", "transforms"])
def test_a_package_that_comes_first_on_the_path_is_named_with_its_folder(
    name: str, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    make_packages(other, name)
    result = run_check(other, ROOT, cwd=tmp_path)
    assert result.returncode != 0
    message = result.stderr.strip().splitlines()[-1]
    assert "PackageCollisionError" in message
    assert f"{name} from {other}" in message
    assert f"pipelines from {ROOT}" in message
    assert "was imported" not in result.stderr


def test_a_package_that_comes_last_on_the_path_does_no_harm(tmp_path: Path) -> None:
    make_packages(tmp_path / "other", *preflight.PACKAGES)
    result = run_check(ROOT, tmp_path / "other", cwd=tmp_path)
    assert (result.returncode, result.stdout.strip()) == (0, str(ROOT)), result.stderr


def test_a_module_with_the_name_of_a_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("")
    result = run_check(tmp_path, ROOT, cwd=tmp_path)
    assert (
        f"model should be a package of clapsep-beam, but Python finds {tmp_path / 'model.py'}"
        in (result.stderr)
    )


def test_a_folder_without_init_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "preflight_bare").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(preflight.PackageCollisionError, match="preflight_bare should be a package"):
        preflight.check_packages(("preflight_bare",))


def test_a_missing_package_is_named() -> None:
    with pytest.raises(
        preflight.PackageCollisionError, match="preflight_absent is not on the path"
    ):
        preflight.check_packages(("pipelines", "preflight_absent"))


def test_another_distribution_that_installed_the_same_name_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("preflight_a", "preflight_b")
    make_packages(tmp_path, *names)
    make_distribution(tmp_path, "clapsep-beam", *(f"{name}/__init__.py" for name in names))
    (tmp_path / "preflight_b" / "nets.py").touch()  # importlib_metadata, if loaded, looks for it
    make_distribution(tmp_path, "some-zoo", "preflight_b/nets.py", "preflight_a.txt")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(preflight.PackageCollisionError, match="preflight_b by some-zoo") as caught:
        preflight.check_packages(names)
    assert "preflight_a by" not in str(caught.value)


def test_the_distribution_itself_is_no_collision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_packages(tmp_path, "preflight_c")
    make_distribution(tmp_path, "clapsep_beam", "preflight_c/__init__.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert preflight.check_packages(("preflight_c",)) == tmp_path
