"""The baselines' published files → networks; strict, by the same rules as CLAPSep's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from model import layouts, tensorfiles
from model.assembly import assign, own
from model.catalogue import WeightsFile
from model.fetch import LocalFile, fetch

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
