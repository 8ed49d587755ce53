"""Two torchmetrics calls against ours for the SDR of stem and mixture, side by side in one run.

``python bench/metrics.py [--device cuda] [--threads 1] [--rounds 7]``; needs the test dependencies.

Real clips from ``manifests/examples`` of 10 s at 32 kHz, mixed at 0 dB. Calls alternate, and the
fastest of the rounds counts. Times are of the wall and, on the CPU, of the processor, which other
programs disturb less. torchmetrics is called clip by clip: its batched LU fails in some builds.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import soundfile
import torch
from torchmetrics.functional.audio import signal_distortion_ratio

from model import metrics, signal
from model import signal as audio

AUDIO = Path(__file__).resolve().parent.parent / "manifests" / "examples" / "audio"
RATE_HZ = 32_000
CLIP_SAMPLES = 320_000
BLOCK_SAMPLES = 4 * RATE_HZ
Signals = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def load(count: int, device: str) -> Signals:
    """Stems, mixtures and references, float32[count, T]: each clip against its successor."""
    paths = sorted(path for path in AUDIO.glob("*.flac") if "mixture" not in path.name)
    sources = []
    for path in paths:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        mono = audio.to_mono(samples.T)
        repeated = np.resize(audio.resample(mono, rate_hz, RATE_HZ), CLIP_SAMPLES)
        sources.append(repeated)
    stems, mixtures, references = [], [], []
    for index in range(count):
        target, interferer = (sources[(index + step) % len(sources)] for step in (0, 1))
        mixed = signal.mix(target, [interferer], 0.0)
        hiss = np.random.default_rng(index).standard_normal(CLIP_SAMPLES).astype(np.float32)
        stems.append(0.9 * mixed.target + 0.2 * mixed.interferers[0] + 1e-3 * hiss)
        mixtures.append(mixed.mixture)
        references.append(mixed.target)
    stem, mixture, reference = (
        torch.from_numpy(np.stack(each)).to(device) for each in (stems, mixtures, references)
    )
    return stem, mixture, reference


def torchmetrics_pair(signals: Signals) -> torch.Tensor:
    """SDR of stem and mixture, clip by clip, [2, B]."""
    stem, mixture, reference = signals
    return torch.stack(
        [
            torch.stack(
                [signal_distortion_ratio(x, y) for x, y in zip(each, reference, strict=True)]
            )
            for each in (stem, mixture)
        ]
    )


def our_pair(signals: Signals) -> torch.Tensor:
    """The same by `sdr_pair_db`."""
    return torch.stack(list(metrics.sdr_pair_db(*signals)))


def our_blocks(signals: Signals) -> list[metrics.Outcomes]:
    """All nine ratios, in blocks of 4 s."""
    scorer = metrics.PairScorer()
    for begin in range(0, signals[0].shape[1], BLOCK_SAMPLES):
        scorer.update(*(signal[:, begin : begin + BLOCK_SAMPLES] for signal in signals))
    return scorer.scores()


def measure(
    calls: dict[str, Callable[[Signals], Any]], signals: Signals, rounds: int
) -> dict[str, tuple[float, float]]:
    """The fastest wall and processor times of each call in ms, the calls taking turns."""
    best = {name: (float("inf"), float("inf")) for name in calls}
    for _ in range(rounds + 1):  # the first round warms up
        for name, call in calls.items():
            began, began_cpu = time.perf_counter(), time.process_time()
            call(signals)
            if signals[0].is_cuda:
                torch.cuda.synchronize()
            wall, cpu = time.perf_counter() - began, time.process_time() - began_cpu
            best[name] = (min(best[name][0], wall * 1e3), min(best[name][1], cpu * 1e3))
    return best


def run(argv: Sequence[str] | None = None) -> None:
    """Prints one table a batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"torch {torch.__version__}, {device} ({name}), {options.threads} thread(s)")
    for batch_size in options.batch_sizes:
        signals = load(batch_size, options.device)
        exact = tuple(signal.double() for signal in signals)
        difference_db = (torchmetrics_pair(exact) - our_pair(signals)).abs().max().item()
        calls = {
            "torchmetrics, twice": torchmetrics_pair,
            "sdr_pair_db": our_pair,
            "score_pair (all nine)": lambda each: metrics.score_pair(*each),
            "PairScorer (all nine, 4 s blocks)": our_blocks,
        }
        times = measure(calls, signals, options.rounds)
        wall_before, cpu_before = times["torchmetrics, twice"]
        print(f"\nbatch {batch_size}: largest difference {difference_db:.1e} dB")
        print(f"{'':34} {'wall ms':>9} {'faster':>7} {'cpu ms':>9} {'faster':>7}")
        for call, (wall, cpu) in times.items():
            row = f"{wall:9.1f} {wall_before / wall:6.1f}x {cpu:9.1f} {cpu_before / cpu:6.1f}x"
            print(f"{call:34} {row}")


if __name__ == "__main__":
    run()
