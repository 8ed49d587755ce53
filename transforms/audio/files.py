"""Audio files ↔ arrays, at any URI and in any of the formats of :mod:`manifests.audio_formats`."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import io
import struct
import tarfile
import threading
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import IO, Any, BinaryIO, Final, Generic, Literal, NoReturn, TypeVar

import numpy as np
import pyarrow as pa
import soundfile
from numpy.typing import NDArray

from manifests.audio_formats import FLAC
from manifests.files import ManifestError, split_fragment, without_span
from manifests.row import ShardPlace
from manifests.shards import (
    AUDIO_COLUMN,
    BROKEN,
    GZIP_SUFFIXES,
    AudioColumnError,
    Member,
    ParquetRows,
    parquet_rows,
    place_in_copy,
    tar_members,
    unpacked,
    write_recordings,
)
from model.signal import Resampler, is_constant, resampled_length
from transforms.audio import (
    NO_TAGS,
    AudioError,
    AudioPart,
    AudioReader,
    Request,
    Stretch,
    Tags,
    decoding,
    isolation,
)
from transforms.elements import Samples
from transforms.storage import LARGE_OBJECT_BYTES, Storage, copied

StemFormat = Literal["flac", "wav", "flac16", "wav16", "opus", "mp3"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StemKind:
    """A format in which stems are written.

    Attributes:
        ending: of its files.
        format: libsndfile's name of the container.
        subtype: libsndfile's name of the encoding.
        is_fixed: whether samples over full scale are cut.
        is_lossy: whether other samples are read than were written.
        rates_hz: the only rates that it has; None: any, or as FLAC.
        max_channels: that are written. libsndfile gives surround channels to Opus in WAV's order,
            where Vorbis's is meant.
    """

    ending: str
    format: str
    subtype: str
    is_fixed: bool = False
    is_lossy: bool = False
    rates_hz: tuple[int, ...] | None = None
    max_channels: int = 8

    def rate_of(self, rate_hz: int) -> int:
        """The rate at which audio of ``rate_hz`` is written: no lower, unless there is none."""
        if self.rates_hz is None:
            return rate_hz
        return min((each for each in self.rates_hz if each >= rate_hz), default=self.rates_hz[-1])


_MPEG_RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
STEM_FORMATS: Mapping[StemFormat, StemKind] = {
    "flac": StemKind(ending="flac", format="FLAC", subtype="PCM_24", is_fixed=True),
    "wav": StemKind(ending="wav", format="WAV", subtype="FLOAT"),
    "flac16": StemKind(ending="flac", format="FLAC", subtype="PCM_16", is_fixed=True),
    "wav16": StemKind(ending="wav", format="WAV", subtype="PCM_16", is_fixed=True),
    "opus": StemKind(
        ending="opus",
        format="OGG",
        subtype="OPUS",
        is_lossy=True,
        rates_hz=(8_000, 12_000, 16_000, 24_000, 48_000),
        max_channels=2,
    ),
    "mp3": StemKind(
        ending="mp3",
        format="MP3",
        subtype="MPEG_LAYER_III",
        is_lossy=True,
        rates_hz=_MPEG_RATES_HZ,
        max_channels=2,
    ),
}
_MOST_COMPRESSION = 0.99  # libsndfile's MP3 refuses 1
_MAX_WAV_TAG_BYTES = 2_000  # libsndfile reads no longer one in WAV, nor what follows it
_ID3_FRAMES = {
    "title": b"TIT2", "artist": b"TPE1", "album": b"TALB", "date": b"TDRC", "comment": b"COMM",
    "genre": b"TCON", "tracknumber": b"TRCK", "copyright": b"TCOP",
}  # fmt: skip
_Decode = Callable[[BinaryIO, Request], AbstractContextManager[AudioReader]]
_SFC_SET_ADD_PEAK_CHUNK = 0x1050
_SFC_SET_BROADCAST_INFO = 0x10F1
_BROADCAST_INFO = struct.Struct("=256s32s32s10s8s2xQh64x10x180xI256x")
"""``SF_BROADCAST_INFO`` of libsndfile: what :meth:`Tags.broadcast` gives, and no history."""
_MAX_COPY_TAGS = 50_000  # libsndfile 1.2.2 reads none of a chunk of 60 kB
_FLOAT_BYTES = 4
_MAX_WAV_BYTES = 2**32 - 2**16
_BLOCK_SAMPLES = 2**16
_COPIED_AT_ONCE = 2**20
Value = TypeVar("Value")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
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
    if isinstance(error, WriteError) and isinstance(error.__cause__, OSError):
        return error_code(error.__cause__)
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return "disk_full"
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
    """Finds the first AudioError among an error and its causes; None where there is none."""
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
    place: ShardPlace | None = None,
) -> Iterator[AudioReader]:
    """Opens the part of a recording that begins at ``offset_s`` and lasts at most ``duration_s``.

    Args:
        storage: how the file is reached.
        uri: the recording: a file, a stretch of one (``rec.wav#t=6.3,7.0``), or something in a
            shard (``shard.tar#member``, ``file.parquet#row=17``).
        offset_s: where the part begins; None: where the recording does.
        duration_s: how long it lasts at most; None: to the end of the recording.
        known: the same part as it was found before, which spares counting its samples again.
        place: where the recording lies in its shard, where that is known.

    Raises:
        AudioError: the file is empty or not audio, its header is unusable, or the part is outside.
        OSError: the file cannot be reached; an AudioError where that does not name the file.
    """
    decode = decoding.decoded
    if storage.isolate_decoder:
        decode = functools.partial(isolation.decoded, silence_s=storage.decoder_silence_s)
    uri, offset_s, duration_s = within(uri, offset_s, duration_s)
    request = Request(uri=uri, offset_s=offset_s, duration_s=duration_s, known=known)
    with ExitStack() as stack:
        with _naming(uri):
            raw = stack.enter_context(_opened(storage, uri, place))
            if not raw.read(1):
                raise AudioError("empty_file", f"{uri}: the file is empty")
            raw.seek(0)
            reader = _from_copy(raw, request, decode, stack)
            if reader is None:
                raw.seek(0)
                reader = stack.enter_context(decode(raw, request))
        if offset_s and reader.part.from_start:
            _DECODED_FROM_START.add(uri)
        yield reader


def within(
    uri: str, offset_s: float | None, duration_s: float | None
) -> tuple[str, float | None, float | None]:
    """A part of a stretch of a recording as a part of the recording, whose URI has no ``t=``.

    Raises:
        AudioError: the part begins behind the end of the stretch.
        ValueError: the fragment of the URI cannot be followed.
    """
    recording, fragment = without_span(uri)
    if recording == uri:
        return uri, offset_s, duration_s
    start_s = fragment.start_s + (offset_s or 0.0)
    if fragment.end_s is not None:
        if start_s >= fragment.end_s:
            message = f"{uri}: offset_s={offset_s} is past the end of the stretch that is named"
            raise AudioError("zero_duration", message)
        left_s = fragment.end_s - start_s
        duration_s = left_s if duration_s is None else min(duration_s, left_s)
    return recording, start_s, duration_s


@contextmanager
def _opened(storage: Storage, uri: str, place: ShardPlace | None) -> Iterator[BinaryIO]:
    """Opens a file, or what lies in a shard.

    Raises:
        AudioError: the shard does not have it, or is broken.
        OSError: it cannot be reached.
    """
    address, fragment = split_fragment(uri)
    if not fragment.in_shard:
        with storage.open(uri) as file:
            yield file
        return
    num_bytes = storage.size(address) if place is None else place.shard_bytes
    shard = _Shard(storage=storage, uri=address, num_bytes=num_bytes)
    try:
        if fragment.member is None:
            opened = shard.row(fragment.row or 0, fragment.column)
        else:
            opened = shard.member(fragment.member, place)
        with opened as file:
            yield file
    except AudioColumnError as err:
        said = f"{uri}: {err}; a URI names the column as #row={fragment.row or 0}&column=NAME"
        raise AudioError(AUDIO_COLUMN, said) from err
    except (tarfile.TarError, zlib.error, pa.ArrowException, ManifestError) as err:
        raise AudioError(BROKEN, f"{uri}: the shard is broken: {err}") from err


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Members:
    """Where each member of a tar begins and ends, and what is wrong behind them."""

    places: dict[str, tuple[int, int]]
    damage: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Shard:
    """A tar or Parquet file of recordings."""

    storage: Storage
    uri: str
    num_bytes: int

    @contextmanager
    def member(self, name: str, place: ShardPlace | None) -> Iterator[BinaryIO]:
        """A member of a tar."""
        if self.uri.lower().endswith(GZIP_SUFFIXES):
            with copied("unpacked", self.uri, self.num_bytes, self._unpack) as tar:
                size = tar.seek(0, io.SEEK_END)
                start, stop = self._place_of(name, place, tar)
                self._require_inside(stop, size)
                with _part_of(tar, start, stop) as file:
                    yield file
            return
        start, stop = self._place_of(name, place)
        self._require_inside(stop, self.num_bytes)
        if stop - start > LARGE_OBJECT_BYTES:
            with self.storage.open_ranges(self.uri) as tar, _part_of(tar, start, stop) as file:
                yield file
        elif stop > start:
            yield io.BytesIO(self.storage.neighbour(self.uri, start, stop, self.num_bytes))
        else:
            yield io.BytesIO()

    def _unpack(self, copy: IO[bytes]) -> None:
        with (
            self.storage.open_ranges(self.uri) as stream,
            unpacked(stream) as tar,
            contextlib.suppress(EOFError),  # members before the cut are whole
        ):
            while data := tar.read1(_COPIED_AT_ONCE):
                copy.write(data)

    def _require_inside(self, stop: int, size: int) -> None:
        if stop > size:
            message = f"{self.uri}: the shard ends {stop - size} bytes before the recording does"
            raise AudioError("truncated", message)

    def _place_of(
        self, name: str, place: ShardPlace | None, tar: BinaryIO | None = None
    ) -> tuple[int, int]:
        """First byte of a member, and the one behind its last."""
        if place is not None:
            return place.start, place.stop
        key = (self.uri, self.num_bytes)
        found = _MEMBERS.get(key)
        if found is None:
            found = _MEMBERS.add(key, self._members(tar))
        if name not in found.places:
            if found.damage is not None:
                raise AudioError(BROKEN, f"{self.uri}: {found.damage}")
            raise AudioError("missing", f"{self.uri}: has no member {name!r}")
        return found.places[name]

    def _members(self, tar: BinaryIO | None) -> _Members:
        places: dict[str, tuple[int, int]] = {}
        with contextlib.ExitStack() as stack:
            stream = tar or stack.enter_context(self.storage.open_ranges(self.uri))
            stream.seek(0)
            try:
                for each in tar_members(stream):
                    if isinstance(each, Member):
                        places.setdefault(each.name, (each.start, each.stop))
            except (tarfile.TarError, EOFError) as err:  # what stands before is whole
                return _Members(places=places, damage=str(err))
        return _Members(places=places)

    @contextmanager
    def row(self, number: int, column: str | None) -> Iterator[BinaryIO]:
        """The recording in a row of Parquet.

        A row group is decompressed once, into a copy on this disk, for all of its rows.
        """
        key = (self.uri, self.num_bytes, column)
        rows = _ROWS.get(key)
        if rows is None:
            with self.storage.open_ranges(self.uri) as stream:
                rows = _ROWS.add(key, parquet_rows(stream, column))
        if number >= rows.num_rows:
            raise AudioError("missing", f"{self.uri}: has {rows.num_rows} rows, no row {number}")
        group, at = rows.place_of(number)

        def fill(copy: IO[bytes]) -> None:
            with self.storage.open_ranges(self.uri) as stream:
                write_recordings(stream, group, rows.leaf, copy)

        name = f"{self.uri}#{group}&{rows.leaf}"
        with copied("row group", name, self.num_bytes, fill) as copy:
            where = place_in_copy(copy, at)
            if where is None:
                raise AudioError("missing", f"{self.uri}: row {number} has no recording")
            with _part_of(copy, *where) as file:
                yield file


@contextmanager
def _part_of(stream: BinaryIO, start: int, stop: int) -> Iterator[BinaryIO]:
    """Bytes of a stream as a file of their own; in memory where they are not many."""
    if stop - start <= LARGE_OBJECT_BYTES:
        stream.seek(start)
        yield io.BytesIO(stream.read(stop - start))
        return
    part: Any = Stretch(b"", stream, start, stop - start)
    with io.BufferedReader(part, _COPIED_AT_ONCE) as file:
        yield file


class _Latest(Generic[Value]):
    """What was found last about some shards; threads share it."""

    def __init__(self, limit: int) -> None:
        self._lock, self._limit = threading.Lock(), limit
        self._kept: dict[Hashable, Value] = {}

    def get(self, key: Hashable) -> Value | None:
        with self._lock:
            return self._kept.get(key)

    def add(self, key: Hashable, value: Value) -> Value:
        with self._lock:
            self._kept[key] = value
            if len(self._kept) > self._limit:
                del self._kept[next(iter(self._kept))]
        return value


_MEMBERS = _Latest[_Members](4)
_ROWS = _Latest[ParquetRows](16)


class _LatestNames:
    """Some names, the latest that were added; threads share it."""

    def __init__(self, limit: int) -> None:
        self._lock, self._limit = threading.Lock(), limit
        self._names: dict[str, None] = {}

    def __contains__(self, name: str) -> bool:
        with self._lock:
            return name in self._names

    def add(self, name: str) -> None:
        with self._lock:
            self._names.pop(name, None)
            self._names[name] = None
            if len(self._names) > self._limit:
                del self._names[next(iter(self._names))]


_DECODED_FROM_START = _LatestNames(1_000)
"""Recordings of which a part was reached by decoding all before it: the next part is read from a
copy, so that the parts of a recording, however many, cost it two passes."""
_NOT_COPIED = _LatestNames(1_000)
"""Recordings of which no copy can be made, or which are too long for one."""


def _from_copy(
    raw: BinaryIO, request: Request, decode: _Decode, stack: ExitStack
) -> AudioReader | None:
    """Opens a part in a decoded copy of its file, made if needed; None: decode the file itself.

    The copy has the samples as they are decoded, in 32-bit float: the part is the same.
    """
    uri = request.uri
    if request.known is not None or not request.offset_s:
        return None
    if uri not in _DECODED_FROM_START or uri in _NOT_COPIED:
        return None

    def fill(file: IO[bytes]) -> None:
        raw.seek(0)
        with decode(raw, Request(uri=uri)) as reader:
            part, tags = reader.part, reader.tags.to_json()
            if part.num_values * _FLOAT_BYTES > _MAX_WAV_BYTES or len(tags) > _MAX_COPY_TAGS:
                raise AudioError("too_long", f"{uri}: too long for a copy")
            with soundfile.SoundFile(
                file, "w", part.sample_rate_hz, part.num_channels, format="WAV", subtype="FLOAT"
            ) as copy:
                copy.comment = tags
                for block in reader.blocks(_BLOCK_SAMPLES):
                    copy.write(block.T)

    try:
        copy = stack.enter_context(copied("decoded", uri, raw.seek(0, io.SEEK_END), fill))
    except READ_ERRORS:  # the part itself may be whole
        _NOT_COPIED.add(uri)
        return None
    reader = stack.enter_context(decoding.decoded(copy, request))
    tags = Tags.of_json(reader.tags.texts["comment"])
    reader.tags = tags.of_part(reader.part.start, reader.part.sample_rate_hz)
    return reader


@contextmanager
def _naming(uri: str) -> Iterator[None]:
    """Has every error name the file: a row has several, and what a store says may name none."""
    try:
        yield
    except READ_ERRORS as err:
        if uri in str(err):
            raise
        raise AudioError(error_code(err), describe(err, uri)) from err


SILENT: Final = "all samples are zero, or the mean of the channels is"


def require_sound(samples: Samples, uri: str, *, varying: bool = False) -> None:
    """Raises AudioError where all samples are zero: nothing to extract or to compare with.

    With ``varying`` also where all are the same: a constant offset is no sound to ask for.
    """
    if not samples.any():
        raise AudioError("silent", f"{uri}: {SILENT}")
    if varying and is_constant(samples):
        raise AudioError("silent", f"{uri}: all samples are the same, which is no sound")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A stem's file.

    Attributes:
        uri: where it is.
        form: its format.
        note: why that is not the format that was asked for.
        peak: its largest absolute sample.
    """

    uri: str
    form: StemFormat
    note: str | None
    peak: float


FALLBACK_FORMATS: tuple[StemFormat, ...] = ("flac", "wav")
"""What :func:`held_by` may give instead of the format that was asked for."""


def held_by(
    form: StemFormat, rate_hz: int, peak: float, num_channels: int = 1
) -> tuple[StemFormat, str | None]:
    """The format that holds a stem, and why it is not ``form``.

    A rate that Opus or MP3 lacks is resampled to one that it has: the format is ``form``, and there
    is something to say all the same. More channels than are written so are FLAC; what is over full
    scale, or what FLAC does not hold, is float WAV.
    """
    kind = STEM_FORMATS[form]
    name = kind.format if form != "opus" else "Opus"
    if num_channels > kind.max_channels:
        note = f"{num_channels} channels: {name} is written with at most {kind.max_channels}"
        return held_by("flac", rate_hz, peak)[0], note
    held_hz = kind.rate_of(rate_hz)
    if held_hz != rate_hz:
        return form, f"{name} has no sample rate of {rate_hz} Hz: resampled to {held_hz} Hz"
    in_tens = rate_hz % 10 == 0 and rate_hz <= (FLAC.max_written_rate_hz or 0)
    if kind.format == "FLAC" and not (rate_hz < 2**16 or in_tens):
        return "wav", f"FLAC has no sample rate of {rate_hz} Hz"
    if kind.is_fixed and peak > 1.0:
        return "wav", "samples over full scale"
    return form, None


class StemWriter:
    """Writes a stem block by block to a local file, that is published once it is whole.

    One of :data:`STEM_FORMATS`; WAV is RF64 from 4 GB. The same samples give the same bytes, but
    for Opus, whose streams have a number that is drawn.
    """

    def __init__(
        self,
        path: str,
        part: AudioPart,
        form: StemFormat,
        uri: str | None = None,
        quality: float | None = None,
        tags: Tags = NO_TAGS,
    ) -> None:
        """Opens ``path`` for a stem of the rate, channels and length of ``part``.

        It gets another rate where the format lacks that one; :attr:`part` says what it holds.

        Args:
            path: the local file.
            part: what it is given.
            form: in which format.
            uri: what messages call it; None: ``path``.
            quality: of a lossy format, in [0, 1]; None: what libsndfile thinks good.
            tags: what the file is to say of itself, as far as the format has a place for it.

        Raises:
            WriteError: it cannot be opened, or the format does not hold such a stem.
        """
        self._path, self._kind = path, STEM_FORMATS[form]
        rate_hz = self._kind.rate_of(part.sample_rate_hz)
        self._resampler: Resampler | None = None
        if rate_hz != part.sample_rate_hz:
            self._resampler = Resampler(part.sample_rate_hz, rate_hz)
            length = resampled_length(part.num_samples, part.sample_rate_hz, rate_hz)
            part = dataclasses.replace(part, sample_rate_hz=rate_hz, start=0, num_samples=length)
        self.part = part
        self._uri = path if uri is None else uri
        kind: dict[str, Any] = {"format": self._kind.format, "subtype": self._kind.subtype}
        if kind["format"] == "WAV" and part.num_values * _FLOAT_BYTES > _MAX_WAV_BYTES:
            kind["format"] = "RF64"
        if self._kind.is_lossy and quality is not None:
            kind["compression_level"] = min(max(1.0 - quality, 0.0), _MOST_COMPRESSION)
        tags = tags.of_part(0, part.sample_rate_hz)
        head = _id3(tags) if self._kind.format == "MP3" else b""
        with write_errors(self._uri):
            self._raw = _ErrorKeepingFile(path, head)
        try:
            self._file = soundfile.SoundFile(
                self._raw, "w", part.sample_rate_hz, part.num_channels, **kind
            )
        except soundfile.LibsndfileError as err:
            self._raw.close()
            self._fail(err)
        _leave_out_the_date(self._file)
        if not head:
            _set_tags(self._file, tags)
        self.peak = 0.0

    def write(self, block: Samples) -> None:
        """Appends float32[C, T]; fixed-point formats saturate at full scale.

        Raises:
            WriteError: it cannot be written.
        """
        if self._resampler is not None:
            block = self._resampler.push(block)
        self._append(block)

    def _append(self, block: Samples) -> None:
        if block.shape[-1] == 0:
            return
        self.peak = max(self.peak, float(np.abs(block).max()))
        clipped: NDArray[Any] = np.clip(block, -1.0, 1.0) if self._kind.is_fixed else block
        if self._kind.subtype == "PCM_16":
            clipped = _as_int16(clipped)
        try:
            for start in range(0, clipped.shape[1], _BLOCK_SAMPLES):
                self._file.write(clipped[:, start : start + _BLOCK_SAMPLES].T)
        except (soundfile.LibsndfileError, AssertionError) as err:  # the latter: fewer than given
            self._fail(err)
        self._require_written()

    def complete(self) -> None:
        """Completes the file and reads it back: its header, and its last sample.

        Raises:
            WriteError: it is not whole.
        """
        if self._resampler is not None:
            self._append(self._resampler.flush())
        self.end()
        with write_errors(self._uri):
            require_whole(self._path, self.part)

    def end(self) -> None:
        """Ends the file where it is.

        Raises:
            WriteError: something of it could not be written.
        """
        self.close()
        self._require_written()

    def close(self) -> None:
        """Lets go of the file, whole or not."""
        with contextlib.suppress(soundfile.LibsndfileError):  # complete() looks at what is there
            self._file.close()
        self._raw.close()

    def _require_written(self) -> None:
        if self._raw.error is not None:
            self._fail(self._raw.error)

    def _fail(self, error: Exception) -> NoReturn:
        """Raises what the system said, or else what libsndfile did."""
        cause = self._raw.error or error
        reason = getattr(cause, "error_string", str(cause) or "not all samples were taken")
        raise WriteError(f"{self._uri}: cannot be written: {reason}") from cause


def require_whole(stem: str | BinaryIO, part: AudioPart) -> None:
    """Checks that a stem, by path or open, has rate, channels and length of ``part``, and an end.

    Raises:
        WriteError: it has not.
    """
    expected = part.sample_rate_hz, part.num_channels, part.num_samples
    try:
        with soundfile.SoundFile(stem) as file:
            found = file.samplerate, file.channels, file.frames
            if found == expected:  # so says its header; a FLAC may end before all the same
                file.seek(part.num_samples - 1)
                last = np.empty((2, part.num_channels), np.float32)
                found = (*found[:2], part.num_samples - 1 + decoding.read_into(last, file))
    except decoding.DECODER_ERRORS as err:
        raise WriteError(f"is not whole: {getattr(err, 'error_string', err)}") from err
    if found != expected:
        raise WriteError(f"is not whole: rate, channels and samples are {found} of {expected}")


def stem_blocks(path: str) -> Iterator[Samples]:
    """What was written of a local stem so far, float32[C, n] each.

    Raises:
        WriteError: it cannot be read back.
    """
    try:
        with soundfile.SoundFile(path) as file:
            block = np.empty((_BLOCK_SAMPLES, file.channels), np.float32)
            while count := decoding.read_into(block, file):
                yield block[:count].T
    except decoding.DECODER_ERRORS as err:
        raise WriteError(f"is not whole: {getattr(err, 'error_string', err)}") from err


class _ErrorKeepingFile:
    """A file for libsndfile, which does not say that the end of a FLAC could not be written.

    What libsndfile writes begins after ``head``.
    """

    def __init__(self, path: str, head: bytes = b"") -> None:
        self._raw = io.FileIO(path, "wb")
        self.error: OSError | None = None
        self._start = len(head)
        self.write(head)

    def write(self, data: bytes) -> int:
        """Writes all of it; nothing is written after an error."""
        left = memoryview(data)
        while left and self.error is None:
            try:
                left = left[self._raw.write(left) or 0 :]
            except OSError as err:
                self.error = err
        return len(data) - len(left)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a place, for the header."""
        start = self._start if whence == io.SEEK_SET else 0
        return self._raw.seek(start + offset, whence) - self._start

    def tell(self) -> int:
        """The place."""
        return self._raw.tell() - self._start

    def close(self) -> None:
        """Closes it; some file systems say only now that they have no room."""
        try:
            self._raw.close()
        except OSError as err:
            self.error = self.error or err


def write_audio(
    storage: Storage,
    uri: str,
    samples: Samples,
    rate_hz: int,
    form: StemFormat,
    within: str | None = None,
) -> float:
    """Writes float32[C, T] as a file that is whole; gives its peak.

    Args:
        storage: how it is reached.
        uri: of the file.
        samples: what it is to hold.
        rate_hz: their rate.
        form: as what they are written.
        within: a folder below which nothing is written through a link.

    Raises:
        OSError: it cannot be written.
    """
    part = AudioPart(
        sample_rate_hz=rate_hz, num_channels=len(samples), start=0, num_samples=samples.shape[1]
    )
    with write_errors(uri), storage.temporary(uri, within) as temporary:
        writer = StemWriter(temporary, part, form, uri)
        with contextlib.closing(writer):
            writer.write(samples)
            writer.complete()
        storage.publish(uri, temporary)
    return writer.peak


def _as_int16(block: Samples) -> NDArray[np.int16]:
    """To the nearest step: libsndfile 1.2.2 rounds to it for FLAC, and down for WAV."""
    steps = np.rint(block * np.float32(2**15))
    return np.clip(steps, -(2**15), 2**15 - 1).astype(np.int16)


@contextmanager
def write_errors(uri: str) -> Iterator[None]:
    """Makes what storage says while ``uri`` is written a :class:`WriteError` that names it."""
    try:
        yield
    except OSError as err:
        if isinstance(err, WriteError) and uri in str(err):
            raise
        raise WriteError(describe(err, uri)) from err


def _leave_out_the_date(file: soundfile.SoundFile) -> None:
    """Drops the PEAK chunk of float WAV files, which holds the time of writing."""
    soundfile._snd.sf_command(file._file, _SFC_SET_ADD_PEAK_CHUNK, soundfile._ffi.NULL, 0)


def _set_tags(file: soundfile.SoundFile, tags: Tags) -> None:
    """Has a file say something of itself; what its format has no place for is left out."""
    is_wav = file.format in {"WAV", "RF64"}
    for name, text in tags.texts.items():
        if is_wav:
            text = text.encode()[:_MAX_WAV_TAG_BYTES].decode(errors="ignore")
        with contextlib.suppress(soundfile.LibsndfileError):
            setattr(file, name, text)
    broadcast = tags.broadcast(file.samplerate) if is_wav else ()
    if broadcast:
        data = bytearray(_BROADCAST_INFO.pack(*broadcast, 1, 0))
        buffer = soundfile._ffi.from_buffer(data)
        soundfile._snd.sf_command(file._file, _SFC_SET_BROADCAST_INFO, buffer, len(data))


def _id3(tags: Tags) -> bytes:
    """Tags as ID3v2.4 in UTF-8, before an MP3: libsndfile writes text as if it were Latin-1."""
    frames = b""
    for name, text in tags.texts.items():
        if name in _ID3_FRAMES:
            language = b"und\0" if name == "comment" else b""
            body = b"\x03" + language + text.encode()
            frames += _ID3_FRAMES[name] + _in_sevens(len(body)) + b"\0\0" + body
    return b"ID3\x04\0\0" + _in_sevens(len(frames)) + frames if frames else b""


def _in_sevens(size: int) -> bytes:
    """A size in ID3: four times seven bits."""
    return bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
