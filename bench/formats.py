"""What each format of audio files gives: reader, length, start, exactness of places, rate.

    python -m bench.formats [--check]

A known signal is encoded in each format, with soundfile and with PyAV's own encoders, and read
back as the jobs do. The tables of ``docs/formats.md`` are what this command writes there between
its two marks; ``--check`` compares instead, and ends with 1 where they differ.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import re
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import soxr

from manifests.audio_formats import FORMATS
from transforms.audio.files import open_audio
from transforms.storage import Storage

DURATION_S = 3.0
PAGE = Path(__file__).parents[1] / "docs" / "formats.md"
MARKS = ("<!-- made by python -m bench.formats -->", "<!-- end -->")
_STORAGE = Storage()


def signal(rate_hz: int, num_channels: int = 1, duration_s: float = DURATION_S) -> np.ndarray:
    """float32[C, T]: noise whose level moves, band-limited so that every encoder keeps most."""
    rng = np.random.default_rng(0)
    length = round(duration_s * 8_000)
    level = 0.05 + 0.1 * (np.sin(2 * np.pi * np.arange(length) / 5_000) > 0)
    noise = soxr.resample((level * rng.standard_normal((num_channels, length))).T, 8_000, rate_hz)
    return np.ascontiguousarray(noise[: round(duration_s * rate_hz)].T, dtype=np.float32)


def by_soundfile(samples: np.ndarray, rate_hz: int, form: str, subtype: str) -> bytes:
    """A file as soundfile writes it."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.T, rate_hz, format=form, subtype=subtype)
    return buffer.getvalue()


class _Pipe(io.RawIOBase):
    """What is written and cannot be gone back to."""

    def __init__(self) -> None:
        super().__init__()
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def write(self, data: Any) -> int:
        self.data += data
        return len(data)


def by_pyav(
    samples: np.ndarray,
    rate_hz: int,
    container: str,
    codec: str,
    *,
    bit_rate: int = 64_000,
    piped: bool = False,
    **options: str,
) -> bytes:
    """A file as FFmpeg writes it.

    Args:
        samples: float32[C, T].
        rate_hz: of them.
        container: FFmpeg's name of it.
        codec: FFmpeg's name of the encoder.
        bit_rate: where the encoder has one.
        piped: write into something that cannot be sought in.
        options: of the container.
    """
    with tempfile.NamedTemporaryFile() as whole:
        target: Any = _Pipe() if piped else whole.name
        _write_by_pyav(target, samples, rate_hz, container, codec, bit_rate, options)
        return bytes(target.data) if piped else Path(whole.name).read_bytes()


def _write_by_pyav(
    target: Any,
    samples: np.ndarray,
    rate_hz: int,
    container: str,
    codec: str,
    bit_rate: int,
    options: dict[str, str],
) -> None:
    layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[len(samples)]
    with av.open(target, "w", format=container, options=options) as file:
        stream: Any = file.add_stream(codec, rate=rate_hz, options={"strict": "experimental"})
        stream.layout, stream.bit_rate = layout, bit_rate
        stream.codec_context.format = stream.codec_context.codec.audio_formats[0]
        packed = np.ascontiguousarray(samples.T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, Fraction(1, rate_hz)
        sample_format = stream.codec_context.format.name
        resampler = av.AudioResampler(format=sample_format, layout=layout, rate=rate_hz)
        for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
            file.mux(stream.encode(piece))


def streamed_wav(samples: np.ndarray, rate_hz: int) -> bytes:
    """A WAV whose sizes were never filled in."""
    data = bytearray(by_soundfile(samples, rate_hz, "WAV", "PCM_16"))
    data[4:8], data[40:44] = struct.pack("<I", 0x7FFF_F024), struct.pack("<I", 0x7FFF_F000)
    return bytes(data)


def without_rate(data: bytes) -> bytes:
    """An Ogg Opus file whose header leaves the rate of its source at 0."""
    changed = bytearray(data)
    place = data.index(b"OpusHead") + 12
    changed[place : place + 4] = bytes(4)
    changed[22:26] = bytes(4)
    changed[22:26] = struct.pack("<I", _ogg_crc(bytes(changed[: 28 + sum(data[27:28])])))
    return bytes(changed)


def _ogg_crc(page: bytes) -> int:
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 if crc & 0x8000_0000 else crc << 1) & 0xFFFF_FFFF
    return crc


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One way in which people hold audio.

    Attributes:
        name: for the page.
        suffix: of its files.
        rates_hz: at which it can be made.
        make: of float32[C, T] and a rate, the file.
        num_copies: how often the signal is in it.
    """

    name: str
    suffix: str
    rates_hz: tuple[int, ...]
    make: Callable[[np.ndarray, int], bytes]
    num_copies: int = 1


def _sf(
    name: str, suffix: str, form: str, subtype: str, *rates_hz: int, copies: int = 1
) -> Example:
    return Example(
        name=name,
        suffix=suffix,
        rates_hz=rates_hz or (16_000, 44_100),
        make=lambda samples, rate: by_soundfile(samples, rate, form, subtype) * copies,
        num_copies=copies,
    )


def _av(
    name: str, suffix: str, container: str, codec: str, *rates_hz: int, **options: Any
) -> Example:
    return Example(
        name=name,
        suffix=suffix,
        rates_hz=rates_hz or (16_000, 44_100),
        make=lambda samples, rate: by_pyav(samples, rate, container, codec, **options),
    )


_OPUS_RATES = (16_000, 48_000)
EXAMPLES: tuple[Example, ...] = (
    *(_sf(f"WAV {kind}", ".wav", "WAV", kind) for kind in ("PCM_16", "PCM_24", "FLOAT", "ULAW")),
    *(_sf(f"WAV {kind}", ".wav", "WAV", kind) for kind in ("IMA_ADPCM", "MS_ADPCM")),
    *(_sf(f"WAV {kind}", ".wav", "WAV", kind, 8_000) for kind in ("GSM610", "G721_32")),
    _sf("WAV NMS_ADPCM_24", ".wav", "WAV", "NMS_ADPCM_24", 8_000),
    Example(name="WAV from a pipe", suffix=".wav", rates_hz=(16_000, 44_100), make=streamed_wav),
    _sf("RF64", ".wav", "RF64", "PCM_24"),
    _sf("Wave64", ".w64", "W64", "PCM_16"),
    _av("MP3 in WAV", ".wav", "wav", "libmp3lame"),
    _sf("AIFF PCM_24", ".aiff", "AIFF", "PCM_24"),
    _sf("AU", ".au", "AU", "PCM_16"),
    _sf("CAF PCM_16", ".caf", "CAF", "PCM_16"),
    _sf("CAF ALAC", ".caf", "CAF", "ALAC_16"),
    _sf("FLAC", ".flac", "FLAC", "PCM_16"),
    _av("FLAC from a pipe", ".flac", "flac", "flac", piped=True),
    _sf("Ogg Vorbis", ".ogg", "OGG", "VORBIS"),
    _sf("Ogg Vorbis, two in a row", ".ogg", "OGG", "VORBIS", copies=2),
    _sf("Ogg Opus", ".opus", "OGG", "OPUS", *_OPUS_RATES),
    _sf("Ogg Opus, two in a row", ".opus", "OGG", "OPUS", *_OPUS_RATES, copies=2),
    Example(
        name="Ogg Opus without a rate",
        suffix=".opus",
        rates_hz=(16_000,),
        make=lambda samples, rate: without_rate(by_soundfile(samples, rate, "OGG", "OPUS")),
    ),
    _av("Ogg FLAC", ".oga", "ogg", "flac"),
    _sf("MP3", ".mp3", "MP3", "MPEG_LAYER_III"),
    _av("MP3 without a header", ".mp3", "mp3", "libmp3lame", write_xing="0"),
    _av("MPEG Layer II", ".mp2", "mp2", "mp2"),
    _av("M4A AAC", ".m4a", "ipod", "aac"),
    _av("M4A ALAC", ".m4a", "ipod", "alac"),
    _av("MP4 AAC in fragments", ".mp4", "mp4", "aac", movflags="frag_keyframe+empty_moov"),
    _av("MP4 Opus", ".mp4", "mp4", "libopus", *_OPUS_RATES),
    _av("MOV PCM", ".mov", "mov", "pcm_s16le"),
    _av("3GP AMR", ".3gp", "3gp", "libopencore_amrnb", 8_000, bit_rate=12_200),
    _av("WebM Opus", ".webm", "webm", "libopus", *_OPUS_RATES),
    _av("Matroska AAC", ".mkv", "matroska", "aac"),
    _av("AAC (ADTS)", ".aac", "adts", "aac"),
    _av("WavPack", ".wv", "wv", "wavpack"),
    _av("WMA", ".wma", "asf", "wmav2", 44_100),
    _av("AMR", ".amr", "amr", "libopencore_amrnb", 8_000, bit_rate=12_200),
    _av("MPEG-TS AAC", ".ts", "mpegts", "aac"),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """How a file came back.

    Attributes:
        reader: which library read it.
        rate_hz: at which.
        length_error: samples more than the source has, at that rate.
        start_error: samples by which it begins late.
        place_error: the greatest difference between a part and the same part of the whole.
    """

    reader: str
    rate_hz: int
    length_error: int
    start_error: int
    place_error: float


def measure(example: Example, rate_hz: int, folder: Path) -> Measured:
    """Encodes and reads back."""
    source = signal(rate_hz)
    path = folder / f"example{example.suffix}"
    path.write_bytes(example.make(source, rate_hz))
    with open_audio(_STORAGE, str(path)) as reader:
        whole, part = reader.read(), reader.part
        library = "FFmpeg" if "ffmpeg" in type(reader).__module__ else "libsndfile"
    expected = np.tile(source[0], example.num_copies)
    if part.sample_rate_hz != rate_hz:
        expected = soxr.resample(expected, rate_hz, part.sample_rate_hz)
    errors = []
    for offset_s in (0.01, 0.5, 1.234, 2.5, 2.9):
        with open_audio(_STORAGE, str(path), offset_s, 0.25) as reader:
            piece, begin = reader.read(), reader.part.start
        errors.append(float(np.abs(piece - whole[:, begin : begin + piece.shape[1]]).max()))
    return Measured(
        reader=library,
        rate_hz=part.sample_rate_hz,
        length_error=part.num_samples - len(expected),
        start_error=_lag(
            *(heard[: len(expected) // example.num_copies] for heard in (whole[0], expected))
        ),
        place_error=max(errors),
    )


def _lag(heard: np.ndarray, expected: np.ndarray) -> int:
    size = 2 ** int(np.ceil(np.log2(len(heard) + len(expected))))
    spectrum = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(expected, size))
    lag = int(np.argmax(np.fft.irfft(spectrum, size)))
    return lag if lag < size // 2 else lag - size


def table_of_formats() -> Iterator[str]:
    """The table that the readers go by, as Markdown."""
    yield "| format | endings | read by | length |"
    yield "|---|---|---|---|"
    for form in FORMATS:
        endings = " ".join(f"`{suffix}`" for suffix in form.suffixes)
        length = "the header's" if form.length == "header" else "counted, unless the header is sure"
        if form.reader == "FFmpeg" and form.length == "counted":
            length = "counted"
        yield f"| {form.name} | {endings} | {form.reader} | {length} |"


def table_of_examples() -> Iterator[str]:
    """What was measured, as Markdown."""
    yield (
        "| what was written | rate in | read by | rate out | samples too many | starts late by "
        "| a part differs from the whole by |"
    )
    yield "|---|---|---|---|---|---|---|"
    with tempfile.TemporaryDirectory() as folder:
        for example in EXAMPLES:
            for rate_hz in example.rates_hz:
                found = measure(example, rate_hz, Path(folder))
                differs = "nothing" if found.place_error < 1e-6 else f"{found.place_error:.1g}"
                yield (
                    f"| {example.name} | {rate_hz:,} | {found.reader} | {found.rate_hz:,} "
                    f"| {found.length_error:,} | {found.start_error:,} | {differs} |"
                )


def run(argv: Sequence[str] | None = None) -> int:
    """Writes the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="Compare instead of writing.")
    options = parser.parse_args(argv)
    text = PAGE.read_text(encoding="utf-8")
    tables = "\n".join([*table_of_formats(), "", *table_of_examples()])
    begin, end = map(re.escape, MARKS)
    made = f"{MARKS[0]}\n\n{tables}\n\n{MARKS[1]}"
    new = re.sub(f"{begin}.*{end}", lambda _: made, text, flags=re.DOTALL)
    if options.check:
        return int(new != text)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run())
