"""Several queries of each recording in one run, against one run a query.

    python -m bench.queries                          # the published size, 10 queries, 8 clips
    python -m bench.queries --model clapsep-mini --clips 16

The published size has made-up weights, which cost the same. Runs are of this process, one after the
other, without scores: all queries together, then each alone, then all together again. Each is done
over all clips and over half of them, and the difference is compared: what starting a run takes is
left out. To be run on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RATE_HZ = 32_000
SOUNDS = (
    *("a dog barking", "rain", "a church bell", "wind", "a woman singing", "a frog croaking"),
    *("a car passing", "footsteps", "a door", "a crowd", "a clock", "a river", "a siren", "a cat"),
)


def write_clips(folder: Path, clips: int, seconds: float) -> None:
    """Noise, a file each, in two halves."""
    rng = np.random.default_rng(0)
    for number in range(clips):
        samples = 0.1 * rng.standard_normal(round(seconds * RATE_HZ))
        half = "first" if 2 * number < clips else "second"
        soundfile.write(folder / f"{half}{number}.flac", samples, RATE_HZ, "PCM_16")


def measured(arguments: Sequence[str], output: Path) -> tuple[float, float]:
    """Wall seconds of a run's graph, and processor seconds of the whole command."""
    from pipelines import separate

    started_s = time.process_time()
    code = separate.run(
        [*arguments, "--scorer", "none", "--progress", "none", "--output", str(output)]
    )
    if code:
        raise SystemExit(f"exit code {code}")
    used_s = time.process_time() - started_s
    return json.loads((output / "run.json").read_text("utf-8"))["wall_s"], used_s


def steady(
    folder: Path, model: str, texts: Sequence[str], clips: int, name: str
) -> tuple[float, float]:
    """Wall and processor seconds a clip of the second half: what starting takes is left out."""
    words = [word for text in texts for word in ("--positive", text)]
    every, half = (
        measured(
            ["--recordings", str(folder / pattern), "--model", model, *words],
            folder / "out" / f"{name}-{number}",
        )
        for number, pattern in enumerate(("*.flac", "first*.flac"))
    )
    return (every[0] - half[0]) / (clips // 2), (every[1] - half[1]) / (clips // 2)


def run(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="Default: the published size, with made-up weights.")
    parser.add_argument("--queries", type=int, default=10)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args(argv)
    if given.clips % 2 or given.clips < 2:
        parser.error(f"--clips {given.clips}: an even number is expected")
    sounds = SOUNDS[: given.queries]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_clips(folder, given.clips, given.seconds)
        model = given.model
        if model is None:
            from bench.pipeline import write_model

            model = write_model(folder)
        steady(folder, model, ["warm up"], given.clips, "warm")
        together = [steady(folder, model, sounds, given.clips, "before")]
        single = [
            steady(folder, model, [text], given.clips, f"single{number}")
            for number, text in enumerate(sounds)
        ]
        together.append(steady(folder, model, sounds, given.clips, "after"))
        wall, used = (sum(each[at] for each in single) for at in (0, 1))
        name = given.model or "the published size, made-up weights"
        print(f"{given.clips} clips of {given.seconds:g} s, {len(sounds)} queries, {name}")
        for each in together:
            print(f"one run: {each[0]:.2f} s a clip, {each[1]:.2f} s of processor")
        print(f"{len(sounds)} runs: {wall:.2f} s a clip, {used:.2f} s of processor")
        for at, unit in ((0, "the time"), (1, "processor")):
            mean = statistics.mean(each[at] for each in together)
            print(f"ratio: {mean / (wall, used)[at]:.2f} of {unit}")


if __name__ == "__main__":
    run()
