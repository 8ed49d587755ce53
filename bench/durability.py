"""What it costs that a stem is read back, and on its disk before it is booked.

    python -m bench.durability                     # 10,000 stems with it, and as many without
    python -m bench.durability --clips 400 --output /where/the/disk/is

The job runs with a stub for a network, so that nothing hides the cost: what remains is reading,
resampling, encoding and writing. Runs with and without take turns, and each turn is a pair.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile

from pipelines import separate
from transforms import storage as storage_module
from transforms.audio import files

RATE_HZ = 32_000
CLIP_S = 5.0
FILES = 50
STUB = "mixture"


def write_manifest(folder: Path, clips: int) -> Path:
    """Rows of a few recordings of noise, each as often as it takes."""
    rng = np.random.default_rng(0)
    for number in range(FILES):
        samples = 0.05 * rng.standard_normal(round(RATE_HZ * CLIP_S))
        soundfile.write(folder / f"{number}.wav", samples, RATE_HZ, "PCM_16")
    rows = (
        {"id": f"{number}", "mixture_uri": str(folder / f"{number % FILES}.wav"),
         "positive_text": "noise"}
        for number in range(clips)
    )  # fmt: skip
    manifest = folder / "rows.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return manifest


@contextlib.contextmanager
def without() -> Iterator[None]:
    """Nothing is synced, and no stem is read back."""
    with contextlib.ExitStack() as stack:
        for owner, name in (
            (files, "sync_file"),
            (files, "sync_folder"),
            (storage_module, "sync_folder"),
            (files, "require_whole"),
        ):
            stack.enter_context(mock.patch.object(owner, name))
        yield


def job(manifest: Path, output: Path) -> float:
    """Seconds for the job."""
    start_s = time.perf_counter()
    given = ["--manifest", str(manifest), "--output", str(output), "--model", STUB]
    with contextlib.redirect_stdout(io.StringIO()):
        code = separate.run([*given, "--scorer", "none", "--progress", "none"])
    if code != 0:
        raise RuntimeError(f"exit code {code}")
    took_s = time.perf_counter() - start_s
    shutil.rmtree(output)
    return took_s


def run(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=10_000, help="stems with, and without")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", help="folder on the disk to be measured")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=given.output) as name:
        folder = Path(name)
        manifest = write_manifest(folder, given.clips // given.turns)
        job(manifest, folder / "warm")
        pairs = []
        for turn in range(given.turns):
            took_s = {}
            for kind in ("with", "without") if turn % 2 else ("without", "with"):
                with without() if kind == "without" else contextlib.nullcontext():
                    took_s[kind] = job(manifest, folder / f"{kind}{turn}")
            pairs.append((took_s["with"], took_s["without"]))
    print(f"{given.clips} stems of {CLIP_S:g} s in {given.turns} turns, seconds with and without:")
    for pair in pairs:
        print("  {:8.2f} {:8.2f}   ratio {:.3f}".format(*pair, pair[0] / pair[1]))
    with_s, without_s = (sum(seconds) for seconds in zip(*pairs, strict=True))
    ratios = [pair[0] / pair[1] for pair in pairs]
    print(
        f"all: ratio {with_s / without_s:.3f}; median of the turns {statistics.median(ratios):.3f}"
    )


if __name__ == "__main__":
    run()
