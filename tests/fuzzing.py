"""What every fuzz test has in common: how many examples, and what none of them may do."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

CORPUS = Path(__file__).parent / "fuzz_corpus"
MAX_BYTES = 2**30
HANG_S = 60
"""Of this process's own time, which other work on the machine does not lengthen; ten are promised,
on a quick machine. Waiting is bounded by pytest's own limit."""
EXAMPLES_VARIABLE = "CLAPSEP_FUZZ_EXAMPLES"


def few(default: int) -> Callable[[Any], Any]:
    """Settings: so many examples, always the same; or $CLAPSEP_FUZZ_EXAMPLES new ones."""
    asked = os.environ.get(EXAMPLES_VARIABLE)
    return hypothesis.settings(
        max_examples=int(asked) if asked else default,
        derandomize=not asked,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def found(folder: str) -> pytest.MarkDecorator:
    """Calls a test with the ``path`` of each file that was once found to do harm."""
    paths = sorted((CORPUS / folder).iterdir())
    return pytest.mark.parametrize("path", paths, ids=[path.name for path in paths])


@contextmanager
def refused(error: type[Exception], naming: str = "") -> Iterator[None]:
    """Lets an error of that type pass if it says something, and names what it is about."""
    try:
        yield
    except error as err:
        if not str(err) or naming not in str(err):
            raise AssertionError(f"expected an error that names {naming!r}") from err


@contextmanager
def bounded(folder: Path | None = None) -> Iterator[None]:
    """Fails where the body hangs, takes over 1 GB, or changes anything in ``folder``."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"no answer in {HANG_S} s")

    before = _tree(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
    assert grown < MAX_BYTES, f"took {grown} bytes"
    assert _tree(folder) == before


def _tree(folder: Path | None) -> dict[str, int]:
    if folder is None:
        return {}
    return {str(path): path.lstat().st_mtime_ns for path in sorted(folder.rglob("*"))}


_EXTREMES = [0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63]


@st.composite
def mutations(draw: st.DrawFn, head: int = 128) -> Callable[[bytes], bytes]:
    """A way to damage a file: overwritten numbers and bytes, mostly in its head, and other ends."""
    edits = draw(
        st.lists(
            st.tuples(
                st.integers(0, head) | st.integers(0, 5_000),
                st.binary(min_size=1, max_size=8)
                | st.builds(
                    lambda value, size, order: value.to_bytes(8, order)[
                        slice(size) if order == "little" else slice(8 - size, 8)
                    ],
                    st.sampled_from(_EXTREMES),
                    st.sampled_from([1, 2, 4, 8]),
                    st.sampled_from(["little", "big"]),
                ),
            ),
            max_size=4,
        )
    )
    cut = draw(st.none() | st.integers(0, 200) | st.integers(0, 5_000))
    tail = draw(st.binary(max_size=16))

    def mutate(data: bytes) -> bytes:
        damaged = bytearray(data)
        for position, value in edits:
            start = position % max(1, len(damaged))
            damaged[start : start + len(value)] = value
        return bytes(damaged[:cut]) + tail

    return mutate
