"""Names the devices and cores that there are, and loads once what threads share."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any


class loaded_once(functools.cached_property[Any]):
    """A cached property that one thread computes while the others wait for it.

    ``functools.cached_property`` itself does so up to Python 3.11; from 3.12 on every thread
    computes the value. Where it is a network, each of them then takes the memory and the time.
    """

    def __init__(self, func: Callable[[Any], Any]) -> None:
        super().__init__(func)
        self._computing = threading.RLock()

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        """The value, computed where it is not known yet."""
        with self._computing:
            return super().__get__(instance, owner)


AUTO = "auto"
EXPECTED = "auto, cpu, cuda or cuda:N"
_NAME = re.compile(r"auto|cpu|cuda(:\d{1,4})?")
_THREADS = threading.RLock()
_MEANT = re.compile(r"(gpu|cuda|nvidia)?[:_ -]?(\d{1,4})?", re.IGNORECASE)


def require_name(device: str, name: str = "--device") -> None:
    """Checks the spelling of a device's name, without torch and without looking for the device.

    Args:
        device: the name.
        name: what messages call the setting.

    Raises:
        ValueError: no device is called so; the message says which one is near.
    """
    if _NAME.fullmatch(device):
        return
    found = _MEANT.fullmatch(device.strip())
    meant = ""
    if device.strip().lower() in (AUTO, "cpu"):
        meant = f"; did you mean {device.strip().lower()}?"
    elif found is not None and device.strip():
        number = f":{found[2]}" if found[2] else ""
        meant = f"; did you mean cuda{number}?"
    raise ValueError(f"{name} {device}: expected {EXPECTED}{meant}")


def resolved(device: str, name: str = "--device") -> str:
    """A torch device of this machine; for ``auto`` the GPU, where there is one.

    Args:
        device: its name.
        name: what messages call the setting.

    Raises:
        ValueError: no device is called so, or this machine does not have it.
    """
    require_name(device, name)
    if device == "cpu":
        return device
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == AUTO:
        return "cuda" if count else "cpu"
    if count == 0:
        built = torch.version.cuda is not None or torch.version.hip is not None
        reason = "torch finds no GPU on this machine" if built else "torch is built without CUDA"
        raise ValueError(f"{name} {device}: {reason}; take {name} auto or {name} cpu")
    if int(device.partition(":")[2] or 0) >= count:
        has = "one GPU, cuda:0" if count == 1 else f"{count} GPUs, cuda:0 to cuda:{count - 1}"
        raise ValueError(f"{name} {device}: this machine has {has}")
    return device


def cores() -> int:
    """Returns how many cores this process may use, or else how many the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def one_thread_an_operation() -> Iterator[None]:
    """Has torch compute each operation on one thread, and restores the setting afterwards.

    How an operation is divided among threads can show in the last bits of its result. The setting
    is the process's: while one thread is inside, others wait to enter.
    """
    import torch

    with _THREADS:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
