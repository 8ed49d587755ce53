"""Audio files ↔ arrays, at any URI and in any of the formats of :mod:`manifests.audio_formats`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import numpy as np
import soundfile

from transforms import isolation
from transforms.audio import decoding
from transforms.audio.parts import AudioError, AudioPart, AudioReader, Request
from transforms.elements import Samples
from transforms.storage import Storage

StemFormat = Literal["flac", "wav"]
_SFC_SET_ADD_PEAK_CHUNK = 0x1050
_FLOAT_BYTES = 4
_MAX_WAV_BYTES = 2**32 - 2**16
READ_ERRORS = (OSError, EOFError, ValueError, ImportError)
"""What reading a file can raise, AudioError included; ImportError: no package for a protocol."""


class WriteError(OSError):
    """A stem that could not be written."""


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


@contextmanager
def open_audio(
    storage: Storage,
    uri: str,
    offset_s: float | None = None,
    duration_s: float | None = None,
    known: AudioPart | None = None,
) -> Iterator[AudioReader]:
    """Opens the part of a file that begins at ``offset_s`` and lasts at most ``duration_s``.

    Args:
        storage: how the file is reached.
        uri: the file.
        offset_s: where the part begins; None: where the file does.
        duration_s: how long it lasts at most; None: to the end of the file.
        known: the same part as it was found before, which spares counting its samples again.

    Raises:
        AudioError: the file is empty or not audio, its header is unusable, or the part is outside.
        OSError: the file cannot be reached; an AudioError where that does not name the file.
    """
    decode = isolation.decoded if storage.isolate_decoder else decoding.decoded
    request = Request(uri=uri, offset_s=offset_s, duration_s=duration_s, known=known)
    with ExitStack() as stack:
        with _naming(uri):
            raw = stack.enter_context(storage.open(uri))
            if not raw.read(1):
                raise AudioError("empty_file", f"{uri}: the file is empty")
            raw.seek(0)
            reader = stack.enter_context(decode(raw, request))
        yield reader


@contextmanager
def _naming(uri: str) -> Iterator[None]:
    """Has every error name the file: a row has several, and what a store says may name none."""
    try:
        yield
    except READ_ERRORS as err:
        if uri in str(err):
            raise
        raise AudioError(error_code(err), describe(err, uri)) from err


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
