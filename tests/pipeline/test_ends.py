"""What a run says at its end: that nothing was to be done, and places that are there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tone_runs
from pipelines import console, runners, score, synthesize
from pipelines.output_folder import contents
from pipelines.separate_graph import SeparateJob
from transforms.storage import Storage

pytestmark = pytest.mark.usefixtures("loaded")

JOBS: dict[str, Callable[..., int]] = {
    "separate": lambda *given: tone_runs.run(*given),
    "score": lambda *given: score.run([*map(str, given), *tone_runs.QUIET, "--scorer", "none"]),
    "synthesize": lambda *given: synthesize.run([*map(str, given), *tone_runs.QUIET]),
}
NO_ROWS = {
    "rows.csv": "id,mixture_uri,positive_text\n",
    "rows.jsonl": "",
    "notes.csv": "# a note\nid,mixture_uri,positive_text\n\n",
}
MISSING: dict[str, dict[str, Any]] = {
    "separate": {"mixture_uri": "not_there.wav", "positive_text": "bell"},
    "score": {"mixture_uri": "not_there.wav", "stem_uri": "/not/there.wav"},
    "synthesize": {"target_uri": "not_there.wav", "interferer_uris": ["nor_there.wav"]},
}


def named(said: str) -> dict[str, Path]:
    """Places that a run names at its end."""
    return {label: Path(place) for label, place in re.findall(r"^(\w+): (/.*)$", said, re.M)}


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("name", NO_ROWS)
def test_a_manifest_of_no_rows_is_nothing_to_do(
    job: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, output = tmp_path / name, tmp_path / "out"
    manifest.write_text(NO_ROWS[name], encoding="utf-8")
    code = JOBS[job]("--manifest", manifest, "--output", output)
    said = capsys.readouterr().out
    assert code == 0
    assert said.startswith("nothing to do: the manifest has no rows\n")
    assert [place for place in named(said).values() if not place.exists()] == []
    assert tone_runs.record(output)["row_counts"]["rows"] == 0


@pytest.mark.parametrize("job", JOBS)
def test_where_every_row_failed_only_the_dead_letters_are_named(
    job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": f"a{number}", **MISSING[job]} for number in range(2)]
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    code = JOBS[job]("--manifest", manifest, "--output", tmp_path / "out")
    said = capsys.readouterr().out
    assert code == 1
    assert named(said) == {"failures": tmp_path / "out" / "dead_letters"}
    assert (tmp_path / "out" / "dead_letters").is_dir()
    assert "2 failed" in said
    assert "CLAPScore" not in said


def test_what_an_earlier_run_finished_is_named(clips: Path, tmp_path: Path, capsys: Any) -> None:
    given = ("--mixture", clips / "m0.wav", "--positive", "bell", "--output", tmp_path / "out")
    assert tone_runs.run(*given) == 0
    assert tone_runs.run(*given, "--resume") == 0
    said = capsys.readouterr().out
    assert named(said).keys() == {"listen", "numbers", "segments", "run"}


BELL = ("--positive", "bell", "--device", "cpu")


@pytest.mark.parametrize(
    "step", [(contents, "remove_working_files"), (console, "separated_lines")], ids=lambda s: s[1]
)
def test_what_fails_after_a_run_has_finished_does_not_make_it_a_failed_one(
    step: tuple[Any, str],
    clips: Path,
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the store has gone")

    monkeypatch.setattr(*step, fail)
    output = tmp_path / "out"
    assert tone_runs.run("--mixture", clips / "m0.wav", *BELL, "--output", output) == 0
    assert capsys.readouterr().err == (
        "warning: the run has finished; after that: RuntimeError: the store has gone\n"
    )
    assert tone_runs.record(output)["status"] == "finished"


@pytest.mark.parametrize("job", ["score", "synthesize"])
def test_the_smaller_jobs_finish_alike(
    job: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("the store has gone")

    monkeypatch.setattr(console, "done_lines", fail)
    manifest = tmp_path / "rows.csv"
    manifest.write_text(NO_ROWS["rows.csv"], encoding="utf-8")
    assert JOBS[job]("--manifest", manifest, "--output", tmp_path / "out") == 0
    assert "after that: RuntimeError: the store has gone" in capsys.readouterr().err
    assert tone_runs.record(tmp_path / "out")["status"] == "finished"


def test_a_failed_job_names_its_story_only_where_it_could_be_written(
    clips: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("lost")

    monkeypatch.setattr(runners, "run_graph", fail)
    given = ("--mixture", clips / "m0.wav", *BELL, "--output", tmp_path / "out")
    assert tone_runs.run(*given) == 3
    story = tmp_path / "out" / "_work" / "error.txt"
    assert capsys.readouterr().err == (
        "error: the job failed: RuntimeError: lost\n"
        f"Details are in {story}; --resume goes on from here\n"
    )
    assert "RuntimeError: lost" in story.read_text(encoding="utf-8")
    assert tone_runs.record(tmp_path / "out")["error"] == "RuntimeError: lost"

    write_bytes = Storage.write_bytes

    def full(storage: Storage, uri: str, data: bytes) -> None:
        if b'"failed"' in data or uri.endswith("error.txt"):
            raise OSError(28, "No space left on device")
        write_bytes(storage, uri, data)

    monkeypatch.setattr(Storage, "write_bytes", full)
    assert tone_runs.run(*given[:-1], tmp_path / "other") == 3
    assert capsys.readouterr().err == (
        "error: the job failed: RuntimeError: lost\n--resume goes on from here\n"
    )


def test_what_fails_before_a_run_begins_names_no_file(
    clips: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(SeparateJob, "load", fail)
    output = tmp_path / "out"
    assert tone_runs.run("--mixture", clips / "m0.wav", *BELL, "--output", output) == 3
    assert capsys.readouterr().err == "error: the job failed: RuntimeError: a fault of ours\n"
    assert not output.exists()


@pytest.mark.parametrize("redirection", ["| true", ">&- 2>&-"], ids=lambda text: text)
def test_the_screen_does_not_decide_a_run(
    redirection: str, model: str, clips: Path, tmp_path: Path
) -> None:
    command = (
        '"$PYTHON" -m pipelines.separate --mixture "$MIXTURE" --positive bell --model "$MODEL" '
        f'--output "$OUTPUT" --num_threads 1 {redirection}; exit ${{PIPESTATUS[0]}}'
    )
    given = {
        "PYTHON": sys.executable,
        "MIXTURE": str(clips / "m0.wav"),
        "MODEL": model,
        "OUTPUT": str(tmp_path / "out"),
        "PYTHONIOENCODING": "ascii",
    }
    root = Path(__file__).parents[2]
    done = subprocess.run(["bash", "-c", command], cwd=root, env={**os.environ, **given})
    assert done.returncode == 0
    assert tone_runs.record(tmp_path / "out")["status"] == "finished"
    assert list(tone_runs.stems(tmp_path / "out")) == ["stems/m0.flac"]
