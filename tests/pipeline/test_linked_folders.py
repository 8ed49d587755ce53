"""Output folders, or parts of them, that lie on another disk behind a link or a mount."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import jobs
import tone_runs
from jobs import JOBS
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


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Files that are called as the stems of a run are, and are no stems."""
    for number in range(NUM_ROWS):
        path = tmp_path / "archive" / f"{number}.flac"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"a recording of somebody")
    return path.parent


@pytest.mark.parametrize("name", ["separate", "synthesize"])
@pytest.mark.usefixtures("loaded")
def test_nothing_is_written_through_a_link_that_an_id_names(
    tmp_path: Path, archive: Path, name: str
) -> None:
    job, before = JOBS[name], _files(archive)
    words = job.words(jobs.write_inputs(tmp_path), tmp_path / "out", *tone_runs.QUIET)
    words[words.index("--max_failure_rate") + 1] = "1"
    link = tmp_path / "out" / job.audio[0] / "dataset=even" / "clip"
    link.parent.mkdir(parents=True)
    link.symlink_to(archive)
    assert job.run(words) == 0
    letters = tone_runs.table(tmp_path / "out", "dead_letters")
    said = {row["id"]: row["message"] for row in letters if row["error_type"] == "permission"}
    assert said.keys() == {"clip/0", "clip/2"}
    assert all(f"{link} is a link to {archive}, and nothing" in text for text in said.values())
    assert _files(archive) == before


@pytest.mark.usefixtures("loaded")
def test_overwriting_deletes_nothing_through_a_link_that_an_id_names(
    made: Path, tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, before = tmp_path / "out", _files(archive)
    shutil.copytree(made / "plain", output)
    link = output / "stems" / "dataset=even" / "clip"
    shutil.rmtree(link)
    link.symlink_to(archive)
    capsys.readouterr()
    assert _run(made, output, "--overwrite") == 1
    assert f"--overwrite left {link}, a link, and where it leads" in capsys.readouterr().err
    assert _files(archive) == before
    assert link.is_symlink()


@pytest.mark.parametrize("flag", ["--overwrite", "--resume"])
@pytest.mark.usefixtures("loaded")
def test_a_recording_in_a_partition_that_lies_elsewhere_is_not_replaced_by_its_stem(
    made: Path, tmp_path: Path, flag: str
) -> None:
    recordings = tmp_path / "recordings"
    shutil.copytree(made / "plain" / "stems" / "dataset=even", recordings)
    output, before = tmp_path / "out", _files(recordings)
    (output / "stems").mkdir(parents=True)
    (output / "stems" / "dataset=even").symlink_to(recordings)
    row = {"id": "clip/0", "dataset": "even", "positive_text": "bell"}
    row["mixture_uri"] = str(recordings / "clip" / "0.flac")
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", [row])
    if flag == "--overwrite":
        for name in ("metrics", "run.json"):
            copy = shutil.copytree if name == "metrics" else shutil.copy
            copy(made / "plain" / name, output / name)
    code = tone_runs.run("--manifest", manifest, "--output", output, flag)
    assert code == (2 if flag == "--overwrite" else 1)
    if flag == "--resume":
        (letter,) = tone_runs.table(output, "dead_letters")
        assert letter["error_type"] == "own_output"
    assert _files(recordings) == before
