"""What CLAPScores cost: scored runs and unscored ones of one manifest, in turns.

    python bench/scores.py [--model clapsep-mini] [--mixtures 8] [--rounds 3] [--output FILE]

Each mixture of 10 s is asked for a sound, against another, and both (P, N, P+N), and has a
reference. All runs happen in this process, with the models loaded, and are compared by the time of
the processor, which other programs disturb less than the clock of the wall. The first round, in
which everything is loaded, does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import soundfile

from pipelines import separate

RATE_HZ, SECONDS = 32_000, 10
RUNS = {
    "unscored": ("--scorer", "none"),
    "scored": (),
    "scored, --clap_scores stem": ("--clap_scores", "stem"),
}


def write_manifest(folder: Path, mixtures: int) -> Path:
    """Writes mixtures of noise and their references, and three rows for each."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(mixtures):
        sources = 0.1 * rng.standard_normal((2, SECONDS * RATE_HZ))
        names = [str(folder / f"{kind}{number}.flac") for kind in ("mixture", "reference")]
        soundfile.write(names[0], sources.sum(axis=0), RATE_HZ)
        soundfile.write(names[1], sources[0], RATE_HZ)
        row = {"mixture_uri": names[0], "reference_uri": names[1]}
        positive, negative = {"positive_text": "a dog"}, {"negative_text": "rain"}
        for name, asked in (("p", positive), ("n", negative), ("pn", positive | negative)):
            lines.append(json.dumps({"id": f"{number}/{name}", **row, **asked}) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "rows.jsonl"


def run(model: str, manifest: Path, output: Path, flags: tuple[str, ...]) -> float:
    """Runs the job; gives the seconds of the processor.

    Raises:
        RuntimeError: it failed.
    """
    start_s = time.process_time()
    where = ["--manifest", str(manifest), "--output", str(output), "--overwrite"]
    code = separate.run([*where, "--model", model, "--progress", "none", *flags])
    if code != 0:
        raise RuntimeError(f"exit code {code}")
    return time.process_time() - start_s


def main() -> None:
    """Prints, and writes, the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="clapsep-mini")
    parser.add_argument("--mixtures", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in RUNS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = write_manifest(folder, given.mixtures)
        for turn in range(given.rounds + 1):
            for name, flags in RUNS.items():
                seconds = run(given.model, manifest, folder / "out", flags)
                if turn:
                    found[name].append(seconds)
    unscored = statistics.median(found["unscored"])
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    lines = [
        f"{models[0] if models else platform.machine()}, {len(os.sched_getaffinity(0))} cores; "
        f"{given.model}, {3 * given.mixtures} rows of {SECONDS} s; medians of {given.rounds}",
        *(
            f"{name:28} {statistics.median(each):7.2f} s of the processor "
            f"{statistics.median(each) / unscored:6.2f} x"
            for name, each in found.items()
        ),
        "",
    ]
    print("\n".join(lines))
    if given.output is not None:
        given.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
