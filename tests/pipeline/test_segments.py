"""Where sounds are: the table of segments, and what becomes of it when a run goes on."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

import metric_rows
import tone_runs
import tones
from manifests.columns import SEGMENTS_SCHEMA
from model import signal

pytestmark = pytest.mark.usefixtures("loaded")
Rows = list[dict[str, Any]]
BELLS = {0: [(1.0, 2.5), (4.0, 5.0)], 1: [(0.0, 6.0)], 2: [], 3: [(2.0, 3.0)]}
"""When the bell of each recording sounds, in seconds of six."""


def write_recordings(folder: Path) -> Rows:
    """Recordings with rain all the time and a bell some of it; the query is the bell."""
    folder.mkdir()
    rows = []
    for number, stretches in BELLS.items():
        mixture = tones.tone("rain", 6.0)
        for start_s, end_s in stretches:
            start, end = round(start_s * tones.RATE_HZ), round(end_s * tones.RATE_HZ)
            mixture[start:end] += tones.tone("bell", end_s - start_s)
        soundfile.write(folder / f"m{number}.wav", mixture, tones.RATE_HZ, "FLOAT")
        rows.append(
            {
                "id": f"clip/{number}",
                "mixture_uri": str(folder / f"m{number}.wav"),
                "positive_text": "bell one",
                "label": "bell",
                "dataset": "even" if number % 2 == 0 else "odd",
            }
        )
    return rows


def run(tmp_path: Path, rows: Rows, *more: str) -> int:
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    given = ["--manifest", manifest, "--output", tmp_path / "out", "--overlap", "0"]
    return tone_runs.run(*given, *more)


def stretches_of(output: Path) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for row in tone_runs.table(output, "segments"):
        found.setdefault(row["id"], []).append((round(row["start_s"], 6), round(row["end_s"], 6)))
    return {row_id: sorted(stretches) for row_id, stretches in found.items()}


EXPECTED = {f"clip/{number}": found for number, found in BELLS.items() if found}


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return write_recordings(tmp_path / "in")


def test_a_row_of_segments_is_a_stretch_in_which_the_stem_is_active(
    tmp_path: Path, rows: Rows
) -> None:
    assert run(tmp_path, rows, "--num_workers", "1") == 0
    out = tmp_path / "out"
    assert stretches_of(out) == EXPECTED
    (file,) = (out / "segments").iterdir()
    assert pq.read_schema(file).names == SEGMENTS_SCHEMA.names
    first = tone_runs.table(out, "segments")[0]
    assert (first["label"], first["positive_text"]) == ("bell", "bell one")
    assert first["mixture_uri"] == str(tmp_path / "in" / "m0.wav")
    assert first["peak_db"] == pytest.approx(10 * np.log10(0.3**2 / 2), abs=0.1)
    assert first["stem_to_mixture_db"] == pytest.approx(-3.0, abs=0.1)
    assert (first["presence"], first["clap_score"]) == (None, None)
    by_id = {row["id"]: row for row in tone_runs.table(out, "metrics")}
    for row_id, row in by_id.items():
        expected = EXPECTED.get(row_id, [])
        assert row["n_segments"] == len(expected)
        assert row["active_s"] == pytest.approx(sum(end - start for start, end in expected))
    counts = tone_runs.record(out)["row_counts"]
    assert (counts["segments"], counts["segments_written"]) == (4, 4)


def test_segments_are_the_same_whatever_the_batches_and_workers(tmp_path: Path, rows: Rows) -> None:
    assert run(tmp_path, rows) == 0
    before = tone_runs.table(tmp_path / "out", "segments")
    assert run(tmp_path, rows[::-1], "--overwrite", "--batch_size", "3") == 0
    assert tone_runs.table(tmp_path / "out", "segments") == before


@pytest.mark.parametrize("rate_hz", [tones.RATE_HZ, 22_050])
def test_a_streamed_recording_has_the_segments_that_it_has_in_memory(
    tmp_path: Path, rows: Rows, rate_hz: int, loaded: tone_runs.Loaded
) -> None:
    separator = tones.SuspiciousSeparator()
    loaded.model = dataclasses.replace(loaded.model, separator=separator)
    for row in rows:
        samples, _ = soundfile.read(row["mixture_uri"])
        again = np.stack([signal.resample(samples, tones.RATE_HZ, rate_hz)] * 2, axis=1)
        soundfile.write(row["mixture_uri"], again, rate_hz, "FLOAT")
    assert run(tmp_path, rows, "--segment_scores") == 0
    in_memory = tone_runs.table(tmp_path / "out", "segments")
    metrics = tone_runs.table(tmp_path / "out", "metrics")
    limit = ("--max_clip_in_memory_s", "0.01")
    assert run(tmp_path, rows, "--segment_scores", "--overwrite", *limit) == 0
    streamed = tone_runs.table(tmp_path / "out", "segments")
    assert [each["id"] for each in streamed] == [each["id"] for each in in_memory]
    for one, other in zip(in_memory, streamed, strict=True):
        assert other == {
            name: pytest.approx(value, abs=1e-3) if isinstance(value, float) else value
            for name, value in one.items()
        }
        assert one["presence"] > 0.5
        assert one["clap_score"] == pytest.approx(1.0, abs=0.05)
    for one, other in zip(metrics, tone_runs.table(tmp_path / "out", "metrics"), strict=True):
        assert other["n_segments"] == one["n_segments"]
        assert other["active_s"] == pytest.approx(one["active_s"])
        assert other["presence"] == pytest.approx(one["presence"], abs=1e-3)


def test_the_presence_of_a_segment_is_that_of_its_windows(
    tmp_path: Path, rows: Rows, loaded: tone_runs.Loaded
) -> None:
    separator = tones.SuspiciousSeparator(window_samples=tones.RATE_HZ)
    loaded.model = dataclasses.replace(loaded.model, separator=separator)
    mixture, _ = soundfile.read(rows[0]["mixture_uri"], dtype="float32")
    quiet = np.concatenate([np.ones(3), np.full(3, 0.1)]).repeat(tones.RATE_HZ)
    soundfile.write(rows[0]["mixture_uri"], mixture * quiet, tones.RATE_HZ, "FLOAT")
    assert run(tmp_path, rows[:1], "--segment_rise_db", "-30") == 0
    first, second = tone_runs.table(tmp_path / "out", "segments")
    (row,) = tone_runs.table(tmp_path / "out", "metrics")
    assert first["presence"] == row["presence"] > second["presence"]


def test_options_say_what_a_segment_is_and_a_clap_score_comes_on_request(
    tmp_path: Path, rows: Rows
) -> None:
    assert run(tmp_path, rows[:1], "--segment_min_gap_s", "2", "--segment_scores") == 0
    (segment,) = tone_runs.table(tmp_path / "out", "segments")
    assert (segment["start_s"], segment["end_s"]) == (pytest.approx(1.0), pytest.approx(5.0))
    assert 0.9 < segment["clap_score"] < 1.0  # the gap has none of the bell
    settings = tone_runs.record(tmp_path / "out")["settings"]
    assert settings["activity"]["min_gap_s"] == 2.0
    assert run(tmp_path, rows[:1], "--overwrite", "--segment_min_length_s", "1.2") == 0
    assert stretches_of(tmp_path / "out") == {"clip/0": [(1.0, 2.5)]}


def test_wrong_options_are_refused(
    tmp_path: Path, rows: Rows, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, rows, "--segment_percentile", "101") == 2
    assert "--segment_percentile=101.0: expected 0 to 100" in capfd.readouterr().err
    assert run(tmp_path, rows, "--segment_scores", "--scorer", "none") == 2
    assert "--segment_scores needs a scorer" in capfd.readouterr().err


def test_rows_that_are_made_again_replace_their_segments(
    tmp_path: Path, rows: Rows, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, rows) == 0
    changed = [{**rows[0], "mixture_uri": rows[3]["mixture_uri"]}, *rows[1:3]]
    assert run(tmp_path, changed, "--resume") == 0
    assert stretches_of(tmp_path / "out") == {
        "clip/0": BELLS[3],
        "clip/1": BELLS[1],
    }
    assert run(tmp_path, changed, "--resume") == 0
    assert tone_runs.record(tmp_path / "out")["row_counts"]["finished_before"] == 3
    assert len(stretches_of(tmp_path / "out")) == 2


def test_segments_of_a_run_that_was_stopped_come_from_its_journal(
    tmp_path: Path, rows: Rows
) -> None:
    with metric_rows.journal_that_fails() as written:
        assert run(tmp_path, rows, "--batch_size", "1") == 3
    assert any(row.segments for row in written)
    assert run(tmp_path, rows, "--resume") == 0
    counts = tone_runs.record(tmp_path / "out")["row_counts"]
    assert counts["recovered"] == len(written)
    assert stretches_of(tmp_path / "out") == EXPECTED


SPOILT: dict[str, Callable[[Path], Any]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "emptied": lambda path: path.write_bytes(b""),
    "of another table": lambda path: pq.write_table(
        pq.ParquetFile(path).read().drop_columns(["start_s"]), path
    ),
}


@pytest.mark.parametrize("how", SPOILT.values(), ids=SPOILT.keys())
def test_a_damaged_file_of_segments_is_named_and_its_rows_are_done_again(
    tmp_path: Path, rows: Rows, how: Callable[[Path], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, rows) == 0
    out = tmp_path / "out"
    (file,) = (out / "segments").iterdir()
    how(file)
    assert run(tmp_path, rows, "--resume") == 0
    said = capfd.readouterr().err
    assert f"{file} could not be read" in said
    assert "3 rows whose segments or embeddings are not all there, taken from the journal" in said
    counts = tone_runs.record(out)["row_counts"]
    assert (counts["finished_before"], counts["stems"]) == (1, 3)
    assert stretches_of(out) == EXPECTED
    assert run(tmp_path, rows, "--resume") == 0
    assert "could not be read" not in capfd.readouterr().err
    assert run(tmp_path, rows, "--overwrite") == 0
    assert not list((out / "segments").glob("_*"))


def test_segments_that_are_gone_and_those_that_are_of_no_row_are_put_right(
    tmp_path: Path, rows: Rows
) -> None:
    """As where a run was killed between the files of two tables."""
    assert run(tmp_path, rows) == 0
    out = tmp_path / "out"
    (file,) = (out / "segments").iterdir()
    table = pq.ParquetFile(file).read()
    pq.write_table(table.slice(1), file)  # one of clip/0 is gone
    for odd in (out / "metrics").rglob("*.parquet"):
        if "odd" in str(odd):
            odd.unlink()  # those of clip/1 and clip/3 are of no row
    assert run(tmp_path, rows, "--resume") == 0
    assert tone_runs.record(out)["row_counts"]["finished_before"] == 1
    assert stretches_of(out) == EXPECTED
    assert len(tone_runs.table(out, "segments")) == 4


def test_a_run_begun_anew_has_no_segments_of_the_one_before(tmp_path: Path, rows: Rows) -> None:
    assert run(tmp_path, rows) == 0
    assert run(tmp_path, rows[2:3], "--overwrite") == 0
    assert stretches_of(tmp_path / "out") == {}
    shutil.rmtree(tmp_path / "out")
    assert run(tmp_path, rows[2:3]) == 0
    assert not (tmp_path / "out" / "segments").exists()
