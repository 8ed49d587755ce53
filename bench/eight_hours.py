"""A night's recording with 40 events: memory, the times that are found, and progress.

    python -m bench.eight_hours --corpus CORPUS                   # 1 h against 8 h; ten minutes
    python -m bench.eight_hours --corpus CORPUS --hours 0.25 1

Of each length a recording is made: coloured noise whose level drifts, 32 kHz mono in 16-bit FLAC,
written block by block, with 40 clips of one class of the corpus's test split mixed in at known
times, and as many of other classes at other times. ``pipelines.separate --recordings`` asks it for
the class, in a process of its own, with the bundled model.

Printed are the peak memory of the process; how many of the 40 events a segment meets; how many
onsets have one that begins within 0.25 s (F1 by ``mir_eval.util.match_events``: a bark after a
pause is a segment of its own, and counts as one too many); how far off segments begin, by hour; and
what the lines of progress said. The command fails where the longer recording takes more than a
tenth more memory, where fewer of its events are met, by more than a tenth of them, where times
drift, or where progress stands still.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import mir_eval
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import soundfile

from model import signal

Samples = npt.NDArray[np.float32]
RATE_HZ = 32_000
BLOCK_S = 10
NOISE_DBFS, DRIFT_DB, DRIFT_S = -50.0, 6.0, 3_600.0
EVENT_GAINS_DB = (-12.0, 0.0)
COLLAR_S = 0.25
ROUNDING_S = 1e-9
APART_S = 12.0
"""Events begin at least so far from each other: the longest clip has 10 s."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Event:
    """A clip at a place of the recording."""

    start: int
    samples: Samples
    is_asked: bool


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a run showed."""

    hours: float
    peak_mib: float
    wall_s: float
    busy_s: float
    events: tuple[tuple[float, float], ...]
    segments: tuple[tuple[float, float], ...]
    progress: tuple[float, ...]


def clips_of(corpus: Path, label: str) -> tuple[list[Samples], list[Samples], str]:
    """The clips of a class in the test split, those of others, and how the class is asked for."""
    asked: list[Samples] = []
    others: list[Samples] = []
    caption = label
    with (corpus / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        for line in csv.DictReader(stream):
            if line["split"] != "test" or line["label"] in ("", "open"):
                continue
            if line["label"] == label:
                caption = line["caption"]
                asked.append(read(corpus / line["path"]))
            elif len(others) < 200:
                others.append(read(corpus / line["path"]))
    if not asked:
        raise SystemExit(f"--label {label}: no such clips in the test split of {corpus}")
    return asked, others, caption


def read(path: Path) -> Samples:
    """A clip, mono at the recording's rate, without the quiet before it sounds."""
    samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    if rate_hz != RATE_HZ:
        mono = signal.resample(mono, rate_hz, RATE_HZ)
    loud = np.flatnonzero(np.abs(mono) > 0.05 * np.abs(mono).max())
    return np.ascontiguousarray(mono[loud[0] :])


def events_of(
    asked: Sequence[Samples], others: Sequence[Samples], hours: float, count: int, seed: int
) -> list[Event]:
    """Places for ``count`` clips of what is asked for, and as many of others, far from each other.

    The first and the last event are near the ends, where mistakes of a border would show.
    """
    rng = np.random.default_rng(seed)
    free_s = hours * 3_600 - 2 * count * APART_S - 2.0
    if free_s < 0:
        raise SystemExit(f"--hours {hours:g}: too short for {2 * count} events")
    gaps_s = np.sort(rng.uniform(0.0, free_s, 2 * count))
    gaps_s[0], gaps_s[-1] = 0.0, free_s
    starts_s = 1.0 + gaps_s + APART_S * np.arange(2 * count)
    is_asked = np.zeros(2 * count, bool)
    is_asked[[0, -1, *(1 + rng.permutation(2 * count - 2)[: count - 2])]] = True
    events = []
    for start_s, wanted in zip(starts_s, is_asked, strict=True):
        pool = asked if wanted else others
        gain = 10 ** (rng.uniform(*EVENT_GAINS_DB) / 20)
        samples = (gain * pool[rng.integers(len(pool))]).astype(np.float32)
        # To a frame of segments, so that what is found can be compared to 0.1 s.
        start = round(start_s * 10) * (RATE_HZ // 10)
        events.append(Event(start=start, samples=samples, is_asked=bool(wanted)))
    return events


def write(path: Path, events: Sequence[Event], hours: float, seed: int) -> None:
    """Writes the recording block by block."""
    total = round(hours * 3_600 * RATE_HZ)
    left = sorted(events, key=lambda event: event.start)
    with soundfile.SoundFile(path, "w", RATE_HZ, 1, "PCM_16") as file:
        for begin in range(0, total, BLOCK_S * RATE_HZ):
            length = min(BLOCK_S * RATE_HZ, total - begin)
            rng = np.random.default_rng((seed, begin))
            noise = rng.standard_normal(length + 7, dtype=np.float32)
            smooth = np.convolve(noise, np.full(8, 8**-0.5, np.float32), "valid")
            drift = DRIFT_DB * np.sin(2 * np.pi * begin / RATE_HZ / DRIFT_S)
            block = 10 ** ((NOISE_DBFS + drift) / 20) * smooth
            for event in left:
                first, last = event.start - begin, event.start + len(event.samples) - begin
                if first >= length:
                    break
                if last > 0:
                    inside = event.samples[max(0, -first) : length - first]
                    place = max(0, first)
                    block[place : place + len(inside)] += inside
            file.write(block)


def listen(folder: Path, hours: float, caption: str, given: argparse.Namespace) -> Any:
    """Runs the job on a folder with the recording; gives peak memory, seconds and progress."""
    output = folder / "out"
    command = [sys.executable, "-m", "pipelines.separate", "--recordings", str(folder / "in")]
    command += ["--positive", caption, "--model", given.model, "--device", "cpu"]
    command += ["--scorer", given.scorer, "--progress", "log", "--output", str(output)]
    start_s = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    lines: list[str] = []
    if process.stderr is None:
        raise RuntimeError("no standard error")
    reader = threading.Thread(target=_gather, args=(process.stderr, lines))
    reader.start()
    _, status, usage = os.wait4(process.pid, 0)
    reader.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit("".join(lines) + f"exit code {process.returncode}")
    (folder / f"progress-{hours:g}h.txt").write_text("".join(lines), encoding="utf-8")
    busy_s = usage.ru_utime + usage.ru_stime
    return usage.ru_maxrss / 1024, time.monotonic() - start_s, busy_s, lines


def _gather(stream: IO[str], lines: list[str]) -> None:
    lines.extend(stream)


def moved(lines: Sequence[str]) -> tuple[float, ...]:
    """What part of the recording the lines of progress say is done, from 0 to 1."""
    pattern = r"^(\d+) of 1 clips?(?: and ([\d.]+) of long ones)? after "
    found = (re.match(pattern, line) for line in lines)
    return tuple(float(each[1]) + float(each[2] or 0.0) for each in found if each)


def once(folder: Path, hours: float, given: argparse.Namespace, clips: Any) -> Found:
    """Makes a recording of a length and looks into it."""
    asked, others, caption = clips
    place = folder / f"{hours:g}"
    (place / "in").mkdir(parents=True)
    events = events_of(asked, others, hours, given.events, given.seed)
    write(place / "in" / "night.flac", events, hours, given.seed)
    peak_mib, wall_s, busy_s, lines = listen(place, hours, caption, given)
    segments = sorted(
        (record["start_s"], record["end_s"])
        for file in (place / "out" / "segments").glob("*.parquet")
        for record in pq.read_table(file, columns=["start_s", "end_s"]).to_pylist()
    )
    return Found(
        hours=hours,
        peak_mib=peak_mib,
        wall_s=wall_s,
        busy_s=busy_s,
        events=tuple(
            (event.start / RATE_HZ, (event.start + len(event.samples)) / RATE_HZ)
            for event in events
            if event.is_asked
        ),
        segments=tuple(segments),
        progress=moved(lines),
    )


def score(onsets: Sequence[float], found: Sequence[float]) -> tuple[int, float]:
    """How many onsets are found, and F1."""
    if not onsets or not found:
        return 0, 0.0
    pairs = mir_eval.util.match_events(np.array(onsets), np.array(found), COLLAR_S + ROUNDING_S)
    return len(pairs), 2 * len(pairs) / (len(onsets) + len(found))


def tell(found: Found) -> int:
    """Prints what a run showed; gives how many events a segment meets."""
    starts = [start_s for start_s, _ in found.segments]
    onsets = [onset_s for onset_s, _ in found.events]
    hits, f1 = score(onsets, starts)
    met = sum(map(len, _met(found).values()))
    longest_s = max((end - start for start, end in found.segments), default=0.0)
    print(
        f"{found.hours:g} h: peak {found.peak_mib:.0f} MiB; {found.wall_s:.0f} s by the clock, "
        f"{found.busy_s:.0f} s of a core: {3_600 * found.hours / found.busy_s:.0f} times real time"
    )
    print(
        f"  a segment meets {met} of {len(onsets)} events; {hits} onsets within {COLLAR_S} s; "
        f"{len(starts)} segments, onset F1 {f1:.3f}; the longest lasts {longest_s:.1f} s"
    )
    for hour, off_s in _met(found).items():
        there = sum(1 for onset_s in onsets if int(onset_s // 3_600) == hour)
        middle = f", beginning {np.median(off_s):+.2f} s off (median)" if off_s else ""
        print(f"  hour {hour + 1}: {len(off_s)} of {there} met{middle}")
    print(f"  progress: {len(found.progress)} lines, {_in_short(found.progress)}", flush=True)
    return met


def _met(found: Found) -> dict[int, list[float]]:
    """By hour, for each event that a segment meets, how much later the first of them begins."""
    by_hour: dict[int, list[float]] = {}
    for onset_s, offset_s in found.events:
        off_s = by_hour.setdefault(int(onset_s // 3_600), [])
        meeting = [s for s, end_s in found.segments if s < offset_s and end_s > onset_s]
        if meeting:
            off_s.append(min(meeting) - onset_s)
    return by_hour


def drifts(found: Found) -> bool:
    """Whether segments of a later hour begin elsewhere than those of the first."""
    middles = [float(np.median(off_s)) for off_s in _met(found).values() if off_s]
    return any(abs(each - middles[0]) > 2 * COLLAR_S for each in middles)


def _in_short(progress: Sequence[float]) -> str:
    steps = [f"{each:g}" for each in progress]
    return " ".join(steps if len(steps) < 24 else [*steps[:12], "…", *steps[-8:]])


def stands_still(found: Found) -> bool:
    """Whether progress goes back, or says the same for a tenth of the time.

    A line comes every 10 s; a run of half a minute, start included, has one or two.
    """
    values = found.progress
    due = min(4, (found.wall_s - 10) // 10)
    width = max(4, len(values) // 10)
    waits = any(late <= early for early, late in zip(values, values[width:], strict=False))
    return list(values) != sorted(values) or waits or len(set(values)) < due


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="folder with manifest.csv")
    parser.add_argument("--label", default="dog_bark")
    parser.add_argument("--hours", type=float, nargs="+", default=[1.0, 8.0])
    parser.add_argument("--events", type=int, default=40)
    parser.add_argument("--model", default="clapsep-mini")
    parser.add_argument("--scorer", default="none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where recordings and runs stay")
    given = parser.parse_args(argv)
    clips = clips_of(given.corpus, given.label)
    with tempfile.TemporaryDirectory() as name:
        runs = [once(given.work or Path(name), hours, given, clips) for hours in given.hours]
    met = [tell(each) for each in runs]
    faults = [f"{each.hours:g} h: progress stands still" for each in runs if stands_still(each)]
    faults += [f"{each.hours:g} h: times drift" for each in runs if drifts(each)]
    if len(runs) > 1:
        short, long = runs[0], runs[-1]
        grown = long.peak_mib / short.peak_mib
        print(f"memory of {long.hours:g} h over that of {short.hours:g} h: {grown:.3f}")
        if grown > 1.1:
            faults.append("memory grows with the length")
        if met[-1] < met[0] - 0.1 * given.events:
            faults.append("fewer events are met in the longer recording")
    print("\n".join(faults) or "as it should be")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(run())
