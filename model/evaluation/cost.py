"""What a model takes up on disk, in parameters and in time."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.catalogue import Entry
from model.evaluation.results import Cost
from model.signal.windowing import WindowPlan, separate_array
from model.systems import Condition, Separator

_TIMED_S = 60.0
_WARM_UP_S = 10.0
_WINDOWS_AT_ONCE = 4


def measure(
    separator: Separator, parts: Mapping[str, nn.Module], files: Sequence[Path], device: str
) -> Cost:
    """Counts and times a model.

    Args:
        separator: the model.
        parts: its networks by name; what they share is counted once in all.
        files: its bundle.
        device: where it is.
    """
    return Cost(
        parameters={
            f"{name}.{child}": sum(parameter.numel() for parameter in network.parameters())
            for name, part in parts.items()
            for child, network in part.named_children()
        },
        parameters_in_all=sum(
            {
                parameter.data_ptr(): parameter.numel()
                for part in parts.values()
                for parameter in part.parameters()
            }.values()
        ),
        file_bytes={path.name: path.stat().st_size for path in files},
        device=device,
        threads=torch.get_num_threads(),
        real_time_factor=real_time_factor(separator, device),
    )


def bundle_files(card: Entry) -> list[Path]:
    """The files of a model that lie on this machine, every part of those that are split."""
    paths = [Path(file.location()) for file in card.files]
    patterns = [(path.parent, re.sub(r"-\d+-of-", "-*-of-", path.name)) for path in paths]
    return sorted({path for folder, pattern in patterns for path in folder.glob(pattern)})


@torch.inference_mode()
def real_time_factor(separator: Separator, device: str) -> float:
    """Seconds of mono audio separated in a second: one query, a minute of noise, nothing scored."""
    condition = Condition(
        positive=torch.full((1, separator.embedding_dim), separator.embedding_dim**-0.5),
        negative=torch.zeros(1, separator.embedding_dim),
    )

    def separate(windows: Tensor) -> Tensor:
        rows = torch.zeros(len(windows), dtype=torch.int64)
        return separator.separate(windows.to(device), condition.index(rows))

    plan = WindowPlan(window_samples=separator.window_samples)
    elapsed_s = 0.0
    for duration_s in (_WARM_UP_S, _TIMED_S):
        length = round(duration_s * separator.sample_rate_hz)
        noise = np.random.default_rng(0).normal(0.0, 0.1, (1, length)).astype(np.float32)
        start = time.perf_counter()
        separate_array(noise, separate, plan, batch_size=_WINDOWS_AT_ONCE)
        elapsed_s = time.perf_counter() - start
    return _TIMED_S / elapsed_s
