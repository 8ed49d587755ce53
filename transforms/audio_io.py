"""Audio files ↔ arrays, at any URI and in any format that libsndfile reads."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Literal

import numpy as np
import soundfile

from transforms.elements import Samples
from transforms.storage import Storage

StemFormat = Literal["flac", "wav"]
MIN_RATE_HZ = 1_000
"""A lower rate is a damaged header: ten megabytes at 1 Hz would be two months of sound."""
MAX_RATE_HZ = 655_350
"""What the 20 bits of FLAC's header, as libsndfile writes it, hold."""
MAX_CHANNELS = 8
_SHORT_DATA = re.compile(r"(data|SSND) *: *(?P<announced>\d+) \(should be (?P<actual>\d+)\)")
_UNKNOWN_SIZE = 2**32 - 2**16
_SFC_SET_ADD_PEAK_CHUNK = 0x1050
_FLOAT_BYTES = 4
_MAX_WAV_BYTES = 2**32 - 2**16
_DECODER_ERRORS = (
    soundfile.LibsndfileError,
    TypeError,
    RuntimeError,
    ArithmeticError,
    BufferError,
    MemoryError,
    SystemError,
)
READ_ERRORS = (OSError, EOFError, ValueError, ImportError)
"""What reading a file can raise, AudioError included; ImportError: no package for a protocol."""


class AudioError(ValueError):
    """A file that cannot be used; ``code`` says why in one word, for tables and counters."""

    def __init__(self, code: str, message: str) -> None:
        """An error with a code."""
        super().__init__(message)
        self.code = code


class WriteError(OSError):
    """A stem that could not be written."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AudioPart:
    """The part of a file that a row uses, in samples at the file's rate."""

    sample_rate_hz: int
    num_channels: int
    start: int
    num_samples: int

    @property
    def num_values(self) -> int:
        """Samples of all channels together."""
        return self.num_samples * self.num_channels

    def num_values_at(self, rate_hz: int) -> int:
        """As many, or as there are once it is resampled to a higher rate."""
        return max(self.num_values, round(self.duration_s * rate_hz) * self.num_channels)

    @property
    def start_s(self) -> float:
        """Where the part begins."""
        return self.start / self.sample_rate_hz

    @property
    def duration_s(self) -> float:
        """How long it lasts."""
        return self.num_samples / self.sample_rate_hz


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Audio:
    """Samples float32[C, T] and their rate."""

    samples: Samples
    sample_rate_hz: int


def error_code(error: BaseException) -> str:
    """One word for what went wrong when a file was read or written."""
    refused = _audio_error(error)
    if refused is not None:
        return refused.code
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, PermissionError):
        return "permission"
    if isinstance(error, IsADirectoryError):
        return "not_a_file"
    return "io_error"


def describe(error: BaseException, uri: str) -> str:
    """The error for a person: which file, and what about it."""
    text = str(_audio_error(error) or error) or type(error).__name__
    return text if uri in text else f"{uri}: {text}"


def _audio_error(error: BaseException | None) -> AudioError | None:
    """The error, or what a file system made another error of: it may have its own view."""
    while error is not None and not isinstance(error, AudioError):
        error = error.__cause__
    return error


class AudioReader:
    """An open audio file and the part of it that a row uses."""

    def __init__(self, file: soundfile.SoundFile, part: AudioPart, uri: str) -> None:
        """Reads ``part`` of ``file``, which stands at its start."""
        self.part = part
        self._file = file
        self._uri = uri

    def blocks(self, block_samples: int) -> Iterator[Samples]:
        """The part in order, float32[C, T ≤ block_samples] each.

        Raises:
            AudioError: the file ends early, cannot be decoded, or has values that are not finite.
        """
        left = self.part.num_samples
        while left:
            wanted = min(left, block_samples)
            with _decoding(self._uri):
                block = self._file.read(wanted, dtype="float32", always_2d=True)
            if len(block) < wanted:
                missing = left - len(block)
                raise AudioError("truncated", f"{self._uri}: ends {missing} samples early")
            if not np.isfinite(block).all():
                raise AudioError("not_finite", f"{self._uri}: has NaN or infinite samples")
            left -= wanted
            yield np.ascontiguousarray(block.T)

    def read(self) -> Samples:
        """All of the part, float32[C, T].

        Raises:
            AudioError: as :meth:`blocks`.
        """
        return next(self.blocks(self.part.num_samples))


@contextmanager
def open_audio(
    storage: Storage, uri: str, offset_s: float | None = None, duration_s: float | None = None
) -> Iterator[AudioReader]:
    """Opens the part of a file that begins at ``offset_s`` and lasts at most ``duration_s``.

    Raises:
        AudioError: the file is empty or not audio, its header is unusable, or the part is outside.
        OSError: the file cannot be reached.
    """
    with storage.open(uri) as raw:
        if not raw.read(1):
            raise AudioError("empty_file", f"{uri}: the file is empty")
        raw.seek(0)
        with _sound_file(raw, uri) as file:
            part = _part(file, uri, offset_s, duration_s)
            with _decoding(uri):
                file.seek(part.start)
            yield AudioReader(file, part, uri)


def _part(
    file: soundfile.SoundFile, uri: str, offset_s: float | None, duration_s: float | None
) -> AudioPart:
    rate, channels, total = int(file.samplerate), int(file.channels), int(file.frames)
    if not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
        expected = f"expected {MIN_RATE_HZ} to {MAX_RATE_HZ}"
        raise AudioError("rate", f"{uri}: sample rate {rate} Hz; {expected}")
    if not 0 < channels <= MAX_CHANNELS:
        raise AudioError("channels", f"{uri}: {channels} channels; expected 1 to {MAX_CHANNELS}")
    if total < 1:
        raise AudioError("zero_duration", f"{uri}: has no samples")
    start = round((offset_s or 0.0) * rate)
    wanted = total if duration_s is None else round(duration_s * rate)
    if start >= total:
        raise AudioError(
            "zero_duration", f"{uri}: offset_s={offset_s} is past its end at {total / rate:g} s"
        )
    if wanted < 1:
        raise AudioError("zero_duration", f"{uri}: duration_s={duration_s} is less than a sample")
    length = min(wanted, total - start)
    return AudioPart(sample_rate_hz=rate, num_channels=channels, start=start, num_samples=length)


@contextmanager
def _sound_file(raw: BinaryIO, uri: str) -> Iterator[soundfile.SoundFile]:
    # A descriptor, where there is one, is read by libsndfile itself, without Python's lock.
    source: int | BinaryIO = raw if not hasattr(raw, "fileno") else _descriptor(raw)
    with _decoding(uri):
        file = soundfile.SoundFile(source, closefd=False)
    with file:
        _require_whole(file, uri)
        yield file


def _require_whole(file: soundfile.SoundFile, uri: str) -> None:
    """Raises AudioError where the header announces more data than there is.

    libsndfile reads such a WAV or AIFF file without complaint. Sizes near 4 GiB are what programs
    write that do not know the length beforehand.
    """
    found = _SHORT_DATA.search(file.extra_info)
    if found and int(found["actual"]) < int(found["announced"]) < _UNKNOWN_SIZE:
        raise AudioError(
            "truncated",
            f"{uri}: has {found['actual']} bytes of samples; its header says {found['announced']}",
        )


def _descriptor(raw: BinaryIO) -> int | BinaryIO:
    try:
        descriptor = raw.fileno()
    except OSError:  # BytesIO and remote files have the method but no descriptor
        return raw
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


@contextmanager
def _decoding(uri: str) -> Iterator[None]:
    try:
        yield
    except _DECODER_ERRORS as err:
        reason = getattr(err, "error_string", "") or str(err)
        raise AudioError("not_audio", f"{uri}: cannot be decoded: {reason}") from err


def require_sound(samples: Samples, uri: str) -> None:
    """Raises AudioError where all samples are zero: nothing to extract or to compare with."""
    if not samples.any():
        raise AudioError("silent", f"{uri}: all samples are zero")


class StemWriter:
    """Writes a stem block by block to a local file, that is published once it is whole.

    24-bit FLAC, or WAV in 32-bit float (RF64 from 4 GB). The same samples give the same bytes.
    """

    def __init__(self, path: str, part: AudioPart, form: StemFormat) -> None:
        """Opens ``path`` for a stem of the rate, channels and length of ``part``."""
        self._form = form
        kind = {"format": "FLAC", "subtype": "PCM_24"}
        if form == "wav":
            large = part.num_values * _FLOAT_BYTES > _MAX_WAV_BYTES
            kind = {"format": "RF64" if large else "WAV", "subtype": "FLOAT"}
        self._file = soundfile.SoundFile(path, "w", part.sample_rate_hz, part.num_channels, **kind)
        _leave_out_the_date(self._file)
        self.peak = 0.0

    def write(self, block: Samples) -> None:
        """Appends float32[C, T]; FLAC saturates at full scale, like any fixed-point format."""
        if block.shape[-1] == 0:
            return
        self.peak = max(self.peak, float(np.abs(block).max()))
        clipped = np.clip(block, -1.0, 1.0) if self._form == "flac" else block
        try:
            self._file.write(clipped.T)
        except soundfile.LibsndfileError as err:
            raise WriteError(f"cannot be written: {err.error_string}") from err

    def close(self) -> None:
        """Completes the file."""
        self._file.close()


def _leave_out_the_date(file: soundfile.SoundFile) -> None:
    """Drops the PEAK chunk of float WAV files, which holds the time of writing."""
    soundfile._snd.sf_command(file._file, _SFC_SET_ADD_PEAK_CHUNK, soundfile._ffi.NULL, 0)
