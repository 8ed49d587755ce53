from __future__ import annotations

import functools
import threading

import pytest
from rich.console import Console

from pipelines import console
from pipelines.console import ProgressDisplay, line

COUNTS = {"done": 30.0, "failed": 10.0, "audio_s": 300.0}


def test_a_line_says_how_far_how_fast_and_how_long_still() -> None:
    assert line(COUNTS, 100, 20.0) == (
        "40 of 100 clips after 20 s, 10 failed, 15.0 s of audio a second, about 30 s left"
    )


def test_a_long_recording_moves_the_line_before_it_is_done() -> None:
    counts = {"under_way": 0.25, "audio_s": 600.0}
    assert line(counts, 1, 20.0) == (
        "0 of 1 clip and 0.25 of long ones after 20 s, 0 failed, 30.0 s of audio a second, "
        "about 60 s left"
    )
    assert " of long ones" not in line({"done": 1.0, "under_way": 1e-17}, 4, 20.0)


@pytest.mark.parametrize("total", [None, 40])
def test_without_a_total_or_at_the_end_no_time_is_left(total: int | None) -> None:
    assert "left" not in line(COUNTS, total, 20.0)
    assert "left" not in line({}, 40, 20.0)


def test_lines_come_while_it_runs_and_stop_when_it_has_ended(capsys) -> None:
    before = set(threading.enumerate())
    asked = []
    first = threading.Event()

    def snapshot() -> dict[str, float]:
        asked.append(1)
        first.set()
        return COUNTS

    with ProgressDisplay("log", 100, snapshot, interval_s=0.02):
        assert first.wait(60.0)
    assert set(threading.enumerate()) <= before
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(asked)
    assert said[0].startswith("40 of 100 clips")


def test_a_bar_shows_the_counts(monkeypatch, capsys) -> None:
    terminal = functools.partial(Console, force_terminal=True, width=120)
    monkeypatch.setattr(console, "Console", terminal)
    with ProgressDisplay("bar", 100, lambda: COUNTS):
        pass
    said = capsys.readouterr().err
    assert "40 of 100 clips" in said
    assert "10 failed" in said


def test_nothing_is_shown_unasked(capsys) -> None:
    with ProgressDisplay("none", 100, lambda: COUNTS):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("counts", "said", "left"),
    [
        ({"rows": 4.0}, "0 clips after", None),
        (
            {"rows": 4.0, "under_way": 0.5},
            "0 of 4 clips and 0.50 of long ones after",
            "about 140 s left",
        ),
        ({"rows": 4.0, "done": 2.0}, "2 of 4 clips after", "about 20 s left"),
        ({"rows": 4.0, "done": 4.0, "failed": 1.0}, "5 of 5 clips after", None),
    ],
)
def test_rows_that_are_counted_while_they_are_read_are_the_total(
    counts: dict[str, float], said: str, left: str | None
) -> None:
    """Of recordings without a manifest nobody knows the number beforehand."""
    found = line(counts, None, 20.0)
    assert found.startswith(said)
    assert found.endswith(left or " of audio a second")


def test_a_bar_has_an_end_once_the_rows_are_read(monkeypatch, capsys) -> None:
    terminal = functools.partial(Console, force_terminal=True, width=120)
    monkeypatch.setattr(console, "Console", terminal)
    with ProgressDisplay("bar", None, lambda: {**COUNTS, "rows": 80.0}):
        pass
    assert "40 of 80 clips" in capsys.readouterr().err
