"""What it costs to decode audio in processes of its own (``--isolate_decoder``).

    python -m bench.isolation

The same clips are read by the same threads, here and apart, in turn; the processes are started
before the clock is. Beside each time stands the processor time, of this process and its children:
on cores that have nothing else to do, waiting hides what copying costs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import soundfile

from transforms.audio.files import open_audio
from transforms.storage import Storage

RATE_HZ = 44_100
CLIP_S = 10


def write_clips(folder: Path, count: int) -> list[str]:
    """Stereo noise in FLAC."""
    rng = np.random.default_rng(0)
    paths = [str(folder / f"{number}.flac") for number in range(count)]
    for path in paths:
        soundfile.write(path, 0.1 * rng.standard_normal((CLIP_S * RATE_HZ, 2)), RATE_HZ)
    return paths


def processor_s() -> float:
    """Of this process and those that it has started."""
    here = psutil.Process()
    times = [each.cpu_times() for each in (here, *here.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def read_all(pool: ThreadPoolExecutor, storage: Storage, paths: Sequence[str]) -> list[float]:
    """Wall and processor seconds."""

    def read(path: str) -> None:
        with open_audio(storage, path) as reader:
            reader.read()

    began = time.perf_counter(), processor_s()
    list(pool.map(read, paths))
    return [time.perf_counter() - began[0], processor_s() - began[1]]


def run(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(argv)
    forms = {"in this process": Storage(), "isolated": Storage(isolate_decoder=True)}
    with tempfile.TemporaryDirectory() as name:
        paths = write_clips(Path(name), given.clips)
        for threads in given.threads:
            with ThreadPoolExecutor(threads) as pool:
                times: dict[str, list[list[float]]] = {form: [] for form in forms}
                for storage in forms.values():
                    read_all(pool, storage, paths)
                for _ in range(given.rounds):
                    for form, storage in forms.items():
                        times[form].append(read_all(pool, storage, paths))
            best = {form: np.min(each, axis=0) / given.clips for form, each in times.items()}
            print(f"{threads} threads, a clip of {CLIP_S} s in stereo at {RATE_HZ} Hz, FLAC:")
            for form, (wall_s, used_s) in best.items():
                print(f"  {form:16} {1e3 * wall_s:7.2f} ms, {1e3 * used_s:7.2f} ms of a processor")
            wall, used = best["isolated"] / best["in this process"]
            print(f"  ratio            {wall:7.2f}     {used:7.2f}")


if __name__ == "__main__":
    run()
