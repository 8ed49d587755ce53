"""What a GPU does with the network: each precision, eager, as CUDA graphs and compiled.

    python bench/gpu.py                          # torch, numpy and soundfile are enough
    python bench/gpu.py --output gpu.json        # or into the folder that $OUT names
    python bench/gpu.py --device cpu --small     # tries the script itself, in seconds
    python bench/gpu.py --job                    # the whole job too; needs the test dependencies

Rates are clips a second, of one process and one run, beside the plainly written network in float32
(``bench/reference_style.py``): the published size with made-up weights, and the bundled model with
its own, on mixtures of its example clips. Errors are against that plain network. What the product
runs on CUDA by default is ``graphs``. A step of the trainer is timed as well, and the kernels are
named that take the most time.

Everything but ``--job`` keeps within ``--budget_s``: what there is no time left for is named. What
was measured is written after each part, so that a run that is cut short leaves it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import bare  # noqa: F401  before all that imports the product
import counts
import network_forms as forms
import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from model import devices
from model.checkpoints.loading import build
from model.clap.audio import Encoder
from model.config import MINI, PUBLISHED, TINY, ClapSepConfig, PresenceConfig
from model.inference import (
    EAGER_CALLS,
    Graphs,
    Network,
    NetworkSettings,
    WindowQueries,
    forward_for,
)
from model.signal.stft import sinc_resample
from model.systems import Condition
from model.systems.clapsep.network import ClapSep, Listener, PresenceHead, compile_separator
from model.training.engine import MovingAverage, Optimiser
from model.training.settings import OptimiserSettings

ROOT = Path(__file__).resolve().parent.parent
WANTED = {"fp32": 1.6, "tf32": 4.0, "bf16": 8.0}
"""Rates in multiples of the plain network's, as CUDA graphs: issue 17."""
WANTED_STEP_MS, WANTED_JOB_SHARE = 60.0, 0.7
_PLAIN = "plain fp32"
_WARM = 2 * EAGER_CALLS + 2
_COMPILED = "compiled networks"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """Mixtures float32[B, T], the same at the encoder's rate, and B queries, on a device."""

    mixture: Tensor
    heard: Tensor
    condition: Condition


def machine(device: str) -> dict[str, Any]:
    """Names what measures."""
    found: dict[str, Any] = {
        "device": device,
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "versions": devices.versions(),
    }
    if device != "cpu":
        card = torch.cuda.get_device_properties(device)
        found |= {
            "card": card.name,
            "capability": f"{card.major}.{card.minor}",
            "memory_gib": round(card.total_memory / 2**30, 1),
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def precisions(device: str) -> list[str]:
    """Those that a device computes in."""
    found = []
    for precision in ("fp32", "tf32", "bf16"):
        with contextlib.suppress(ValueError):
            devices.require_precision(precision, device)
            found.append(precision)
    return found


def noise_scene(config: ClapSepConfig, batch: int, device: str) -> Scene:
    """Noise, and random queries."""
    draw = torch.Generator().manual_seed(0)
    mixture = 0.1 * torch.randn(batch, config.signal.window_samples, generator=draw)
    query = torch.randn(2, batch, config.clap.embedding_dim, generator=draw)
    return _scene(config, mixture, F.normalize(query, dim=-1), device)


def _scene(config: ClapSepConfig, mixture: Tensor, queries: Tensor, device: str) -> Scene:
    rates_hz = config.signal.sample_rate_hz, config.clap.audio.sample_rate_hz
    heard, (positive, negative) = sinc_resample(mixture, *rates_hz), queries
    condition = Condition(positive=positive.to(device), negative=negative.to(device))
    return Scene(mixture=mixture.to(device), heard=heard.to(device), condition=condition)


def bundled() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The bundled model's tensors and its presence head's, as float32."""
    folder = ROOT / "model" / "weights"
    model: dict[str, Tensor] = {}
    for path in sorted(folder.glob("clapsep-mini-*-of-*.safetensors")):
        model |= _tensors(path)
    return model, _tensors(folder / "clapsep-mini-presence.safetensors")


def _tensors(path: Path) -> dict[str, Tensor]:
    """What lies in a safetensors file: a length, a header in JSON, the tensors."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, values = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)
    kinds = {"F32": np.float32, "F16": np.float16, "I64": np.int64}
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        array = np.frombuffer(values[begin:end], kinds[entry["dtype"]]).reshape(entry["shape"])
        tensor = torch.from_numpy(array.copy())
        found[name] = tensor.float() if tensor.is_floating_point() else tensor
    return found


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def bundled_clap(tensors: Mapping[str, Tensor]) -> tuple[Encoder, torch.nn.Sequential]:
    """CLAP's audio tower and projection."""
    tower = build(lambda: Encoder(MINI.clap.audio))
    tower.load_state_dict(_part(tensors, "clap.audio_branch."), strict=False)
    width, dim = MINI.clap.audio.num_features, MINI.clap.embedding_dim
    projection = torch.nn.Sequential(
        torch.nn.Linear(width, dim), torch.nn.ReLU(), torch.nn.Linear(dim, dim)
    )
    projection.load_state_dict(_part(tensors, "clap.audio_projection."))
    return tower.eval().requires_grad_(False), projection.eval().requires_grad_(False)


def bundled_scene(tensors: Mapping[str, Tensor], batch: int, device: str) -> Scene:
    """Pairs of the example clips at 0 dB, asked for by the first, without the second."""
    signal = MINI.signal
    clips = []
    for path in sorted((ROOT / "manifests" / "examples" / "audio").glob("*.flac")):
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        mono = sinc_resample(torch.from_numpy(samples.mean(axis=1)), rate_hz, signal.sample_rate_hz)
        repeated = mono.repeat(-(-signal.window_samples // len(mono)))[: signal.window_samples]
        level = 10 ** ((signal.input_level_dbfs or -24.0) / 20)
        clips.append(repeated * (level / repeated.square().mean().sqrt()))
    first = torch.stack([clips[i % len(clips)] for i in range(batch)])
    second = torch.stack([clips[(3 * i + 1) % len(clips)] for i in range(batch)])
    tower, projection = bundled_clap(tensors)
    with torch.inference_mode():
        embedded = [
            F.normalize(projection(tower.latent(part)), dim=-1)
            for sounds in (first, second)
            for part in sounds.split(8)
        ]
    queries = torch.cat(embedded).view(2, batch, -1)
    return _scene(MINI, (first + second) / math.sqrt(2.0), queries, device)


def with_presence(
    network: ClapSep, tensors: Mapping[str, Tensor], presence: Mapping[str, Tensor]
) -> ClapSep:
    """The bundled separator with what says whether a sound is there, as users run it."""
    tower, projection = bundled_clap(tensors)
    width = presence["presence.key.weight"].shape[0]
    head = PresenceHead(
        MINI.clap.audio.num_features, MINI.clap.embedding_dim, PresenceConfig(width=width)
    )
    head.load_state_dict(_part(presence, "presence."))
    device = network.hann.device
    tower.prepare(torch.bfloat16 if network.precision == "bf16" else torch.float32)
    network.listener = Listener(tower, projection, head).eval().requires_grad_(False).to(device)
    return network


def eager(network: ClapSep, scene: Scene) -> Callable[[], Tensor]:
    """A pass, operation by operation."""
    return lambda: network.separate(scene.mixture, scene.condition)


def graphs(network: ClapSep, scene: Scene, device: str) -> Callable[[], Tensor]:
    """A pass as the product runs it, after its warm-up; graphs where there are any."""
    forward = forward_for(network, device, graphs=True)
    rows = torch.arange(len(scene.mixture), device=device)

    def once() -> Tensor:
        encoded = forward.encode(scene.mixture)
        estimates, _ = forward.answer(encoded, rows, scene.condition)
        return estimates

    with torch.inference_mode():
        for _ in range(_WARM):
            once()
    if isinstance(forward, Graphs) and forward.recorded != 2:
        raise RuntimeError(f"{forward.recorded} graphs were recorded, not 2")
    return once


def compare(
    calls: Mapping[str, Callable[[], Tensor]], batch: int, rounds: int, device: str
) -> dict[str, Any]:
    """Rates of all forms in turn, and errors against the plain one."""
    with torch.inference_mode():
        timed = forms.interleaved(calls, rounds, device)
    plain = timed[_PLAIN]
    found: dict[str, Any] = {}
    for name, each in timed.items():
        error = each.output.float() - plain.output
        ratio = plain.output.square().sum() / error.square().sum().clamp(min=1e-30)
        found[name] = {
            "clips_per_s": batch / each.wall_s,
            "ms": 1e3 * each.wall_s,
            "times_plain": plain.wall_s / each.wall_s,
            "error_db": None if each is plain else -10 * math.log10(ratio.item()),
            "error_of_peak": (error.abs().max() / plain.output.abs().max()).item(),
        }
    for name, row in found.items():
        said = "" if row["error_db"] is None else f"   error {row['error_db']:7.1f} dB"
        print(
            f"  {name:22}{row['clips_per_s']:10.2f} clips/s{row['times_plain']:7.2f}x{said}",
            flush=True,
        )
    return found


def networks(
    config: ClapSepConfig, states: forms.States, scene: Scene, rounds: int, device: str
) -> dict[str, Any]:
    """The plain network, and ours in each precision, eager and as graphs."""
    batch = len(scene.mixture)
    plain = forms.reference_network(states, config).to(device)
    calls = {_PLAIN: lambda: plain(scene.mixture, scene.condition, scene.heard)}
    for precision in precisions(device):
        ours = forms.our_network(states, precision, config, device)
        calls[f"{precision} eager"] = eager(ours, scene)
        calls[f"{precision} graphs"] = graphs(ours, scene, device)
    found = compare(calls, batch, rounds, device)
    with torch.inference_mode():
        flop = forms.count_flops(calls["fp32 eager"]) / batch
    for name, row in found.items():
        row["tflop_per_s"] = flop * row["clips_per_s"] / 1e12
        wanted = WANTED.get(name.split()[0]) if name.endswith("graphs") else None
        if wanted is not None and config is PUBLISHED:
            row["wanted_times_plain"] = wanted
            print(f"  {name}: {row['times_plain']:.2f}x, wanted {wanted:g}x")
    return found


def compiled(
    config: ClapSepConfig, states: forms.States, scene: Scene, rounds: int, device: str
) -> dict[str, Any]:
    """The plain network, and ours through ``torch.compile``, eager and as graphs."""
    plain = forms.reference_network(states, config).to(device)
    calls = {_PLAIN: lambda: plain(scene.mixture, scene.condition, scene.heard)}
    for precision in precisions(device)[::-1]:  # the one that counts first
        if precision == "tf32":
            continue
        ours = forms.our_network(states, precision, config, device)
        if compile_separator(ours, device):
            calls[f"{precision} compiled"] = eager(ours, scene)
            calls[f"{precision} compiled graphs"] = graphs(ours, scene, device)
            print(f"  {precision} compiled", flush=True)
            found = compare(calls, len(scene.mixture), rounds, device)
            print(json.dumps({_COMPILED: found}), flush=True)
    return found


def streams(network: ClapSep, scene: Scene, batches: Sequence[int], device: str) -> dict[str, Any]:
    """Clips a second from arrays to arrays: batches, transfers, graphs or not."""
    asked = {
        name: getattr(scene.condition, name).cpu().numpy() for name in ("positive", "negative")
    }
    windows = [
        WindowQueries(
            samples=samples[None],
            positive=asked["positive"][row : row + 1],
            negative=asked["negative"][row : row + 1],
        )
        for row, samples in enumerate(scene.mixture.cpu().numpy())
    ]
    found = {}
    for batch in batches:
        for replayed in (False, True):
            settings = NetworkSettings(batch_size=batch, graphs=replayed)
            running = Network(network, device, settings)
            work = windows * max(1, _WARM * batch // len(windows))
            running.separate(work)
            start_s = time.perf_counter()
            running.separate(work)
            rate = len(work) / (time.perf_counter() - start_s)
            name = f"batch {batch}, {'graphs' if replayed else 'eager'}"
            found[name] = rate
            print(f"  {name:22}{rate:10.2f} clips/s", flush=True)
    return found


def kernels(call: Callable[[], object], device: str, top: int = 20) -> list[dict[str, Any]]:
    """What takes the most time of a call: which attention, which products."""
    activity = torch.profiler.ProfilerActivity
    with torch.inference_mode():
        call()
        with torch.profiler.profile(
            activities=[activity.CPU if device == "cpu" else activity.CUDA]
        ) as profile:
            call()
            if device != "cpu":
                torch.cuda.synchronize(device)
    spent = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    events = sorted(profile.key_averages(), key=lambda each: -getattr(each, spent))[:top]
    found = [
        {"name": each.key[:120], "calls": each.count, "us": round(getattr(each, spent), 1)}
        for each in events
    ]
    for row in found[:8]:
        print(f"  {row['us']:10.1f} us {row['calls']:5}x  {row['name'][:80]}")
    return found


def training(config: ClapSepConfig, batch: int, rounds: int, device: str) -> dict[str, Any]:
    """Milliseconds that the trainer takes to learn from a batch, eager and as a CUDA graph."""
    module = counts.step_module(batch, config).to(device)
    optimiser, average = (
        Optimiser(module, OptimiserSettings()),
        MovingAverage(module.separator, 0.999),
    )
    optimiser.rate.fill_(1e-5)
    made = counts.batch_of(batch, device, config)

    def learn() -> Tensor:
        optimiser.forget()
        loss, _ = module(made)
        loss.backward()
        optimiser.clip()
        optimiser.step()
        average.update()
        return loss.detach()

    def timed(call: Callable[[], object]) -> float:
        took_s = []
        for _ in range(rounds):
            start_s = time.perf_counter()
            call()
            if device != "cpu":
                torch.cuda.synchronize(device)
            took_s.append(time.perf_counter() - start_s)
        return 1e3 * statistics.median(took_s)

    found: dict[str, Any] = {"mixtures": batch}
    if device == "cpu":
        learn()
        found["eager_ms"] = timed(learn)
    else:
        stream = torch.cuda.Stream(device)
        for _ in range(3):
            devices.on_stream(stream, learn)
        found["eager_ms"] = timed(learn)
        optimiser.forget()
        graph, _ = devices.captured(learn, stream)
        found |= {"graph_ms": timed(graph.replay), "wanted_ms": WANTED_STEP_MS}
        found["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    print("  " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()), flush=True)
    return found


def whole_job(
    device: str, precision: str, clips: int, batch: int, of_network: float
) -> dict[str, Any]:
    """The job from files to Parquet, and of how many clips a second each stage would be capable."""
    sys.path.insert(1, str(ROOT / "tests"))
    import pipeline

    beside = "(beside the network)"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, manifest = pipeline.write_model(folder), pipeline.write_clips(folder, clips)
        flags = ("--device", device, "--precision", precision)
        with pipeline.stages_timed() as timer:
            pipeline.whole_job(model, manifest, folder / "warm", batch, *flags)
            timer.spent_s.clear()
            took_s = pipeline.whole_job(model, manifest, folder / "out", batch, *flags)
    cores = len(os.sched_getaffinity(0))
    able = {
        stage: clips / spent_s * (cores if beside in stage else 1)
        for stage, spent_s in timer.spent_s.items()
        if spent_s > 0 and stage != "score: CLAP embeddings"  # a part of "everything"
    }
    rate = clips / took_s
    print(
        f"  {rate:9.2f} clips/s, {100 * rate / of_network:.0f} % of the network alone, wanted at"
        f" least {100 * WANTED_JOB_SHARE:.0f} % or a stage that can do no more:"
    )
    for stage, possible in sorted(able.items(), key=lambda each: each[1]):
        print(f"  {possible:9.2f} clips/s  {stage}")
    return {"clips_per_s": rate, "share_of_network": rate / of_network, "stages_able": able}


class Report:
    """Runs the parts for which there is time, and keeps what they found."""

    def __init__(self, path: Path | None, budget_s: float) -> None:
        """Writes to ``path``, if there is one."""
        self.found: dict[str, Any] = {"parts": {}}
        self._path, self._ends_s = path, time.monotonic() + budget_s

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return self._ends_s - time.monotonic()

    def part(self, name: str, needs_s: float, measure: Callable[[], Any]) -> Any:
        """Measures a part; says so where there is no time for it, or where it fails."""
        print(f"{name} ({self.left_s:.0f} s left)", flush=True)
        start_s = time.monotonic()
        if self.left_s < needs_s:
            found: Any = {"skipped": f"{self.left_s:.0f} s left, {needs_s:g} wanted"}
        else:
            try:
                found = measure()
            except Exception as err:
                found = {"failed": f"{type(err).__name__}: {err}"[:2000]}
                if not torch.cuda.is_available():
                    raise
        if isinstance(found, dict) and ({"skipped", "failed"} & set(found)):
            print(f"  {found}", flush=True)
        self.found["parts"][name] = found
        self.found["parts"][f"{name}: s"] = round(time.monotonic() - start_s, 1)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.write()
        return found

    def write(self) -> None:
        """Writes what was found so far."""
        if self._path is not None:
            self._path.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")


def compiled_apart(arguments: Sequence[str], limit_s: float, small: bool) -> dict[str, Any]:
    """What :func:`compiled` finds in a process of its own, which ends when its time is over."""
    command = [sys.executable, "-u", __file__, "--only_compiled", *arguments]
    # The script is tried without a compiler: torch then leaves functions as they are.
    environment = os.environ | ({"TORCH_COMPILE_DISABLE": "1"} if small else {})
    found: dict[str, Any] = {}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, env=environment, check=False
        )
        said, code = done.stdout, done.returncode
        if code:
            found["failed"] = done.stderr[-2000:]
    except subprocess.TimeoutExpired as err:
        said = err.stdout.decode() if isinstance(err.stdout, bytes) else (err.stdout or "")
        found["skipped"] = f"not all compiled within {limit_s:.0f} s"
    for line in said.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)[_COMPILED]
        else:
            print(line)
    return found


def run(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch_size", type=int, default=32, help="clips in a pass")
    parser.add_argument("--training_batch", type=int, default=256, help="mixtures in a step")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--budget_s", type=float, default=225.0)
    parser.add_argument("--output", type=Path, help="JSON; by default gpu.json in $OUT")
    parser.add_argument("--small", action="store_true", help="tiny: tries the script itself")
    parser.add_argument("--job", action="store_true", help="the whole job too; needs Apache Beam")
    parser.add_argument("--clips", type=int, default=512, help="of --job")
    parser.add_argument("--only_compiled", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    device, small = given.device, given.small
    config = TINY if small else PUBLISHED
    batch, rounds = (2, 1) if small else (given.batch_size, given.rounds)
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # the plain network's convolutions are in float32
    states, scene = forms.random_states(config), noise_scene(config, batch, device)
    if given.only_compiled:
        compiled(config, states, scene, rounds, device)
        return
    folder = os.environ.get("OUT")
    path = given.output or (Path(folder) / "gpu.json" if folder else None)
    report = Report(path, given.budget_s)
    report.found["machine"] = machine(device)
    print(json.dumps(report.found["machine"]), flush=True)
    own, presence = bundled()
    own_states = (_part(own, "encoder."), {}, _part(own, "decoder."))
    size = "tiny, made-up weights" if small else "published size, made-up weights"
    rates = report.part(
        f"{size}, batch {batch}", 0, lambda: networks(config, states, scene, rounds, device)
    )
    own_scene = bundled_scene(own, batch, device)
    report.part(
        f"bundled model, its weights, batch {batch}",
        10,
        lambda: networks(MINI, own_states, own_scene, rounds, device),
    )
    best = precisions(device)[-1]

    def served() -> dict[str, Any]:
        network = forms.our_network(own_states, best, MINI, device)
        batches = (2,) if small else (8, 32, 128)
        return streams(with_presence(network, own, presence), own_scene, batches, device)

    def kernels_of(
        config: ClapSepConfig, states: forms.States, scene: Scene
    ) -> list[dict[str, Any]]:
        network = forms.our_network(states, best, config, device)
        return kernels(eager(network, scene), device)

    report.part(f"bundled model with presence in {best}, arrays to arrays", 10, served)
    report.part(f"kernels, {size}, {best}", 10, lambda: kernels_of(config, states, scene))
    report.part(
        f"kernels, bundled model, {best}", 10, lambda: kernels_of(MINI, own_states, own_scene)
    )
    mixtures = 1 if small else given.training_batch
    report.part(
        "a training step",
        20,
        lambda: training(TINY if small else MINI, mixtures, rounds, device),
    )
    arguments = ["--device", device, "--rounds", str(rounds), "--batch_size", str(batch)]
    arguments += ["--small"] if small else []
    report.part(
        _COMPILED,
        40,
        lambda: compiled_apart(arguments, report.left_s, small),
    )
    if given.job:

        def job() -> dict[str, Any]:
            rate = rates[f"{best} graphs"]["clips_per_s"]
            return whole_job(device, best, given.clips, batch, rate)

        report.part("the whole job", -math.inf, job)
    report.write()


if __name__ == "__main__":
    run()
