"""Extraction from Python gives the bits of the pipeline: the same functions compute both."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

import tone_runs
from model.extract import Extraction, Extractor
from transforms.audio import AudioPart
from transforms.audio.files import StemWriter

EXAMPLES = Path(__file__).resolve().parents[2] / "manifests" / "examples" / "audio"
MIXTURE = EXAMPLES / "mixture_dog_river.flac"


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return Extractor("clapsep-mini", device="cpu", num_threads=1)


def _pipeline(output: Path, mixture: Path, *flags: str | Path) -> list[bytes]:
    """The files of the stem and of the residual of a run on one recording."""
    code = tone_runs.run(
        *("--mixture", mixture, "--output", output, "--residual", "--scorer", "none"),
        *("--device", "cpu", *flags),
    )
    assert code == 0
    files = sorted((output / "stems").rglob("*.flac"), key=lambda path: "residual" in path.name)
    assert len(files) == 2
    return [file.read_bytes() for file in files]


def _as_files(found: Extraction[np.ndarray], rate_hz: int, folder: Path) -> list[bytes]:
    """Stem and residual in the files that the pipeline would write."""
    written = []
    for name, samples in (("stem", found.stem), ("residual", found.residual)):
        channels = np.atleast_2d(samples)
        part = AudioPart(
            sample_rate_hz=rate_hz,
            num_channels=len(channels),
            start=0,
            num_samples=channels.shape[1],
        )
        writer = StemWriter(str(folder / name), part, "flac")
        writer.write(channels)
        writer.complete()
        written.append((folder / name).read_bytes())
    return written


def _recording(folder: Path, seconds: float) -> tuple[Path, np.ndarray]:
    """A recording of 44.1 kHz in stereo whose level falls, and its samples float32[T, 2]."""
    mono, _ = soundfile.read(MIXTURE, dtype="float32")
    length = round(seconds * 44_100)
    left = np.resize(mono, length)
    stereo = np.stack([left, np.roll(left, 20_000)], axis=1)
    stereo *= np.linspace(1.0, 0.1, length, dtype=np.float32)[:, None]
    path = folder / "recording.wav"
    soundfile.write(path, stereo, 44_100, "FLOAT")
    return path, stereo


def test_the_demo_mixture_gives_the_stem_of_the_pipeline(
    extractor: Extractor, tmp_path: Path
) -> None:
    query = ("--positive", "a dog barking", "--negative", "a stream of running water")
    expected = _pipeline(tmp_path / "out", MIXTURE, *query)
    samples, rate_hz = soundfile.read(MIXTURE)
    found = extractor(samples, rate_hz, "a dog barking", "a stream of running water")
    assert _as_files(found, rate_hz, tmp_path) == expected
    columns = ("start_s", "end_s", "peak_db", "stem_to_mixture_db")
    segments = [
        {name: row[name] for name in columns}
        for row in tone_runs.table(tmp_path / "out", "segments")
    ]
    assert segments
    assert [dataclasses.asdict(each) for each in found.segments or ()] == segments
    (row,) = tone_runs.table(tmp_path / "out", "metrics")
    assert found.presence == row["presence"]


def test_examples_give_the_stem_of_the_pipeline(extractor: Extractor, tmp_path: Path) -> None:
    positive, negative = EXAMPLES / "rooster_crowing.flac", EXAMPLES / "river.flac"
    path, stereo = _recording(tmp_path, 3.0)
    expected = _pipeline(
        tmp_path / "out",
        path,
        *("--positive", "a rooster", "--positive_audio", positive, MIXTURE),
        *("--negative_audio", negative, "--text_weight", "0.25"),
    )
    found = extractor(
        stereo.T,
        44_100,
        positive="a rooster",
        examples=[soundfile.read(positive), soundfile.read(MIXTURE)],
        negative_examples=soundfile.read(negative),
        text_weight=0.25,
    )
    assert _as_files(found, 44_100, tmp_path) == expected


@pytest.mark.parametrize("streamed", [False, True])
def test_44_khz_stereo_gives_the_stem_of_the_pipeline_however_it_is_read(
    extractor: Extractor, tmp_path: Path, streamed: bool
) -> None:
    """33 s: more than one gain. A pipeline that may hold 10 s in memory streams them."""
    path, stereo = _recording(tmp_path, 33.0)
    limit = ("--max_clip_in_memory_s", "10") if streamed else ()
    expected = _pipeline(tmp_path / "out", path, "--positive", "a dog barking", *limit)
    found = extractor(stereo.T, 44_100, positive="a dog barking")
    assert _as_files(found, 44_100, tmp_path) == expected

    def blocks() -> Iterator[np.ndarray]:
        for block in soundfile.blocks(path, blocksize=100_003, dtype="float32"):
            yield block.T

    pieces = list(extractor.stream(blocks(), 44_100, positive="a dog barking"))
    joined = Extraction(
        stem=np.concatenate([piece.stem for piece in pieces], axis=1),
        residual=np.concatenate([piece.residual for piece in pieces], axis=1),
    )
    assert _as_files(joined, 44_100, tmp_path) == expected
