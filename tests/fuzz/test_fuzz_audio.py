"""Damaged and lying audio files: an AudioError or samples, soon and in little memory."""

from __future__ import annotations

import functools
import io
import itertools
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

import fuzzing
from bench.formats import EXAMPLES, Example, signal
from bench.mutated_formats import CONTAINERS
from manifests.row import ManifestRow
from transforms.audio import AudioError
from transforms.audio.files import READ_ERRORS, error_code
from transforms.audio.mixtures import ReadSettings, read_mixture
from transforms.long_recordings import LongMixture
from transforms.storage import Storage

SETTINGS = ReadSettings(model_rate_hz=32_000)
FORMS = (
    *(("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("WAVEX", "PCM_24")),
    *(("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")),
    *(("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"), ("W64", "PCM_16")),
    *(("RF64", "PCM_16"), ("NIST", "PCM_16"), ("VOC", "PCM_16"), ("SVX", "PCM_16")),
)


@functools.cache
def whole(form: tuple[str, str]) -> bytes:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    samples = 0.1 * rng.standard_normal((4_000, 1))
    rate_hz = 48_000 if form[1] == "OPUS" else 16_000
    soundfile.write(buffer, samples, rate_hz, format=form[0], subtype=form[1])
    return buffer.getvalue()


def read(path: Path) -> str | None:
    """Reads a file as the main job would, in memory or in blocks; gives what was wrong with it."""
    row = ManifestRow(id="x", mixture_uri=str(path), positive_text="bell")
    try:
        audio = read_mixture(row, Storage(), SETTINGS)
        if audio is None:
            mixture = LongMixture(row, Storage(), mix_down=False, model_rate_hz=32_000)
            for block in itertools.islice(mixture.at_model_rate(), 20):
                assert np.isfinite(block).all()
        else:
            assert np.isfinite(audio.model_audio).all()
            assert audio.model_audio.size <= SETTINGS.max_values
    except READ_ERRORS as err:
        return error_code(err)
    return None


@given(st.sampled_from(FORMS), fuzzing.mutations())
@fuzzing.few(150)
def test_damaged_headers(
    tmp_path_factory: pytest.TempPathFactory,
    form: tuple[str, str],
    mutate: Callable[[bytes], bytes],
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.audio"
    path.write_bytes(mutate(whole(form)))
    with fuzzing.bounded():
        read(path)


@fuzzing.found("audio")
def test_found_files(path: Path) -> None:
    with fuzzing.bounded():
        read(path)


def wav(rate_hz: int, channels: int, num_bytes: int, announced: int | None = None) -> bytes:
    announced = num_bytes if announced is None else announced
    form = (16, 1, channels, rate_hz, (rate_hz * channels * 2) % 2**32, channels * 2 % 2**16, 16)
    head = struct.pack("<4sI4s4s", b"RIFF", (36 + announced) % 2**32, b"WAVE", b"fmt ")
    head += struct.pack("<IHHIIHH", *form)
    return head + struct.pack("<4sI", b"data", announced) + b"\x00\x10" * (num_bytes // 2)


def flac(total_samples: int, rate_hz: int = 16_000) -> bytes:
    """A FLAC whose header says any number of samples."""
    data = bytearray(whole(("FLAC", "PCM_16")))
    packed = int.from_bytes(data[18:26], "big")
    packed = (rate_hz << 44) | (packed & ((1 << 44) - 1) & ~((1 << 36) - 1)) | total_samples
    data[18:26] = packed.to_bytes(8, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (wav(16_000, 1, 8_000, 2**30), "truncated"),
        (wav(16_000, 1, 8_000, 2**31), None),
        (wav(999, 1, 8_000), "rate"),
        (wav(1, 1, 11_000_000), "rate"),  # at 32 kHz this would be 700 GB
        (wav(2**31 - 1, 1, 8_000), "rate"),
        (wav(2**32 - 1, 1, 8_000), None),
        (wav(16_000, 65_535, 2_000_000), None),
        (wav(16_000, 0, 8_000), "not_audio"),
        (flac(2**36 - 1), "truncated"),
        (flac(100), None),
        (flac(0), None),
    ],
)
def test_lying_headers(tmp_path: Path, content: bytes, code: str | None) -> None:
    path = tmp_path / "lie.audio"
    path.write_bytes(content)
    with fuzzing.bounded(tmp_path):
        found = read(path)
    assert found == code or code is None


def test_a_slow_rate_is_streamed_where_it_would_not_fit_at_the_models_rate(tmp_path: Path) -> None:
    path = tmp_path / "slow.wav"
    path.write_bytes(wav(1_000, 1, 2_000_000))  # 1,000 s: 1 million samples, 32 million at 32 kHz
    row = ManifestRow(id="x", mixture_uri=str(path), positive_text="bell")
    assert read_mixture(row, Storage(), SETTINGS) is None


def test_a_part_that_is_longer_than_memory_is_refused_before_it_is_padded(tmp_path: Path) -> None:
    path = tmp_path / "short.wav"
    path.write_bytes(wav(16_000, 1, 8_000))
    sources = {"target_uri": str(path), "interferer_uris": (str(path),)}
    with fuzzing.bounded(tmp_path):
        for row in (
            ManifestRow(id="x", positive_text="bell", duration_s=1e9, **sources),
            ManifestRow(
                id="x",
                positive_text="bell",
                duration_s=150.0,
                **{
                    **sources,
                    "interferer_uris": (str(path),) * 1_000,
                },
            ),
        ):
            with pytest.raises(AudioError, match="do not fit into memory") as caught:
                read_mixture(row, Storage(), SETTINGS)
            assert caught.value.code == "too_long"


@functools.cache
def of_ffmpeg(example: Example) -> bytes:
    rate_hz = example.rates_hz[0]
    return example.make(signal(rate_hz, duration_s=0.5), rate_hz)


@given(st.sampled_from([form for form in EXAMPLES if form.name in CONTAINERS]), fuzzing.mutations())
@fuzzing.few(80)
def test_damaged_files_that_ffmpeg_reads(
    tmp_path_factory: pytest.TempPathFactory,
    example: Example,
    mutate: Callable[[bytes], bytes],
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.audio"
    path.write_bytes(mutate(of_ffmpeg(example)))
    with fuzzing.bounded():
        read(path)
