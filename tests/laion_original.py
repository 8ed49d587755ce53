"""laion_clap's own HTSAT, to compare ours with, without what its package does on import.

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

from torch import nn

from model.clap.audio import SwinBlock
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


@_without_warnings()
def original_block(ours: SwinBlock) -> nn.Module:
    """laion_clap's block with the parameters of one of ours; it gives ``(output, attention)``."""
    block: nn.Module = htsat_module().SwinTransformerBlock(
        dim=ours.norm1.weight.shape[0],
        input_resolution=(ours.grid, ours.grid),
        num_heads=ours.attn.num_heads,
        window_size=ours.window,
        shift_size=ours.shift,
        mlp_ratio=ours.mlp.fc1.out_features / ours.mlp.fc1.in_features,
        drop_path=ours.drop_path.rate,
    )
    block.load_state_dict(ours.state_dict(), strict=True)
    return block.train(ours.training)
