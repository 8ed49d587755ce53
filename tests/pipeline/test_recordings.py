"""Runs of the main job over folders of recordings, each asked every query."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import tone_runs
from manifests import recordings
from manifests.row import ManifestRow
from pipelines.reporting.listening import stem_uris_of
from pipelines.reporting.runs import read_run
from transforms import reading
from transforms.storage import Storage

pytestmark = pytest.mark.usefixtures("loaded")
BOTH = ("--positive", "bell", "--positive", "Dog_bark")


@pytest.fixture
def archive(clips: Path, tmp_path: Path) -> Path:
    """Three recordings in two folders, and what else lies about."""
    folder = tmp_path / "archive"
    (folder / "night" / ".cache").mkdir(parents=True)
    for source, name in (("m0", "a"), ("m1", "night/a"), ("m2", "night/2024.01.05_b")):
        shutil.copy(clips / f"{source}.wav", folder / f"{name}.wav")
    (folder / "notes.txt").write_text("rain at four", encoding="utf-8")
    (folder / "_SUCCESS").touch()
    return folder


def ids(output: Path) -> list[str]:
    return [row["id"] for row in tone_runs.table(output, "metrics")]


def test_every_recording_is_asked_every_query_and_read_once(
    archive: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str | None] = []
    read_mixture = reading.read_mixture

    def counting(row: ManifestRow, *rest: Any, **more: Any) -> Any:
        read.append(row.mixture_uri)
        return read_mixture(row, *rest, **more)

    monkeypatch.setattr(reading, "read_mixture", counting)
    output = tmp_path / "out"
    assert tone_runs.run("--recordings", archive, *BOTH, "--output", output) == 0
    assert ids(output) == [
        *("a/bell", "a/dog_bark", "night/2024.01.05_b/bell", "night/2024.01.05_b/dog_bark"),
        *("night/a/bell", "night/a/dog_bark"),
    ]
    assert (output / "stems" / "night" / "2024.01.05_b" / "bell.flac").is_file()
    assert sorted(map(str, read)) == sorted(str(path) for path in archive.rglob("*.wav"))
    row = tone_runs.table(output, "metrics")[0]
    assert (row["label"], row["group"], row["positive_text"]) == ("bell", "a", "bell")
    record = tone_runs.record(output)
    assert record["row_counts"]["rows"] == 6
    assert record["row_counts"]["skipped"] == {"hidden": 2, "not_audio": 1}
    assert record["config"]["recordings"]["roots"] == [str(archive)]
    said = capsys.readouterr().err
    assert "passed over: 2 hidden, 1 no recording by its name" in said


def test_a_later_run_does_only_the_new_pairs(clips: Path, archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    given = ("--output", output)
    assert tone_runs.run("--recordings", archive, "--positive", "bell", *given) == 0
    written = {path: path.stat().st_mtime_ns for path in (output / "stems").rglob("*.flac")}
    assert len(written) == 3
    shutil.copy(clips / "m3.wav", archive / "night" / "late.wav")
    assert tone_runs.run("--recordings", archive, *BOTH, *given, "--resume") == 0
    counts = tone_runs.record(output)["row_counts"]
    assert (counts["rows"], counts["finished_before"], counts["stems"]) == (8, 3, 5)
    # A further root, and one query alone: what else was done stays.
    shutil.copytree(archive, tmp_path / "more")
    roots = (archive, tmp_path / "more" / "night")
    assert tone_runs.run("--recordings", *roots, "--positive", "bell", *given, "--resume") == 0
    counts = tone_runs.record(output)["row_counts"]
    assert (counts["rows"], counts["finished_before"], counts["stems"]) == (7, 4, 3)
    assert len(tone_runs.table(output, "metrics")) == 11
    assert "night/a/bell" in ids(output)
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_the_printed_manifest_gives_the_same_rows(archive: Path, tmp_path: Path, capsys) -> None:
    words = ("--recordings", str(archive), *BOTH, "--negative", "others")
    assert tone_runs.run(*words, "--output", tmp_path / "out") == 0
    capsys.readouterr()
    assert recordings.run(words) == 0
    (tmp_path / "m.csv").write_text(capsys.readouterr().out, encoding="utf-8")
    assert tone_runs.run("--manifest", tmp_path / "m.csv", "--output", tmp_path / "other") == 0
    one, other = (tone_runs.table(tmp_path / name, "metrics") for name in ("out", "other"))
    assert [row["row_sha256"] for row in one] == [row["row_sha256"] for row in other]
    tone_runs.assert_same_results(tmp_path / "out", tmp_path / "other")


def test_roots_with_the_same_names_and_files_that_overlap(archive: Path, tmp_path: Path) -> None:
    shutil.copytree(archive, tmp_path / "second")
    output = tmp_path / "out"
    roots = (archive, tmp_path / "second", f"{archive}/*.wav", archive / "night")
    assert tone_runs.run("--recordings", *roots, "--positive", "bell", "--output", output) == 0
    assert ids(output) == [
        *("a/bell", "night/2024.01.05_b/bell", "night/a/bell"),
        *("second/a/bell", "second/night/2024.01.05_b/bell", "second/night/a/bell"),
    ]


def test_queries_of_a_table(archive: Path, clips: Path, tmp_path: Path) -> None:
    table = tmp_path / "queries.csv"
    table.write_text("name,positive_text,label\nb,bell,ring\nd,dog_bark,\n", encoding="utf-8")
    output = tmp_path / "out"
    given = ("--queries", table, "--negative", "others", "--output", output)
    assert tone_runs.run("--recordings", archive / "a.wav", *given) == 0
    first, second = tone_runs.table(output, "metrics")
    assert (first["id"], first["label"], first["negative_text"]) == ("a/b", "ring", "dog_bark")
    assert (second["id"], second["label"], second["negative_text"]) == ("a/d", "d", "bell")
    other = tmp_path / "other"
    assert tone_runs.run("--mixture", archive / "a.wav", "--queries", table, "--output", other) == 0
    assert ids(other) == ["a/b", "a/d"]


def test_what_is_in_the_output_is_no_recording(archive: Path) -> None:
    given = ("--recordings", archive, "--positive", "bell", "--output", archive / "out")
    assert tone_runs.run(*given) == 0
    assert tone_runs.run(*given, "--resume") == 0
    counts = tone_runs.record(archive / "out")["row_counts"]
    assert (counts["rows"], counts["finished_before"]) == (3, 3)
    assert counts["skipped"]["output"] == 1
    assert tone_runs.run(*given, "--overwrite") == 0
    assert len(ids(archive / "out")) == 3


def test_recordings_that_would_be_deleted_are_refused(
    archive: Path, tmp_path: Path, capsys
) -> None:
    output = tmp_path / "out"
    assert tone_runs.run("--recordings", archive, "--positive", "bell", "--output", output) == 0
    again = ("--positive", "bell", "--output", output, "--overwrite", "--recordings")
    assert tone_runs.run(*again, output / "stems") == 2
    assert "stems lies in " in capsys.readouterr().err
    assert tone_runs.run(*again, output) == 2
    assert f"take another, such as {output}/out" in capsys.readouterr().err
    assert len(list((output / "stems").rglob("*.flac"))) == 3


def test_a_recording_that_cannot_be_read_is_a_dead_letter_that_runs_again(
    archive: Path, clips: Path, tmp_path: Path
) -> None:
    (archive / "bad.flac").write_bytes(b"fLaC but no more")
    output = tmp_path / "out"
    assert tone_runs.run("--recordings", archive, *BOTH, "--output", output) == 1
    letters = tone_runs.table(output, "dead_letters")
    assert [row["id"] for row in letters] == ["bad/bell", "bad/dog_bark"]
    shutil.copy(clips / "m3.wav", archive / "bad.flac")
    again = ("--manifest", output / "dead_letters", "--output", output, "--resume")
    assert tone_runs.run(*again) == 0
    assert {"bad/bell", "bad/dog_bark"} <= set(ids(output))
    assert tone_runs.run("--recordings", archive, *BOTH, "--output", output, "--resume") == 0
    assert tone_runs.record(output)["row_counts"]["stems"] == 0


def test_a_folder_that_cannot_be_listed_is_a_dead_letter(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = recordings._entries

    def refused(files: Any, folder: str) -> Any:
        if folder.endswith("night"):
            raise PermissionError(13, "Permission denied", folder)
        return entries(files, folder)

    monkeypatch.setattr(recordings, "_entries", refused)
    output = tmp_path / "out"
    assert tone_runs.run("--recordings", archive, "--positive", "bell", "--output", output) == 1
    (letter,) = tone_runs.table(output, "dead_letters")
    assert (letter["stage"], letter["error_type"]) == ("manifest", "permission")
    assert str(archive / "night") in letter["message"]
    assert ids(output) == ["a/bell"]
    again = ("--recordings", archive, "--positive", "bell", "--output", output, "--resume")
    assert tone_runs.run(*again) == 1
    assert len(tone_runs.table(output, "dead_letters")) == 1
    as_rows = ("--manifest", output / "dead_letters", "--output", output, "--resume")
    assert tone_runs.run(*as_rows) == 1
    (letter,) = tone_runs.table(output, "dead_letters")
    assert f"{archive / 'night'}, which could not be looked into" in letter["message"]
    assert "expected the --recordings of before" in letter["message"]
    monkeypatch.undo()
    assert tone_runs.run(*again) == 0
    assert ids(output) == ["a/bell", "night/2024.01.05_b/bell", "night/a/bell"]
    assert not (output / "dead_letters").exists()


def test_a_run_that_was_moved_says_where_it_was(archive: Path, tmp_path: Path) -> None:
    given = ("--recordings", archive, "--positive", "bell")
    output, moved = tmp_path / "out", tmp_path / "moved"
    assert tone_runs.run(*given, "--output", output) == 0
    assert tone_runs.record(output)["outputs"] == [str(output)]
    output.rename(moved)
    assert tone_runs.run(*given, "--positive", "dog_bark", "--output", moved, "--resume") == 0
    assert tone_runs.record(moved)["outputs"] == [str(output), str(moved)]
    run = read_run(str(moved), "moved", Storage())
    stems = stem_uris_of(run, run.clips)
    assert len(stems) == 6
    assert all(uri is not None and uri.startswith(f"{moved}/stems/") for uri in stems)
    assert tone_runs.run(*given, "--output", moved, "--overwrite") == 0
    assert tone_runs.record(moved)["outputs"] == [str(moved)]


def test_nothing_to_do_is_said(tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    given = ("--positive", "bell", "--output", tmp_path / "out")
    assert tone_runs.run("--recordings", tmp_path / "empty", *given) == 2
    said = capsys.readouterr().err
    assert f"--recordings {tmp_path / 'empty'}: no recordings are there" in said
    assert "passed over: 1 no recording by its name" in said
    other = ("--positive", "bell", "--output", tmp_path / "other")
    assert tone_runs.run("--recordings", tmp_path / "nowhere", *other) == 2
    assert "nowhere: no such file or folder" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--recordings", "a"), "--recordings needs a query"),
        (("--recordings", "a", "--mixture", "b", "--positive", "x"), "exclude each other"),
        (("--recordings", "a", "--manifest", "b.csv"), "exclude each other"),
        (("--recordings", "a", "--positive", "x", "--reference", "r"), "--reference goes with"),
        (("--manifest", "b.csv", "--queries", "q.csv"), "--queries goes with --mixture"),
        (("--mixture", "a", "--positive", "x", "--audio_column", "c"), "goes with --recordings"),
        (("--recordings", "a", "--queries", "nowhere.csv"), "nowhere.csv: no such file"),
        (("--recordings", "a", "--positive", "x" * 40_000), "--positive: found"),
        (("--recordings", "a", "--positive", "x", "--text_weight", "3"), "--text_weight: found 3"),
        (("--recordings", "a", "--positive_audio", "a#t=2,1"), "--positive_audio: found"),
        (("--recordings", __file__ + "#t=0,1", "--positive", "x"), "a part of one goes with"),
        (("--recordings", "zip://*.wav::a.zip", "--positive", "x"), "chains of file systems"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], message: str, tmp_path: Path, capsys) -> None:
    assert tone_runs.run(*words, "--output", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 2
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_not_utf_8_is_a_dead_letter(archive: Path, tmp_path: Path) -> None:
    shutil.copy(os.fsencode(next(archive.rglob("*.wav"))), os.fsencode(archive) + b"/caf\xe9.wav")
    output = tmp_path / "out"
    given = ("--recordings", archive, "--positive", "bell", "--output", output)
    assert tone_runs.run(*given, "--max_failure_rate", "1") == 0
    assert tone_runs.run(*given, "--max_failure_rate", "1", "--resume") == 0
    (letter,) = (
        row for row in tone_runs.table(output, "dead_letters") if "caf" in row["manifest_uri"]
    )
    assert letter["error_type"] == "invalid_row"
    assert r"caf\udce9" in letter["message"]
