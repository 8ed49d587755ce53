"""Titles and times of recordings, in stems and in what is taken along."""

from __future__ import annotations

import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.json
import pyarrow.parquet as pq
import pytest
import soundfile

import tone_runs
from pipelines import export, separate
from transforms.audio.files import open_audio
from transforms.exporting import LAYOUTS
from transforms.storage import Storage

RATE_HZ = 8_000
STUB = ("--model", "mixture", "--scorer", "none")


def _write(path: Path, *, is_dated: bool) -> str:
    """Noise of 4 s in a WAV file that begins at 06:30:00 by its Broadcast Wave chunk, or nowhen."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 4 * RATE_HZ)
    soundfile.write(path, noise, RATE_HZ, "PCM_16", format="WAV")
    if is_dated:
        chunk = struct.pack(
            "<256s32s32s10s8sQ", b"a pond", b"R", b"", b"2024-05-04", b"06:30:00", 0
        )
        chunk += bytes(256)
        data = path.read_bytes()
        chunk = b"bext" + struct.pack("<I", len(chunk)) + chunk
        size = struct.pack("<I", len(data) + len(chunk) - 8)
        path.write_bytes(b"RIFF" + size + data[8:12] + chunk + data[12:])
    return str(path)


@pytest.fixture
def recordings(tmp_path: Path) -> list[dict[str, Any]]:
    """Six dated recordings after two without a time."""
    rows = []
    for number in range(8):
        path = tmp_path / f"rec{number}.wav"
        rows.append(
            {
                "id": f"{number}",
                "mixture_uri": _write(path, is_dated=number >= 2),
                "positive_text": "rain",
                "offset_s": 1.5,
            }
        )
    return rows


def _separate(tmp_path: Path, rows: list[dict[str, Any]], *more: str) -> Path:
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    output = tmp_path / "out"
    words = ["--manifest", str(manifest), "--output", str(output)]
    assert separate.run([*words, *STUB, *tone_runs.QUIET, *more]) == 0
    return output


@pytest.mark.parametrize("length", ["clip", "long"])
def test_stems_begin_when_their_part_of_the_recording_does(
    length: str, tmp_path: Path, recordings: list[dict[str, Any]]
) -> None:
    more = ("--max_clip_in_memory_s", "0.01") * (length == "long")
    output = _separate(tmp_path, recordings[1:3], "--residual", *more)
    said = {}
    for path in sorted((output / "stems").iterdir()):
        with soundfile.SoundFile(path) as file:
            said[path.name] = (file.comment, file.date)
    dated = ("a pond", "2024-05-04T06:30:01.500000")
    assert said == {
        "1.flac": ("", ""),
        "1.residual.flac": ("", ""),
        "2.flac": dated,
        "2.residual.flac": dated,
    }


EXPECTED = {f"{n}/0001": None if n < 2 else "2024-05-04T06:30:01.500000" for n in range(8)}


@pytest.mark.parametrize("signal", ["stem", "mixture"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_says_when_an_item_was_recorded(
    layout: str, signal: str, tmp_path: Path, recordings: list[dict[str, Any]]
) -> None:
    runs = _separate(tmp_path, recordings)
    words = ["--runs", str(runs), "--layout", layout, "--signal", signal]
    output = tmp_path / "taken"
    assert export.run([*words, "--output", str(output), "--progress", "none"]) == 0
    table = pq.read_table(output / "exported").to_pylist()
    assert {row["id"]: row["recorded_at"] for row in table} == EXPECTED
    for path in sorted((output / "data").rglob("*.flac")):
        with open_audio(Storage(), str(path)) as reader:
            moment = reader.tags.recorded_at
        assert (moment is None) == (path.parent.name in "01")


def test_readers_take_a_time_for_a_text(tmp_path: Path, recordings: list[dict[str, Any]]) -> None:
    """Samples with a time come first in a tar; a fraction keeps pyarrow from making a date of it.

    Hugging Face takes types from the first five samples, and JSON is read by pyarrow.
    """
    runs = _separate(tmp_path, recordings)
    for layout in ("webdataset", "audiofolder"):
        words = ["--runs", str(runs), "--layout", layout, "--output", str(tmp_path / layout)]
        assert export.run([*words, "--progress", "none"]) == 0
    (shard,) = (tmp_path / "webdataset" / "data").glob("*.tar")
    with tarfile.open(shard) as tar:
        names = [name for name in tar.getnames() if name.endswith(".json")]
        times = [json.loads(tar.extractfile(name).read())["recorded_at"] for name in names]  # type: ignore[union-attr]
        assert len(tar.getnames()) == 16
    assert [time is None for time in times] == [False] * 6 + [True] * 2
    metadata = tmp_path / "audiofolder" / "data" / "metadata.jsonl"
    assert pyarrow.json.read_json(metadata)["recorded_at"].type == "string"
    found = duckdb.sql(f"SELECT id, recorded_at FROM read_json('{metadata}')").fetchall()  # noqa: S608
    assert dict(found) == EXPECTED
