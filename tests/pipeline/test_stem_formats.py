"""Stems that FLAC cannot hold: they become float WAV, and the run says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import tone_runs
from pipelines import report, score, separate
from transforms.audio.files import open_audio
from transforms.storage import Storage

CASE = Path(__file__).parents[1] / "data" / "cases" / "float_over_full_scale" / "over.wav"
STUB = ("--model", "mixture", "--scorer", "none")
"""A network whose stem is the mixture, so that one knows what must be in the file."""
OVER = "samples over full scale"


def _run(tmp_path: Path, rows: list[dict[str, Any]], *arguments: str) -> int:
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    given = ["--manifest", str(manifest), "--output", str(tmp_path / "out")]
    return separate.run([*given, *STUB, *tone_runs.QUIET, *arguments])


def _row(name: str, path: Path) -> dict[str, Any]:
    return {"id": name, "mixture_uri": str(path), "positive_text": "a bell"}


def _noise(path: Path, rate_hz: int, peak: float, seconds: float = 0.5, from_s: float = 0) -> Path:
    """Noise, of which all before ``from_s`` is quiet."""
    rng = np.random.default_rng(0)
    samples = rng.uniform(-0.5, 0.5, round(seconds * rate_hz)).astype(np.float32)
    samples[-1] = peak
    if from_s:
        samples[: round(from_s * rate_hz)] *= 0.5
    soundfile.write(path, samples, rate_hz, "FLOAT")
    return path


@pytest.mark.parametrize("length", ["clip", "long"])
def test_samples_over_full_scale_are_kept(
    tmp_path: Path, length: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The case ``float_over_full_scale``: a field recording at +12 dB came out clipped."""
    rows = [
        _row("over", CASE),
        _row("late", _noise(tmp_path / "late.wav", 32_000, -1.7, seconds=13.0)),
        _row("full", _noise(tmp_path / "full.wav", 32_000, 1.0)),
        _row("high", _noise(tmp_path / "high.wav", 32_000, 1.000001)),
    ]
    arguments = ("--max_clip_in_memory_s", "0.01") * (length == "long")
    assert _run(tmp_path, rows, *arguments) == 0
    assert "3 stems or residuals are not what --stem_format says" in capsys.readouterr().out

    found = {row["id"]: row for row in tone_runs.table(tmp_path / "out", "metrics")}
    written = {name: (row["stem_format"], row["stem_note"]) for name, row in found.items()}
    assert written == {
        "over": ("wav", OVER),
        "late": ("wav", OVER),
        "full": ("flac", None),
        "high": ("wav", OVER),
    }
    for row in rows:
        stem_uri = found[row["id"]]["stem_uri"]
        assert stem_uri == str(tmp_path / "out" / "stems" / row["id"]) + (
            ".flac" if row["id"] == "full" else ".wav"
        )
        heard, rate_hz = soundfile.read(row["mixture_uri"], dtype="float32")
        stem, _ = soundfile.read(stem_uri, dtype="float32")
        tolerance = 2e-6 if rate_hz == 32_000 else 0.2  # others are resampled there and back
        np.testing.assert_allclose(stem, heard, rtol=0, atol=tolerance)
        assert np.abs(stem).max() == pytest.approx(np.abs(heard).max(), abs=tolerance)
        assert found[row["id"]]["peak"] == pytest.approx(np.abs(stem).max(), abs=2e-6)
    assert len(list((tmp_path / "out" / "stems").iterdir())) == len(rows)
    assert not list((tmp_path / "out").rglob("*.tmp"))


@pytest.mark.parametrize("length", ["clip", "long"])
def test_rates_that_flac_has_not_are_written_as_wav(tmp_path: Path, length: str) -> None:
    rates = {65_535: "flac", 65_536: "wav", 65_540: "flac", 96_000: "flac", 100_001: "wav"}
    rates |= {655_350: "flac", 655_360: "wav", 3_072_000: "wav"}
    rows = [_row(f"{hz}", _noise(tmp_path / f"{hz}.wav", hz, 0.5)) for hz in rates]
    arguments = ("--max_clip_in_memory_s", "0.01") * (length == "long")
    assert _run(tmp_path, rows, *arguments) == 0
    for row in tone_runs.table(tmp_path / "out", "metrics"):
        rate_hz = int(row["id"])
        form = rates[rate_hz]
        assert row["stem_format"] == form
        assert row["stem_uri"].endswith(f"{row['id']}.{form}")
        assert soundfile.info(row["stem_uri"]).samplerate == rate_hz
        expected = None if form == "flac" else f"FLAC has no sample rate of {rate_hz} Hz"
        assert row["stem_note"] == expected
    assert report.run([str(tmp_path / "out"), "--output", str(tmp_path / "report")]) == 0


@pytest.mark.parametrize("length", ["clip", "long"])
@pytest.mark.usefixtures("loaded")
def test_a_residual_has_a_format_of_its_own(tmp_path: Path, length: str) -> None:
    (row,) = tone_runs.write_mixtures(tmp_path / "in", count=1)
    mixture, rate_hz = soundfile.read(row["mixture_uri"], dtype="float32")
    reference, _ = soundfile.read(row["reference_uri"], dtype="float32")
    soundfile.write(row["mixture_uri"], reference + 4 * (mixture - reference), rate_hz, "FLOAT")
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", [row])
    output = tmp_path / "out"
    arguments = ("--max_clip_in_memory_s", "0.01") * (length == "long")
    code = tone_runs.run("--manifest", manifest, "--output", output, "--residual", *arguments)
    assert code == 0
    (found,) = tone_runs.table(output, "metrics")
    assert (found["stem_format"], found["stem_note"]) == ("flac", f"residual: {OVER}")
    assert found["stem_uri"].endswith(".flac")
    assert found["residual_uri"].endswith(".residual.wav")
    residual, _ = soundfile.read(found["residual_uri"], dtype="float32")
    np.testing.assert_allclose(residual, 4 * (mixture - reference), rtol=0, atol=2e-3)
    assert np.abs(residual).max() > 1


def test_what_follows_finds_such_stems(tmp_path: Path) -> None:
    """Going on with the run, scoring its stems and reporting it."""
    rows = [
        {**_row("over", CASE), "reference_uri": str(CASE)},
        {**_row("quiet", _noise(tmp_path / "quiet.wav", 32_000, 0.5))},
    ]
    rows[1]["reference_uri"] = rows[1]["mixture_uri"]
    assert _run(tmp_path, rows) == 0
    before = tone_runs.table(tmp_path / "out", "metrics")
    assert _run(tmp_path, rows, "--resume") == 0
    assert tone_runs.record(tmp_path / "out")["row_counts"]["finished_before"] == len(rows)
    assert tone_runs.table(tmp_path / "out", "metrics") == before

    given = ["--manifest", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "scored")]
    given += ["--stems", str(tmp_path / "out" / "stems"), "--system", "ours", "--scorer", "none"]
    assert score.run([*given, *tone_runs.QUIET]) == 0
    scored = tone_runs.table(tmp_path / "scored", "metrics")
    assert [row["stem_uri"] for row in scored] == [row["stem_uri"] for row in before]
    assert report.run([str(tmp_path / "out"), "--output", str(tmp_path / "report")]) == 0
    assert _run(tmp_path, rows, "--overwrite") == 0
    assert len(list((tmp_path / "out" / "stems").iterdir())) == len(rows)


FORMATS = {
    "flac16": ("flac", "PCM_16", 0.3 * 2**-15),
    "wav16": ("wav", "PCM_16", 0.3 * 2**-15),
    "opus": ("opus", "OPUS", 0.1),
    "mp3": ("mp3", "MPEG_LAYER_III", 0.1),
}


@pytest.mark.parametrize("length", ["clip", "long"])
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_keeps_rate_and_length(tmp_path: Path, form: str, length: str) -> None:
    suffix, subtype, error = FORMATS[form]
    noise = _noise(tmp_path / "a.wav", 48_000, 0.5, seconds=12.3)
    arguments = ["--stem_format", form, "--residual"]
    arguments += ["--max_clip_in_memory_s", "0.01"] * (length == "long")
    assert _run(tmp_path, [_row("a", noise)]) == 0
    exact, _ = soundfile.read(tmp_path / "out" / "stems" / "a.flac", dtype="float32")
    assert _run(tmp_path, [_row("a", noise)], *arguments, "--overwrite") == 0
    (row,) = tone_runs.table(tmp_path / "out", "metrics")
    assert (row["stem_format"], row["stem_note"]) == (form, None)
    stem = tmp_path / "out" / "stems" / f"a.{suffix}"
    assert row["stem_uri"] == str(stem)
    assert (tmp_path / "out" / "stems" / f"a.residual.{suffix}").exists()
    assert soundfile.info(stem).subtype == subtype
    heard, rate_hz = soundfile.read(stem, dtype="float32")
    assert rate_hz == 48_000
    assert heard.shape == exact.shape
    assert np.sqrt(np.mean((heard - exact) ** 2)) < error
    assert _run(tmp_path, [_row("a", noise)], *arguments, "--resume", "--verify") == 0
    (again,) = tone_runs.table(tmp_path / "out", "metrics")
    assert again == row


@pytest.mark.parametrize(
    ("form", "rate_hz", "held_hz"),
    [
        ("opus", 44_100, 48_000),
        ("opus", 32_000, 48_000),
        ("opus", 22_050, 24_000),
        ("opus", 96_000, 48_000),
        ("mp3", 96_000, 48_000),
    ],
)
@pytest.mark.parametrize("length", ["clip", "long"])
def test_a_rate_that_a_lossy_format_lacks_is_resampled(
    tmp_path: Path, form: str, rate_hz: int, held_hz: int, length: str
) -> None:
    noise = _noise(tmp_path / "a.wav", rate_hz, 0.5, seconds=0.6, from_s=0.3)
    more = ["--stem_format", form, "--residual"]
    more += ["--max_clip_in_memory_s", "0.01"] * (length == "long")
    assert _run(tmp_path, [_row("a", noise)], *more) == 0
    (row,) = tone_runs.table(tmp_path / "out", "metrics")
    name = {"opus": "Opus", "mp3": "MP3"}[form]
    note = f"{name} has no sample rate of {rate_hz} Hz: resampled to {held_hz} Hz"
    assert (row["stem_format"], row["stem_note"]) == (form, f"{note}; residual: {note}")
    assert row["sample_rate_hz"] == held_hz
    heard, found_hz = soundfile.read(row["stem_uri"])
    assert found_hz == held_hz
    assert len(heard) == pytest.approx(0.6 * held_hz, abs=1)
    quiet, loud = np.array_split(heard, 2)  # nothing is shifted
    assert np.sqrt(np.mean(loud[50:-50] ** 2)) > 1.8 * np.sqrt(np.mean(quiet[50:-50] ** 2))
    assert _run(tmp_path, [_row("a", noise)], *more, "--resume", "--verify") == 0
    assert tone_runs.record(tmp_path / "out")["row_counts"]["finished_before"] == 1


@pytest.mark.parametrize(("form", "name"), [("opus", "Opus"), ("mp3", "MP3")])
def test_surround_is_flac_where_a_lossy_format_was_asked_for(
    tmp_path: Path, form: str, name: str
) -> None:
    """libsndfile takes the sixth channel of Opus for bass, and others for one another."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (48_000, 6)) * np.linspace(0.2, 1, 6)
    soundfile.write(tmp_path / "a.wav", noise, 48_000, "FLOAT")
    assert _run(tmp_path, [_row("a", tmp_path / "a.wav")], "--stem_format", form) == 0
    (row,) = tone_runs.table(tmp_path / "out", "metrics")
    with open_audio(Storage(), row["stem_uri"]) as reader:
        levels = np.std(reader.read(), axis=1)
    assert list(np.argsort(levels)) == list(range(6))
    note = f"6 channels: {name} is written with at most 2"
    assert (row["stem_format"], row["stem_note"]) == ("flac", note)


def test_quality_decides_the_size(tmp_path: Path) -> None:
    rows = [_row("a", _noise(tmp_path / "a.wav", 48_000, 0.5, seconds=5.0))]
    sizes = []
    for quality in ("0.1", "0.9"):
        words = ("--stem_format", "opus", "--stem_quality", quality, "--overwrite")
        assert _run(tmp_path, rows, *words) == 0
        sizes.append((tmp_path / "out" / "stems" / "a.opus").stat().st_size)
    assert sizes[1] > 2 * sizes[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--stem_quality", "0.5"), "--stem_quality goes with --stem_format opus or mp3"),
        (("--stem_format", "mp3", "--stem_quality", "2"), "--stem_quality=2.0"),
    ],
)
def test_a_quality_that_cannot_be_is_refused(
    tmp_path: Path, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [_row("a", _noise(tmp_path / "a.wav", 48_000, 0.5))]
    assert _run(tmp_path, rows, *words) == 2
    assert said in capsys.readouterr().err
