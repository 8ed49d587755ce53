"""What a GPU is kept busy with: the bare network, with metrics, the whole job; and what limits it.

    python bench/gpu.py                                  # on CUDA; needs the test dependencies
    python bench/gpu.py --device cpu --clips 4 --rounds 1 --precision fp32

The network has the published size and random weights. Rates are clips of 10 s a second, all in one
process and one run: the plainly written network in float32, ours, ours with scores, and the job
from FLAC files to FLAC and Parquet. A stage of the job could do as many clips a second as its busy
time allows on its processors; the least of these is the limit.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "tests"))

import network_forms as forms
import numpy as np
import torch
from torch import Tensor

import pipeline
from model import metrics
from model.config import PUBLISHED
from model.inference import Network, NetworkSettings, WindowQueries
from model.systems import Condition
from model.systems.clapsep.network import ClapSep, compile_separator
from transforms import model_cache, scoring

WANTED_SPEEDUP, WANTED_JOB_SHARE = 8.0, 0.7
WANTED_DIFFERENCE, WANTED_DIFFERENCE_DB = 1e-3, 0.05
BESIDE = "(beside the network)"


def clips_of(count: int) -> tuple[Tensor, Tensor, Condition]:
    """Noise at both rates, and queries, on the CPU."""
    signal, audio = PUBLISHED.signal, PUBLISHED.clap.audio
    draw = torch.Generator().manual_seed(0)
    mixture = 0.1 * torch.randn(count, signal.window_samples, generator=draw)
    heard = 0.1 * torch.randn(count, audio.clip_samples, generator=draw)
    query = torch.randn(2, count, PUBLISHED.clap.embedding_dim, generator=draw)
    first, second = torch.nn.functional.normalize(query, dim=-1)
    return mixture, heard, Condition(positive=first, negative=second)


def moved(condition: Condition, device: str) -> Condition:
    """The queries on a device."""
    return Condition(positive=condition.positive.to(device), negative=condition.negative.to(device))


def bare_networks(device: str, batch: int, rounds: int, precision: str) -> dict[str, float]:
    """Clips a second of one batch that lies on the device, by form."""
    states = forms.random_states()
    reference = forms.reference_network(states).to(device)
    ours = {"ours fp32": forms.our_network(states).to(device)}
    if precision == "bf16":
        ours["ours bf16"] = forms.our_network(states, "bf16").to(device)
    if device != "cpu":
        compiled = forms.our_network(states, "bf16" if precision == "bf16" else "fp32").to(device)
        if compile_separator(compiled, device):
            ours[f"ours {precision} compiled"] = compiled
    mixture, heard, condition = clips_of(batch)
    x, y, asked = mixture.to(device), heard.to(device), moved(condition, device)

    def of(network: ClapSep) -> Callable[[], Tensor]:
        return lambda: network.separate(x, asked, y)

    calls = {"reference fp32": lambda: reference(x, asked, y)}
    calls |= {name: of(network) for name, network in ours.items()}
    with torch.inference_mode():
        timed = forms.interleaved(calls, rounds, device)
        flops = forms.count_flops(calls["ours fp32"]) / batch
    rates = {name: batch / each.wall_s for name, each in timed.items()}
    for name, rate in rates.items():
        print(f"  {name:22} {rate:9.2f} clips/s  {rate / rates['reference fp32']:6.2f}x")
    _print_share(rates, flops, device)
    return rates


def _print_share(rates: Mapping[str, float], flops: float, device: str) -> None:
    """How much of what the device does in one large product the network's products are."""
    for name, rate in rates.items():
        dtype = torch.bfloat16 if "bf16" in name else torch.float32
        peak = forms.matrix_rate(device, dtype, 8192 if device != "cpu" else 2048)
        print(
            f"  {name:22} {flops * rate / 1e12:9.3f} TFLOP/s of {peak / 1e12:.3f} measured"
            f" ({100 * flops * rate / peak:.0f} %)"
        )


def agreement(device: str) -> None:
    """The same weights on the CPU and on the device, in float32."""
    states = forms.random_states()
    mixture, heard, condition = clips_of(2)
    found = {}
    with torch.inference_mode():
        for where in ("cpu", device):
            network = forms.our_network(states).to(where)
            stems = network.separate(mixture.to(where), moved(condition, where), heard.to(where))
            found[where] = stems.cpu()
    scale = found["cpu"].abs().max()
    difference = ((found[device] - found["cpu"]).abs().max() / scale).item()
    sdr_db = [metrics.sdr_db(found[where], mixture) for where in ("cpu", device)]
    change_db = (sdr_db[1] - sdr_db[0]).abs().max().item()
    holds = difference <= WANTED_DIFFERENCE and change_db <= WANTED_DIFFERENCE_DB
    print(f"  stems differ by {difference:.1e} of the peak, SDR by {change_db:.4f} dB: {holds}")


def with_metrics(model: str, device: str, precision: str, clips: int, batch: int) -> float:
    """Clips a second of the network and all scores, from arrays in memory."""
    choice = model_cache.ModelChoice(name=model, device=device, precision=precision)
    cores = len(os.sched_getaffinity(0))
    network = Network(
        model_cache.load_model(choice).separator,
        device,
        NetworkSettings(batch_size=batch, num_threads=cores),
    )
    scorer = scoring.Scoring(
        scoring.ScoringSettings(
            scorer=model_cache.ScorerChoice(model=choice),
            device=device,
            model_rate_hz=network.separator.sample_rate_hz,
            batch_size=batch,
            num_threads=cores,
        )
    )
    mixtures = clips_of(batch)[0].numpy()
    query = np.full((1, network.separator.embedding_dim), 0.05, dtype=np.float32)

    def once(count: int) -> None:
        windows = [WindowQueries(samples=m[None], positive=query, negative=query) for m in mixtures]
        stems = [answer.samples[0, 0] for answer in network.separate(windows[:count])]
        scorer.ratios(stems, mixtures[:count], mixtures[:count])
        scorer.embed([*mixtures[:count], *stems])

    once(batch)
    start_s = time.perf_counter()
    for begin in range(0, clips, batch):
        once(min(batch, clips - begin))
    return clips / (time.perf_counter() - start_s)


def whole_job(
    folder: Path, model: str, device: str, precision: str, clips: int, batch: int
) -> tuple[float, dict[str, float]]:
    """Clips a second from files to Parquet, and of how many each stage alone would be capable."""
    manifest = pipeline.write_clips(folder, clips)
    flags = ("--device", device, "--precision", precision)
    with pipeline.stages_timed() as timer:
        pipeline.whole_job(model, manifest, folder / "warm", batch, *flags)
        timer.spent_s.clear()
        took_s = pipeline.whole_job(model, manifest, folder / "out", batch, *flags)
    cores = len(os.sched_getaffinity(0))
    able = {
        stage: clips / spent_s * (cores if BESIDE in stage else 1)
        for stage, spent_s in timer.spent_s.items()
        if spent_s > 0 and stage != "score: CLAP embeddings"  # a part of "everything"
    }
    return clips / took_s, able


def run(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args(argv)
    batch = min(given.batch_size, given.clips)
    name = torch.cuda.get_device_name() if given.device != "cpu" else "CPU"
    print(f"{name}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}")
    print(f"bare network, batch {batch}, wanted at least {WANTED_SPEEDUP:g}x on a GPU")
    rates = bare_networks(given.device, batch, given.rounds, given.precision)
    print("agreement with the CPU")
    agreement(given.device)
    bare = rates[f"ours {given.precision}"]
    with tempfile.TemporaryDirectory() as folder:
        model = pipeline.write_model(Path(folder))
        scored = with_metrics(model, given.device, given.precision, given.clips, batch)
        print(
            f"network and metrics      {scored:9.2f} clips/s  {100 * scored / bare:.0f} % of bare"
        )
        job, able = whole_job(
            Path(folder), model, given.device, given.precision, given.clips, batch
        )
    print(
        f"whole job                {job:9.2f} clips/s  {100 * job / bare:.0f} % of bare, wanted at"
    )
    print(f"  least {100 * WANTED_JOB_SHARE:.0f} %, or a stage that can do no more; what each can:")
    for stage, rate in sorted(able.items(), key=lambda each: each[1]):
        print(f"  {rate:9.2f} clips/s  {stage}")
    print(f"limiting stage: {min(able, key=lambda stage: able[stage])}")


if __name__ == "__main__":
    run()
