"""The equal forms of the network's linear layers and attention, on this processor.

``python bench/kernels.py [--threads 1]``: milliseconds of the processors, the best of several
calls, at the published sizes. ``*`` marks the form that ``model/clap/audio.py`` uses.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

from model.clap import audio
from model.config import PUBLISHED

Form = Callable[[], Tensor]
TYPES = (torch.float32, torch.bfloat16)
FRAMES = PUBLISHED.signal.num_frames(PUBLISHED.signal.window_samples)


def milliseconds(call: Form, rounds: int = 7) -> float:
    """The fastest call, in time of the processors."""
    call()
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return 1e3 * best


def report(what: str, forms: dict[str, Form]) -> None:
    """One line; forms must agree."""
    expected = next(iter(forms.values()))().float()
    for form in forms.values():
        torch.testing.assert_close(form().float(), expected, rtol=0.05, atol=0.05)
    times = (f"{name} {milliseconds(form):.2f}" for name, form in forms.items())
    print(f"  {what:36} " + "   ".join(times), flush=True)


def linear(dtype: torch.dtype) -> None:
    """The sizes that cost most: rows, inputs, outputs."""
    operators: Any = torch.ops.mkldnn
    sizes = [(4096, 128, 512), (1024, 256, 1024), (256, 512, 2048), (256, 2048, 512)]
    sizes += [(64, 1024, 4096), (FRAMES, 640, 1920), (FRAMES, 640, 2560), (FRAMES, 2560, 640)]
    for rows, inputs, outputs in sizes:
        x, weight = torch.randn(1, rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
        weight /= inputs**0.5
        bias = torch.randn(outputs).to(dtype)
        packed = operators._reorder_linear_weight(weight, rows)
        report(
            f"{rows} x {inputs} -> {outputs}",
            {
                "F.linear": lambda x=x, w=weight, b=bias: F.linear(x, w, b),
                "oneDNN*": lambda x=x, w=weight, b=bias: audio.project(x, w, b),
                "oneDNN packed": lambda x=x, w=packed, b=bias: operators._linear_pointwise(
                    x, w, b, "none", [], ""
                ),
            },
        )


def window_attention(dtype: torch.dtype, batch: int) -> None:
    """Windows of 64 patches in every stage, shifted: each window of the grid has its own mask."""
    encoder = PUBLISHED.clap.audio
    for stage, heads in enumerate(encoder.num_heads):
        side = max(1, (encoder.grid_size >> stage) // encoder.window_size)
        _window_attention(dtype, batch, side * side, heads, encoder.embed_dim << stage)


def _window_attention(
    dtype: torch.dtype, batch: int, windows: int, heads: int, channels: int
) -> None:
    length = PUBLISHED.clap.audio.window_size**2
    joint = torch.randn(batch * windows, length, 3 * channels).to(dtype)
    bias = torch.randn(windows, heads, length, length).to(dtype)
    query, key, value = joint.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    scale = query.shape[-1] ** -0.5
    star = ("*", "") if dtype == torch.float32 else ("", "*")
    report(
        f"batch {batch}: {batch * windows} windows, {heads} heads",
        {
            f"fused{star[0]}": lambda: _joined(
                F.scaled_dot_product_attention(
                    query, key, value, attn_mask=bias.repeat(batch, 1, 1, 1), scale=scale
                )
            ),
            f"baddbmm{star[1]}": lambda: audio._attend_batched(
                query, key, value, scale, bias.repeat(batch, 1, 1, 1)
            ),
            "in place": lambda: _in_place(query, key, value, scale, bias),
            "5-D broadcast": lambda: _broadcast(query, key, value, scale, bias),
        },
    )


def masker_attention(dtype: torch.dtype) -> None:
    """One sequence of all frames, no mask."""
    decoder = PUBLISHED.decoder
    joint = torch.randn(1, FRAMES, 3 * decoder.d_attn).to(dtype)
    heads = decoder.masker_heads
    query, key, value = joint.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    scale = query.shape[-1] ** -0.5
    report(
        f"{FRAMES} frames, {heads} heads",
        {
            "fused": lambda: _joined(F.scaled_dot_product_attention(query, key, value)),
            "whole": lambda: _joined(
                torch.softmax(scale * query @ key.transpose(-1, -2), dim=-1) @ value
            ),
            "by head and block*": lambda: audio.attend(query, key, value, scale),
        },
    )


def _joined(mixed: Tensor) -> Tensor:
    return mixed.transpose(1, 2).flatten(2)


def _in_place(query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor) -> Tensor:
    scores = (scale * query) @ key.transpose(-1, -2)
    scores.unflatten(0, (-1, len(bias))).add_(bias)
    return _joined(torch.softmax(scores, dim=-1, out=scores) @ value)


def _broadcast(query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor) -> Tensor:
    parts = (part.unflatten(0, (-1, len(bias))) for part in (query, key, value))
    first, second, third = parts
    scores = scale * first @ second.transpose(-1, -2) + bias
    return _joined((torch.softmax(scores, dim=-1) @ third).flatten(0, 1))


def run(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--machine", default="this machine")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"{options.machine}, torch {torch.__version__}, {options.threads} OpenMP threads")
    with torch.inference_mode():
        for dtype in TYPES:
            print(f"\n{dtype}: linear layers, rows x inputs -> outputs")
            linear(dtype)
            print(f"{dtype}: attention inside windows")
            for batch in (1, 4):
                window_attention(dtype, batch)
            print(f"{dtype}: attention over all frames")
            masker_attention(dtype)


if __name__ == "__main__":
    run()
