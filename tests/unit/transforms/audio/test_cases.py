"""Files that people met, of which less or other sound was read than they hold."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from bench.formats import by_pyav, by_soundfile, signal
from transforms.audio import AudioError
from transforms.audio.files import open_audio
from transforms.storage import Storage

CASES = Path(__file__).parents[3] / "data" / "cases"
STORAGE = Storage()


@pytest.mark.parametrize(
    ("name", "rate_hz", "num_samples"),
    [
        ("mp3_without_xing/cut_with_header.mp3", 16_000, 35_183),
        ("mp3_without_xing/ffmpeg_pipe_44100.mp3", 44_100, 133_632),
        ("mp3_without_xing/two_files_joined.mp3", 16_000, 194_159),
        ("mp3_without_xing/vbr_loud_first.mp3", 44_100, 200_448),
        ("mp3_without_xing/with_header.mp3", 16_000, 96_000),
        ("mpeg_in_wav_and_mp2/a.mp2", 44_100, 66_816),
        ("mpeg_in_wav_and_mp2/mp3_in.wav", 44_100, 67_968),
        ("flac_unknown_length/ffmpeg_pipe.flac", 16_000, 24_000),
        ("flac_unknown_length/flac_stdin.flac", 16_000, 24_000),
        ("chained_ogg/two_links.ogg", 16_000, 48_000),
        ("chained_ogg/two_links.opus", 48_000, 144_000),
        ("wav_stream_sizes/arecord_80000000.wav", 16_000, 24_000),
        ("wav_stream_sizes/sox_pipe_7ffff000.wav", 16_000, 24_000),
        ("wav_stream_sizes/writer_adds_36.wav", 16_000, 24_000),
        ("wav_unseekable_codecs/GSM610.wav", 8_000, 12_160),
        ("wav_unseekable_codecs/NMS_ADPCM_16.wav", 8_000, 12_000),
        ("phone_and_web_formats/a.m4a", 16_000, 24_000),
        ("phone_and_web_formats/a.webm", 48_000, 72_208),
        ("phone_and_web_formats/m4a_named.wav", 16_000, 24_000),
    ],
)
@pytest.mark.parametrize("isolated", [False, True])
def test_all_of_it_is_read(name: str, rate_hz: int, num_samples: int, *, isolated: bool) -> None:
    with open_audio(Storage(isolate_decoder=isolated), str(CASES / name)) as reader:
        assert (reader.part.sample_rate_hz, reader.part.num_samples) == (rate_hz, num_samples)
        samples = reader.read()
    assert samples.shape == (1, num_samples)
    assert np.abs(samples).max() > 0.3


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_links_of_different_serial_numbers_are_all_read(tmp_path: Path, subtype: str) -> None:
    rate_hz = 48_000
    source = signal(rate_hz)
    soundfile.write(tmp_path / "a", source.T, rate_hz, format="OGG", subtype=subtype)
    soundfile.write(tmp_path / "b", source.T, rate_hz, format="OGG", subtype=subtype)
    (tmp_path / "ab.ogg").write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    for offset_s in (None, 1.0, 4.0):
        with open_audio(STORAGE, str(tmp_path / "ab.ogg"), offset_s, None) as reader:
            length = reader.part.num_samples
            samples = reader.read()
        expected = 2 * source.shape[1] - round((offset_s or 0.0) * rate_hz)
        assert length == expected
        assert np.abs(samples[:, -rate_hz:]).max() > 0.05


def _sizes(samples: np.ndarray, announced: int, riff: int, tail: bytes = b"") -> bytes:
    data = bytearray(by_soundfile(samples, 16_000, "WAV", "PCM_16"))
    data[4:8], data[40:44] = struct.pack("<I", riff), struct.pack("<I", announced)
    return bytes(data) + tail


NUM_BYTES = 2 * 48_000
LIST = b"LIST" + struct.pack("<I", 4) + b"INFO"


@pytest.mark.parametrize(
    ("announced", "riff", "tail"),
    [
        (0, 0, b""),  # power was lost
        (0, 36, b""),
        (0x7FFF_F000, 0x7FFF_F024, b""),  # sox
        (0x7FFF_FFFF, 0x7FFF_FFFF, b""),
        (0x8000_0000, 0x8000_0024, b""),  # arecord
        (0xFFFF_FFFF, 0xFFFF_FFFF, b""),  # FFmpeg
        (0xFFFF_FFDB, 0xFFFF_FFFF, b""),
        (NUM_BYTES + 36, NUM_BYTES + 36, b""),
        (NUM_BYTES + 44, NUM_BYTES + 36, b""),
        (2 * NUM_BYTES, 2 * NUM_BYTES + 36, b""),
        (2 * NUM_BYTES, NUM_BYTES + 36, b""),
        (NUM_BYTES, 0, b""),
        (NUM_BYTES, NUM_BYTES + 48, LIST),
        (NUM_BYTES, NUM_BYTES + 36, b"ID3 and what else is behind"),
    ],
)
@pytest.mark.parametrize("remote", [False, True])
def test_sizes_that_are_guesses(
    tmp_path: Path, announced: int, riff: int, tail: bytes, *, remote: bool
) -> None:
    source = signal(16_000)
    uri = "memory://sizes/a.wav" if remote else str(tmp_path / "a.wav")
    STORAGE.write_bytes(uri, _sizes(source, announced, riff, tail))
    for offset_s in (None, 2.75):
        with open_audio(STORAGE, uri, offset_s) as reader:
            begin = reader.part.start
            samples = reader.read()
        np.testing.assert_allclose(samples, source[:, begin:], atol=2**-15)


@pytest.mark.parametrize("cut", [2, 20, 30_000, NUM_BYTES // 2 + 24])
def test_a_wav_that_was_cut_is_truncated(tmp_path: Path, cut: int) -> None:
    data = by_soundfile(signal(16_000), 16_000, "WAV", "PCM_16")
    (tmp_path / "a.wav").write_bytes(data[:-cut])
    with pytest.raises(AudioError, match="its header says 96000") as caught:
        open_audio(STORAGE, str(tmp_path / "a.wav")).__enter__()
    assert caught.value.code == "truncated"


def test_a_wav_without_samples_has_none(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(_sizes(np.zeros((1, 0), np.float32), 0, 48, LIST))
    with pytest.raises(AudioError, match="no samples") as caught:
        open_audio(STORAGE, str(tmp_path / "a.wav")).__enter__()
    assert caught.value.code == "zero_duration"


@pytest.mark.parametrize("form", ["RIFF", "RIFX", "RF64", "BW64", "extensible", "ADPCM"])
def test_unknown_sizes_of_other_wavs(tmp_path: Path, form: str) -> None:
    source = signal(16_000, 2)
    subtype = "IMA_ADPCM" if form == "ADPCM" else "PCM_24"
    kind = {"RF64": "RF64", "BW64": "RF64", "extensible": "WAVEX"}.get(form, "WAV")
    path = tmp_path / "a.wav"
    endian = "BIG" if form == "RIFX" else "FILE"
    soundfile.write(path, source.T, 16_000, subtype, endian, kind)
    expected = soundfile.read(path)[0]
    data = bytearray(path.read_bytes())
    if form == "BW64":
        data[:4] = b"BW64"
    place = data.index(b"data") + 4
    data[place : place + 4] = b"\xff\xff\xff\xff"
    if kind == "RF64":
        sizes = data.index(b"ds64") + 16
        data[sizes : sizes + 8] = bytes(8)
    path.write_bytes(data)
    with open_audio(STORAGE, str(path), 1.0) as reader:
        np.testing.assert_array_equal(reader.read(), expected[16_000:].T.astype(np.float32))


@pytest.mark.parametrize("announced", [0xFFFF_FFFF, 0x7FFF_F000, (2**32 + 96_000) % 2**32])
def test_a_wav_over_four_gibibytes(tmp_path: Path, announced: int) -> None:
    rate_hz, num_bytes = 48_000, 2**32 + 96_000
    noise = np.random.default_rng(0).integers(-9_999, 9_999, rate_hz, np.int16)
    with (tmp_path / "long.wav").open("wb") as file:
        form = struct.pack("<IHHIIHH", 16, 1, 1, rate_hz, 2 * rate_hz, 2, 16)
        file.write(b"RIFF\xff\xff\xff\xffWAVEfmt " + form + b"data" + struct.pack("<I", announced))
        file.seek(num_bytes - noise.nbytes, 1)  # a hole, which takes no room
        file.write(noise.tobytes())
    length_s = num_bytes / 2 / rate_hz
    with open_audio(STORAGE, str(tmp_path / "long.wav"), length_s - 1.0) as reader:
        assert reader.part.num_samples == rate_hz
        np.testing.assert_array_equal(reader.read()[0], noise / np.float32(2**15))


def test_vorbis_is_right_in_its_last_page(tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 441_000)
    soundfile.write(path, noise, 44_100, format="OGG", subtype="VORBIS")
    whole = soundfile.read(path, dtype="float32")[0]
    for offset_s in (5.0, 9.0, 9.8, 9.9, 9.91, 9.99):
        with open_audio(STORAGE, str(path), offset_s, 0.09) as reader:
            begin = reader.part.start
            np.testing.assert_array_equal(reader.read()[0], whole[begin : begin + 3_969])


def test_mp3_is_right_from_an_offset_and_in_blocks(tmp_path: Path) -> None:
    path, rate_hz = tmp_path / "a.mp3", 44_100
    rng, t = np.random.default_rng(0), np.arange(12 * rate_hz) / rate_hz
    calls = (np.sin(2 * np.pi * t / 3) > 0.8) * rng.normal(0, 0.12, t.size)
    quality = {"compression_level": 0.6, "bitrate_mode": "VARIABLE"}
    soundfile.write(path, rng.normal(0, 0.002, t.size) + calls, rate_hz, **quality)
    whole = soundfile.read(path, dtype="float32")[0]
    for offset_s in np.linspace(0.01, 11.5, 40):
        with open_audio(STORAGE, str(path), offset_s, 0.4) as reader:
            begin, samples = reader.part.start, reader.read()[0]
        np.testing.assert_allclose(samples, whole[begin : begin + len(samples)], atol=1e-6)
    with open_audio(STORAGE, str(path)) as reader:
        blocks = list(reader.blocks(rate_hz))
    np.testing.assert_allclose(np.concatenate(blocks, axis=1)[0], whole, atol=1e-6)


@pytest.mark.parametrize(
    ("rate_hz", "num_channels", "bit_rate"), [(48_000, 2, 32_000), (24_000, 1, 8_000)]
)
def test_mp3_of_the_lowest_rates_borrows_from_many_frames(
    tmp_path: Path, rate_hz: int, num_channels: int, bit_rate: int
) -> None:
    source = signal(rate_hz, num_channels, 6.0)
    path = tmp_path / "a.mp3"
    path.write_bytes(by_pyav(source, rate_hz, "mp3", "libmp3lame", bit_rate=bit_rate))
    with open_audio(STORAGE, str(path)) as reader:
        whole = reader.read()
    for offset_s in np.linspace(0.1, 5.9, 40):
        with open_audio(STORAGE, str(path), offset_s, 0.05) as reader:
            assert not reader.part.from_start
            begin, samples = reader.part.start, reader.read()
        expected = whole[:, begin : begin + samples.shape[1]]
        np.testing.assert_allclose(samples, expected, atol=1e-6)


def _shifted(source: Path, target: Path, shift_s: float) -> None:
    """Copies an Ogg file with all its places moved, as programs do that cut or record streams."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        stream = write.add_stream_from_template(read.streams.audio[0])
        for packet in read.demux(read.streams.audio[0]):
            if packet.pts is not None:
                shift = round(shift_s / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + shift, None, stream
                write.mux(packet)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("shift_s", [-0.5, 100.0])
def test_an_ogg_that_was_cut_or_recorded_from_a_stream(
    tmp_path: Path, subtype: str, shift_s: float
) -> None:
    rate_hz = 48_000
    source, path = signal(rate_hz, 1, 8.0), tmp_path / "cut.ogg"
    (tmp_path / "a.ogg").write_bytes(by_soundfile(source, rate_hz, "OGG", subtype))
    _shifted(tmp_path / "a.ogg", path, shift_s)
    with open_audio(STORAGE, str(path)) as reader:
        whole = reader.read()
    assert 7.4 * rate_hz < whole.shape[1] < 8.1 * rate_hz
    for offset_s in (0.01, 1.0, 3.3, 5.0, 7.0):
        with open_audio(STORAGE, str(path), offset_s, 0.4) as reader:
            begin, samples = reader.part.start, reader.read()
        expected = whole[:, begin : begin + samples.shape[1]]
        np.testing.assert_allclose(samples, expected, atol=1e-6)


def test_surround_channels_come_in_the_order_in_which_stems_have_them(tmp_path: Path) -> None:
    rate_hz, levels = 48_000, [0.3, 0.1, 0.03, 0.0, 0.2, 0.06]
    source = signal(rate_hz) * np.float32(5) * np.array(levels, np.float32)[:, None]
    path = tmp_path / "a.ogg"
    path.write_bytes(by_pyav(source, rate_hz, "ogg", "libopus", bit_rate=384_000))
    with open_audio(STORAGE, str(path)) as reader:
        found = np.std(reader.read(), axis=1)
    assert list(np.argsort(found)) == list(np.argsort(levels))
