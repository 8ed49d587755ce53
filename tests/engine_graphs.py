"""Small graphs that try one thing each on an engine; worker processes import this module."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam

FOREVER_S = 3_600.0


class Graph(beam.PTransform[Any, Any]):
    """A graph made by a function of the pipeline."""

    def __init__(self, build: Callable[[Any], Any]) -> None:
        super().__init__()
        self._build = build

    def expand(self, root: Any) -> Any:
        return self._build(root)


def one_fails_while_the_other_works(folder: Path) -> Graph:
    """Two elements on two workers; when both are there, one raises and the other goes on."""
    return Graph(
        lambda root: (
            root
            | beam.Create([0, 1])
            | "Spread" >> beam.Reshuffle()
            | beam.Map(_fail_or_work, str(folder))
        )
    )


def _fail_or_work(number: int, folder: str) -> int:
    (Path(folder) / str(number)).touch()
    if number == 1:
        time.sleep(FOREVER_S)
    while not (Path(folder) / "1").exists():
        time.sleep(0.05)
    raise ArithmeticError("element 0 cannot be done")
