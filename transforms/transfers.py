"""Arrays on their way to a device and back, without making the processor wait for either."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transforms.elements import Samples

Arriving = Callable[[], Samples]
"""Gives the array; waits until it is there."""


class Transfers(Protocol):
    """How arrays reach a device, and how answers come back.

    Attributes:
        ahead: how many passes may be under way while the answers of an earlier one are fetched.
    """

    ahead: int

    def up(self, array: npt.NDArray[np.float32] | npt.NDArray[np.int64]) -> Tensor:
        """The array on the device, ready for what is launched next."""

    def down(self, tensor: Tensor) -> Arriving:
        """Starts to fetch the tensor, as float32."""


class InPlace:
    """On the CPU nothing moves."""

    ahead = 0

    def up(self, array: npt.NDArray[np.float32] | npt.NDArray[np.int64]) -> Tensor:
        """The array itself, as a tensor."""
        return torch.from_numpy(array)

    def down(self, tensor: Tensor) -> Arriving:
        """The tensor itself, as an array."""
        array: Samples = tensor.float().numpy()
        return lambda: array


class Blocking:
    """Any other device than a CPU or CUDA: plain copies."""

    ahead = 0

    def __init__(self, device: torch.device) -> None:
        """Copies to and from ``device``."""
        self._device = device

    def up(self, array: npt.NDArray[np.float32] | npt.NDArray[np.int64]) -> Tensor:
        """A copy on the device."""
        return torch.from_numpy(array).to(self._device)

    def down(self, tensor: Tensor) -> Arriving:
        """A copy on the host."""
        array: Samples = tensor.float().cpu().numpy()
        return lambda: array


class Pinned:
    """CUDA: page-locked buffers and a stream for each direction, beside that of the network."""

    ahead = 1

    def __init__(self, device: torch.device) -> None:
        """Copies to and from ``device``."""
        self._device = device
        self._uploads = torch.cuda.Stream(device)
        self._downloads = torch.cuda.Stream(device)

    def up(self, array: npt.NDArray[np.float32] | npt.NDArray[np.int64]) -> Tensor:
        """A copy for which the network's stream waits, and nothing else."""
        network = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._uploads):
            copy = torch.from_numpy(array).pin_memory().to(self._device, non_blocking=True)
        network.wait_stream(self._uploads)
        copy.record_stream(network)
        return copy

    def down(self, tensor: Tensor) -> Arriving:
        """A copy that begins when the network has computed the tensor."""
        source = tensor.float()
        self._downloads.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._downloads):
            buffer = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            buffer.copy_(source, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        source.record_stream(self._downloads)

        def wait() -> Samples:
            arrived.synchronize()
            array: Samples = buffer.numpy()
            return array

        return wait


def transfers_for(device: str) -> Transfers:
    """The transfers that suit a torch device."""
    chosen = torch.device(device)
    if chosen.type == "cpu":
        return InPlace()
    return Pinned(chosen) if chosen.type == "cuda" else Blocking(chosen)
