"""What ``bench/network.py`` measures and how: the networks, times, memory, threads."""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from reference_style import ReferenceStyle
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.checkpoints import loading
from model.checkpoints.loading import assign, build
from model.config import PUBLISHED, TINY, ClapSepConfig
from model.systems import Condition
from model.systems.clapsep.network import ClapSep, Precision

States = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Timed:
    """Medians, and what came out."""

    wall_s: float
    cpu_s: float
    """Of all processors together; on a GPU the same as ``wall_s``."""
    output: Tensor

    @property
    def cost_s(self) -> float:
        """The less disturbed of the two."""
        return min(self.wall_s, self.cpu_s)


def formula_states() -> States:
    """Encoder, adapters and biases, decoder: the formula's weights in the published size."""
    sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "tests"))
    from golden import published

    clap = published.formula_state("clap", starts_with=("audio_branch.",))
    own = published.formula_state("clapsep", starts_with=("audio_branch.", "decoder_model."))
    return (
        {key.removeprefix("audio_branch."): value for key, value in clap.items()},
        _under("audio_branch.", own),
        _under("decoder_model.", own),
    )


def random_states(config: ClapSepConfig = PUBLISHED) -> States:
    """Numbers of no meaning, which cost the same."""
    network = build(lambda: ClapSep(config))
    draw = torch.Generator().manual_seed(0)

    def fill(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            key: torch.randn(value.shape, generator=draw).mul_(0.02).add_(key.endswith("_var"))
            for key, value in state.items()
            if value.is_floating_point() and not key.endswith(("melW", "attn_mask"))
        }

    encoder = fill(network.encoder.state_dict())
    adapters = {} if config.lora is None else loading.adapter_shapes(encoder, config.lora)
    return encoder, fill(adapters), fill(network.decoder.state_dict())


def reference_network(states: States, config: ClapSepConfig = PUBLISHED) -> ReferenceStyle:
    """The plainly written network, adapters unmerged."""
    encoder, tuned, decoder = states
    return ReferenceStyle(config, encoder, tuned, decoder)


def our_network(
    states: States,
    precision: Precision = "fp32",
    config: ClapSepConfig = PUBLISHED,
    device: str = "cpu",
) -> ClapSep:
    """Ours, adapters merged, prepared on a device."""
    encoder, tuned, decoder = states
    separator = build(lambda: ClapSep(config, precision))
    merged = {**encoder, **tuned}
    if config.lora is not None:
        merged = loading.merge_lora(merged, config.lora)
    computed = separator.encoder.state_dict()  # what weights do not hold; no classifier
    assign(separator.encoder, {key: merged.get(key, value) for key, value in computed.items()})
    given = separator.decoder.state_dict()
    assign(separator.decoder, {key: decoder.get(key, value) for key, value in given.items()})
    return separator.to(device).prepare()


def formula_networks(device: str) -> tuple[ReferenceStyle, ClapSep]:
    """Both, with the same weights."""
    states = formula_states()
    return reference_network(states).to(device), our_network(states, device=device)


def interleaved(
    calls: Mapping[str, Callable[[], Tensor]], rounds: int, device: str
) -> dict[str, Timed]:
    """Calls take turns; the first round warms up and does not count."""
    walls: dict[str, list[float]] = {name: [] for name in calls}
    processors: dict[str, list[float]] = {name: [] for name in calls}
    outputs: dict[str, Tensor] = {}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            _wait(device)
            start_s, start_cpu_s = time.perf_counter(), time.process_time()
            outputs[name] = call()
            _wait(device)
            walls[name].append(time.perf_counter() - start_s)
            processors[name].append(time.process_time() - start_cpu_s)
    costs = processors if device == "cpu" else walls
    return {
        name: Timed(
            wall_s=statistics.median(walls[name][1:]),
            cpu_s=statistics.median(costs[name][1:]),
            output=outputs[name],
        )
        for name in calls
    }


def matrix_rate(device: str, dtype: torch.dtype, size: int = 4096) -> float:
    """FLOP/s of one large linear layer, the better of ours and torch's."""
    from model.clap import audio

    x, weight = torch.randn(2, size, size, device=device, dtype=dtype)
    timed = interleaved({"product": lambda: audio.project(x, weight, None)}, 3, device)
    return 2 * size**3 / timed["product"].cost_s


def count_flops(call: Callable[[], object]) -> float:
    """Multiplications and additions of matrix products, convolutions and attention."""

    def product(x: Sequence[int], weight: Sequence[int], *_: object, **__: object) -> int:
        rows = 1
        for size in x[:-1]:
            rows *= size
        return 2 * rows * weight[0] * weight[1]

    def attention(query: Sequence[int], key: Sequence[int], *_: object, **__: object) -> int:
        batch, heads, length, width = query
        return 4 * batch * heads * length * key[2] * width

    operators: Any = torch.ops
    mapping = {
        operators.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    }
    if hasattr(operators.mkldnn, "_linear_pointwise"):
        mapping[operators.mkldnn._linear_pointwise] = product
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque call otherwise
    try:
        with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return float(counter.get_total_flops())


def sweep_memory(batch: int) -> None:
    """Each form in a process of its own: what it holds, and the peak of a forward, in MB."""
    print("\nmemory in MB above what the process held before the network was built")
    for form in ("reference", "fp32", "bf16"):
        for size in (1, batch):
            found = _in_process("--memory", form, "--batch", str(size))
            print(
                f"  {form:9} batch {size}: loaded {found['loaded']:5.0f}"
                f"  peak of a forward {found['peak']:5.0f}",
                flush=True,
            )


def sweep_threads(passes: int = 4) -> None:
    """Python threads that share one model, by OpenMP threads of each."""
    print("\nclips of 10 s a second: Python threads on one model x OpenMP threads each")
    cores = os.cpu_count() or 1
    for form in ("fp32", "bf16"):
        for threads in sorted({1, cores}):
            for openmp in sorted({1, cores}):
                found = _in_process(
                    "--threads", str(threads), "--passes", str(passes), "--form", form,
                    openmp=openmp,
                )  # fmt: skip
                print(
                    f"  {form} {threads} x {openmp}: {found['clips_per_s']:.2f} a second,"
                    f" {found['cpu_s']:.2f} s of the processors a clip",
                    flush=True,
                )


def load() -> float:
    """Processes that wanted a processor in the last minute."""
    return os.getloadavg()[0]


def _in_process(*arguments: str, openmp: int = 1) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": str(openmp)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def _forward(form: str, batch: int) -> Callable[[], Tensor]:
    """A forward of a network of random weights."""
    signal, audio = PUBLISHED.signal, PUBLISHED.clap.audio
    mixture = 0.1 * torch.randn(batch, signal.window_samples)
    heard = 0.1 * torch.randn(batch, audio.clip_samples)
    dim = PUBLISHED.clap.embedding_dim
    condition = Condition(positive=torch.randn(batch, dim), negative=torch.randn(batch, dim))
    if form == "reference":
        reference = reference_network(random_states())
        return lambda: reference(mixture, condition, heard)
    ours = our_network(random_states(), "bf16" if form == "bf16" else "fp32")
    return lambda: ours.separate(mixture, condition, heard)


def _resident_mb(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return float(status.split(f"{field}:")[1].split()[0]) / 1e3


def _memory(form: str, batch: int) -> dict[str, float]:
    with torch.inference_mode():  # loads the libraries
        tiny, dim = ClapSep(TINY).prepare(), TINY.clap.embedding_dim
        query = torch.zeros(1, dim)
        tiny.separate(torch.zeros(1, 5000), Condition(positive=query, negative=query))
    before = _resident_mb("VmRSS")
    forward = _forward(form, batch)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    loaded = _resident_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    with torch.inference_mode():
        forward()
    return {"loaded": loaded - before, "peak": _resident_mb("VmHWM") - before}


def _throughput(form: str, threads: int, passes: int) -> dict[str, float]:
    forward = _forward(form, 1)

    def once(_: int) -> None:
        with torch.inference_mode():
            forward()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(once, range(threads)))
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        list(pool.map(once, range(threads * passes)))
        wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    clips = threads * passes
    return {"clips_per_s": clips / wall_s, "cpu_s": cpu_s / clips}


def run(argv: list[str] | None = None) -> None:
    """One measurement in a process of its own, printed as JSON."""
    parser = argparse.ArgumentParser(description=run.__doc__)
    parser.add_argument("--memory", choices=("reference", "fp32", "bf16"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--form", default="fp32")
    options = parser.parse_args(argv)
    if options.memory is not None:
        print(json.dumps(_memory(options.memory, options.batch)))
    else:
        print(json.dumps(_throughput(options.form, options.threads, options.passes)))


if __name__ == "__main__":
    run()
