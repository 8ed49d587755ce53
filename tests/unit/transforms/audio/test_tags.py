"""What recordings say of themselves: read from any format, carried into any other."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from transforms import storage as storage_module
from transforms.audio import AudioPart, Tags, wav_data
from transforms.audio.files import (
    STEM_FORMATS,
    StemFormat,
    StemWriter,
    open_audio,
)
from transforms.storage import Storage

RATE_HZ = 48_000
NOISE = np.random.default_rng(0).uniform(-0.3, 0.3, (1, 3 * RATE_HZ)).astype(np.float32)
PART = AudioPart(sample_rate_hz=RATE_HZ, num_channels=1, start=0, num_samples=NOISE.shape[1])
TEXTS = {
    "title": "Dämmerung: 夜",
    "artist": "A. Bird",
    "album": "Nächte",
    "date": "2024",
    "comment": "first line\nsecond line",
    "genre": "Field",
    "tracknumber": "7/12",
    "copyright": "© nobody",
    "license": "CC0-1.0",
}
LACKING: dict[str, set[str]] = {"wav": {"license"}, "wav16": {"license"}, "mp3": {"license"}}
MOMENT = datetime(2024, 5, 4, 6, 30, 0, 250_000)


def bext(
    date: bytes = b"2024-05-04",
    time: bytes = b"06:30:00",
    since_midnight: int = 0,
    description: bytes = b"a pond",
) -> bytes:
    """The content of a Broadcast Wave chunk, without coding history."""
    head = struct.pack(
        "<256s32s32s10s8sQ", description, b"Recorder", b"REF-1", date, time, since_midnight
    )
    return head + struct.pack("<H", 1) + bytes(254)


Chunk = tuple[bytes, bytes]


def write_wave(
    path: Path, *chunks: Chunk, kind: bytes = b"RIFF", behind: Sequence[Chunk] = ()
) -> Path:
    """A 16-bit WAV file of NOISE with chunks before its samples, and behind them."""
    data = (NOISE[0] * 2**15).astype("<i2").tobytes()
    form = struct.pack("<HHIIHH", 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16)
    every = [(b"fmt ", form), *chunks, (b"data", data), *behind]
    body = b"".join(
        name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
        for name, content in every
    )
    path.write_bytes(kind + struct.pack("<I", 4 + len(body)) + b"WAVE" + body)
    return path


def info(**texts: bytes) -> bytes:
    """The content of an INFO list."""
    found = b"INFO"
    for name, text in texts.items():
        found += name.encode() + struct.pack("<I", len(text)) + text + b"\0" * (len(text) % 2)
    return found


def tags_of(path: Path, offset_s: float | None = None, duration_s: float | None = None) -> Tags:
    with open_audio(Storage(), str(path), offset_s, duration_s) as reader:
        return reader.tags


def write_stem(path: Path, form: StemFormat, tags: Tags) -> Path:
    with contextlib.closing(StemWriter(str(path), PART, form, tags=tags)) as writer:
        writer.write(NOISE)
        writer.complete()
    return path


@pytest.mark.parametrize("form", STEM_FORMATS)
def test_every_stem_format_says_what_it_has_a_place_for(form: StemFormat, tmp_path: Path) -> None:
    path = write_stem(tmp_path / f"a.{STEM_FORMATS[form].ending}", form, Tags(texts=TEXTS))
    expected = {name: TEXTS[name] for name in TEXTS.keys() - LACKING.get(form, set())}
    assert tags_of(path).texts == expected
    with av.open(str(path)) as container:  # as other programs see it
        said = {**container.streams.audio[0].metadata, **container.metadata}
    named = {name.lower(): text for name, text in said.items()}
    assert named["title"] == TEXTS["title"]
    assert named["date"] == TEXTS["date"]
    samples, _ = soundfile.read(path)
    assert len(samples) == NOISE.shape[1]


@pytest.mark.parametrize("form", STEM_FORMATS)
def test_the_time_of_a_stem_is_that_of_its_first_sample(form: StemFormat, tmp_path: Path) -> None:
    source = write_wave(tmp_path / "rec.wav", (b"bext", bext(since_midnight=23_400 * RATE_HZ)))
    tags = tags_of(source, offset_s=1.25)
    assert tags.texts["comment"] == "a pond"
    path = write_stem(tmp_path / f"a.{STEM_FORMATS[form].ending}", form, tags)
    found = tags_of(path)
    assert found.recorded_at == datetime(2024, 5, 4, 6, 30, 1, 250_000)
    assert found.texts["date"] == "2024-05-04T06:30:01.250000"
    assert tags_of(path, offset_s=0.5).recorded_at == datetime(2024, 5, 4, 6, 30, 1, 750_000)


def test_a_broadcast_wave_chunk_behind_the_samples_is_read_too(tmp_path: Path) -> None:
    chunk = (b"bext", bext(since_midnight=23_400 * RATE_HZ))
    path = write_wave(tmp_path / "a.wav", behind=[(b"id3 ", b"odd"), chunk])
    assert tags_of(path, 1.25).recorded_at == datetime(2024, 5, 4, 6, 30, 1, 250_000)
    assert tags_of(path) == tags_of(write_wave(tmp_path / "b.wav", chunk))
    other = (b"bext", bext(date=b"1999-01-01"))
    assert tags_of(write_wave(tmp_path / "c.wav", chunk, behind=[other])) == tags_of(path)


@pytest.mark.parametrize("tail", [b"bext", b"\xff" * 9_000, b"bext\xff\xff\xff\xff" + bytes(700)])
def test_what_is_no_chunk_behind_the_samples_says_nothing(tail: bytes, tmp_path: Path) -> None:
    whole = write_wave(tmp_path / "a.wav", behind=[(b"bext", bext())]).read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:-1])
    plain = write_wave(tmp_path / "plain.wav").read_bytes()
    (tmp_path / "tail.wav").write_bytes(plain + tail)
    for name in ("cut.wav", "tail.wav"):
        assert tags_of(tmp_path / name) == Tags()


def test_tags_at_both_ends_of_a_large_remote_file_cost_a_request_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "LARGE_OBJECT_BYTES", 10_000)
    monkeypatch.setattr(storage_module, "_BLOCK_BYTES", 8_192)
    path = write_wave(tmp_path / "a.wav", (b"LIST", info(INAM=b"pond")), behind=[(b"bext", bext())])
    fsspec.filesystem("memory").pipe_file("/tags/a.wav", path.read_bytes())
    ranges = []
    read_range = Storage.read_range

    def counted(storage: Storage, uri: str, start: int, stop: int) -> bytes:
        ranges.append((start, stop))
        return read_range(storage, uri, start, stop)

    monkeypatch.setattr(Storage, "read_range", counted)
    with open_audio(Storage(), "memory://tags/a.wav", 1.0, 0.01) as reader:
        (block,) = reader.blocks(RATE_HZ)
    assert reader.tags == tags_of(path, 1.0)
    np.testing.assert_allclose(block, NOISE[:, RATE_HZ : RATE_HZ + 480], atol=2**-15)
    size = path.stat().st_size
    assert [stop - start for start, stop in ranges if start == 0] == [8_192]
    assert len([start for start, stop in ranges if stop == size]) == 1
    assert len(ranges) == 3


def test_a_wav_stem_of_a_broadcast_wave_is_one(tmp_path: Path) -> None:
    """By FFmpeg's reading: its time code is that of the part."""
    source = write_wave(tmp_path / "rec.wav", (b"bext", bext(since_midnight=23_400 * RATE_HZ)))
    path = write_stem(tmp_path / "a.wav", "wav16", tags_of(source, offset_s=1.5))
    with av.open(str(path)) as container:
        said = container.metadata
    assert said["originator_reference"] == "REF-1"
    assert said["encoded_by"] == "Recorder"
    assert said["time_reference"] == str(23_400 * RATE_HZ + 3 * RATE_HZ // 2)
    assert said["creation_time"] == "06:30:01"


def test_a_wav_stem_of_a_dated_flac_is_a_broadcast_wave(tmp_path: Path) -> None:
    tags = Tags(texts={"comment": "a pond"}, recorded_at=MOMENT)
    path = write_stem(tmp_path / "a.wav", "wav", tags)
    with path.open("rb") as raw:
        wav = wav_data(raw)
    assert wav is not None
    found = Tags.read(wav.texts, wav.bext, wav.rate_hz)
    assert (found.recorded_at, found.texts["comment"]) == (MOMENT, "a pond")


@pytest.mark.parametrize(
    ("date", "time", "since_midnight", "expected"),
    [
        (b"2024-05-04", b"06:30:00", 0, datetime(2024, 5, 4, 6, 30)),
        (b"2024:05:04", b"06-30-00", 0, datetime(2024, 5, 4, 6, 30)),
        (b"2024/05/04", b"06.30.00", 0, datetime(2024, 5, 4, 6, 30)),
        # The time code counts samples, and agrees with the clock: it has the fraction.
        (b"2024-05-04", b"06:30:00", 23_400 * RATE_HZ + 12_000, MOMENT),
        # A time code that begins at 1 h, as studios have it, is not the time of day.
        (b"2024-05-04", b"06:30:00", 3_600 * RATE_HZ, datetime(2024, 5, 4, 6, 30)),
        (b"2024-05-04", bytes(8), 23_400 * RATE_HZ + 12_000, MOMENT),
        (b"2024-05-04", bytes(8), 0, None),
        (b"2024-05-04", bytes(8), 90_000 * RATE_HZ, None),
        (b"2024-13-04", b"06:30:00", 0, None),
        (b"2024-05-04", b"25:30:00", 0, None),
        (b"0000-00-00", b"00:00:00", 0, None),
        (bytes(10), bytes(8), 0, None),
        (b"yesterday!", b"at noon.", 2**64 - 1, None),
        (b"\xff" * 10, b"\xff" * 8, 2**63, None),
    ],
)
def test_when_a_broadcast_wave_begins(
    date: bytes, time: bytes, since_midnight: int, expected: datetime | None, tmp_path: Path
) -> None:
    chunk = bext(date, time, since_midnight)
    path = write_wave(tmp_path / "rec.wav", (b"bext", chunk))
    assert tags_of(path).recorded_at == expected


def test_a_stretch_of_a_recording_begins_later(tmp_path: Path) -> None:
    path = write_wave(tmp_path / "rec.wav", (b"bext", bext()))
    with open_audio(Storage(), f"{path}#t=0.5") as reader:
        assert reader.tags.recorded_at == datetime(2024, 5, 4, 6, 30, 0, 500_000)


@pytest.mark.parametrize("chunk", [b"", b"short", bext()[:300], b"\xff" * 602, bext()[:346]])
def test_a_damaged_chunk_ends_nothing(chunk: bytes, tmp_path: Path) -> None:
    path = write_wave(tmp_path / "rec.wav", (b"bext", chunk), (b"LIST", b"INFOINAM\x10\0\0\0abc\0"))
    with open_audio(Storage(), str(path)) as reader:
        assert reader.read().shape == NOISE.shape
        write_stem(tmp_path / "a.flac", "flac", reader.tags)


@given(st.binary(max_size=700), st.binary(max_size=100), st.integers(0, 2**32 - 1))
def test_no_content_of_a_chunk_is_an_error(chunk: bytes, text: bytes, rate_hz: int) -> None:
    tags = Tags.read({"title": text.decode("latin-1")}, bext()[: len(text)] + chunk, rate_hz)
    for each in (tags, tags.of_part(2**40, 8_000), tags.of_part(0, 44_100)):
        assert Tags.of_json(each.to_json()) == each
        assert len(each.broadcast(44_100)) in (0, 6)


def test_texts_of_wav_that_libsndfile_does_not_read(tmp_path: Path) -> None:
    """Those before Unicode, and long ones: libsndfile 1.2.2 loses them and all that follow."""
    long = b"x" * 5_000
    chunk = info(INAM="Bäche".encode("latin-1"), ICMT=long, IART=b"A. Bird\0")
    tags = tags_of(write_wave(tmp_path / "rec.wav", (b"LIST", chunk)))
    assert tags.texts == {"title": "Bäche", "comment": long.decode(), "artist": "A. Bird"}
    again = tags_of(write_stem(tmp_path / "a.wav", "wav", tags))
    assert again.texts == {**tags.texts, "comment": "x" * 2_000}
    with soundfile.SoundFile(tmp_path / "a.wav") as file:
        assert (file.title, file.artist) == ("Bäche", "A. Bird")


def test_texts_after_the_samples_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "rec.wav"
    with soundfile.SoundFile(path, "w", RATE_HZ, 1) as file:
        file.write(NOISE[0])
        file.title = "late"
    assert tags_of(path).texts == {"title": "late"}


@pytest.mark.parametrize(
    ("name", "codec", "rate_hz", "comment"),
    [
        ("a.m4a", "aac", 48_000, "short"),
        ("a.webm", "libopus", 48_000, "short"),
        ("a.m4a", "aac", 48_000, 12_000 * "ä"),
    ],
    ids=["m4a", "webm", "long"],
)
def test_formats_that_ffmpeg_reads(
    name: str, codec: str, rate_hz: int, comment: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        container.metadata.update({"title": TEXTS["title"], "artist": "A. Bird", "track": "7"})
        container.metadata["comment"] = comment
        stream = container.add_stream(codec, rate=rate_hz)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(NOISE, format="fltp", layout="mono")
        frame.sample_rate = rate_hz
        resampler = av.AudioResampler(stream.format.name, "mono", rate_hz, stream.frame_size)
        for each in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(stream.encode(each))
    whole = tags_of(path)
    assert whole.texts["title"] == TEXTS["title"]
    assert whole.texts["artist"] == "A. Bird"
    assert whole.texts["comment"] == comment
    for offset_s in (1.0, 2.0):  # the second is read from a decoded copy, unless it says too much
        assert tags_of(path, offset_s, 0.5) == whole


def test_a_dated_part_of_a_decoded_copy(tmp_path: Path) -> None:
    path = write_stem(tmp_path / "a.mp3", "mp3", Tags(texts={"title": "a"}, recorded_at=MOMENT))
    moments = []
    # Without its own count of frames FFmpeg reads it, from the start.
    path.write_bytes(path.read_bytes().replace(b"Xing", b"\0\0\0\0").replace(b"Info", b"\0\0\0\0"))
    for offset_s in (1.0, 2.0, 2.0):
        moments.append(tags_of(path, offset_s, 0.5))
    assert moments[0].recorded_at == MOMENT.replace(second=1)
    assert moments[1] == moments[2]
    assert moments[1].recorded_at == MOMENT.replace(second=2)
    assert moments[1].texts["title"] == "a"


def test_another_process_says_the_same(tmp_path: Path) -> None:
    path = write_wave(tmp_path / "rec.wav", (b"bext", bext()), (b"LIST", info(INAM=b"pond")))
    with open_audio(Storage(isolate_decoder=True), str(path), 1.0) as reader:
        assert reader.tags == tags_of(path, 1.0)
