"""What many clips take and cost, from a measured rate; every assumption is a flag.

    python -m bench.scale_model --clips_per_s 1.35 --price_per_hour 0.10
    python -m bench.scale_model --flops_per_clip 77.5e9 --peak_tflops 100 --utilisation 0.3 \
        --host_s_per_clip 0.135 --host_cores 16 --price_per_hour 1.00
    python -m bench.scale_model --check one_worker/run.json two_workers/run.json

The second form computes a rate that nobody has measured, and says so. Prices are made up: look up
yours. ``--check`` predicts the second run from the first and compares.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

HOUR_S = 3_600.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One machine, or one process of a local run.

    Attributes:
        clips_per_s: of the whole job, once it runs.
        clip_s: length of a clip.
        startup_s: from being asked for to the first clip; paid for by every worker.
        price_per_hour: of the machine, in dollars.
    """

    clips_per_s: float
    clip_s: float = 10.0
    startup_s: float = 300.0
    price_per_hour: float = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.clips_per_s <= 0 or self.clip_s <= 0 or self.startup_s < 0:
            raise ValueError(f"{self}: rate and length must be above 0, startup_s at least 0")

    @property
    def audio_hours_per_hour(self) -> float:
        """Hours of audio in an hour of one worker that runs."""
        return self.clips_per_s * self.clip_s

    @property
    def price_per_1000_audio_hours(self) -> float:
        """In dollars, for a worker that runs; start-up and idling come on top."""
        return self.price_per_hour * 1_000 / self.audio_hours_per_hour

    def wall_s(self, clips: int, workers: int) -> float:
        """Seconds for so many clips on so many workers that do not hinder one another."""
        return self.startup_s + clips / (workers * self.clips_per_s)

    def price(self, clips: int, workers: int) -> float:
        """Dollars for that."""
        return workers * self.wall_s(clips, workers) / HOUR_S * self.price_per_hour


def computed_rate(
    flops_per_clip: float,
    peak_tflops: float,
    utilisation: float,
    host_s_per_clip: float,
    host_cores: int,
) -> float:
    """Clips a second that arithmetic allows: of the accelerator or of its host, the lesser."""
    accelerator = utilisation * peak_tflops * 1e12 / flops_per_clip
    host = host_cores / host_s_per_clip
    limit = "the host's cores" if host < accelerator else "the accelerator"
    print(f"computed, not measured: accelerator {accelerator:.1f} clips/s, host {host:.1f} clips/s")
    print(f"limited by {limit}")
    return min(accelerator, host)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """What a run's record says."""

    clips: int
    audio_s: float
    wall_s: float
    workers: int


def read_run(path: Path) -> MeasuredRun:
    """A run from its ``run.json``.

    Raises:
        ValueError: the run did not finish, or wrote no stem.
    """
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("status") != "finished" or not record["row_counts"]["stems"]:
        raise ValueError(f"{path}: not the record of a finished run with stems")
    return MeasuredRun(
        clips=record["row_counts"]["stems"],
        audio_s=record["audio_s"],
        wall_s=record["wall_s"],
        workers=record["config"]["execution"]["num_workers"],
    )


def worker_of(measured: MeasuredRun, startup_s: float) -> Worker:
    """A worker as fast as each of a run's was.

    Raises:
        ValueError: the run took less than its start-up.
    """
    running_s = measured.wall_s - startup_s
    if running_s <= 0:
        raise ValueError(f"the run took {measured.wall_s} s; --startup_s {startup_s} is too long")
    return Worker(
        clips_per_s=measured.clips / running_s / measured.workers,
        clip_s=measured.audio_s / measured.clips,
        startup_s=startup_s,
    )


def check(one: MeasuredRun, other: MeasuredRun, startup_s: float) -> float:
    """Predicts the second run from the first; gives measured over predicted seconds."""
    worker = worker_of(one, startup_s)
    predicted_s = worker.wall_s(other.clips, other.workers)
    ratio = other.wall_s / predicted_s
    print(f"{one.workers} worker(s): {worker.clips_per_s:.3f} clips/s each")
    print(
        f"{other.workers} worker(s): predicted {predicted_s:.1f} s, measured {other.wall_s:.1f} s,"
        f" ratio {ratio:.2f}"
    )
    return ratio


def report(worker: Worker, clips: int, counts: Sequence[int]) -> None:
    """Prints the rates, and the table by number of workers."""
    print(f"audio hours per worker hour    {worker.audio_hours_per_hour:12.1f}")
    print(f"dollars per 1,000 audio hours  {worker.price_per_1000_audio_hours:12.2f}")
    print(f"{clips:,} clips of {worker.clip_s:g} s ({clips * worker.clip_s / HOUR_S:,.0f} hours):")
    for count in counts:
        hours = worker.wall_s(clips, count) / HOUR_S
        print(f"  {count:4} workers {hours:10.2f} h  {worker.price(clips, count):12.2f} dollars")


def run(argv: Sequence[str] | None = None) -> None:
    """Prints what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips_per_s", type=float, help="measured, of one worker's whole job")
    parser.add_argument("--flops_per_clip", type=float, default=77.5e9)
    parser.add_argument("--peak_tflops", type=float, help="instead of a measured rate")
    parser.add_argument("--utilisation", type=float, default=0.3)
    parser.add_argument("--host_s_per_clip", type=float, default=0.135)
    parser.add_argument("--host_cores", type=int, default=16)
    parser.add_argument("--clip_s", type=float, default=10.0)
    parser.add_argument("--startup_s", type=float, default=300.0)
    parser.add_argument("--price_per_hour", type=float, default=0.0, help="of one worker; yours")
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--check", type=Path, nargs=2, metavar="RUN_JSON")
    given = parser.parse_args(argv)
    if given.check:
        check(*(read_run(path) for path in given.check), given.startup_s)
        return
    rate = given.clips_per_s
    if rate is None:
        if given.peak_tflops is None:
            parser.error("expected --clips_per_s, --peak_tflops or --check")
        rate = computed_rate(
            given.flops_per_clip,
            given.peak_tflops,
            given.utilisation,
            given.host_s_per_clip,
            given.host_cores,
        )
    worker = Worker(
        clips_per_s=rate,
        clip_s=given.clip_s,
        startup_s=given.startup_s,
        price_per_hour=given.price_per_hour,
    )
    report(worker, given.clips, given.workers)


if __name__ == "__main__":
    run()
