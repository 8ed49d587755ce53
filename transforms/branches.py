"""Iterators over blocks of samples: shared by several readers, and cut to other lengths."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np

from transforms.elements import Samples

T = TypeVar("T")


class Branches(Generic[T]):
    """One source of tuples, read by one iterator for each place in the tuple.

    What a slower branch has not taken yet is kept, so branches are to be read in turn. Nothing is
    kept for a branch that is closed. What the source raises, every branch raises.
    """

    def __init__(self, source: Iterable[Sequence[T]], count: int) -> None:
        """Reads ``source``, whose items have ``count`` places."""
        self._source = iter(source)
        self._waiting: list[deque[T] | None] = [deque() for _ in range(count)]
        self._error: Exception | None = None
        self._ended = False

    def branch(self, index: int) -> Iterator[T]:
        """The items at one place."""
        while True:
            waiting = self._waiting[index]
            if waiting is None:
                return
            if waiting:
                yield waiting.popleft()
            elif not self._advance():
                return

    def close(self, index: int) -> None:
        """Ends one branch."""
        self._waiting[index] = None

    def _advance(self) -> bool:
        if self._error is not None:
            raise self._error
        if self._ended:
            return False
        try:
            items = next(self._source)
        except StopIteration:
            self._ended = True
            return False
        except Exception as err:
            self._error = err
            raise
        for waiting, item in zip(self._waiting, items, strict=True):
            if waiting is not None:
                waiting.append(item)
        return True


class Cutter:
    """Blocks float32[C, n] of any lengths, given out in pieces of other lengths."""

    def __init__(self, blocks: Iterable[Samples]) -> None:
        """Reads ``blocks`` as far as needed."""
        self._blocks = iter(blocks)
        self._held: list[Samples] = []
        self._num_held = 0

    def take(self, num_samples: int) -> Samples:
        """The next float32[C, num_samples]; zeros where the blocks have ended.

        Raises:
            ValueError: there was no block at all.
        """
        while self._num_held < num_samples:
            block = next(self._blocks, None)
            if block is None:
                if not self._held:
                    raise ValueError("there are no blocks to take from")
                missing = num_samples - self._num_held
                block = np.zeros((len(self._held[-1]), missing), dtype=np.float32)
            self._held.append(block)
            self._num_held += block.shape[1]
        joined = np.concatenate(self._held, axis=1)
        self._held = [joined[:, num_samples:]]
        self._num_held -= num_samples
        return joined[:, :num_samples]
