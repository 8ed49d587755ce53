"""Cross-faded windows against plain concatenation: quality, clicks at the borders, and cost.

``python bench/overlap.py [--model clapsep-mini] [--seconds 23]``

Each bundled clip, repeated to ``--seconds``, is mixed at 0 dB with its successor and asked for by
its caption; the successor's caption is the negative query. A click is a step from one sample to
the next: the bench gives the root mean square of the stem's second difference across the borders
of plain concatenation, relative to that within 20 ms of them. Without a click it is about 1.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import numpy.typing as npt
import soundfile
import torch

from model import metrics, registry, signal
from model import signal as audio
from model.signal.windowing import WindowPlan, separate_array
from model.systems import Condition

EXAMPLES = Path(__file__).resolve().parent.parent / "manifests" / "examples" / "audio"
OVERLAPS = (0.0, 0.125, 0.25, 0.5)
AROUND_S = 0.02

Samples = npt.NDArray[np.float32]


def sources(rate_hz: int, num_samples: int) -> list[tuple[str, Samples]]:
    """The bundled clips with their captions, repeated to one length."""
    with (EXAMPLES / "sources.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    found = []
    for row in rows:
        if row["file"].startswith("mixture"):
            continue
        samples, source_hz = soundfile.read(EXAMPLES / row["file"], dtype="float32", always_2d=True)
        mono = audio.resample(audio.to_mono(samples.T), source_hz, rate_hz)
        # Rolled: the clips' own seams, at 5 s, must not fall on the windows' borders.
        found.append((row["content"], np.roll(np.resize(mono, num_samples), int(1.7 * rate_hz))))
    return found


def step(signal: Samples, borders: list[int], radius: int) -> float:
    """Size of the second difference across the borders, relative to that around them."""
    bend = np.square(np.diff(signal, 2))
    across = np.mean([bend[border - 2 : border] for border in borders])
    around = np.mean([bend[border - radius : border + radius] for border in borders])
    return float(np.sqrt(across / around))


def main() -> None:
    """Measures every overlap on the same mixtures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="clapsep-mini")
    parser.add_argument("--seconds", type=float, default=23.0)
    arguments = parser.parse_args()
    loaded = registry.load(arguments.model)
    separator, rate_hz = loaded.separator, loaded.separator.sample_rate_hz
    window = separator.window_samples
    clips = sources(rate_hz, int(arguments.seconds * rate_hz))
    embedded = loaded.query_encoder.embed_text([caption for caption, _ in clips])
    borders = list(range(window, len(clips[0][1]) - rate_hz, window))
    radius = int(AROUND_S * rate_hz)
    print(f"{arguments.model}: {len(clips)} mixtures of {arguments.seconds:g} s, "
          f"windows of {window / rate_hz:g} s")  # fmt: skip
    print("overlap  SDRi dB (512-tap)  SI-SDRi dB  step at borders  windows  seconds")
    for overlap in OVERLAPS:
        plan = WindowPlan(window_samples=window, overlap=overlap)
        gains, steps, started = [], [], time.perf_counter()
        for index, (_, target) in enumerate(clips):
            other = (index + 1) % len(clips)
            mixed = signal.mix(target, [clips[other][1]], 0.0)

            def answer(batch: torch.Tensor, pair: tuple[int, int] = (index, other)) -> torch.Tensor:
                rows = [embedded[number].expand(len(batch), -1) for number in pair]
                with torch.inference_mode():
                    condition = Condition(positive=rows[0], negative=rows[1])
                    return separator.separate(batch, condition)

            stem = separate_array(mixed.mixture[None], answer, plan, 8)[0]
            scores = metrics.score_pair(
                *(torch.from_numpy(signal)[None] for signal in (stem, mixed.mixture, mixed.target))
            )[0]
            gains.append((scores["sdri_db"], scores["si_sdri_db"]))
            steps.append(step(stem, borders, radius))
        sdri, si_sdri = np.mean(gains, axis=0)
        count = len(plan.starts(len(clips[0][1])))
        print(f"{overlap:7.3f}  {sdri:17.3f}  {si_sdri:10.3f}  {np.mean(steps):15.2f}  "
              f"{count:7d}  {time.perf_counter() - started:7.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
