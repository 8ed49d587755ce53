from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from apache_beam.metrics.execution import MetricKey, MetricResult
from apache_beam.metrics.metricbase import MetricName
from google.api_core.exceptions import ServiceUnavailable

from pipelines.runners import dataflow


class _Result:
    """A job that counts, or whose counters cannot be had."""

    def __init__(self) -> None:
        self.values = {("WriteStems", "out"): 3, ("WriteStems", "audio_msec"): 30_000}
        self.values[("ReadManifest", "in")] = 7
        self.fails = False

    def metrics(self) -> _Result:
        return self

    def query(self, _: object) -> dict[str, list[Any]]:
        if self.fails:
            raise ServiceUnavailable("later")
        counters = [
            MetricResult(MetricKey("step", MetricName(*name)), committed=value, attempted=value)
            for name, value in self.values.items()
        ]
        return {"counters": counters, "distributions": []}


def test_progress_is_asked_now_and_then_and_kept_where_nobody_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(dataflow, "time", SimpleNamespace(monotonic=lambda: now[0]))
    runner, result = dataflow.SubmittingRunner("warning", lambda _: None), _Result()
    assert runner.counts() == {}  # before there is a job
    runner._result = result
    assert runner.counts() == {"done": 3, "failed": 0, "audio_s": 30.0, "rows": 7}
    result.values |= {("WriteStems", "out"): 5, ("read", "dead"): 2, ("separate", "dead"): 1}
    assert runner.counts()["done"] == 3  # not asked again at once
    now[0] = 31.0
    assert runner.counts() == {"done": 5, "failed": 3, "audio_s": 30.0, "rows": 7}
    now[0], result.fails = 62.0, True
    assert runner.counts() == {"done": 5, "failed": 3, "audio_s": 30.0, "rows": 7}
