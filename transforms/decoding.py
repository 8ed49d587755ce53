"""Audio files → arrays, in any format that libsndfile reads.

Imports next to nothing: :mod:`transforms.isolation` runs it in processes of its own.
"""

from __future__ import annotations

import abc
import dataclasses
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import soundfile

if TYPE_CHECKING:
    from transforms.elements import Samples

MIN_RATE_HZ = 1_000
"""A lower rate is a damaged header: ten megabytes at 1 Hz would be two months of sound."""
MAX_RATE_HZ = 655_350
"""What the 20 bits of FLAC's header, as libsndfile writes it, hold."""
MAX_CHANNELS = 8
_SHORT_DATA = re.compile(r"(data|SSND) *: *(?P<announced>\d+) \(should be (?P<actual>\d+)\)")
_UNKNOWN_SIZE = 2**32 - 2**16
_DECODER_ERRORS = (
    soundfile.LibsndfileError,
    TypeError,
    RuntimeError,
    ArithmeticError,
    BufferError,
    MemoryError,
    SystemError,
)


class AudioError(ValueError):
    """A file that cannot be used; ``code`` says why in one word, for tables and counters."""

    def __init__(self, code: str, message: str) -> None:
        """An error with a code."""
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[AudioError], tuple[str, str]]:
        """Both arguments: exceptions are pickled with those of their base class."""
        return type(self), (self.code, str(self))


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


class AudioReader(abc.ABC):
    """An open audio file and the part of it that a row uses."""

    part: AudioPart

    @abc.abstractmethod
    def blocks(self, block_samples: int) -> Iterator[Samples]:
        """The part in order, float32[C, T ≤ block_samples] each.

        Raises:
            AudioError: the file ends early, cannot be decoded, or has values that are not finite.
        """

    def read(self) -> Samples:
        """All of the part, float32[C, T].

        Raises:
            AudioError: as :meth:`blocks`.
        """
        return next(self.blocks(self.part.num_samples))


class _FileReader(AudioReader):
    """Decodes in this process."""

    def __init__(self, file: soundfile.SoundFile, part: AudioPart, uri: str) -> None:
        """Reads ``part`` of ``file``, which stands at its start."""
        self.part = part
        self._file = file
        self._uri = uri

    def blocks(self, block_samples: int) -> Iterator[Samples]:
        """As described there."""
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


@contextmanager
def decoded(
    raw: BinaryIO, uri: str, offset_s: float | None, duration_s: float | None
) -> Iterator[AudioReader]:
    """Opens the part of a file that :func:`transforms.audio_io.open_audio` describes.

    Args:
        raw: the file, at its start.
        uri: what it is called in messages.
        offset_s: where the part begins; None: where the file does.
        duration_s: how long it lasts at most; None: to the end of the file.

    Raises:
        AudioError: the file is not audio, its header is unusable, or the part is outside.
    """
    with _sound_file(raw, uri) as file:
        part = _part(file, uri, offset_s, duration_s)
        with _decoding(uri):
            file.seek(part.start)
        yield _FileReader(file, part, uri)


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
