"""The bundled model on recordings of any level: what is asked for does not depend on the gain."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

import tone_runs
from model.signal import fit_length, mix
from transforms import model_cache

EXAMPLES = Path(__file__).parents[2] / "manifests" / "examples"
GAINS_DB = (0, 12, -20, -40, -60)
NUM_CLIPS = 2


@pytest.fixture(autouse=True)
def _models() -> Iterator[None]:
    model_cache.forget()
    yield
    model_cache.forget()


def _demo() -> list[dict[str, str]]:
    lines = (EXAMPLES / "demo.csv").read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return list(rows)[:NUM_CLIPS]


def _source(uri: str) -> tuple[np.ndarray, int]:
    samples, rate_hz = soundfile.read(EXAMPLES / uri, dtype="float32", always_2d=True)
    return fit_length(samples.mean(axis=1, dtype=np.float32), 5 * rate_hz), rate_hz


def test_a_recording_gives_the_same_stem_at_any_level(tmp_path: Path) -> None:
    rows = []
    for index, row in enumerate(_demo()):
        target, rate_hz = _source(row["target_uri"])
        mixed = mix(target, [_source(row["interferer_uris"])[0]], [0.0])
        for gain_db in GAINS_DB:
            gain = np.float32(10 ** (gain_db / 20))
            paths = [tmp_path / f"{index} {gain_db} {part}.wav" for part in ("m", "r")]
            for path, samples in zip(paths, (mixed.mixture, mixed.target), strict=True):
                soundfile.write(path, samples * gain, rate_hz, "FLOAT")
            rows.append(
                {
                    "id": f"{index} {gain_db}",
                    "mixture_uri": str(paths[0]),
                    "reference_uri": str(paths[1]),
                    "positive_text": row["positive_text"],
                    "negative_text": row["negative_text"],
                }
            )
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    output = tmp_path / "out"
    arguments = ("--scorer", "none", "--stem_format", "wav")
    assert tone_runs.run("--manifest", manifest, "--output", output, *arguments) == 0
    table = {row["id"]: row for row in tone_runs.table(output, "metrics")}
    for index in range(NUM_CLIPS):
        whole, _ = soundfile.read(table[f"{index} 0"]["stem_uri"], dtype="float32")
        for gain_db in GAINS_DB[1:]:
            found = table[f"{index} {gain_db}"]
            stem, _ = soundfile.read(found["stem_uri"], dtype="float32")
            scaled = stem * np.float32(10 ** (-gain_db / 20))
            np.testing.assert_allclose(scaled, whole, atol=1e-4 * np.abs(whole).max())
            gain = table[f"{index} 0"]["input_gain_db"] - gain_db
            assert found["input_gain_db"] == pytest.approx(gain, abs=1e-3)
            for column in ("sdri_db", "snri_db"):
                assert found[column] == pytest.approx(table[f"{index} 0"][column], abs=0.02)


def test_an_example_clip_asks_for_the_same_at_any_level(tmp_path: Path) -> None:
    row = _demo()[0]
    target, rate_hz = _source(row["target_uri"])
    rows = []
    for gain_db in (0, -40):
        path = tmp_path / f"example {gain_db}.wav"
        soundfile.write(path, target * np.float32(10 ** (gain_db / 20)), rate_hz, "FLOAT")
        rows.append(
            {
                "id": f"by {gain_db}",
                "mixture_uri": str(EXAMPLES / row["interferer_uris"]),
                "positive_audio_uris": [str(path)],
            }
        )
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    output = tmp_path / "out"
    arguments = ("--scorer", "none", "--stem_format", "wav")
    assert tone_runs.run("--manifest", manifest, "--output", output, *arguments) == 0
    loud, quiet = (soundfile.read(path)[0] for path in sorted(output.rglob("*.wav"), reverse=True))
    np.testing.assert_allclose(quiet, loud, atol=1e-4 * np.abs(loud).max())


@pytest.mark.parametrize("in_memory_s", ["60", "1"])
def test_a_constant_offset_does_not_count(tmp_path: Path, in_memory_s: str) -> None:
    rate_hz = 32_000
    samples, _ = soundfile.read(EXAMPLES / "audio" / "mixture_dog_river.flac", dtype="float32")
    quiet = samples * np.float32(0.001)
    recordings = {
        "without": np.stack([quiet, quiet]),
        "with": np.stack([quiet + np.float32(0.05), quiet]),
        "nothing but": np.full((2, len(quiet)), 0.05, np.float32),
    }
    rows = []
    for name, recording in recordings.items():
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, recording.T, rate_hz, "FLOAT")
        asked = {"positive_text": "a dog barking", "negative_text": "a stream of running water"}
        rows.append({"id": name, "mixture_uri": str(path), **asked})
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    output = tmp_path / "out"
    arguments = ("--scorer", "none", "--stem_format", "wav", "--max_clip_in_memory_s", in_memory_s)
    assert tone_runs.run("--manifest", manifest, "--output", output, *arguments) == 0
    table = {row["id"]: row for row in tone_runs.table(output, "metrics")}
    stems = {
        name: soundfile.read(row["stem_uri"], dtype="float32")[0] for name, row in table.items()
    }
    one, other = table["without"], table["with"]
    loudest = np.abs(stems["without"]).max()
    np.testing.assert_allclose(stems["with"], stems["without"], atol=1e-3 * loudest)
    for column in ("input_gain_db", "stem_to_mixture_db", "active_s", "n_segments"):
        assert other[column] == pytest.approx(one[column], abs=1e-2), column
    assert np.abs(stems["nothing but"]).max() < 1e-6
    assert table["nothing but"]["n_segments"] == 0
