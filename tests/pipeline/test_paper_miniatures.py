"""A miniature of each of the paper's benchmarks, from the bundled clips to the report."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

import tone_runs
import tones
from manifests.benchmarks.__main__ import run as build
from pipelines import report

pytestmark = pytest.mark.usefixtures("loaded")
AUDIO = str(resources.files("manifests") / "examples" / "audio")
CLIPS = ("dog_barking", "bell", "cat_meowing", "tabla", "rooster_crowing", "river", "fireworks")
BENCHMARKS = {
    "audiocaps": "AudioCaps",
    "audioset": "AudioSet",
    "music21": "MUSIC21",
    "esc50": "ESC-50",
    "fsdkaggle2018": "FSDKaggle2018",
}


def write_pairs(path: Path, offset: int, count: int = 1) -> Path:
    """Pairs of bundled clips in the format of the official lists; no two offsets share a pair."""
    lines = ["source_file,positive_caption,noise_file,negative_caption"]
    for number in range(count):
        target, other = CLIPS[number], CLIPS[(number + 1 + offset) % len(CLIPS)]
        wanted, unwanted = tones.LABELS[number], tones.LABELS[number + 3]  # known to the separator
        captions = f"the sound of {wanted}", f"the sound of {unwanted}"
        lines.append(f"{target}.flac,{captions[0]},{other}.flac,{captions[1]}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_every_benchmark_runs_from_its_list_to_the_report(tmp_path: Path) -> None:
    manifests = []
    for offset, command in enumerate(BENCHMARKS):
        pairs = write_pairs(tmp_path / f"{command}.csv", offset)
        manifests.append(str(tmp_path / f"{command}.parquet"))
        flags = ["--pairs", str(pairs), "--audio_root", AUDIO, "--output", manifests[-1]]
        assert build([command, *flags]) == 0

    output = tmp_path / "out"
    assert tone_runs.run("--manifest", *manifests, "--output", output, "--scorer", "none") == 0

    metrics = tone_runs.table(output, "metrics")
    assert {row["dataset"] for row in metrics} == set(BENCHMARKS.values())
    assert len(metrics) == len(BENCHMARKS)
    for row in metrics:
        assert (row["query_type"], row["polarity"], row["n_sources"]) == ("text", "P+N", 2)
        assert (row["input_snr_db"], row["duration_s"]) == (0.0, 10.0)
        assert row["sdri_db"] is not None
        assert abs(row["snr_mixture_db"]) < 0.01
    assert report.run([str(output), "--output", str(tmp_path / "report")]) == 0
    table = (tmp_path / "report" / "tables.md").read_text(encoding="utf-8")
    for name in BENCHMARKS.values():
        assert f"| out | {name.replace('-', chr(92) + '-')} | text P\\+N |" in table
    assert table.count("CLAPSep\\-hybrid\\: ") >= len(BENCHMARKS)


def test_levels_and_sources_run_to_their_curves(tmp_path: Path) -> None:
    pairs = ["--pairs", str(write_pairs(tmp_path / "pairs.csv", 0, count=3))]
    common = [*pairs, "--audio_root", AUDIO]
    sweep, several = str(tmp_path / "sweep.jsonl"), str(tmp_path / "several.jsonl")
    one = ["--pairs", str(write_pairs(tmp_path / "one.csv", 0)), "--audio_root", AUDIO]
    assert build(["input_sdr", *one, "--output", sweep]) == 0
    assert build(["multisource", *common, "--num_sources", "2", "3", "--output", several]) == 0

    output = tmp_path / "out"
    arguments = ("--manifest", sweep, several, "--output", output, "--scorer", "none")
    assert tone_runs.run(*arguments) == 0

    metrics = tone_runs.table(output, "metrics")
    levels = [row["snr_mixture_db"] for row in metrics if row["dataset"] == "AudioCaps"]
    assert sorted(round(level) for level in levels) == [-10, -5, 0, 5, 10]
    splits = {row["split"] for row in metrics if row["dataset"] == "multisource"}
    assert splits == {"2-sources-1-targets", "3-sources-1-targets", "3-sources-2-targets"}
    assert report.run([str(output), "--output", str(tmp_path / "report"), "--listen", "0"]) == 0
    plots = {path.name for path in (tmp_path / "report" / "plots").iterdir()}
    assert {"levels-01.png", "sources-01.png"} <= plots
