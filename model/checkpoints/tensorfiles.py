"""Reading weight files without running them: safetensors, and torch pickles by an allow-list.

A pickle can call any function. Those of torch are read by its restricted unpickler, which builds
tensors and containers only, plus the few numpy types that the published CLAP file holds.
"""

from __future__ import annotations

import dataclasses
import pickle  # only for the exception's type
import re
import threading
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch

from model.checkpoints.fetch import CheckpointError

Format = Literal["safetensors", "torch"]

NUMPY_SCALARS = ("bool", "int32", "int64", "float16", "float32", "float64")
"""Numpy types whose scalars a pickle may hold (training scripts keep losses and counters)."""

_HEAD_BYTES = 512
_MAX_HEADER_BYTES = 100_000_000  # of the safetensors format
# torch keeps the allow-list for the whole process, so loads that change it take turns.
_ALLOW_LIST_LOCK = threading.Lock()


class DamagedFileError(CheckpointError):
    """A file that is not weights, or is only a part of them."""


class UnsafePickleError(CheckpointError):
    """A pickle that asks for more than tensors, containers and numpy scalars; it was not run."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorFile:
    """What a weight file holds."""

    format: Format
    content: Any
    """The pickled object, or the dict of tensors of a safetensors file."""
    metadata: dict[str, str]
    """Text that a safetensors file carries; empty for pickles."""


def read(path: Path, where: str) -> TensorFile:
    """Reads a weight file; tensors stay on disk until they are touched.

    Args:
        path: the local file.
        where: what messages call it, such as the URI it came from.

    Raises:
        DamagedFileError: not weights, or not all of them.
        UnsafePickleError: the pickle holds something else than data.
    """
    kind = sniff(path, where)
    if kind == "safetensors":
        return _read_safetensors(path, where)
    return TensorFile(format="torch", content=_read_torch(path, where), metadata={})


def sniff(path: Path, where: str) -> Format:
    """The format of a weight file, by its first bytes.

    Raises:
        DamagedFileError: it is neither; the message says what it looks like.
    """
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise DamagedFileError(f"{where}: the file is empty")
    if re.match(rb"\s*<(!doctype|html|\?xml|head|body)", head, re.IGNORECASE):
        raise DamagedFileError(f"{where}: a web page, not weights (a login or an error page?)")
    if head.startswith(b"version https://git-lfs"):
        raise DamagedFileError(f"{where}: a Git LFS pointer, not the weights that it points to")
    if head.startswith(b"PK\x03\x04"):
        if not zipfile.is_zipfile(path):
            raise DamagedFileError(f"{where}: only a part of a torch file ({num_bytes} bytes)")
        return "torch"
    header_bytes = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header_bytes <= _MAX_HEADER_BYTES:
        return "safetensors"
    if re.match(rb"\x80[\x02-\x05]", head):
        return "torch"
    raise DamagedFileError(f"{where}: not a weight file: starts with {head[:16]!r}")


def _read_safetensors(path: Path, where: str) -> TensorFile:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
        content = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError) as err:
        message = f"{where}: a damaged safetensors file, or only a part of one: {err}"
        raise DamagedFileError(message) from err
    return TensorFile(format="safetensors", content=content, metadata=metadata)


def _read_torch(path: Path, where: str) -> Any:
    try:
        with (
            _ALLOW_LIST_LOCK,
            torch.serialization.safe_globals(_allowed()),
            warnings.catch_warnings(action="ignore", category=UserWarning),
        ):
            mmap = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as err:
        found = re.search(r"(?:GLOBAL|global) `?([\w.]+)|function `?([\w.]+)", str(err))
        if found:
            name = next(group for group in found.groups() if group)
            message = f"{where}: the pickle asks for {name}, which is not data; it was not run"
            raise UnsafePickleError(message) from err
        raise DamagedFileError(f"{where}: a damaged torch file: {_reason(err)}") from err
    except OSError:
        raise
    except Exception as err:  # any type at all: damaged bytes call what was not meant to be called
        message = f"{where}: a damaged torch file, or only a part of one: {_reason(err)}"
        raise DamagedFileError(message) from err


def _allowed() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What the restricted unpickler may call beyond its own list: what makes numpy's scalars.

    The function moved from ``numpy.core`` to ``numpy._core`` in numpy 2; files have either name.
    """
    scalar: Any = np.float64(0.0).__reduce__()[0]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    dtypes = (type(np.dtype(name)) for name in NUMPY_SCALARS)
    return [*((scalar, f"{module}.scalar") for module in modules), np.dtype, *dtypes]


def _reason(err: BaseException) -> str:
    """The exception's own words, without torch's advice to read the file unsafely."""
    text = str(err) or type(err).__name__
    detail = re.search(r"WeightsUnpickler error:\s*([^\n]+)", text)
    return detail.group(1).strip() if detail else text.strip().splitlines()[0][:200]
