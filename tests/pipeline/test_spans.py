"""Stretches of recordings, ``rec.wav#t=6.3,7.0``, as example clips, mixtures and references."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

import tone_runs
import tones

pytestmark = pytest.mark.usefixtures("loaded")


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """A second of silence, a second of a bell, and one of a dog."""
    silence = np.zeros(tones.RATE_HZ, np.float32)
    samples = np.concatenate([silence, tones.tone("bell", 1.0), tones.tone("dog_bark", 1.0)])
    soundfile.write(tmp_path / "long.wav", samples, tones.RATE_HZ, "FLOAT")
    return tmp_path / "long.wav"


def test_an_example_may_be_a_stretch_of_a_recording(
    clips: Path, long: Path, tmp_path: Path
) -> None:
    rows = [
        {
            "id": name,
            "mixture_uri": str(clips / "m0.wav"),
            "reference_uri": str(clips / "r0.wav"),
            "positive_audio_uris": [f"{long.name}#t={span}"],
        }
        for name, span in (("bell", "1.1,1.9"), ("dog", "2.1"), ("late", "9,10"))
    ]
    rows[2]["mixture_uri"] = str(clips / "m1.wav")
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    output = tmp_path / "out"
    assert tone_runs.run("--manifest", manifest, "--output", output) == 1
    bell, dog = tone_runs.table(output, "metrics")
    assert bell["sdri_db"] > 30
    assert dog["sdri_db"] < 0
    assert bell["positive_audio_uris"] == [f"{long}#t=1.1,1.9"]
    (letter,) = tone_runs.table(output, "dead_letters")
    assert letter["error_type"] == "zero_duration"


@pytest.mark.parametrize("in_memory_s", ["60", "0.1"])
def test_a_mixture_may_be_a_stretch_and_a_part_of_it(
    long: Path, tmp_path: Path, in_memory_s: str
) -> None:
    """The same part of the same file, however it is named; in memory and streamed."""
    reference = tmp_path / "reference.wav"
    soundfile.write(reference, tones.tone("bell", 1.0), tones.RATE_HZ, "FLOAT")
    asked = {"positive_text": "bell"}
    rows = [
        {"id": "columns", "mixture_uri": long.name, "offset_s": 1.25, "duration_s": 0.5, **asked},
        {"id": "span", "mixture_uri": f"{long.name}#t=1.25,1.75", **asked},
        {"id": "both", "mixture_uri": f"{long.name}#t=1,1.75", "offset_s": 0.25, **asked},
        {
            "id": "scored",
            "mixture_uri": f"{long.name}#t=1.25,1.75",
            "reference_uri": f"{reference.name}#t=0.25,0.75",
            **asked,
        },
    ]
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    output = tmp_path / "out"
    given = ("--manifest", manifest, "--max_clip_in_memory_s", in_memory_s)
    assert tone_runs.run(*given, "--output", output) == 0
    found = {row["id"]: row for row in tone_runs.table(output, "metrics")}
    stems = {name: soundfile.read(row["stem_uri"])[0] for name, row in found.items()}
    for name in ("span", "both", "scored"):
        np.testing.assert_array_equal(stems[name], stems["columns"])
        assert found[name]["clap_score"] == pytest.approx(found["columns"]["clap_score"], abs=1e-6)
    assert len(stems["span"]) == tones.RATE_HZ / 2
    assert found["scored"]["ref_clap_score"] == pytest.approx(1.0, abs=1e-3)


def test_a_stretch_on_the_command_line(long: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out"
    given = ("--positive_audio", f"{long}#t=1.1,1.9", "--output", output)
    assert tone_runs.run("--mixture", f"{long}#t=1.5,2.5", *given) == 0
    (row,) = tone_runs.table(output, "metrics")
    assert (row["id"], row["duration_s"]) == ("long", 1.0)
    other = ("--positive", "bell", "--output", tmp_path / "other")
    assert tone_runs.run("--mixture", f"{long}#t=2,1", *other) == 2
    assert "--mixture: " in (said := capsys.readouterr().err)
    assert "ends before it begins" in said


def test_what_may_be_read_is_decided_without_the_fragment(long: Path, tmp_path: Path) -> None:
    rows = [
        {"id": name, "mixture_uri": uri, "positive_text": "bell"}
        for name, uri in (("in", f"{long}#t=1,2"), ("out", "/etc/passwd#t=1,2"))
    ]
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    output = tmp_path / "out"
    given = ("--manifest", manifest, "--allowed_uri_prefix", tmp_path, "--output", output)
    assert tone_runs.run(*given) == 1
    (row,) = tone_runs.table(output, "metrics")
    (letter,) = tone_runs.table(output, "dead_letters")
    assert (row["id"], letter["id"], letter["error_type"]) == ("in", "out", "uri_not_allowed")
