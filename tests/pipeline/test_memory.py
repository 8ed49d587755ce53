"""Memory that does not grow with the length of a recording or the number of clips."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import tone_runs

ROOT = Path(__file__).parents[2]
RUN = """
import sys
sys.path[:0] = ["tests", "."]
import tone_runs
from pipelines.flags import leave
with tone_runs.tones_as_models():
    code = tone_runs.run(*sys.argv[1:])
leave(lambda: code)
"""


def _peak_kib(*arguments: str) -> int:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss


def _write(path: Path, seconds: int, rate_hz: int = 16_000) -> Path:
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", rate_hz, 2) as file:
        for _ in range(seconds):
            file.write(0.1 * rng.standard_normal((rate_hz, 2)))
    return path


@pytest.mark.slow
def test_a_recording_four_times_as_long_takes_the_same_memory(tmp_path: Path) -> None:
    peaks = []
    for times in (1, 4):
        mixture = _write(tmp_path / f"{times}.flac", times * 900)
        peaks.append(
            _peak_kib(
                *("--mixture", str(mixture), "--positive", "bell", "--reference", str(mixture)),
                *("--residual", "--output", str(tmp_path / f"out{times}")),
            )
        )
    assert peaks[1] < 1.1 * peaks[0], peaks


HOURS = 8
WATCHED = """
import json, resource, sys
from pipelines import separate
from transforms.tables import row_counts

shown = row_counts.under_way
told = []

def noted(rows, audio_s):
    told.append((rows, audio_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
    shown(rows, audio_s)

row_counts.under_way = noted
code = separate.run([*sys.argv[2:], "--progress", "none"])
with open(sys.argv[1], "w") as file:
    json.dump(told, file)
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_recording_of_eight_hours_takes_no_more_memory_as_it_goes_and_is_seen_to_go(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    minute = 0.1 * rng.standard_normal(60 * 16_000).astype(np.float32)
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 16_000, 1) as file:
        for _ in range(60 * HOURS):
            file.write(minute)
    arguments = ["--mixture", str(tmp_path / "long.flac"), "--positive", "a bell"]
    arguments += ["--model", "mixture", "--scorer", "none", "--output", str(tmp_path / "out")]
    notes = tmp_path / "told.json"
    subprocess.run(
        [sys.executable, "-c", WATCHED, str(notes), *arguments],
        cwd=ROOT, stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    rows, audio_s, peaks = np.array(json.loads(notes.read_text())).T
    assert len(rows) > 50 * HOURS  # once for each minute that is heard
    assert (rows[:-1] > 0).all()
    assert np.cumsum(audio_s)[-2] == pytest.approx(3_600 * HOURS)
    assert (rows.sum(), audio_s.sum()) == pytest.approx((0.0, 0.0), abs=1e-6)
    tenth = len(peaks) // 10
    assert peaks[-1] < 1.1 * peaks[tenth]


@pytest.mark.slow
def test_four_times_as_many_clips_take_the_same_memory(tmp_path: Path) -> None:
    mixture = _write(tmp_path / "m.flac", 300)
    peaks = []
    for times in (1, 4):
        rows = [
            {
                "id": f"{number}",
                "mixture_uri": str(mixture),
                "reference_uri": str(mixture),
                "positive_text": "bell",
                "offset_s": number * 0.25,
                "duration_s": 5.0,
            }
            for number in range(times * 250)
        ]
        manifest = tone_runs.write_manifest(tmp_path / f"{times}.jsonl", rows)
        output = str(tmp_path / f"out{times}")
        peaks.append(_peak_kib("--manifest", str(manifest), "--output", output))
    assert peaks[1] < 1.1 * peaks[0], peaks
