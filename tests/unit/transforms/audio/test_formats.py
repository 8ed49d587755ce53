"""Every format: the same samples in one piece, in blocks, in parts, streamed and isolated."""

from __future__ import annotations

import errno
import functools
import gzip
import re
import sys
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fuzzing
from bench import formats
from bench.formats import EXAMPLES, Example, by_pyav, by_soundfile, signal
from manifests.audio_formats import AUDIO_SUFFIXES, FORMATS, recognised
from transforms.audio import AudioError, Request, ffmpeg, files
from transforms.audio.files import open_audio
from transforms.storage import Storage

STORAGE = Storage()
APART = Storage(isolate_decoder=True)
ROUNDING = 1e-6
EACH = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
BY_FFMPEG = [
    example for example in EXAMPLES if example.suffix in {".m4a", ".webm", ".aac", ".mp2", ".wma"}
]


@functools.cache
def encoded(example: Example, rate_hz: int, num_channels: int = 1) -> bytes:
    return example.make(signal(rate_hz, num_channels), rate_hz)


def written(folder: Path, example: Example, rate_hz: int, num_channels: int = 1) -> str:
    path = folder / f"{example.rates_hz}{rate_hz}{num_channels}{example.suffix}"
    path.write_bytes(encoded(example, rate_hz, num_channels))
    return str(path)


def whole(path: str, storage: Storage = STORAGE) -> np.ndarray:
    with open_audio(storage, path) as reader:
        return reader.read()


@given(
    st.sampled_from(EXAMPLES),
    st.integers(0, 1),
    st.floats(0.0, 0.999),
    st.floats(0.001, 1.0),
    st.integers(100, 50_000),
)
@fuzzing.few(60)
def test_a_part_is_what_it_is_in_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    example: Example,
    rate: int,
    place: float,
    duration_s: float,
    block_samples: int,
) -> None:
    rate_hz = example.rates_hz[rate % len(example.rates_hz)]
    path = written(tmp_path_factory.getbasetemp(), example, rate_hz)
    everything = whole(path)
    with open_audio(STORAGE, path) as reader:
        offset_s = place * reader.part.duration_s
        end_s = reader.part.duration_s
    for offset in (offset_s, max(0.0, end_s - 0.1 * (1.0 - place))):
        with open_audio(STORAGE, path, offset, duration_s) as reader:
            begin, length = reader.part.start, reader.part.num_samples
            blocks = list(reader.blocks(block_samples))
        assert {block.shape[1] for block in blocks[:-1]} <= {block_samples}
        expected = everything[:, begin : begin + length]
        np.testing.assert_allclose(np.concatenate(blocks, axis=1), expected, atol=ROUNDING)
        assert expected.shape[1] == length


@EACH
def test_a_file_is_known_by_its_content_and_all_of_it_is_read(
    tmp_path: Path, example: Example
) -> None:
    rate_hz = example.rates_hz[0]
    path = tmp_path / "named.wav"
    path.write_bytes(encoded(example, rate_hz))
    samples = whole(str(path))
    source = np.tile(signal(rate_hz), example.num_copies)
    with open_audio(STORAGE, str(path)) as reader:
        factor = reader.part.sample_rate_hz / rate_hz
    assert abs(samples.shape[1] - factor * source.shape[1]) <= 2_700 * factor
    level = np.std(samples) / np.std(source)
    assert 0.7 < level < 1.3


@pytest.mark.parametrize("example", BY_FFMPEG, ids=lambda example: example.name)
def test_streamed_and_isolated_samples_are_the_same(
    tmp_path: Path, example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, example, example.rates_hz[0], 1)
    kept = whole(path)
    np.testing.assert_array_equal(whole(path, APART), kept)
    STORAGE.write_bytes("memory://formats/remote", Path(path).read_bytes())
    np.testing.assert_array_equal(whole("memory://formats/remote"), kept)
    monkeypatch.setattr(ffmpeg, "KEPT_VALUES", 1_000)
    np.testing.assert_array_equal(whole(path), kept)
    with open_audio(STORAGE, path, 0.5, 1.0) as reader:
        part = reader.part
    with open_audio(STORAGE, path, 0.5, 1.0, known=part) as reader:
        assert reader.part == part
        blocks = np.concatenate(list(reader.blocks(777)), axis=1)
    np.testing.assert_array_equal(blocks, kept[:, part.start : part.start + part.num_samples])


@pytest.mark.parametrize("container", ["ipod", "matroska", "ogg"])
def test_two_channels(tmp_path: Path, container: str) -> None:
    codec = {"ipod": "aac", "matroska": "aac", "ogg": "flac"}[container]
    source = signal(16_000, 2)
    (tmp_path / "a").write_bytes(by_pyav(source, 16_000, container, codec, bit_rate=128_000))
    samples = whole(str(tmp_path / "a"))[:, : source.shape[1]]
    for channel in (0, 1):
        error = np.std(samples[channel] - source[channel]) / np.std(source[channel])
        assert error < 0.5  # the two are independent noise: exchanged, it would be 1.4


def test_eight_channels(tmp_path: Path) -> None:
    """As many as a file may have."""
    source = signal(16_000, 8)
    (tmp_path / "a.m4a").write_bytes(by_pyav(source, 16_000, "ipod", "aac", bit_rate=512_000))
    with open_audio(APART, str(tmp_path / "a.m4a")) as reader:
        samples = reader.read()
    assert samples.shape == source.shape
    for channel in (0, 1, 2, 4, 7):  # the fourth is for low frequencies
        error = np.std(samples[channel] - source[channel]) / np.std(source[channel])
        assert error < 0.5


def test_a_link_of_another_rate_and_channels_is_converted_to_the_first(tmp_path: Path) -> None:
    links = [
        by_soundfile(signal(rate_hz, channels), rate_hz, "OGG", "VORBIS")
        for rate_hz, channels in ((44_100, 2), (22_050, 1), (44_100, 2))
    ]
    (tmp_path / "radio.ogg").write_bytes(b"".join(links))
    samples = whole(str(tmp_path / "radio.ogg"))
    assert samples.shape[0] == 2
    assert samples.shape[1] == 3 * 3 * 44_100
    middle = samples[:, round(4.0 * 44_100) : round(5.0 * 44_100)]
    assert np.std(middle) > 0.03


def _m4a(**options: str) -> bytes:
    return by_pyav(signal(16_000), 16_000, "mp4", "aac", **options)


def test_an_mp4_that_was_cut_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "a.m4a"
    data = _m4a(movflags="faststart")
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(AudioError, match=r"its header says 3\.00 s") as caught:
        whole(str(path))
    assert caught.value.code == "truncated"
    with open_audio(STORAGE, str(path), 0.5, 0.5) as reader:  # that much is there
        assert reader.read().shape == (1, 8_000)


def test_an_mp4_without_its_end_is_truncated(tmp_path: Path) -> None:
    data = _m4a()  # what describes the sound follows it
    (tmp_path / "a.m4a").write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match=r"ends \d+ bytes early") as caught:
        whole(str(tmp_path / "a.m4a"))
    assert caught.value.code == "truncated"


@pytest.mark.parametrize(
    "name", ["WebM Opus", "AAC (ADTS)", "MPEG Layer II", "MP3", "AMR", "Ogg Opus", "WMA"]
)
def test_what_does_not_say_how_long_it_is_is_read_as_far_as_it_goes(
    tmp_path: Path, name: str
) -> None:
    example = next(example for example in EXAMPLES if example.name == name)
    rate_hz = example.rates_hz[0]
    data = encoded(example, rate_hz)
    (tmp_path / "a").write_bytes(data[: len(data) * 2 // 3])
    with open_audio(STORAGE, str(tmp_path / "a")) as reader:
        assert 0.9 < reader.part.duration_s < 2.5
        assert np.isfinite(reader.read()).all()


@pytest.mark.parametrize("name", ["MP3 without a header", "AAC (ADTS)", "MPEG Layer II"])
def test_damage_in_the_middle_loses_the_frames_that_are_damaged(tmp_path: Path, name: str) -> None:
    example = next(example for example in EXAMPLES if example.name == name)
    data = bytearray(encoded(example, example.rates_hz[0]))
    middle = len(data) // 2
    data[middle : middle + 700] = bytes(700)
    (tmp_path / "a").write_bytes(data)
    with open_audio(STORAGE, str(tmp_path / "a")) as reader:
        assert 2.5 < reader.part.duration_s < 3.3
        reader.read()


def test_tags_before_the_sound_do_not_hide_what_it_is(tmp_path: Path) -> None:
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 0x4E, 0x10]) + bytes(0x4E << 7 | 0x10)
    for name in ("MP3", "AAC (ADTS)", "FLAC"):
        example = next(example for example in EXAMPLES if example.name == name)
        (tmp_path / "a").write_bytes(tag + encoded(example, 16_000))
        with open_audio(STORAGE, str(tmp_path / "a"), 0.5) as reader:
            assert abs(reader.part.num_samples - 40_000) < 2_000
            reader.read()


def test_a_film_without_sound_holds_none(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "film.mp4"), "w") as film:
        stream = film.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 16
        for _ in range(3):
            film.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        film.mux(stream.encode(None))
    with pytest.raises(AudioError, match="holds no sound") as caught:
        whole(str(tmp_path / "film.mp4"))
    assert caught.value.code == "not_audio"


def test_the_sound_of_a_film_is_read(tmp_path: Path) -> None:
    source = signal(16_000)
    with av.open(str(tmp_path / "film.mkv"), "w") as film:
        pictures = film.add_stream("mpeg4", rate=5)
        pictures.width = pictures.height = 16
        sound = film.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for number in range(15):
            film.mux(pictures.encode(av.VideoFrame(16, 16, "yuv420p")))
            piece = (source[:, number * 3_200 : (number + 1) * 3_200] * 2**15).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16_000, number * 3_200
            film.mux(sound.encode(frame))
        film.mux(pictures.encode(None))
    np.testing.assert_allclose(whole(str(tmp_path / "film.mkv")), source, atol=2**-14)


@pytest.mark.parametrize("content", [b"no sound " * 500, b"\x01" * 5_000, b"RIFF" * 99, b"x"])
def test_what_is_no_sound_says_what_both_readers_found(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(AudioError, match=r"a\.wav: .*libsndfile") as caught:
        whole(str(tmp_path / "a.wav"))
    assert caught.value.code == "not_audio"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\n<!DOCTYPE html><html><title>Not Found</title></html>", "a web page"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "XML or JSON"),
        (b'{"error": {"code": 403}}', "XML or JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "git lfs pull"),
        (b"#EXTM3U\nhttp://127.0.0.1/a.mp3\n", "a playlist"),
        (b"[playlist]\nFile1=http://127.0.0.1/a.mp3\n", "a playlist"),
        (b"PK\x03\x04" + bytes(500), "zip archive"),
        (gzip.compress(b"RIFF", mtime=0), "gzip"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), "a picture"),
        (b"%PDF-1.7\n", "PDF"),
        (b"MThd\x00\x00\x00\x06" + bytes(20), "MIDI"),
        (bytes(5_000), "zeros"),
    ],
)
@pytest.mark.parametrize("storage", [STORAGE, APART])
def test_what_is_no_recording_is_called_what_it_is(
    tmp_path: Path, content: bytes, expected: str, storage: Storage
) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(AudioError, match=rf"a\.wav: is no recording but .*{expected}") as caught:
        whole(str(tmp_path / "a.wav"), storage)
    assert caught.value.code == "not_audio"


def test_a_store_that_fails_while_ffmpeg_reads_is_no_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    STORAGE.write_bytes("memory://formats/failing.aac", encoded(EXAMPLES[-4], 16_000))

    def fail(self: object, num_bytes: int) -> bytes:
        raise ConnectionResetError("gone")

    monkeypatch.setattr(ffmpeg._Nameless, "read", fail)
    with pytest.raises((ConnectionResetError, AudioError), match="gone") as caught:
        whole("memory://formats/failing.aac")
    assert getattr(caught.value, "code", "io_error") == "io_error"


def test_every_suffix_belongs_to_one_format() -> None:
    assert len(set(AUDIO_SUFFIXES)) == len(AUDIO_SUFFIXES)
    assert recognised(b"") is FORMATS[-1]


def test_the_page_shows_the_table_of_formats() -> None:
    page = formats.PAGE.read_text(encoding="utf-8")
    made = page.partition(formats.MARKS[0])[2].partition(formats.MARKS[1])[0]
    assert "\n".join(formats.table_of_formats()) in made
    rows = [line.split("|")[1].strip() for line in re.findall(r"^\|.*$", made, re.M)]
    assert {example.name for example in EXAMPLES} <= set(rows)


def test_without_pyav_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.m4a").write_bytes(_m4a())
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError, match="pip install av"):
        whole(str(tmp_path / "a.m4a"))


def _parts(path: str, storage: Storage) -> list[tuple[int, np.ndarray]]:
    found = []
    for number in range(6):
        with open_audio(storage, path, 0.1 + 0.1 * number, 0.1) as reader:
            found.append((reader.part.start, reader.read()))
    return found


@pytest.mark.parametrize("storage", [STORAGE, APART], ids=["here", "apart"])
def test_parts_of_a_recording_share_a_pass(
    tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.m4a"
    path.write_bytes(by_pyav(signal(16_000), 16_000, "ipod", "aac"))
    everything = whole(str(path))
    passes: list[Request] = []
    opened = ffmpeg.opened

    def watched(raw: BinaryIO, request: Request, *others: Any) -> Any:
        passes.append(request)
        return opened(raw, request, *others)

    monkeypatch.setattr(ffmpeg, "opened", watched)
    for start, samples in _parts(str(path), storage):
        np.testing.assert_array_equal(samples, everything[:, start : start + 1_600])
    if storage is STORAGE:  # the other one decodes where nobody watches
        assert [request.offset_s for request in passes] == [0.1, None]
    with pytest.raises(AudioError, match="past its end"), open_audio(storage, str(path), 1e4):
        pass


def test_parts_are_the_same_where_there_is_no_room_for_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.m4a"
    path.write_bytes(by_pyav(signal(16_000), 16_000, "ipod", "aac"))
    everything = whole(str(path))

    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "copied", full)
    for start, samples in _parts(str(path), STORAGE):
        np.testing.assert_array_equal(samples, everything[:, start : start + 1_600])
