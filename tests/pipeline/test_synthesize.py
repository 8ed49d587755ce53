"""Mixtures on disk: what is in the files, what the manifest says, and that both repeat."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

import tone_runs
import tones
from model import signal
from pipelines import synthesize

QUIET = ("--progress", "none", "--num_threads", "1")


def write_sources(folder: Path) -> list[dict[str, Any]]:
    folder.mkdir()
    for number, name in enumerate(tones.LABELS):
        samples = 0.3 * tones.tone(name, 0.5, phase=number)
        soundfile.write(folder / f"{name}.wav", samples, 32_000, "FLOAT")
    first, second, third = tones.LABELS[:3]
    queries = {"positive_text": first, "negative_text": second, "dataset": "set one"}
    return [
        {
            "id": "two/one",
            "target_uri": f"in/{first}.wav",
            "interferer_uris": [f"in/{second}.wav"],
            "snr_db": [3.0],
            "duration_s": 1.0,
            "colour": "red",
            **queries,
        },
        {
            "id": "three",
            "target_uris": [f"in/{first}.wav", f"in/{second}.wav"],
            "interferer_uris": [f"in/{third}.wav"],
            **queries,
        },
    ]


def run(manifest: Path, output: Path, *more: str) -> int:
    return synthesize.run(["--manifest", str(manifest), "--output", str(output), *QUIET, *more])


def rows_of(output: Path) -> list[dict[str, Any]]:
    (file,) = (output / "manifest").iterdir()
    rows: list[dict[str, Any]] = pq.ParquetFile(file).read().to_pylist()
    return rows


def test_files_are_the_mixture_by_the_papers_rule(tmp_path: Path) -> None:
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", write_sources(tmp_path / "in"))
    assert run(manifest, tmp_path / "out", "--stem_format", "wav") == 0
    assert not (tmp_path / "out" / "_work").exists()

    three, two = rows_of(tmp_path / "out")
    assert (two["id"], two["snr_db"], two["n_sources"]) == ("two/one", [3.0], 2)
    assert (three["id"], three["n_sources"], three["target_uri"]) == ("three", 3, None)
    assert two["extra_colour"] == "red"
    assert two["positive_text"] == tones.LABELS[0]
    folder = tmp_path / "out" / "manifest"
    mixture, rate_hz = soundfile.read(folder / two["mixture_uri"], dtype="float32")
    reference, _ = soundfile.read(folder / two["reference_uri"], dtype="float32")
    interferer, _ = soundfile.read(folder / two["extra_interferer_files"], dtype="float32")
    sources = [soundfile.read(tmp_path / "in" / f"{name}.wav")[0] for name in tones.LABELS[:2]]
    padded = [np.pad(source, (0, 32_000 - len(source))) for source in sources]
    expected = signal.mix(padded[0], [padded[1]], [3.0])
    assert (rate_hz, len(mixture)) == (32_000, 32_000)
    np.testing.assert_array_equal(mixture, expected.mixture)
    np.testing.assert_array_equal(reference, expected.target)
    np.testing.assert_array_equal(interferer, expected.interferers[0])
    assert len(three["extra_interferer_files"].split(";")) == 1


def test_what_begins_at_known_times_is_listed(tmp_path: Path) -> None:
    rows = write_sources(tmp_path / "in")
    rows[0] |= {"onsets_s": [0.25, 0.75], "duration_s": 1.0, "label": 'a "bell", ringing'}
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    output = tmp_path / "out"
    assert run(manifest, output, "--stem_format", "wav") == 0
    with (output / "events.csv").open(encoding="utf-8", newline="") as stream:
        target, interferer = csv.DictReader(stream)
    assert target == {
        "id": "two/one",
        "mixture_uri": "mixtures/dataset=set%20one/two/one.wav",
        "role": "target",
        "label": 'a "bell", ringing',
        "source_uri": str(tmp_path / "in" / f"{tones.LABELS[0]}.wav"),
        "onset_s": "0.25",
        "offset_s": "0.375",
    }
    assert [interferer[name] for name in ("role", "label", "onset_s", "offset_s")] == [
        *("interferer", "", "0.75", "0.875")
    ]
    mixture, rate_hz = soundfile.read(output / target["mixture_uri"])
    assert np.flatnonzero(mixture)[0] == pytest.approx(0.25 * rate_hz, abs=2)
    (two,) = [row for row in rows_of(output) if row["id"] == "two/one"]
    assert two["onsets_s"] == [0.25, 0.75]

    without = tone_runs.write_manifest(tmp_path / "rows.jsonl", write_sources(tmp_path / "more"))
    assert run(without, output, "--overwrite") == 0
    assert not (output / "events.csv").exists()


def test_a_column_of_ones_own_that_is_called_like_that_of_events_is_carried_along(
    tmp_path: Path,
) -> None:
    rows = write_sources(tmp_path / "in")
    rows[0] |= {"onsets_s": [0.0, 0.25]}
    rows[1] |= {"sound_events": "a bell; a dog"}
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    assert run(manifest, tmp_path / "out") == 0
    three, two = rows_of(tmp_path / "out")
    assert three["extra_sound_events"] == "a bell; a dog"
    with (tmp_path / "out" / "events.csv").open(encoding="utf-8") as file:
        assert {line["id"] for line in csv.DictReader(file)} == {two["id"]}


def test_the_same_seed_gives_the_same_bytes_on_any_runner(tmp_path: Path) -> None:
    rows = write_sources(tmp_path / "in")
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    shuffled = tone_runs.write_manifest(tmp_path / "other.jsonl", rows[::-1])
    drawn = ("--mix_level_range_db", "-5", "5", "--mix_seed", "7")
    assert run(manifest, tmp_path / "one", *drawn) == 0
    assert run(shuffled, tmp_path / "two", *drawn, "--num_workers", "2") == 0
    one, two = (tone_runs.tree(tmp_path / name) for name in ("one", "two"))
    assert one.pop("run.json") != two.pop("run.json")
    assert one == two
    levels = [row["snr_db"][0] for row in rows_of(tmp_path / "one")]
    assert len(set(levels)) == 2
    assert all(-5 <= level <= 5 for level in levels)

    assert run(manifest, tmp_path / "three", *drawn[:-1], "8") == 0
    assert [row["snr_db"][0] for row in rows_of(tmp_path / "three")] != levels


def test_rows_that_cannot_be_mixed_are_dead_letters(tmp_path: Path) -> None:
    rows = write_sources(tmp_path / "in")
    rows.append({**rows[0], "id": "gone", "target_uri": "in/gone.wav"})
    rows.append({"id": "mixed", "mixture_uri": "in/a.wav", "positive_text": "a"})
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)

    assert run(manifest, tmp_path / "out") == 1

    assert [row["id"] for row in rows_of(tmp_path / "out")] == ["three", "two/one"]
    letters = tone_runs.table(tmp_path / "out", "dead_letters")
    found = {row["id"]: (row["stage"], row["error_type"]) for row in letters}
    assert found == {"gone": ("read", "missing"), "mixed": ("read", "no_sources")}
    assert tone_runs.record(tmp_path / "out")["row_counts"]["by_reason"] == {
        "read/missing": 1,
        "read/no_sources": 1,
    }


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--mix_level_range_db", "5", "-5"), "expected LOW <= HIGH"),
        (("--mix_rate_hz", "0"), "--mix_rate_hz=0"),
        (
            ("--mix_rate_hz", "65537"),
            "--mix_rate_hz=65537: FLAC has no sample rate of 65537 Hz; add --stem_format wav",
        ),
        (("--residual",), "unknown flag --residual"),
    ],
)
def test_wrong_flags_are_said_and_nothing_is_run(
    more: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", write_sources(tmp_path / "in"))
    assert run(manifest, tmp_path / "out", *more) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
