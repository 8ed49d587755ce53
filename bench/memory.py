"""Peak memory of the main job for inputs of one length and of four times that length.

    python -m bench.memory                        # the bundled model
    python -m bench.memory --model mixture        # the pipeline alone
    python -m bench.memory --load                 # a model of full size, while it is loaded

A recording: half an hour and two hours of stereo at 44.1 kHz. Clips: 250 and 1,000 of 5 s. Every
run is a process of its own, whose peak resident size the system says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch

from model.checkpoints import convert
from model.checkpoints.loading import Networks, build
from model.clap import Clap
from model.config import PUBLISHED
from model.systems.clapsep.network import ClapSep

RATE_HZ = 44_100


def write_recording(path: Path, seconds: int) -> None:
    """Stereo noise with a slow beat, second by second."""
    rng = np.random.default_rng(0)
    beat = 0.5 + 0.5 * np.sin(2 * np.pi * np.arange(RATE_HZ) / RATE_HZ)[:, None]
    with soundfile.SoundFile(path, "w", RATE_HZ, 2) as file:
        for _ in range(seconds):
            file.write(0.1 * beat * rng.standard_normal((RATE_HZ, 2)))


def write_manifest(folder: Path, clips: int) -> Path:
    """Clips of one recording, each a part of its own."""
    lines = [
        json.dumps(
            {
                "id": f"{number}",
                "mixture_uri": str(folder / "long.flac"),
                "reference_uri": str(folder / "long.flac"),
                "offset_s": number * 0.25,
                "duration_s": 5.0,
                "positive_text": f"sound {number % 9}",
            }
        )
        for number in range(clips)
    ]
    path = folder / f"{clips}.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def peak_mib(arguments: Sequence[str], output: Path) -> tuple[float, float]:
    """Peak resident size of a run in MiB, and its seconds."""
    command = [sys.executable, "-m", "pipelines.separate", *arguments, "--output", str(output)]
    start_s = time.monotonic()
    process = subprocess.Popen([*command, "--progress", "none"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"exit code {process.returncode}")
    return usage.ru_maxrss / 1024, time.monotonic() - start_s


LOAD = """
import re, sys
from pathlib import Path
from model.checkpoints import loading
def peak_mib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before_mib = peak_mib()
networks = loading.load_converted(sys.argv[1])
print(f"{before_mib:.0f} MiB before it is loaded, {peak_mib():.0f} MiB at most while it is")
"""


def measure_loading() -> None:
    """Prints the peak of a process that loads the published shapes with random weights."""
    networks = Networks(
        config=PUBLISHED,
        clap=build(lambda: Clap(PUBLISHED.clap)).eval(),
        separator=build(lambda: ClapSep(PUBLISHED)).eval(),
    )
    for parameter in [*networks.clap.parameters(), *networks.separator.parameters()]:
        torch.nn.init.normal_(parameter, std=0.02)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "full.safetensors"
        convert.save(str(path), networks)
        print(f"a converted file of {path.stat().st_size / 2**20:.0f} MiB:", flush=True)
        subprocess.run([sys.executable, "-c", LOAD, str(path)], check=True)


def run(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="clapsep-mini")
    parser.add_argument("--scorer", default="own")
    parser.add_argument("--recording_s", type=int, default=1_800)
    parser.add_argument("--clips", type=int, default=250)
    parser.add_argument("--load", action="store_true", help="measure loading, and nothing else")
    given = parser.parse_args(argv)
    if given.load:
        measure_loading()
        return
    model = ["--model", given.model, "--scorer", given.scorer]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found: dict[str, list[float]] = {"recording": [], "clips": []}
        for times in (1, 4):
            long = folder / "long.flac"
            write_recording(long, times * given.recording_s)
            asked = ["--mixture", str(long), "--positive", "a beat", *model]
            mib, seconds = peak_mib(asked, folder / f"long{times}")
            found["recording"].append(mib)
            print(f"recording of {times * given.recording_s:6} s: {mib:7.0f} MiB, {seconds:6.0f} s")
        for times in (1, 4):
            manifest = write_manifest(folder, times * given.clips)
            asked = ["--manifest", str(manifest), *model]
            mib, seconds = peak_mib(asked, folder / f"clips{times}")
            found["clips"].append(mib)
            print(f"{times * given.clips:6} clips of 5 s:       {mib:7.0f} MiB, {seconds:6.0f} s")
        for kind, (once, fourfold) in found.items():
            print(f"{kind}: {100 * (fourfold / once - 1):+.1f} % at four times the length")


if __name__ == "__main__":
    run()
