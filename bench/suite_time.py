r"""Measures the processor time of each test, and sums up that of the slowest tenth.

    SUITE_TIME=now.jsonl PYTHONPATH=bench python -m pytest -p suite_time -n 2 -q \
        -m 'not slow and not gpu and not weights'
    python bench/suite_time.py now.jsonl [EARLIER.jsonl]

A test's time is that of its process and of the processes that ended meanwhile, so that what a
fixture starts for several tests counts for the one after which it ends. Other programs make it
longer, as they share the caches, but not by their waiting. With an earlier measurement the tests
that were its slowest tenth are looked up in the new one too.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


def _processor_s() -> float:
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Writes a line for each test: its name and its seconds of processor time."""
    before_s = _processor_s()
    yield
    with Path(os.environ["SUITE_TIME"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps([item.nodeid, _processor_s() - before_s]) + "\n")


def read(path: str) -> dict[str, float]:
    """Seconds by test; those that ran twice have the sum."""
    found: dict[str, float] = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        name, seconds, *_ = json.loads(line)
        found[name] = found.get(name, 0.0) + seconds
    return found


def slowest_tenth(times: dict[str, float]) -> list[str]:
    """Names of the tests that take longest, a tenth of all."""
    return sorted(times, key=lambda name: -times[name])[: len(times) // 10]


def _function(name: str) -> str:
    """A test's name without its file, which may have been moved, and its parameters."""
    return name.partition("::")[2].partition("[")[0]


def summary(now: dict[str, float], earlier: dict[str, float] | None) -> str:
    """The sums, as lines."""
    slow = slowest_tenth(now)
    took_s = sum(now[name] for name in slow)
    lines = [
        f"{len(now)} tests, {sum(now.values()):.0f} s of processor time",
        f"slowest tenth: {len(slow)} tests, {took_s:.0f} s, {took_s / len(slow):.2f} s each",
    ]
    if earlier is not None:
        functions = {_function(name) for name in now}
        slow = slowest_tenth(earlier)
        there = [name for name in slow if name in now]
        moved = {_function(name) for name in slow if name not in now} & functions
        ours_s = sum(now[name] for name in there)
        moved_s = sum(now[name] for name in now if _function(name) in moved and name not in there)
        lines += [
            f"earlier: {len(earlier)} tests, {sum(earlier.values()):.0f} s; slowest tenth: "
            f"{len(slow)} tests, {sum(earlier[name] for name in slow):.0f} s",
            f"  of those {len(there)} are there, {sum(earlier[n] for n in there):.0f} s then and "
            f"{ours_s:.0f} s now",
            f"  others have another file or other parameters: {moved_s:.0f} s now",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    paths = sys.argv[1:]
    print(summary(read(paths[0]), read(paths[1]) if paths[1:] else None))
