"""LoRA adapters on the encoder's window attention, through peft (Hu et al. 2021)."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from model.config import LoraConfig

ADAPTER = "default"


def target_pattern(config: LoraConfig) -> str:
    """Regular expression of the adapted layers.

    Window attention only, never the patch embedding's ``proj``.
    """
    names = "|".join(re.escape(name) for name in config.targets)
    return rf"layers\.\d+\.blocks\.\d+\.attn\.({names})"


def add_adapters(encoder: nn.Module, config: LoraConfig) -> None:
    """Injects adapters in place; they and their layers' biases become all that can be trained.

    The scale is ``alpha / rank``: loralib's default alpha of 1, which the published weights assume,
    is 1/16 at rank 16 (peft's own default is 8).

    Raises:
        ValueError: no layer of ``encoder`` matches ``config.targets``.
    """
    import peft

    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # any number serves
        target_modules=target_pattern(config),
        lora_dropout=0.0,
    )
    peft.inject_adapter_in_model(settings, encoder, adapter_name=ADAPTER)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad = "lora_" in name or name.endswith("base_layer.bias")


def adapted_layers(encoder: nn.Module) -> dict[str, Any]:
    """The layers that carry adapters, by name."""
    from peft.tuners.lora import LoraLayer

    return {
        name: module for name, module in encoder.named_modules() if isinstance(module, LoraLayer)
    }


def merge_adapters(encoder: nn.Module) -> None:
    """Folds every adapter into its layer, ``W + (alpha / rank)·B·A``, and removes it."""
    for name, layer in adapted_layers(encoder).items():
        layer.merge()
        parent, _, attribute = name.rpartition(".")
        setattr(encoder.get_submodule(parent), attribute, layer.get_base_layer())
