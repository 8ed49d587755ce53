"""Credentials go to file systems, and to nothing that anybody reads."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import report_runs
import tone_runs
from pipelines import report, score, synthesize

SECRET, PASSWORD, SIGNATURE = "f00-storage-secret", "hunter2-password", "5igned-signature"
OPTIONS = json.dumps({"leaky": {"token": SECRET, "nested": {"api_key": SECRET}}})


class LeakyFileSystem(MemoryFileSystem):
    """Says what it was given whenever it can."""

    protocol = "leaky"

    def __init__(self, token: str = "", **options: Any) -> None:
        super().__init__(token=token, **options)
        self._token = token

    def cat_file(self, path: str, *_: Any, **__: Any) -> bytes:
        logging.getLogger("leaky").warning("using %s", self._token)
        raise PermissionError(f"{path}: {self._token} is not allowed")

    size = cat_file


@pytest.fixture(autouse=True)
def _leaky() -> None:
    fsspec.register_implementation("leaky", LeakyFileSystem, clobber=True)


def everything_said(output: Path, captured: Any) -> str:
    said = captured.out + captured.err
    for path in output.rglob("*"):
        if path.is_file() and "dead_letters" not in path.parts:
            said += path.read_bytes().decode("latin-1")
    return said


def test_a_run_says_no_secret(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = tone_runs.write_mixtures(tmp_path / "in", count=1)
    signed = f"leaky://me:{PASSWORD}@bucket/a.wav?sig={SIGNATURE}"
    rows.append({"id": "leaky", "mixture_uri": signed, "positive_text": "bell"})
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    arguments = ("--manifest", manifest, "--output", tmp_path / "out", "--storage_options", OPTIONS)
    with tone_runs.tones_as_models():
        assert tone_runs.run(*arguments, "--log_level", "debug") == 1
    (letter,) = tone_runs.table(tmp_path / "out", "dead_letters")
    said = everything_said(tmp_path / "out", capfd.readouterr()) + letter["message"]
    assert "using ***" in said  # the log line was written
    assert "is not allowed" in letter["message"]
    assert letter["mixture_uri"] == signed  # the row itself, to be run again
    for secret in (SECRET, PASSWORD, SIGNATURE):
        assert secret not in said


def test_a_recording_named_on_the_command_line_is_recorded_without_its_password(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with tone_runs.tones_as_models():
        code = tone_runs.run(
            *("--mixture", f"leaky://me:{PASSWORD}@bucket/a.wav?sig={SIGNATURE}"),
            *("--positive", "bell", "--output", tmp_path / "out", "--storage_options", OPTIONS),
        )
    assert code == 1
    (letter,) = tone_runs.table(tmp_path / "out", "dead_letters")
    said = everything_said(tmp_path / "out", capfd.readouterr()) + letter["message"]
    assert not [secret for secret in (SECRET, PASSWORD, SIGNATURE) if secret in said]


@pytest.mark.parametrize("job", [tone_runs.run, score.run, synthesize.run, report.run])
def test_a_job_that_cannot_begin_says_no_secret(
    job: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = f"leaky://me:{PASSWORD}@bucket/rows.csv?sig={SIGNATURE}"
    shared = ["--output", str(tmp_path / "out"), "--storage_options", OPTIONS]
    if job is report.run:
        code = job([place, *shared])
    elif job is tone_runs.run:
        code = job("--manifest", place, *shared)
    else:
        code = job(["--manifest", place, *shared])
    captured = capfd.readouterr()
    assert code == 2
    assert "error: " in captured.err
    said = captured.out + captured.err
    assert not [secret for secret in (SECRET, PASSWORD, SIGNATURE) if secret in said]


def test_a_report_of_an_older_run_hides_what_that_run_wrote_down(tmp_path: Path) -> None:
    signed = f"https://me:{PASSWORD}@h/a.wav?sig={SIGNATURE}"
    letter = {"stage": "read", "error_type": "missing", "message": f"{signed}: no", "id": "a"}
    record = {"config": {"model": signed, "manifests": [signed]}}
    run = report_runs.write_run(tmp_path / "run", [report_runs.clip(0)], [letter], record=record)
    assert report.run([str(run), "--output", str(tmp_path / "out")]) == 0
    for path in (tmp_path / "out").rglob("*.*"):
        content = path.read_bytes().decode("latin-1")
        assert PASSWORD not in content
        assert SIGNATURE not in content
