"""Audio decoded in processes of its own, so that a file that crashes the decoder ends nothing else.

A decoder is a child of this process that gets open files and gives samples back. It holds one file
at a time: where it dies, that file is to blame. Children are kept for the next file, at most one
for each thread that reads; they end when this process does. One that gives no sign of life while it
should decode is ended.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import reduction
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from transforms.audio import AudioError, AudioPart, AudioReader, Request, Tags, decoding

if TYPE_CHECKING:
    from transforms.elements import Samples

_ROOT = Path(__file__).parents[2]
_CHILD = (
    "import sys; from transforms.audio import isolation; isolation.serve(*map(int, sys.argv[1:]))"
)
_END_WAIT_S = 10.0
SILENCE_S = 60.0
"""A decoder that is silent for so long hangs: it gives a sign at least for each second of sound."""
_SIGN_S = 1.0


class _Decoder:
    """A child process and the connection to it."""

    def __init__(self) -> None:
        self._uri, self._silence_s = "", SILENCE_S
        self._start()

    def _start(self) -> None:
        ours, theirs = socketpair()
        path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-c", _CHILD, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # an interrupt from the keyboard is not for it
            )
        self._connection = Connection(ours.detach())
        self._state: Literal["idle", "open", "reading"] = "idle"
        self._had_others = False

    def open(self, file: BinaryIO, request: Request, silence_s: float) -> tuple[AudioPart, Tags]:
        """Hands a file over; gives the part of it that will be read, and what it says of it.

        A process that had other files may have died of the last one: a new one tries again.
        """
        self._uri, self._silence_s = request.uri, silence_s
        try:
            found = self._handed_over(file, request)
        except AudioError as err:
            if not (self._had_others and isinstance(err.__cause__, EOFError | ConnectionError)):
                raise
            self._start()
            found = self._handed_over(file, request)
        self._state = "open"
        return found

    def _handed_over(self, file: BinaryIO, request: Request) -> tuple[AudioPart, Tags]:
        with self._talking():
            self._connection.send(request)
            reduction.send_handle(self._connection, file.fileno(), self._process.pid)
            found: tuple[AudioPart, Tags] = self._answer()
        return found

    def blocks(self, part: AudioPart, block_samples: int) -> Iterator[Samples]:
        """All blocks of the part."""
        self._state = "reading"
        with self._talking():
            self._connection.send(block_samples)
        left = part.num_samples
        while left:
            block = np.empty((part.num_channels, min(left, block_samples)), np.float32)
            with self._talking():
                self._answer()
                self._connection.recv_bytes_into(block.reshape(-1))
            left -= block.shape[1]
            if not left:
                self._state = "open"
            yield block

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as err:
            self._state = "reading"
            how = self.end()
            if isinstance(err, TimeoutError):
                how = str(err)
            raise AudioError(
                "decoder_crashed", f"{self._uri}: the decoder crashed over it ({how})"
            ) from err

    def _answer(self) -> Any:
        while True:
            if not self._connection.poll(self._silence_s):
                self._process.kill()
                raise TimeoutError(f"no answer within {self._silence_s:g} s")
            answer = self._connection.recv()
            if isinstance(answer, AudioError):
                self._state = "idle"  # it has closed the file
                raise answer
            if answer != _WORKING:
                return answer

    def release(self) -> bool:
        """Makes it let go of its file; gives whether it can take another one."""
        self._had_others = True
        if self._state == "open":
            try:
                self._connection.send(None)
            except OSError:
                self._state = "reading"
            else:
                self._state = "idle"
        if self._state == "reading":
            self.end()
        return self._state == "idle"

    def end(self) -> str:
        """Ends the process; gives how it ended, for a person."""
        self._connection.close()
        try:
            code = self._process.wait(_END_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class _IsolatedReader(AudioReader):
    """Asks a decoder for the samples."""

    def __init__(self, decoder: _Decoder, part: AudioPart, tags: Tags) -> None:
        """Reads ``part`` of the file that ``decoder`` has opened."""
        self.part, self.tags = part, tags
        self._decoder = decoder

    def blocks(self, block_samples: int) -> Iterator[Samples]:
        """Yields the part block by block; see :meth:`AudioReader.blocks`."""
        return self._decoder.blocks(self.part, block_samples)


_WORKING = "working"
_LOCK = threading.Lock()
_IDLE: list[_Decoder] = []


@contextmanager
def decoded(
    raw: BinaryIO, request: Request, *, silence_s: float = SILENCE_S
) -> Iterator[AudioReader]:
    """As :func:`transforms.audio.decoding.decoded`, in another process.

    What has no descriptor is copied into a temporary file first. A decoder without a sign of life
    for ``silence_s`` is ended.

    Raises:
        AudioError: as there; ``decoder_crashed`` where the process died over the file.
    """
    with _LOCK:
        kept = _IDLE.pop() if _IDLE else None
    decoder = kept or _Decoder()
    try:
        with _with_descriptor(raw) as file:
            yield _IsolatedReader(decoder, *decoder.open(file, request, silence_s))
    finally:
        if decoder.release():
            with _LOCK:
                _IDLE.append(decoder)


@contextmanager
def _with_descriptor(raw: BinaryIO) -> Iterator[BinaryIO]:
    try:
        raw.fileno()
    except OSError:  # BytesIO and remote files have none
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(raw, copy)
            copy.flush()
            yield copy
    else:
        yield raw


class _Signs:
    """Says now and then that work goes on."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._last_s = connection, time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self._last_s > _SIGN_S:
            self._connection.send(_WORKING)
            self._last_s = time.monotonic()


def _end_with(parent: int) -> None:
    """Ends this process with its parent: a decoder that hangs would not hear of it."""
    while os.getppid() == parent:
        time.sleep(_SIGN_S)
    os._exit(1)


def serve(descriptor: int, parent: int) -> None:
    """Decodes what comes through a connected socket, one file after another, until it is closed."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    connection = Connection(descriptor)
    while True:
        try:
            request = connection.recv()
            with (
                os.fdopen(reduction.recv_handle(connection), "rb") as raw,
                decoding.decoded(raw, request, _Signs(connection)) as reader,
            ):
                connection.send((reader.part, reader.tags))
                while (block_samples := connection.recv()) is not None:
                    for block in reader.blocks(block_samples):
                        connection.send(None)
                        connection.send_bytes(block.data)
        except AudioError as err:
            connection.send(err)
        except (EOFError, ConnectionError):
            return
