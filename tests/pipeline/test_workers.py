"""The main job in worker processes, with a real, tiny network: the same as in one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny_model
import tone_runs
from pipelines import separate

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model.write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    rows = tone_runs.write_mixtures(folder / "in", count=6, duration_s=0.9)
    rows[3]["mixture_uri"] = "gone.wav"
    return tone_runs.write_manifest(folder / "rows.jsonl", rows)


def _arguments(manifest: Path, output: Path, model: str) -> list[str]:
    return ["--manifest", str(manifest), "--output", str(output), "--model", model,
            "--progress", "none", "--max_failure_rate", "0.5"]  # fmt: skip


@pytest.fixture(scope="module")
def alone(manifest: Path, model: str) -> Path:
    output = manifest.parent / "alone"
    arguments = _arguments(manifest, output, model)
    assert separate.run([*arguments, "--batch_size", "8", "--num_threads", "2"]) == 0
    assert len(tone_runs.table(output, "metrics")) == 5
    return output


def test_a_real_network_gives_the_same_alone_and_in_batches(
    manifest: Path, model: str, alone: Path
) -> None:
    output = manifest.parent / "single"
    arguments = _arguments(manifest, output, model)
    assert separate.run([*arguments, "--batch_size", "1", "--num_threads", "1"]) == 0
    tone_runs.assert_same_results(alone, output)


def test_two_worker_processes_give_what_one_process_gives(
    manifest: Path, model: str, alone: Path
) -> None:
    output = manifest.parent / "workers"
    arguments = _arguments(manifest, output, model)
    assert separate.run([*arguments, "--num_workers", "2"]) == 0
    tone_runs.assert_same_results(alone, output)
    (letter,) = tone_runs.table(output, "dead_letters")
    assert letter["error_type"] == "missing"


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_soon_and_resuming_completes_it(
    manifest: Path, model: str, alone: Path
) -> None:
    output = manifest.parent / "killed"
    arguments = _arguments(manifest, output, model)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.separate", *arguments, "--num_workers", "2"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )
    deadline_s = time.monotonic() + 240
    workers: list[int] = []
    while len(workers) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        workers = _children(process.pid)
        time.sleep(0.05)
    os.kill(workers[0], signal.SIGKILL)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 3
    assert b"the job failed" in said
    assert _alive(workers[1:]) == []
    assert separate.run([*arguments, "--resume"]) == 0
    tone_runs.assert_same_results(alone, output)


def _children(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(
                line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line
            )
        except OSError:  # it has just ended
            continue
        if fields["PPid"].strip() == str(parent):
            found.append(int(status.parent.name))
    return found


def _alive(processes: list[int]) -> list[int]:
    time.sleep(2.0)
    return [pid for pid in processes if Path(f"/proc/{pid}").exists()]
