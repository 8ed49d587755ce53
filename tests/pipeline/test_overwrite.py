"""``--overwrite``: what runs wrote goes, and nothing else, and nothing before all is checked."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tone_runs
from model import registry
from model.checkpoints.fetch import CheckpointError
from pipelines import output_folder, score, synthesize
from pipelines.flags import UsageError
from pipelines.output_folder import contents
from tone_runs import tree
from transforms.storage import Storage

pytestmark = pytest.mark.usefixtures("loaded")
QUIET = ("--progress", "none", "--num_threads", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mixtures, a manifest of them, and a finished run with residuals."""
    folder = tmp_path_factory.mktemp("made")
    rows = tone_runs.write_mixtures(folder / "in", count=2)
    tone_runs.write_manifest(folder / "rows.jsonl", rows)
    with tone_runs.tones_as_models():
        arguments = ("--manifest", folder / "rows.jsonl", "--output", folder / "out")
        assert tone_runs.run(*arguments, "--residual") == 0
    return folder


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


def overwrite(manifest: Path | str, output: Path | str) -> int:
    return tone_runs.run("--manifest", manifest, "--output", output, "--overwrite")


def test_what_runs_wrote_goes_and_what_they_did_not_stays(
    made: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["stems/mine.flac", "stems/dataset=even/notes.txt", "metrics/mine.parquet", "run.md",
           "metrics/part-000-00000-of-00001.csv", "summary/plot.png", "_work/mine"]  # fmt: skip
    for name in own:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"my own")
    rows = [json.loads(line) for line in (made / "rows.jsonl").read_text().splitlines()]
    one = tone_runs.write_manifest(tmp_path / "one.jsonl", rows[1:])

    assert overwrite(one, out) == 0

    left = {name: held for name, held in tree(out).items() if held is not None}
    assert {name for name in left if left[name] == b"my own"} == set(own)
    fresh = tmp_path / "fresh"
    assert tone_runs.run("--manifest", one, "--output", fresh) == 0
    expected = {name for name, held in tree(fresh).items() if held is not None}
    assert left.keys() - set(own) == expected
    assert "left 2 files that no table of the earlier run names" in capsys.readouterr().err
    shutil.rmtree(fresh)


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "what a killed run left"])
def test_what_holds_no_results_is_taken_like_any_new_folder(
    made: Path, tmp_path: Path, there: str
) -> None:
    output = tmp_path / "new"
    if there != "nothing":
        output.mkdir()
    if there == "what a killed run left":
        (output / "_work" / "staging").mkdir(parents=True)
        (output / "_work" / "staging" / "unfinished").touch()
    assert overwrite(made / "rows.jsonl", output) == 0
    assert len(tone_runs.table(output, "metrics")) == 2


@pytest.mark.parametrize("command", [score, synthesize])
def test_the_other_commands_take_a_new_folder_too(made: Path, tmp_path: Path, command: Any) -> None:
    (tmp_path / "none.csv").write_text("id,target_uri,interferer_uris,positive_text\n")
    own = ("--stems", str(made)) if command is score else ()
    arguments = ("--manifest", str(tmp_path / "none.csv"), "--output", str(tmp_path / "new"))
    assert command.run([*arguments, *own, *QUIET[:2], "--overwrite"]) == 0


def test_a_folder_of_somebody_else_is_not_taken(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "_workshop.txt").touch()
    assert overwrite(made / "rows.jsonl", tmp_path / "theirs") == 2
    assert "is not an output folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["_workshop.txt"]


def test_folders_left_empty_go(made: Path, out: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (made / "rows.jsonl").read_text().splitlines()]
    assert overwrite(tone_runs.write_manifest(tmp_path / "one.jsonl", rows[:1]), out) == 0
    assert [path.name for path in (out / "stems").iterdir()] == ["dataset=even"]
    assert [path.name for path in (out / "metrics").iterdir()] == ["dataset=even"]


def test_an_output_that_was_moved_loses_its_own_stems_and_not_those_of_the_other(
    made: Path, out: Path, tmp_path: Path
) -> None:
    before = tree(made / "out")
    rows = [json.loads(line) for line in (made / "rows.jsonl").read_text().splitlines()]
    assert overwrite(tone_runs.write_manifest(tmp_path / "one.jsonl", rows[:1]), out) == 0
    assert tree(made / "out") == before
    assert len(tone_runs.stems(out)) == 1


MANIFESTS: dict[str, str] = {
    "bad_manifest_exit_3": "id;mixture_uri;positive_text\na;a.wav;dog\n",
    "no rows that are known": "nothing,of,this\n1,2,3\n",
}


@pytest.mark.parametrize("text", MANIFESTS.values(), ids=MANIFESTS.keys())
def test_nothing_goes_before_the_manifest_was_looked_at(
    out: Path, tmp_path: Path, text: str
) -> None:
    before = tree(out)
    (tmp_path / "bad.csv").write_text(text, encoding="utf-8")
    assert overwrite(tmp_path / "bad.csv", out) == 2
    assert overwrite(tmp_path / "missing.csv", out) == 2
    assert tree(out) == before


def test_nothing_goes_before_the_model_was_loaded(
    made: Path, out: Path, loaded: tone_runs.Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise CheckpointError("no such weights")

    before = tree(out)
    monkeypatch.setattr(registry, "load", broken)
    assert overwrite(made / "rows.jsonl", out) == 2
    assert tree(out) == before


SPELLINGS: dict[str, Callable[[Path, Path], str]] = {
    "plain": lambda path, _: str(path),
    "a slash at the end": lambda path, _: f"{path}/" if path.is_dir() else str(path),
    "..": lambda path, _: f"{path.parent}/../{path.parent.name}/{path.name}",
    ".": lambda path, _: f"{path.parent}/./{path.name}",
    "//": lambda path, _: f"{path.parent}//{path.name}",
    "file://": lambda path, _: f"file://{path}",
    "local://": lambda path, _: f"local://{path}",
    "file:// and ..": lambda path, _: f"file://{path.parent}/../{path.parent.name}/{path.name}",
    "a link to the file": lambda path, tmp: str(_link(tmp / f"link{path.suffix}", path)),
    "a link to its folder": lambda path, tmp: f"{_link(tmp / 'linked', path.parent)}/{path.name}",
    "relative": lambda path, _: os.path.relpath(path),
}


def _link(link: Path, target: Path) -> Path:
    link.symlink_to(target)
    return link


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS.keys())
@pytest.mark.parametrize("what", ["manifest", "folder", "mixture", "row"])
def test_nothing_that_the_run_reads_lies_where_it_deletes(
    made: Path,
    out: Path,
    tmp_path: Path,
    what: str,
    spelling: Callable[[Path, Path], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stem = next((out / "stems").rglob("*.flac"))
    if what == "manifest":
        target = shutil.copy(made / "rows.jsonl", out / "metrics" / "rows.jsonl")
        arguments = ["--manifest", spelling(Path(target), tmp_path)]
    elif what == "folder":
        (out / "dead_letters").mkdir(exist_ok=True)
        shutil.copy(made / "rows.jsonl", out / "dead_letters")
        arguments = ["--manifest", spelling(out / "dead_letters", tmp_path)]
    elif what == "mixture":
        arguments = ["--mixture", spelling(stem, tmp_path), "--positive", "a bell"]
    else:
        row = {"id": "again", "mixture_uri": spelling(stem, tmp_path), "positive_text": "bell"}
        if row["mixture_uri"].startswith(".."):
            row["mixture_uri"] = os.path.relpath(stem, tmp_path)
        arguments = ["--manifest", str(tone_runs.write_manifest(tmp_path / "a.jsonl", [row]))]
    before = tree(out)

    assert tone_runs.run(*arguments, "--output", out, "--overwrite") == 2

    assert "lies in " in capsys.readouterr().err
    assert tree(out) == before


def test_a_link_that_would_be_deleted_is_not_read(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stem = next((out / "stems").rglob("*.flac"))
    shutil.move(stem, tmp_path / "elsewhere.flac")
    _link(stem, tmp_path / "elsewhere.flac")
    arguments = ("--mixture", stem, "--positive", "a bell", "--output", out, "--overwrite")
    assert tone_runs.run(*arguments) == 2
    assert "lies in " in capsys.readouterr().err
    assert stem.is_symlink()


def test_stems_on_another_disk_are_in_the_output_too(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move(out / "stems", tmp_path / "elsewhere")
    _link(out / "stems", tmp_path / "elsewhere")
    stem = next((tmp_path / "elsewhere").rglob("*.flac"))
    arguments = ("--mixture", stem, "--positive", "a bell", "--output", out, "--overwrite")
    assert tone_runs.run(*arguments) == 2
    assert "lies in " in capsys.readouterr().err
    assert stem.exists()


@pytest.mark.parametrize(
    ("uri", "inside"),
    [
        ("s3://b/out/stems/a.flac", True),
        ("s3a://b/out/rows.csv", True),
        ("S3://b//out/./rows.csv", True),
        ("s3://b/x/../out/rows.csv", True),
        ("zip://a.wav::s3://b/out/all.zip", True),
        ("s3://b/out", True),
        ("s3://b/out2/rows.csv", False),
        ("s3://b/rows.csv", False),
        ("s3://c/out/rows.csv", False),
        ("gs://b/out/rows.csv", False),
        ("/out/rows.csv", False),
    ],
)
def test_places_in_buckets_are_compared_and_not_spellings(uri: str, inside: bool) -> None:
    places = contents.Places(Storage(), contents._deleted_from("s3://b/out"))
    assert places.hold(uri) is inside


def run_score(made: Path, output: Path, *more: str) -> int:
    given = ["--manifest", str(made / "rows.jsonl"), "--output", str(output), "--scorer", "none"]
    return score.run([*given, *QUIET, *more])


def test_score_deletes_its_own_tables_and_no_stems(made: Path, out: Path, tmp_path: Path) -> None:
    stems, scores = tree(out / "stems"), tmp_path / "scores"
    where = ("--stems", str(out / "stems"))
    assert run_score(made, scores, *where) == 0
    (scores / "stems").mkdir()
    (scores / "stems" / "mine.wav").write_bytes(b"my own")
    assert run_score(made, scores, *where, "--overwrite") == 0
    assert tree(out / "stems") == stems
    assert (scores / "stems" / "mine.wav").exists()
    assert len(tone_runs.table(scores, "metrics")) == 2


@pytest.mark.parametrize("where", ["folder", "link", "template", "column"])
def test_stems_that_are_to_be_scored_are_not_deleted(
    made: Path, out: Path, tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(out)
    given = {
        "folder": ["--stems", f"{out}/../out/stems/"],
        "link": ["--stems", str(_link(tmp_path / "link", out / "stems"))],
        "template": ["--stems", f"{out}/stems/dataset={{dataset}}/{{name}}.flac"],
        "column": [],
    }[where]
    rows = [json.loads(line) for line in (made / "rows.jsonl").read_text().splitlines()]
    uris = {row["id"]: row["stem_uri"] for row in tone_runs.table(out, "metrics")}
    moved = [{**row, "stem_uri": uris[row["id"]].replace(str(made), str(tmp_path))} for row in rows]
    tone_runs.write_manifest(tmp_path / "rows.jsonl", moved)
    assert run_score(tmp_path, out, *given, "--overwrite") == 2
    said = capsys.readouterr().err
    assert "would delete" in said or "pipelines.separate wrote" in said
    assert tree(out) == before


def test_one_command_does_not_delete_what_another_wrote(
    made: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(out)
    assert run_score(made, out, "--stems", str(tmp_path), "--overwrite") == 2
    assert "holds what pipelines.separate wrote" in capsys.readouterr().err
    assert tree(out) == before


def test_rendered_mixtures_go_and_what_lies_beside_them_stays(made: Path, tmp_path: Path) -> None:
    sources = sorted((made / "in").glob("r*.wav"))
    rows: list[dict[str, Any]] = [
        {"id": name, "target_uri": str(sources[0]), "interferer_uris": [str(sources[1])],
         "positive_text": "bell"} for name in ("a", "b")
    ]  # fmt: skip
    out = tmp_path / "mixed"
    for number, kept in enumerate((rows, rows[:1])):
        manifest = tone_runs.write_manifest(tmp_path / f"{number}.jsonl", kept)
        given = ["--manifest", str(manifest), "--output", str(out), "--mix_rate_hz", "8000"]
        assert synthesize.run([*given, *QUIET, *(["--overwrite"] if number else [])]) == 0
        (out / "mixtures" / "mine.flac").write_bytes(b"my own")
    for folder in ("mixtures", "references", "interferers"):
        names = {path.name for path in (out / folder).iterdir()} - {"mine.flac"}
        assert len(names) == 1
    assert (out / "mixtures" / "mine.flac").exists()


def test_an_overwrite_that_was_stopped_is_not_resumed(
    made: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(output_folder, "delete", stopped)
        assert overwrite(made / "rows.jsonl", out) == 130
    assert capsys.readouterr().err.endswith("--overwrite goes on from here\n")
    arguments = ("--manifest", made / "rows.jsonl", "--output", out)
    assert tone_runs.run(*arguments, "--resume", "--residual") == 2
    assert "repeat it with --overwrite" in capsys.readouterr().err
    assert tone_runs.run(*arguments, "--overwrite") == 0
    assert len(tone_runs.table(out, "metrics")) == 2


def test_the_help_says_what_goes(capsys: pytest.CaptureFixture[str]) -> None:
    assert tone_runs.run("--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    said = said.rpartition("--overwrite Begin")[2].partition("--force_unlock")[0]
    for word in ("stems and residuals", *contents._TABLES, "events.csv", "_work", "run.json"):
        assert word in said


def test_uris_that_lead_nowhere_do_not_stop_the_check(made: Path, out: Path) -> None:
    places = contents.Places(Storage(), [str(out)])
    for uri in ("/with\x00zero", "odd://x", "http://h/a?b", "gs://", ""):
        assert not places.hold(uri)
    config: Any = type("Config", (), {"overwrite": True, "output": str(out)})
    with pytest.raises(UsageError, match="lies in --output"):
        contents.require_apart(config, Storage(), [("it", str(out))])


def test_places_that_are_written_in_other_ways_are_the_same(tmp_path: Path) -> None:
    out = tmp_path / unicodedata.normalize("NFC", "März 1")
    (out / "stems").mkdir(parents=True)
    places = contents.Places(Storage(), contents._deleted_from(str(out)))
    clip = out / "stems" / "a.wav"
    clip.touch()
    encoded = clip.as_uri()
    for uri in (encoded, encoded.replace("file://", "file:"), f"zip://x.wav::{encoded}"):
        assert places.hold(uri)
    assert places.hold(encoded.replace("file://", "file://localhost"))
    assert places.hold(unicodedata.normalize("NFD", str(clip)))
    for uri in ("file://server/x.wav", "http://[::1]/x.wav", f"{tmp_path}/a::b.wav"):
        assert not places.hold(uri)
