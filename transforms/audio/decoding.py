"""Audio files → arrays: looks at what a file holds, and gives it to the reader that reads it right.

Imports next to nothing: :mod:`transforms.audio.isolation` runs it in processes of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from manifests.audio_formats import MP4, OTHER, WAV, AudioFormat, named_otherwise, recognised
from transforms.audio import AudioError, AudioReader, Request, ffmpeg, headers, libsndfile


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
    audio_start, head = headers.audio_start(raw)
    form = recognised(head)
    # Before libsndfile reads: it moves the place of the descriptor under ``raw``.
    is_plain_wav = form is WAV and headers.is_plain_wav(raw)
    with contextlib.ExitStack() as stack:
        links: tuple[int, ...]
        reader, refusal, links = None, "", ()
        if form.reader == "libsndfile":
            try:
                reader = stack.enter_context(libsndfile.opened(raw, form, audio_start, request))
            except libsndfile.RefusedError as err:
                refusal, links = str(err), err.links
        if reader is None:
            if is_plain_wav:  # FFmpeg reads some of them wrongly
                raise AudioError("not_audio", f"{request.uri}: cannot be decoded: {refusal}")
            what = named_otherwise(head) if form is OTHER else ""
            if what:
                raise AudioError("not_audio", f"{request.uri}: is no recording but {what}")
            reader = stack.enter_context(_by_ffmpeg(raw, form, request, working, refusal, links))
        yield reader


@contextmanager
def _by_ffmpeg(
    raw: BinaryIO,
    form: AudioFormat,
    request: Request,
    working: Callable[[], None],
    refusal: str,
    links: tuple[int, ...],
) -> Iterator[AudioReader]:
    with contextlib.ExitStack() as stack:
        try:
            reader = stack.enter_context(ffmpeg.opened(raw, request, working, links))
        except AudioError as err:
            if err.code != "not_audio":
                raise
            missing = headers.mp4_missing_bytes(raw) if form is MP4 else 0
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
