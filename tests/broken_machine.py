"""Breaks machines in the middle of a job: the network fails on everything, or a process dies."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "CLAPSEP_TEST_BREAKS_IN"
"""Names a folder; the first process that has done some passes breaks, and leaves its id there."""
PASSES = 2
NETWORK = "model.systems.clapsep.network"
MESSAGE = "CUDA error: unspecified launch failure"
DEATH_VARIABLE = "CLAPSEP_TEST_DIES_IN"
"""Names a folder, a module and a function of it; the first process that calls it dies."""


def break_later(module: Any, folder: Path) -> None:
    """Has the network of this process break, unless that of another did."""
    encode, passes = module.ClapSep.encode, []

    def breaking(self: Any, mixture: Any) -> Any:
        passes.append(len(mixture))
        if len(passes) > PASSES and _is_first(folder):
            raise RuntimeError(MESSAGE)
        return encode(self, mixture)

    module.ClapSep.encode = breaking


def _is_first(folder: Path) -> bool:
    try:
        with (folder / "broken").open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return (folder / "broken").read_text() == str(os.getpid())
    return True


def die_once(module: Any, name: str, folder: Path) -> None:
    """Has the first process that calls a function die, without a word and at once."""
    called = getattr(module, name)

    def dying(*given: Any, **named: Any) -> Any:
        with contextlib.suppress(FileExistsError), (folder / "died").open("x") as file:
            file.write(str(os.getpid()))
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return called(*given, **named)

    setattr(module, name, dying)


class _Finder(MetaPathFinder):
    """Changes a module when it is first imported."""

    def __init__(self, name: str, change: Callable[[Any], None]) -> None:
        self._name, self._change = name, change

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec: Any = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            self._change(module)

        spec.loader.exec_module = exec_module
        return spec


def install() -> None:
    """Prepares a process of a worker to break or to die, where a variable says so."""
    if FOLDER_VARIABLE in os.environ:
        folder = Path(os.environ[FOLDER_VARIABLE])
        sys.meta_path.insert(0, _Finder(NETWORK, lambda module: break_later(module, folder)))
    if DEATH_VARIABLE in os.environ:
        place, name, function = os.environ[DEATH_VARIABLE].split(":")
        dying = functools.partial(die_once, name=function, folder=Path(place))
        sys.meta_path.insert(0, _Finder(name, dying))
