"""Output folders, or parts of them, that lie on another disk behind a link or a mount."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import tone_runs
from manifests.files import UNFINISHED

NUM_ROWS = 4
LINKED = ("stems", "stems/dataset=even", "metrics", "metrics/dataset=odd", "dead_letters", "_work")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest, one of whose recordings is missing, and what a plain folder holds after a run."""
    folder = tmp_path_factory.mktemp("made")
    rows = tone_runs.write_mixtures(folder / "in", count=NUM_ROWS)
    rows[1]["mixture_uri"] = str(folder / "nowhere.wav")
    tone_runs.write_manifest(folder / "rows.jsonl", rows)
    with tone_runs.tones_as_models():
        assert _run(folder, folder / "plain") == 0
    return folder


def _run(made: Path, output: Path, *arguments: str) -> int:
    return tone_runs.run(
        *("--manifest", made / "rows.jsonl", "--output", output),
        *("--residual", "--max_failure_rate", "0.5", *arguments),
    )


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder between which and others nothing can be renamed, as behind a bind mount."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    replace = os.replace

    def refuse(source: str, target: str) -> None:
        ends = [os.path.realpath(path).startswith(f"{folder}/") for path in (source, target)]
        if ends[0] != ends[1]:
            raise OSError(errno.EXDEV, "Invalid cross-device link", source, None, target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system."""
    memory = Path("/dev/shm")  # noqa: S108
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system to write to")
    folder = memory / f"clapsep-{os.getpid()}-{tmp_path.name}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def _check(made: Path, linked: Path) -> None:
    output = linked.parent / "copy"
    shutil.copytree(linked, output)  # what links lead to is copied
    tone_runs.assert_same_results(made / "plain", output)
    (letter,) = tone_runs.table(output, "dead_letters")
    assert (letter["id"], letter["error_type"]) == ("clip/1", "missing")
    files = [str(path) for path in output.rglob("*")]
    assert not [path for path in files if UNFINISHED in path]
    shutil.rmtree(output)


@pytest.mark.parametrize("kind", ["mounted", "disk"])
@pytest.mark.usefixtures("loaded")
def test_every_part_of_an_output_may_lie_elsewhere(
    made: Path, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """The case ``stems_on_another_disk``: every row was computed and then lost."""
    elsewhere: Path = request.getfixturevalue(kind)
    output = tmp_path / "out"
    for number, name in enumerate(LINKED):
        target = elsewhere / f"part {number}"
        target.mkdir()
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).symlink_to(target)
    assert _run(made, output) == 0
    _check(made, output)
    assert len(list((elsewhere / "part 1").rglob("*.flac"))) == 2 * NUM_ROWS // 2

    assert _run(made, output, "--resume") == 0
    assert tone_runs.record(output)["row_counts"]["finished_before"] == NUM_ROWS - 1
    _check(made, output)
    assert _run(made, output, "--overwrite") == 0
    assert all((output / name).is_symlink() for name in ("stems", "metrics", "dead_letters"))
    _check(made, output)


@pytest.mark.usefixtures("loaded")
def test_the_output_may_be_a_link(made: Path, tmp_path: Path, disk: Path) -> None:
    (tmp_path / "out").symlink_to(disk)
    for arguments in ((), ("--resume",), ("--overwrite",)):
        assert _run(made, tmp_path / "out", *arguments) == 0
        _check(made, tmp_path / "out")


@pytest.mark.usefixtures("loaded")
def test_a_link_that_leads_nowhere_is_named(made: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "stems").symlink_to(tmp_path / "unplugged")
    assert _run(made, output) == 1
    said = [row["message"] for row in tone_runs.table(output, "dead_letters")]
    assert sum(f"a link that leads to no folder: '{output}/stems'" in text for text in said) == 3
