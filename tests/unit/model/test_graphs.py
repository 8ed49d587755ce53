"""Graphs instead of single operations: what is recorded, when, and what comes out.

No GPU is needed: a recorder of these tests stands in for CUDA's. As there, a recording runs
nothing, and what a replay gives lies in the same tensors each time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tones
from bench import counts
from model import devices, inference
from model.checkpoints.loading import build
from model.config import TINY, PresenceConfig
from model.inference import (
    EAGER_CALLS,
    Arriving,
    Graphs,
    InPlace,
    Network,
    NetworkSettings,
    SeparationError,
    WindowQueries,
    forward_for,
)
from model.systems import Condition, audiosep, waveformer
from model.systems.clapsep.network import ClapSep, Listener, PresenceHead
from model.systems.reference_points import MixtureSeparator, OracleIrm

DIM = len(tones.LABELS)
WARM = EAGER_CALLS + 1


def _tensors(results: Any) -> list[Tensor]:
    if isinstance(results, Tensor):
        return [results]
    if dataclasses.is_dataclass(results):
        results = tuple(getattr(results, each.name) for each in dataclasses.fields(results))
    if isinstance(results, tones.ToneEncoded):
        results = (results.mixture,)
    parts = results if isinstance(results, tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


class Recorder:
    """Records as CUDA does: the operations run at replays only, and always on the same tensors."""

    def __init__(self, most: int = 1_000) -> None:
        self.recorded = self.replayed = self.waited = 0
        self.most = most

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        if self.recorded == self.most:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        self.recorded += 1
        function()
        results = function()
        for tensor in _tensors(results):
            tensor.fill_(torch.nan)

        def replay() -> None:
            self.replayed += 1
            for kept, computed in zip(_tensors(results), _tensors(function()), strict=True):
                kept.copy_(computed)

        return replay, results

    def wait(self) -> None:
        self.waited += 1


class Late(InPlace):
    """Fetches what lies in a tensor when it is asked for, after later passes were launched."""

    ahead = 1

    def down(self, tensor: Tensor) -> Arriving:
        return lambda: tensor.float().numpy().copy()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """What every network of a test records by."""
    made = Recorder()
    monkeypatch.setattr(
        inference, "forward_for", lambda separator, *_, **__: Graphs(separator, made)
    )
    monkeypatch.setattr(inference, "transfers_for", lambda _: Late())
    return made


def _window(seed: int, queries: int = 1, samples: int = 4_000, channels: int = 1) -> WindowQueries:
    rng = np.random.default_rng(seed)
    positive = np.eye(DIM, dtype=np.float32)[rng.integers(DIM, size=queries)]
    return WindowQueries(
        samples=rng.normal(size=(channels, samples)).astype(np.float32),
        positive=positive,
        negative=np.roll(positive, 1, axis=1),
        gain=1.0 + seed,
    )


def _assert_as_eager(network: Network, windows: list[WindowQueries], **settings: int) -> None:
    plain = Network(network.separator, "cpu", NetworkSettings(graphs=False, **settings))
    plain._forward, plain._transfers = inference.Eager(network.separator), InPlace()
    for found, expected in zip(network.separate(windows), plain.separate(windows), strict=True):
        np.testing.assert_allclose(found.samples, expected.samples, atol=1e-6)
        np.testing.assert_array_equal(found.presence, expected.presence)


@pytest.mark.parametrize(
    "separator", [tones.ToneSeparator(), tones.SuspiciousSeparator()], ids=["mask", "and presence"]
)
def test_what_comes_again_is_replayed_and_gives_the_same(
    recorder: Recorder, separator: tones.ToneSeparator
) -> None:
    network = Network(separator, "cuda", NetworkSettings(batch_size=4))
    for repeat in range(3):
        windows = [
            _window(100 * repeat + number, queries=1 + number % 2, channels=1 + number % 2)
            for number in range(24)
        ]
        _assert_as_eager(network, windows, batch_size=4)
    assert recorder.recorded >= 2
    assert recorder.replayed > 20


def test_a_shape_is_recorded_when_it_comes_the_third_time(recorder: Recorder) -> None:
    network = Network(tones.ToneSeparator(), "cuda", NetworkSettings(batch_size=2))
    counts = []
    for call in range(2 * WARM):
        network.separate([_window(call), _window(call + 50)])
        counts.append((recorder.recorded, recorder.replayed))
    # The encoding first; what is asked of it once that is replayed.
    assert counts == [(0, 0), (0, 0), (1, 1), (1, 2), (2, 4), (2, 6)]


def test_rare_shapes_stay_as_they_are(recorder: Recorder) -> None:
    network = Network(tones.ToneSeparator(), "cuda", NetworkSettings(batch_size=4))
    _assert_as_eager(network, [_window(n, samples=1_000 + n) for n in range(30)], batch_size=4)
    assert recorder.recorded == 0


def test_graphs_are_few(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "MOST_GRAPHS", 3)
    monkeypatch.setattr(inference, "_SHAPES_COUNTED", 8)
    network = Network(tones.ToneSeparator(), "cuda", NetworkSettings(batch_size=1))
    for length in range(20):
        _assert_as_eager(
            network, [_window(n, samples=900 + length) for n in range(2 * WARM)], batch_size=1
        )
    assert recorder.recorded == 3


@pytest.mark.parametrize("most", [0, 1])
def test_what_cannot_be_recorded_is_said_once_and_launched_one_by_one(
    recorder: Recorder, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.most = most
    network = Network(tones.ToneSeparator(), "cuda", NetworkSettings(batch_size=2))
    with caplog.at_level(logging.WARNING):
        for repeat in range(5):
            _assert_as_eager(network, [_window(10 * repeat + n) for n in range(6)], batch_size=2)
    assert caplog.messages == [
        "CUDA graphs are not used from here on: RuntimeError: operation not permitted when stream "
        "is capturing; operations are launched one by one, with the same results"
    ]
    assert recorder.waited == 1


class Full(tones.ToneSeparator):
    """Runs out of memory where ``full`` says so: how many rows, and whether there are graphs."""

    def __init__(self, full: Callable[[int], bool]) -> None:
        super().__init__()
        self.full = full

    def encode(self, mixture: Tensor) -> tones.ToneEncoded:
        if self.full(len(mixture)):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().encode(mixture)


def _warmed(separator: tones.ToneSeparator, **settings: int) -> Network:
    network = Network(separator, "cuda", NetworkSettings(**settings))
    for call in range(2 * WARM):
        network.separate([_window(call)])
    return network


def test_where_memory_is_short_graphs_go_before_a_batch_is_halved(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[int] = []

    def full(rows: int) -> bool:
        tried.append(rows)
        return rows > 4 or (rows == 4 and recorder.waited == 0)

    network = _warmed(Full(full), batch_size=8)
    tried.clear()
    found = network.separate([_window(number) for number in range(4)])
    assert tried == [4, 4]
    assert len(found) == 4
    assert "OutOfMemoryError" in caplog.text
    tried.clear()
    network.separate([_window(number) for number in range(8)])
    assert tried == [8, 4, 4]
    assert len(caplog.messages) == 1


def test_a_recording_that_does_not_fit_into_memory_leaves_the_batch_whole(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(recorder, "record", full)
    network = _warmed(tones.ToneSeparator(), batch_size=8)
    _assert_as_eager(network, [_window(number) for number in range(8)], batch_size=8)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_what_fails_with_graphs_is_tried_without_before_anyone_is_blamed(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    network = _warmed(tones.ToneSeparator(), batch_size=1)
    for graph in network._forward._graphs.values():

        def broken() -> None:
            raise RuntimeError("CUDA error: invalid resource handle")

        object.__setattr__(graph, "replay", broken)
    _assert_as_eager(network, [_window(7)], batch_size=1)
    assert "invalid resource handle" in caplog.text
    assert len(caplog.messages) == 1


def test_a_row_that_fails_without_graphs_too_is_to_blame(recorder: Recorder) -> None:
    class Picky(tones.ToneSeparator):
        def encode(self, mixture: Tensor) -> tones.ToneEncoded:
            if mixture.abs().max() > 1e6:
                raise RuntimeError("shapes do not match")
            return super().encode(mixture)

    network = _warmed(Picky(), batch_size=1)
    loud = dataclasses.replace(_window(1), gain=1e9)
    with pytest.raises(SeparationError, match="shapes do not match"):
        network.separate([loud])
    _assert_as_eager(network, [_window(7)], batch_size=1)


def test_a_broken_device_is_still_told_from_a_row(recorder: Recorder) -> None:
    class Breaks(tones.ToneSeparator):
        broken = False

        def encode(self, mixture: Tensor) -> tones.ToneEncoded:
            if self.broken:
                raise RuntimeError("CUDA error: unspecified launch failure")
            return super().encode(mixture)

    network = _warmed(Breaks(), batch_size=1)
    network.separator.broken = True
    with pytest.raises(devices.MachineError, match="machine is at fault"):
        network.separate([_window(1)])


def test_threads_share_graphs_without_mixing_their_rows(recorder: Recorder) -> None:
    separator = tones.ToneSeparator()
    network = _warmed(separator, batch_size=1)
    together = threading.Barrier(4)

    def separate(number: int) -> np.ndarray:
        together.wait()
        found = [network.separate([_window(10 * number + n)]) for n in range(10)]
        return np.stack([each.samples for (each,) in found])

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(separate, range(4)))
    plain = Network(separator, "cuda", NetworkSettings())
    plain._forward = inference.Eager(separator)
    for number, rows in enumerate(found):
        expected = [plain.separate([_window(10 * number + n)])[0].samples for n in range(10)]
        np.testing.assert_allclose(rows, np.stack(expected), atol=1e-6)


def test_filled_up_batches_are_replayed_too(recorder: Recorder) -> None:
    settings = {"batch_size": 4, "fixed_shapes": True}
    network = Network(tones.ToneSeparator(), "cuda", NetworkSettings(**settings))
    for count in (4, 3, 2, 4, 1, 3, 2):
        _assert_as_eager(network, [_window(count + n) for n in range(count)], **settings)
    assert recorder.recorded == 2


def test_queries_with_references_are_replayed(recorder: Recorder) -> None:
    separator = OracleIrm(TINY.signal)
    network = Network(separator, "cuda", NetworkSettings(batch_size=1))
    rng = np.random.default_rng(0)
    query = np.zeros((1, separator.embedding_dim), np.float32)
    for _ in range(3 * WARM):
        target, rest = rng.normal(size=(2, 1, 9_000)).astype(np.float32)
        window = WindowQueries(
            samples=target + rest, positive=query, negative=query, references=target
        )
        _assert_as_eager(network, [window], batch_size=1)
    assert recorder.recorded == 2


def test_only_cuda_has_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "CudaRecorder", lambda device: Recorder())
    monkeypatch.setattr(torch.version, "hip", None)
    separator = tones.ToneSeparator()

    def kind(device: str, graphs: bool = True) -> type:
        return type(forward_for(separator, device, graphs=graphs))

    assert kind("cuda") is kind("cuda:1") is Graphs
    assert kind("cpu") is kind("mps") is kind("cuda", graphs=False) is inference.Eager
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    assert kind("cuda") is inference.Eager
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "0")
    assert kind("cuda") is Graphs
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert kind("cuda") is inference.Eager


class FakeCuda:
    """Notes in which order streams and graphs are used, in place of ``torch.cuda``."""

    def __init__(self, fails: bool = False) -> None:
        self.events: list[str] = []
        self.current = SimpleNamespace(name="network", wait_stream=self._waits("network"))
        self.fails = fails

    def _waits(self, name: str) -> Callable[[Any], None]:
        return lambda other: self.events.append(f"{name} waits for {other.name}")

    def Stream(self, device: torch.device) -> Any:
        return SimpleNamespace(name="side", device=device, wait_stream=self._waits("side"))

    def current_stream(self, device: torch.device) -> Any:
        return self.current

    def set_stream(self, stream: Any) -> None:
        self.current = stream

    def graph_pool_handle(self) -> str:
        return "pool"

    def device(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def synchronize(self, device: torch.device) -> None:
        self.events.append("wait")

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(replay=lambda: self.events.append("replay"))

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextlib.contextmanager
    def graph(self, graph: Any, pool: str, stream: Any, capture_error_mode: str) -> Iterator[None]:
        self.events.append(f"capture {pool} {stream.name} {capture_error_mode}")
        self.current = stream
        yield
        if self.fails:  # as torch does: the stream stays
            raise RuntimeError("operation failed due to a previous error during capture")
        self.current = self.network_stream()

    def network_stream(self) -> Any:
        return SimpleNamespace(name="network", wait_stream=self._waits("network"))


@pytest.mark.parametrize("fails", [False, True])
def test_a_function_is_warmed_up_where_it_is_captured(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(fails)
    monkeypatch.setattr(torch, "cuda", cuda)
    recorder = inference.CudaRecorder(torch.device("cuda:0"))

    def function() -> str:
        cuda.events.append(f"runs on {cuda.current.name}")
        return "results"

    with pytest.raises(RuntimeError) if fails else contextlib.nullcontext():
        replay, results = recorder.record(function)
        assert results == "results"
        replay()
    recorder.wait()
    assert cuda.current.name == "network"
    assert cuda.events == [
        "side waits for network",
        "runs on side",
        "network waits for side",
        "capture pool side thread_local",
        "runs on side",
        *([] if fails else ["replay"]),
        "wait",
    ]


class OnOneDevice(TorchDispatchMode):
    """Fails where an operation has tensors elsewhere: it would copy, and wait for the device."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        results = function(*args, **(kwargs or {}))
        found = (each for each in tree_leaves((args, kwargs, results)) if isinstance(each, Tensor))
        devices = {tensor.device.type for tensor in found}
        assert devices <= {"meta"}, f"{function} with tensors on {devices}"
        return results


def _clapsep(precision: str, listens: bool) -> ClapSep:
    def network() -> ClapSep:
        separator = ClapSep(TINY, precision)
        if listens:
            clap, dim = TINY.clap, TINY.clap.embedding_dim
            head = PresenceHead(clap.audio.num_features, dim, PresenceConfig(width=8))
            projection = torch.nn.Sequential(
                torch.nn.Linear(clap.audio.num_features, dim),
                torch.nn.ReLU(),
                torch.nn.Linear(dim, dim),
            )
            separator.listener = Listener(ClapSep(TINY).encoder, projection, head)
        return separator

    return build(network)


SYSTEMS: dict[str, Callable[[], Any]] = {
    "clapsep": lambda: _clapsep("fp32", listens=False),
    "clapsep bf16": lambda: _clapsep("bf16", listens=False),
    "clapsep with presence": lambda: _clapsep("fp32", listens=True),
    "audiosep, uss, lass": lambda: audiosep.build_separator(
        dataclasses.replace(
            audiosep.CONFIG, condition_size=8, channels=(4, 6, 8), n_fft=256, hop_samples=80
        )
    ).prepare(),
    "waveformer": lambda: build(
        lambda: waveformer.Waveformer(waveformer.WaveformerConfig())
    ).prepare(),
    "mixture": lambda: MixtureSeparator(TINY.signal),
    "oracle": lambda: OracleIrm(TINY.signal),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_nothing_that_is_recorded_waits_for_the_device(system: str) -> None:
    """On the meta device there are no values: to read one, or a shape by values, is an error.

    Every operation is watched for tensors on another device. The first call may place constants
    there, as the calls before a recording may.
    """
    separator = SYSTEMS[system]()
    if isinstance(separator, torch.nn.Module):
        separator.to("meta").prepare()
    samples = min(separator.window_samples, 20_000)
    mixture = torch.empty(2, samples, device="meta")
    query = torch.empty(3, separator.embedding_dim, device="meta")
    reference = torch.empty(3, samples, device="meta")
    condition = Condition(positive=query, negative=query, reference=reference)
    rows = torch.empty(3, dtype=torch.int64, device="meta")
    forward = inference.Eager(separator)
    with counts.as_on_cuda(), torch.inference_mode():
        forward.answer(forward.encode(mixture), rows, condition)
        with OnOneDevice():
            estimates, odds = forward.answer(forward.encode(mixture), rows, condition)
    assert estimates.shape == (3, samples)
    assert estimates.dtype == torch.float32
    assert (odds is not None) == (system == "clapsep with presence")
