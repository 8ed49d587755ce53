from __future__ import annotations

import errno
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from transforms import audio
from transforms.audio import AudioError, AudioPart, files
from transforms.audio.files import StemWriter, open_audio
from transforms.storage import Storage

STORAGE = Storage()


def _noise(num_samples: int = 4_000, channels: int = 2) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform(-0.5, 0.5, (num_samples, channels)).astype(np.float32)


@pytest.fixture
def wav(tmp_path: Path) -> str:
    soundfile.write(tmp_path / "a.wav", _noise(), 8_000, "FLOAT")
    return str(tmp_path / "a.wav")


def test_a_part_is_cut_in_samples_of_the_file(wav: str) -> None:
    with open_audio(STORAGE, wav, 0.1, 0.25) as reader:
        assert reader.part == AudioPart(
            sample_rate_hz=8_000, num_channels=2, start=800, num_samples=2_000
        )
        np.testing.assert_array_equal(reader.read(), _noise()[800:2_800].T)


def test_a_part_ends_with_the_file(wav: str) -> None:
    with open_audio(STORAGE, wav, 0.4, 9.0) as reader:
        assert reader.part.num_samples == 800
        assert (reader.part.start_s, reader.part.duration_s) == (0.4, 0.1)


@pytest.mark.parametrize("block_samples", [1_000, 1_024, 9_999])
def test_blocks_put_together_are_the_whole(wav: str, block_samples: int) -> None:
    with open_audio(STORAGE, wav) as reader:
        blocks = list(reader.blocks(block_samples))
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), _noise().T)


def test_a_remote_file_is_the_same(wav: str) -> None:
    STORAGE.write_bytes("memory://audio-io/a.wav", Path(wav).read_bytes())
    with open_audio(STORAGE, "memory://audio-io/a.wav", 0.1) as reader:
        np.testing.assert_array_equal(reader.read(), _noise()[800:].T)


@pytest.mark.parametrize(
    ("offset_s", "duration_s", "message"),
    [(0.5, None, "past its end"), (None, 1e-5, "less than a sample")],
)
def test_a_part_without_samples_is_refused(
    wav: str, offset_s: float | None, duration_s: float | None, message: str
) -> None:
    with (
        pytest.raises(AudioError, match=message) as caught,
        open_audio(STORAGE, wav, offset_s, duration_s),
    ):
        pytest.fail("opened")
    assert caught.value.code == "zero_duration"


def test_a_wav_of_unknown_length_is_not_called_truncated(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", _noise(), 8_000)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"  # what is written into a pipe
    (tmp_path / "a.wav").write_bytes(data)
    with open_audio(STORAGE, str(tmp_path / "a.wav")) as reader:
        assert reader.part.num_samples == 4_000


@pytest.mark.parametrize("form", ["flac", "wav"])
def test_equal_samples_give_equal_bytes_at_any_time(tmp_path: Path, form) -> None:
    part = AudioPart(sample_rate_hz=44_100, num_channels=2, start=0, num_samples=4_000)
    contents = set()
    for begin in (0, 1_234):
        writer = StemWriter(str(tmp_path / "x"), part, form)
        writer.write(_noise().T[:, :begin])
        writer.write(_noise().T[:, begin:])
        writer.complete()
        contents.add((tmp_path / "x").read_bytes())
        time.sleep(1.1)  # the header of a float WAV would hold the second
    assert len(contents) == 1
    tolerance = 2**-24 if form == "flac" else 0
    np.testing.assert_allclose(soundfile.read(tmp_path / "x")[0], _noise(), atol=tolerance)


def test_flac_saturates_and_says_the_peak(tmp_path: Path) -> None:
    part = AudioPart(sample_rate_hz=8_000, num_channels=1, start=0, num_samples=3)
    writer = StemWriter(str(tmp_path / "x"), part, "flac")
    writer.write(np.array([[-2.0, 0.5, 1.5]], np.float32))
    writer.complete()
    assert writer.peak == 2.0
    np.testing.assert_allclose(soundfile.read(tmp_path / "x")[0], [-1, 0.5, 1], atol=2**-22)


def test_a_float_stem_beyond_four_gigabytes_becomes_rf64(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(files, "_MAX_WAV_BYTES", 8)
    part = AudioPart(sample_rate_hz=8_000, num_channels=1, start=0, num_samples=3)
    writer = StemWriter(str(tmp_path / "x"), part, "wav")
    writer.write(np.array([[0.1, 0.2, 0.3]], np.float32))
    writer.complete()
    assert soundfile.info(tmp_path / "x").format == "RF64"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFoundError(), "missing"),
        (PermissionError(), "permission"),
        (IsADirectoryError(), "not_a_file"),
        (ConnectionResetError(), "io_error"),
        (OSError(errno.ENOSPC, "full"), "disk_full"),
        (OSError(errno.EDQUOT, "over quota"), "disk_full"),
        (OSError(errno.EFBIG, "too large"), "disk_full"),
        (AudioError("silent", ""), "silent"),
    ],
)
def test_errors_have_codes(error: Exception, code: str) -> None:
    assert files.error_code(error) == code
    assert "gs://b/x" in files.describe(error, "gs://b/x")


def joined(folder: Path, ending: str, *lengths: int) -> tuple[Path, np.ndarray]:
    """Files of so many samples, put together as ``cat`` does."""
    rng = np.random.default_rng(0)
    path = folder / f"joined.{ending}"
    parts = [0.1 * rng.standard_normal((2, length)) for length in lengths]
    with open(path, "wb") as whole:
        for number, part in enumerate(parts):
            one = folder / f"{number}.{ending}"
            soundfile.write(one, part.T, 16_000)
            whole.write(one.read_bytes())
    read = [soundfile.read(folder / f"{n}.{ending}", dtype="float32")[0] for n in range(len(parts))]
    return path, np.concatenate(read).T


@pytest.mark.parametrize("lengths", [(5_000, 7_000), (6_000, 6_000, 6_000)])
@pytest.mark.parametrize("looked_through", [2**26, 0])
def test_flac_files_that_were_joined_are_all_read(
    lengths: tuple[int, ...], looked_through: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio, "_LOOKED_THROUGH_BYTES", looked_through)
    monkeypatch.setattr(audio, "_FLAC_FRAME_BYTES", 100)
    path, whole = joined(tmp_path, "flac", *lengths)
    with open_audio(Storage(), str(path)) as reader:
        np.testing.assert_array_equal(reader.read(), whole)
    with open_audio(Storage(), str(path), 0.25, 0.25) as reader:
        np.testing.assert_array_equal(reader.read(), whole[:, 4_000:8_000])


def test_a_flac_with_what_looks_like_another_in_it_is_one(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.zeros((4_000, 1)), 16_000)
    path.write_bytes(path.read_bytes() + b"fLaC and more" + bytes(40) + b"fLaC")
    with open_audio(Storage(), str(path)) as reader:
        assert reader.part.num_samples == 4_000


@pytest.mark.parametrize("ending", ["wav", "aiff", "caf", "w64", "au"])
def test_other_files_that_were_joined_are_refused(ending: str, tmp_path: Path) -> None:
    path, _ = joined(tmp_path, ending, 5_001, 7_000)
    with (
        pytest.raises(AudioError, match="several files in a row") as raised,
        open_audio(Storage(), str(path)),
    ):
        pass
    assert raised.value.code == "not_audio"


def test_a_wav_with_further_chunks_is_one(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros((4_000, 1)), 16_000)
    path.write_bytes(path.read_bytes() + b"LIST\x04\0\0\0RIFF")
    with open_audio(Storage(), str(path)) as reader:
        assert reader.part.num_samples == 4_000
