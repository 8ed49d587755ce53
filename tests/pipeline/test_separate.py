"""The main job, run as a user runs it, with the tone separator in the place of a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

import tone_runs
import tones
from pipelines import separate


@pytest.fixture(autouse=True)
def loaded() -> Iterator[tone_runs.Loaded]:
    with tone_runs.tones_as_models() as found:
        yield found


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    tone_runs.write_mixtures(folder)
    return folder


@pytest.fixture(scope="module")
def rows(clips: Path) -> list[dict[str, object]]:
    return tone_runs.write_mixtures(clips)


@pytest.fixture(scope="module")
def plain(rows: list[dict[str, object]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output that other runs are compared with."""
    folder = tmp_path_factory.mktemp("plain")
    manifest = tone_runs.write_manifest(folder / "rows.jsonl", rows)
    with tone_runs.tones_as_models():
        code = tone_runs.run("--manifest", manifest, "--output", folder / "out", "--residual")
    assert code == 0
    return folder / "out"


def test_every_row_has_a_stem_a_row_of_metrics_and_its_place(
    plain: Path, rows: list[dict[str, object]]
) -> None:
    metrics = tone_runs.table(plain, "metrics")
    assert [row["id"] for row in metrics] == sorted(str(row["id"]) for row in rows)
    for row in metrics:
        assert row["sdri_db"] > 30
        assert row["clap_score"] == pytest.approx(1.0)
        assert row["undefined_reason"] is None
        assert row["extra_colour"] == "red"
        assert (row["model"], row["model_sha256"]) == ("tones", "m" * 64)
        assert (row["sample_rate_hz"], row["n_channels"], row["duration_s"]) == (8_000, 1, 1.0)
        stem, rate_hz = soundfile.read(row["stem_uri"])
        assert (rate_hz, len(stem)) == (8_000, 8_000)
        assert soundfile.info(row["stem_uri"]).subtype == "PCM_24"
    assert {p.parent.name for p in (plain / "stems").rglob("*.flac")} == {
        "dataset=even",
        "dataset=odd",
    }
    assert not (plain / "_work").exists()
    assert not (plain / "dead_letters").exists()


def test_stem_and_residual_add_up_to_the_mixture(plain: Path) -> None:
    for row in tone_runs.table(plain, "metrics"):
        stem, _ = soundfile.read(row["stem_uri"])
        residual, _ = soundfile.read(row["residual_uri"])
        source = next(r for r in _sources(plain) if r["id"] == row["id"])
        heard, _ = soundfile.read(source["mixture_uri"])
        np.testing.assert_allclose(stem + residual, heard, atol=2 / 2**23)


def _sources(output: Path) -> list[dict[str, str]]:
    lines = (output.parent / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_record_says_what_was_run_and_what_came_of_it(plain: Path) -> None:
    record = tone_runs.record(plain)
    assert record["status"] == "finished"
    assert record["books"] == {
        "rows": 6,
        "finished_before": 0,
        "stems": 6,
        "dead_letters": 0,
        "recovered": 0,
        "metrics_written": 6,
        "dead_letters_written": 0,
        "by_reason": {},
    }
    assert record["manifests"][0]["rows"] == 6
    assert len(record["manifests"][0]["sha256"]) == 64
    assert record["settings"]["model_sha256"] == "m" * 64
    assert record["versions"]["apache-beam"]
    assert record["counters"]["ReadManifest/in"] == 6
    assert record["audio_s"] == 6.0


def test_the_summary_has_a_line_for_each_metric_of_each_group(plain: Path) -> None:
    summary = tone_runs.table(plain, "summary")
    sdri = {row["dataset"]: row for row in summary if row["metric"] == "sdri_db"}
    metrics = tone_runs.table(plain, "metrics")
    for dataset in ("even", "odd"):
        values = [row["sdri_db"] for row in metrics if row["dataset"] == dataset]
        assert sdri[dataset]["n"] == 3
        assert sdri[dataset]["mean"] == pytest.approx(np.mean(values))
        assert sdri[dataset]["std"] == pytest.approx(np.std(values, ddof=1))
        assert sdri[dataset]["median"] == pytest.approx(np.median(values))
        assert sdri[dataset]["ci95_low"] <= sdri[dataset]["mean"] <= sdri[dataset]["ci95_high"]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_the_format_and_order_of_the_manifest_do_not_matter(
    plain: Path, rows: list[dict[str, object]], ending: str, tmp_path: Path
) -> None:
    manifest = tone_runs.write_manifest(tmp_path / f"rows.{ending}", rows[::-1])
    output = tmp_path / "out"
    assert tone_runs.run("--manifest", manifest, "--output", output, "--residual") == 0
    tone_runs.assert_same_results(plain, output)


def test_the_batch_size_and_the_number_of_threads_do_not_matter(
    plain: Path, rows: list[dict[str, object]], tmp_path: Path
) -> None:
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    output = tmp_path / "out"
    arguments = ["--manifest", str(manifest), "--output", str(output), "--residual"]
    code = separate.run(
        [*arguments, "--batch_size", "1", "--num_threads", "3", "--progress", "none"]
    )
    assert code == 0
    tone_runs.assert_same_results(plain, output)


def test_a_streamed_recording_gives_what_it_gives_in_memory(
    plain: Path, rows: list[dict[str, object]], tmp_path: Path
) -> None:
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    output = tmp_path / "out"
    code = tone_runs.run(
        *("--manifest", manifest, "--output", output, "--residual"),
        *("--max_clip_in_memory_s", 0.01),
    )
    assert code == 0
    tone_runs.assert_same_results(plain, output)


def test_rows_of_one_mixture_share_its_encoding(
    clips: Path, tmp_path: Path, loaded: tone_runs.Loaded
) -> None:
    separator = loaded.model.separator
    assert isinstance(separator, tones.ToneSeparator)
    mixture = str(clips / "m0.wav")
    rows = [
        {"id": f"{label}", "mixture_uri": mixture, "positive_text": label} for label in tones.LABELS
    ]
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    assert tone_runs.run("--manifest", manifest, "--output", tmp_path / "out") == 0
    assert separator.heard == 3  # windows of half a second with a quarter of overlap, in 1 s
    assert len(tone_runs.stems(tmp_path / "out")) == 6


def test_each_distinct_query_is_embedded_once(
    rows: list[dict[str, object]], tmp_path: Path, loaded: tone_runs.Loaded
) -> None:
    encoder = loaded.model.query_encoder
    assert isinstance(encoder, tones.ToneClap)
    many = [
        {**row, "id": f"{row['id']}-{copy}", "offset_s": 0.1 * copy}
        for row in rows
        for copy in range(3)
    ]
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", many)
    assert tone_runs.run("--manifest", manifest, "--output", tmp_path / "out") == 0
    assert len(encoder.embedded) == len(set(encoder.embedded)) == 12


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


def test_too_many_failures_make_the_exit_code_one_after_everything_is_written(
    rows: list[dict[str, object]], tmp_path: Path, capsys
) -> None:
    broken = [*rows, {**rows[0], "id": "gone", "mixture_uri": "gone.wav"}]
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", broken)
    arguments = ["--manifest", manifest, "--output"]
    assert tone_runs.run(*arguments, tmp_path / "strict") == 1
    assert tone_runs.run(*arguments, tmp_path / "lax", "--max_failure_rate", "0.2") == 0
    for output in (tmp_path / "strict", tmp_path / "lax"):
        assert len(tone_runs.table(output, "metrics")) == 6
        (letter,) = tone_runs.table(output, "dead_letters")
        assert (letter["id"], letter["stage"], letter["error_type"]) == ("gone", "read", "missing")
        assert letter["mixture_uri"] == str(tmp_path / "gone.wav")
        assert letter["extra_colour"] == "red"
    assert "14.3% of the rows failed" in capsys.readouterr().out


def test_dead_letters_are_a_manifest(rows: list[dict[str, object]], tmp_path: Path) -> None:
    late = tmp_path / "late.wav"
    manifest = tone_runs.write_manifest(
        tmp_path / "rows.jsonl", [*rows, {**rows[0], "id": "late", "mixture_uri": str(late)}]
    )
    output = tmp_path / "out"
    assert tone_runs.run("--manifest", manifest, "--output", output) == 1
    late.write_bytes(Path(str(rows[0]["mixture_uri"])).read_bytes())
    again = ["--manifest", output / "dead_letters", "--output", output, "--resume"]
    assert tone_runs.run(*again) == 0
    assert len(tone_runs.table(output, "metrics")) == 7
    assert tone_runs.table(output, "dead_letters") == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "--output is required"),
        (["--output", "o"], "expected --manifest URI"),
        (["--output", "o", "--mixture", "a.wav"], "expected a query"),
        (["--output", "o", "--mixture", "a.wav", "--manifest", "b.csv"], "exclude each other"),
        (["--output", "o", "--manifest", "b.csv", "--positive", "x"], "goes with --mixture"),
        (["--output", "o", "--manifest", "nowhere.csv"], "no such file"),
        (["--output", "o", "--mixture", "a", "--positive", "x", "--overlap", "1"], "--overlap"),
        (["--output", "o", "--mixtur", "a"], "is it --mixture?"),
        (["--output", "o", "--manifest", "b.csv", "--runner", "DaskRunner"], "loses data"),
        (["--output", "o", "--manifest", "b", "--storage_options", "x"], "not JSON"),
    ],
)
def test_wrong_usage_is_said_in_a_line(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert separate.run(arguments) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
