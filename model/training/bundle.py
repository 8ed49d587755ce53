"""Checkpoints of the two stages → the files that a registry entry names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from model.checkpoints import convert
from model.checkpoints.loading import Networks
from model.clap import Clap
from model.config import ClapSepConfig, LoraConfig
from model.systems.clapsep import lora
from model.systems.clapsep.network import ClapSep

MAX_FILE_BYTES = 19_000_000


def part(checkpoint: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of one network in a stage's checkpoint, without their prefix."""
    module = torch.load(checkpoint, map_location="cpu", weights_only=True)["module"]
    return {
        name.removeprefix(prefix): value
        for name, value in module.items()
        if name.startswith(prefix)
    }


def load_networks(config: ClapSepConfig, clap_path: Path, separation_path: Path) -> Networks:
    """The CLAP of one checkpoint and the separator of the other, adapters merged."""
    clap = Clap(config.clap)
    clap.input_level_dbfs = config.signal.input_level_dbfs
    clap.load_state_dict(part(clap_path, "clap."))
    separator = ClapSep(config)
    state = part(separation_path, "separator.")
    if any(".lora_A." in name for name in state):
        lora.add_adapters(separator.encoder, config.lora or LoraConfig())
    separator.load_state_dict(state)
    lora.merge_adapters(separator.encoder)
    plain = dataclasses.replace(config, lora=None)
    separator.config = plain
    return Networks(config=plain, clap=clap.prepare(), separator=separator.prepare())


def bundle(config: ClapSepConfig, clap_path: Path, separation_path: Path, output: Path) -> str:
    """Writes half-precision safetensors of at most 19 MB each; returns the set's SHA-256."""
    networks = load_networks(config, clap_path, separation_path)
    return convert.save(
        str(output), networks, dtype="fp16", max_file_bytes=MAX_FILE_BYTES, notes="clapsep-mini"
    )
