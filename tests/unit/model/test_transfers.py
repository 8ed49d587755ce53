from __future__ import annotations

import numpy as np
import pytest
import torch

import tones
from model import inference
from model.inference import Network, NetworkSettings, WindowQueries

DIM = len(tones.LABELS)


def test_on_the_cpu_nothing_is_copied() -> None:
    there = inference.transfers_for("cpu")
    array = np.arange(3, dtype=np.float32)
    tensor = there.up(array)
    assert tensor.data_ptr() == array.ctypes.data
    assert there.down(tensor)().ctypes.data == array.ctypes.data


def test_any_other_device_gets_plain_copies() -> None:
    copies = inference.Blocking(torch.device("cpu"))
    array = np.arange(3, dtype=np.float32)
    np.testing.assert_array_equal(copies.down(copies.up(array).double())(), array)
    assert isinstance(inference.transfers_for("meta"), inference.Blocking)


class Noted(inference.InPlace):
    """Notes when a pass is launched and when its answers are waited for."""

    ahead = 1

    def __init__(self) -> None:
        self.events: list[str] = []

    def down(self, tensor: torch.Tensor) -> inference.Arriving:
        arriving = super().down(tensor)
        self.events.append("launched")

        def wait() -> np.ndarray:
            self.events.append("waited")
            return arriving()

        return wait


def _windows(count: int) -> list[WindowQueries]:
    rng = np.random.default_rng(0)
    query = np.eye(DIM, dtype=np.float32)[:1]
    return [
        WindowQueries(
            samples=rng.normal(size=(1, 4_000)).astype(np.float32),
            positive=query,
            negative=np.zeros_like(query),
        )
        for _ in range(count)
    ]


def test_a_pass_is_launched_before_the_answers_of_the_one_before_are_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noted = Noted()
    monkeypatch.setattr(inference, "transfers_for", lambda _: noted)
    separator = tones.ToneSeparator()
    settings = NetworkSettings(batch_size=2, graphs=False)
    ahead = Network(separator, "cuda", settings).separate(_windows(6))
    assert noted.events == ["launched", "launched", "waited", "launched", "waited", "waited"]
    monkeypatch.undo()
    plain = Network(separator, "cpu", NetworkSettings(batch_size=2)).separate(_windows(6))
    for one, other in zip(ahead, plain, strict=True):
        np.testing.assert_array_equal(one.samples, other.samples)
        assert all(seconds > 0 for seconds in one.inference_s)
