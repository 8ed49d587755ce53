from __future__ import annotations

import threading

import pytest
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow

from transforms.threaded import LookAhead, Overlap, in_window


def _through(ahead: LookAhead[int, int], values: range) -> list[int]:
    found = [result for value in values for result in ahead.push(value)]
    return [*found, *ahead.drain()]


@pytest.mark.parametrize(("num_threads", "max_pending"), [(1, 1), (3, 2), (2, 100)])
def test_results_come_in_the_order_of_submission(num_threads: int, max_pending: int) -> None:
    ahead = LookAhead(
        lambda x: x * x, Overlap(num_threads=num_threads, max_pending=max_pending), "Test", "t"
    )
    assert _through(ahead, range(50)) == [x * x for x in range(50)]
    ahead.close()


def test_no_more_than_the_bound_is_under_way() -> None:
    release, under_way, most = threading.Event(), set[int](), []
    lock = threading.Lock()

    def work(value: int) -> int:
        with lock:
            under_way.add(value)
            most.append(len(under_way))
        release.wait(5)
        with lock:
            under_way.discard(value)
        return value

    ahead = LookAhead(work, Overlap(num_threads=8, max_pending=3), "Test", "t")
    assert [r for value in range(3) for r in ahead.push(value)] == []  # none is done, none is due
    release.set()
    assert [*ahead.push(3), *ahead.drain()] == [0, 1, 2, 3]
    assert max(most) <= 4
    ahead.close()


def test_work_goes_on_while_nobody_asks() -> None:
    done = threading.Event()
    ahead = LookAhead(lambda _: done.set(), Overlap(num_threads=1, max_pending=4), "Test", "t")
    list(ahead.push(0))
    assert done.wait(5)
    ahead.close()


def test_an_error_surfaces_and_a_new_bundle_begins_clean() -> None:
    ahead = LookAhead(lambda x: 1 // x, Overlap(num_threads=1, max_pending=4), "Test", "t")
    with pytest.raises(ZeroDivisionError):
        _through(ahead, range(3))
    ahead.reset()
    assert _through(ahead, range(1, 3)) == [1, 0]
    ahead.close()


def test_counts_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Overlap(num_threads=0)


def test_tagged_outputs_of_a_bundles_end_keep_their_tag() -> None:
    output = in_window(TaggedOutput("failed", 3), GlobalWindow())
    assert (output.tag, output.value.value) == ("failed", 3)
