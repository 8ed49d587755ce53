"""Lets benches run with torch, numpy and soundfile alone: import it before the product.

A machine that is lent for minutes seldom has more. What the product imports besides, and these
benches do not use, is an empty module there.
"""

from __future__ import annotations

import importlib
import sys
import types

_IMPORTED_IN_PASSING = ("safetensors", "safetensors.torch", "soxr", "tenacity")


def fill_in() -> None:
    """Puts empty modules in the place of those that are not installed."""
    for name in _IMPORTED_IN_PASSING:
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = types.ModuleType(name)


fill_in()
