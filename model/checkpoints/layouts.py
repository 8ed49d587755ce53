"""The published checkpoints' key layouts and how they map to ours; strict, with listed allowances.

Two files make one published model. CLAP's has laion_clap's names (504 of them, prefixed ``module.``
by the training script). CLAPSep's is a flat dict of the tuned tensors alone (LoRA factors and
biases of the encoder's attention under loralib's names, and the decoder), with a second copy of
CLAP's biases; a training checkpoint nests the same, and the whole network, under ``state_dict``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from model.checkpoints.fetch import CheckpointError
from model.config import LoraConfig

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
    problems = _differences(state, expected, tuple(ignored), optional)
    if any(problems.values()):
        text = "; ".join(_listed(keys, name) for name, keys in problems.items() if keys)
        raise LayoutError(f"{where}: not this network's weights: {text}")
    return {key: state[key] for key in expected if key in state}


def _differences(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    ignored: tuple[str, ...],
    optional: Collection[str],
) -> dict[str, list[str]]:
    """What is wrong with a state dict, by kind."""
    droppable = re.compile("|".join(f"(?:{pattern})" for pattern in ignored) or r"(?!)")
    computed = re.compile("|".join(DERIVED))
    common = [key for key in state if key in expected]
    absent = [key for key in expected if key not in state and key not in optional]
    return {
        "missing": [key for key in absent if not computed.search(key)],
        "unexpected": [key for key in state if key not in expected and not droppable.match(key)],
        "misshapen": [
            f"{key}: found {list(state[key].shape)}, expected {list(expected[key].shape)}"
            for key in common
            if state[key].shape != expected[key].shape
        ],
        "of another type": [
            f"{key}: found {state[key].dtype}, expected {expected[key].dtype}"
            for key in common
            if state[key].is_floating_point() != expected[key].is_floating_point()
        ],
        "with NaN or infinite values": [key for key in common if not _is_finite(state[key])],
    }


def adapter_shapes(encoder: Mapping[str, Tensor], lora: LoraConfig) -> dict[str, Tensor]:
    """What LoRA adds to an encoder, under loralib's names, as tensors without content.

    The biases of the adapted layers are tuned along with the factors, and are in it.
    """
    shapes: dict[str, Tensor] = {}
    for name in adapted_layers(encoder, lora):
        weight = encoder[f"{name}.weight"]
        rows, columns = weight.shape
        shapes[f"{name}.lora_A"] = weight.new_empty((lora.rank, columns), device="meta")
        shapes[f"{name}.lora_B"] = weight.new_empty((rows, lora.rank), device="meta")
        shapes[f"{name}.bias"] = weight.new_empty((rows,), device="meta")
    return shapes


def adapted_layers(state: Iterable[str], lora: LoraConfig) -> list[str]:
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


def to_peft(state: Mapping[str, Tensor], adapter: str = "default") -> dict[str, Tensor]:
    """Encoder tensors under loralib's names → the names they have once peft has added adapters."""
    adapted = {key.removesuffix(".lora_A") for key in state if key.endswith(".lora_A")}
    renamed = {}
    for key, value in state.items():
        layer, _, leaf = key.rpartition(".")
        if layer in adapted:
            key = (
                f"{layer}.{leaf}.{adapter}.weight"
                if leaf in ("lora_A", "lora_B")
                else f"{layer}.base_layer.{leaf}"
            )
        renamed[key] = value
    return renamed


def from_peft(state: Mapping[str, Tensor], adapter: str = "default") -> dict[str, Tensor]:
    """Encoder tensors under peft's names → loralib's; the inverse of :func:`to_peft`."""
    factor = re.compile(rf"\.(lora_[AB])\.{re.escape(adapter)}\.weight$")
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
