"""Checkpoint pairs in the published layouts, of a network of any size."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden import synth
from model.checkpoints import loading
from model.checkpoints.loading import Networks, build, clap_from, load_published, separator_from
from model.clap import Clap
from model.config import TINY, ClapSepConfig
from model.systems import Condition
from model.systems.clapsep.network import ClapSep

_CLASSES = 527  # of AudioSet, for laion_clap's classification head


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Tensors under published keys, CLAP's without ``module.``; meta tensors for shapes alone."""

    clap: dict[str, Tensor]
    clapsep: dict[str, Tensor]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """The networks' own state dicts: what constructors compute, and meta tensors for the rest."""

    clap: dict[str, Tensor]
    encoder: dict[str, Tensor]
    decoder: dict[str, Tensor]


@functools.cache
def states(config: ClapSepConfig) -> States:
    """What the networks of a configuration hold."""
    clap, separator = build(lambda: Clap(config.clap)), build(lambda: ClapSep(config))
    return States(
        clap=_hollow(clap.state_dict()),
        encoder=_hollow(separator.encoder.state_dict()),
        decoder=_hollow(separator.decoder.state_dict()),
    )


def shapes(config: ClapSepConfig) -> Pair:
    """The keys and shapes that the published training code would save for this configuration."""
    own = states(config)
    tuned = {} if config.lora is None else loading.adapter_shapes(own.encoder, config.lora)
    clapsep = {
        f"clap_model.model.audio_branch.{key}": value
        for key, value in own.encoder.items()
        if key.endswith(("attn.qkv.bias", "attn.proj.bias"))
    }
    clapsep |= {f"audio_branch.{key}": value for key, value in tuned.items()}
    clapsep |= {f"decoder_model.{key}": value for key, value in own.decoder.items()}
    return Pair(clap=own.clap | _unused(config), clapsep=clapsep)


def _hollow(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key: value if synth.is_skipped(key) else value.to("meta") for key, value in state.items()
    }


@functools.cache
def formula_pair(config: ClapSepConfig, prefix: str = "") -> Pair:
    """A pair with values: drawn where the formula draws them, computed where a constructor does."""
    wanted = shapes(config)

    def fill(namespace: str, keys: Mapping[str, Tensor]) -> dict[str, Tensor]:
        filled = {}
        for key, value in keys.items():
            if not synth.is_skipped(key):
                drawn = synth.tensor(namespace, key, value.shape, prefix)
                filled[key] = torch.from_numpy(drawn)
            else:
                filled[key] = torch.zeros(value.shape) if value.is_meta else value
        return filled

    return Pair(clap=fill("clap", wanted.clap), clapsep=fill("clapsep", wanted.clapsep))


def networks(config: ClapSepConfig, prefix: str = "") -> Networks:
    """Networks with the formula's weights, ready for inference."""
    pair = formula_pair.__wrapped__(config, prefix)  # not kept: the published size takes 1 GB
    clap = clap_from(pair.clap, config.clap)
    separator = separator_from(pair.clapsep, clap, config)
    return Networks(config=config, clap=clap.prepare(), separator=separator.prepare())


def clap_checkpoint(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What laion_clap's training script saves: prefixed keys, an optimizer, numpy scalars."""
    moments = {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3)}}
    return {
        "epoch": 15,
        "name": "music_audioset",
        "optimizer": {"state": moments, "param_groups": [{"lr": np.float64(1e-4), "params": [0]}]},
        "best_loss": np.float32(0.5),
        "state_dict": {f"module.{key}": value for key, value in state.items()},
    }


def write(folder: Path, pair: Pair) -> tuple[Path, Path]:
    """Writes the two files as they were published: CLAP nested and prefixed, CLAPSep flat."""
    paths = folder / "clap.pt", folder / "clapsep.ckpt"
    torch.save(clap_checkpoint(pair.clap), paths[0])
    torch.save(pair.clapsep, paths[1])
    return paths


def load(paths: tuple[Path, Path], **options: Any) -> Networks:
    """The network of a pair of the tiny size that was written."""
    return load_published(str(paths[0]), str(paths[1]), config=TINY, **options)


def answer(networks: Networks) -> Tensor:
    """What a tiny network makes of one mixture and query."""
    rng = np.random.default_rng(5)
    mixture = torch.tensor(rng.standard_normal((1, 12_000)), dtype=torch.float32)
    query = torch.tensor(rng.standard_normal((2, 1, 16)), dtype=torch.float32)
    with torch.inference_mode():
        return networks.separator.separate(mixture, Condition(positive=query[0], negative=query[1]))


def _unused(config: ClapSepConfig) -> dict[str, Tensor]:
    """What CLAP files hold beyond the network: logit scales, a classifier, STFT kernels, heads."""
    audio, dim = config.clap.audio, config.clap.embedding_dim
    rows = audio.grid_size >> (len(audio.depths) - 1)
    kernel = (audio.n_fft // 2 + 1, 1, audio.n_fft)
    sizes: dict[str, tuple[int, ...]] = {
        "logit_scale_a": (),
        "logit_scale_t": (),
        "audio_branch.spectrogram_extractor.stft.conv_real.weight": kernel,
        "audio_branch.spectrogram_extractor.stft.conv_imag.weight": kernel,
        "audio_branch.tscam_conv.weight": (
            _CLASSES, audio.num_features, rows // audio.freq_ratio, 3,
        ),
        "audio_branch.tscam_conv.bias": (_CLASSES,),
        "audio_branch.head.weight": (_CLASSES, _CLASSES),
        "audio_branch.head.bias": (_CLASSES,),
    }  # fmt: skip
    for tower in ("text", "audio"):
        for layer in (0, 3):
            sizes[f"{tower}_transform.sequential.{layer}.weight"] = (dim, dim)
            sizes[f"{tower}_transform.sequential.{layer}.bias"] = (dim,)
    return {key: torch.empty(size, device="meta") for key, size in sizes.items()}
