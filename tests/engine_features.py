"""Everything that the jobs need of an engine in one graph; worker processes import this module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.metrics.metric import Metrics
from apache_beam.transforms import window
from apache_beam.transforms.combiners import Count, ToDict

from engine_graphs import NUMBERS, AtEndFn, Graph, keep_all


def every_feature(folder: Path) -> Graph:
    """What the jobs need of an engine, and a little more, in one graph."""

    def build(root: Any) -> None:
        numbers = root | "Numbers" >> beam.Create(NUMBERS)
        tagged = numbers | beam.ParDo(_TagFn()).with_outputs("odd", "big", main="even")
        timed = numbers | "Stamp" >> beam.Map(_stamped)
        keyed = numbers | "Key" >> beam.Map(_by_three)
        nothing = root | "Nothing" >> beam.Create([])
        keep_all(
            folder,
            even=tagged.even,
            odd=tagged.odd,
            big=tagged.big,
            finished=numbers | "AtEnd" >> beam.ParDo(AtEndFn()),
            batched=numbers
            | beam.BatchElements(min_batch_size=3, max_batch_size=3)
            | "Unbatch" >> beam.FlatMap(list),
            fixed=timed
            | "Fixed" >> beam.WindowInto(window.FixedWindows(5))
            | "ByParity" >> beam.Map(_by_parity)
            | "SumFixed" >> beam.CombinePerKey(sum)
            | "SeeFixed" >> beam.ParDo(_SeeWindowFn()),
            sessions=timed
            | "OnlySome" >> beam.Filter(_is_some)
            | "Sessions" >> beam.WindowInto(window.Sessions(3))
            | "ByParity2" >> beam.Map(_by_parity)
            | "GroupSessions" >> beam.GroupByKey()
            | "SortSessions" >> beam.MapTuple(_sorted_group)
            | "SeeSessions" >> beam.ParDo(_SeeWindowFn()),
            sides=root
            | "One" >> beam.Create(["a"])
            | "Sides"
            >> beam.Map(
                _with_sides,
                beam.pvalue.AsSingleton(numbers | "Count" >> Count.Globally()),
                beam.pvalue.AsIter(numbers),
                beam.pvalue.AsDict(numbers | "Squares" >> beam.Map(_with_square)),
                beam.pvalue.AsMultiMap(keyed),
                beam.pvalue.AsList(nothing),
            ),
            shuffled=numbers | "Spread" >> beam.Reshuffle(),
            flattened=(numbers, numbers, nothing, tagged.odd) | beam.Flatten(),
            joined={"one": keyed, "two": tagged.odd | "KeyOdd" >> beam.Map(_by_three)}
            | beam.CoGroupByKey()
            | "SortJoined" >> beam.MapTuple(_sorted_join),
            summed=keyed | beam.CombinePerKey(sum),
            mean_of_none=nothing | beam.CombineGlobally(sum),
            counted=numbers | "Thirds" >> beam.Map(_third) | Count.PerElement(),
            gathered=keyed
            | "SumAll" >> beam.CombinePerKey(sum)
            | ToDict()
            | beam.Map(_sorted_dict),
            hinted=numbers | beam.Map(_third).with_resource_hints(min_ram="1MB"),
        )

    return Graph(build)


class _TagFn(beam.DoFn):
    def __init__(self) -> None:
        self._seen = Metrics.counter("probe", "seen")
        self._size = Metrics.distribution("probe", "size")

    def process(self, number: int) -> Iterator[Any]:
        self._seen.inc()
        self._size.update(number)
        yield beam.pvalue.TaggedOutput("odd", number) if number % 2 else number
        if number > 15:
            yield beam.pvalue.TaggedOutput("big", number)


class _SeeWindowFn(beam.DoFn):
    def process(
        self, element: Any, window: Any = beam.DoFn.WindowParam, at: Any = beam.DoFn.TimestampParam
    ) -> Iterator[Any]:
        yield element, float(window.start), float(window.end), float(at)


def _stamped(number: int) -> Any:
    return window.TimestampedValue(number, number)


def _is_some(number: int) -> bool:
    return number % 7 < 3


def _by_parity(number: int) -> tuple[int, int]:
    return number % 2, number


def _by_three(number: int) -> tuple[str, int]:
    return str(number % 3), number


def _third(number: int) -> int:
    return number // 3


def _with_square(number: int) -> tuple[int, int]:
    return number, number * number


def _with_sides(
    name: str, count: int, numbers: Iterable[int], squares: Any, groups: Any, none: list[Any]
) -> Any:
    return name, count, sorted(numbers), squares[7], sorted(groups["1"]), none


def _sorted_group(key: int, values: Iterable[int]) -> tuple[int, list[int]]:
    return key, sorted(values)


def _sorted_join(key: str, found: dict[str, Iterable[int]]) -> Any:
    return key, sorted(found["one"]), sorted(found["two"])


def _sorted_dict(found: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(found.items())
