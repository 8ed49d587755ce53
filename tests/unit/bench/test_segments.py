"""How the bench of segments counts, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bench import segments
from model.signal import envelope_of

EVENTS = segments.times([(1.0, 3.0), (10.0, 12.0), (20.0, 20.5)])


def heard(similarities: list[float], found: segments.Times = EVENTS) -> segments.Heard:
    silence = envelope_of(np.zeros(100, np.float32), 1_000)
    return segments.Heard(
        id="a",
        query="text",
        group="g",
        label="bell",
        reference=EVENTS,
        segments=found,
        stem=silence,
        mixture=silence,
        similarities=np.array(similarities),
    )


def test_an_event_counts_once_within_the_collar_and_half_of_its_length() -> None:
    found = segments.times([(1.25, 3.9), (0.9, 2.9), (10.26, 12.0), (19.8, 20.8), (20.1, 20.76)])
    assert segments.counts(EVENTS, found).tolist() == [2, 1, 3, 5]
    assert segments.counts(EVENTS, EVENTS).tolist() == [3, 3, 3, 3]
    nothing = segments.times([])
    assert segments.counts(EVENTS, nothing).tolist() == [0, 0, 3, 0]
    assert segments.counts(nothing, nothing).tolist() == [0, 0, 0, 0]


def test_f1_is_of_all_events_together_and_zero_where_there_is_none() -> None:
    of_each = np.array([[2, 1, 3, 5], [0, 0, 1, 0]])
    np.testing.assert_allclose(segments.f1(of_each.sum(axis=0)), [4 / 9, 2 / 9])
    np.testing.assert_array_equal(segments.f1(np.zeros(4, np.int64)), [0.0, 0.0])


def test_recordings_are_drawn_with_all_their_mixtures() -> None:
    of_each = np.array([[1, 0, 1, 1], [1, 0, 1, 1], [0, 0, 5, 0]])
    totals = segments.drawn(of_each, ["a", "a", "b"])
    assert {tuple(total) for total in totals.tolist()} == {
        *((4, 0, 4, 4), (2, 0, 7, 2), (0, 0, 10, 0)),
    }


def test_similarity_says_the_middles_of_the_windows() -> None:
    found = segments.by_similarity(heard([0, 0, 0.5, 0.5, 0, 0, 0, 0, 0, 0.9, 0.9]), least=0.3)
    assert found.tolist() == [[1.0, 1.25], [2.75, 3.0]]


def test_the_table_has_a_line_a_system(capsys: pytest.CaptureFixture[str]) -> None:
    segments.report("text", [heard([0.0] * 100), heard([0.0] * 100)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["segments", "energy", "similarity"]
    assert "6  1.000 [1.000, 1.000]   1.000 [1.000, 1.000]" in lines[1]
    assert "0  0.000 [0.000, 0.000]" in lines[3]
    assert "+1.000 [+1.000, +1.000]" in lines[4]
