"""Manifests as other programs write them, through the jobs: what is done, refused and said."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import pytest

import tone_runs
from pipelines import score, synthesize

pytestmark = pytest.mark.usefixtures("loaded")
CASES = Path(__file__).parents[1] / "data" / "cases"
HEADER = "id,mixture_uri,positive_text"


@pytest.mark.parametrize(
    "name", ["array_pretty.json", "dup_col.csv", "empty.csv", "semicolon.csv", "utf16.csv"]
)
@pytest.mark.parametrize("job", ["separate", "synthesize", "score"])
def test_a_bad_manifest_is_refused_in_a_line_and_nothing_is_written_or_deleted(
    clips: Path, tmp_path: Path, name: str, job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, output = CASES / "bad_manifest_exit_3" / name, tmp_path / "out"
    run = {"separate": tone_runs.run, "synthesize": _synthesize, "score": _score}[job]
    assert run("--manifest", manifest, "--output", output) == 2
    assert not output.exists()
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"error: {manifest}: ")
    assert len(said) <= 2
    output.mkdir()
    (output / "run.json").write_text('{"status": "finished"}')
    before = sorted(output.iterdir())
    assert run("--manifest", manifest, "--output", output, "--overwrite") == 2
    assert sorted(output.iterdir()) == before


def _synthesize(*arguments: object) -> int:
    return synthesize.run([str(argument) for argument in arguments])


def _score(*arguments: object) -> int:
    given = ("--stems", "/nowhere", "--scorer", "none")
    return score.run([str(argument) for argument in (*arguments, *given)])


def test_a_folder_of_spark_with_an_empty_part(clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rows.csv"
    shutil.copytree(CASES / "csv_habits" / "spark_empty_part", folder)
    (folder / "part-00000-x.csv").write_text(f"{HEADER}\na,{clips}/m0.wav,bell\n")
    assert tone_runs.run("--manifest", folder, "--output", tmp_path / "out") == 0
    assert [row["id"] for row in tone_runs.table(tmp_path / "out", "metrics")] == ["a"]


def test_recordings_by_every_way_to_name_them(clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my clips"
    folder.mkdir()
    decomposed = unicodedata.normalize("NFD", "Vögel.wav")
    names = ["my dog.wav", "a::b.wav", "100%25.wav", "take [1].wav", decomposed]
    uris = []
    for name in names:
        shutil.copy(clips / "m0.wav", folder / name)
        encoded = (folder / name).as_uri()
        uris += [encoded, encoded.replace("file://", "file://localhost")]
        uris += [encoded.replace("file://", "file:"), f"my clips/{name}"]
    uris.append("my clips/" + unicodedata.normalize("NFC", decomposed))
    rows = [{"id": f"{n}", "mixture_uri": u, "positive_text": "bell"} for n, u in enumerate(uris)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "out"
    arguments = ("--allowed_uri_prefix", folder, "--output", output)
    assert tone_runs.run("--manifest", tmp_path / "rows.jsonl", *arguments) == 0
    assert len(tone_runs.table(output, "metrics")) == len(rows)


def test_a_home_is_resolved_after_an_equals_sign(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(clips)
    (tmp_path / "rows.csv").write_text(f"{HEADER}\n\n,,\na,{clips}/m0.wav ,bell\n,,\n")
    assert tone_runs.run("--manifest=~/rows.csv", "--output=~/out") == 0
    assert [row["id"] for row in tone_runs.table(tmp_path / "out", "metrics")] == ["a"]
    assert not (clips / "~").exists()
