"""The plainly written network against ours, side by side in one run, with outputs compared.

``python bench/network.py [--device cuda] [--batches 1 4 8] [--output FILE]``; needs the test
dependencies. Weights and signals are the formula's of ``tests/golden``, so that outputs mean
something without the published files. Forms take turns; the medians of the rounds are compared. On
a CPU two times are given: of the wall, and of the processors, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import copy
import platform
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "tests"))

import network_forms as forms
import numpy as np
import torch
from reference_style import ReferenceStyle
from torch import Tensor

from golden import synth
from model import metrics
from model.config import PUBLISHED
from model.systems import Condition
from model.systems.clapsep.network import ClapSep, compile_separator

DURATION_S = PUBLISHED.signal.window_samples / PUBLISHED.signal.sample_rate_hz
OUTPUT_TOLERANCE = 2e-6
QUERIES = 4
Form = Callable[[], Tensor]


def scene(batch: int, device: str) -> tuple[Tensor, Tensor, Tensor, Condition]:
    """Mixtures at both rates, their targets, and queries."""
    signal, audio = PUBLISHED.signal, PUBLISHED.clap.audio
    rate, length = signal.sample_rate_hz, signal.window_samples
    seeds = range(1000, 1000 + batch)
    mixture = np.stack([synth.mixture(seed, rate, length) for seed in seeds])
    heard = np.stack(
        [synth.mixture(seed, audio.sample_rate_hz, audio.clip_samples) for seed in seeds]
    )
    target = 0.05 * np.stack([synth.source(seed, rate, length) for seed in seeds])
    queries = np.stack([synth.unit_embed(1100 + i) for i in range(2 * batch)])
    positive, negative = torch.from_numpy(queries).to(device).chunk(2)
    first, second, third = (
        torch.from_numpy(each.astype(np.float32)).to(device) for each in (mixture, heard, target)
    )
    return first, second, third, Condition(positive=positive, negative=negative)


def side_by_side(network: dict[str, ReferenceStyle | ClapSep], batch: int, rounds: int) -> float:
    """Times every form on one batch; returns the difference of the outputs in float32."""
    device = next(network["reference"].parameters()).device.type
    mixture, heard, target, condition = scene(batch, device)

    def of(each: ReferenceStyle | ClapSep) -> Form:
        if isinstance(each, ReferenceStyle):
            return lambda: each(mixture, condition, heard)
        return lambda: each.separate(mixture, condition, heard)

    timed = forms.interleaved({name: of(each) for name, each in network.items()}, rounds, device)
    reference = timed["reference"]
    print(f"\nbatch {batch}: seconds a clip of {DURATION_S:.0f} s (wall, processors), ratios, ...")
    sdr = metrics.sdr_db(reference.output.cpu(), target.cpu())
    for name, own in timed.items():
        error = (own.output - reference.output).abs().max().item()
        snr_db = metrics.snr_db(own.output.cpu(), reference.output.cpu()).min().item()
        change = (metrics.sdr_db(own.output.cpu(), target.cpu()) - sdr).abs().max().item()
        print(
            f"  {name:14} {own.wall_s / batch:7.4f} {own.cpu_s / batch:7.4f}"
            f"  {reference.wall_s / own.wall_s:5.2f}x {reference.cpu_s / own.cpu_s:5.2f}x"
            f"  real-time factor {own.wall_s / batch / DURATION_S:.4f}"
            f"  max |difference| {error:.1e}  SNR {snr_db:5.1f} dB  SDR changed {change:.4f} dB",
            flush=True,
        )
    return (timed["ours fp32"].output - reference.output).abs().max().item()


def shared_queries(network: dict[str, ClapSep], rounds: int) -> None:
    """One mixture with several queries, against as many separate passes."""
    device = next(network["ours fp32"].parameters()).device.type
    mixture, heard, _, _ = scene(1, device)
    *_, condition = scene(QUERIES, device)
    rows = torch.zeros(QUERIES, dtype=torch.int64, device=device)
    print(f"\none mixture, {QUERIES} queries: seconds (wall, processors)")
    for name, own in network.items():

        def together(own: ClapSep = own) -> Tensor:
            return own.decode(own.encode(mixture, heard).index(rows), condition)

        def apart(own: ClapSep = own) -> Tensor:
            chosen = [condition.index(torch.tensor([i], device=device)) for i in range(QUERIES)]
            return torch.cat([own.separate(mixture, each, heard) for each in chosen])

        timed = forms.interleaved({"together": together, "apart": apart}, rounds, device)
        one, many = timed["together"], timed["apart"]
        print(
            f"  {name:14} shared {one.wall_s:.3f} {one.cpu_s:.3f}"
            f"  separate {many.wall_s:.3f} {many.cpu_s:.3f}"
            f"  ratio {one.wall_s / many.wall_s:.2f} {one.cpu_s / many.cpu_s:.2f}"
            f"  max |difference| {(one.output - many.output).abs().max().item():.1e}",
            flush=True,
        )


def sizes(reference: ReferenceStyle, ours: ClapSep) -> dict[str, float]:
    """Prints parameters and FLOPs; returns the latter."""
    device = next(ours.parameters()).device.type
    mixture, heard, _, condition = scene(1, device)
    counted = {
        "reference": forms.count_flops(lambda: reference(mixture, condition, heard)),
        "encoder": forms.count_flops(lambda: ours.encode(mixture, heard)),
        "ours": forms.count_flops(lambda: ours.separate(mixture, condition, heard)),
    }
    parts = {"encoder": ours.encoder, "decoder": ours.decoder}
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    print("\nparameters " + ", ".join(f"{name} {each:,}" for name, each in count.items()))
    print(
        "GFLOP a clip, Fourier transforms by FFT not counted: "
        + ", ".join(f"{name} {each / 1e9:.1f}" for name, each in counted.items())
    )
    return counted


def matrix_rates(device: str, flops: float, seconds: dict[str, float]) -> None:
    """What part of the device's measured matrix rate the network reaches."""
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        rate = forms.matrix_rate(device, dtype)
        reached = flops / seconds[name]
        print(
            f"  {name}: matrix product of 4096 {rate / 1e9:,.0f} GFLOP/s, network"
            f" {reached / 1e9:,.0f} GFLOP/s ({100 * reached / rate:.0f} %)",
            flush=True,
        )


def measure(options: argparse.Namespace) -> float:
    """Everything in this process."""
    reference, ours = forms.formula_networks(options.device)
    coarse = copy.deepcopy(ours)
    coarse.precision = "bf16"
    network: dict[str, ReferenceStyle | ClapSep] = {"reference": reference}
    own = {"ours fp32": ours, "ours bf16": coarse.prepare()}
    if options.device == "cuda":
        for name in tuple(own):
            twin = copy.deepcopy(own[name])
            if compile_separator(twin, options.device):
                own[f"{name} compiled"] = twin
    network.update(own)
    with torch.inference_mode():
        flops = sizes(reference, ours)["ours"]
        errors = [side_by_side(network, batch, options.rounds) for batch in options.batches]
        shared_queries({name: own[name] for name in ("ours fp32", "ours bf16")}, options.rounds)
        mixture, heard, _, condition = scene(max(options.batches), options.device)
        batch = len(mixture)
        timed = forms.interleaved(
            {
                "fp32": lambda: ours.separate(mixture, condition, heard),
                "bf16": lambda: coarse.separate(mixture, condition, heard),
            },
            options.rounds,
            options.device,
        )
        print(f"\nmatrix rate at batch {batch}")
        matrix_rates(
            options.device, batch * flops, {name: each.cost_s for name, each in timed.items()}
        )
    return max(errors)


def run(argv: list[str] | None = None) -> None:
    """Prints the measurements; fails where outputs differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 4, 8))
    parser.add_argument("--rounds", type=int, default=5, help="measured, after one that is not")
    parser.add_argument("--num_threads", type=int, default=1, help="OpenMP threads")
    parser.add_argument("--machine", default=f"{platform.machine()}")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.num_threads)
    print(
        f"{options.machine}, torch {torch.__version__}, {options.device},"
        f" {options.num_threads} OpenMP threads, other work: {forms.load():.1f} processes"
    )
    error = measure(options)
    if options.device == "cpu":
        forms.sweep_memory(max(options.batches))
        forms.sweep_threads()
    print(f"\nother work at the end: {forms.load():.1f} processes")
    if error > OUTPUT_TOLERANCE and options.device == "cpu":
        sys.exit(f"outputs differ by {error:.1e}, more than {OUTPUT_TOLERANCE:.0e}")


if __name__ == "__main__":
    run()
