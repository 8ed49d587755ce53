"""The main job, run as a user runs it, with the tone separator in the place of a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

import tone_runs
import tones
from pipelines import separate

pytestmark = pytest.mark.usefixtures("loaded")


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
        assert row["undefined_reason"] == "presence=no_presence_output"
        assert row["extra_colour"] == "red"
        assert (row["model"], row["model_sha256"]) == ("tones", "m" * 64)
        assert (row["sample_rate_hz"], row["n_channels"], row["duration_s"]) == (8_000, 1, 1.0)
        stem, rate_hz = soundfile.read(row["stem_uri"])
        assert (rate_hz, len(stem)) == (8_000, 8_000)
        assert soundfile.info(row["stem_uri"]).subtype == "PCM_24"
    folder = plain / "stems"
    places = {path.relative_to(folder).as_posix() for path in folder.rglob("*.flac")}
    names = {f"dataset={row['dataset']}/{row['id']}" for row in rows}
    assert places == {f"{name}{end}.flac" for name in names for end in ("", ".residual")}
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
    assert record["row_counts"] == {
        "rows": 6,
        "finished_before": 0,
        "stems": 6,
        "dead_letters": 0,
        "recovered": 0,
        "metrics_written": 6,
        "dead_letters_written": 0,
        "by_reason": {},
        "skipped": {},
        "segments": 6,
        "segments_written": 6,
        "embeddings": 0,
        "embeddings_written": 0,
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
        (["--output", "o", "--mixture", "a.wav"], "needs a query: --positive TEXT"),
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
