"""Runs windows of recordings through one network: batches, shared encodings, memory limits.

A :class:`Network` takes windows of many recordings at once; a :class:`RecordingStream` takes one
recording through it, block by block. Arrays go to the device and back without making the processor
wait for either.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.devices import cores, first_line, is_out_of_memory, require_working
from model.signal import InputGain, applied
from model.signal.windowing import OverlapAdder, WindowPlan, iter_windows
from model.systems import NORMALISATIONS, Condition, Normalisation, PresenceDetector, Separator

Samples = npt.NDArray[np.float32]
Arriving = Callable[[], Samples]
"""Gives the array; waits until it is there."""


class Transfers(Protocol):
    """How arrays reach a device, and how estimates come back.

    Attributes:
        ahead: how many passes may be under way while the estimates of an earlier one are fetched.
    """

    ahead: int

    def up(self, array: npt.NDArray[np.float32] | npt.NDArray[np.int64]) -> Tensor:
        """The array on the device, ready for what is launched next."""

    def down(self, tensor: Tensor) -> Arriving:
        """Starts to fetch the tensor, as float32."""


class InPlace:
    """Transfers for the CPU, where nothing has to be copied."""

    ahead = 0

    def up(self, array: npt.NDArray[np.float32] | npt.NDArray[np.int64]) -> Tensor:
        """The array itself, as a tensor."""
        return torch.from_numpy(array)

    def down(self, tensor: Tensor) -> Arriving:
        """Gives the tensor's values as an array at once, in float32."""
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


logger = logging.getLogger(__name__)
MODEL_ERRORS = (RuntimeError, ValueError, ArithmeticError, MemoryError)


class SeparationError(RuntimeError):
    """The network could not estimate; ``code`` says why in one word."""

    def __init__(self, code: str, message: str) -> None:
        """An error with a code."""
        super().__init__(message)
        self.code = code


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """How the network is run.

    Only ``normalisation`` changes what comes out by more than rounding.

    Attributes:
        batch_size: the most windows, channels counted, in one forward pass.
        num_threads: threads on a CPU; each runs batches of its own, with one OpenMP thread. 0: as
            many as the machine it runs on has cores.
        normalisation: of the condition.
        fixed_shapes: whether a batch that is not full is filled up with silence, so that a compiled
            network meets the same shapes again.
    """

    batch_size: int = 8
    num_threads: int = 1
    normalisation: Normalisation = "normalised"
    fixed_shapes: bool = False

    def __post_init__(self) -> None:
        """Checks the counts."""
        if self.batch_size < 1 or self.num_threads < 0:
            raise ValueError(f"{self}: batch_size must be at least 1, num_threads at least 0")
        if self.normalisation not in NORMALISATIONS:
            raise ValueError(
                f"normalisation={self.normalisation!r}: expected one of {NORMALISATIONS}"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowQueries:
    """A window float32[C, n] and what is asked of it: positive and negative float32[Q, D].

    ``references`` are the targets themselves, float32[Q, n], for oracles only. ``gain`` is what the
    network hears the window multiplied by, after ``offset``, float32[C], was subtracted; its
    estimates are divided by the gain again, and have no offset.
    """

    samples: Samples
    positive: Samples
    negative: Samples
    references: Samples | None = None
    gain: float = 1.0
    offset: Samples | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowEstimates:
    """float32[Q, C, n], and each query's share of the time in the network.

    ``presence`` is float32[Q, C], the log odds that what a query asks for is there; NaN where the
    separator does not say.
    """

    samples: Samples
    inference_s: tuple[float, ...]
    presence: Samples


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ForwardPass:
    """One forward pass: how many windows, one for each channel, and the seconds it took."""

    num_windows: int
    took_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One channel of one window; rows of equal length share a batch."""

    window: int
    channel: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Launched:
    """A forward pass that may still be under way: for pairs of a row and a query, the estimates."""

    rows: list[_Row]
    pairs: list[tuple[int, int]]
    estimates: list[Arriving]
    presence: list[Arriving]
    started_s: float

    def wait(self) -> list[tuple[Samples, float]]:
        """The estimates, float32[n], and the log odds of presence, in the order of ``pairs``."""
        try:
            found = [samples for arriving in self.estimates for samples in arriving()]
            odds = [float(value) for arriving in self.presence for value in arriving()]
        except MODEL_ERRORS as err:  # a GPU reports late what went wrong in it
            raise SeparationError("model_error", first_line(err)) from err
        return list(zip(found, odds or [math.nan] * len(found), strict=True))


class Network:
    """A separator, and how it is run. Safe to use from several threads."""

    def __init__(
        self,
        separator: Separator,
        device: str,
        settings: NetworkSettings,
        passed: Callable[[ForwardPass], None] | None = None,
    ) -> None:
        """Wraps ``separator``, whose parameters are on ``device``.

        Args:
            separator: the network.
            device: a torch device.
            settings: how it is run.
            passed: told of each forward pass, on the thread that called :meth:`decode`.
        """
        self.separator = separator
        self.device = device
        self.batch_size = settings.batch_size
        self._settings = settings
        self._transfers = transfers_for(device)
        threads = (settings.num_threads or cores()) if device == "cpu" else 1
        self._pool = ThreadPoolExecutor(threads, "network") if threads > 1 else None
        self._num_threads = threads
        self._passed = passed

    def separate(self, windows: Sequence[WindowQueries]) -> list[WindowEstimates]:
        """Separates every window for each of its queries; each channel is encoded once.

        On a GPU a pass is launched before the estimates of the one before are fetched.

        Raises:
            SeparationError: the network failed, or memory is too small for one window.
            MachineError: the network failed, and fails on silence too.
        """
        try:
            return self._separate(windows)
        except SeparationError as err:
            if err.code == "model_error":
                require_working(self._probe, err)
            raise

    def _probe(self) -> None:
        """Separates a window of silence."""
        needs_reference = self.separator.capabilities.needs_reference
        silence = np.zeros((1, self.separator.window_samples), np.float32)
        something = np.eye(1, self.separator.embedding_dim, dtype=np.float32)
        window = WindowQueries(
            samples=silence,
            positive=something,
            negative=np.zeros_like(something),
            references=silence if needs_reference else None,
        )
        rows = self._rows_at_once if self._settings.fixed_shapes else 1
        self._launch([window], [_Row(window=0, channel=0)], rows, rows).wait()

    def _separate(self, windows: Sequence[WindowQueries]) -> list[WindowEstimates]:
        outputs = [np.empty((len(w.positive), *w.samples.shape), dtype=np.float32) for w in windows]
        presence = [np.empty((len(w.positive), len(w.samples)), np.float32) for w in windows]
        seconds = [np.zeros(len(w.positive)) for w in windows]
        passes: list[ForwardPass] = []

        def run(batches: Iterable[list[_Row]]) -> None:
            finished_s = 0.0
            for launched in self._launched_ahead(windows, batches):
                estimates = launched.wait()
                began_s = max(launched.started_s, finished_s)
                finished_s = time.perf_counter()
                took_s = finished_s - began_s
                passes.append(ForwardPass(num_windows=len(launched.rows), took_s=took_s))
                for (index, query), (samples, odds) in zip(launched.pairs, estimates, strict=True):
                    row = launched.rows[index]
                    gain = np.float32(windows[row.window].gain)
                    outputs[row.window][query, row.channel] = samples / gain
                    presence[row.window][query, row.channel] = odds
                    seconds[row.window][query] += took_s / len(estimates)

        batches = list(self._batches(windows))
        if self._pool is None:
            run(batches)
        else:
            list(self._pool.map(run, [[batch] for batch in batches]))
        if self._passed is not None:
            for each in passes:
                self._passed(each)
        return [
            WindowEstimates(
                samples=output, inference_s=tuple(float(s) for s in cost), presence=odds
            )
            for output, cost, odds in zip(outputs, seconds, presence, strict=True)
        ]

    @property
    def _rows_at_once(self) -> int:
        """Rows of a full pass: the batch, shared among the threads."""
        return -(-self._settings.batch_size // self._num_threads)

    def _batches(self, windows: Sequence[WindowQueries]) -> Iterator[list[_Row]]:
        """Rows of equal length: padding a window would change what it gives near its end."""
        by_length: dict[int, list[_Row]] = {}
        for index, window in enumerate(windows):
            rows = by_length.setdefault(window.samples.shape[1], [])
            rows.extend(_Row(window=index, channel=c) for c in range(len(window.samples)))
        for rows in by_length.values():
            size = min(self._settings.batch_size, -(-len(rows) // self._num_threads))
            if self._settings.fixed_shapes:
                size = self._rows_at_once
            for begin in range(0, len(rows), size):
                yield rows[begin : begin + size]

    def _launched_ahead(
        self, windows: Sequence[WindowQueries], batches: Iterable[list[_Row]]
    ) -> Iterator[_Launched]:
        """The passes of all batches in order, each after as many more as may be under way."""
        under_way: deque[_Launched] = deque()
        for rows in batches:
            for launched in self._halving(windows, rows, self._rows_at_once):
                under_way.append(launched)
                if len(under_way) > self._transfers.ahead:
                    yield under_way.popleft()
        yield from under_way

    def _halving(
        self, windows: Sequence[WindowQueries], rows: list[_Row], size: int
    ) -> Iterator[_Launched]:
        """Runs a batch; one that does not fit into memory is cut in two and tried again."""
        fixed = self._settings.fixed_shapes
        size = size if fixed else len(rows)
        queries_at_once = size if fixed else self._settings.batch_size
        while True:
            try:
                yield self._launch(windows, rows, size, queries_at_once)
                return
            except MODEL_ERRORS as err:
                if not is_out_of_memory(err):
                    raise SeparationError("model_error", first_line(err)) from err
                failure = err
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if size > 1:
                logger.debug("out of memory at %d windows: halved", size)
                half = -(-size // 2)
                for begin in range(0, len(rows), half):
                    yield from self._halving(windows, rows[begin : begin + half], half)
                return
            if queries_at_once == 1:
                raise SeparationError(
                    "out_of_memory",
                    f"one window at a time is too much: {first_line(failure)}",
                ) from failure
            queries_at_once //= 2

    def _launch(
        self, windows: Sequence[WindowQueries], rows: list[_Row], size: int, queries_at_once: int
    ) -> _Launched:
        """Starts a pass over ``rows``, filled up with silence to ``size`` rows."""
        started_s = time.perf_counter()
        pairs = [(i, q) for i, r in enumerate(rows) for q in range(len(windows[r.window].positive))]
        first = windows[rows[0].window].samples
        mixture = np.zeros((size, first.shape[1]), dtype=np.float32)
        for place, row in enumerate(rows):
            window = windows[row.window]
            own = slice(row.channel, row.channel + 1)
            offset = None if window.offset is None else window.offset[own]
            mixture[place] = applied(window.samples[own], window.gain, offset)[0]
        found: list[Arriving] = []
        presence: list[Arriving] = []
        with torch.inference_mode():
            encoded = self.separator.encode(self._transfers.up(mixture))
            for begin in range(0, len(pairs), queries_at_once):
                part = pairs[begin : begin + queries_at_once]
                missing = queries_at_once - len(part) if self._settings.fixed_shapes else 0
                asked = part + part[-1:] * missing
                index = self._transfers.up(np.array([row for row, _ in asked], dtype=np.int64))
                chosen, condition = encoded.index(index), self._condition(windows, rows, asked)
                estimate = self.separator.decode(chosen, condition)
                found.append(self._transfers.down(estimate[: len(part)]))
                if isinstance(self.separator, PresenceDetector):
                    odds = self.separator.presence(chosen, condition)
                    if odds is not None:
                        presence.append(self._transfers.down(odds[: len(part)]))
        return _Launched(
            rows=rows, pairs=pairs, estimates=found, presence=presence, started_s=started_s
        )

    def _condition(
        self, windows: Sequence[WindowQueries], rows: list[_Row], pairs: list[tuple[int, int]]
    ) -> Condition:
        def gather(polarity: str) -> torch.Tensor:
            chosen = [getattr(windows[rows[i].window], polarity)[q] for i, q in pairs]
            return self._transfers.up(np.stack(chosen))

        needs_reference = self.separator.capabilities.needs_reference
        return Condition(
            positive=gather("positive"),
            negative=gather("negative"),
            normalisation=self._settings.normalisation,
            reference=gather("references") if needs_reference else None,
        )


class RecordingStream:
    """Takes one recording, block by block, through the network for all its queries.

    Attributes:
        num_windows: windows so far, channels counted.
        inference_s: float64[Q], each query's share of the time in the network so far.
        gains: of the windows so far.
        presence: float64[Q], for each query the highest log odds that what it asks for is in a
            channel of a window so far; NaN: the separator does not say, or there was no window.
    """

    def __init__(
        self, network: Network, plan: WindowPlan, positive: Samples, negative: Samples
    ) -> None:
        """Begins a recording.

        Args:
            network: what separates it.
            plan: its windows and cross-fades.
            positive: float32[Q, D]; zeros for a query without a positive part.
            negative: float32[Q, D], likewise.
        """
        self._network, self._plan = network, plan
        self._positive, self._negative = positive, negative
        self.num_windows = 0
        self.inference_s = np.zeros(len(positive))
        self.gains: list[float] = []
        self.presence = np.full(len(positive), np.nan)

    def pieces(self, blocks: Iterable[Samples], gain: InputGain) -> Iterator[list[Samples]]:
        """Separates the recording, in memory that does not grow with its length.

        Args:
            blocks: float32[C, n] each, consecutive, at the separator's rate; C does not change.
            gain: of the whole recording.

        Yields:
            For each query float32[C, m], m >= 0: what is final of its stem and was not yielded
            before. They do not depend on how the recording was cut into blocks.

        Raises:
            ValueError: there are no samples, or the number of channels changes.
            SeparationError: the network failed.
        """
        adders: list[OverlapAdder] = []
        windows = self.windows(blocks, gain)
        for first in windows:
            num_channels = len(first[1].samples)
            adders = adders or [OverlapAdder(self._plan, num_channels) for _ in self._positive]
            at_once = max(1, self._network.batch_size // num_channels)
            group = [first, *itertools.islice(windows, at_once - 1)]
            estimates = self._network.separate([window for _, window in group])
            for (start, window), estimate in zip(group, estimates, strict=True):
                self.note(window, estimate)
                yield [
                    adder.push(samples, start)
                    for adder, samples in zip(adders, estimate.samples, strict=True)
                ]
        yield [adder.flush() for adder in adders]

    def windows(
        self, blocks: Iterable[Samples], gain: InputGain
    ) -> Iterator[tuple[int, WindowQueries]]:
        """Cuts the recording into windows; for callers that batch those of several recordings.

        Args:
            blocks: as for :meth:`pieces`.
            gain: of the whole recording.

        Yields:
            The first sample of a window, and the window with all that is asked of it.

        Raises:
            ValueError: there are no samples, or the number of channels changes.
        """
        for window in iter_windows(blocks, self._plan):
            yield (
                window.start,
                WindowQueries(
                    samples=window.samples,
                    positive=self._positive,
                    negative=self._negative,
                    gain=gain.at(window.start, window.samples.shape[1]),
                    offset=gain.offset,
                ),
            )

    def note(self, window: WindowQueries, estimates: WindowEstimates) -> None:
        """Adds what the network said of the next window to the attributes."""
        self.gains.append(window.gain)
        self.num_windows += len(window.samples)
        self.inference_s += estimates.inference_s
        self.presence = np.fmax(self.presence, estimates.presence.max(axis=1))
