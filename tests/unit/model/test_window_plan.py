"""Where windows lie, for every length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.signal.windowing import WindowPlan

PLANS = st.builds(
    WindowPlan,
    window_samples=st.integers(1, 60),
    overlap=st.floats(0.0, 0.95),
    tail=st.sampled_from(["shift", "pad"]),
)


@given(plan=PLANS, num_samples=st.integers(1, 400))
def test_windows_cover_every_sample_with_equal_hops(plan: WindowPlan, num_samples: int) -> None:
    starts = np.array(plan.starts(num_samples))
    covered = np.zeros(num_samples, bool)
    for start in starts:
        covered[start : start + plan.window_samples] = True
    assert covered.all()
    assert starts[0] == 0
    assert (np.diff(starts[:-1]) == plan.hop_samples).all()
    assert (np.diff(starts) > 0).all()
    assert (np.diff(starts) <= plan.hop_samples).all()


@given(plan=PLANS, num_samples=st.integers(1, 400))
def test_no_window_is_more_than_needed(plan: WindowPlan, num_samples: int) -> None:
    *before, _ = plan.starts(num_samples)
    assert all(start + plan.window_samples < num_samples for start in before)


@given(plan=PLANS, num_samples=st.integers(1, 400))
def test_last_window_ends_with_the_recording_or_is_padded(
    plan: WindowPlan, num_samples: int
) -> None:
    recording = np.arange(1, num_samples + 1, dtype=np.float32)[None]
    starts = plan.starts(num_samples)
    windows = [plan.cut(recording, start) for start in starts]
    if plan.tail == "shift":
        assert windows[-1][0, -1] == num_samples
        assert {w.shape[1] for w in windows} == {min(plan.window_samples, num_samples)}
    else:
        assert {w.shape[1] for w in windows} == {plan.window_samples}
        sounding = num_samples - starts[-1]
        assert (windows[-1][0, :sounding] > 0).all()
        assert (windows[-1][0, sounding:] == 0).all()


def test_starts_of_the_published_window() -> None:
    plan = WindowPlan(window_samples=320_000)
    assert plan.starts(1) == (0,)
    assert plan.starts(320_000) == (0,)
    assert plan.starts(320_001) == (0, 1)
    assert plan.starts(560_000) == (0, 240_000)
    assert plan.starts(748_801) == (0, 240_000, 428_801)


def test_application_protocol_pads_to_whole_windows_and_keeps_the_padding() -> None:
    plan = WindowPlan.application_protocol(320_000)
    assert plan.starts(748_801) == (0, 320_000, 640_000)
    assert plan.output_samples(748_801) == 960_000
    assert plan.output_samples(640_000) == 640_000
    assert WindowPlan(window_samples=320_000).output_samples(748_801) == 748_801


@given(plan=PLANS)
def test_fade_and_its_mirror_image_add_up_to_one(plan: WindowPlan) -> None:
    fade = plan.fade()
    assert fade.shape == (plan.overlap_samples,)
    np.testing.assert_allclose(fade + fade[::-1], 1.0, rtol=0, atol=1e-15)
    assert ((fade > 0) & (fade < 1)).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window_samples": 0}, "window_samples must be at least 1, got 0"),
        ({"overlap": 1.0}, r"overlap must be in \[0, 1\), got 1.0"),
        ({"overlap": -0.1}, r"overlap must be in \[0, 1\), got -0.1"),
        ({"overlap": float("nan")}, r"overlap must be in \[0, 1\), got nan"),
        ({"tail": "wrap"}, "tail must be 'shift' or 'pad', got 'wrap'"),
        ({"trim": False}, "trim=False needs tail='pad'"),
    ],
)
def test_bad_plans_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindowPlan(**({"window_samples": 10} | fields))


def test_an_empty_recording_has_no_windows() -> None:
    with pytest.raises(ValueError, match="without samples"):
        WindowPlan(window_samples=10).starts(0)
