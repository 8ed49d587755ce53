"""Reads weight files without running them, and reads and writes our own kind of them.

Names are ``clap.…``, ``encoder.…`` and ``decoder.…`` as in the modules' state dicts, adapters under
loralib's. What the separator's encoder has in common with CLAP's audio tower is kept once.

A pickle can call any function. Those of torch are read by its restricted unpickler, which builds
tensors and containers only, plus the few numpy types that the published CLAP file holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import pickle  # only for the exception's type
import re
import tempfile
import threading
import warnings
import zipfile
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from model.checkpoints.fetch import CheckpointError, DigestMismatchError, fetch, open_filesystem

Format = Literal["safetensors", "torch"]

NUMPY_SCALARS = ("bool", "int32", "int64", "float16", "float32", "float64")
"""Numpy types whose scalars a pickle may hold (training scripts keep losses and counters)."""

_HEAD_BYTES = 512
_MAX_HEADER_BYTES = 100_000_000  # of the safetensors format
_MAX_MAPPED_BYTES = 64 * 2**20
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
    with _damage_said(where):
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
        content = safetensors.torch.load_file(path)
    return TensorFile(format="safetensors", content=content, metadata=metadata)


@contextlib.contextmanager
def _damage_said(where: str) -> Iterator[None]:
    try:
        yield
    except (safetensors.SafetensorError, ValueError) as err:
        message = f"{where}: a damaged safetensors file, or only a part of one: {err}"
        raise DamagedFileError(message) from err


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read when it is asked for, into memory of its own.

    The file may change or go afterwards. A file that is mapped as a whole takes its size in memory
    beside the copies, until it is closed: this one is closed now and then. Copies are aligned, too,
    which makes results independent of the file's format: matrix products round differently at odd
    addresses.
    """

    def __init__(self, path: Path, where: str) -> None:
        """Reads what is in the file, and no tensor.

        Raises:
            DamagedFileError: not a safetensors file, or not all of it.
        """
        self._path, self._where = path, where
        with _damage_said(where):
            self._file = safetensors.safe_open(path, framework="pt")
        self._names = dict.fromkeys(self._file.keys())
        self._mapped_bytes = 0
        self.metadata: dict[str, str] = dict(self._file.metadata() or {})

    def __getitem__(self, name: str) -> Tensor:
        """Reads a tensor.

        Raises:
            KeyError: the file has none of that name.
            DamagedFileError: its type is unknown.
        """
        if name not in self._names:
            raise KeyError(name)
        with _damage_said(self._where):
            if self._mapped_bytes > _MAX_MAPPED_BYTES:
                self._file = safetensors.safe_open(self._path, framework="pt")
                self._mapped_bytes = 0
            value: Tensor = self._file.get_tensor(name)
        self._mapped_bytes += value.nbytes
        return value.clone(memory_format=torch.contiguous_format)

    def __iter__(self) -> Iterator[str]:
        """The names of the tensors."""
        return iter(self._names)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._names)


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


FORMAT = "clapsep-beam"
FORMAT_VERSION = 1
_SUFFIX = ".safetensors"

Kind = Literal["clapsep", "clap", "presence"]
StorageType = Literal["fp32", "fp16"]
LoraState = Literal["none", "merged", "adapters"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A file that weights came from."""

    role: str
    """``clap``, ``clapsep`` or whatever else it gave."""
    uri: str
    sha256: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a converted file says of itself."""

    kind: Kind
    config: str
    """The configuration as JSON: of the whole model, of a CLAP alone, or of a presence head."""
    clap_sha256: str
    """Identifies the CLAP weights: the digest of the file they came from unchanged, or of them."""
    lora: LoraState = "none"
    dtype: StorageType = "fp32"
    shared: tuple[str, ...] = ()
    """The encoder's tensors that are CLAP's ``audio_branch.…`` and not stored again."""
    sources: tuple[SourceFile, ...] = ()
    notes: str = ""

    def to_metadata(self) -> dict[str, str]:
        """As text, which is all that safetensors carries.

        One entry, because safetensors writes several in an order that changes from run to run.
        """
        fields = {"version": FORMAT_VERSION, **dataclasses.asdict(self)}
        return {FORMAT: json.dumps(fields, sort_keys=True)}


def is_converted(metadata: Mapping[str, str]) -> bool:
    """Whether a safetensors file is one of ours."""
    return FORMAT in metadata


def read_header(metadata: Mapping[str, str], where: str) -> Header:
    """The header of a converted file.

    Raises:
        CheckpointError: the file is not one, or is of a later version of the format.
    """
    if not is_converted(metadata):
        raise CheckpointError(
            f"{where}: not a converted file; make one with: python -m model.checkpoints convert"
        )
    try:
        fields = json.loads(metadata[FORMAT])
        version = fields.pop("version")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{where}: version {version!r:.40} of the format, expected {FORMAT_VERSION}"
            )
        sources = tuple(SourceFile(**item) for item in fields.pop("sources"))
        return Header(sources=sources, shared=tuple(fields.pop("shared")), **fields)
    except CheckpointError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as err:
        reason = f"{type(err).__name__}: {str(err)[:200]!r}"
        raise CheckpointError(f"{where}: damaged header: {reason}") from err


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Converted:
    """What a converted file, or all the files of a set, hold."""

    header: Header
    tensors: Mapping[str, Tensor]
    """Each is read when it is asked for."""
    sha256: str
    """The file's digest; of a set, the digest of its files' digests in order."""


def read_converted(uri: str, *, sha256: str | None = None) -> Converted:
    """Reads a converted file, or a set of them by the URI of its first.

    Raises:
        CheckpointError: a file cannot be had or read, or is not the expected one.
    """
    uris = _set_of(uri)
    files = [fetch(each, sha256=sha256 if len(uris) == 1 else None) for each in uris]
    total = files[0].sha256 if len(files) == 1 else _digest_of_set(file.sha256 for file in files)
    if sha256 is not None and total != sha256.lower():
        raise DigestMismatchError(f"{uri}: expected SHA-256 {sha256} of the set, found {total}")
    stored: list[Any] = []
    for file in files:
        if sniff(file.path, file.uri) != "safetensors":
            read_header({}, file.uri)
        stored.append(StoredTensors(file.path, file.uri))
    headers = [
        read_header(each.metadata, file.uri) for each, file in zip(stored, files, strict=True)
    ]
    tensors = stored[0] if len(stored) == 1 else ChainMap(*reversed(stored))
    if any(header != headers[0] for header in headers):
        raise CheckpointError(f"{uri}: the files of the set are not of one model")
    return Converted(header=headers[0], tensors=tensors, sha256=total)


def write_converted(
    uri: str, tensors: Mapping[str, Tensor], header: Header, *, max_file_bytes: int | None = None
) -> str:
    """Writes a converted file, whole or not at all; returns its SHA-256.

    Args:
        uri: a path, or any URI that can be written to.
        tensors: under their stored names.
        header: what the file says of itself.
        max_file_bytes: where the tensors take more, a set of files ``…-1-of-N.safetensors`` is
            written.
    """
    parts = _split(tensors, max_file_bytes)
    if len(parts) == 1:
        return _write_one(uri, parts[0], header)
    stem = uri.removesuffix(_SUFFIX)
    names = [f"{stem}-{number}-of-{len(parts)}{_SUFFIX}" for number in range(1, len(parts) + 1)]
    written = [_write_one(name, part, header) for name, part in zip(names, parts, strict=True)]
    return _digest_of_set(written)


def is_set(uri: str) -> bool:
    """Whether a URI names a file of a set."""
    return len(_set_of(uri)) > 1


def _set_of(uri: str) -> list[str]:
    found = re.fullmatch(rf"(.*)-(\d+)-of-(\d+){re.escape(_SUFFIX)}", uri)
    if found is None:
        return [uri]
    count = int(found.group(3))
    return [f"{found.group(1)}-{number}-of-{count}{_SUFFIX}" for number in range(1, count + 1)]


def _digest_of_set(digests: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _split(tensors: Mapping[str, Tensor], max_bytes: int | None) -> list[dict[str, Tensor]]:
    """Tensors in order, in groups of about equal size that stay within the limit."""
    total = sum(value.nbytes for value in tensors.values())
    if max_bytes is None or total <= max_bytes:
        return [dict(tensors)]
    share = total / math.ceil(total / max_bytes)
    parts: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, value in tensors.items():
        if parts[-1] and (filled + value.nbytes > max_bytes or filled >= share):
            parts.append({})
            filled = 0
        parts[-1][name] = value
        filled += value.nbytes
    return parts


def _write_one(uri: str, tensors: Mapping[str, Tensor], header: Header) -> str:
    filesystem, path = open_filesystem(uri)
    local = isinstance(filesystem, LocalFileSystem)
    if local:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=Path(path).parent if local else None) as folder:
        part = Path(folder) / "weights"
        plain = {name: value.contiguous() for name, value in tensors.items()}
        safetensors.torch.save_file(plain, part, metadata=header.to_metadata())
        with part.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if local:
            part.chmod(0o644)
            part.replace(path)
        else:
            filesystem.put_file(str(part), path)
    return sha256


def joined(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Every part's tensors, under the part's name."""
    return {f"{part}.{key}": value for part, own in parts.items() for key, value in own.items()}


def stored(
    tensors: Mapping[str, Tensor], dtype: StorageType, buffers: Collection[str]
) -> dict[str, Tensor]:
    """Tensors as they are stored: ``fp16`` halves matrices; vectors and buffers keep their type.

    Raises:
        CheckpointError: a weight is too large for half precision.
    """
    if dtype == "fp32":
        return dict(tensors)
    halved = {}
    for name, value in tensors.items():
        small = value.ndim < 2 or name in buffers or not value.is_floating_point()
        halved[name] = value if small else value.half()
        if not small and not torch.isfinite(halved[name]).all():
            raise CheckpointError(f"{name}: values do not fit half precision; store as fp32")
    return halved


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes, whatever the order."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
