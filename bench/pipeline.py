"""The whole job against a bare loop over the same network and batches, and where its time goes.

    python -m bench.pipeline                  # the full-size network with random weights
    python -m bench.pipeline --model clapsep-mini --clips 48

They are run in turn, several times, in one process, and the fastest of each is compared: other load
on the machine only ever adds time. A bare loop has every input in memory and keeps no output: it
separates all clips, and embeds mixtures, stems and references for CLAPScores as the job does.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import soundfile
import torch

from model.checkpoints import convert
from model.checkpoints.loading import Networks, build
from model.clap import Clap
from model.config import MINI, PUBLISHED
from model.inference import Network, NetworkSettings, WindowQueries
from model.signal.stft import sinc_resample
from model.systems import Condition
from model.systems.clapsep.network import ClapSep
from pipelines import separate
from transforms import model_cache, queries, reading, scoring, separation, writing
from transforms.tables import metrics_rows

SECONDS = 10.0
LOOP = "bare loop, torch's own threads"
SAME_THREADS = "bare loop, the job's threads"


@dataclasses.dataclass
class Timer:
    """Seconds spent in each stage, summed over threads."""

    spent_s: dict[str, float] = dataclasses.field(default_factory=dict)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        @functools.wraps(function)
        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            start_s = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                with self.lock:
                    took_s = time.perf_counter() - start_s
                    self.spent_s[stage] = self.spent_s.get(stage, 0.0) + took_s

        return wrapper


@contextlib.contextmanager
def stages_timed() -> Iterator[Timer]:
    """Times the functions that the stages consist of."""
    timer = Timer()
    with contextlib.ExitStack() as stack:
        for stage, owner, name in (
            ("read and resample (beside the network)", reading, "read"),
            ("embed queries", queries, "embed_query_texts"),
            ("separate", separation.Separation, "separate"),
            ("score: CLAP embeddings", scoring.Scoring, "embed"),
            ("score: everything", scoring.Scoring, "score"),
            ("resample, encode, write (beside the network)", writing, "write_clip"),
            ("journal", metrics_rows, "write_piece"),
        ):
            function = getattr(owner, name)
            stack.enter_context(mock.patch.object(owner, name, timer.timed(stage, function)))
        yield timer


def write_model(folder: Path) -> str:
    """The published network's shapes with random weights; queries by the bundled text encoder."""
    torch.manual_seed(0)
    clap = dataclasses.replace(PUBLISHED.clap, text=MINI.clap.text)
    config = dataclasses.replace(PUBLISHED, clap=clap)
    networks = Networks(config=config, clap=build(lambda: Clap(clap)).eval(),
                        separator=build(lambda: ClapSep(config)).eval())  # fmt: skip
    for parameter in [*networks.clap.parameters(), *networks.separator.parameters()]:
        torch.nn.init.normal_(parameter, std=0.02)
    convert.save(str(folder / "full.safetensors"), networks)
    return str(folder / "full.safetensors")


def write_clips(folder: Path, count: int) -> Path:
    """Clips of noise at 44.1 kHz in FLAC, with references, and their manifest."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(count):
        samples = 0.1 * rng.standard_normal((2, round(44_100 * SECONDS)))
        names = [str(folder / f"{kind}{number}.flac") for kind in ("mixture", "reference")]
        soundfile.write(names[0], samples.sum(axis=0), 44_100)
        soundfile.write(names[1], samples[0], 44_100)
        row = {"id": f"{number}", "mixture_uri": names[0], "reference_uri": names[1],
               "positive_text": f"sound {number % 7}", "negative_text": "noise"}  # fmt: skip
        lines.append(json.dumps(row) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "rows.jsonl"


def bare_loop(model: str, count: int, batch_size: int) -> float:
    """Seconds for the network's part alone, on all cores."""
    loaded = model_cache.load_model(model_cache.ModelChoice(name=model))
    separator, clap = loaded.separator, loaded.query_encoder
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # the job leaves it at one a thread
    rng = torch.Generator().manual_seed(0)
    samples = round(separator.sample_rate_hz * SECONDS)
    mixtures = 0.1 * torch.randn(count, samples, generator=rng)
    query = torch.nn.functional.normalize(torch.randn(count, separator.embedding_dim), dim=-1)
    start_s = time.perf_counter()
    with torch.inference_mode():
        for begin in range(0, count, batch_size):
            batch, asked = (each[begin : begin + batch_size] for each in (mixtures, query))
            stems = separator.separate(batch, Condition(positive=asked, negative=asked))
            heard = sinc_resample(
                torch.cat([batch, stems, stems]), separator.sample_rate_hz, clap.sample_rate_hz
            )
            clap.embed_audio(list(heard))
    return time.perf_counter() - start_s


def bare_threads(model: str, count: int, batch_size: int) -> float:
    """Seconds for the network's part alone, in the threads that the job uses."""
    choice, cores = model_cache.ModelChoice(name=model), len(os.sched_getaffinity(0))
    settings = NetworkSettings(batch_size=batch_size, num_threads=cores)
    separator = model_cache.load_model(choice).separator
    network = Network(separator, "cpu", settings)
    own = model_cache.ScorerChoice(model=choice)
    rate_hz = separator.sample_rate_hz
    scorer = scoring.Scoring(
        scoring.ScoringSettings(
            scorer=own, model_rate_hz=rate_hz, batch_size=batch_size, num_threads=cores
        )
    )
    rng = np.random.default_rng(0)
    mixtures = 0.1 * rng.standard_normal((count, 1, round(rate_hz * SECONDS)), dtype=np.float32)
    query = np.full((1, separator.embedding_dim), 0.05, dtype=np.float32)
    start_s = time.perf_counter()
    for begin in range(0, count, batch_size):
        batch = mixtures[begin : begin + batch_size]
        answers = network.separate(
            [WindowQueries(samples=each, positive=query, negative=query) for each in batch]
        )
        stems = [answer.samples[0, 0] for answer in answers]
        scorer.embed([*batch[:, 0], *stems, *stems])
    return time.perf_counter() - start_s


def whole_job(model: str, manifest: Path, output: Path, batch_size: int, *flags: str) -> float:
    """Seconds for the job, models loaded."""
    start_s = time.perf_counter()
    where = ["--manifest", str(manifest), "--output", str(output), "--model", model]
    code = separate.run([*where, "--batch_size", str(batch_size), "--progress", "none", *flags])
    if code != 0:
        raise RuntimeError(f"exit code {code}")
    return time.perf_counter() - start_s


def report(runs: Mapping[str, Sequence[float]], timer: Timer, count: int) -> None:
    """Prints the comparison and the stages."""
    for name, seconds in runs.items():
        print(f"{name:36} {min(seconds):7.2f} s  (of {', '.join(f'{s:.2f}' for s in seconds)})")
    job, *loops = (min(runs[name]) for name in ("whole job", LOOP, SAME_THREADS))
    print(f"overhead over the faster loop        {100 * (job / min(loops) - 1):7.1f} %")
    print(f"{count} clips of {SECONDS:g} s; busy seconds by stage, a run, summed over threads:")
    for stage, spent_s in timer.spent_s.items():
        print(f"  {spent_s / len(runs['whole job']):8.2f}  {stage}")


def run(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="default: the full-size network with random weights")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name, stages_timed() as timer:
        folder = Path(name)
        model = given.model or write_model(folder)
        manifest = write_clips(folder, given.clips)
        bare_loop(model, 1, 1)
        model_cache.load_model(model_cache.ModelChoice(name=model)).query_encoder.embed_text(
            ["warm"]
        )
        runs: dict[str, list[float]] = {LOOP: [], SAME_THREADS: [], "whole job": []}
        spent_s: dict[str, float] = {}
        for repeat in range(given.repeats):
            runs[LOOP].append(bare_loop(model, given.clips, given.batch_size))
            runs[SAME_THREADS].append(bare_threads(model, given.clips, given.batch_size))
            timer.spent_s = spent_s
            output = folder / f"out{repeat}"
            runs["whole job"].append(whole_job(model, manifest, output, given.batch_size))
            timer.spent_s = {}
        timer.spent_s = spent_s
        report(runs, timer, given.clips)


if __name__ == "__main__":
    run()
