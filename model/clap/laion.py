"""The one importer of ``laion_clap``: its HTSAT network, without the package's import side effects.

Importing ``laion_clap`` itself downloads three tokenizers and needs torchvision. Its network
definition needs neither, so it is imported with bare parent modules in place of the two packages,
and with a stand-in for the one name it takes from torchvision where that cannot be imported.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.config import EncoderConfig

_LOCK = threading.Lock()
_PACKAGES = ("laion_clap", "laion_clap.clap_module")
_NETWORK = "laion_clap.clap_module.htsat"


class _FrozenBatchNorm2d(nn.Module):
    """Stand-in for ``torchvision.ops.misc.FrozenBatchNorm2d``, which HTSAT never instantiates."""


@functools.cache
def htsat_module() -> Any:
    """Imports ``laion_clap.clap_module.htsat`` alone; offline, without torchvision or wandb.

    Raises:
        ModuleNotFoundError: laion-clap is not installed.
    """
    with _LOCK:
        if _NETWORK in sys.modules:
            return sys.modules[_NETWORK]
        spec = importlib.util.find_spec("laion_clap")
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError("laion-clap is not installed: pip install laion-clap")
        root = Path(spec.origin).parent
        folders = dict(zip(_PACKAGES, (root, root / "clap_module"), strict=True))
        with _placeholders(folders):
            return importlib.import_module(_NETWORK)


@contextmanager
def _placeholders(folders: dict[str, Path]) -> Iterator[None]:
    """Registers bare packages (and torchvision's stand-in) for the length of one import."""
    added: list[str] = []
    for name, folder in folders.items():
        if name not in sys.modules:
            package = types.ModuleType(name)
            package.__path__ = [str(folder)]
            sys.modules[name] = package
            added.append(name)
    if not _importable("torchvision.ops.misc"):
        for name in ("torchvision", "torchvision.ops", "torchvision.ops.misc"):
            sys.modules[name] = types.ModuleType(name)
            added.append(name)
        vars(sys.modules["torchvision.ops.misc"]).update(FrozenBatchNorm2d=_FrozenBatchNorm2d)
    try:
        yield
    finally:
        for name in added:
            sys.modules.pop(name, None)


def _importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:  # a torchvision that does not match torch fails in many ways
        for loaded in [key for key in sys.modules if key.split(".")[0] == "torchvision"]:
            del sys.modules[loaded]
        return False
    return True


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Leaves out warnings that users cannot act on.

    Swin asks for its grids in a way that torch will change; a package that laion_clap's imports
    bring along wants progress bars that a notebook may not have, and shows none.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"torch\.meshgrid", category=UserWarning)
        warnings.filterwarnings("ignore", message="IProgress not found")
        yield


@_without_warnings()
def whole_htsat(config: EncoderConfig, num_classes: int = 1) -> nn.Module:
    """Builds laion_clap's ``HTSAT_Swin_Transformer`` as it is, with random parameters."""
    audio_config = types.SimpleNamespace(
        window_size=config.n_fft,
        hop_size=config.hop_samples,
        sample_rate=config.sample_rate_hz,
        mel_bins=config.mel_bins,
        fmin=config.fmin_hz,
        fmax=config.fmax_hz,
    )
    network: nn.Module = htsat_module().HTSAT_Swin_Transformer(
        spec_size=config.spec_size,
        patch_size=config.patch_size,
        patch_stride=(config.patch_size, config.patch_size),
        embed_dim=config.embed_dim,
        depths=list(config.depths),
        num_heads=list(config.num_heads),
        window_size=config.window_size,
        mlp_ratio=config.mlp_ratio,
        drop_path_rate=config.drop_path_rate,
        num_classes=num_classes,
        config=audio_config,
    )
    return network


def build_htsat(config: EncoderConfig) -> nn.Module:
    """Builds HTSAT as a container of parameters, without its classifier and its STFT convolutions.

    Returns:
        ``HTSAT_Swin_Transformer`` with ``bn0``, ``patch_embed``, ``layers``, ``norm`` and the
        buffer ``logmel_extractor.melW`` (float32[K, mel_bins]); :mod:`model.clap.audio` runs it.
    """
    network = whole_htsat(config)
    for unused in (
        "spectrogram_extractor",
        "spec_augmenter",
        "tscam_conv",
        "head",
        "avgpool",
        "maxpool",
    ):
        delattr(network, unused)
    extractor: Any = network.logmel_extractor
    filters = extractor.melW.detach()
    del extractor.melW  # a frozen parameter: whoever lets a network train would train the filters
    extractor.register_buffer("melW", filters)
    return network


@_without_warnings()
def swin_block(
    dim: int,
    grid: int,
    num_heads: int,
    window_size: int,
    shifted: bool,
    mlp_ratio: float,
    drop_path: float,
) -> nn.Module:
    """One Swin block of laion_clap on a ``grid`` × ``grid`` field of ``dim``-wide patches."""
    block: nn.Module = htsat_module().SwinTransformerBlock(
        dim=dim,
        input_resolution=(grid, grid),
        num_heads=num_heads,
        window_size=window_size,
        shift_size=window_size // 2 if shifted else 0,
        mlp_ratio=mlp_ratio,
        drop_path=drop_path,
    )
    return block


def init_weights(module: nn.Module) -> None:
    """Swin's initialisation: truncated normal (σ = 0.02) weights, zero biases, unit norms."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.zeros_(module.bias)
        nn.init.ones_(module.weight)


def torch_hann(n_fft: int) -> torch.Tensor:
    """The periodic Hann window of torchlibrosa's STFT, float32[n_fft]."""
    return torch.hann_window(n_fft, periodic=True, dtype=torch.float64).float()
