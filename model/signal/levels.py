"""The level at which a network hears a recording: one rule, in training and in inference.

A network that was trained at one level separates worse at another, and whoever records a bird at
dawn cannot choose. So a recording is scaled to the level of the system before the network hears it,
and what comes out is scaled back by the same factor.

The level of a recording is that of its loudest block of 5 s: the part that carries the sound, not
the pauses around it. A recording of up to 30 s has one gain. In a longer one the gain follows the
loud blocks around a window: away from one, before it as after it, the level in dB falls to that of
the quietest block with a time constant of 30 s. So a quiet sound a minute away from a loud one is
heard nearly as well as if it stood alone, and no two windows differ by a step. All blocks are
measured before the first window is heard: the gains are the same whether a recording is held in
memory or streamed.

Silence is not blown up. A block counts as at most :data:`FLOOR_DB` quieter than the loudest: no
stretch of a recording is raised by more than that above another. A level below
:data:`QUIETEST_DBFS` counts as this.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

BLOCK_S = 5.0
ONE_GAIN_S = 30.0
"""Up to this length a recording has one gain."""
TIME_CONSTANT_S = 30.0
FLOOR_DB = 40.0
"""How far below the loudest block the level of a stretch counts at least."""
QUIETEST_DBFS = -90.0
"""A level below this counts as this: the noise of 16 bits is not made a sound."""

FloatArray = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InputGain:
    """What a recording's windows are multiplied by before the network hears them.

    Attributes:
        block_samples: samples a value of ``gains_db`` stands for.
        gains_db: float64[N], by block; a single one for the whole recording.
    """

    block_samples: int
    gains_db: npt.NDArray[np.float64]

    def at_db(self, start: int, num_samples: int) -> float:
        """The gain of a window, in dB: that at its middle, between blocks interpolated."""
        middle = (start + num_samples / 2) / self.block_samples - 0.5
        return float(np.interp(middle, np.arange(len(self.gains_db)), self.gains_db))

    def at(self, start: int, num_samples: int) -> float:
        """The gain of a window, as a factor."""
        return math.pow(10.0, self.at_db(start, num_samples) / 20.0)


AS_IT_IS = InputGain(block_samples=1, gains_db=np.zeros(1))
"""Changes nothing."""


class LevelMeter:
    """Measures a recording that arrives in pieces: a number for every 5 s is kept."""

    def __init__(self, sample_rate_hz: int) -> None:
        """Starts a recording of that rate."""
        self._block_samples = round(BLOCK_S * sample_rate_hz)
        self._one_gain_samples = round(ONE_GAIN_S * sample_rate_hz)
        self._num_samples = 0
        self._energies: list[float] = []
        self._open: list[npt.NDArray[np.float64]] = []
        self._num_open = 0

    def add(self, piece: FloatArray) -> None:
        """Hears the next float32[C, n].

        A block is summed when it is whole: how a recording was cut into pieces changes no bit.
        """
        squares = np.square(piece, dtype=np.float64).mean(axis=0)
        self._num_samples += len(squares)
        while len(squares):
            part = squares[: self._block_samples - self._num_open]
            self._open.append(part)
            self._num_open += len(part)
            squares = squares[len(part) :]
            if self._num_open == self._block_samples:
                self._energies.append(self._open_energy())
                self._open, self._num_open = [], 0

    def _open_energy(self) -> float:
        return float(np.concatenate(self._open).sum()) if self._open else 0.0

    def gain(self, level_dbfs: float | None) -> InputGain:
        """What brings what was heard to a level; None, or nothing but silence, leaves it as it is.

        Args:
            level_dbfs: the root mean square of a block, in dB of full scale, that the loudest block
                around a window is brought to.
        """
        energies = [*self._energies, self._open_energy()] if self._open else self._energies
        if level_dbfs is None or not any(energies):
            return AS_IT_IS
        levels = _decibels(np.array(energies) / min(self._block_samples, self._num_samples))
        if self._num_samples <= self._one_gain_samples:
            levels = levels.max(keepdims=True)
        else:
            levels = _envelope(np.maximum(levels, levels.max() - FLOOR_DB))
        gains_db = level_dbfs - np.maximum(levels, QUIETEST_DBFS)
        return InputGain(block_samples=self._block_samples, gains_db=gains_db)


def input_gain(
    pieces: Iterable[FloatArray], sample_rate_hz: int, level_dbfs: float | None
) -> InputGain:
    """The gain of a recording float32[C, n], in one piece or several; see the module.

    Args:
        pieces: read only where there is a level to bring them to.
        sample_rate_hz: their rate.
        level_dbfs: see :meth:`LevelMeter.gain`.
    """
    if level_dbfs is None:
        return AS_IT_IS
    meter = LevelMeter(sample_rate_hz)
    for piece in pieces:
        meter.add(piece)
    return meter.gain(level_dbfs)


def at_level(clip: FloatArray, sample_rate_hz: int, level_dbfs: float | None) -> FloatArray:
    """A clip as a network hears it that has one gain for it, whatever its length: an example clip.

    Args:
        clip: float32[T]; left untouched.
        sample_rate_hz: its rate.
        level_dbfs: of its loudest 5 s; None: as it is.
    """
    gain = input_gain([clip[None]], sample_rate_hz, level_dbfs)
    return clip if gain is AS_IT_IS else clip * np.float32(10.0 ** (gain.gains_db.min() / 20.0))


def _decibels(power: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    decibels: npt.NDArray[np.float64] = 10.0 * np.log10(np.maximum(power, 1e-300))
    return decibels


def _envelope(levels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of each block, the highest of all levels, each faded towards the lowest by its distance."""
    lowest = float(levels.min())
    kept = math.exp(-BLOCK_S / TIME_CONSTANT_S)
    above = levels - lowest
    for order in (above, above[::-1]):
        for index in range(1, len(order)):
            order[index] = max(order[index], kept * order[index - 1])
    envelope: npt.NDArray[np.float64] = lowest + above
    return envelope
