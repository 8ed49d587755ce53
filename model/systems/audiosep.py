"""AudioSep: ResUNet30, asked by a CLAP text embedding.

Source: Liu et al. 2023, "Separate Anything You Describe", arXiv 2308.05037; checked against
Audio-AGI/AudioSep at 944583f. Long clips go through this project's windows: the reference's
``chunk_inference`` returns silence for 5 s or less, and computes every chunk twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from model.checkpoints import loading
from model.checkpoints.fetch import LocalFile
from model.checkpoints.loading import assign, build, fill, own, published_state, under
from model.clap import Clap
from model.config import PUBLISHED, ClapConfig
from model.systems import Capabilities
from model.systems.masking import MaskingSeparator
from model.systems.resunet import ResUNet30, ResUNet30Config

if TYPE_CHECKING:
    from model.catalogue import Entry
    from model.registry import LoadedModel, LoadOptions

CONFIG = ResUNet30Config(condition_size=512)
WINDOW_SAMPLES = 320_000
CAPABILITIES = Capabilities(audio=False, negative=False)
NETWORK_PREFIX = "ss_model."
CLAP_PREFIX = "query_encoder.model."
IGNORED = (r"ss_model\.base\.i?stft\.", r"query_encoder\.")
"""Tensors of the file that the network has no use for: STFT kernels, and CLAP, read by itself."""


def build_separator(config: ResUNet30Config = CONFIG, name: str = "audiosep") -> MaskingSeparator:
    """The separator without weights."""
    return MaskingSeparator(
        build(lambda: ResUNet30(config)),
        name=name,
        transform=config.transform,
        window_samples=WINDOW_SAMPLES,
        embedding_dim=config.condition_size,
        capabilities=CAPABILITIES,
    )


def fill_separator(separator: MaskingSeparator, state: Mapping[str, Tensor], where: str) -> None:
    """Puts the separator's part of a Lightning state dict in its place, strictly.

    Raises:
        LayoutError: keys, shapes, types or values are not those of AudioSep.
    """
    fill(separator.network, state, where, prefix=NETWORK_PREFIX, ignored=IGNORED)


def own_clap(state: Mapping[str, Tensor], file: LocalFile, config: ClapConfig) -> Clap | None:
    """The CLAP that the file carries under ``query_encoder.model``; None where it carries none.

    Raises:
        LayoutError: there is one, but it is not of this configuration.
    """
    inner = under(CLAP_PREFIX, state)
    if not inner:
        return None
    clap = build(lambda: Clap(config, digest=file.sha256))
    assign(clap, own(loading.clap_tensors(inner, clap.state_dict(), file.uri)))
    return clap.eval()


def load(entry: Entry, options: LoadOptions) -> LoadedModel:
    """The registry's loader: the CLAP is the file's own, or else the one it was trained with."""
    from model.checkpoints.loading import load_clap
    from model.registry import LoadedModel

    found = published_state(entry.file("audiosep"))
    separator = build_separator(name=entry.name)
    fill_separator(separator, found.state, found.file.uri)
    clap = own_clap(found.state, found.file, PUBLISHED.clap)
    if clap is None:
        weights = entry.file("clap")
        clap = load_clap(weights.location(), sha256=weights.sha256)
    return LoadedModel(
        name=entry.name,
        separator=separator.to(options.device).prepare(options.precision),
        query_encoder=clap.to(options.device).prepare(),
        model_sha256=found.file.sha256,
        clap_sha256=clap.digest,
        card=entry,
    )
