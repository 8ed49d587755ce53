"""Small graphs that try one thing each on an engine; worker processes import this module.

What comes out is looked for on disk: an engine that loses elements still says that it is done.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineResult
from apache_beam.transforms import window
from apache_beam.transforms.combiners import Count
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from apache_beam.utils.windowed_value import WindowedValue

from pipelines import runners
from pipelines.config import Execution
from transforms.tables import row_counts

FOREVER_S = 3_600.0
NUMBERS = tuple(range(20))


class Graph(beam.PTransform[Any, Any]):
    """A graph made by a function of the pipeline."""

    def __init__(self, build: Callable[[Any], Any]) -> None:
        super().__init__()
        self._build = build

    def expand(self, root: Any) -> Any:
        return self._build(root)


def run(graph: Graph, execution: Execution, options: PipelineOptions) -> PipelineResult:
    """Runs a graph where ``execution`` says, to its end."""
    runner = runners.runner_of(execution.runner)
    with runner.open(execution, options, lambda _: None) as opened:
        return runners.run_graph(graph, opened, options)


def kept(folder: Path) -> dict[str, list[str]]:
    """What a graph kept, sorted, by name."""
    found: dict[str, list[str]] = {}
    for path in folder.iterdir():
        found.setdefault(path.name.split("@")[0], []).append(path.read_text(encoding="utf-8"))
    return {name: sorted(values) for name, values in sorted(found.items())}


def _keep(element: Any, folder: str, name: str) -> None:
    path = Path(folder) / f"{name}@{uuid.uuid4().hex}"
    path.write_text(repr(element), encoding="utf-8")


def keep_all(folder: Path, **pcollections: Any) -> None:
    """Keeps what comes out of each, under its name."""
    for name, pcollection in pcollections.items():
        _ = pcollection | f"Keep_{name}" >> beam.Map(_keep, str(folder), name)


class AtEndFn(beam.DoFn):
    """Gives its elements at the end of their bundle."""

    def start_bundle(self) -> None:
        self._held: list[int] = []

    def process(self, number: int) -> None:
        self._held.append(number)

    def finish_bundle(self) -> Iterator[Any]:
        whole = window.GlobalWindow()
        for number in self._held:
            yield WindowedValue(number, whole.max_timestamp(), (whole,))


class _AtOnceAndAtEndFn(AtEndFn):
    def process(self, number: int) -> Iterator[Any]:
        super().process(number)
        yield "at once", number

    def finish_bundle(self) -> Iterator[Any]:
        for late in super().finish_bundle():
            yield late.with_value(("at the end", late.value))


def _keep_named(pair: tuple[str, int], folder: str) -> None:
    _keep(pair[1], folder, pair[0])


def parquet(folder: Path) -> Graph:
    """Writes Beam's own Parquet sink."""
    import pyarrow as pa

    schema = pa.schema([("n", pa.int64())])
    return Graph(
        lambda root: (
            root
            | beam.Create([{"n": number} for number in NUMBERS])
            | beam.io.WriteToParquet(str(folder / "part"), schema)
        )
    )


def finishing(folder: Path) -> Graph:
    """Gives each element twice: at once, and at the end of its bundle."""
    return Graph(
        lambda root: (
            root
            | beam.Create(NUMBERS)
            | beam.ParDo(_AtOnceAndAtEndFn())
            | beam.Map(_keep_named, str(folder))
        )
    )


def bundles(folder: Path) -> Graph:
    """Says which process did what before and behind a Reshuffle, and how often."""

    def build(root: Any) -> None:
        before = root | beam.Create(NUMBERS, reshuffle=False) | "Before" >> beam.Map(_with_bundle)
        behind = (
            before
            | "Forget" >> beam.MapTuple(_first)
            | beam.Reshuffle()
            | "Behind" >> beam.Map(_with_bundle, 0.4)
        )
        keep_all(folder, before=before, behind=behind, again=before | Count.Globally())

    return Graph(build)


def _with_bundle(number: int, each_s: float = 0.02) -> tuple[int, int]:
    time.sleep(each_s)  # long enough for another worker to load what it needs and begin
    return number, os.getpid()


def _first(number: int, _: int) -> int:
    return number


def slow(folder: Path, count: int, each_s: float) -> Graph:
    """Elements that take a while each; they are kept under their own names, so once."""
    return Graph(
        lambda root: (
            root
            | beam.Create(list(range(count)))
            | beam.Map(_slowly, each_s, str(folder))
            | "Again" >> beam.Reshuffle()
            | beam.Map(_keep_once, str(folder))
        )
    )


def started(folder: Path) -> bool:
    """Whether a slow element has begun."""
    return (folder / "begun@").exists()


def _slowly(number: int, each_s: float, folder: str) -> int:
    (Path(folder) / "begun@").touch()
    time.sleep(each_s)
    return number


def _keep_once(number: int, folder: str) -> None:
    (Path(folder) / f"slow@{number}").write_text(str(number), encoding="utf-8")


def failing() -> Graph:
    """A DoFn that raises on one element."""
    return Graph(lambda root: root | beam.Create(NUMBERS) | beam.Map(_fail_on_seven))


def _fail_on_seven(number: int) -> int:
    if number == 7:
        raise ArithmeticError("element 7 cannot be done")
    return number


def stateful() -> Graph:
    """A DoFn with state."""
    return Graph(lambda root: root | beam.Create([("a", 1)]) | beam.ParDo(_StateFn()))


_STATE = beam.DoFn.StateParam(ReadModifyWriteStateSpec("last", beam.coders.VarIntCoder()))


class _StateFn(beam.DoFn):
    def process(self, pair: tuple[str, int], state: Any = _STATE) -> None:
        state.write(pair[1])


def hinted(folder: Path) -> Graph:
    """A step that asks for a GPU and says which process it ran in."""
    return Graph(
        lambda root: (
            root
            | beam.Create(NUMBERS)
            | beam.Map(_with_bundle).with_resource_hints(accelerator="type:nvidia-l4;count:1")
            | beam.Map(_keep, str(folder), "hinted")
        )
    )


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


def one_hangs_while_the_other_works(folder: Path, how: str) -> Graph:
    """Two elements on two workers; one gives a result and then hangs, the other gives its own.

    ``how``: ``loops``, and answers when it is asked how far it is; or ``stopped`` by a signal.
    """
    return Graph(
        lambda root: (
            root
            | beam.Create([0, 1])
            | "Spread" >> beam.Reshuffle()
            | beam.Map(_hang_or_work, str(folder), how)
        )
    )


def _hang_or_work(number: int, folder: str, how: str) -> int:
    (Path(folder) / str(number)).touch()
    while not (Path(folder) / str(1 - number)).exists():
        time.sleep(0.05)
    row_counts.done("Hang", 1.0)
    if number == 0 and how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    while number == 0:
        time.sleep(0.05)
    return number


def environments(folder: Path) -> Graph:
    """Says which GPU each of several processes sees, and what it has imported, and how."""
    return Graph(
        lambda root: (
            root
            | beam.Create(NUMBERS)
            | "Spread" >> beam.Reshuffle()
            | beam.Map(_with_bundle, 0.2)
            | beam.MapTuple(_gpu)
            | beam.Map(_keep, str(folder), "seen")
        )
    )


def _gpu(_: int, pid: int) -> tuple[int, str | None, bool, bool]:
    from model import devices

    gpu = os.environ.get(devices.VISIBLE)
    return pid, gpu, "torch" in sys.modules, gc.get_freeze_count() > 0


def grouped(folder: Path, count: int) -> Graph:
    """Elements of several bundles, grouped by key."""
    return Graph(
        lambda root: (
            root
            | beam.Create(list(range(count)))
            | "Cut" >> beam.Reshuffle()
            | beam.Map(_with_seventh)
            | beam.GroupByKey()
            | beam.MapTuple(_total)
            | beam.Map(_keep, str(folder), "totals")
        )
    )


def _with_seventh(number: int) -> tuple[str, int]:
    return f"key {number % 7}", number


def _total(key: str, numbers: Any) -> tuple[str, int]:
    return key, sum(numbers)
