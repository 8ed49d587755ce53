"""What a model takes up: on disk, in parameters and in time."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.catalogue import Entry
from model.registry import LoadedModel
from model.signal.windowing import WindowPlan, separate_array
from model.systems import Condition, Separator

_TIMED_S = 60.0
_WARM_UP_S = 10.0
_WINDOWS_AT_ONCE = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a model takes up, and how fast it separates when nothing is scored or written.

    Attributes:
        parameters: by part of the model.
        parameters_in_all: tensors that parts share counted once.
        file_bytes: by file of the bundle.
        device: where the speed was measured.
        threads: torch's threads there.
        real_time_factor: seconds of audio that are separated in a second.
    """

    parameters: Mapping[str, int]
    parameters_in_all: int
    file_bytes: Mapping[str, int]
    device: str
    threads: int
    real_time_factor: float


def measure_cost(loaded: LoadedModel, device: str) -> Cost:
    """Counts the parameters of a loaded model, which is on ``device``, and times it."""
    both = {"separator": loaded.separator, "clap": loaded.query_encoder}
    parts = {name: part for name, part in both.items() if isinstance(part, nn.Module)}
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
        file_bytes={path.name: path.stat().st_size for path in bundle_files(loaded.card)},
        device=device,
        threads=torch.get_num_threads(),
        real_time_factor=real_time_factor(loaded.separator, device),
    )


def bundle_files(card: Entry) -> list[Path]:
    """Finds the files of a model that lie on this machine, every part of those that are split."""
    paths = [Path(file.location()) for file in card.files]
    patterns = [(path.parent, re.sub(r"-\d+-of-", "-*-of-", path.name)) for path in paths]
    return sorted({path for folder, pattern in patterns for path in folder.glob(pattern)})


@torch.inference_mode()
def real_time_factor(separator: Separator, device: str) -> float:
    """Measures how many seconds of mono noise are separated in a second, with one query."""
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
