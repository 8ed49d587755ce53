"""What a job's counters and distributions say, by any runner: for ``run.json`` and for the log."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from apache_beam.metrics.cells import DistributionData
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.metrics.metricbase import MetricName
from apache_beam.runners.runner import PipelineResult

logger = logging.getLogger(__name__)

AUDIO = "WriteStems/audio_msec"
_MEANS = (
    ("ReadAudio/read_msec", "{:.0f} ms to read a mixture"),
    ("SeparateClips/network_msec", "{:.0f} ms a forward pass"),
    ("SeparateClips/batch_windows", "{:.1f} windows in it"),
    ("WriteStems/write_msec", "{:.0f} ms to write its stems"),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Values that were observed: how many, their sum, the least and the greatest."""

    count: int
    sum: int
    min: int
    max: int

    @property
    def mean(self) -> float:
        """Their mean."""
        return self.sum / self.count

    def to_json(self) -> dict[str, float]:
        """Everything, and the mean."""
        return {**dataclasses.asdict(self), "mean": round(self.mean, 3)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """Counters and distributions by ``namespace/name``, over all steps of a job."""

    counters: Mapping[str, int]
    distributions: Mapping[str, Distribution]

    @property
    def audio_s(self) -> float:
        """Of the clips whose stems were written."""
        return self.counters.get(AUDIO, 0) / 1_000

    def adding(self, counters: Mapping[str, int]) -> Measurements:
        """With what was counted outside of the job's steps."""
        names = sorted({*self.counters, *counters})
        added = {name: self.counters.get(name, 0) + counters.get(name, 0) for name in names}
        return dataclasses.replace(self, counters=added)

    def progress(self) -> dict[str, float]:
        """Rows done and failed so far, and their audio."""
        failed = sum(v for name, v in self.counters.items() if name.endswith("/dead"))
        done = self.counters.get("WriteStems/out", 0)
        return {"done": done, "failed": failed, "audio_s": self.audio_s}

    def to_json(self) -> dict[str, Any]:
        """As it stands in ``run.json``."""
        found = {name: each.to_json() for name, each in self.distributions.items()}
        return {"counters": dict(self.counters), "distributions": found}

    def log(self) -> None:
        """One line each, for who asked for ``--log_level info``."""
        for name, value in self.counters.items():
            logger.info("%s = %d", name, value)
        for name, each in self.distributions.items():
            logger.info(
                "%s: n %d, mean %.1f, from %d to %d",
                name,
                each.count,
                each.mean,
                each.min,
                each.max,
            )

    def line(self) -> str:
        """Where the time of a clip went; empty where nothing was separated."""
        parts = [
            form.format(self.distributions[name].mean)
            for name, form in _MEANS
            if name in self.distributions
        ]
        return f"on average {', '.join(parts)}" if parts else ""


def measurements_of(result: PipelineResult) -> Measurements:
    """What a job that has ended, or still runs, has counted so far."""
    found = result.metrics().query(MetricsFilter())
    counters: dict[str, int] = {}
    for entry in found["counters"]:
        name, value = _name(entry.key.metric), _value(entry)
        counters[name] = counters.get(name, 0) + int(value or 0)
    distributions: dict[str, Distribution] = {}
    for entry in found["distributions"]:
        name, value = _name(entry.key.metric), _value(entry)
        if value is not None and value.data.count:
            distributions[name] = _with(distributions.get(name), value.data)
    return Measurements(
        counters=dict(sorted(counters.items())), distributions=dict(sorted(distributions.items()))
    )


def _name(metric: MetricName) -> str:
    return f"{metric.namespace}/{metric.name}"


def _value(entry: Any) -> Any:
    return entry.committed if entry.committed is not None else entry.attempted


def _with(known: Distribution | None, data: DistributionData) -> Distribution:
    if known is None:
        return Distribution(count=data.count, sum=data.sum, min=data.min, max=data.max)
    return Distribution(
        count=known.count + data.count,
        sum=known.sum + data.sum,
        min=min(known.min, data.min),
        max=max(known.max, data.max),
    )
