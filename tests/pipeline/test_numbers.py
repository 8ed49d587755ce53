"""Odd signals end as documented, and the same rows give the same bytes however they are run."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import tone_runs
from manifests.columns import METRIC_COLUMNS
from pipelines import separate

RATE_HZ = 32_000
NUM_SAMPLES = 12_000


def _signals() -> dict[str, np.ndarray]:
    """By name float64[T, C]; those of 192 kHz are six times as long."""
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal((NUM_SAMPLES, 1))
    return {
        "plain": noise,
        "silent": np.zeros_like(noise),
        "clipped": np.clip(1_000 * noise, -1.0, 1.0),
        "direct current": np.full_like(noise, 0.5),
        "offset": noise + 0.5,
        "denormal": noise * 1e-39,
        "tiny": noise * 1e-15,
        "loud": noise * 1e5,
        "one sample": noise[:1],
        "alike": np.repeat(noise, 2, axis=1),
        "192 kHz": np.repeat(noise, 6, axis=0),
    }


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("numbers")
    found = []
    for name, samples in _signals().items():
        rate_hz = 6 * RATE_HZ if name == "192 kHz" else RATE_HZ
        target = samples[:, :1] * np.linspace(0, 1, len(samples))[:, None]
        for kind, content in (("mixture", samples), ("reference", target)):
            soundfile.write(folder / f"{name} {kind}.wav", content, rate_hz, "FLOAT")
        found.append(
            {
                "id": name,
                "mixture_uri": str(folder / f"{name} mixture.wav"),
                "reference_uri": str(folder / f"{name} reference.wav"),
                "positive_text": "a bell",
                "negative_text": "rain",
            }
        )
    same = {**found[0], "id": "mixture is reference", "reference_uri": found[0]["mixture_uri"]}
    silent = {**found[0], "id": "silent reference", "reference_uri": found[1]["reference_uri"]}
    return [*found, same, silent]


def run(output: Path, rows: list[dict[str, Any]], model: str, *more: str) -> None:
    manifest = tone_runs.write_manifest(output.parent / f"{output.name}.jsonl", rows)
    given = ["--manifest", str(manifest), "--output", str(output), "--model", model]
    given += ["--progress", "none", "--max_failure_rate", "1"]
    assert separate.run([*given, *more]) == 0


@pytest.fixture(scope="module")
def output(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], model: str
) -> Path:
    found = tmp_path_factory.mktemp("runs") / "first"
    run(found, rows, model, "--num_threads", "1")
    return found


def digests(output: Path) -> dict[str, str]:
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((output / "stems").rglob("*.flac"))
    }


def test_only_silence_has_no_stem(output: Path, rows: list[dict[str, Any]]) -> None:
    letters = tone_runs.table(output, "dead_letters")
    assert {row["id"]: row["error_type"] for row in letters} == {"silent": "silent"}
    done = {row["id"]: row for row in tone_runs.table(output, "metrics")}
    assert done.keys() == {row["id"] for row in rows} - {"silent"}
    for name, row in done.items():
        samples, rate_hz = soundfile.read(row["stem_uri"], always_2d=True)
        source = soundfile.info(next(r["mixture_uri"] for r in rows if r["id"] == name))
        assert (rate_hz, *samples.shape) == (source.samplerate, source.frames, source.channels)
        assert np.isfinite(samples).all()


def test_every_metric_is_finite_or_says_why_it_is_not(output: Path) -> None:
    for row in tone_runs.table(output, "metrics"):
        for name in METRIC_COLUMNS:
            if row[name] is None:
                assert name in row["undefined_reason"], (row["id"], name)
            else:
                assert math.isfinite(row[name]), (row["id"], name)
                assert abs(row[name]) < 300, (row["id"], name)


def test_what_is_undefined_is_null(output: Path) -> None:
    done = {row["id"]: row for row in tone_runs.table(output, "metrics")}
    for column in ("sdr_db", "si_sdr_db", "snr_db"):
        assert done["silent reference"][column] is None
    for column in ("sdr_mixture_db", "si_sdr_mixture_db", "snr_mixture_db", "sdri_db"):
        assert done["mixture is reference"][column] is None
    assert done["plain"]["sdri_db"] is not None


def test_channels_that_are_alike_give_stems_that_are_alike(output: Path) -> None:
    done = {row["id"]: row for row in tone_runs.table(output, "metrics")}
    samples, _ = soundfile.read(done["alike"]["stem_uri"])
    np.testing.assert_array_equal(samples[:, 0], samples[:, 1])
    alone, _ = soundfile.read(done["plain"]["stem_uri"])
    np.testing.assert_array_equal(samples[:, 0], alone)


def test_another_order_other_batches_and_processes_give_the_same_bytes(
    output: Path, rows: list[dict[str, Any]], model: str
) -> None:
    other = output.parent / "workers"
    run(other, rows[::-1], model, "--num_workers", "2", "--num_threads", "1", "--batch_size", "3")
    assert digests(other) == digests(output)
    tone_runs.assert_same_results(other, output)
    there, here = tone_runs.record(other), tone_runs.record(output)
    assert there["row_counts"] == here["row_counts"]
    assert there["counters"] == here["counters"]
    assert there["audio_s"] == here["audio_s"]


def test_a_run_that_was_resumed_and_other_threads_give_the_same_bytes(
    output: Path, rows: list[dict[str, Any]], model: str
) -> None:
    other = output.parent / "resumed"
    run(other, rows[:5], model, "--num_threads", "2")
    assert set(digests(other).items()) < set(digests(output).items())
    run(other, rows, model, "--num_threads", "2", "--resume")
    assert digests(other) == digests(output)
    assert json.loads((other / "run.json").read_text())["row_counts"]["finished_before"] == 4
