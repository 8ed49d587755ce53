"""Separates recordings of any length with a network of fixed length, in bounded memory.

The pieces are separate so that a caller can batch windows across recordings: `WindowPlan` says
where windows lie and cuts them, `iter_windows` does so for a recording that arrives in blocks, and
an `OverlapAdder` for each recording puts the estimates together. `separate_blocks` joins the three
for one recording.

Neighbours are cross-faded with raised-cosine weights that add up to one. Where the windows do not
fill the recording exactly, the last one is moved back so that it ends with it: it then holds real
sound where padding would be, and what it shares with its predecessors is averaged.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FloatArray = npt.NDArray[np.float32]
DEFAULT_OVERLAP = 0.25


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Window:
    """A stretch of a recording: float32[C, n] that begins at sample ``start``."""

    start: int
    samples: FloatArray


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WindowPlan:
    """Where windows lie, and how their estimates are weighted.

    Attributes:
        window_samples: length of a window, >= 1.
        overlap: the part of a window that it shares with its successor, in [0, 1).
        tail: ``shift`` moves the last window back to end with the recording (a recording shorter
            than a window is one short window); ``pad`` leaves it in place and fills it with zeros.
        trim: whether the output is as long as the input; if not (only with ``pad``) it keeps what
            the network made of the padding.
    """

    window_samples: int
    overlap: float = DEFAULT_OVERLAP
    tail: Literal["shift", "pad"] = "shift"
    trim: bool = True

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.window_samples < 1:
            raise ValueError(f"window_samples must be at least 1, got {self.window_samples}")
        if not 0.0 <= self.overlap < 1.0:
            raise ValueError(f"overlap must be in [0, 1), got {self.overlap}")
        if self.tail not in ("shift", "pad"):
            raise ValueError(f"tail must be 'shift' or 'pad', got {self.tail!r}")
        if not self.trim and self.tail == "shift":
            raise ValueError("trim=False needs tail='pad': a shifted window has no padding to keep")

    @classmethod
    def application_protocol(cls, window_samples: int) -> WindowPlan:
        """What the authors' demo application does: no overlap, zeros at the end, not trimmed.

        Source:
            The Hugging Face space of CLAPSep, as stored in the golden file ``app_path``.
        """
        return cls(window_samples=window_samples, overlap=0.0, tail="pad", trim=False)

    @property
    def overlap_samples(self) -> int:
        """Samples of a cross-fade; always less than a window."""
        return min(round(self.window_samples * self.overlap), self.window_samples - 1)

    @property
    def hop_samples(self) -> int:
        """Distance between the starts of two windows, the last one aside."""
        return self.window_samples - self.overlap_samples

    def starts(self, num_samples: int) -> tuple[int, ...]:
        """The first sample of every window, ascending.

        Args:
            num_samples: length of the recording, >= 1.

        Raises:
            ValueError: the recording is empty.
        """
        if num_samples < 1:
            raise ValueError("a recording without samples has no windows")
        beyond_first = max(0, num_samples - self.window_samples)
        count = 1 + math.ceil(beyond_first / self.hop_samples)
        starts = [index * self.hop_samples for index in range(count)]
        if self.tail == "shift":
            starts[-1] = min(starts[-1], beyond_first)
        return tuple(starts)

    def output_samples(self, num_samples: int) -> int:
        """How long the output for ``num_samples`` is."""
        last = self.starts(num_samples)[-1]
        return num_samples if self.trim else last + self.window_samples

    def cut(self, recording: FloatArray, start: int) -> FloatArray:
        """The window that begins at ``start``.

        Args:
            recording: float32[C, T].
            start: one of `starts`.

        Returns:
            float32[C, window_samples], shorter only where a shifted plan meets a short recording;
            a view where nothing is padded.
        """
        window = recording[:, start : start + self.window_samples]
        missing = self.window_samples - window.shape[1]
        if missing and self.tail == "pad":
            return np.pad(window, ((0, 0), (0, missing)))
        return window

    def fade(self) -> npt.NDArray[np.float64]:
        """The rising half of a cross-fade; with its mirror image it adds up to one.

        Returns:
            float64[overlap_samples], a raised cosine strictly between 0 and 1.
        """
        count = self.overlap_samples
        quarter_turns = (np.arange(count) + 0.5) / max(count, 1)
        rising: npt.NDArray[np.float64] = np.sin(quarter_turns * (np.pi / 2)) ** 2
        return rising


class OverlapAdder:
    """Joins the estimates of one recording's windows; gives samples away once they are final.

    The weights at each sample are divided by their sum, in float64: what all windows agree on comes
    out unchanged to the last bit. The recording's own ends are not faded. At most two windows and a
    hop are held.
    """

    def __init__(self, plan: WindowPlan, num_channels: int) -> None:
        """Starts a recording.

        Args:
            plan: the plan its windows were cut by.
            num_channels: C of every window.
        """
        self._plan = plan
        self._rising = plan.fade()
        self._held: Window | None = None
        self._begin = 0  # the recording's sample that _sum[:, 0] stands for
        self._sum = np.zeros((num_channels, 0))
        self._weight = np.zeros(0)

    def push(self, estimate: FloatArray, start: int) -> FloatArray:
        """Takes the next window's estimate.

        Args:
            estimate: float32[C, n]: n is window_samples, or less for a recording's only window.
                Copied.
            start: the window's first sample; starts must ascend from 0 and leave no gap.

        Returns:
            float32[C, m], m >= 0: the samples up to ``start`` not handed out before.

        Raises:
            ValueError: a window out of order, or of another shape than the plan allows.
        """
        self._check(estimate, start)
        if self._held is not None:
            self._add(self._held, is_last=False)
        self._held = Window(start=start, samples=estimate.copy())
        return self._take(start)

    def flush(self, num_samples: int | None = None) -> FloatArray:
        """Ends the recording.

        Args:
            num_samples: the recording's length, where padding is to be cut off.

        Returns:
            float32[C, m]: all samples not handed out before.

        Raises:
            ValueError: there was no window.
        """
        if self._held is None:
            raise ValueError("flush before the first window")
        end = self._held.start + self._held.samples.shape[1]
        self._add(self._held, is_last=True)
        self._held = None
        return self._take(end if num_samples is None else min(end, num_samples))

    def _check(self, estimate: FloatArray, start: int) -> None:
        size, num_channels = self._plan.window_samples, self._sum.shape[0]
        if estimate.ndim != 2 or estimate.shape[0] != num_channels:
            raise ValueError(f"expected [{num_channels}, n], got shape {estimate.shape}")
        if self._held is None:
            first, last, shortest = 0, 0, 1
        else:
            held_samples = self._held.samples.shape[1]
            first, last = self._held.start + 1, self._held.start + held_samples
            shortest = size if held_samples == size else size + 1  # a short window stays alone
        if not shortest <= estimate.shape[1] <= size:
            raise ValueError(f"no window of {estimate.shape[1]} samples can follow in {self._plan}")
        if not first <= start <= last:
            raise ValueError(f"a window at {start}, where one in [{first}, {last}] was expected")

    def _add(self, window: Window, *, is_last: bool) -> None:
        num_samples = window.samples.shape[1]
        weight = np.ones(num_samples)
        fade_samples = len(self._rising)
        if fade_samples and window.start > 0:
            weight[:fade_samples] *= self._rising
        if fade_samples and not is_last:
            weight[-fade_samples:] *= self._rising[::-1]
        offset = window.start - self._begin
        grow = max(0, offset + num_samples - len(self._weight))
        self._sum = np.pad(self._sum, ((0, 0), (0, grow)))
        self._weight = np.pad(self._weight, (0, grow))
        self._sum[:, offset : offset + num_samples] += window.samples * weight
        self._weight[offset : offset + num_samples] += weight

    def _take(self, end: int) -> FloatArray:
        count = end - self._begin
        done: FloatArray = (self._sum[:, :count] / self._weight[:count]).astype(np.float32)
        self._sum, self._weight = self._sum[:, count:], self._weight[count:]
        self._begin = end
        return done


def iter_windows(blocks: Iterable[FloatArray], plan: WindowPlan) -> Iterator[Window]:
    """Cuts a recording that arrives in blocks, holding about two windows and a block.

    Args:
        blocks: float32[C, n] each, consecutive, of any lengths; C must not change.
        plan: where to cut.

    Yields:
        The windows of ``plan.starts`` in order, each with its own samples.

    Raises:
        ValueError: there are no samples, or the number of channels changes.
    """
    size, hop = plan.window_samples, plan.hop_samples
    held: FloatArray | None = None
    begin = start = 0  # the recording's samples that held[:, 0] and the next window stand for
    for block in blocks:
        if held is not None and block.shape[0] != held.shape[0]:
            raise ValueError(f"{held.shape[0]} channels became {block.shape[0]}")
        held = block if held is None else np.concatenate([held, block], axis=1)
        end = begin + held.shape[1]
        while start + size <= end:
            yield Window(start=start, samples=held[:, start - begin :][:, :size].copy())
            start += hop
        kept_from = max(begin, min(start, end - size))  # a shifted last window reaches back
        held = held[:, kept_from - begin :].copy()
        begin = kept_from
    if held is None or held.shape[1] == 0:
        raise ValueError("a recording without samples has no windows")
    num_samples = begin + held.shape[1]
    last = plan.starts(num_samples)[-1]
    if last > start - hop:
        yield Window(start=last, samples=plan.cut(held, last - begin).copy())


def separate_blocks(
    blocks: Iterable[FloatArray],
    separate: Callable[[Tensor], Tensor],
    plan: WindowPlan,
    batch_size: int = 1,
) -> Iterator[FloatArray]:
    """Separates a recording that arrives in blocks, in memory that does not grow with its length.

    Args:
        blocks: float32[C, n] each, consecutive, of any lengths; every channel is separated alone.
        separate: float32[B, T] on the CPU to float[B, T] on any device, T <= window_samples, each
            row for itself.
        plan: windows and cross-fades.
        batch_size: the most rows (windows × channels) given to ``separate`` at once.

    Yields:
        float32[C, m], m >= 1; put together they are ``plan.output_samples`` long. They do not
        depend on how the recording was cut into blocks.

    Raises:
        ValueError: there are no samples, the number of channels changes, ``batch_size`` is less
            than 1, or ``separate`` changes the shape.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    received = 0

    def counted() -> Iterator[FloatArray]:
        nonlocal received
        for block in blocks:
            received += block.shape[1]
            yield block

    windows = iter_windows(counted(), plan)
    adder: OverlapAdder | None = None
    while (first := next(windows, None)) is not None:
        num_channels = first.samples.shape[0]
        adder = adder or OverlapAdder(plan, num_channels)
        more = itertools.islice(windows, max(1, batch_size // num_channels) - 1)
        group = [first, *more]
        estimates = _separate_rows(
            np.concatenate([window.samples for window in group]), separate, batch_size
        )
        for window, estimate in zip(group, np.split(estimates, len(group)), strict=True):
            done = adder.push(estimate, window.start)
            if done.shape[1]:
                yield done
    if adder is not None:
        yield adder.flush(received if plan.trim else None)


def separate_array(
    recording: FloatArray,
    separate: Callable[[Tensor], Tensor],
    plan: WindowPlan,
    batch_size: int = 1,
) -> FloatArray:
    """`separate_blocks` for a recording in memory.

    Args:
        recording: float32[C, T], T >= 1; left untouched.
        separate: see `separate_blocks`.
        plan: windows and cross-fades.
        batch_size: see `separate_blocks`.

    Returns:
        float32[C, plan.output_samples(T)]; where one window is enough, exactly what it gave.

    Raises:
        ValueError: see `separate_blocks`.
    """
    return np.concatenate(list(separate_blocks([recording], separate, plan, batch_size)), axis=1)


def _separate_rows(
    rows: FloatArray, separate: Callable[[Tensor], Tensor], batch_size: int
) -> FloatArray:
    """Runs float32[N, T] in batches of at most ``batch_size`` rows."""
    estimates = []
    for begin in range(0, len(rows), batch_size):
        batch = torch.from_numpy(rows[begin : begin + batch_size])
        estimate = separate(batch)
        if estimate.shape != batch.shape:
            raise ValueError(f"separate made {tuple(estimate.shape)} of {tuple(batch.shape)}")
        estimates.append(estimate.detach().float().cpu().numpy())
    return np.concatenate(estimates)
