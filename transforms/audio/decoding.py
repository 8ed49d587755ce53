"""Decodes audio files into arrays, each by the reader that reads it right.

Imports next to nothing: :mod:`transforms.audio.isolation` runs it in processes of its own.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import soundfile

from manifests.audio_formats import FLAC, MP3, OGG, WAV, AudioFormat
from transforms import audio
from transforms.audio import (
    AudioError,
    AudioPart,
    AudioReader,
    Request,
    Tags,
    WavData,
    ffmpeg,
)

if TYPE_CHECKING:
    from transforms.elements import Samples
import contextlib
from collections.abc import Callable

from manifests.audio_formats import MP4, OTHER, named_otherwise, recognised

_SHORT_DATA = re.compile(r"(data|SSND) *: *(?P<announced>\d+) \(should be (?P<actual>\d+)\)")
_UNSET_BYTES = 0x7F00_0000
_UNSET_FRAMES = 2**62
_MP3_BORROWED = 100 * 576
"""Samples in which the most that an MP3 frame borrows, 255 bytes in MPEG-2, fits, where a frame of
8 kb/s has room for 3 bytes, with some to spare; a frame of MPEG-1 borrows from 9 others at most."""
_DROPPED_AT_ONCE = 2**16
DECODER_ERRORS = (
    soundfile.LibsndfileError,
    TypeError,
    RuntimeError,
    ArithmeticError,
    BufferError,
    MemoryError,
    SystemError,
)
"""What libsndfile and its binding raise over content, whatever is in it."""


class RefusedError(Exception):
    """A file that libsndfile does not read, or not whole; the message says why.

    ``links`` are the places in it, in bytes, where one stream ends and the next one begins.
    """

    def __init__(self, message: str, links: tuple[int, ...] = ()) -> None:
        """An error with the places."""
        super().__init__(message)
        self.links = links


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What was learnt of a file before it is opened.

    Attributes:
        source: what libsndfile reads: a descriptor, or something with a corrected header.
        tail: a seek into so many last samples lands elsewhere.
        borrowed: so many samples before a place are needed to decode what is there.
    """

    source: int | BinaryIO
    tail: int = 0
    borrowed: int = 0


@contextmanager
def opened(
    raw: BinaryIO, form: AudioFormat, audio_start: int, request: Request
) -> Iterator[AudioReader]:
    """Opens a part of a file.

    Args:
        raw: the file.
        form: what it was recognised as.
        audio_start: where it begins after its tags.
        request: which part.

    Raises:
        AudioError: the file is cut off, or its header is unusable, or the part is outside.
        RefusedError: FFmpeg may be able to read it.
    """
    found = _looked_at(raw, form, audio_start, request.uri)
    try:
        file = soundfile.SoundFile(found.source, closefd=False)
    except DECODER_ERRORS as err:
        raise RefusedError(_reason(err)) from err
    with file:
        if file.frames >= _UNSET_FRAMES or (form is not MP3 and file.format in {"MP3", "MPEG"}):
            raise RefusedError("libsndfile cannot tell how long it is")
        if form is OGG and file.channels > 2:
            raise RefusedError("it orders surround channels in another way than WAV and FLAC")
        _require_whole(file, request.uri)
        reader = _Reader(file, _part(file, request), found, form, request.uri)
        reader.tags = Tags(texts={name: getattr(file, name) for name in audio.TAG_NAMES})
        yield reader


def _looked_at(raw: BinaryIO, form: AudioFormat, audio_start: int, uri: str) -> _Found:
    if form is WAV:
        return _wav(raw, uri)
    if form is MP3:
        if not audio.mp3_says_its_length(raw, audio_start):
            raise RefusedError("it does not say how long it is")
        return _Found(source=_descriptor(raw), borrowed=_MP3_BORROWED)
    if form is OGG:
        pages = audio.ogg_pages(raw)
        if pages.num_streams > 1:
            raise RefusedError("it has several streams", pages.links[1:])
        if pages.opus_rate_hz == 0:
            raise RefusedError("it does not say its rate")
        if not ffmpeg.begins_at_zero(raw):
            raise RefusedError("it does not begin at the place 0, where libsndfile seeks wrongly")
        return _Found(source=_descriptor(raw), tail=pages.last_page)
    if form is FLAC:
        links = audio.flac_links(raw, audio_start)
        if len(links) > 1:
            raise RefusedError("it is several files in a row", links[1:])
    elif form is not OTHER:
        _require_one(raw, uri)
    return _Found(source=_descriptor(raw))


def _wav(raw: BinaryIO, uri: str) -> _Found:
    data = audio.wav_data(raw)
    if data is None:
        return _Found(source=_descriptor(raw))
    if data.is_mpeg:
        raise RefusedError("libsndfile guesses the length of MPEG audio in WAV")
    if data.num_missing:
        there = data.num_bytes
        raise AudioError(
            "truncated", f"{uri}: has {there} bytes of samples; its header says {data.announced}"
        )
    _require_one(raw, uri, data)
    whole = data.as_it_is
    return _Found(source=_descriptor(raw) if whole else audio.rewritten_wav(raw, data))


def _require_one(raw: BinaryIO, uri: str, data: audio.WavData | None = None) -> None:
    """Raises AudioError where a file was appended to another, and would be left out."""
    if audio.is_joined(raw, data):
        raise AudioError(
            "not_audio",
            f"{uri}: is several files in a row, of which only the first would be read, as cat "
            "joins them; give them one by one, or join them with sox or FFmpeg",
        )


def _part(file: soundfile.SoundFile, request: Request) -> AudioPart:
    rate, channels, total = int(file.samplerate), int(file.channels), int(file.frames)
    start, wanted = request.place(rate, channels)
    request.require_inside(start, total, rate)
    length = total - start if wanted is None else min(wanted, total - start)
    return AudioPart(
        sample_rate_hz=rate,
        num_channels=channels,
        start=start,
        num_samples=length,
        from_start=not file.seekable(),
    )


def _require_whole(file: soundfile.SoundFile, uri: str) -> None:
    """Raises AudioError where the header announces more data than there is.

    libsndfile reads such an AIFF file without complaint. Sizes near 2 and 4 GiB are what programs
    write that do not know the length beforehand.
    """
    found = _SHORT_DATA.search(file.extra_info)
    if found and int(found["actual"]) < int(found["announced"]) < _UNSET_BYTES:
        raise AudioError(
            "truncated",
            f"{uri}: has {found['actual']} bytes of samples; its header says {found['announced']}",
        )


class _Reader(AudioReader):
    """Decodes in this process."""

    def __init__(
        self,
        file: soundfile.SoundFile,
        part: AudioPart,
        found: _Found,
        form: AudioFormat,
        uri: str,
    ) -> None:
        """Reads ``part`` of ``file``, which stands at its start."""
        self.part = part
        self._file, self._found, self._form, self._uri = file, found, form, uri

    def blocks(self, block_samples: int) -> Iterator[Samples]:
        """Decodes the part block by block; see :meth:`AudioReader.blocks`."""
        self._go_to_start()
        left = self.part.num_samples
        while left:
            wanted = min(left, block_samples)
            block = self._next(wanted)
            if len(block) < wanted:
                raise self._short(left - len(block))
            if not np.isfinite(block).all():
                raise AudioError("not_finite", f"{self._uri}: has NaN or infinite samples")
            left -= wanted
            yield np.ascontiguousarray(block.T)

    def _go_to_start(self) -> None:
        """Seeks to a place from which the start of the part is decoded right, and drops the rest.

        Nothing seeks to where the file stands already: some codecs cannot, and others lose their
        memory of what was before.
        """
        start, place = self.part.start, 0
        if start and self._file.seekable():
            tail = self._file.frames - self._found.tail if self._found.tail else start + 1
            place = start if start < tail else tail - 1
            place = max(0, place - self._found.borrowed)
        if place:
            with _decoding(self._uri):
                self._file.seek(place)
        left = start - place
        while left:
            dropped = len(self._next(min(left, _DROPPED_AT_ONCE)))
            if not dropped:
                raise self._short(left + self.part.num_samples)
            left -= dropped

    def _next(self, num_samples: int) -> Samples:
        """The next samples, float32[T ≤ num_samples, C]."""
        block = np.empty((num_samples, self.part.num_channels), np.float32)
        with _decoding(self._uri):
            return block[: read_into(block, self._file)]

    def _short(self, missing: int) -> AudioError:
        if self._form.length == "header":
            return AudioError("truncated", f"{self._uri}: ends {missing} samples early")
        return AudioError(
            "not_audio",
            f"{self._uri}: is damaged: it decodes to {missing} samples fewer than it says",
        )


def _descriptor(raw: BinaryIO) -> int | BinaryIO:
    """A descriptor, where there is one, is read by libsndfile itself, without Python's lock."""
    raw.seek(0)
    try:
        descriptor = raw.fileno()
    except OSError:  # BytesIO and remote files have the method but no descriptor
        return raw
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def read_into(block: Samples, file: soundfile.SoundFile) -> int:
    """Fills float32[T, C] and gives how many samples it got; ``SoundFile.read`` would seek then."""
    pointer = soundfile._ffi.cast("float*", block.ctypes.data)
    count: int = soundfile._snd.sf_readf_float(file._file, pointer, len(block))
    soundfile._error_check(file._errorcode)
    return count


@contextmanager
def _decoding(uri: str) -> Iterator[None]:
    try:
        yield
    except DECODER_ERRORS as err:
        raise AudioError("not_audio", f"{uri}: cannot be decoded: {_reason(err)}") from err


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", "") or error)


@contextmanager
def decoded(
    raw: BinaryIO, request: Request, working: Callable[[], None] = lambda: None
) -> Iterator[AudioReader]:
    """Opens the part of a file that :func:`transforms.audio.files.open_audio` describes.

    Args:
        raw: the file.
        request: which part of it.
        working: called again and again where a file has to be decoded before its part is known.

    Raises:
        AudioError: the file is not audio, its header is unusable, or the part is outside.
    """
    audio_start, head = audio.audio_start(raw)
    form = recognised(head)
    # Before libsndfile reads: it moves the place of the descriptor under ``raw``.
    wav = audio.wav_data(raw) if form is WAV else None
    is_plain_wav = form is WAV and (wav is None or wav.is_plain)
    with contextlib.ExitStack() as stack:
        links: tuple[int, ...]
        reader, refusal, links = None, "", ()
        if form.reader == "libsndfile":
            try:
                reader = stack.enter_context(opened(raw, form, audio_start, request))
            except RefusedError as err:
                refusal, links = str(err), err.links
        if reader is None:
            if is_plain_wav:  # FFmpeg reads some of them wrongly
                raise AudioError("not_audio", f"{request.uri}: cannot be decoded: {refusal}")
            what = named_otherwise(head) if form is OTHER else ""
            if what:
                raise AudioError("not_audio", f"{request.uri}: is no recording but {what}")
            reader = stack.enter_context(_by_ffmpeg(raw, form, request, working, refusal, links))
        reader.tags = _tags(reader, wav)
        yield reader


def _tags(reader: AudioReader, wav: WavData | None) -> Tags:
    """What a file says of the part that is read, from what the decoder found in it."""
    texts, part = reader.tags.texts, reader.part
    if wav is None:
        tags = Tags.read(texts)
    else:
        tags = Tags.read({**texts, **wav.texts}, wav.bext, wav.rate_hz)
    return tags.of_part(part.start, part.sample_rate_hz)


@contextmanager
def _by_ffmpeg(
    raw: BinaryIO,
    form: AudioFormat,
    request: Request,
    working: Callable[[], None],
    refusal: str,
    links: tuple[int, ...],
) -> Iterator[AudioReader]:
    if form is MP4:
        _require_one(raw, request.uri)
    with contextlib.ExitStack() as stack:
        try:
            reader = stack.enter_context(ffmpeg.opened(raw, request, working, links))
        except AudioError as err:
            if err.code != "not_audio":
                raise
            missing = audio.mp4_missing_bytes(raw) if form is MP4 else 0
            if missing:
                raise AudioError(
                    "truncated",
                    f"{request.uri}: ends {missing} bytes early, as an MP4 does that was not "
                    "recorded or copied to its end: what is needed to decode it would follow",
                ) from err
            if not refusal:
                raise
            raise AudioError(err.code, f"{err} (libsndfile: {refusal})") from err
        yield reader
