"""Where the windows of a recording lie, how they are cut, and the cross-fade between them."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
DEFAULT_OVERLAP = 0.25


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Window:
    """A stretch of a recording: float32[C, n] that begins at sample ``start``."""

    start: int
    samples: FloatArray


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WindowPlan:
    """Where windows lie, and how their answers are weighted.

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
