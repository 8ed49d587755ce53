from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.signal import Cutter
from transforms.long_recordings import Branches


@given(
    cuts=st.lists(st.integers(0, 7), min_size=1, max_size=8),
    takes=st.lists(st.integers(1, 9), max_size=8),
)
def test_a_cutter_gives_what_the_blocks_hold_then_zeros(cuts: list[int], takes: list[int]) -> None:
    total = sum(cuts)
    samples = np.arange(2 * total, dtype=np.float32).reshape(2, total) + 1
    cutter = Cutter(np.split(samples, np.cumsum(cuts)[:-1], axis=1))
    found = [cutter.take(count) for count in takes]
    expected = np.pad(samples, ((0, 0), (0, max(0, sum(takes) - total))))
    if takes:
        np.testing.assert_array_equal(np.concatenate(found, axis=1), expected[:, : sum(takes)])


def test_a_cutter_needs_a_block() -> None:
    with pytest.raises(ValueError, match="no blocks"):
        Cutter([]).take(1)


def test_branches_read_their_source_once_and_in_step() -> None:
    read = []

    def source() -> Iterator[tuple[int, int]]:
        for value in range(4):
            read.append(value)
            yield value, 10 * value

    branches = Branches(source(), 2)
    first, second = branches.branch(0), branches.branch(1)
    assert next(first) == 0
    assert read == [0]
    assert next(second) == 0
    assert read == [0]
    assert list(first) == [1, 2, 3]
    assert list(second) == [10, 20, 30]
    assert read == [0, 1, 2, 3]


def test_nothing_is_kept_for_a_closed_branch() -> None:
    branches = Branches([(1, "a"), (2, "b")], 2)
    branches.close(1)
    assert list(branches.branch(0)) == [1, 2]
    assert list(branches.branch(1)) == []


def test_an_error_of_the_source_reaches_every_branch() -> None:
    def source() -> Iterator[tuple[int, int]]:
        yield 1, 2
        raise RuntimeError("broken")

    branches = Branches(source(), 2)
    first, second = branches.branch(0), branches.branch(1)
    assert (next(first), next(second)) == (1, 2)
    for branch in (first, second):
        with pytest.raises(RuntimeError, match="broken"):
            next(branch)
