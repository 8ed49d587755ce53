"""Files that FFmpeg decodes, through PyAV: what phones, browsers and broadcasters write.

Nothing that a file says about its length or about places in it is believed, but for the length of
an MP4: samples are counted from the start of the file.

FFmpeg is given bytes and no name, opens a file only as one of the listed formats, and is refused
every other address that a file may name.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import numpy as np

from manifests.audio_formats import DEMUXERS, FORMATS, MP4, OTHER
from transforms import audio
from transforms.audio import AudioError, AudioPart, AudioReader, Request, Tags

if TYPE_CHECKING:
    from transforms.elements import Samples

KEPT_VALUES = 6_000_000
"""Samples that are kept while they are counted, 24 MB: shorter parts are decoded once."""
MISSING_S = 0.5
"""An MP4 that ends so much earlier than it says was cut off; less is what encoders round."""
_MAX_STREAMS = 64
_OPTIONS = {
    "format_whitelist": ",".join(DEMUXERS),
    "protocol_whitelist": "none",
    "max_streams": str(_MAX_STREAMS),
}
_DECODER_ERRORS = (TypeError, ValueError, RuntimeError, ArithmeticError, BufferError, MemoryError)
_TAG_NAMES = {"track": "tracknumber"}
_KINDS = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
_FULL_SCALE = {"u1": 2.0**7, "i2": 2.0**15, "i4": 2.0**31, "i8": 2.0**63}


@contextmanager
def opened(
    raw: BinaryIO, request: Request, working: Callable[[], None], links: tuple[int, ...] = ()
) -> Iterator[AudioReader]:
    """Opens a part of a file.

    Args:
        raw: the file.
        request: which part.
        working: called again and again while samples are counted.
        links: where in the file one recording ends and the next one begins, in bytes.

    Raises:
        AudioError: FFmpeg cannot decode the file, or an MP4 is cut off, or the part is outside.
    """
    with _Decoding(raw, request.uri, links) as decoding:
        part, texts = request.known, decoding.texts
        blocks: Iterator[Samples] | None = None
        if part is None:
            part, kept = _counted(decoding, request, working)
            blocks = None if kept is None else iter(kept)
    if blocks is not None:
        yield _Reader(part, blocks, request.uri, texts)
        return
    with _Decoding(raw, request.uri, links) as decoding:
        blocks = _cut(decoding.blocks(), part.start, part.num_samples)
        yield _Reader(part, blocks, request.uri, texts)


def begins_at_zero(raw: BinaryIO) -> bool:
    """Whether the first sample of a file has the place 0, as far as FFmpeg can tell.

    In streams that were recorded while they ran, and in what was cut out of a file without being
    encoded anew, it has another one.
    """
    try:
        errors = (_pyav("").error.FFmpegError, *_DECODER_ERRORS)
        with contextlib.closing(_Link(_Nameless(raw), errors, "")) as link:
            first = next(link.packets(), None)
            if link.track.start_time or first is None or first.pts is None:
                return not link.track.start_time
            return bool(first.pts + (first.duration or 0) >= 0)  # the first one is for the decoder
    except AudioError:  # libsndfile may know it
        return True


def _counted(
    decoding: _Decoding, request: Request, working: Callable[[], None]
) -> tuple[AudioPart, list[Samples] | None]:
    """Finds the part by decoding to its end; with its samples, where they are few."""
    rate_hz, num_channels = decoding.sample_rate_hz, decoding.num_channels
    start, wanted = request.place(rate_hz, num_channels)
    announced = decoding.announced_samples()
    stop = announced if wanted is None else start + wanted
    if announced is not None and stop is not None:
        stop = min(stop, announced)
    kept: list[Samples] | None = []
    position = 0
    for block in decoding.blocks():
        begin, position = position, position + block.shape[1]
        working()
        inside = block[:, max(0, start - begin) : None if stop is None else max(0, stop - begin)]
        if kept is not None and inside.shape[1]:
            kept.append(inside)
            if num_channels * (position - start) > KEPT_VALUES:
                kept = None
        if stop is not None and position >= stop:
            break
    end = position if stop is None else min(stop, position)
    if announced is not None and stop is not None and stop - end > MISSING_S * rate_hz:
        there, said = position / rate_hz, announced / rate_hz
        raise AudioError(
            "truncated", f"{request.uri}: has {there:.2f} s of sound; its header says {said:.2f} s"
        )
    request.require_inside(start, end, rate_hz)
    part = AudioPart(
        sample_rate_hz=rate_hz,
        num_channels=num_channels,
        start=start,
        num_samples=end - start,
        from_start=True,
    )
    return part, kept


def _cut(blocks: Iterator[Samples], start: int, num_samples: int) -> Iterator[Samples]:
    """A stretch of what the blocks are together."""
    position, stop = 0, start + num_samples
    for block in blocks:
        begin, position = position, position + block.shape[1]
        if position > start:
            yield block[:, max(0, start - begin) : stop - begin]
        if position >= stop:
            return


class _Reader(AudioReader):
    """Cuts into blocks what was decoded, or is decoded as it goes."""

    def __init__(
        self, part: AudioPart, pieces: Iterator[Samples], uri: str, texts: Mapping[str, str]
    ) -> None:
        """Reads ``pieces``, which are all of ``part``; the file says ``texts`` of itself."""
        self.part, self.tags = part, Tags(texts=texts)
        self._pieces, self._uri = pieces, uri

    def blocks(self, block_samples: int) -> Iterator[Samples]:
        """Yields the part block by block; see :meth:`AudioReader.blocks`."""
        left = self.part.num_samples
        piece = np.empty((self.part.num_channels, 0), np.float32)
        while left:
            block = np.empty((self.part.num_channels, min(left, block_samples)), np.float32)
            filled = 0
            while filled < block.shape[1]:
                if not piece.shape[1]:
                    piece = self._next(left - filled)
                taken = piece[:, : block.shape[1] - filled]
                block[:, filled : filled + taken.shape[1]] = taken
                filled += taken.shape[1]
                piece = piece[:, taken.shape[1] :]
            if not np.isfinite(block).all():
                raise AudioError("not_finite", f"{self._uri}: has NaN or infinite samples")
            left -= block.shape[1]
            yield block

    def _next(self, left: int) -> Samples:
        piece = next(self._pieces, None)
        if piece is None:  # it was longer when it was counted
            raise AudioError("io_error", f"{self._uri}: changed while it was read; {left} missing")
        return piece


class _Decoding:
    """One pass through the first audio track of a file, from its start."""

    sample_rate_hz: int
    num_channels: int

    def __init__(self, raw: BinaryIO, uri: str, links: tuple[int, ...]) -> None:
        """Nothing is opened yet."""
        self._uri = uri
        ends = [*links, None]
        self._files = [_Nameless(raw, *span) for span in zip([0, *links], ends, strict=True)]

    def __enter__(self) -> _Decoding:
        """Opens the file, and decodes as much as it takes to know rate and channels."""
        self._av = av = _pyav(self._uri)
        self._errors = (av.error.FFmpegError, *_DECODER_ERRORS)
        self._link = _Link(self._files[0], self._errors, self._uri)
        try:
            self._frames = self._link.frames()
            first = next(self._frames, None)
            if first is None:
                raise AudioError("zero_duration", f"{self._uri}: has no samples")
        except BaseException:
            self._link.close()
            raise
        self._first = first
        self.sample_rate_hz = int(first.sample_rate)
        self.num_channels = int(first.layout.nb_channels)
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self._link.close()

    @property
    def texts(self) -> dict[str, str]:
        """What the file says of itself, by libsndfile's names."""
        return self._link.texts()

    def announced_samples(self) -> int | None:
        """How many samples there should be, where the header knows."""
        track = self._link.track
        length, unit = track.duration, track.time_base
        if self._link.form is not MP4 or not length or length < 0 or unit is None:
            return None
        file: Any = _Nameless(self._files[0].raw)
        if audio.mp4_is_fragmented(file):
            return None
        samples: int = round(length * unit * self.sample_rate_hz)
        return samples

    def blocks(self) -> Iterator[Samples]:
        """All samples, float32[C, T] each, at the rate and in the channels of the first."""
        expected = self.sample_rate_hz, self.num_channels
        converter, converted = None, expected
        yield _as_float(self._first)
        for frame in self._all_frames():
            found = frame.sample_rate, frame.layout.nb_channels
            if converter is not None and found != converted:
                yield from map(_as_float, converter.resample(None))
                converter = None
            if found == expected:
                yield _as_float(frame)
                continue
            if converter is None:  # a web radio changes between its programmes
                converter, converted = self._converter(), found
            frame.pts = None
            yield from map(_as_float, converter.resample(frame))
        if converter is not None:
            yield from map(_as_float, converter.resample(None))

    def _all_frames(self) -> Iterator[Any]:
        """What follows the first frame; a further recording that cannot be opened ends the file."""
        yield from self._frames
        for file in self._files[1:]:
            self._link.close()
            try:
                self._link = _Link(file, self._errors, self._uri)
                yield from self._link.frames()
            except AudioError:
                return

    def _converter(self) -> Any:
        """Converts frames to the rate and the channels of the first."""
        layout, rate_hz = self._first.layout, self.sample_rate_hz
        return self._av.AudioResampler(format="fltp", layout=layout, rate=rate_hz)


class _Link:
    """The first audio track of a file, or of one of the recordings in it."""

    def __init__(self, file: _Nameless, errors: tuple[type[Exception], ...], uri: str) -> None:
        """Opens it.

        Raises:
            AudioError: it is not in one of the formats, or holds no sound.
        """
        self._errors, self._uri = errors, uri
        av = _pyav(uri)
        try:
            self._container = av.open(
                file, mode="r", options=_OPTIONS, metadata_errors="ignore", io_open=_refuse
            )
        except errors as err:
            raise AudioError(
                "not_audio",
                f"{uri}: cannot be decoded: it is damaged or of none of the formats in "
                f"docs/formats.md; what other programs play can be converted, for instance with "
                f"ffmpeg -i FILE FILE.flac (FFmpeg: {_reason(err)})",
            ) from err
        tracks = self._container.streams.audio
        if not tracks or tracks[0].codec_context is None:
            self.close()
            raise AudioError("not_audio", f"{uri}: holds no sound that can be decoded")
        self.track = tracks[0]
        self.track.codec_context.thread_count = 1
        names = set(self._container.format.name.split(","))
        self.form = next((form for form in FORMATS if names & set(form.demuxers)), OTHER)

    def texts(self) -> dict[str, str]:
        """What the file and its track say of themselves, by libsndfile's names."""
        said = {**self.track.metadata, **self._container.metadata}
        return {_TAG_NAMES.get(name.lower(), name.lower()): text for name, text in said.items()}

    def close(self) -> None:
        """Closes it."""
        self._container.close()

    def frames(self) -> Iterator[Any]:
        """Frames; a packet that cannot be decoded is left out where the next one follows by itself.

        The last packet of a file may be cut.

        Raises:
            AudioError: there is none, or the file is damaged.
        """
        failed: Exception | None = None
        some = False
        for packet in self.packets():
            try:
                frames = packet.decode()
            except self._errors as err:
                failed = failed or err
                continue
            for frame in frames:
                in_the_middle = packet.size > 0  # else the decoder gives what it has left
                if failed and some and in_the_middle and not self.form.resynchronises:
                    raise self._undecodable(failed)
                some = True
                yield frame
        if failed is not None and not some:
            raise self._undecodable(failed)

    def packets(self) -> Iterator[Any]:
        """Packets as they are in the file.

        Raises:
            AudioError: the file is damaged.
        """
        packets = self._container.demux(self.track)
        while True:
            with self._decoding():
                packet = next(packets, None)
            if packet is None:
                return
            yield packet

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        try:
            yield
        except self._errors as err:
            raise self._undecodable(err) from err

    def _undecodable(self, error: Exception) -> AudioError:
        return AudioError("not_audio", f"{self._uri}: cannot be decoded: {_reason(error)}")


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", "") or error)


def _pyav(uri: str) -> Any:
    """PyAV, whose import takes 0.2 s and for which most jobs have no use."""
    try:
        import av
    except ImportError as err:  # there are processors and systems without a wheel
        raise AudioError(
            "not_audio", f"{uri}: cannot be decoded without FFmpeg: pip install av ({err})"
        ) from err
    return av


def _as_float(frame: Any) -> Samples:
    """float32[C, T] of a frame of any sample format.

    Plane by plane: PyAV 18's own conversion is not right for every layout.
    """
    name, num_channels = frame.format.name, frame.layout.nb_channels
    kind = _KINDS[name.removesuffix("p")]
    if frame.format.is_planar:
        planes = frame.planes[:num_channels]
        values = np.stack([np.frombuffer(plane, kind, frame.samples) for plane in planes])
    else:
        packed = np.frombuffer(frame.planes[0], kind, frame.samples * num_channels)
        values = packed.reshape(-1, num_channels).T
    scale = _FULL_SCALE.get(kind)
    if scale is not None:
        values = values.astype(np.float32 if kind == "i2" else np.float64)
        values = (values - scale if kind == "u1" else values) / scale
    return np.ascontiguousarray(values, dtype=np.float32)


def _refuse(url: str, *_: object) -> NoReturn:
    """What FFmpeg would open besides the file that it was given."""
    raise PermissionError("a file may not name another one")


class _Nameless:
    """A stretch of an open file, of which FFmpeg learns nothing but the bytes.

    It has a place of its own: libsndfile may have moved the descriptor's.
    """

    def __init__(self, raw: BinaryIO, begin: int = 0, end: int | None = None) -> None:
        self.raw = raw
        try:
            self._descriptor: int | None = raw.fileno()
            size = os.fstat(self._descriptor).st_size
        except OSError:  # BytesIO and remote files have the method but no descriptor
            self._descriptor = None
            size = audio.file_size(raw)
        self._begin, self._length = begin, (size if end is None else end) - begin
        self._position = 0

    def read(self, num_bytes: int) -> bytes:
        wanted = max(0, min(num_bytes, self._length - self._position))
        if self._descriptor is None:
            data = audio.read_at(self.raw, self._begin + self._position, wanted)
        else:
            data = os.pread(self._descriptor, wanted, self._begin + self._position)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position
