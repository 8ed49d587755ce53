"""The main job on every kind of input: recordings, queries, references and scorers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import tone_runs
import tones
from manifests.row import ManifestRow
from transforms import reading

pytestmark = pytest.mark.usefixtures("loaded")


def test_one_recording_without_a_manifest(clips: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out"
    code = tone_runs.run(
        *("--mixture", clips / "m0.wav", "--positive", "bell", "--negative", "dog_bark"),
        *("--reference", clips / "r0.wav", "--output", output),
    )
    assert code == 0
    (row,) = tone_runs.table(output, "metrics")
    assert (row["id"], row["polarity"], row["query_type"]) == ("m0", "P+N", "text")
    assert row["sdri_db"] > 30
    assert Path(row["stem_uri"]).parent == output / "stems"
    said = capsys.readouterr().out
    for path in (output / "stems", output / "metrics", output / "run.json"):
        assert str(path) in said


def test_several_queries_of_one_recording_without_a_manifest(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    read_mixture = reading.read_mixture

    def counting(row: ManifestRow, *rest: Any, **more: Any) -> Any:
        read.append(row.id)
        return read_mixture(row, *rest, **more)

    monkeypatch.setattr(reading, "read_mixture", counting)
    output = tmp_path / "out"
    code = tone_runs.run(
        *("--mixture", clips / "m0.wav", "--positive", "bell", "--positive", "Dog_bark"),
        *("--negative", "others", "--output", output),
    )
    assert code == 0
    rows = tone_runs.table(output, "metrics")
    assert [row["id"] for row in rows] == ["m0/bell", "m0/dog_bark"]
    assert {row["polarity"] for row in rows} == {"P+N"}
    stems = {row["id"]: soundfile.read(row["stem_uri"])[0] for row in rows}
    bell, dog = stems["m0/bell"], stems["m0/dog_bark"]
    mixture = soundfile.read(clips / "m0.wav")[0]
    np.testing.assert_allclose(bell + dog, mixture, atol=1e-2)
    assert len(read) == 1


def test_example_clips_are_queries_too(clips: Path, tmp_path: Path) -> None:
    for label in ("bell", "dog_bark"):
        soundfile.write(tmp_path / f"{label}.wav", tones.tone(label, 0.7), tones.RATE_HZ)
    output = tmp_path / "out"
    code = tone_runs.run(
        *("--mixture", clips / "m0.wav", "--positive_audio", tmp_path / "bell.wav"),
        *(tmp_path / "bell.wav", "--negative_audio", tmp_path / "dog_bark.wav"),
        *("--reference", clips / "r0.wav", "--output", output),
    )
    assert code == 0
    (row,) = tone_runs.table(output, "metrics")
    assert (row["query_type"], row["n_shots"]) == ("audio", 2)
    assert row["sdri_db"] > 30
    assert row["clap_score"] == pytest.approx(1.0)


def test_mixtures_made_on_the_fly_are_scored_against_their_target(
    clips: Path, tmp_path: Path
) -> None:
    rows = [
        {
            "id": f"mix{level}",
            "target_uri": str(clips / "r0.wav"),
            "interferer_uris": [str(clips / "r1.wav"), str(clips / "r2.wav")],
            "snr_db": level,
            "duration_s": 1.5,
            "positive_text": "bell",
        }
        for level in (-5.0, 5.0)
    ]
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    output = tmp_path / "out"
    assert tone_runs.run("--manifest", manifest, "--output", output, "--stem_format", "wav") == 0
    low, high = sorted(tone_runs.table(output, "metrics"), key=lambda row: row["input_snr_db"])
    for row in (low, high):
        assert (row["n_sources"], row["duration_s"]) == (3, 1.5)
        assert row["sdri_db"] > 20
        assert soundfile.info(row["stem_uri"]).subtype == "FLOAT"
    assert low["snr_mixture_db"] == pytest.approx(-5 - 10 * np.log10(2), abs=0.05)
    assert high["snr_mixture_db"] == pytest.approx(5 - 10 * np.log10(2), abs=0.05)


def test_stereo_at_another_rate_comes_back_as_it_was(tmp_path: Path) -> None:
    time_s = np.arange(44_100) / 44_100
    left = 0.2 * np.sin(2 * np.pi * tones.frequency_hz("bell") * time_s)
    right = 0.2 * np.sin(2 * np.pi * tones.frequency_hz("dog_bark") * time_s)
    soundfile.write(tmp_path / "talk.wav", np.stack([left, right], axis=1), 44_100, "FLOAT")
    code = tone_runs.run(
        *("--mixture", tmp_path / "talk.wav", "--positive", "bell", "--output", tmp_path / "out")
    )
    assert code == 0
    (row,) = tone_runs.table(tmp_path / "out", "metrics")
    stem, rate_hz = soundfile.read(row["stem_uri"])
    assert (rate_hz, stem.shape, row["n_channels"]) == (44_100, (44_100, 2), 2)
    middle = slice(5_000, 39_000)
    np.testing.assert_allclose(stem[middle, 0], left[middle], atol=2e-3)
    assert np.abs(stem[middle, 1]).max() < 2e-3


def test_channels_can_be_mixed_down(tmp_path: Path) -> None:
    stereo = np.stack([tones.tone("bell", 1.0), np.zeros(8_000, np.float32)], axis=1)
    soundfile.write(tmp_path / "talk.wav", stereo, 8_000, "FLOAT")
    code = tone_runs.run(
        *("--mixture", tmp_path / "talk.wav", "--positive", "bell", "--channels", "mid"),
        *("--output", tmp_path / "out", "--residual"),
    )
    assert code == 0
    (row,) = tone_runs.table(tmp_path / "out", "metrics")
    assert row["n_channels"] == 1
    assert row["peak"] == pytest.approx(0.15, abs=0.01)


def test_without_a_reference_ratios_are_null_with_a_reason(clips: Path, tmp_path: Path) -> None:
    code = tone_runs.run(
        *("--mixture", clips / "m0.wav", "--negative", "dog_bark", "--output", tmp_path / "out")
    )
    assert code == 0
    (row,) = tone_runs.table(tmp_path / "out", "metrics")
    reasons = dict(part.split("=") for part in row["undefined_reason"].split("; "))
    assert (reasons["sdr_db"], reasons["ref_clap_score"]) == ("no_reference", "no_positive_query")
    assert reasons["clap_score"] == "no_positive_query"
    assert (row["sdr_db"], row["clap_score"]) == (None, None)
    assert row["clap_score_negative"] == pytest.approx(0.0)


def test_a_scorer_of_its_own_and_none(clips: Path, tmp_path: Path) -> None:
    arguments = ["--mixture", clips / "m0.wav", "--positive", "bell", "--output"]
    assert tone_runs.run(*arguments, tmp_path / "other", "--scorer", "another") == 0
    assert tone_runs.run(*arguments, tmp_path / "none", "--scorer", "none") == 0
    (other,) = tone_runs.table(tmp_path / "other", "metrics")
    (none,) = tone_runs.table(tmp_path / "none", "metrics")
    assert (other["clap_score"], other["scorer_sha256"]) == (pytest.approx(1.0), "tones")
    assert (none["clap_score"], none["scorer_sha256"]) == (None, None)
    assert "clap_score=not_scored" in none["undefined_reason"]
