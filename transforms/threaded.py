"""Runs work ahead of, or behind, the thread of a bundle; registers the coders of our records."""

from __future__ import annotations

import dataclasses
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

import apache_beam as beam
from apache_beam.coders import Coder
from apache_beam.coders.typecoders import registry
from apache_beam.metrics.metric import Metrics
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import BoundedWindow, GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from manifests import shards
from manifests.row import ManifestRow
from transforms import elements, storage
from transforms.elements import num_bytes


class RecordCoder(Coder):
    """Pickles a record; the size is estimated from its arrays and not by pickling it."""

    def encode(self, value: object) -> bytes:
        """Bytes of a record."""
        return pickle.dumps(value, protocol=5)

    def decode(self, encoded: bytes) -> object:
        """The record again."""
        return pickle.loads(encoded)  # noqa: S301 - Beam's own shuffle files, written by `encode`

    def estimate_size(self, value: object) -> int:
        """Approximate size in bytes."""
        return 512 + num_bytes(value)

    def is_deterministic(self) -> bool:
        """Not used for keys."""
        return False


class RowCoder(RecordCoder):
    """Pickles the fields of a manifest row without the names of its class and of its fields."""

    def encode(self, value: Any) -> bytes:
        """Bytes of a row."""
        return pickle.dumps(value.__getstate__(), protocol=5)

    def decode(self, encoded: bytes) -> ManifestRow:
        """The row again, which was checked when it was made."""
        return _row(pickle.loads(encoded))  # noqa: S301 - as above


class MixtureRowsCoder(RecordCoder):
    """Pickles the fields of several rows, which are most of what a run shuffles."""

    def encode(self, value: Any) -> bytes:
        """Bytes of the rows."""
        return pickle.dumps([row.__getstate__() for row in value.rows], protocol=5)

    def decode(self, encoded: bytes) -> elements.MixtureRows:
        """The rows again."""
        states = pickle.loads(encoded)  # noqa: S301 - as above
        return elements.MixtureRows(rows=tuple(map(_row, states)))


def _row(state: list[Any]) -> ManifestRow:
    row = object.__new__(ManifestRow)
    row.__setstate__(state)  # type: ignore[attr-defined]
    return row


RECORDS = (
    elements.Failure, elements.Query, elements.EmbeddedQuery,
    elements.MetricsRow, elements.RowQuery, elements.MixtureQueries, elements.Clip,
    elements.LongRecording, elements.Stem, elements.SeparatedClip, elements.Scores,
    elements.ScoredClip, elements.KeptFile, elements.KeptRow, elements.KeptLetter, elements.Damage,
    elements.Leaving, shards.Listed, shards.Skipped,
)  # fmt: skip

for _record in RECORDS:
    registry.register_coder(_record, RecordCoder)
registry.register_coder(ManifestRow, RowCoder)
registry.register_coder(elements.MixtureRows, MixtureRowsCoder)


In = TypeVar("In")
Out = TypeVar("Out")
_In = TypeVar("_In", contravariant=True)
_Out = TypeVar("_Out", covariant=True)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """How much runs beside the network: ``num_threads`` threads, ``max_pending`` elements.

    A thread for each element, since most of them wait for storage.
    """

    num_threads: int = 8
    max_pending: int = 8

    def __post_init__(self) -> None:
        """Checks the counts."""
        if self.num_threads < 1 or self.max_pending < 1:
            raise ValueError(f"{self}: both counts must be at least 1")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Timed(Generic[Out]):
    result: Out
    took_msec: float


class LookAhead(Generic[In, Out]):
    """Applies a function on a few threads and gives the results back in the order of submission.

    A DoFn calls :meth:`push` for each element and yields what comes back, and yields what
    :meth:`drain` gives when the bundle ends. Between calls the threads go on, so that files are
    read while the bundle's thread waits in the network. At most ``max_pending`` results are held.
    An exception of the function surfaces from ``push`` or ``drain`` and fails the bundle. How long
    it took for each element goes into the distribution ``namespace/<name>_msec``, on the bundle's
    thread: Beam does not see what other threads count.
    """

    def __init__(
        self, function: Callable[[In], Out], overlap: Overlap, namespace: str, name: str
    ) -> None:
        """Applies ``function`` on threads that are called ``name``."""
        self._function = function
        self._took = Metrics.distribution(namespace, f"{name}_msec")
        self._max_pending = overlap.max_pending
        self._pool = ThreadPoolExecutor(overlap.num_threads, thread_name_prefix=name)
        self._pending: deque[Future[_Timed[Out]]] = deque()

    def push(self, element: In) -> Iterator[Out]:
        """Starts work on ``element`` and gives back what must leave to stay within the bound."""
        self._pending.append(self._pool.submit(self._timed, element))
        while self._pending and (len(self._pending) > self._max_pending or self._pending[0].done()):
            yield self._next()
        storage.publish()

    def drain(self) -> Iterator[Out]:
        """Everything that is still under way."""
        while self._pending:
            yield self._next()
        storage.publish()

    def map(self, elements: Iterable[In]) -> Iterator[Out]:
        """The results of all elements, in order; for a DoFn that needs them before it goes on."""
        self.reset()
        for element in elements:
            yield from self.push(element)
        yield from self.drain()

    def reset(self) -> None:
        """Forgets what an earlier, failed bundle left behind."""
        while self._pending:
            self._pending.popleft().cancel()

    def close(self) -> None:
        """Ends the threads; what had not begun is dropped."""
        self.reset()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _timed(self, element: In) -> _Timed[Out]:
        started_s = time.perf_counter()
        return _Timed(
            result=self._function(element), took_msec=1_000 * (time.perf_counter() - started_s)
        )

    def _next(self) -> Out:
        timed = self._pending.popleft().result()
        self._took.update(round(timed.took_msec))
        return timed.result


class Ahead(Protocol[_In, _Out]):
    """What a :class:`LookAheadFn` puts elements through; see :class:`LookAhead`."""

    def push(self, element: _In) -> Iterator[_Out]:
        """Starts work on an element and gives what is done."""

    def drain(self) -> Iterator[_Out]:
        """Gives everything that is still under way."""

    def reset(self) -> None:
        """Forgets what an earlier, failed bundle left behind."""

    def close(self) -> None:
        """Ends the threads."""


class LookAheadFn(beam.DoFn, Generic[In, Out]):
    """A DoFn that puts its elements through a :class:`LookAhead`; the work is a subclass's.

    Its arguments are those of the :class:`LookAhead`.
    """

    _ahead: Ahead[In, Sequence[Out]]

    def __init__(self, overlap: Overlap, namespace: str, name: str) -> None:
        self._overlap, self._namespace, self._name = overlap, namespace, name

    def work(self, element: In) -> Sequence[Out]:
        """What an element gives; on one of the threads."""
        raise NotImplementedError

    def emit(self, result: Out) -> Any:
        """A result as an output, tagged or not; on the bundle's thread, where one can count."""
        raise NotImplementedError

    def setup(self) -> None:
        """Starts the threads."""
        self._ahead = LookAhead(self.work, self._overlap, self._namespace, self._name)

    def teardown(self) -> None:
        """Ends the threads."""
        self._ahead.close()

    def start_bundle(self) -> None:
        """Begins with nothing under way."""
        self._ahead.reset()

    def process(self, element: Any) -> Iterator[Any]:
        """Starts work on an element; gives what is done."""
        for results in self._ahead.push(element):
            yield from map(self.emit, results)

    def finish_bundle(self) -> Iterator[Any]:
        """Gives the rest."""
        window = GlobalWindow()
        for results in self._ahead.drain():
            for result in results:
                yield in_window(self.emit(result), window)


def in_window(result: Any, window: BoundedWindow) -> Any:
    """An output of ``finish_bundle``, which must say its window, tagged or not."""
    if isinstance(result, TaggedOutput):
        return TaggedOutput(result.tag, in_window(result.value, window))
    return WindowedValue(result, window.max_timestamp(), (window,))
