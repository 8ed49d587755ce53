from __future__ import annotations

import apache_beam as beam
from apache_beam.metrics.metric import Metrics
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

from pipelines.runners import Distribution, Measurements, measurements_of


def _count(value: int) -> int:
    Metrics.counter("Step", "in").inc()
    Metrics.distribution("Step", "took_msec").update(value)
    return value


def test_the_same_name_in_several_steps_is_one_entry() -> None:
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        numbers = pipeline | beam.Create([4, 6])
        _ = numbers | "One" >> beam.Map(_count)
        _ = numbers | "Two" >> beam.Map(lambda value: _count(10 * value))
    found = measurements_of(pipeline.result)
    assert found.counters == {"Step/in": 4}
    assert found.distributions == {"Step/took_msec": Distribution(count=4, sum=110, min=4, max=60)}
    assert found.to_json()["distributions"]["Step/took_msec"] == {
        "count": 4, "sum": 110, "min": 4, "max": 60, "mean": 27.5,
    }  # fmt: skip


def test_a_line_says_where_the_time_went() -> None:
    means = {
        "ReadAudio/read_msec": 12,
        "SeparateClips/network_msec": 310,
        "SeparateClips/batch_windows": 8,
        "WriteStems/write_msec": 9,
    }
    distributions = {
        name: Distribution(count=2, sum=2 * mean, min=mean, max=mean)
        for name, mean in means.items()
    }
    assert Measurements(counters={}, distributions=distributions).line() == (
        "on average 12 ms to read a mixture, 310 ms a forward pass, 8.0 windows in it, "
        "9 ms to write its stems"
    )
    assert Measurements(counters={}, distributions={}).line() == ""
