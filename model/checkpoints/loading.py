"""Loads networks from published checkpoints, by their key layouts, or from our own weight files.

Every system's checkpoint is matched strictly, by the same rules. A network whose weights are known
is built without drawing random ones first.

Two files make one published model. CLAP's has laion_clap's names (504 of them, prefixed ``module.``
by the training script). CLAPSep's is a flat dict of the tuned tensors alone (LoRA factors and
biases of the encoder's attention under loralib's names, and the decoder), with a second copy of
CLAP's biases; a training checkpoint nests the same, and the whole network, under ``state_dict``.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model.catalogue import WeightsFile
from model.checkpoints import tensorfiles
from model.checkpoints.fetch import CheckpointError, FetchError, LocalFile, fetch, open_filesystem
from model.checkpoints.tensorfiles import SourceFile
from model.clap import Clap
from model.config import (
    PUBLISHED,
    ClapConfig,
    ClapSepConfig,
    LoraConfig,
    PresenceConfig,
    from_json,
)
from model.systems.clapsep import lora
from model.systems.clapsep.network import ClapSep, Listener, PresenceHead

CLAP_IGNORED = (
    r"logit_scale_[at]$",
    r"(audio|text)_transform\.",
    r"audio_branch\.(tscam_conv|head|spectrogram_extractor|logmel_extractor)\.",
    r"text_branch\.embeddings\.(position_ids|token_type_ids)$",
)
"""Tensors of CLAP files that this network has no use for."""

CLAPSEP_IGNORED = (
    r"clap_model\.",
    r"stft\.",
    r"istft\.",
    r"resampler\.",
    r"audio_branch\.(tscam_conv|head|spectrogram_extractor|logmel_extractor)\.",
)
"""Tensors of CLAPSep files that this network has no use for, or takes from the CLAP file."""

DERIVED = (
    r"\.relative_position_index$",
    r"\.attn_mask$",
    r"num_batches_tracked$",
    r"logmel_extractor\.melW$",
    r"position_ids$",
    r"token_type_ids$",
)
"""Tensors that the network computes when it is built: taken from a file that has them."""

_ADAPTED = r"layers\.\d+\.blocks\.\d+\.attn\.({targets})"
_LISTED = 10


class LayoutError(CheckpointError):
    """A checkpoint whose keys, shapes, types or values are not those of the network."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClapSepTensors:
    """What a CLAPSep file adds to CLAP."""

    encoder: dict[str, Tensor]
    """Under the encoder's names, adapters under loralib's (``….qkv.lora_A``)."""
    decoder: dict[str, Tensor]


def unwrap(content: object, where: str) -> dict[str, Tensor]:
    """The state dict inside a checkpoint: flat, or under ``state_dict``; ``module.`` removed.

    Raises:
        LayoutError: there is none, or it holds something other than tensors.
    """
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state:
        found = "an empty dict" if isinstance(state, Mapping) else type(state).__name__
        raise LayoutError(f"{where}: expected a dict of tensors, found {found}")
    other = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if other:
        raise LayoutError(f"{where}: not a state dict: {_listed(other)} not tensors")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def identify(keys: Collection[str]) -> str:
    """``clap``, ``clapsep`` or ``unknown``, by the keys of an unwrapped state dict."""
    if any(key.startswith("decoder_model.") for key in keys):
        return "clapsep"
    if any(key.startswith(("text_branch.", "audio_projection.")) for key in keys):
        return "clap"
    return "unknown"


def clap_tensors(
    state: Mapping[str, Tensor], network: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """The tensors of a CLAP file that our network holds.

    Args:
        state: an unwrapped state dict.
        network: state dict of the network to fill, for its shapes.
        where: URI, for messages.

    Raises:
        LayoutError: the file is another one, or differs from the network.
    """
    _expect_kind("clap", state, where)
    return match(state, network, where=where, ignored=CLAP_IGNORED)


def clapsep_tensors(
    state: Mapping[str, Tensor],
    encoder: Mapping[str, Tensor],
    decoder: Mapping[str, Tensor],
    lora: LoraConfig | None,
    where: str,
) -> ClapSepTensors:
    """The tensors of a CLAPSep file that our network holds.

    Args:
        state: an unwrapped state dict.
        encoder: state dict of the encoder without adapters, for its shapes.
        decoder: state dict of the decoder, for its shapes.
        lora: the adapters that the file must hold.
        where: URI, for messages.

    Raises:
        LayoutError: the file is another one, or differs from the network.
    """
    _expect_kind("clapsep", state, where)
    tuned = {} if lora is None else adapter_shapes(encoder, lora)
    branch = {**encoder, **tuned}
    expected = {f"audio_branch.{key}": value for key, value in branch.items()}
    expected |= {f"decoder_model.{key}": value for key, value in decoder.items()}
    required = {f"audio_branch.{key}" for key in tuned}
    optional = {key for key in expected if key.startswith("audio_branch.")} - required
    found = match(state, expected, where=where, ignored=CLAPSEP_IGNORED, optional=optional)
    parts: dict[str, dict[str, Tensor]] = {"audio_branch": {}, "decoder_model": {}}
    for key, value in found.items():
        part, _, name = key.partition(".")
        parts[part][name] = value
    return ClapSepTensors(encoder=parts["audio_branch"], decoder=parts["decoder_model"])


def match(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    *,
    where: str,
    ignored: Iterable[str] = (),
    optional: Collection[str] = (),
) -> dict[str, Tensor]:
    """Checks a state dict against the network's and returns what the network holds of it.

    Args:
        state: what was found.
        expected: what the network holds: only shapes and types are read.
        where: URI, for messages.
        ignored: patterns of keys, from their start, that may be there and are dropped.
        optional: expected keys that may be missing; those of ``DERIVED`` always may.

    Raises:
        LayoutError: keys are missing or unexpected, shapes or types differ, or values are not
            finite; the message lists all of it.
    """
    found = {key: state[key] for key in expected if key in state}
    problems = _differences(state, found, expected, tuple(ignored), optional)
    if any(problems.values()):
        text = "; ".join(_listed(keys, name) for name, keys in problems.items() if keys)
        raise LayoutError(f"{where}: not this network's weights: {text}")
    return found


def _differences(
    keys: Collection[str],
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    ignored: tuple[str, ...],
    optional: Collection[str],
) -> dict[str, list[str]]:
    """What is wrong with a state dict, by kind.

    Args:
        keys: all that it has.
        found: its tensors that are expected.
        expected: see :func:`match`.
        ignored: see there.
        optional: see there.
    """
    droppable = re.compile("|".join(f"(?:{pattern})" for pattern in ignored) or r"(?!)")
    computed = re.compile("|".join(DERIVED))
    common = [key for key in keys if key in found]
    absent = [key for key in expected if key not in found and key not in optional]
    return {
        "missing": [key for key in absent if not computed.search(key)],
        "unexpected": [key for key in keys if key not in expected and not droppable.match(key)],
        "misshapen": [
            f"{key}: found {list(found[key].shape)}, expected {list(expected[key].shape)}"
            for key in common
            if found[key].shape != expected[key].shape
        ],
        "of another type": [
            f"{key}: found {found[key].dtype}, expected {expected[key].dtype}"
            for key in common
            if found[key].is_floating_point() != expected[key].is_floating_point()
        ],
        "with NaN or infinite values": [key for key in common if not _is_finite(found[key])],
    }


def adapter_shapes(encoder: Mapping[str, Tensor], lora: LoraConfig) -> dict[str, Tensor]:
    """What LoRA adds to an encoder, under loralib's names, as tensors without content.

    The biases of the adapted layers are tuned along with the factors, and are in it.
    """
    shapes: dict[str, Tensor] = {}
    for name in layers_to_adapt(encoder, lora):
        weight = encoder[f"{name}.weight"]
        rows, columns = weight.shape
        shapes[f"{name}.lora_A"] = weight.new_empty((lora.rank, columns), device="meta")
        shapes[f"{name}.lora_B"] = weight.new_empty((rows, lora.rank), device="meta")
        shapes[f"{name}.bias"] = weight.new_empty((rows,), device="meta")
    return shapes


def layers_to_adapt(state: Iterable[str], lora: LoraConfig) -> list[str]:
    """The linear layers that the configuration adapts, in order."""
    targets = "|".join(re.escape(target) for target in lora.targets)
    pattern = re.compile(rf"({_ADAPTED.format(targets=targets)})\.weight$")
    return [found.group(1) for key in state if (found := pattern.fullmatch(key))]


def merge_lora(state: Mapping[str, Tensor], lora: LoraConfig) -> dict[str, Tensor]:
    """Folds adapters into an encoder's weights: ``W + (alpha / rank)·B·A``, in float32.

    Args:
        state: encoder tensors with adapters under loralib's names.
        lora: rank and alpha.

    Returns:
        Encoder tensors without adapters; none of the given ones is changed.

    Source:
        Hu et al. 2021, arXiv 2106.09685, equation 3.
    """
    merged = {
        key: value for key, value in state.items() if not key.endswith((".lora_A", ".lora_B"))
    }
    for key, factor in state.items():
        if key.endswith(".lora_A"):
            name = key.removesuffix(".lora_A")
            update = state[f"{name}.lora_B"].float() @ factor.float()
            weight = state[f"{name}.weight"].float()
            merged[f"{name}.weight"] = weight + (lora.alpha / lora.rank) * update
    return merged


def to_peft(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Encoder tensors under loralib's names → the names they have once peft has added adapters."""
    adapted = {key.removesuffix(".lora_A") for key in state if key.endswith(".lora_A")}
    renamed = {}
    for key, value in state.items():
        layer, _, leaf = key.rpartition(".")
        if layer in adapted:
            key = (
                f"{layer}.{leaf}.{lora.ADAPTER}.weight"
                if leaf in ("lora_A", "lora_B")
                else f"{layer}.base_layer.{leaf}"
            )
        renamed[key] = value
    return renamed


def from_peft(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Encoder tensors under peft's names → loralib's; the inverse of :func:`to_peft`."""
    factor = re.compile(rf"\.(lora_[AB])\.{lora.ADAPTER}\.weight$")
    return {
        factor.sub(r".\1", key).replace(".base_layer.", "."): value for key, value in state.items()
    }


def _is_finite(value: Tensor) -> bool:
    """Whether all values are; their sum tells, unless it overflows, at a fraction of the cost."""
    if not value.is_floating_point():
        return True
    total = value.sum(dtype=torch.promote_types(value.dtype, torch.float32))
    return bool(torch.isfinite(total)) or bool(torch.isfinite(value).all())


def _expect_kind(kind: str, state: Mapping[str, Tensor], where: str) -> None:
    names = {"clap": "a CLAP checkpoint", "clapsep": "a CLAPSep checkpoint"}
    found = identify(state)
    if found not in (kind, "unknown"):
        raise LayoutError(f"{where}: expected {names[kind]}, found {names[found]}")


def _listed(keys: list[str], what: str = "are") -> str:
    shown = ", ".join(keys[:_LISTED])
    more = f", … {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return f"{len(keys)} {what} ({shown}{more})"


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
    return PublishedState(state=unwrap_published(content, file.uri), file=file)


def unwrap_published(content: object, where: str) -> dict[str, Tensor]:
    """The state dict, under whichever of the usual names; ``module.`` removed.

    Raises:
        LayoutError: there is none.
    """
    if isinstance(content, Mapping):
        for name in _WRAPPERS:
            if isinstance(content.get(name), Mapping):
                return unwrap(content[name], where)
    return unwrap(content, where)


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
    found = own(match(state, expected, where=where, ignored=ignored))
    assign(network, under(prefix, found))


Adapters = Literal["merge", "keep"]

_Config = TypeVar("_Config", ClapConfig, ClapSepConfig, PresenceConfig)


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
        unwrap(content, clapsep_uri), clap, config, adapters=adapters, where=clapsep_uri
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
    found = clapsep_tensors(
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
    assign(clap, own(clap_tensors(state, clap.state_dict(), where)))
    return clap.eval()


BUNDLE_MODEL, BUNDLE_PRESENCE = "model.safetensors", "presence.safetensors"
"""The files of a folder that stands for a model: ``python -m model.training finetune``."""


def in_bundle(uri: str) -> str:
    """The file that a URI stands for: of a folder the model in it, with presence if it has it.

    Raises:
        CheckpointError: the folder holds no model.
    """
    last = re.split(r"[/\\]", uri)[-1]
    if "." in last and not os.path.isdir(uri):
        return uri
    filesystem, path = open_filesystem(uri)
    try:
        for name in (BUNDLE_PRESENCE, BUNDLE_MODEL):
            if filesystem.isfile(f"{path.rstrip('/')}/{name}"):
                return f"{uri.rstrip('/')}/{name}"
        is_folder = filesystem.isdir(path)
    except OSError as err:
        raise FetchError(f"{uri}: {err}") from err
    if is_folder:
        raise CheckpointError(f"{uri}: a folder without {BUNDLE_MODEL}")
    return uri


def load_converted(
    uri: str, *, sha256: str | None = None, adapters: Adapters = "merge"
) -> Networks:
    """Loads the single file that :func:`model.checkpoints.convert.save` wrote, or a folder with it.

    The file of a presence head, by :func:`model.checkpoints.convert.save_presence`, stands for the
    model that it names, which lies beside it, with the head in it.

    Raises:
        CheckpointError: the file cannot be had or read, or is not a whole separator.
    """
    uri = in_bundle(uri)
    file = tensorfiles.read_converted(uri, sha256=sha256)
    header = file.header
    if header.kind == "presence":
        return _with_presence(file, uri, adapters)
    if header.kind != "clapsep":
        raise CheckpointError(f"{uri}: holds a {header.kind}, expected a clapsep")
    config = _config(ClapSepConfig, header, uri)
    clap = build(lambda: Clap(config.clap, digest=header.clap_sha256))
    clap.input_level_dbfs = config.signal.input_level_dbfs
    separator = build(lambda: ClapSep(config))
    branch = separator.encoder.state_dict()
    if header.lora == "adapters" and config.lora is not None:
        branch |= adapter_shapes(branch, config.lora)
    stored = {key: value for key, value in branch.items() if key not in header.shared}
    expected = tensorfiles.joined(
        {"clap": clap.state_dict(), "encoder": stored, "decoder": separator.decoder.state_dict()}
    )
    found = match(file.tensors, expected, where=uri)
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


def _with_presence(file: tensorfiles.Converted, uri: str, adapters: Adapters) -> Networks:
    """The model that a presence head belongs to, with the head; the digest is of the head's file.

    That file names the model's digest: one digest stands for both.
    """
    base = _base_of(file.header, uri)
    networks = load_converted(base.uri, sha256=base.sha256, adapters=adapters)
    config, clap = _config(PresenceConfig, file.header, uri), networks.clap
    features = clap.config.audio.num_features
    head = build(lambda: PresenceHead(features, clap.embedding_dim, config))
    expected = tensorfiles.joined({"presence": head.state_dict()})
    assign(head, _part("presence", own(match(file.tensors, expected, where=uri))))
    networks.separator.listener = Listener(clap.audio_branch, clap.audio_projection, head).eval()
    return dataclasses.replace(networks, model_sha256=file.sha256)


def _base_of(header: tensorfiles.Header, uri: str) -> SourceFile:
    """The model's file that a presence head belongs to, in the head's own folder.

    Raises:
        CheckpointError: the head names none, or one that is elsewhere.
    """
    names = [each for each in header.sources if each.role == "model"]
    if len(names) != 1 or re.search(r"[/\\]", names[0].uri):
        raise CheckpointError(f"{uri}: damaged header: it names no model in its own folder")
    folder = uri[: -len(re.split(r"[/\\]", uri)[-1])]
    return dataclasses.replace(names[0], uri=folder + names[0].uri)


def load_clap(uri: str, *, config: ClapConfig = PUBLISHED.clap, sha256: str | None = None) -> Clap:
    """Loads a CLAP: a published checkpoint, or the CLAP inside a converted file.

    Args:
        uri: any URI.
        config: the network of a published checkpoint; a converted file brings its own.
        sha256: expected digest.

    Raises:
        CheckpointError: the file cannot be had or read, or holds no such CLAP.
    """
    uri = in_bundle(uri)
    file = fetch(uri, sha256=None if tensorfiles.is_set(uri) else sha256)
    if not tensorfiles.is_converted(tensorfiles.read(file.path, uri).metadata):
        return _clap_from(file, config)
    content = tensorfiles.read_converted(uri, sha256=sha256)
    header = content.header
    if header.kind == "presence":
        base = _base_of(header, uri)
        return load_clap(base.uri, sha256=base.sha256)
    level_dbfs = None
    if header.kind == "clapsep":
        whole = _config(ClapSepConfig, header, uri)
        config, level_dbfs = whole.clap, whole.signal.input_level_dbfs
    else:
        config = _config(ClapConfig, header, uri)
    clap = build(lambda: Clap(config, digest=header.clap_sha256))
    clap.input_level_dbfs = level_dbfs
    expected = tensorfiles.joined({"clap": clap.state_dict()})
    rest = (r"encoder\.", r"decoder\.")
    found = match(content.tensors, expected, where=uri, ignored=rest)
    assign(clap, _part("clap", found))
    return clap.eval()


def _clap_from(file: LocalFile, config: ClapConfig) -> Clap:
    state = unwrap(tensorfiles.read(file.path, file.uri).content, file.uri)
    return clap_from(state, config, digest=file.sha256, where=file.uri)


def _fill_encoder(separator: ClapSep, state: Mapping[str, Tensor], adapters: Adapters) -> None:
    settings = separator.config.lora
    if settings is None:
        assign(separator.encoder, state)
    elif adapters == "merge":
        assign(separator.encoder, merge_lora(state, settings))
    else:
        if not any(key.endswith(".lora_A") for key in state):
            raise CheckpointError("the adapters of these weights were merged: they cannot be kept")
        lora.add_adapters(separator.encoder, settings)
        assign(separator.encoder, to_peft(own(state)))


def _config(kind: type[_Config], header: tensorfiles.Header, where: str) -> _Config:
    try:
        return from_json(kind, header.config)
    except (TypeError, ValueError) as err:
        raise CheckpointError(f"{where}: damaged configuration: {err}") from err


def _source(role: str, file: LocalFile) -> SourceFile:
    return SourceFile(role=role, uri=file.uri, sha256=file.sha256)


def _part(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
