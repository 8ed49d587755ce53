"""A whole CLAPSep of random weights, small enough for tests, as a file for any process."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from model.checkpoints import convert
from model.checkpoints.loading import Networks
from model.clap import Clap
from model.config import MINI, TINY, ClapSepConfig
from model.systems.clapsep.network import ClapSep

CONFIG: ClapSepConfig = dataclasses.replace(
    TINY, clap=dataclasses.replace(TINY.clap, text=MINI.clap.text)
)


def write_tiny_model(path: Path, seed: int = 0) -> str:
    """Writes the file and gives its URI."""
    torch.manual_seed(seed)
    clap, separator = Clap(CONFIG.clap).eval(), ClapSep(CONFIG).eval()
    networks = Networks(config=CONFIG, clap=clap, separator=separator)
    convert.save(str(path), networks)
    return str(path)
