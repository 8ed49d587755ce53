"""Runs windows of recordings through one network: batches, shared encodings, memory limits.

A :class:`Network` takes windows of many recordings at once; a :class:`RecordingStream` takes one
recording through it, block by block. Arrays go to the device and back without making the processor
wait for either. On CUDA what is done again and again with tensors of the same shapes becomes a CUDA
graph (:class:`Graphs`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.devices import (
    captured,
    cores,
    first_line,
    is_out_of_memory,
    on_stream,
    require_working,
)
from model.signal import InputGain, applied
from model.signal.windowing import OverlapAdder, WindowPlan, iter_windows
from model.systems import NORMALISATIONS, Condition, Normalisation, PresenceDetector, Separator

Samples = npt.NDArray[np.float32]
Arriving = Callable[[], Samples]
"""Gives the array; waits until it is there."""
EAGER_CALLS = 2
"""How often a shape is run operation by operation before it is recorded."""
MOST_GRAPHS = 16
"""Of a network. Each keeps its results, and its list of operations, in the device's memory."""
_SHAPES_COUNTED = 1_024
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


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


class Eager:
    """Runs a separator operation by operation."""

    def __init__(self, separator: Separator) -> None:
        """Runs ``separator``."""
        self._separator = separator

    def undisturbed(self, launching: Iterable[_Result]) -> Iterable[_Result]:
        """Launches an encoding and all that is asked of it, with no other encoding in between."""
        return launching

    def encode(self, mixture: Tensor) -> Any:
        """The separator's encoding of float32[M, T]."""
        return self._separator.encode(mixture)

    def answer(
        self, encoded: Any, rows: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor | None]:
        """Answers queries, each about a row of an encoding.

        Args:
            encoded: of :meth:`encode`.
            rows: int64[Q].
            condition: Q queries.

        Returns:
            The estimates, float32[Q, T], and the log odds of presence, float32[Q], from a separator
            that says them.
        """
        chosen = encoded.index(rows)
        estimates = self._separator.decode(chosen, condition)
        if not isinstance(self._separator, PresenceDetector):
            return estimates, None
        return estimates, self._separator.presence(chosen, condition)

    def give_up(self, reason: BaseException) -> bool:
        """Changes over to what needs less; returns whether there was anything to change."""
        return False


class Recorder(Protocol):
    """Makes graphs."""

    def record(self, function: Callable[[], _Result]) -> tuple[Callable[[], object], _Result]:
        """Gives what runs a function's operations again, and the tensors of its results.

        The tensors have values once the operations were run.
        """

    def wait(self) -> None:
        """Waits until no graph is running."""


class CudaRecorder:
    """Makes CUDA graphs, which share their memory: they run one after the other."""

    def __init__(self, device: torch.device) -> None:
        """Makes graphs for ``device``."""
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, function: Callable[[], _Result]) -> tuple[Callable[[], object], _Result]:
        """Runs the function once and captures it."""
        on_stream(self._stream, function)
        graph, results = captured(function, self._stream, self._pool)
        return graph.replay, results

    def wait(self) -> None:
        """Waits for the device."""
        torch.cuda.synchronize(self._stream.device)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Graph:
    """A recorded function: the tensors that it reads, and those that it writes."""

    inputs: tuple[Tensor, ...]
    results: Any
    replay: Callable[[], object]

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        """The function's results, which the next call overwrites."""
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.replay()
        return self.results


class Graphs(Eager):
    """Replays as one graph what a separator does with tensors of shapes that it has met before.

    A network is 300 to 500 operations, which take a processor about as long to launch as a GPU to
    compute, where batches are small. A shape is run operation by operation at first, recorded when
    it comes a third time, and replayed from then on. Shapes that stay rare, such as the last batch
    of many, are not recorded: nothing is filled up with silence, and a graph costs memory. All
    copies into a graph's tensors and out of them are on the stream that replays it.

    Whatever cannot be recorded, or fails once there are graphs, ends their use for good, with one
    warning; the same operations are then launched one by one, and the results are the same.
    """

    def __init__(self, separator: Separator, recorder: Recorder) -> None:
        """Records what ``separator`` does."""
        super().__init__(separator)
        self._recorder = recorder
        self._stopped = False
        self._lock = threading.RLock()
        self._met: Counter[tuple[int, ...]] = Counter()
        self._graphs: dict[tuple[int, ...], _Graph] = {}

    def undisturbed(self, launching: Iterable[_Result]) -> Iterable[_Result]:
        """Keeps other threads out until everything was launched: a graph has one set of tensors."""
        with self._lock:
            return list(launching)

    def encode(self, mixture: Tensor) -> Any:
        """As :class:`Eager`; the next call may overwrite the encoding."""
        return self._run(tuple(mixture.shape), super().encode, (mixture,))

    def answer(
        self, encoded: Any, rows: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor | None]:
        """As :class:`Eager`; only what is asked of a replayed encoding can be replayed."""
        known = (shape for shape, graph in self._graphs.items() if graph.results is encoded)
        shape = next(known, None)
        if shape is None:
            return super().answer(encoded, rows, condition)

        def answer(
            rows: Tensor, positive: Tensor, negative: Tensor, reference: Tensor | None = None
        ) -> tuple[Tensor, Tensor | None]:
            asked = dataclasses.replace(
                condition, positive=positive, negative=negative, reference=reference
            )
            return Eager.answer(self, encoded, rows, asked)

        parts = (rows, condition.positive, condition.negative, condition.reference)
        inputs = tuple(part for part in parts if part is not None)
        estimates, odds = self._run((*shape, len(rows)), answer, inputs)
        return estimates.clone(), None if odds is None else odds.clone()

    @property
    def recorded(self) -> int:
        """How many graphs there are."""
        return len(self._graphs)

    def give_up(self, reason: BaseException) -> bool:
        """Runs operation by operation from here on, if there are graphs; says so once."""
        with self._lock:
            if not self._graphs:
                return False
            self._stop(reason)
            return True

    def _run(
        self, shape: tuple[int, ...], function: Callable[..., Any], inputs: tuple[Tensor, ...]
    ) -> Any:
        graph = self._graphs.get(shape)
        if graph is None and self._worth_recording(shape):
            graph = self._record(shape, function, inputs)
        return function(*inputs) if graph is None else graph(inputs)

    def _worth_recording(self, shape: tuple[int, ...]) -> bool:
        if self._stopped or len(self._graphs) >= MOST_GRAPHS:
            return False
        if len(self._met) >= _SHAPES_COUNTED:
            self._met.clear()
        self._met[shape] += 1
        return self._met[shape] > EAGER_CALLS

    def _record(
        self, shape: tuple[int, ...], function: Callable[..., Any], inputs: tuple[Tensor, ...]
    ) -> _Graph | None:
        try:
            mine = tuple(given.clone() for given in inputs)
            replay, results = self._recorder.record(lambda: function(*mine))
        except MODEL_ERRORS as err:
            self._stop(err)
            return None
        graph = _Graph(inputs=mine, results=results, replay=replay)
        self._graphs[shape] = graph
        return graph

    def _stop(self, reason: BaseException) -> None:
        logger.warning(
            "CUDA graphs are not used from here on: %s; operations are launched one by one, with "
            "the same results",
            first_line(reason),
        )
        with contextlib.suppress(RuntimeError):  # what is broken fails again where it is asked for
            self._recorder.wait()
        self._stopped = True
        self._graphs.clear()
        self._met.clear()


def forward_for(separator: Separator, device: str, *, graphs: bool) -> Eager:
    """How a separator is run on a torch device.

    CUDA's own variable for finding the operation that failed, ``CUDA_LAUNCH_BLOCKING=1``, keeps
    operations apart. ROCm's graphs are not used: they were never tried here.
    """
    chosen = torch.device(device)
    together = os.environ.get("CUDA_LAUNCH_BLOCKING", "0") == "0" and torch.version.hip is None
    if graphs and together and chosen.type == "cuda":
        return Graphs(separator, CudaRecorder(chosen))
    return Eager(separator)


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
        graphs: whether shapes that come again are replayed as CUDA graphs, on CUDA; without, for
            comparisons.
    """

    batch_size: int = 8
    num_threads: int = 1
    normalisation: Normalisation = "normalised"
    fixed_shapes: bool = False
    graphs: bool = True

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


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class _Pass:
    """One forward pass: rows that are encoded together, and what is asked of each of them.

    ``pairs`` are indices of a row and of a query of its window; ``spent_s`` is the time that
    encoding and decoding took, on however many threads.
    """

    rows: list[_Row]
    pairs: list[tuple[int, int]]
    spent_s: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Encoded:
    """What the separator made of the rows of a pass."""

    of: _Pass
    values: Any
    started_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Decoding:
    """The estimates for some pairs of a pass, which may still be under way."""

    of: _Pass
    pairs: list[tuple[int, int]]
    estimates: Arriving
    presence: Arriving | None
    started_s: float

    def wait(self) -> list[tuple[Samples, float]]:
        """The estimates, float32[n], and the log odds of presence, in the order of ``pairs``."""
        try:
            found = list(self.estimates())
            odds = [math.nan] * len(found)
            if self.presence is not None:
                odds = [float(value) for value in self.presence()]
        except MODEL_ERRORS as err:  # a GPU reports late what went wrong in it
            raise SeparationError("model_error", first_line(err)) from err
        return list(zip(found, odds, strict=True))


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
        self._forward = forward_for(separator, device, graphs=settings.graphs)
        self._num_threads = (settings.num_threads or cores()) if device == "cpu" else 1
        self._threads = self._started()
        self._passed = passed

    def _started(self) -> tuple[int, ThreadPoolExecutor | None]:
        """This process, and threads of it where there are to be several."""
        pool = ThreadPoolExecutor(self._num_threads, "network") if self._num_threads > 1 else None
        return os.getpid(), pool

    @property
    def _pool(self) -> ThreadPoolExecutor | None:
        """The threads of this process: one that was forked has none of its parent's."""
        if self._threads[0] != os.getpid():
            self._threads = self._started()
        return self._threads[1]

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
            if err.code != "model_error":
                raise
            if not self._forward.give_up(err):
                require_working(self._probe, err)
                raise
        return self.separate(windows)

    def map(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
        """Applies a function to items on the threads of the network; for what follows a pass."""
        pool = self._pool
        return list(map(function, items) if pool is None else pool.map(function, items))

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
        encoded = self._encode([window], [_Row(window=0, channel=0)], rows)
        self._decode([window], encoded, encoded.of.pairs, rows, encoded.started_s).wait()

    def _separate(self, windows: Sequence[WindowQueries]) -> list[WindowEstimates]:
        outputs = [np.empty((len(w.positive), *w.samples.shape), dtype=np.float32) for w in windows]
        presence = [np.empty((len(w.positive), len(w.samples)), np.float32) for w in windows]

        def take(decoding: _Decoding) -> None:
            for (index, query), (samples, odds) in zip(
                decoding.pairs, decoding.wait(), strict=True
            ):
                row = decoding.of.rows[index]
                gain = np.float32(windows[row.window].gain)
                outputs[row.window][query, row.channel] = samples / gain
                presence[row.window][query, row.channel] = odds

        pool = self._pool
        if pool is None:
            passes = self._one_after_another(windows, take)
        else:
            passes = self._on_threads(windows, pool, take)
        seconds = [np.zeros(len(w.positive)) for w in windows]
        for each in passes:
            for index, query in each.pairs:
                seconds[each.rows[index].window][query] += each.spent_s / len(each.pairs)
            if self._passed is not None:
                self._passed(ForwardPass(num_windows=len(each.rows), took_s=each.spent_s))
        return [
            WindowEstimates(
                samples=output, inference_s=tuple(float(s) for s in cost), presence=odds
            )
            for output, cost, odds in zip(outputs, seconds, presence, strict=True)
        ]

    def _one_after_another(
        self, windows: Sequence[WindowQueries], take: Callable[[_Decoding], None]
    ) -> list[_Pass]:
        """Runs the passes on this thread; decoding is launched before earlier estimates arrive."""
        passes: list[_Pass] = []
        finished_s = 0.0
        for decoding in self._launched_ahead(windows):
            take(decoding)
            began_s = max(decoding.started_s, finished_s)
            finished_s = time.perf_counter()
            decoding.of.spent_s += finished_s - began_s
            if not passes or passes[-1] is not decoding.of:
                passes.append(decoding.of)
        return passes

    def _launched_ahead(self, windows: Sequence[WindowQueries]) -> Iterator[_Decoding]:
        """The decoding of all passes in order, each after as many more as may be under way."""
        under_way: deque[_Decoding] = deque()
        total = _num_pairs(windows)
        for rows in self._batches(windows):
            for decoding in self._forward.undisturbed(self._launched(windows, rows, total)):
                under_way.append(decoding)
                if len(under_way) > self._transfers.ahead:
                    yield under_way.popleft()
        yield from under_way

    def _launched(
        self, windows: Sequence[WindowQueries], rows: list[_Row], total: int
    ) -> Iterator[_Decoding]:
        """Encodes rows, and launches the decoding of all that is asked of them."""
        for encoded in self._encoded(windows, rows):
            started_s = encoded.started_s
            for pairs in self._parts(encoded, total):
                yield from self._decoded(windows, encoded, pairs, started_s)
                started_s = time.perf_counter()

    def _on_threads(
        self,
        windows: Sequence[WindowQueries],
        pool: ThreadPoolExecutor,
        take: Callable[[_Decoding], None],
    ) -> list[_Pass]:
        """Encodes and decodes on several threads: the queries of one row keep all of them busy."""
        total = _num_pairs(windows)

        def encode(rows: list[_Row]) -> list[_Encoded]:
            found = []
            for encoded in self._encoded(windows, rows):
                encoded.of.spent_s = time.perf_counter() - encoded.started_s
                found.append(encoded)
            return found

        def decode(encoded: _Encoded, pairs: list[tuple[int, int]]) -> float:
            started_s = time.perf_counter()
            for decoding in self._decoded(windows, encoded, pairs, started_s):
                take(decoding)
            return time.perf_counter() - started_s

        batches = self._batches(windows)
        encoding = deque(
            pool.submit(encode, rows) for rows in itertools.islice(batches, self._num_threads)
        )
        decoding: list[tuple[_Pass, Future[float]]] = []
        passes: list[_Pass] = []
        try:
            while encoding:
                for encoded in encoding.popleft().result():
                    passes.append(encoded.of)
                    decoding += [
                        (encoded.of, pool.submit(decode, encoded, pairs))
                        for pairs in self._parts(encoded, total)
                    ]
                # One batch more for each that was encoded: what is encoded waits in memory.
                encoding.extend(pool.submit(encode, rows) for rows in itertools.islice(batches, 1))
            for each, future in decoding:
                each.spent_s += future.result()
        finally:
            left: list[Future[Any]] = [*encoding, *(future for _, future in decoding)]
            for future in left:
                future.cancel()
        return passes

    @property
    def _rows_at_once(self) -> int:
        """Rows of a full pass: the batch, shared among the threads."""
        return -(-self._settings.batch_size // self._num_threads)

    def _parts(self, encoded: _Encoded, total: int) -> list[list[tuple[int, int]]]:
        """Cuts the pairs of a pass: as many parts for each thread, none larger than a full pass.

        Args:
            encoded: the pass.
            total: pairs of all passes.
        """
        pairs, most = encoded.of.pairs, self._rows_at_once
        count = -(-len(pairs) // most)
        if not self._settings.fixed_shapes:
            parts = self._num_threads * -(-total // (self._num_threads * most))
            count = min(len(pairs), -(-parts * len(pairs) // total))
        cuts = [len(pairs) * index // count for index in range(count + 1)]
        return [pairs[begin:end] for begin, end in itertools.pairwise(cuts)]

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

    def _encoded(self, windows: Sequence[WindowQueries], rows: list[_Row]) -> Iterator[_Encoded]:
        """Encodes rows together, as far as they fit into memory."""
        encode = functools.partial(self._encode, windows)
        return self._fitting(encode, rows, self._rows_at_once)

    def _decoded(
        self,
        windows: Sequence[WindowQueries],
        encoded: _Encoded,
        pairs: list[tuple[int, int]],
        started_s: float,
    ) -> Iterator[_Decoding]:
        """Launches the decoding of pairs, as far as they fit into memory."""

        def decode(part: list[tuple[int, int]], size: int) -> _Decoding:
            return self._decode(windows, encoded, part, size, started_s)

        for decoding in self._fitting(decode, pairs, self._rows_at_once):
            yield decoding
            started_s = time.perf_counter()

    def _fitting(
        self, run: Callable[[list[_Item], int], _Result], items: list[_Item], size: int
    ) -> Iterator[_Result]:
        """What ``run`` makes of items together; what memory is too small for is cut in two.

        Args:
            run: takes items, and the number that they are filled up to.
            items: of one pass.
            size: that number, where shapes are fixed; otherwise it is theirs.
        """
        size = size if self._settings.fixed_shapes else len(items)
        try:
            made = run(items, size)
        except MODEL_ERRORS as err:
            fits = self._less_than(size, err)
        else:
            yield made
            return
        _free_memory()
        for begin in range(0, len(items), fits):
            yield from self._fitting(run, items[begin : begin + fits], fits)

    def _less_than(self, size: int, err: Exception) -> int:
        """Half of a size for which memory was too small; the same without graphs, if there are.

        Raises:
            SeparationError: the error is not about memory, or there is nothing to cut in two.
        """
        if not is_out_of_memory(err):
            raise SeparationError("model_error", first_line(err)) from err
        if self._forward.give_up(err):
            return size
        if size == 1:
            message = f"one window at a time is too much: {first_line(err)}"
            raise SeparationError("out_of_memory", message) from err
        logger.debug("out of memory at %d windows: halved", size)
        return -(-size // 2)

    def _encode(self, windows: Sequence[WindowQueries], rows: list[_Row], size: int) -> _Encoded:
        """Encodes ``rows``, filled up with silence to ``size`` rows."""
        started_s = time.perf_counter()
        pairs = [(i, q) for i, r in enumerate(rows) for q in range(len(windows[r.window].positive))]
        first = windows[rows[0].window].samples
        mixture = np.zeros((size, first.shape[1]), dtype=np.float32)
        for place, row in enumerate(rows):
            window = windows[row.window]
            own = slice(row.channel, row.channel + 1)
            offset = None if window.offset is None else window.offset[own]
            mixture[place] = applied(window.samples[own], window.gain, offset)[0]
        with torch.inference_mode():
            values = self._forward.encode(self._transfers.up(mixture))
        return _Encoded(of=_Pass(rows=rows, pairs=pairs), values=values, started_s=started_s)

    def _decode(
        self,
        windows: Sequence[WindowQueries],
        encoded: _Encoded,
        pairs: list[tuple[int, int]],
        at_once: int,
        started_s: float,
    ) -> _Decoding:
        """Starts to decode ``pairs``, filled up with the last one to ``at_once``."""
        asked = pairs + pairs[-1:] * (at_once - len(pairs))
        with torch.inference_mode():
            index = self._transfers.up(np.array([row for row, _ in asked], dtype=np.int64))
            condition = self._condition(windows, encoded.of.rows, asked)
            answers, odds = self._forward.answer(encoded.values, index, condition)
            estimates = self._transfers.down(answers[: len(pairs)])
            presence = None if odds is None else self._transfers.down(odds[: len(pairs)])
        return _Decoding(
            of=encoded.of, pairs=pairs, estimates=estimates, presence=presence, started_s=started_s
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


def _num_pairs(windows: Sequence[WindowQueries]) -> int:
    """Estimates that are asked for: one for each channel and query."""
    return sum(len(window.positive) * len(window.samples) for window in windows)


def _free_memory() -> None:
    """Gives back what torch keeps of a device's memory."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class RecordingStream:
    """Takes one recording, block by block, through the network for all its queries.

    Attributes:
        num_windows: windows so far, channels counted.
        inference_s: float64[Q], each query's share of the time in the network so far.
        gains: of the windows so far.
        presence: float64[Q], for each query the highest log odds that what it asks for is in a
            channel of a window so far; NaN: the separator does not say, or there was no window.
        seeks: bool[Q], whether a query has a positive part: what is to be suppressed alone names
            nothing that presence could be of.
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
        self.seeks = positive.any(axis=1)

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
