"""A model of somebody's own: made as docs/training.md says, used by a job, taught by a review."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile

import tone_runs
import tones
from model.training import __main__ as training
from pipelines import separate
from tiny_model import write_tiny_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"
OPTIMISER = {"steps": 2, "validate_every": 2}
QUICK = {"finetuning": {"batch_size": 2, "query_variants": 1, "optimiser": OPTIMISER}}


def commands(section: str) -> list[list[str]]:
    """The words of the commands of a section's first block of shell."""
    text = PAGE.read_text(encoding="utf-8").split(f" {section}\n", 1)[1]
    found = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return [shlex.split(line) for line in found[1].replace("\\\n", " ").splitlines()]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with a small model and quick settings."""
    write_tiny_model(tmp_path / "tiny.safetensors")
    (tmp_path / "quick.json").write_text(json.dumps(QUICK), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def finetune(words: list[str], *more: str) -> int:
    assert words[:4] == ["python", "-m", "model.training", "finetune"]
    chosen = [word.replace("clapsep-mini", "tiny.safetensors") for word in words[3:]]
    return training.run([*chosen, "--settings", "quick.json", "--device", "cpu", *more])


def test_the_commands_of_the_page_run(here: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("tawny owl", "my dog"):
        (here / "mine" / label).mkdir(parents=True)
        for number in range(4):
            noise = 0.1 * rng.standard_normal(16_000)
            soundfile.write(here / "mine" / label / f"{number}.wav", noise, 16_000)
    (here / "archive").mkdir()
    soundfile.write(here / "archive" / "night.wav", 0.1 * rng.standard_normal(48_000), 32_000)
    first, second = commands("Fine-tune on your own sounds")
    assert finetune(first) == 0
    assert second[:3] == ["python", "-m", "pipelines.separate"]
    assert separate.run([*second[3:], "--device", "cpu"]) == 0
    (row,) = tone_runs.table(here / "runs" / "owls", "metrics")
    assert row["model"] == "runs/mine"
    assert row["positive_text"] == "tawny owl"
    record = json.loads((here / "runs" / "mine" / "figures.json").read_text())
    assert row["model_sha256"] == record["files"]["model.safetensors"]


@pytest.mark.usefixtures("loaded")
def test_what_was_judged_of_a_run_is_a_corpus(here: Path) -> None:
    """Segments that a job found, judged as the page of a report saves it."""
    rows = []
    for number in range(4):
        mixture = tones.tone("rain", 6.0, phase=number)
        for start_s in (1.0, 4.0):
            start = round(start_s * tones.RATE_HZ)
            bell = tones.tone("bell", 1.5 if start_s == 1.0 else 1.0, phase=number)
            mixture[start : start + len(bell)] += bell
        soundfile.write(here / f"m{number}.wav", mixture, tones.RATE_HZ, "FLOAT")
        rows.append(
            {"id": f"m/{number}", "mixture_uri": str(here / f"m{number}.wav"),
             "positive_text": "bell one", "label": "bell"}
        )  # fmt: skip
    manifest = tone_runs.write_manifest(here / "rows.jsonl", rows)
    output = here / "runs" / "archive"
    assert tone_runs.run("--manifest", manifest, "--output", output, "--overlap", "0") == 0
    segments = tone_runs.table(output, "segments")
    assert len(segments) == 8
    with (here / "reviews.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("run", "id", "start_s", "end_s", "positive_text", "score", "present"))
        for each in segments:
            present = "yes" if each["start_s"] < 3.0 else "no"
            times = f"{each['start_s']:.3f}", f"{each['end_s']:.3f}"
            writer.writerow(("archive", each["id"], *times, "bell one", "0.5", present))
    (words,) = commands("From segments that you judged")
    assert finetune(words, "--from", "tiny.safetensors") == 0
    with (here / "runs" / "better" / "clips.csv").open(newline="", encoding="utf-8") as stream:
        clips = [row for row in csv.DictReader(stream) if row["sha256_of_samples"]]
    assert {row["label"] for row in clips} == {"bell one", "not bell one"}
    assert {row["use"] for row in clips} == {"held out", "trained on", "left out"}
    assert all(row["label"] != "bell one" for row in clips if row["use"] == "left out")
    ends = [float(row["clip"].rpartition(",")[2]) for row in clips if row["label"] == "bell one"]
    assert ends == pytest.approx([2.5] * 4, abs=0.2)
