"""The formats of audio files that rows may name: one table for all that needs to know them.

Importers take the suffixes from it, ``score`` the endings of stems, the readers in
:mod:`transforms.audio` what a file is and who reads it, and ``docs/formats.md`` its rows. What a
file is called says nothing about what it holds: :func:`recognised` looks at its first bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

HEAD_BYTES: Final = 512
"""As many bytes are enough to recognise a format."""

_MPEG_LAYERS: Final = {0b01: 3, 0b10: 2, 0b11: 1}
_TS_PACKET_BYTES: Final = 188
_ASF_GUID: Final = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_MP4_BOXES: Final = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"moof")


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioFormat:
    """One format, or one container that holds several.

    Attributes:
        name: what people call it.
        suffixes: of the names of its files, the most usual first.
        signature: whether the first bytes of a file, after an ID3 tag, are of this format.
        reader: which library reads it; what libsndfile refuses or measures wrongly in it is
            decoded by FFmpeg where there are ``demuxers``.
        demuxers: what FFmpeg calls it; no other demuxer may open a file.
        length: where the number of samples comes from: the ``header`` says it, and a file with
            less is cut off; or it is ``counted`` by decoding, because headers guess.
        resynchronises: whether a decoder finds the next frame after damage, so that what is there
            is used.
        max_written_rate_hz: the highest rate at which stems can be written; None: none are.
    """

    name: str
    suffixes: tuple[str, ...]
    signature: Callable[[bytes], bool]
    reader: Literal["libsndfile", "FFmpeg"]
    demuxers: tuple[str, ...] = ()
    length: Literal["header", "counted"] = "header"
    resynchronises: bool = False
    max_written_rate_hz: int | None = None


def _begins(*signatures: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(signatures)


def _is_wav(head: bytes) -> bool:
    return head[:4] in {b"RIFF", b"RIFX", b"RF64", b"BW64"} and head[8:12] == b"WAVE"


def _is_mpeg_layer(*layers: int) -> Callable[[bytes], bool]:
    def found(head: bytes) -> bool:
        synchronised = len(head) > 2 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0
        return synchronised and _MPEG_LAYERS.get(head[1] >> 1 & 3) in layers

    return found


def _is_adts(head: bytes) -> bool:
    return len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0


def _is_transport_stream(head: bytes) -> bool:
    return len(head) > 2 * _TS_PACKET_BYTES and head[0 : 2 * _TS_PACKET_BYTES + 1 : 188] == b"GGG"


WAV: Final = AudioFormat(
    name="WAV (RIFF, RIFX, RF64, BW64)",
    suffixes=(".wav", ".wave", ".bwf", ".rf64"),
    signature=_is_wav,
    reader="libsndfile",
    demuxers=("wav",),
    max_written_rate_hz=2**31 - 1,
)
FLAC: Final = AudioFormat(
    name="FLAC",
    suffixes=(".flac",),
    signature=_begins(b"fLaC"),
    reader="libsndfile",
    demuxers=("flac",),
    max_written_rate_hz=655_350,
)
OGG: Final = AudioFormat(
    name="Ogg (Vorbis, Opus, FLAC, Speex)",
    suffixes=(".ogg", ".opus", ".oga", ".spx", ".ogv"),
    signature=_begins(b"OggS"),
    reader="libsndfile",
    demuxers=("ogg",),
    length="counted",
    resynchronises=True,
)
MP3: Final = AudioFormat(
    name="MP3",
    suffixes=(".mp3",),
    signature=_is_mpeg_layer(3),
    reader="libsndfile",
    demuxers=("mp3",),
    length="counted",
    resynchronises=True,
)
MP4: Final = AudioFormat(
    name="MP4, M4A, MOV, 3GP (AAC, ALAC, Opus …)",
    suffixes=(".m4a", ".mp4", ".mov", ".m4b", ".m4v", ".3gp"),
    signature=lambda head: head[4:8] in _MP4_BOXES,
    reader="FFmpeg",
    demuxers=("mov", "mp4", "m4a", "3gp", "3g2", "mj2"),
)
OTHER: Final = AudioFormat(
    name="what else libsndfile knows (VOC, NIST SPHERE, IRCAM, PAF, 8SVX, MAT …)",
    suffixes=(".voc", ".sph", ".paf", ".svx"),
    signature=lambda head: True,
    reader="libsndfile",
)
FORMATS: Final = (
    WAV,
    AudioFormat(
        name="Wave64",
        suffixes=(".w64",),
        signature=_begins(b"riff\x2e\x91\xcf\x11"),
        reader="libsndfile",
        demuxers=("w64",),
    ),
    FLAC,
    AudioFormat(
        name="AIFF, AIFC",
        suffixes=(".aiff", ".aif", ".aifc"),
        signature=lambda head: head[:4] == b"FORM" and head[8:12] in {b"AIFF", b"AIFC"},
        reader="libsndfile",
        demuxers=("aiff",),
    ),
    AudioFormat(
        name="AU",
        suffixes=(".au", ".snd"),
        signature=_begins(b".snd", b"dns."),
        reader="libsndfile",
    ),
    AudioFormat(
        name="CAF",
        suffixes=(".caf",),
        signature=_begins(b"caff"),
        reader="libsndfile",
        demuxers=("caf",),
    ),
    OGG,
    MP3,
    MP4,
    AudioFormat(
        name="WebM, Matroska (Opus, Vorbis, AAC …)",
        suffixes=(".webm", ".mkv", ".mka"),
        signature=_begins(b"\x1aE\xdf\xa3"),
        reader="FFmpeg",
        demuxers=("matroska", "webm"),
        length="counted",
    ),
    AudioFormat(
        name="AAC (ADTS)",
        suffixes=(".aac",),
        signature=_is_adts,
        reader="FFmpeg",
        demuxers=("aac",),
        length="counted",
        resynchronises=True,
    ),
    AudioFormat(
        name="MPEG Layer I, II",
        suffixes=(".mp2", ".mpa"),
        signature=_is_mpeg_layer(1, 2),
        reader="FFmpeg",
        demuxers=("mp3",),
        length="counted",
        resynchronises=True,
    ),
    AudioFormat(
        name="WavPack",
        suffixes=(".wv",),
        signature=_begins(b"wvpk"),
        reader="FFmpeg",
        demuxers=("wv",),
        length="counted",
    ),
    AudioFormat(
        name="WMA (ASF)",
        suffixes=(".wma", ".asf", ".wmv"),
        signature=_begins(_ASF_GUID),
        reader="FFmpeg",
        demuxers=("asf",),
        length="counted",
    ),
    AudioFormat(
        name="AMR",
        suffixes=(".amr", ".awb"),
        signature=_begins(b"#!AMR"),
        reader="FFmpeg",
        demuxers=("amr",),
        length="counted",
        resynchronises=True,
    ),
    AudioFormat(
        name="MPEG-TS",
        suffixes=(".mts", ".m2ts"),  # .ts is TypeScript
        signature=_is_transport_stream,
        reader="FFmpeg",
        demuxers=("mpegts",),
        length="counted",
        resynchronises=True,
    ),
    OTHER,
)
"""In the order in which they are tried; the last takes everything."""

AUDIO_SUFFIXES: Final = tuple(suffix for form in FORMATS for suffix in form.suffixes)
"""Endings, in lower case, of names that are taken for audio files in a folder."""
STEM_SUFFIXES: Final = (FLAC.suffixes[0], WAV.suffixes[0])
"""Of the formats in which stems are written."""
OTHER_STEM_SUFFIXES: Final = tuple(
    suffix
    for form in FORMATS
    for suffix in form.suffixes[: 2 if form.reader == "libsndfile" else 1]
    if form is not OTHER and suffix not in STEM_SUFFIXES
)
"""The usual ones of all others; each costs requests where a stem is missing."""
FROM_START_SUFFIXES: Final = (
    *(suffix for form in FORMATS if form.reader == "FFmpeg" for suffix in form.suffixes),
    *MP3.suffixes,
)
"""Of formats in which a place is, or may be, reached only by decoding all before it."""
DEMUXERS: Final = tuple(dict.fromkeys(name for form in FORMATS for name in form.demuxers))
"""What FFmpeg may open a file as. None of them names another file that would be opened."""


_ELSE: Final[tuple[tuple[tuple[bytes, ...], str], ...]] = (
    (
        (b"<!doctype html", b"<html"),
        "a web page: its address leads to a page, not to the recording",
    ),
    ((b"#extm3u", b"[playlist]"), "a playlist, which names recordings: give those"),
    ((b"<?xml", b"{", b"["), "a text in XML or JSON, perhaps what a server said instead of sound"),
    ((b"version https://git-lfs",), "a pointer of Git LFS: git lfs pull fetches the file itself"),
    ((b"pk\x03\x04",), "a zip archive: name a file in it, as in zip://talk.wav::ARCHIVE"),
    ((b"\x1f\x8b",), "compressed with gzip: unpack it first"),
    ((b"\x89png", b"\xff\xd8\xff", b"gif8", b"bm6"), "a picture"),
    ((b"%pdf",), "a PDF document"),
    ((b"mthd",), "MIDI, which is notes and not sound: a synthesiser makes sound of it"),
)


def named_otherwise(head: bytes) -> str:
    """Says what kind of file this is if not audio, and what to do; empty where that is unknown.

    Asked only of files that no reader takes.
    """
    if head and not head.strip(b"\0"):
        return "zeros, at least where it begins, as where a copy was not completed"
    beginning = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for signatures, name in _ELSE:
        if beginning.startswith(signatures):
            return name
    return ""


def recognised(head: bytes) -> AudioFormat:
    """What a file is whose first bytes, after an ID3 tag, are ``head``."""
    return next(form for form in FORMATS if form.signature(head))
