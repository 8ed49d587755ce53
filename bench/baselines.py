"""Real-time factor and memory of every system, in one run: ``python bench/baselines.py``.

Each system runs in a process of its own, on weights that were not trained (which costs the same),
over one window of 10 s of a mono mixture, with one query; USS takes it in windows of 2 s. The
fastest of ``--repeats`` passes counts, after one that does not. ``cpu_seconds`` is the time that
the process computed, over all threads, and does not grow when others compute beside it;
``seconds`` is the time that passed. Memory is the process's peak above what it held before the
network was built.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
DURATION_S = 10
SYSTEMS = ("clapsep-hybrid", "clapsep-mini", "audiosep", "lass-net", "uss", "waveformer",
           "oracle-irm", "mixture")  # fmt: skip
_BYTES_OF_MAXRSS = 1 if sys.platform == "darwin" else 1024


def build(system: str) -> Any:
    """A separator without trained weights."""
    import torch

    from model import config
    from model.systems import audiosep, lass, reference_points, uss, waveformer
    from model.systems.clapsep.network import ClapSep
    from model.systems.waveformer import WaveformerConfig

    torch.manual_seed(0)
    builders = {
        "clapsep-hybrid": lambda: ClapSep(config.PUBLISHED),
        "clapsep-mini": lambda: ClapSep(config.MINI),
        "audiosep": audiosep.build_separator,
        "lass-net": lass.build_separator,
        "uss": uss.build_separator,
        "waveformer": lambda: waveformer.Waveformer(WaveformerConfig()),
        "oracle-irm": lambda: reference_points.OracleIrm(config.SignalConfig()),
        "mixture": lambda: reference_points.MixtureSeparator(config.SignalConfig()),
    }
    separator = builders[system]()
    if isinstance(separator, torch.nn.Module):
        for parameter in separator.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        separator.prepare()
    return separator


def measure(system: str, repeats: int, num_threads: int) -> dict[str, Any]:
    """One system, in this process."""
    import torch

    from model.signal.windowing import WindowPlan
    from model.systems import Condition

    for name in ("clapsep", "baselines.audiosep", "baselines.lass"):
        importlib.import_module(f"model.{name}")
    torch.set_num_threads(num_threads)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    separator = build(system)
    num_samples = DURATION_S * separator.sample_rate_hz
    mixture = 0.1 * torch.randn(1, num_samples)
    query = torch.randn(1, separator.embedding_dim)
    plan = WindowPlan(window_samples=separator.window_samples, overlap=0.0)

    def once() -> tuple[float, float]:
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            for start in plan.starts(num_samples):
                window = mixture[:, start : start + separator.window_samples]
                reference = window if separator.capabilities.needs_reference else None
                asked = Condition(positive=query, negative=0 * query, reference=reference)
                separator.separate(window, asked)
        return time.perf_counter() - start_s, time.process_time() - start_cpu_s

    passes = [once() for _ in range(repeats + 1)][1:]
    wall_s, cpu_s = (min(each) for each in zip(*passes, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    is_network = isinstance(separator, torch.nn.Module)
    return {
        "system": system,
        "parameters": sum(p.numel() for p in separator.parameters()) if is_network else 0,
        "cpu_seconds": round(cpu_s, 4),
        "seconds": round(wall_s, 4),
        "real_time_factor": round(wall_s / DURATION_S, 4),
        "peak_mb": round((peak - before) * _BYTES_OF_MAXRSS / 1e6),
    }


def run(argv: list[str] | None = None) -> None:
    """Prints a line for each system, and writes them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num_threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--here", action="store_true", help="measure in this process")
    options = parser.parse_args(argv)
    if options.here:
        (system,) = options.systems
        print(json.dumps(measure(system, options.repeats, options.num_threads)))
        return
    lines = []
    for system in options.systems:
        shared = ["--repeats", str(options.repeats), "--num_threads", str(options.num_threads)]
        command = [sys.executable, __file__, "--here", "--systems", system, *shared]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        lines.append(result.stdout.strip())
        print(lines[-1], flush=True)
    if options.output is not None:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run()
