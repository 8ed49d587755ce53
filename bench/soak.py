"""Very many short clips in one run: whether row_counts balance, memory stays flat and speed holds.

    python -m bench.soak --output soak.json                     # 20,000 clips, the bundled model
    python -m bench.soak --clips 300 --output soak.json

Of the rows 5 % are bad in seven ways, and of the reads of the others 1 % fail: refused, cut short,
503 or a lost connection in turn; all but the refused pass when they are repeated. The job runs in
this process. Stems are counted and removed as they come, so that the disk holds a few. The exit
code is 1 where a check fails; what was measured is in ``--output`` either way.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import soundfile

from bench.faulty_files import FaultyFiles
from pipelines import separate
from transforms import storage

RATE_HZ = 32_000
CLIP_S = 1.5
FILES = 200
BAD_EVERY = 20
INTERVAL_S = 0.5
QUERIES = ("a dog barking", "rain", "a church bell", "wind", "a woman singing", "a frog croaking")
CHECKS = {"rss": 0.05, "descriptors": 0, "throughput": 0.95}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the process held when so many stems were finished."""

    stems: int
    rss_mb: float
    descriptors: int


class Watch(threading.Thread):
    """Looks at the process and at its output folder; counts the stems, and removes them."""

    def __init__(self, stems: Path) -> None:
        """Watches ``stems`` until :meth:`finish`."""
        super().__init__(name="watch", daemon=True)
        self._stems, self._over = stems, threading.Event()
        self.finished_at_s: list[float] = []
        self.samples: list[Sample] = []

    def run(self) -> None:
        """Looks twice a second."""
        while not self._over.wait(INTERVAL_S):
            self._look()

    def finish(self) -> None:
        """Looks a last time."""
        self._over.set()
        self.join()
        self._look()
        self.finished_at_s.sort()

    def _look(self) -> None:
        for path in self._stems.rglob("*.flac"):
            self.finished_at_s.append(path.stat().st_mtime)
            path.unlink()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.samples.append(
            Sample(
                stems=len(self.finished_at_s),
                rss_mb=pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
                descriptors=len(os.listdir("/proc/self/fd")),
            )
        )


def write_clips(folder: Path, files: int) -> None:
    """Pairs of a mixture and its target: noise that swells, each by another law."""
    time_s = np.arange(2 * round(RATE_HZ * CLIP_S)) / RATE_HZ
    for number in range(files):
        rng = np.random.default_rng(number)
        target, other = 0.1 * rng.standard_normal((2, len(time_s)))
        target *= np.sin(np.pi * (1 + number % 5) * time_s) ** 2
        soundfile.write(folder / f"r{number}.wav", target, RATE_HZ, "PCM_16")
        soundfile.write(folder / f"m{number}.wav", target + other, RATE_HZ, "PCM_16")
    soundfile.write(folder / "silent.wav", np.zeros(len(time_s)), RATE_HZ, "PCM_16")
    (folder / "text.wav").write_text("no audio", encoding="ascii")
    (folder / "empty.wav").touch()


def bad_rows(folder: Path) -> Sequence[tuple[str, dict[str, Any]]]:
    """Why a row fails, and what makes it fail."""
    return (
        ("read/missing", {"mixture_uri": str(folder / "nowhere.wav")}),
        ("read/not_audio", {"mixture_uri": str(folder / "text.wav")}),
        ("read/empty_file", {"mixture_uri": str(folder / "empty.wav")}),
        ("read/silent", {"mixture_uri": str(folder / "silent.wav")}),
        ("read/zero_duration", {"mixture_uri": str(folder / "m0.wav"), "offset_s": 1_000.0}),
        ("manifest/invalid_row", {"offset_s": -1.0}),
        ("manifest/duplicate_id", {"id": "0"}),
    )


def write_manifest(folder: Path, clips: int) -> Counter[str]:
    """Rows of which no two name the same samples; gives why how many of them must fail."""
    files = min(FILES, clips)
    write_clips(folder, files)
    kinds = bad_rows(folder)
    step_s = CLIP_S / -(-clips // files)
    expected: Counter[str] = Counter()
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as manifest:
        for number in range(clips):
            row: dict[str, Any] = {
                "id": f"{number}",
                "mixture_uri": f"faulty://{folder}/m{number % files}.wav",
                "reference_uri": f"faulty://{folder}/r{number % files}.wav",
                "positive_text": QUERIES[number % len(QUERIES)],
                "negative_text": QUERIES[(number + 1 + number // files) % len(QUERIES)],
                "offset_s": round(number // files * step_s, 6),
                "duration_s": CLIP_S,
            }
            if number % BAD_EVERY == BAD_EVERY - 1:
                reason, change = kinds[number // BAD_EVERY % len(kinds)]
                row = {**row, "reference_uri": None, **change}
                expected[reason] += 1
            manifest.write(json.dumps(row) + "\n")
    return expected


def throughput(finished_at_s: Sequence[float]) -> dict[str, float]:
    """Stems a second over the first and the last fifth of the stems, and over all."""
    fifth = len(finished_at_s) // 5

    def rate(times: Sequence[float]) -> float:
        return (len(times) - 1) / max(times[-1] - times[0], 1e-9)

    first, last = rate(finished_at_s[: fifth + 1]), rate(finished_at_s[-fifth - 1 :])
    return {
        "first_fifth": first,
        "last_fifth": last,
        "ratio": last / first,
        "overall": rate(finished_at_s),
    }


def held(samples: Sequence[Sample], total: int) -> dict[str, dict[str, float]]:
    """Medians of what was held from 10 to 20 % of the stems on, and over the last tenth."""
    spans = {"after_warm_up": (0.1, 0.2), "end": (0.9, 1.0)}
    found: dict[str, dict[str, float]] = {"rss_mb": {}, "descriptors": {}}
    for name, (begin, end) in spans.items():
        inside = [s for s in samples if begin * total <= s.stems <= end * total] or samples[-1:]
        for what, values in found.items():
            values[name] = statistics.median(getattr(sample, what) for sample in inside)
    for what, values in found.items():
        values["peak"] = max(getattr(sample, what) for sample in samples)
    return found


def checks(result: Mapping[str, Any]) -> dict[str, bool]:
    """What must hold."""
    row_counts, rss, descriptors = result["row_counts"], result["rss_mb"], result["descriptors"]
    return {
        "finished": result["status"] == "finished",
        "every row is a stem or a dead letter": (
            result["clips"]
            == row_counts["rows"]
            == row_counts["stems"] + row_counts["dead_letters"]
        ),
        "as many stem files as the row_counts say": result["stem_files"] == row_counts["stems"],
        "dead letters are those that were made": row_counts["by_reason"]
        == result["expected_reasons"],
        "passing errors were repeated": result["repeated"] == result["passing_errors"],
        "memory is flat": abs(rss["end"] / rss["after_warm_up"] - 1) <= CHECKS["rss"],
        "no descriptor leaks": (
            descriptors["end"] - descriptors["after_warm_up"] <= CHECKS["descriptors"]
        ),
        "speed holds": result["stems_per_s"]["ratio"] >= CHECKS["throughput"],
    }


def soak(clips: int, model: str, scorer: str, folder: Path) -> dict[str, Any]:
    """Runs the job and says what was seen."""
    expected = write_manifest(folder, clips)
    fsspec.register_implementation("faulty", FaultyFiles, clobber=True)
    FaultyFiles.begin()
    output = folder / "out"
    watch = Watch(output / "stems")
    watch.start()
    start_s, start_cpu_s = time.monotonic(), time.process_time()
    asked = ["--manifest", str(folder / "rows.jsonl"), "--output", str(output), "--model", model]
    code = separate.run([*asked, "--scorer", scorer, "--progress", "log", "--max_failure_rate=1"])
    wall_s, cpu_s = time.monotonic() - start_s, time.process_time() - start_cpu_s
    watch.finish()
    record = json.loads((output / "run.json").read_text(encoding="utf-8"))
    faults = FaultyFiles.counts()
    refused = faults.pop("refused", 0)
    if refused:
        expected["read/permission"] += refused
    found = {
        "clips": clips, "clip_s": CLIP_S, "model": model, "scorer": scorer, "exit_code": code,
        "status": record["status"], "wall_s": round(wall_s, 1), "cpu_s": round(cpu_s, 1),
        "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0],
        "row_counts": record["row_counts"], "stem_files": len(watch.finished_at_s),
        "expected_reasons": dict(sorted(expected.items())),
        "passing_errors": sum(faults.values()), "refused": refused,
        "repeated": storage.repeated(record["counters"]),
        "stems_per_s": throughput(watch.finished_at_s),
        **held(watch.samples, len(watch.finished_at_s)),
    }  # fmt: skip
    return {**found, "checks": checks(found), "samples": thinned(watch.samples)}


def thinned(samples: Sequence[Sample], most: int = 200) -> list[dict[str, float]]:
    """A few samples, evenly spread, for a plot."""
    step = -(-len(samples) // most)
    return [dataclasses.asdict(sample) for sample in itertools.islice(samples, 0, None, step)]


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the soak; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--model", default="clapsep-mini")
    parser.add_argument("--scorer", default="own")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for what was seen")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        result = soak(given.clips, given.model, given.scorer, Path(name))
    given.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in result.items() if k != "samples"}, indent=1))
    return 0 if all(result["checks"].values()) else 1


if __name__ == "__main__":
    sys.exit(run())
