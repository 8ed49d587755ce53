"""Files that appear under their names whole, and are still whole after a loss of power.

A local file is written under another name, synced and renamed; its name lasts once its folder has
been synced too. An object of a store is asked for its size after it was sent.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fsspec.implementations.local import LocalFileSystem

UNFINISHED: Final = ".writing-"
"""How the names of local files begin that are being written."""
_CANNOT_SYNC: Final = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
_MAY_NOT_OPEN: Final = (errno.EACCES, errno.EPERM)


class ShortTransferError(OSError):
    """Fewer bytes arrived than there are."""


@contextmanager
def unfinished_file(folder: str) -> Iterator[str]:
    """Path of a new file in a local folder; removed at the end if it is still there."""
    make_folders(folder)
    path = os.path.join(folder, f"{UNFINISHED}{os.getpid()}-{uuid.uuid4().hex}.tmp")
    Path(path).touch(exist_ok=False)
    try:
        yield path
    finally:
        Path(path).unlink(missing_ok=True)


def put_in_place(unfinished: str, target: str) -> None:
    """Syncs a local file and gives it its name; :func:`sync_folder` makes the name last.

    The place may be on another file system, or behind a mount of the same one.
    """
    sync_file(unfinished)
    folder = os.path.dirname(target)
    make_folders(folder)
    try:
        os.replace(unfinished, target)
    except OSError as err:
        if err.errno != errno.EXDEV:
            raise
        with unfinished_file(folder) as beside:
            shutil.copyfile(unfinished, beside)
            sync_file(beside)
            os.replace(beside, target)


def make_folders(folder: str) -> None:
    """Makes a local folder and those that it lies in, where they are missing, to last.

    Raises:
        OSError: they cannot be made.
    """
    missing, above = [], folder
    while not os.path.isdir(above):
        if os.path.islink(above):
            raise NotADirectoryError(errno.ENOTDIR, "a link that leads to no folder", above)
        missing.append(above)
        above = os.path.dirname(above)
    os.makedirs(folder, exist_ok=True)
    for made in reversed(missing):
        sync_folder(os.path.dirname(made))


def sync_file(path: str) -> None:
    """Waits until what is in a local file is on its disk.

    Raises:
        OSError: it cannot be written there.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        _sync(handle)
    finally:
        os.close(handle)


def sync_folder(path: str) -> None:
    """Waits until the names in a local folder are on its disk, where one may ask for it.

    Raises:
        OSError: they cannot be written there.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as err:
        if err.errno in _MAY_NOT_OPEN:
            return
        raise
    try:
        _sync(handle)
    finally:
        os.close(handle)


def _sync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as err:
        if err.errno not in _CANNOT_SYNC:
            raise


def send(files: Any, path: str, data: bytes) -> None:
    """Writes an object of a store.

    Raises:
        ShortTransferError: the store has another size of it.
    """
    files.pipe_file(path, data)
    _require_size(files, path, len(data))


def upload(files: Any, local: str, path: str) -> None:
    """Sends a local file to a store.

    Raises:
        ShortTransferError: the store has another size of it.
    """
    files.put_file(local, path)
    _require_size(files, path, os.path.getsize(local))


def _require_size(files: Any, path: str, expected: int) -> None:
    files.invalidate_cache(path)
    found: int | None = files.size(path)
    if found is not None and found != expected:
        raise ShortTransferError(f"{path}: {found} bytes arrived of {expected}")


@contextmanager
def written(files: Any, path: str) -> Iterator[str]:
    """Path of a local file to be filled, which becomes ``path`` of a file system.

    Nothing appears there if the block fails.
    """
    local = isinstance(files, LocalFileSystem)
    folder = os.path.dirname(path) if local else tempfile.gettempdir()
    with unfinished_file(folder) as unfinished:
        yield unfinished
        if local:
            put_in_place(unfinished, path)
            sync_folder(folder)
        else:
            upload(files, unfinished, path)
