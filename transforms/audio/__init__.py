"""Describes parts of audio files and reads what containers say of them; names what is wrong."""

from __future__ import annotations

import abc
import dataclasses
import io
import json
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, BinaryIO

from manifests.audio_formats import HEAD_BYTES

if TYPE_CHECKING:
    from model.signal import FloatArray

MIN_RATE_HZ = 1_000
"""A lower rate is a damaged header: ten megabytes at 1 Hz would be two months of sound."""
MAX_RATE_HZ = 10_000_000
"""A higher rate is a damaged header: recorders and converters end at a few megahertz."""
MAX_CHANNELS = 8


class AudioError(ValueError):
    """A file that cannot be used; ``code`` says why in one word, for tables and counters."""

    def __init__(self, code: str, message: str) -> None:
        """An error with a code."""
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[AudioError], tuple[str, str]]:
        """Pickles code and message; the base class would pass on only the message."""
        return type(self), (self.code, str(self))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AudioPart:
    """The part of a file that a row uses, in samples at the file's rate.

    Attributes:
        sample_rate_hz: of the file.
        num_channels: of the file.
        start: where the part begins.
        num_samples: how long it is.
        from_start: whether a place in the file is reached only by decoding all before it.
    """

    sample_rate_hz: int
    num_channels: int
    start: int
    num_samples: int
    from_start: bool = False

    @property
    def num_values(self) -> int:
        """Samples of all channels together."""
        return self.num_samples * self.num_channels

    def num_values_at(self, rate_hz: int) -> int:
        """Samples of all channels at the file's rate or at ``rate_hz``, whichever is more."""
        return max(self.num_values, round(self.duration_s * rate_hz) * self.num_channels)

    @property
    def start_s(self) -> float:
        """Where the part begins."""
        return self.start / self.sample_rate_hz

    @property
    def duration_s(self) -> float:
        """How long it lasts."""
        return self.num_samples / self.sample_rate_hz


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The part of a file that is asked for, and how the file is called in messages.

    Attributes:
        uri: the file.
        offset_s: where the part begins; None: where the file does.
        duration_s: how long it lasts at most; None: to the end of the file.
        known: the part itself, where an earlier look at the same file found it: what has to be
            counted by decoding is not counted again.
    """

    uri: str
    offset_s: float | None = None
    duration_s: float | None = None
    known: AudioPart | None = None

    def place(self, rate_hz: int, num_channels: int) -> tuple[int, int | None]:
        """Where the part begins and how many samples it has at most; None: all that follow.

        Raises:
            AudioError: the rate or the channels are unusable, or the part has no sample.
        """
        uri = self.uri
        if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
            expected = f"expected {MIN_RATE_HZ} to {MAX_RATE_HZ}"
            raise AudioError("rate", f"{uri}: sample rate {rate_hz} Hz; {expected}")
        if not 0 < num_channels <= MAX_CHANNELS:
            expected = f"expected 1 to {MAX_CHANNELS}"
            raise AudioError("channels", f"{uri}: {num_channels} channels; {expected}")
        wanted = None if self.duration_s is None else round(self.duration_s * rate_hz)
        if wanted is not None and wanted < 1:
            raise AudioError(
                "zero_duration", f"{uri}: duration_s={self.duration_s} is less than a sample"
            )
        return round((self.offset_s or 0.0) * rate_hz), wanted

    def require_inside(self, start: int, total: int, rate_hz: int) -> None:
        """Raises AudioError where a part would begin behind the last of ``total`` samples."""
        if total < 1:
            raise AudioError("zero_duration", f"{self.uri}: has no samples")
        if start >= total:
            raise AudioError(
                "zero_duration",
                f"{self.uri}: offset_s={self.offset_s} is past its end at {total / rate_hz:g} s",
            )


TAG_NAMES = (
    "title", "artist", "album", "date", "comment", "genre", "tracknumber", "copyright", "license",
)  # fmt: skip
"""What is carried over of what a file says of itself, by libsndfile's names."""
_MAX_TAG = 60_000
_DAY_S = 86_400.0
_BEXT = struct.Struct("<256s32s32s10s8sQ")
"""The fields of Broadcast Wave that are carried over: description, originator and its reference,
date and time, and the samples since midnight (EBU Tech 3285)."""
_DATE, _TIME = re.compile(rb"(\d{4})\D(\d\d)\D(\d\d)"), re.compile(rb"(\d\d)\D(\d\d)\D(\d\d)")
_DATE_AND_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d.*")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """What a recording says of itself, or of a part of itself.

    Attributes:
        texts: by the names of ``TAG_NAMES``; none of them is empty.
        recorded_at: when the part begins, by the recorder's clock; None where nothing says it.
        bext: the first fields of a Broadcast Wave chunk; empty where there is none.
    """

    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    recorded_at: datetime | None = None
    bext: bytes = b""

    @classmethod
    def read(cls, texts: Mapping[str, str], bext: bytes = b"", rate_hz: int = 0) -> Tags:
        """Takes what a file holds for what it is worth: what is damaged says nothing.

        Args:
            texts: whatever the file says, by any names.
            bext: the content of its chunk of that name.
            rate_hz: in which the chunk counts samples.
        """
        said = {name: _clean(texts.get(name, "")) for name in TAG_NAMES}
        bext = bext[: _BEXT.size] if len(bext) >= _BEXT.size else b""
        if bext and not said["comment"]:
            said["comment"] = _clean(_decoded(_BEXT.unpack(bext)[0]))
        moment = _origin(bext, rate_hz) if bext else None
        return cls(
            texts={name: text for name, text in said.items() if text},
            recorded_at=moment or _moment(said["date"]),
            bext=bext,
        )

    def of_part(self, start: int, rate_hz: int) -> Tags:
        """What holds for a part that begins ``start`` samples later; its time is its ``date``."""
        moment, bext = later(self.recorded_at, start / rate_hz), self.bext
        if bext:
            *fields, since_midnight = _BEXT.unpack(bext)
            bext = _BEXT.pack(*fields, (since_midnight + start) % 2**64)
        texts = dict(self.texts)
        if moment is not None:
            texts["date"] = moment.isoformat(timespec="microseconds")
        return Tags(texts=texts, recorded_at=moment, bext=bext)

    def broadcast(self, rate_hz: int) -> tuple[Any, ...]:
        """The fields of a Broadcast Wave chunk for audio of that rate; none where nothing is known.

        They are description, originator and its reference, date, time, and samples since midnight.
        """
        moment = self.recorded_at
        if not self.bext and moment is None:
            return ()
        fields = list(_BEXT.unpack(self.bext or bytes(_BEXT.size)))
        if moment is not None:
            if not self.bext:
                midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
                fields[5] = round((moment - midnight).total_seconds() * rate_hz)
                fields[0] = self.texts.get("comment", "").encode()[:256]
            fields[3] = moment.strftime("%Y-%m-%d").rjust(10, "0").encode()
            fields[4] = moment.strftime("%H:%M:%S").encode()
        return tuple(fields)

    def to_json(self) -> str:
        """All of it as a text."""
        moment = None if self.recorded_at is None else self.recorded_at.isoformat()
        return json.dumps([dict(self.texts), moment, self.bext.hex()])

    @classmethod
    def of_json(cls, text: str) -> Tags:
        """The same again."""
        texts, moment, bext = json.loads(text)
        recorded_at = None if moment is None else datetime.fromisoformat(moment)
        return cls(texts=texts, recorded_at=recorded_at, bext=bytes.fromhex(bext))


NO_TAGS = Tags()


def later(moment: datetime | None, seconds: float) -> datetime | None:
    """So many seconds after a moment; None where that is none, or behind the year 9999."""
    try:
        return None if moment is None else moment + timedelta(seconds=seconds)
    except OverflowError:
        return None


def _clean(text: str) -> str:
    """A text as every format can hold it: UTF-8 to the first zero."""
    return text.partition("\0")[0].encode("utf-8", "replace").decode().strip()[:_MAX_TAG]


def _decoded(data: bytes) -> str:
    """A text of a chunk: UTF-8, or else what Windows wrote before."""
    data = data.partition(b"\0")[0]
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _origin(bext: bytes, rate_hz: int) -> datetime | None:
    """When a Broadcast Wave file begins, to the sample where both of its clocks agree."""
    *_, date, time, since_midnight = _BEXT.unpack(bext)
    found, clock = _DATE.match(date), _TIME.match(time)
    if found is None:
        return None
    after_s = since_midnight / rate_hz if rate_hz else 0.0
    try:
        year, month, day = (int(each) for each in found.groups())
        midnight = datetime(year, month, day)
        by_samples = midnight + timedelta(seconds=after_s)
        if clock is None:
            return by_samples if 0.0 < after_s < _DAY_S else None
        hour, minute, second = (int(each) for each in clock.groups())
        said = midnight.replace(hour=hour, minute=minute, second=second)
    except (ValueError, OverflowError):
        return None
    return by_samples if abs(by_samples - said) < timedelta(seconds=1) else said


def _moment(text: str) -> datetime | None:
    """The moment that a date names, where it names the time too."""
    if not _DATE_AND_TIME.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


class AudioReader(abc.ABC):
    """An open audio file and the part of it that a row uses.

    Attributes:
        part: which it is.
        tags: what the file says of it.
    """

    part: AudioPart
    tags: Tags = NO_TAGS

    @abc.abstractmethod
    def blocks(self, block_samples: int) -> Iterator[FloatArray]:
        """The part in order, float32[C, T ≤ block_samples] each. To be asked for once.

        Raises:
            AudioError: the file ends early, cannot be decoded, or has values that are not finite.
        """

    def read(self) -> FloatArray:
        """All of the part, float32[C, T].

        Raises:
            AudioError: as :meth:`blocks`.
        """
        return next(self.blocks(self.part.num_samples))


_MAX_CHUNKS = 10_000
_ID3_BYTES = 10
_RIFF_BYTES = 12
_CHUNK = 8
_GIBIBYTES_4 = 2**32
_NEAR_BYTES = 2**16
_UNSET_64 = 2**62
_MPEG_IN_WAV = frozenset({0x50, 0x55})
_PCM_IN_WAV = frozenset({1, 3, 6, 7})
_EXTENSIBLE = 0xFFFE


def file_size(raw: BinaryIO) -> int:
    """Bytes of an open file."""
    return raw.seek(0, os.SEEK_END)


def read_at(raw: BinaryIO, position: int, num_bytes: int) -> bytes:
    """At most ``num_bytes`` from ``position`` on."""
    raw.seek(position)
    return raw.read(num_bytes)


def audio_start(raw: BinaryIO) -> tuple[int, bytes]:
    """Where a file begins after ID3 tags, and the first bytes there."""
    start = 0
    for _ in range(_MAX_CHUNKS):
        head = read_at(raw, start, HEAD_BYTES)
        if len(head) < _ID3_BYTES or head[:3] != b"ID3":
            break
        size = 0
        for seven_bits in head[6:10]:
            size = size << 7 | (seven_bits & 0x7F)
        start += _ID3_BYTES + size
    return start, head


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WavData:
    """Where the samples of a WAV file are.

    Attributes:
        order: ``<`` or ``>``, the byte order of its numbers.
        encoding: the format tag; of the extensible format, that of the sub-format.
        form: the content of its ``fmt`` chunk.
        start: of the samples.
        announced: their bytes, as the header says.
        num_bytes: their bytes, as far as they can be told.
        num_missing: bytes that are known to be missing.
        as_it_is: whether libsndfile finds the same.
        texts: its INFO list, as far as it stands before the samples, by libsndfile's names.
        bext: the content of its Broadcast Wave chunk, or nothing.
    """

    order: str
    encoding: int
    form: bytes
    start: int
    announced: int
    num_bytes: int
    num_missing: int
    as_it_is: bool
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    bext: bytes = b""

    @property
    def rate_hz(self) -> int:
        """Samples a second, as its header says."""
        rate_hz: int = struct.unpack(self.order + "I", self.form[4:8])[0]
        return rate_hz

    @property
    def is_mpeg(self) -> bool:
        """Whether it holds MP2 or MP3, whose lengths libsndfile guesses."""
        return self.encoding in _MPEG_IN_WAV

    @property
    def is_plain(self) -> bool:
        """Whether it says that it holds samples as they are."""
        return self.encoding in _PCM_IN_WAV


def wav_data(raw: BinaryIO) -> WavData | None:
    """Finds the samples of a WAV file; None where there is no header that can be followed.

    The size of the samples is believed unless it is one that a writer leaves who does not know it:
    nothing, close to 2 or 4 GiB, the size of the file or of all but 8 bytes of it, or exactly
    twice what is there, while the file ends elsewhere. Then the samples reach to the end of the
    file. Past 4 GiB the size is also taken for the low 32 bits of the true one.
    """
    size = file_size(raw)
    kind = read_at(raw, 0, 4)
    order = ">" if kind == b"RIFX" else "<"
    form, announced_64 = b"", None
    texts: dict[str, str] = {}
    bext = b""
    for name, start, announced in _chunks(raw, _RIFF_BYTES, order):
        if name == b"ds64":
            announced_64 = int.from_bytes(read_at(raw, start + 8, 8), "little")
        elif name == b"fmt ":
            form = read_at(raw, start, min(announced, HEAD_BYTES))
        elif name == b"bext":
            bext = read_at(raw, start, min(announced, HEAD_BYTES))
        elif name == b"LIST":
            texts.update(_info(read_at(raw, start, min(announced, _MAX_LIST)), order))
        elif name == b"data":
            break
    else:
        return None
    if len(form) < 16:
        return None
    long = announced_64 is not None and announced == _GIBIBYTES_4 - 1
    if long and announced_64 is not None:
        announced = announced_64
    there = size - start
    found = _believed(raw, start, announced, there, order, long=long)
    if found < there and not bext:
        bext = _bext_behind(raw, start + found, size, order)
    encoding = struct.unpack(order + "H", form[:2])[0]
    if encoding == _EXTENSIBLE and len(form) >= 26:
        encoding = struct.unpack(order + "H", form[24:26])[0]
    return WavData(
        order=order,
        encoding=encoding,
        form=form,
        start=start,
        announced=announced,
        num_bytes=min(found, there),
        num_missing=max(0, found - there),
        as_it_is=found == announced and kind != b"BW64",
        texts=texts,
        bext=bext,
    )


_MAX_LIST = 2**20
_INFO = {
    b"INAM": "title", b"IART": "artist", b"IPRD": "album", b"ICRD": "date", b"ICMT": "comment",
    b"IGNR": "genre", b"ITRK": "tracknumber", b"ICOP": "copyright",
}  # fmt: skip


def _info(data: bytes, order: str) -> Iterator[tuple[str, str]]:
    """What an INFO list says: libsndfile reads no text of 2,046 bytes, nor what follows it."""
    if data[:4] == b"INFO":
        for name, start, size in _chunks(io.BytesIO(data), 4, order):
            if name in _INFO:
                yield _INFO[name], _decoded(data[start : start + size])


def _believed(
    raw: BinaryIO, start: int, announced: int, there: int, order: str, *, long: bool
) -> int:
    """Computes how many bytes of samples a WAV file has, where its header may be wrong."""
    if long:
        unset = announced == 0 or announced >= _UNSET_64
        return there if unset else announced
    near_2_gib = abs(announced - _GIBIBYTES_4 // 2) <= _NEAR_BYTES
    unset = announced == 0 or near_2_gib or announced >= _GIBIBYTES_4 - _NEAR_BYTES
    if announced <= there:
        if unset and not _ends_in_chunks(raw, start + announced, start + there, order):
            return there
        return announced + (there - announced) // _GIBIBYTES_4 * _GIBIBYTES_4
    counted_with_header = announced - there in {36, 44, start - 8, start}
    return there if unset or counted_with_header or announced == 2 * there else announced


def _chunks(raw: BinaryIO, position: int, order: str) -> Iterator[tuple[bytes, int, int]]:
    """Name, place and size of the chunks from ``position`` on."""
    for _ in range(_MAX_CHUNKS):
        head = read_at(raw, position, _CHUNK)
        if len(head) < _CHUNK:
            return
        size: int = struct.unpack(order + "I", head[4:])[0]
        yield head[:4], position + _CHUNK, size
        position += _CHUNK + size + size % 2


def _bext_behind(raw: BinaryIO, position: int, end: int, order: str) -> bytes:
    """The Broadcast Wave chunk behind the samples, where whole chunks lead to it."""
    for name, start, size in _chunks(raw, position + position % 2, order):
        if not _is_name(name) or start + size > end:
            break
        if name == b"bext":
            return read_at(raw, start, min(size, HEAD_BYTES))
    return b""


def _is_name(name: bytes) -> bool:
    """Whether a chunk may be called so: by letters and digits."""
    return name.isascii() and name.strip().isalnum()


def _ends_in_chunks(raw: BinaryIO, position: int, end: int, order: str) -> bool:
    """Whether chunks with names of letters, and nothing else, reach from there to the end."""
    position += position % 2
    for name, start, size in _chunks(raw, position, order):
        if not _is_name(name) or start + size > end:
            return False
        position = start + size + size % 2
    return position >= end


def rewritten_wav(raw: BinaryIO, data: WavData) -> BinaryIO:
    """The file with a header that says where its samples end, and nothing else changed."""
    block = max(1, int(struct.unpack(data.order + "H", data.form[12:14])[0]))
    num_bytes = data.num_bytes // block * block
    form = struct.pack(data.order + "4sI", b"fmt ", len(data.form)) + data.form
    form += b"\0" * (len(form) % 2)
    total = 4 + len(form) + _CHUNK + num_bytes
    if num_bytes < _GIBIBYTES_4 - _NEAR_BYTES:
        kind = b"RIFX" if data.order == ">" else b"RIFF"
        head = kind + struct.pack(data.order + "I", total) + b"WAVE" + form
        head += struct.pack(data.order + "4sI", b"data", num_bytes)
    else:
        lengths = struct.pack("<QQQI", total + _CHUNK + 28, num_bytes, num_bytes // block, 0)
        head = b"RF64\xff\xff\xff\xffWAVEds64" + struct.pack("<I", 28) + lengths + form
        head += b"data\xff\xff\xff\xff"
    view: Any = Stretch(head, raw, data.start, num_bytes)
    return io.BufferedReader(view, 2**18)


class ReadOnly(io.RawIOBase):
    """A file of which one can read from any place; what it holds is given by ``readinto``."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__()
        self._end, self._position = num_bytes, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a place of it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._end}[whence]
        self._position = max(0, base + offset)
        return self._position


class Stretch(ReadOnly):
    """Bytes, and after them a stretch of a file, as a file of their own."""

    def __init__(self, head: bytes, raw: BinaryIO, start: int, num_bytes: int) -> None:
        super().__init__(len(head) + num_bytes)
        self._head, self._raw, self._start = head, raw, start

    def readinto(self, buffer: Any) -> int:
        """Reads on."""
        inside = self._position - len(self._head)
        if inside < 0:
            piece = self._head[self._position :][: len(buffer)]
        else:
            wanted = max(0, min(len(buffer), self._end - self._position))
            piece = read_at(self._raw, self._start + inside, wanted)
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OggPages:
    """What the pages of an Ogg file say.

    Attributes:
        num_streams: how many there are, one after the other or side by side.
        links: where each of those begins that follow one another, in bytes.
        last_page: how far the last granule position is from the one before it.
        opus_rate_hz: what the header of an Opus stream says about its source; None: no Opus.
    """

    num_streams: int
    links: tuple[int, ...]
    last_page: int
    opus_rate_hz: int | None


_PAGE_BYTES = 27
_FIRST_PAGE = 2
_NO_GRANULE = 2**64 - 1


def ogg_pages(raw: BinaryIO) -> OggPages:
    """Goes through all pages of an Ogg file, of which only the headers are looked at."""
    streams, granules, opus_rate_hz = 0, (0, 0), None
    links: list[int] = []
    beginning = False
    position, size = 0, file_size(raw)
    while position + _PAGE_BYTES <= size:
        head = read_at(raw, position, _PAGE_BYTES + 255)
        if head[:4] != b"OggS":
            position = _found_after(raw, position, b"OggS", size)
            continue
        segments = head[_PAGE_BYTES : _PAGE_BYTES + head[26]]
        granule = int.from_bytes(head[6:14], "little")
        if head[5] & _FIRST_PAGE:
            streams += 1
            links += [] if beginning else [position]
            payload = read_at(raw, position + _PAGE_BYTES + len(segments), 16)
            if payload.startswith(b"OpusHead"):
                opus_rate_hz = int.from_bytes(payload[12:16], "little")
        elif granule not in {_NO_GRANULE, granules[1]}:
            granules = granules[1], granule
        beginning = bool(head[5] & _FIRST_PAGE)
        position += _PAGE_BYTES + len(segments) + sum(segments)
    return OggPages(
        num_streams=streams,
        links=tuple(links),
        last_page=max(0, granules[1] - granules[0]),
        opus_rate_hz=opus_rate_hz,
    )


def _found_after(raw: BinaryIO, position: int, sought: bytes, size: int) -> int:
    """The next place of ``sought`` behind ``position``, or the end."""
    position += 1
    while position < size:
        piece = read_at(raw, position, _NEAR_BYTES)
        found = piece.find(sought)
        if found >= 0:
            return position + found
        position += max(1, len(piece) - len(sought) + 1)
    return size


_STREAMINFO_BYTES = 34
_FLAC_HEAD_BYTES = 8 + _STREAMINFO_BYTES
_LOOKED_THROUGH_BYTES = 64 * 2**20
_FLAC_FRAME_BYTES = 2**21
"""More than the largest frame has that is written."""


def flac_links(raw: BinaryIO, start: int) -> tuple[int, ...]:
    """Where each FLAC of a file begins, in bytes: one, or several that were joined as files.

    A file of up to 64 MiB is looked through; a larger one if it has more bytes than the frames can
    have that its header announces.
    """
    size = file_size(raw)
    if size - start > _LOOKED_THROUGH_BYTES and size - start <= _flac_bytes(raw, start):
        return (start,)
    links, position = [start], start
    while (position := _found_after(raw, position, b"fLaC", size)) < size:
        if _streaminfo(raw, position) is not None:
            links.append(position)
    return tuple(links)


def _streaminfo(raw: BinaryIO, position: int) -> bytes | None:
    """What a FLAC that begins there says of its stream; None: none does."""
    head = read_at(raw, position, _FLAC_HEAD_BYTES)
    is_one = len(head) == _FLAC_HEAD_BYTES and head[4] & 0x7F == 0
    return head[8:] if is_one and head[5:8] == b"\0\0\x22" else None


def _flac_bytes(raw: BinaryIO, start: int) -> float:
    """The most bytes that the frames of a FLAC can have, with a frame's room for its tags."""
    told = _streaminfo(raw, start)
    if told is None:
        return math.inf
    block, largest = int.from_bytes(told[:2], "big"), int.from_bytes(told[7:10], "big")
    num_samples = int.from_bytes(told[13:18], "big") & 0xF_FFFF_FFFF
    if not block or not largest or not num_samples:
        return math.inf
    return _FLAC_FRAME_BYTES + -(-num_samples // block) * largest


def is_joined(raw: BinaryIO, data: WavData | None = None) -> bool:
    """Whether another file of the same kind follows the first, which readers would leave out.

    Args:
        raw: a file whose header says where it ends, and no FLAC.
        data: of a WAV.
    """
    head = read_at(raw, 0, 24)
    if data is not None:
        end, magic = data.start + data.num_bytes, head[:4]
    elif head[:4] == b"FORM":
        end, magic = 8 + int.from_bytes(head[4:8], "big"), head[:4]
    elif head[:4] == b".snd":
        end, magic = int.from_bytes(head[4:8], "big") + int.from_bytes(head[8:12], "big"), head[:4]
    elif head[:4] == b"caff":
        end, magic = _caf_end(raw), head[:8]
    elif head[:4] == b"riff":
        end, magic = int.from_bytes(head[16:24], "little"), head[:16]
    else:
        return sum(name == b"moov" for name, _ in _boxes(raw)) > 1
    return any(read_at(raw, place, len(magic)) == magic for place in (end, end + end % 2))


def _caf_end(raw: BinaryIO) -> int:
    """Where the chunks of a CAF end, or the samples, where nobody knew how many would follow."""
    position = 8
    for _ in range(_MAX_CHUNKS):
        head = read_at(raw, position, 12)
        size = int.from_bytes(head[4:], "big", signed=True)
        if len(head) < 12 or head[:4] == b"caff" or size < 0:
            break
        position += 12 + size
    return position


def mp3_says_its_length(raw: BinaryIO, start: int) -> bool:
    """Whether the first frame of an MP3 counts the bytes of a file that has exactly as many.

    What has no such count is measured by a guess; what has more bytes is several files joined,
    what has less was cut.
    """
    size = file_size(raw)
    frame = read_at(raw, start, 64)
    if len(frame) < 64:
        return False
    version_1, mono = frame[1] & 0x08, frame[3] >> 6 == 0b11
    place = 4 + ((17 if mono else 32) if version_1 else (9 if mono else 17))
    flags = int.from_bytes(frame[place + 4 : place + 8], "big")
    if frame[place : place + 4] not in {b"Xing", b"Info"} or flags & 0b11 != 0b11:
        return False
    end = start + int.from_bytes(frame[place + 12 : place + 16], "big")
    return end == size or (end < size and read_at(raw, end, 8).startswith((b"TAG", b"APETAGEX")))


def mp4_is_fragmented(raw: BinaryIO) -> bool:
    """Whether an MP4 file is a row of fragments, of which the header knows nothing."""
    return any(name in {b"moof", b"sidx", b"styp"} for name, _ in _boxes(raw))


def mp4_missing_bytes(raw: BinaryIO) -> int:
    """How many bytes earlier an MP4 file ends than its last box does."""
    end = max((end for _, end in _boxes(raw)), default=0)
    return max(0, end - file_size(raw))


def _boxes(raw: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Names and ends of the boxes of an MP4 file, as far as they follow one another."""
    position, size = 0, file_size(raw)
    for _ in range(_MAX_CHUNKS):
        head = read_at(raw, position, 16)
        if len(head) < _CHUNK:
            return
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < _CHUNK:
            return
        position += length
        yield head[4:8], position
        if position > size:
            return
