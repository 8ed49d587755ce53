"""``torch.compile`` as an option: used where it works, said so where it does not."""

from __future__ import annotations

import logging

import torch

from model.clapsep import ClapSep

logger = logging.getLogger(__name__)


def compile_separator(separator: ClapSep, device: str) -> bool:
    """Compiles a separator's encoder and decoder in place, where there is a compiler.

    The network compiles at its first call, and again for a new batch size or length.

    Returns:
        Whether it will; otherwise a warning is logged and the separator stays as it was.
    """
    reason = _why_not(device)
    if reason is not None:
        logger.warning("torch.compile is not used on %s: %s", device, reason)
        return False
    # A method that the module's own compile(), which is about forward(), does not reach.
    separator.encoder.stage_features = torch.compile(  # type: ignore[method-assign]
        separator.encoder.stage_features
    )
    separator.decoder.compile()
    return True


def _why_not(device: str) -> str | None:
    """Compiles one addition; the reason where that fails."""
    try:
        torch.compile(_add_one)(torch.zeros(2, device=device))
    except Exception as err:  # whatever a missing or broken tool chain raises
        return f"{type(err).__name__}: {str(err).strip().splitlines()[0] if str(err) else ''}"
    return None


def _add_one(value: torch.Tensor) -> torch.Tensor:
    return value + 1
