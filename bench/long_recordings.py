"""Recordings that are streamed against the same audio as clips, and the cost beside the network.

    python -m bench.long_recordings            # four recordings of 10 minutes; minutes
    python -m bench.long_recordings --minutes 2 --repeats 1

Jobs take turns in one process, and the fastest of each counts: other load only ever adds time. Of
each the time of a job with a single clip is taken off, which is that of the graph and its threads.
Windows of a recording overlap by a quarter: it is heard 4/3 times, clips of 10 s once. So the job
without scores is run with and without overlap; with scores, the scorer hears up to 12 windows of a
recording, and all of each clip.

With a stub for a network what remains is decoding, windows, resampling, encoding and writing, in
seconds of audio for a second of one core: by the processor's time and not by the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

from pipelines import separate

CLIP_S = 10
STUB = "mixture"
ModelJobs = Mapping[str, tuple[str, ...]]
JOBS: ModelJobs = {
    "as a user runs it": (),
    "without scores": ("--scorer", "none"),
    "without scores and overlap": ("--scorer", "none", "--overlap", "0"),
}
STUBBED = (
    ("32 kHz mono", 32_000, 1, ()),
    ("44.1 kHz stereo", 44_100, 2, ()),
    ("44.1 kHz stereo, residual", 44_100, 2, ("--residual",)),
)


def processor() -> str:
    """What the processor is called."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores} cores"


def write(path: Path, seconds: float, rate_hz: int, num_channels: int, seed: int) -> None:
    """Coloured noise that comes and goes, in 16-bit FLAC: as hard to encode as a recording."""
    rng = np.random.default_rng(seed)
    with soundfile.SoundFile(path, "w", rate_hz, num_channels, "PCM_16") as file:
        for begin in range(0, round(seconds), CLIP_S):
            length = round(rate_hz * min(CLIP_S, seconds - begin))
            noise = rng.standard_normal((length, num_channels), dtype=np.float32)
            smooth = sum(noise[shift:][: length - 7] for shift in range(8)) / 8
            file.write(0.1 * rng.uniform(0.1, 1.0) * np.pad(smooth, ((0, 7), (0, 0))))


def write_rows(folder: Path, paths: Sequence[Path]) -> Path:
    """A manifest that asks the same of each file."""
    manifest = folder.with_suffix(".jsonl")
    rows = [{"id": path.stem, "mixture_uri": str(path), "positive_text": "rain"} for path in paths]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return manifest


def cut(recordings: Sequence[Path], folder: Path) -> list[Path]:
    """The same audio in files of 10 s."""
    folder.mkdir()
    clips = []
    for recording in recordings:
        with soundfile.SoundFile(recording) as file:
            samples = CLIP_S * file.samplerate
            for number, block in enumerate(file.blocks(samples, dtype="float32")):
                clips.append(folder / f"{recording.stem}-{number:04}.flac")
                soundfile.write(clips[-1], block, file.samplerate, "PCM_16")
    return clips


def job(manifest: Path, output: Path, *flags: str) -> tuple[float, float]:
    """Runs a job; gives its seconds by the clock, and by the processor."""
    start_s, busy_s = time.perf_counter(), time.process_time()
    where = ["--manifest", str(manifest), "--output", str(output), "--progress", "none"]
    with contextlib.redirect_stdout(io.StringIO()):
        code = separate.run([*where, "--overwrite", "--max_clip_in_memory_s", "30", *flags])
    if code != 0:
        raise RuntimeError(f"exit code {code}")
    return time.perf_counter() - start_s, time.process_time() - busy_s


def compare(folder: Path, given: argparse.Namespace) -> None:
    """Recordings against clips, with a network."""
    for rate_hz, num_channels in ((32_000, 1), (44_100, 2)):
        place = folder / f"{rate_hz}"
        place.mkdir()
        recordings = [place / f"r{number}.flac" for number in range(given.recordings)]
        for number, path in enumerate(recordings):
            write(path, 60 * given.minutes, rate_hz, num_channels, number)
        clips = cut(recordings, place / "clips")
        manifests = {
            "one clip": write_rows(place / "one", clips[:1]),
            "recordings": write_rows(place / "long", recordings),
            "clips": write_rows(place / "short", clips),
        }
        audio_s = 60 * given.minutes * given.recordings
        model = ("--model", given.model, "--device", given.device)
        job(manifests["one clip"], folder / "out", *model)  # loads everything
        for name, flags in JOBS.items():
            found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in manifests}
            for _ in range(given.repeats):
                for kind, manifest in manifests.items():
                    took = job(manifest, folder / "out", *model, *flags)
                    found[kind].append(took)
            print(f"{rate_hz} Hz, {num_channels} channels, {name}:")
            for index, clock in enumerate(("by the clock", "by the processor")):
                start_s, long_s, short_s = (min(s[index] for s in each) for each in found.values())
                long, short = audio_s / (long_s - start_s), audio_s / (short_s - start_s)
                print(
                    f"  {clock:16}: recordings {long:6.1f}, clips {short:6.1f} times real time: "
                    f"{long / short:.2f} of the rate "
                    f"({long_s:.1f}, {short_s:.1f}, {start_s:.1f} s)"
                )


def alone(folder: Path, given: argparse.Namespace) -> None:
    """What there is beside a network, with a stub for it."""
    flags = ("--model", STUB, "--scorer", "none", "--device", "cpu")
    for name, rate_hz, num_channels, more in STUBBED:
        place = folder / name.replace(" ", "_").replace(",", "")
        place.mkdir()
        seconds = {"one": float(CLIP_S), "long": 60.0 * given.minutes}
        busy: dict[str, float] = {}
        for kind, length_s in seconds.items():
            paths = [place / f"{kind}{number}.flac" for number in range(given.recordings)]
            for number, path in enumerate(paths if kind == "long" else paths[:1]):
                write(path, length_s, rate_hz, num_channels, number)
            manifest = write_rows(place / kind, paths if kind == "long" else paths[:1])
            if not busy:
                job(manifest, folder / "out", *flags, *more)  # imports everything
            busy[kind] = min(
                job(manifest, folder / "out", *flags, *more)[1] for _ in range(given.repeats)
            )
        rate = given.recordings * seconds["long"] / (busy["long"] - busy["one"])
        print(f"stub, {name:28}: {rate:6.0f} times real time a core")


def run(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="clapsep-mini")
    parser.add_argument("--device", default="cpu", help="of the model")
    parser.add_argument("--recordings", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", choices=("stub", "model"), help="one half of it")
    given = parser.parse_args(argv)
    print(f"{processor()}; {given.recordings} recordings of {given.minutes:g} minutes")
    with tempfile.TemporaryDirectory() as name:
        if given.only != "model":
            alone(Path(name), given)
        if given.only != "stub":
            compare(Path(name), given)


if __name__ == "__main__":
    run()
