"""Attributes that are loaded at first use, once for all threads that share their owner."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any


class loaded_once(functools.cached_property[Any]):
    """A cached property that one thread computes while the others wait for it.

    ``functools.cached_property`` itself does so up to Python 3.11; from 3.12 on every thread
    computes the value. Where it is a network, each of them then takes the memory and the time, and
    transformers raises ImportError when two threads import from it for the first time.
    """

    def __init__(self, func: Callable[[Any], Any]) -> None:
        super().__init__(func)
        self._computing = threading.RLock()

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        """The value, computed where it is not known yet."""
        with self._computing:
            return super().__get__(instance, owner)
