"""Our own weight file: safetensors whose metadata say which network it is and where it came from.

Names are ``clap.…``, ``encoder.…`` and ``decoder.…`` as in the modules' state dicts, adapters under
loralib's. What the separator's encoder has in common with CLAP's audio tower is kept once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from model.checkpoints import tensorfiles
from model.checkpoints.fetch import CheckpointError, DigestMismatchError, fetch, open_filesystem

FORMAT = "clapsep-beam"
FORMAT_VERSION = 1
_SUFFIX = ".safetensors"

Kind = Literal["clapsep", "clap"]
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
    """The configuration as JSON: of the whole model, or of a CLAP alone."""
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
    tensors: dict[str, Tensor]
    sha256: str
    """The file's digest; of a set, the digest of its files' digests in order."""


def read(uri: str, *, sha256: str | None = None) -> Converted:
    """Reads a converted file, or a set of them by the URI of its first.

    Raises:
        CheckpointError: a file cannot be had or read, or is not the expected one.
    """
    uris = _set_of(uri)
    files = [fetch(each, sha256=sha256 if len(uris) == 1 else None) for each in uris]
    total = files[0].sha256 if len(files) == 1 else _digest_of_set(file.sha256 for file in files)
    if sha256 is not None and total != sha256.lower():
        raise DigestMismatchError(f"{uri}: expected SHA-256 {sha256} of the set, found {total}")
    tensors: dict[str, Tensor] = {}
    headers = []
    for file in files:
        content = tensorfiles.read(file.path, file.uri)
        headers.append(read_header(content.metadata, file.uri))
        tensors |= content.content
    if any(header != headers[0] for header in headers):
        raise CheckpointError(f"{uri}: the files of the set are not of one model")
    return Converted(header=headers[0], tensors=tensors, sha256=total)


def write(
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
