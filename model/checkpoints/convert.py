"""Converts networks to one weight file with the configuration inside, and describes weight files.

The command is :mod:`model.checkpoints.__main__`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model.checkpoints import loading, tensorfiles
from model.checkpoints.fetch import CheckpointError, fetch
from model.checkpoints.loading import Adapters, Networks, load_clap, load_published
from model.checkpoints.tensorfiles import SourceFile
from model.clap import Clap
from model.config import PUBLISHED, ClapSepConfig, from_json, to_json
from model.systems.clapsep.network import PresenceHead

# Computed when a network is built; the mel filters are kept, since librosa's may change.
_RECOMPUTED = re.compile("|".join(pattern for pattern in loading.DERIVED if "melW" not in pattern))


def save(
    uri: str,
    networks: Networks,
    *,
    dtype: tensorfiles.StorageType = "fp32",
    adapters: Adapters = "merge",
    notes: str = "",
    max_file_bytes: int | None = None,
) -> str:
    """Writes a file for :func:`model.checkpoints.loading.load_converted`; returns its SHA-256.

    Args:
        uri: a path, or any URI that can be written to.
        networks: what to write.
        dtype: ``fp16`` halves the matrices; vectors and buffers stay as they are.
        adapters: ``merge`` LoRA into the weights, or ``keep`` it for further training.
        notes: free text for the header, such as how the model was trained.
        max_file_bytes: a larger model becomes a set of files ``…-1-of-N.safetensors``; it is loaded
            by the URI of the first.

    Raises:
        CheckpointError: the encoder has adapters, of which the configuration does not know.
    """
    config, decoder = networks.config, networks.separator.decoder
    encoder = _encoder_tensors(networks, adapters)
    kept = any(key.endswith(".lora_A") for key in encoder)
    clap = _stored(networks.clap.state_dict(), networks.clap, dtype)
    own = _stored(encoder, networks.separator.encoder, dtype)
    shared = [key for key, value in own.items() if _equal(value, clap.get(f"audio_branch.{key}"))]
    header = tensorfiles.Header(
        kind="clapsep",
        config=to_json(config),
        clap_sha256=_clap_digest(networks.clap_sha256, clap, dtype),
        lora=_lora_state(config, kept),
        dtype=dtype,
        shared=tuple(shared),
        sources=networks.sources,
        notes=notes,
    )
    own = {key: value for key, value in own.items() if key not in shared}
    parts = {"clap": clap, "encoder": own, "decoder": _stored(decoder.state_dict(), decoder, dtype)}
    return tensorfiles.write_converted(
        uri, tensorfiles.joined(parts), header, max_file_bytes=max_file_bytes
    )


def save_clap(
    uri: str, clap: Clap, source: SourceFile, *, dtype: tensorfiles.StorageType = "fp32"
) -> str:
    """Writes a CLAP alone, for scoring, and returns the file's SHA-256."""
    tensors = _stored(clap.state_dict(), clap, dtype)
    header = tensorfiles.Header(
        kind="clap",
        config=to_json(clap.config),
        clap_sha256=_clap_digest(source.sha256, tensors, dtype),
        dtype=dtype,
        sources=(source,),
    )
    return tensorfiles.write_converted(uri, tensorfiles.joined({"clap": tensors}), header)


def save_presence(uri: str, head: PresenceHead, model: SourceFile, *, notes: str = "") -> str:
    """Writes a presence head in half precision, and returns the file's SHA-256.

    Args:
        uri: where to: the folder of the model.
        head: calibrated.
        model: the name of its file in that folder, and its digest.
        notes: free text for the header.
    """
    tensors = _stored(head.state_dict(), head, "fp16")
    header = tensorfiles.Header(
        kind="presence",
        config=to_json(head.config),
        clap_sha256="",
        dtype="fp16",
        sources=(model,),
        notes=notes,
    )
    return tensorfiles.write_converted(uri, tensorfiles.joined({"presence": tensors}), header)


def _encoder_tensors(networks: Networks, adapters: Adapters) -> dict[str, Tensor]:
    """The separator's encoder under loralib's names, its adapters merged or kept."""
    encoder = loading.from_peft(networks.separator.encoder.state_dict())
    if not any(key.endswith(".lora_A") for key in encoder):
        return encoder
    settings = networks.config.lora
    if settings is None:
        raise CheckpointError("the encoder has LoRA adapters, but config.lora is None")
    return encoder if adapters == "keep" else loading.merge_lora(encoder, settings)


def _stored(
    tensors: Mapping[str, Tensor], module: nn.Module, dtype: tensorfiles.StorageType
) -> dict[str, Tensor]:
    kept = {key: value for key, value in tensors.items() if not _RECOMPUTED.search(key)}
    return tensorfiles.stored(kept, dtype, {name for name, _ in module.named_buffers()})


def _clap_digest(known: str, tensors: Mapping[str, Tensor], dtype: tensorfiles.StorageType) -> str:
    """The CLAP's source, as long as storing it changed no value."""
    return known if known and dtype == "fp32" else tensorfiles.digest_tensors(tensors)


def _lora_state(config: ClapSepConfig, kept: bool) -> tensorfiles.LoraState:
    if config.lora is None:
        return "none"
    return "adapters" if kept else "merged"


def _equal(value: Tensor, other: Tensor | None) -> bool:
    return other is not None and value.shape == other.shape and torch.equal(value, other)


def convert(options: argparse.Namespace) -> str:
    """Converts what the flags name; returns the SHA-256 of the file that was written.

    Raises:
        CheckpointError: a file cannot be had or is not what it should be.
        ValueError: a digest is none.
        OSError: the file cannot be written.
    """
    config = PUBLISHED if options.config is None else _config_of(options.config)
    if options.clapsep is None:
        clap = load_clap(options.clap, config=config.clap, sha256=options.clap_sha256)
        source = SourceFile(role="clap", uri=options.clap, sha256=clap.digest)
        return save_clap(options.output, clap, source, dtype=options.dtype)
    networks = load_published(
        options.clap,
        options.clapsep,
        config=config,
        clap_sha256=options.clap_sha256,
        clapsep_sha256=options.clapsep_sha256,
        adapters="merge" if options.merge_lora else "keep",
    )
    adapters: Adapters = "merge" if options.merge_lora else "keep"
    return save(options.output, networks, dtype=options.dtype, adapters=adapters)


def _config_of(uri: str) -> ClapSepConfig:
    path = fetch(uri).path
    try:
        return from_json(ClapSepConfig, path.read_text("utf-8"))
    except (TypeError, ValueError) as err:
        raise CheckpointError(f"{uri}: is no configuration: {err}") from err


def file_facts(uri: str) -> dict[str, str]:
    """What a weight file is, by name: format, kind, digest, sizes, configuration, sources.

    A folder stands for the file that is loaded of it.

    Raises:
        CheckpointError: the URI cannot be had, or is no weight file.
    """
    uri = loading.in_bundle(uri)
    file = fetch(uri)
    content = tensorfiles.read(file.path, uri)
    facts = {"uri": uri, "sha256": file.sha256, "bytes": f"{file.num_bytes:,}"}
    state = loading.unwrap(content.content, uri)
    if tensorfiles.is_converted(content.metadata):
        header = tensorfiles.read_header(content.metadata, uri)
        kind = f"{header.kind}, converted ({header.dtype}, LoRA: {header.lora})"
        facts |= {"kind": kind, "clap_sha256": header.clap_sha256, "config": header.config}
        facts |= {f"source {s.role}": f"{s.uri} {s.sha256}" for s in header.sources}
        facts |= {"notes": header.notes} if header.notes else {}
    else:
        facts["kind"] = f"{loading.identify(state)}, {content.format} file"
    types = sorted({str(value.dtype).removeprefix("torch.") for value in state.values()})
    numbers = sum(value.numel() for value in state.values())
    return facts | {"tensors": f"{len(state)} of {numbers:,} numbers ({', '.join(types)})"}
