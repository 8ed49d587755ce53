from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from manifests.benchmarks.clips import BenchmarkSetting
from manifests.benchmarks.lists import Pair, read_pairs, read_samples
from manifests.benchmarks.mixtures import BENCHMARKS, build_input_sdr, build_pairs, class_of
from manifests.row import ManifestRow

PAIRS = [
    Pair(
        source_file="x/a.wav",
        positive_caption="the sound of dog",
        noise_file="b.wav",
        negative_caption="the sound of rain",
    )
]
OFFICIAL_LISTS = {
    "audiocaps": "audiocaps",
    "audioset": "audioset",
    "music21": "music",
    "esc50": "esc",
    "fsdkaggle2018": "fsd",
}
LISTS = os.environ.get("CLAPSEP_BENCHMARK_LISTS")


def test_row_of_a_pair():
    (row,) = build_pairs(PAIRS, BENCHMARKS["esc50"], BenchmarkSetting(), audio_root="gs://b/esc")
    assert row == ManifestRow(
        id="x/a--b",
        target_uri="gs://b/esc/x/a.wav",
        interferer_uris=("gs://b/esc/b.wav",),
        snr_db=(0.0,),
        positive_text="the sound of dog",
        negative_text="the sound of rain",
        duration_s=10.0,
        dataset="ESC-50",
        split="test",
        label="dog",
        group="x/a",
    )


@pytest.mark.parametrize(
    ("name", "clip", "recording"),
    [
        ("music21", "-8A_Rz5Jdrw_10.wav", "-8A_Rz5Jdrw"),
        ("music21", "videos/X4UWEifacwI_0.wav", "videos/X4UWEifacwI"),
        ("esc50", "5-210540-B-13.wav", "210540"),
        ("esc50", "audio/1-7973-A-7.wav", "7973"),
        ("fsdkaggle2018", "ac822579.wav", "ac822579"),
        ("audiocaps", "Y7fmOl_10.wav", "Y7fmOl_10"),
    ],
)
def test_targets_of_one_recording_are_a_group(name, clip, recording):
    pair = dataclasses.replace(PAIRS[0], source_file=clip)
    (row,) = build_pairs([pair], BENCHMARKS[name], BenchmarkSetting(), audio_root="/a")
    assert row.group == recording
    named = dataclasses.replace(pair, group="mine")
    (row,) = build_pairs([named], BENCHMARKS[name], BenchmarkSetting(), audio_root="/a")
    assert row.group == "mine"


def test_captions_are_no_labels():
    (row,) = build_pairs(PAIRS, BENCHMARKS["audiocaps"], BenchmarkSetting(), audio_root="/a")
    assert (row.dataset, row.label) == ("AudioCaps", None)


def test_ids_do_not_depend_on_the_setting():
    settings = [BenchmarkSetting(polarity=polarity) for polarity in ("P", "N", "P+N")]
    ids = {
        row.id
        for setting in settings
        for row in build_pairs(PAIRS, BENCHMARKS["esc50"], setting, audio_root="/a", snr_db=5)
    }
    assert ids == {"x/a--b"}


def test_input_levels():
    rows = list(
        build_input_sdr(PAIRS, BENCHMARKS["audiocaps"], BenchmarkSetting(), audio_root="/a")
    )
    assert [(row.id, row.input_snr_db) for row in rows] == [
        ("x/a--b@-10dB", -10.0),
        ("x/a--b@-5dB", -5.0),
        ("x/a--b@+0dB", 0.0),
        ("x/a--b@+5dB", 5.0),
        ("x/a--b@+10dB", 10.0),
    ]


@pytest.mark.parametrize(
    ("caption", "name"),
    [
        ("the sound of mouse click", "mouse click"),
        ("The sounds of A, B and C", "A, B and C"),
        ("of the sound", "of the sound"),
    ],
)
def test_class_of_a_caption(caption, name):
    assert class_of(caption) == name


@pytest.mark.skipif(not LISTS, reason="CLAPSEP_BENCHMARK_LISTS does not name the official lists")
@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_official_lists_give_the_documented_counts(name):
    stem = Path(LISTS) / f"{OFFICIAL_LISTS[name]}_eval"
    samples_file = Path(f"{stem}_samples.csv")
    benchmark = BENCHMARKS[name]
    assert samples_file.exists() == benchmark.has_classes
    setting = (
        BenchmarkSetting(
            modality="both", shots=10, samples=read_samples(str(samples_file)), samples_root="/s"
        )
        if benchmark.has_classes
        else BenchmarkSetting()
    )
    pairs = read_pairs(f"{stem}.csv")
    rows = list(build_pairs(pairs, benchmark, setting, audio_root="/a"))
    assert len(rows) == benchmark.num_rows
    assert len({row.id for row in rows}) == benchmark.num_rows
    assert {row.num_shots for row in rows} == {10 if benchmark.has_classes else 0}
    num_classes = {"MUSIC21": 21, "ESC-50": 50, "FSDKaggle2018": 41}.get(benchmark.dataset, 1)
    assert len({row.label for row in rows}) == num_classes
    num_recordings = {"MUSIC21": 1_045, "ESC-50": 1_217}.get(benchmark.dataset)
    assert num_recordings in (None, len({row.group for row in rows}))
