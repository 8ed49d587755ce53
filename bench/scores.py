"""What CLAPScores cost: scored runs and unscored ones of one manifest, in turns.

    python bench/scores.py [--model clapsep-mini] [--mixtures 8] [--rounds 3] [--output FILE]
    python bench/scores.py --model full              # the published size, with made-up weights

Each mixture of 10 s is asked for a sound, against another, and both (P, N, P+N), and has a
reference. All runs happen in this process, with the models loaded, and are compared by the time of
the processor, which other programs disturb less than the clock of the wall. The first round, in
which everything is loaded, does not count.

The passes of the networks alone are timed beside them. A mixture is one pass of the separator's
encoder and three of its decoder; CLAPScores add five of CLAP's audio tower, for three stems, the
mixture and the reference, or three for ``--clap_scores stem``. No run that makes these passes
compares better than they do, but for what both runs do beside them.
"""

from __future__ import annotations

import argparse
import dataclasses
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
import torch

from bench.pipeline import write_model
from model.systems import Condition
from pipelines import separate
from transforms import model_cache, scoring

RATE_HZ, SECONDS = 32_000, 10
RUNS = {
    "--scorer none": ("--scorer", "none"),
    "--clap_scores all": (),
    "--clap_scores stem": ("--clap_scores", "stem"),
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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Seconds of the processor that passes of the networks take, for 10 s of audio each."""

    encoder: float
    decoder: float
    scorer: float

    def scored(self, signals: int) -> float:
        """What the passes of a mixture and three queries become by scoring some signals."""
        unscored = self.encoder + 3 * self.decoder
        return (unscored + signals * self.scorer) / unscored


def measured_passes(model: str, rounds: int) -> Passes:
    """Times the passes as the job makes them, on one thread; medians."""
    loaded = model_cache.load_model(model_cache.ModelChoice(name=model))
    separator = loaded.separator
    settings = scoring.ScoringSettings(
        scorer=model_cache.ScorerChoice(model=model_cache.ModelChoice(name=model)),
        model_rate_hz=separator.sample_rate_hz,
    )
    scorer = scoring.Scoring(settings)
    signals = 0.1 * np.random.default_rng(1).standard_normal((4, SECONDS * RATE_HZ), np.float32)
    cut = torch.from_numpy(signals).unfold(1, separator.window_samples, separator.window_samples)
    query = torch.nn.functional.normalize(torch.ones(4, separator.embedding_dim), dim=-1)
    asked = Condition(positive=query, negative=query)
    found: dict[str, list[float]] = {"encoder": [], "decoder": [], "scorer": []}
    with torch.inference_mode():
        for _ in range(rounds):
            times_s = [time.thread_time()]
            encoded = [separator.encode(windows) for windows in cut.unbind(1)]
            times_s.append(time.thread_time())
            for each in encoded:
                separator.decode(each, asked)
            times_s.append(time.thread_time())
            scorer.embed(list(signals))
            times_s.append(time.thread_time())
            for name, began_s, ended_s in zip(found, times_s, times_s[1:], strict=False):
                found[name].append((ended_s - began_s) / len(signals))
    return Passes(**{name: statistics.median(each) for name, each in found.items()})


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
        model = write_model(folder) if given.model == "full" else given.model
        manifest = write_manifest(folder, given.mixtures)
        for turn in range(given.rounds + 1):
            for name, flags in RUNS.items():
                seconds = run(model, manifest, folder / "out", flags)
                if turn:
                    found[name].append(seconds)
        passes = measured_passes(model, given.rounds)
    unscored = statistics.median(found["--scorer none"])
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
        f"of the networks alone, for {SECONDS} s: {passes.encoder:.3f} s the separator's encoder, "
        f"{passes.decoder:.3f} s its decoder, {passes.scorer:.3f} s CLAP's audio tower,",
        f"so that scores of five signals make {passes.scored(5):.2f} x of a mixture's passes, "
        f"those of its three stems {passes.scored(3):.2f} x",
        "",
    ]
    print("\n".join(lines))
    if given.output is not None:
        given.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
