"""Loads networks from published checkpoints or from our own weight files.

Every system's checkpoint is matched strictly, by the same rules. A network whose weights are known
is built without drawing random ones first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model.catalogue import WeightsFile
from model.checkpoints import converted, layouts, tensorfiles
from model.checkpoints.converted import SourceFile
from model.checkpoints.fetch import CheckpointError, LocalFile, fetch
from model.clap import Clap
from model.config import PUBLISHED, ClapConfig, ClapSepConfig, from_json
from model.systems.clapsep import lora
from model.systems.clapsep.network import ClapSep

_Module = TypeVar("_Module", bound=nn.Module)


class _WithoutRandomFill(TorchFunctionMode):
    """Skips random initialisation, most of the time of building a network whose weights follow.

    It holds for this thread alone. ``normal_`` as a method is left alone: torch's truncated normal
    draws with it until all values are in range.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        method = name in ("uniform_", "erfinv_", "kaiming_uniform_", "kaiming_normal_")
        if method or (name == "normal_" and "tensor" in options):
            return args[0] if args else options["tensor"]
        return func(*args, **options)


def build(constructor: Callable[[], _Module]) -> _Module:
    """Calls a network's constructor without the random draws; every parameter must then be set.

    Raises:
        CheckpointError: there is no such network, or it does not fit into memory.
    """
    try:
        with _WithoutRandomFill():
            return constructor()
    except (ArithmeticError, IndexError, MemoryError, RuntimeError, TypeError, ValueError) as err:
        raise CheckpointError(f"no network can be built like this: {err}") from err


def own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors out of the file that they are mapped from.

    The file may then change or go. The copies are aligned, too, which makes results independent of
    the file's format: matrix products round differently at odd addresses.
    """
    whole = torch.contiguous_format
    return {key: value.clone(memory_format=whole) for key, value in tensors.items()}


def assign(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts checked tensors in the place of a module's, in the module's types, without a copy."""
    present = module.state_dict()
    typed = {key: value.to(present[key].dtype) for key, value in tensors.items()}
    left = module.load_state_dict(typed, strict=False, assign=True).missing_keys
    unset = set(left) & {name for name, _ in module.named_parameters()}
    if unset:
        raise CheckpointError(f"parameters without a value: {sorted(unset)[:10]}")


_WRAPPERS = ("model", "model_state_dict")
"""Where training scripts put the state dict, beside ``state_dict``."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PublishedState:
    """A checkpoint's tensors, and the file that they are in."""

    state: dict[str, Tensor]
    file: LocalFile


def published_state(weights: WeightsFile) -> PublishedState:
    """Fetches and reads a checkpoint, safely.

    Raises:
        CheckpointError: the file cannot be had or read, or holds no state dict.
    """
    file = fetch(weights.location(), sha256=weights.sha256)
    content = tensorfiles.read(file.path, file.uri).content
    return PublishedState(state=unwrap(content, file.uri), file=file)


def unwrap(content: object, where: str) -> dict[str, Tensor]:
    """The state dict, under whichever of the usual names; ``module.`` removed.

    Raises:
        LayoutError: there is none.
    """
    if isinstance(content, Mapping):
        for name in _WRAPPERS:
            if isinstance(content.get(name), Mapping):
                return layouts.unwrap(content[name], where)
    return layouts.unwrap(content, where)


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a state dict whose keys begin with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def fill(
    network: nn.Module,
    state: Mapping[str, Tensor],
    where: str,
    *,
    prefix: str = "",
    ignored: Iterable[str] = (),
) -> None:
    """Puts the tensors under a prefix in a network's place, strictly.

    Args:
        network: whose state dict has the published names, without the prefix.
        state: an unwrapped state dict.
        where: URI, for messages.
        prefix: of the network's tensors.
        ignored: patterns of other keys, from their start, that may be there.

    Raises:
        LayoutError: keys are missing or unexpected, shapes or types differ, or values are not
            finite.
    """
    expected = {prefix + key: value for key, value in network.state_dict().items()}
    found = own(layouts.match(state, expected, where=where, ignored=ignored))
    assign(network, under(prefix, found))


Adapters = Literal["merge", "keep"]

_Config = TypeVar("_Config", ClapConfig, ClapSepConfig)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Networks:
    """A CLAPSep network and the CLAP that embeds its queries, on the CPU, in evaluation mode.

    With adapters merged, the two encoders share the tensors in which they do not differ.
    """

    config: ClapSepConfig
    clap: Clap
    separator: ClapSep
    model_sha256: str = ""
    """Digest of the file that the separator came from; empty for one that was just trained."""
    clap_sha256: str = ""
    sources: tuple[SourceFile, ...] = ()


def load_published(
    clap_uri: str,
    clapsep_uri: str,
    *,
    config: ClapSepConfig = PUBLISHED,
    clap_sha256: str | None = None,
    clapsep_sha256: str | None = None,
    adapters: Adapters = "merge",
) -> Networks:
    """Loads CLAP's and CLAPSep's checkpoint, in the layouts in which they were published.

    Args:
        clap_uri: any URI of a CLAP checkpoint.
        clapsep_uri: any URI of a CLAPSep checkpoint.
        config: the network that the files are of.
        clap_sha256: expected digest.
        clapsep_sha256: expected digest.
        adapters: ``merge`` LoRA into the weights (inference) or ``keep`` it (training).

    Raises:
        CheckpointError: a file cannot be had or read, or is not of this network.
    """
    clap_file = fetch(clap_uri, sha256=clap_sha256)
    clapsep_file = fetch(clapsep_uri, sha256=clapsep_sha256)
    clap = _clap_from(clap_file, config.clap)
    content = tensorfiles.read(clapsep_file.path, clapsep_uri).content
    separator = separator_from(
        layouts.unwrap(content, clapsep_uri), clap, config, adapters=adapters, where=clapsep_uri
    )
    return Networks(
        config=config,
        clap=clap,
        separator=separator,
        model_sha256=clapsep_file.sha256,
        clap_sha256=clap_file.sha256,
        sources=(_source("clap", clap_file), _source("clapsep", clapsep_file)),
    )


def separator_from(
    state: Mapping[str, Tensor],
    clap: Clap,
    config: ClapSepConfig,
    *,
    adapters: Adapters = "merge",
    where: str = "separator",
) -> ClapSep:
    """Builds a separator from CLAPSep's tensors and the CLAP that they were trained on.

    Args:
        state: an unwrapped CLAPSep state dict, under published keys.
        clap: gives the encoder what ``state`` does not hold.
        config: the network.
        adapters: ``merge`` LoRA into the weights or ``keep`` it.
        where: what messages call the state dict.

    Raises:
        LayoutError: the tensors are not of this network.
    """
    separator = build(lambda: ClapSep(config))
    found = layouts.clapsep_tensors(
        state,
        separator.encoder.state_dict(),
        separator.decoder.state_dict(),
        config.lora,
        where,
    )
    _fill_encoder(separator, {**clap.audio_branch.state_dict(), **own(found.encoder)}, adapters)
    assign(separator.decoder, own(found.decoder))
    return separator.eval()


def clap_from(
    state: Mapping[str, Tensor], config: ClapConfig, *, digest: str = "", where: str = "CLAP"
) -> Clap:
    """Builds a CLAP from an unwrapped state dict under published keys.

    Raises:
        LayoutError: the tensors are not of this network.
    """
    clap = build(lambda: Clap(config, digest=digest))
    assign(clap, own(layouts.clap_tensors(state, clap.state_dict(), where)))
    return clap.eval()


def load_converted(
    uri: str, *, sha256: str | None = None, adapters: Adapters = "merge"
) -> Networks:
    """Loads the single file that :func:`model.checkpoints.convert.save` wrote.

    Raises:
        CheckpointError: the file cannot be had or read, or is not a whole separator.
    """
    file = converted.read(uri, sha256=sha256)
    header = file.header
    if header.kind != "clapsep":
        raise CheckpointError(f"{uri}: holds a {header.kind}, expected a clapsep")
    config = _config(ClapSepConfig, header, uri)
    clap = build(lambda: Clap(config.clap, digest=header.clap_sha256))
    clap.input_level_dbfs = config.signal.input_level_dbfs
    separator = build(lambda: ClapSep(config))
    branch = separator.encoder.state_dict()
    if header.lora == "adapters" and config.lora is not None:
        branch |= layouts.adapter_shapes(branch, config.lora)
    stored = {key: value for key, value in branch.items() if key not in header.shared}
    expected = converted.joined(
        {"clap": clap.state_dict(), "encoder": stored, "decoder": separator.decoder.state_dict()}
    )
    found = own(layouts.match(file.tensors, expected, where=uri))
    assign(clap, _part("clap", found))
    common = clap.audio_branch.state_dict()
    if not set(header.shared) <= set(common):
        raise CheckpointError(f"{uri}: damaged header: it shares tensors that CLAP does not have")
    taken = {key: common[key] for key in header.shared}
    _fill_encoder(separator, taken | _part("encoder", found), adapters)
    assign(separator.decoder, _part("decoder", found))
    return Networks(
        config=config,
        clap=clap.eval(),
        separator=separator.eval(),
        model_sha256=file.sha256,
        clap_sha256=header.clap_sha256,
        sources=header.sources,
    )


def load_clap(uri: str, *, config: ClapConfig = PUBLISHED.clap, sha256: str | None = None) -> Clap:
    """Loads a CLAP: a published checkpoint, or the CLAP inside a converted file.

    Args:
        uri: any URI.
        config: the network of a published checkpoint; a converted file brings its own.
        sha256: expected digest.

    Raises:
        CheckpointError: the file cannot be had or read, or holds no such CLAP.
    """
    file = fetch(uri, sha256=None if converted.is_set(uri) else sha256)
    if not converted.is_converted(tensorfiles.read(file.path, uri).metadata):
        return _clap_from(file, config)
    content = converted.read(uri, sha256=sha256)
    header = content.header
    level_dbfs = None
    if header.kind == "clapsep":
        whole = _config(ClapSepConfig, header, uri)
        config, level_dbfs = whole.clap, whole.signal.input_level_dbfs
    else:
        config = _config(ClapConfig, header, uri)
    clap = build(lambda: Clap(config, digest=header.clap_sha256))
    clap.input_level_dbfs = level_dbfs
    expected = converted.joined({"clap": clap.state_dict()})
    rest = (r"encoder\.", r"decoder\.")
    found = own(layouts.match(content.tensors, expected, where=uri, ignored=rest))
    assign(clap, _part("clap", found))
    return clap.eval()


def _clap_from(file: LocalFile, config: ClapConfig) -> Clap:
    state = layouts.unwrap(tensorfiles.read(file.path, file.uri).content, file.uri)
    return clap_from(state, config, digest=file.sha256, where=file.uri)


def _fill_encoder(separator: ClapSep, state: Mapping[str, Tensor], adapters: Adapters) -> None:
    settings = separator.config.lora
    if settings is None:
        assign(separator.encoder, state)
    elif adapters == "merge":
        assign(separator.encoder, layouts.merge_lora(state, settings))
    else:
        if not any(key.endswith(".lora_A") for key in state):
            raise CheckpointError("the adapters of these weights were merged: they cannot be kept")
        lora.add_adapters(separator.encoder, settings)
        assign(separator.encoder, layouts.to_peft(own(state)))


def _config(kind: type[_Config], header: converted.Header, where: str) -> _Config:
    try:
        return from_json(kind, header.config)
    except (TypeError, ValueError) as err:
        raise CheckpointError(f"{where}: damaged configuration: {err}") from err


def _source(role: str, file: LocalFile) -> SourceFile:
    return SourceFile(role=role, uri=file.uri, sha256=file.sha256)


def _part(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
