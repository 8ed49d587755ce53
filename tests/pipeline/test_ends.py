"""What a run says at its end: that nothing was to be done, and places that are there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tone_runs
from pipelines import score, synthesize

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
    assert tone_runs.record(output)["books"]["rows"] == 0


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


def test_what_an_earlier_run_finished_is_named(clips: Path, tmp_path: Path, capsys: Any) -> None:
    given = ("--mixture", clips / "m0.wav", "--positive", "bell", "--output", tmp_path / "out")
    assert tone_runs.run(*given) == 0
    assert tone_runs.run(*given, "--resume") == 0
    said = capsys.readouterr().out
    assert named(said).keys() == {"listen", "numbers", "run"}
