"""Times how long a command takes to its first stem, beside what importing torch and Beam takes.

    python bench/startup.py [--rounds 5] [--output FILE]

The commands take turns, each in a process of its own: the bare imports, one 10 s clip with the
bundled model up to the moment when its stem is there, ``--help``, and a wrong flag. The medians of
the rounds are compared, of the wall clock and of the processor's, which other programs disturb
less. At the end one more run says where the time goes, part by part.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

IMPORTS = ("-c", "import torch, apache_beam")
HELP = ("-m", "pipelines.separate", "--help")
WRONG = ("-m", "pipelines.separate", "--mixtrue", "talk.wav")
DURATION_S, RATE_HZ = 10, 32_000
_POLL_S = 0.002
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True, slots=True)
class Took:
    """Seconds of the wall clock and of the processors."""

    wall_s: float
    cpu_s: float


def command(folder: Path) -> tuple[str, ...]:
    """One clip through the main job."""
    words = ("--mixture", f"{folder}/clip.wav", "--positive", "a dog barking")
    return ("-m", "pipelines.separate", *words, "--output", f"{folder}/out", "--overwrite")


def write_clip(folder: Path) -> None:
    """Writes ten seconds of noise."""
    import numpy as np
    import soundfile

    noise = np.random.default_rng(0).standard_normal(DURATION_S * RATE_HZ)
    soundfile.write(folder / "clip.wav", 0.1 * noise, RATE_HZ)


def timed(words: Sequence[str], until: Path | None = None) -> Took:
    """Runs Python until it ends, or until a file is there.

    Raises:
        RuntimeError: the process ended, and there is no file.
    """
    if until is not None:
        until.unlink(missing_ok=True)
    started_s = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if until is None:
        _, _, usage = os.wait4(process.pid, 0)
        return Took(time.perf_counter() - started_s, usage.ru_utime + usage.ru_stime)
    while not until.exists():
        if process.poll() is not None:
            raise RuntimeError(f"{' '.join(words)} ended with {process.returncode} and no stem")
        time.sleep(_POLL_S)
    took = Took(time.perf_counter() - started_s, cpu_s_of(process.pid))
    process.wait()
    return took


def cpu_s_of(pid: int) -> float:
    """The processor time of a process so far, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def rounds_of(count: int, folder: Path) -> dict[str, list[Took]]:
    """Each command once a round, in turns."""
    stem = folder / "out" / "stems" / "clip.flac"
    found: dict[str, list[Took]] = {}
    for _ in range(count):
        for name, words, until in (
            ("import torch, apache_beam", IMPORTS, None),
            ("to the first stem", command(folder), stem),
            ("--help", HELP, None),
            ("a wrong flag", WRONG, None),
        ):
            found.setdefault(name, []).append(timed(words, until))
    return found


class Marks:
    """Notes the time whenever the first call of a function begins or ends."""

    def __init__(self) -> None:
        self.marks: list[tuple[str, float, float]] = []

    def note(self, name: str) -> None:
        """Ends the part of that name."""
        self.marks.append((name, time.perf_counter(), time.process_time()))

    def wrap(self, owner: Any, attribute: str, before: str | None, after: str | None) -> None:
        """Has the first call of a function end one part before it and one after it."""
        original: Callable[..., Any] = getattr(owner, attribute)
        once = threading.Lock()

        def noting(*args: Any, **kwargs: Any) -> Any:
            first = once.acquire(blocking=False)
            if first and before is not None:
                self.note(before)
            result = original(*args, **kwargs)
            if first and after is not None:
                self.note(after)
            return result

        setattr(owner, attribute, noting)

    def parts(self) -> Iterator[tuple[str, Took]]:
        """Each part with what it took."""
        last_wall_s, last_cpu_s = self.marks[0][1:]
        for name, wall_s, cpu_s in self.marks[1:]:
            yield name, Took(wall_s - last_wall_s, cpu_s - last_cpu_s)
            last_wall_s, last_cpu_s = wall_s, cpu_s


def trace(folder: Path) -> int:
    """Runs the command in this process and prints its parts."""
    from pipelines import flags

    marks = Marks()
    marks.note("")
    with flags.without_collections():
        import apache_beam
        import torch  # noqa: F401

        marks.note("import torch and Beam")
        from pipelines import runners, separate, separate_graph
        from transforms import queries, scoring, separation, writing

        marks.note("import everything else")
    marks.wrap(separate_graph.SeparateJob, "load", "look at the command", "load the model")
    marks.wrap(runners, "run_graph", "look at the folder", None)
    marks.wrap(apache_beam.Pipeline, "run", "build the graph", None)
    marks.wrap(queries, "embed_query_texts", "translate the graph", "embed the text")
    marks.wrap(separation.Separation, "separate", "read the clip", "separate it")
    marks.wrap(scoring.Scoring, "score", None, "score the stem")
    marks.wrap(writing, "write_clip", None, "write the stem")
    code = separate.run(command(folder)[2:])
    marks.note("write the tables, and end")
    sys.stderr.write("".join(f"{row(name, took)}\n" for name, took in marks.parts()))
    return code


def row(name: str, took: Took, reference: Took | None = None) -> str:
    """A line of the table."""
    line = f"{name:28} {took.wall_s:7.2f} s {took.cpu_s:7.2f} s"
    if reference is not None:
        line += f" {took.wall_s / reference.wall_s:7.2f} x {took.cpu_s / reference.cpu_s:7.2f} x"
    return line


def median(times: Sequence[Took]) -> Took:
    """The medians."""
    return Took(
        statistics.median(each.wall_s for each in times),
        statistics.median(each.cpu_s for each in times),
    )


def processor() -> str:
    """The processor's name, as the kernel has it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> int:
    """Prints, and writes, the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--trace", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trace is not None:
        return trace(options.trace)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_clip(folder)
        times = {name: median(each) for name, each in rounds_of(options.rounds, folder).items()}
        parts = subprocess.run(
            [sys.executable, __file__, "--trace", str(folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=True,
        ).stderr
    reference = next(iter(times.values()))
    lines = [
        f"{processor()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}; medians of {options.rounds} rounds",
        f"{'':28} {'wall':>9} {'processor':>9} {'of the imports':>19}",
        *(row(name, took, reference) for name, took in times.items()),
        "",
        "One more run, part by part:",
        parts.rstrip(),
        "",
    ]
    print("\n".join(lines))
    if options.output is not None:
        options.output.write_text("\n".join(lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
