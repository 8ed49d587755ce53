"""A machine that breaks in the middle of a job: from then on the network fails on everything."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "CLAPSEP_TEST_BREAKS_IN"
"""Names a folder; the first process that has done some passes breaks, and leaves its id there."""
PASSES = 3
NETWORK = "model.systems.clapsep.network"
MESSAGE = "CUDA error: unspecified launch failure"


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


class _Finder(MetaPathFinder):
    """Changes the network's module when it is first imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != NETWORK:
            return None
        sys.meta_path.remove(self)
        spec: Any = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            break_later(module, Path(os.environ[FOLDER_VARIABLE]))

        spec.loader.exec_module = exec_module
        return spec


def install() -> None:
    """Prepares a process of a worker to break, where the variable says so."""
    if FOLDER_VARIABLE in os.environ:
        sys.meta_path.insert(0, _Finder())
