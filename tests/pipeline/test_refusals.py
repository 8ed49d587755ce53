"""What cannot be used is refused with exit code 2 and one line, before anything is written."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch

import tone_runs
import tones
from model import devices
from pipelines import report, score, synthesize
from tone_runs import tree

pytestmark = pytest.mark.usefixtures("loaded")

JOBS: dict[str, Callable[[list[str]], int]] = {
    "separate": lambda given: tone_runs.run(*given),
    "score": lambda given: score.run([*given, *tone_runs.QUIET]),
    "synthesize": lambda given: synthesize.run([*given, *tone_runs.QUIET]),
}


def refused(job: str, given: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a job refuses to run."""
    code = JOBS[job](given)
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    error, see, *more = said.err.splitlines()
    assert (see, more) == (f"See python -m pipelines.{job} --help", [])
    assert error.startswith("error: ")
    return error


def without_s3fs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not installed, and nobody had asked for it before in this process."""
    monkeypatch.setitem(sys.modules, "s3fs", None)
    registry = importlib.import_module("fsspec.registry")  # fsspec has another thing of that name
    for protocol in ("s3", "s3a"):
        monkeypatch.delitem(registry._registry, protocol, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A manifest, the results of a run, and a file."""
    manifest = tmp_path / "rows.csv"
    manifest.write_text("id,mixture_uri,positive_text\na,a.wav,dog\n", encoding="utf-8")
    for name in ("run.json", "metrics/part.parquet", "stems/a.flac"):
        path = tmp_path / "done" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"status": "finished", "settings": {}, "config": {}}', encoding="utf-8")
    (tmp_path / "file").write_text("text", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("job", ["separate", "score"])
@pytest.mark.parametrize("where", ["new", "done"])
@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("gpu", "expected auto, cpu, cuda or cuda:N; did you mean cuda?"),
        ("mps", "expected auto, cpu, cuda or cuda:N"),
        ("cuda", "take --device auto or --device cpu"),
        ("cuda:9", "take --device auto or --device cpu"),
    ],
)
def test_a_device_that_is_not_there(
    job: str, where: str, device: str, said: str, folder: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = tree(folder)
    given = ["--manifest", str(folder / "rows.csv"), "--output", str(folder / where)]
    given += ["--device", device, *(["--overwrite"] if where == "done" else [])]
    given += ["--scorer", "none"] if job == "score" else []
    error = refused(job, given, capsys)
    assert f"--device {device}: " in error
    assert said in error
    assert tree(folder) == before


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_precision_that_the_machine_emulates_is_refused_with_the_way_out(
    precision: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (folder / "cpuinfo").write_text("flags : fpu avx2\n", encoding="utf-8")
    monkeypatch.setattr(devices, "_PROCESSOR", folder / "cpuinfo")
    before = tree(folder)
    rows, out = str(folder / "rows.csv"), str(folder / "new")
    given = ["--manifest", rows, "--output", out, "--device", "cpu", "--precision", precision]
    error = refused("separate", given, capsys)
    assert error.startswith(f"error: --precision {precision}: ")
    assert error.endswith("take --precision fp32")
    assert tree(folder) == before


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("{folder}/file", "expected a folder"),
        ("{folder}/file/below/it", "expected a folder"),
        ("/proc/no_place_for_results", "--output: cannot be written"),
        ("nonsense://bucket/out", "nonsense"),
        ("s3://bucket/out", "Install s3fs to access S3; this project's extra s3 brings it"),
        ("{folder}/done", "holds the results of a run; add --"),
    ],
)
def test_an_output_that_cannot_be_one(
    job: str, output: str, said: str, folder: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    without_s3fs(monkeypatch)
    before = tree(folder)
    output = output.format(folder=folder)
    given = ["--manifest", str(folder / "rows.csv"), "--output", output]
    error = refused(job, [*given, *(["--scorer", "none"] if job == "score" else [])], capsys)
    assert output in error
    assert said in error
    assert tree(folder) == before


def test_a_report_that_cannot_be_made(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_s3fs(monkeypatch)
    before = tree(folder)
    assert report.run(["s3://bucket/run", "--output", str(folder / "report")]) == 2
    assert "Install s3fs" in capsys.readouterr().err
    assert tree(folder) == before


@pytest.mark.parametrize("job", JOBS)
def test_a_folder_for_the_output_is_made_with_its_parents(job: str, folder: Path) -> None:
    (folder / "empty.csv").write_text("id,mixture_uri,positive_text\n", encoding="utf-8")
    given = ["--manifest", str(folder / "empty.csv"), "--output", str(folder / "a" / "b" / "out")]
    assert JOBS[job]([*given, *(["--scorer", "none"] if job == "score" else [])]) == 0
    assert (folder / "a" / "b" / "out" / "run.json").is_file()


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--storage_options", "nonsense"], "--storage_options: not JSON"),
        (["--storage_options", '{"s3": "key"}'], "--storage_options: expected"),
        (["--manifest", "s3://bucket/rows.csv"], "Install s3fs"),
        (["--manifest", "nonsense://bucket/rows.csv"], "nonsense"),
        (["--manifest", "/not/there.csv"], "/not/there.csv"),
    ],
)
def test_flags_and_manifests_that_cannot_be_used(
    job: str, more: list[str], said: str, folder: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    without_s3fs(monkeypatch)
    settings = {"score": {"system": "x"}, "synthesize": {"mix_seed": 0}}.get(job, {})
    (folder / "done" / "run.json").write_text(
        json.dumps({"status": "finished", "settings": settings, "config": {}})
    )
    before = tree(folder)
    given = ["--manifest", str(folder / "rows.csv"), "--output", str(folder / "done")]
    given += ["--overwrite", *more, *(["--scorer", "none"] if job == "score" else [])]
    assert said in refused(job, given, capsys)
    assert tree(folder) == before


def write_tone(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tones.tone("bell", 0.5), tones.RATE_HZ)


@pytest.fixture
def stem(tmp_path: Path) -> Path:
    """A stem of a finished run, and other ways to it."""
    write_tone(tmp_path / "a.wav")
    assert tone_runs.run(
        "--mixture", tmp_path / "a.wav", "--positive", "bell", "--output", tmp_path / "out"
    ) == 0  # fmt: skip
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "a link.flac").symlink_to(tmp_path / "out" / "stems" / "a.flac")
    return tmp_path / "out" / "stems" / "a.flac"


@pytest.mark.parametrize(
    "given",
    [
        ["--mixture", "{stem}"],
        ["--mixture", "{folder}/out/../out/stems/a.flac"],
        ["--mixture", "file://{stem}"],
        ["--mixture", "{folder}/link/stems/a.flac"],
        ["--mixture", "{folder}/a link.flac"],
        ["--mixture", "{stem}#t=0,1"],
        ["--mixture", "{folder}/a.wav", "--reference", "{stem}"],
        ["--mixture", "{folder}/a.wav", "--positive_audio", "{stem}"],
        ["--recordings", "{folder}/a.wav", "{folder}/link/stems"],
        ["--recordings", "{folder}/a.wav", "--negative_audio", "{stem}"],
    ],
)
def test_what_a_run_writes_is_not_what_it_reads(
    given: list[str], stem: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, flag = tree(tmp_path), given[-2] if len(given) > 2 else given[0]
    capsys.readouterr()
    given = [word.format(stem=stem, folder=tmp_path) for word in given]
    flag = "--recordings" if "link/stems" in given[-1] and len(given) == 3 else flag
    output = ["--output", str(tmp_path / "out"), "--resume"]
    error = refused("separate", [*given, "--positive", "bell", *output], capsys)
    assert error.startswith(f"error: {flag}: ")
    assert "take another --output" in error
    assert tree(tmp_path) == before


def test_a_row_that_reads_what_the_run_writes_is_a_dead_letter(stem: Path, tmp_path: Path) -> None:
    before = stem.read_bytes()
    rows = [
        {"id": "a", "mixture_uri": "link/stems/a.flac", "positive_text": "bell"},
        {"id": "b", "mixture_uri": "a.wav", "positive_text": "bell"},
        {"id": "c", "mixture_uri": "a.wav", "positive_audio_uris": [str(stem)]},
    ]
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    output = tmp_path / "out"
    arguments = ("--manifest", manifest, "--output", output, "--max_failure_rate", "1")
    assert tone_runs.run(*arguments, "--resume") == 0
    letters = {row["id"]: row["error_type"] for row in tone_runs.table(output, "dead_letters")}
    assert letters == {"a": "own_output", "c": "own_output"}
    assert stem.read_bytes() == before


def test_stems_that_lie_among_recordings_do_not_replace_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tone(tmp_path / "recordings" / "a.flac")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stems").symlink_to(tmp_path / "recordings")
    before = tree(tmp_path)
    given = ["--mixture", str(tmp_path / "recordings" / "a.flac"), "--positive", "bell"]
    error = refused("separate", [*given, "--output", str(tmp_path / "out")], capsys)
    assert "where this run writes" in error
    assert tree(tmp_path) == before
