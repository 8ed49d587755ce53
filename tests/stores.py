"""Every kind of store that the project's tests can reach, each with an empty place in it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

import gcs_emulator
import s3_emulator

KINDS = ("local", "memory", "s3", "gs")


@contextmanager
def place(kind: str, folder: Path) -> Iterator[str]:
    """URI of an empty place in a store of this kind, while the store is there."""
    if kind == "local":
        (folder / "place").mkdir()
        yield str(folder / "place")
    elif kind == "memory":
        uri = f"memory://{uuid.uuid4().hex}"
        yield uri
        fsspec.filesystem("memory").rm(uri, recursive=True)
    elif kind == "s3":
        bucket = f"place-{uuid.uuid4().hex}"  # what a process emulates stays in it
        with s3_emulator.running():
            fsspec.filesystem("s3").mkdir(bucket)
            yield f"s3://{bucket}"
    else:
        with gcs_emulator.running(folder) as front:
            yield front.bucket("place")


class Vault(MemoryFileSystem):
    """A store that cannot be reached without its storage option."""

    protocol = "vault"
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]

    def __init__(self, key: str, **others) -> None:
        super().__init__(**others)
        assert key == "open"


def vault() -> str:
    """The URI at which :class:`Vault` is found from now on, with ``{"key": "open"}``."""
    fsspec.register_implementation("vault", Vault, clobber=True)
    return "vault://"
