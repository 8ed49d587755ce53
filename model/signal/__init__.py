"""Handles waveforms as arrays: resampling, channels, lengths, levels and mixing.

Two resamplers, on purpose. `resample` (soxr) is the better one and serves between a file's rate and
the model's. :func:`model.signal.stft.sinc_resample` is the kernel that the published weights were
trained behind: inside the model, another one changes the output by 0.06 %. Nothing here needs
torch.

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

A constant offset, as cheap converters add it, is no sound: the level is measured without it, and
the network does not hear it. The offset of a channel is the mean of its samples. One that would
reach the network more than :data:`OFFSET_DB` below the level is left as it is: it changes nothing
that can be heard.

Silence is not blown up. A block counts as at most :data:`FLOOR_DB` quieter than the loudest: no
stretch of a recording is raised by more than that above another. A level below
:data:`QUIETEST_DBFS` counts as this.

Where a stem is active is told from its envelope and the mixture's, a number for every 100 ms of
each, which is all that is kept of a recording of any length; see `active_stretches`.
"""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import soxr

SOXR_QUALITY = "VHQ"

FloatArray = npt.NDArray[np.float32]
AnyFloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]


def resampled_length(num_samples: int, source_hz: int, target_hz: int) -> int:
    """The samples that ``num_samples`` become, rounded up: there and back never loses one.

    Args:
        num_samples: a length at ``source_hz``.
        source_hz: rate of the input.
        target_hz: rate of the output.

    Returns:
        ``ceil(num_samples * target_hz / source_hz)``, in exact arithmetic.

    Raises:
        ValueError: a rate is not positive.
    """
    if source_hz <= 0 or target_hz <= 0:
        raise ValueError(f"sample rates must be positive, got {source_hz} and {target_hz} Hz")
    return -(-num_samples * target_hz // source_hz)


def resample(audio: AnyFloatArray, source_hz: int, target_hz: int) -> FloatArray:
    """Changes the sample rate with soxr at its very high quality; for files, not inside the model.

    Args:
        audio: float[..., T]; left untouched.
        source_hz: its rate.
        target_hz: the wanted rate.

    Returns:
        float32[..., ceil(T * target_hz / source_hz)], without delay; beyond its ends the signal
        counts as zero. Equal rates give a copy.

    Raises:
        ValueError: a rate is not positive, or T is 0.
    """
    length = resampled_length(audio.shape[-1], source_hz, target_hz)
    if length == 0:
        raise ValueError("there are no samples to resample")
    if source_hz == target_hz:
        return np.array(audio, dtype=np.float32)
    rows = np.asarray(audio, dtype=np.float32).reshape(-1, audio.shape[-1])
    tail = np.zeros((_tail_samples(source_hz, target_hz), rows.shape[0]), dtype=np.float32)
    frames = np.concatenate([rows.T, tail])
    resampled = soxr.resample(frames, source_hz, target_hz, quality=SOXR_QUALITY)
    return np.ascontiguousarray(resampled[:length].T).reshape(*audio.shape[:-1], length)


def resample_blocks(
    blocks: Iterable[FloatArray], source_hz: int, target_hz: int
) -> Iterator[FloatArray]:
    """`resample` for a recording that arrives in pieces, in memory for one piece.

    Args:
        blocks: float32[C, n] each, consecutive, of any lengths; C must not change.
        source_hz: their rate.
        target_hz: the wanted rate.

    Yields:
        float32[C, m], m >= 1; put together they equal `resample` of the blocks put together.

    Raises:
        ValueError: a rate is not positive, or there are no samples.
    """
    resampler = Resampler(source_hz, target_hz)
    for block in blocks:
        piece = resampler.push(block)
        if piece.shape[1]:
            yield piece
    piece = resampler.flush()
    if piece.shape[1]:
        yield piece


class Resampler:
    """`resample` for a recording that is handed over in pieces, in memory for one of them."""

    def __init__(self, source_hz: int, target_hz: int) -> None:
        """Begins a recording.

        Raises:
            ValueError: a rate is not positive.
        """
        resampled_length(0, source_hz, target_hz)
        self._rates = source_hz, target_hz
        self._stream: soxr.ResampleStream | None = None
        self._received = self._produced = self._num_channels = 0

    def push(self, block: FloatArray) -> FloatArray:
        """Takes the next piece, float32[C, n]; gives float32[C, m], what is certain by then."""
        self._received += block.shape[1]
        self._num_channels = block.shape[0]
        if self._rates[0] == self._rates[1]:
            piece = np.array(block, dtype=np.float32)
        else:
            if self._stream is None:
                self._stream = _open_stream(*self._rates, self._num_channels)
            frames = np.ascontiguousarray(block.T, dtype=np.float32)
            piece = np.ascontiguousarray(self._stream.resample_chunk(frames).T)
        self._produced += piece.shape[1]
        return piece

    def flush(self) -> FloatArray:
        """Ends the recording; gives the rest of it, float32[C, m].

        Raises:
            ValueError: there were no samples.
        """
        if self._received == 0:
            raise ValueError("there are no samples to resample")
        missing = resampled_length(self._received, *self._rates) - self._produced
        if self._stream is None or not missing:
            return np.zeros((self._num_channels, 0), np.float32)
        tail = np.zeros((_tail_samples(*self._rates), self._num_channels), np.float32)
        return np.ascontiguousarray(self._stream.resample_chunk(tail, last=True)[:missing].T)


class Cutter:
    """Blocks float32[C, n] of any lengths, given out in pieces of other lengths."""

    def __init__(self, blocks: Iterable[FloatArray]) -> None:
        """Reads ``blocks`` as far as needed."""
        self._blocks = iter(blocks)
        self._held: list[FloatArray] = []
        self._num_held = 0

    def take(self, num_samples: int) -> FloatArray:
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


def _open_stream(source_hz: int, target_hz: int, num_channels: int) -> soxr.ResampleStream:
    return soxr.ResampleStream(
        source_hz, target_hz, num_channels, dtype="float32", quality=SOXR_QUALITY
    )


def _tail_samples(source_hz: int, target_hz: int) -> int:
    """Zeros that make soxr compute the last sample, where it would round the length down."""
    return 2 + 2 * source_hz // target_hz


def to_mono(audio: FloatArray) -> FloatArray:
    """The mid signal: the mean of the channels.

    Args:
        audio: float32[C, T]; left untouched.

    Returns:
        float32[T].

    Raises:
        ValueError: the array is not [C, T] with C >= 1.
    """
    if audio.ndim != 2 or audio.shape[0] == 0:
        raise ValueError(f"expected [channels, samples], got shape {audio.shape}")
    mean: FloatArray = audio.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def fit_length(audio: FloatArray, num_samples: int) -> FloatArray:
    """Cuts the end off, or appends zeros.

    Args:
        audio: float32[..., T]; left untouched.
        num_samples: the wanted length, >= 1.

    Returns:
        float32[..., num_samples], a copy.

    Raises:
        ValueError: ``num_samples`` is less than 1.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    fitted = np.zeros((*audio.shape[:-1], num_samples), dtype=np.float32)
    kept = min(num_samples, audio.shape[-1])
    fitted[..., :kept] = audio[..., :kept]
    return fitted


def peak(audio: AnyFloatArray) -> float:
    """The largest absolute sample; 0 where there is none.

    Args:
        audio: float[...].

    Returns:
        The linear peak, 1 being full scale; NaN if a sample is.
    """
    return float(np.max(np.abs(audio), initial=0.0))


def is_constant(audio: AnyFloatArray) -> bool:
    """Whether all samples are the same, zero or a constant offset: there is no sound to ask for.

    Args:
        audio: float[...], at least one sample.
    """
    return bool(audio.min() == audio.max())


BLOCK_S = 5.0
ONE_GAIN_S = 30.0
"""Up to this length a recording has one gain."""
TIME_CONSTANT_S = 30.0
FLOOR_DB = 40.0
"""How far below the loudest block the level of a stretch counts at least."""
OFFSET_DB = 20.0
"""How far below the level of a recording its constant offset must lie to be left there."""
QUIETEST_DBFS = -90.0
"""A level below this counts as this: the noise of 16 bits is not made a sound."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InputGain:
    """What a recording's windows are multiplied by before the network hears them.

    Attributes:
        block_samples: samples a value of ``gains_db`` stands for.
        gains_db: float64[N], by block; a single one for the whole recording.
        offset: float32[C], which is subtracted before; None: nothing is.
    """

    block_samples: int
    gains_db: npt.NDArray[np.float64]
    offset: FloatArray | None = None

    def at_db(self, start: int, num_samples: int) -> float:
        """The gain of a window, in dB: that at its middle, between blocks interpolated."""
        middle = (start + num_samples / 2) / self.block_samples - 0.5
        return float(np.interp(middle, np.arange(len(self.gains_db)), self.gains_db))

    def at(self, start: int, num_samples: int) -> float:
        """The gain of a window, as a factor."""
        return math.pow(10.0, self.at_db(start, num_samples) / 20.0)

    def heard(self, window: FloatArray, start: int) -> FloatArray:
        """What the network hears of float32[C, n], which begins at the sample ``start``."""
        return applied(window, self.at(start, window.shape[1]), self.offset)


def applied(window: FloatArray, gain: float, offset: FloatArray | None) -> FloatArray:
    """The window float32[C, n] without its offset float32[C], if it has one, times the gain."""
    if offset is not None:
        window = window - offset[:, None]
    scaled: FloatArray = window * np.float32(gain)
    return scaled


AS_IT_IS = InputGain(block_samples=1, gains_db=np.zeros(1))
"""Changes nothing."""


class _BlockSums:
    """Sums numbers, such as squares, that arrive in pieces by blocks of equal length.

    A block is summed when it is whole: how a recording was cut into pieces changes no bit.
    """

    def __init__(self, block_samples: int, typecode: Literal["f", "d"]) -> None:
        """Keeps the sums in single or double precision."""
        self.num_samples = 0
        self._block_samples = block_samples
        self._whole: array[float] = array(typecode)
        self._open: list[npt.NDArray[np.float64]] = []
        self._num_open = 0

    def add(self, numbers: npt.NDArray[np.float64]) -> None:
        """Adds the next piece, float64[n]."""
        self.num_samples += len(numbers)
        while len(numbers):
            part = numbers[: self._block_samples - self._num_open]
            self._num_open += len(part)
            numbers = numbers[len(part) :]
            is_whole = self._num_open == self._block_samples
            self._open.append(part if is_whole else part.copy())  # a part would hold all numbers
            if is_whole:
                self._whole.append(self._open_sum())
                self._open, self._num_open = [], 0

    def sums(self) -> npt.NDArray[np.float64]:
        """The sums of all blocks, the last of which may be short."""
        last = [self._open_sum()] if self._num_open else []
        return np.array([*self._whole, *last], dtype=np.float64)

    def _open_sum(self) -> float:
        return float(np.concatenate(self._open).sum())


class LevelMeter:
    """Measures a recording that arrives in pieces: a few numbers for every 5 s are kept."""

    def __init__(self, sample_rate_hz: int) -> None:
        """Starts a recording of that rate."""
        self._block_samples = round(BLOCK_S * sample_rate_hz)
        self._one_gain_samples = round(ONE_GAIN_S * sample_rate_hz)
        self._energies = _BlockSums(self._block_samples, "d")
        self._channels: list[_BlockSums] = []

    def add(self, piece: FloatArray) -> None:
        """Adds the next piece, float32[C, n], to the measurement."""
        self._energies.add(np.square(piece, dtype=np.float64).mean(axis=0))
        if not self._channels:
            self._channels = [_BlockSums(self._block_samples, "d") for _ in piece]
        for sums, channel in zip(self._channels, piece, strict=True):
            sums.add(channel.astype(np.float64))

    def gain(self, level_dbfs: float | None) -> InputGain:
        """Computes the gain to a level; None for the level, or pure silence, gives no change.

        Args:
            level_dbfs: the root mean square of a block, in dB of full scale, that the loudest block
                around a window is brought to.
        """
        energies = self._energies.sums()
        if level_dbfs is None or not energies.any():
            return AS_IT_IS
        sums = np.stack([channel.sums() for channel in self._channels])
        offset = sums.sum(axis=1) / self._energies.num_samples
        centred = _without_offset(energies, sums, self._block_samples, self._energies.num_samples)
        levels = self._levels(centred)
        if _decibels(np.square(offset).max()) > levels.min() - OFFSET_DB:
            used: FloatArray | None = offset.astype(np.float32)
        else:
            levels, used = self._levels(energies), None
        return InputGain(
            block_samples=self._block_samples, gains_db=level_dbfs - levels, offset=used
        )

    def _levels(self, energies: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The levels in dB that the gains are for, of the energies of blocks."""
        num_samples = self._energies.num_samples
        levels = _decibels(energies / min(self._block_samples, num_samples))
        if num_samples <= self._one_gain_samples:
            levels = levels.max(keepdims=True)
        else:
            levels = _envelope(np.maximum(levels, levels.max() - FLOOR_DB))
        return np.maximum(levels, QUIETEST_DBFS)


def _without_offset(
    energies: npt.NDArray[np.float64],
    sums: npt.NDArray[np.float64],
    block_samples: int,
    num_samples: int,
) -> npt.NDArray[np.float64]:
    """The energies of blocks, float64[N], that are left when each channel loses its mean.

    Args:
        energies: float64[N], the sums of squares, the mean over the channels.
        sums: float64[C, N], the sums of the samples.
        block_samples: samples of a block.
        num_samples: of the recording: the last block may be short.
    """
    lengths = _lengths(sums.shape[1], block_samples, num_samples)
    offset = sums.sum(axis=1, keepdims=True) / num_samples
    centred = energies - (2.0 * offset * sums - np.square(offset) * lengths).mean(axis=0)
    # Rounding could leave less than nothing, and what was silent is not made a sound.
    kept: npt.NDArray[np.float64] = np.clip(centred, 0.0, energies)
    return kept


def _lengths(count: int, block_samples: int, num_samples: int) -> npt.NDArray[np.int64]:
    """The samples of each of so many blocks, int64[N]; the last may be short."""
    lengths = np.full(count, block_samples)
    if count:
        lengths[-1] -= count * block_samples - num_samples
    return lengths


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
    """Scales an example clip to a level, with one gain whatever its length.

    Args:
        clip: float32[T]; left untouched.
        sample_rate_hz: its rate.
        level_dbfs: of its loudest 5 s; None: as it is.
    """
    gain = input_gain([clip[None]], sample_rate_hz, level_dbfs)
    if gain is AS_IT_IS:
        return clip
    scaled = applied(clip[None], 10.0 ** (gain.gains_db.min() / 20.0), gain.offset)
    return scaled.reshape(-1)


def _decibels(power: npt.ArrayLike) -> npt.NDArray[np.float64]:
    decibels: npt.NDArray[np.float64] = 10.0 * np.log10(np.maximum(np.asarray(power), 1e-300))
    return decibels


def _envelope(levels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Follows the peaks of block levels; each peak fades on both sides towards the lowest level."""
    lowest = float(levels.min())
    kept = math.exp(-BLOCK_S / TIME_CONSTANT_S)
    above = levels - lowest
    for order in (above, above[::-1]):
        for index in range(1, len(order)):
            order[index] = max(order[index], kept * order[index - 1])
    envelope: npt.NDArray[np.float64] = lowest + above
    return envelope


ENVELOPE_S = 0.1
_ROUNDING = 1e-12
"""What is left of an energy, relative to it, when all of it is taken away."""


class Envelope:
    """Measures the power of a mono recording that arrives in pieces: 4 bytes for every 100 ms.

    Attributes:
        frame_s: what a value stands for: 100 ms, to the nearest sample.
    """

    def __init__(self, sample_rate_hz: int, *, centred: bool = False) -> None:
        """Starts a recording.

        Args:
            sample_rate_hz: its rate, at least 10 Hz.
            centred: whether a constant offset does not count, unless it is more than
                :data:`OFFSET_DB` below the quietest level that matters: :data:`FLOOR_DB` below the
                loudest moment, at least :data:`QUIETEST_DBFS`. For recordings, which may have one;
                stems have none. Takes 16 bytes for every 100 ms.
        """
        self._block_samples = round(ENVELOPE_S * sample_rate_hz)
        self._energies = _BlockSums(self._block_samples, "d" if centred else "f")
        self._sums = _BlockSums(self._block_samples, "d") if centred else None
        self.frame_s = self._block_samples / sample_rate_hz

    def add(self, piece: FloatArray) -> None:
        """Adds the next piece, float32[n]. How a recording was cut changes no bit."""
        self._energies.add(np.square(piece, dtype=np.float64))
        if self._sums is not None:
            self._sums.add(piece.astype(np.float64))

    @property
    def duration_s(self) -> float:
        """Length of what was added."""
        return self._energies.num_samples * self.frame_s / self._block_samples

    def powers(self) -> npt.NDArray[np.float64]:
        """The mean square of each 100 ms, float64[N]; the last is that of what is there of it."""
        powers, _ = self._centred()
        return powers

    def centred_energy(self, energy: float) -> float:
        """The sum of squares of the recording, without the offset where that does not count."""
        left = energy - self._centred()[1]
        return left if left > _ROUNDING * energy else 0.0

    def _centred(self) -> tuple[npt.NDArray[np.float64], float]:
        """The mean square of each 100 ms, and the energy of the offset that does not count."""
        energies, num_samples = self._energies.sums(), self._energies.num_samples
        lengths = _lengths(len(energies), self._block_samples, num_samples)
        if self._sums is not None and num_samples:
            sums = self._sums.sums()
            offset = float(sums.sum()) / num_samples
            centred = _without_offset(energies, sums[None], self._block_samples, num_samples)
            powers = centred / lengths
            lowest = max(float(_decibels(powers.max())) - FLOOR_DB, QUIETEST_DBFS)
            if float(_decibels(offset * offset)) > lowest - OFFSET_DB:
                return powers, offset * offset * num_samples
        return energies.astype(np.float32) / lengths, 0.0


def envelope_of(samples: FloatArray, sample_rate_hz: int, *, centred: bool = False) -> Envelope:
    """The envelope of a recording in memory, float32[T]; see :class:`Envelope`."""
    envelope = Envelope(sample_rate_hz, centred=centred)
    envelope.add(samples)
    return envelope


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ActivityOptions:
    """When a stem counts as active.

    The defaults were chosen on the validation split of a corpus with ``bench/segments.py``. A high
    percentile lets a sound that never ends be one stretch, where a low one would have none.

    Attributes:
        level_db: a stretch needs a moment at which the stem is at least so high over the mixture;
            0 would be all of it.
        percentile: of the stem's own level around a moment, from 0 to 100.
        percentile_s: over how many seconds around it.
        rise_db: a stretch needs a moment, the same, at which the stem is at least so high over that
            percentile; below 0 where a high percentile is taken.
        hysteresis_db: the stretch goes on while neither is missed by more than this.
        min_gap_s: two stretches that are nearer to each other are one.
        min_length_s: such moments of a stretch last at least so long together, after that.
    """

    level_db: float = -5.0
    percentile: float = 95.0
    percentile_s: float = 60.0
    rise_db: float = -12.0
    hysteresis_db: float = 10.0
    min_gap_s: float = 1.0
    min_length_s: float = 0.5

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name, low, high in (
            ("level_db", -100.0, 0.0),
            ("percentile", 0.0, 100.0),
            ("percentile_s", ENVELOPE_S, 3_600.0),
            ("rise_db", -100.0, 100.0),
            ("hysteresis_db", 0.0, 100.0),
            ("min_gap_s", 0.0, 3_600.0),
            ("min_length_s", 0.0, 3_600.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name}={value}: expected {low:g} to {high:g}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A part of a recording in which a stem is active.

    Attributes:
        start_s: where it begins, to the microsecond.
        end_s: where it ends, not after the recording.
        peak_db: the level of its loudest 100 ms, relative to a full-scale square wave.
        stem_to_mixture_db: power of the stem over that of the mixture in it; None where the mixture
            is silent.
    """

    start_s: float
    end_s: float
    peak_db: float
    stem_to_mixture_db: float | None


def active_stretches(stem: Envelope, mixture: Envelope, options: ActivityOptions) -> list[Stretch]:
    """Finds where a stem is active: high over the mixture, and not low for itself.

    A level below :data:`QUIETEST_DBFS` counts as this, and is never active.

    Args:
        stem: its envelope.
        mixture: that of what it was taken from, as long.
        options: what counts as active.

    Returns:
        Stretches in order, at least ``min_gap_s`` apart.

    Raises:
        ValueError: the envelopes differ in length or rate.
    """
    powers, whole = stem.powers(), mixture.powers()
    if len(powers) != len(whole) or stem.frame_s != mixture.frame_s:
        raise ValueError(f"envelopes of {len(powers)} and {len(whole)} values do not match")
    level_db = np.maximum(_decibels(powers), QUIETEST_DBFS)
    margin_db = np.minimum(
        level_db - _decibels(whole) - options.level_db,
        level_db - _running_percentile(level_db, stem.frame_s, options) - options.rise_db,
    )
    margin_db[level_db <= QUIETEST_DBFS] = -np.inf
    found = []
    for begin, end in _runs(margin_db, stem.frame_s, options):
        energy, of_mixture = float(powers[begin:end].sum()), float(whole[begin:end].sum())
        ratio_db = 10.0 * math.log10(energy / of_mixture) if of_mixture > 0.0 else None
        stretch = Stretch(
            start_s=round(begin * stem.frame_s, 6),
            end_s=round(min(end * stem.frame_s, stem.duration_s), 6),
            peak_db=float(level_db[begin:end].max()),
            stem_to_mixture_db=ratio_db,
        )
        found.append(stretch)
    return found


def _running_percentile(
    level_db: npt.NDArray[np.float64], frame_s: float, options: ActivityOptions
) -> npt.NDArray[np.float64]:
    """A percentile of the values around each, which are reflected at the ends."""
    if not len(level_db):
        return level_db
    from scipy.ndimage import percentile_filter  # 0.2 s, which many a run does not need

    around = 2 * round(options.percentile_s / frame_s / 2) + 1
    found: npt.NDArray[np.float64] = percentile_filter(
        level_db, options.percentile, size=around, mode="reflect"
    )
    return found


def _runs(
    margin_db: npt.NDArray[np.float64], frame_s: float, options: ActivityOptions
) -> list[tuple[int, int]]:
    """Runs of values of which enough are at least 0 and none under the hysteresis, gaps closed."""
    inside = np.concatenate([[False], margin_db >= -options.hysteresis_db, [False]])
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    closed: list[tuple[int, int]] = []
    for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if margin_db[begin:end].max() < 0.0:
            continue
        if closed and _shorter(begin - closed[-1][1], frame_s, options.min_gap_s):
            begin = closed.pop()[0]
        closed.append((begin, end))
    lengths = [np.count_nonzero(margin_db[begin:end] >= 0.0) for begin, end in closed]
    return [
        run
        for run, length in zip(closed, lengths, strict=True)
        if not _shorter(length, frame_s, options.min_length_s)
    ]


def _shorter(num_frames: int, frame_s: float, limit_s: float) -> bool:
    """Whether so many frames are shorter, by more than rounding."""
    return num_frames * frame_s < limit_s - 1e-6


PEAK_AFTER_LIMITING = 0.9
MAX_LEVEL_DB = 1000.0  # far beyond any use, and far from overflowing float64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixture:
    """A mixture and its parts as they sound in it.

    Attributes:
        mixture: float32[..., T], the sum of ``target`` and ``interferers``.
        target: float32[..., T], the reference to score against.
        interferers: float32[..., T] each.
        gain: the factor on the whole: 1, or ``0.9 / peak`` where the sum exceeded full scale.
    """

    mixture: FloatArray
    target: FloatArray
    interferers: tuple[FloatArray, ...]
    gain: float


def mix(
    target: AnyFloatArray,
    interferers: Sequence[AnyFloatArray],
    snr_db: float | Sequence[float] = 0.0,
) -> Mixture:
    """Adds interferers to a target at given levels.

    Each interferer is scaled so that the target's power over its own is ``snr_db``, both over the
    whole length, whatever the other interferers are. Computed in float64.

    Args:
        target: float[..., T]; left untouched.
        interferers: one or more, float[..., T] of the target's shape; see `audio.fit_length`.
        snr_db: target-to-interferer level in dB; one for all, or one for each.

    Returns:
        The mixture; where its peak exceeds 1, everything in it is scaled to a peak of 0.9.

    Raises:
        ValueError: no interferer, differing shapes, another number of levels than interferers, a
            level beyond ±1000 dB, or a source that is silent, empty or not finite.

    Source:
        The CLAPSep paper's evaluation; scaling as torchaudio's ``add_noise``, but in float64.
    """
    levels_db = _one_level_each(snr_db, len(interferers))
    clean = _checked(target, "target", target.shape)
    clean_power = _power(clean, "target")
    scaled = []
    for index, (source, level_db) in enumerate(zip(interferers, levels_db, strict=True)):
        name = f"interferer {index}"
        noise = _checked(source, name, target.shape)
        ratio_db = 10.0 * math.log10(clean_power / _power(noise, name)) - level_db
        scaled.append(noise * 10.0 ** (ratio_db / 20.0))
    total = clean + np.sum(scaled, axis=0)
    highest = peak(total)
    gain = PEAK_AFTER_LIMITING / highest if highest > 1.0 else 1.0
    return Mixture(
        mixture=(total * gain).astype(np.float32),
        target=(clean * gain).astype(np.float32),
        interferers=tuple((noise * gain).astype(np.float32) for noise in scaled),
        gain=gain,
    )


def _one_level_each(snr_db: float | Sequence[float], count: int) -> list[float]:
    if count == 0:
        raise ValueError("a mixture needs at least one interferer")
    levels_db = list(snr_db) if isinstance(snr_db, Sequence) else [snr_db] * count
    if len(levels_db) != count:
        raise ValueError(f"{len(levels_db)} levels in snr_db for {count} interferers")
    for level_db in levels_db:
        if not abs(level_db) <= MAX_LEVEL_DB:
            raise ValueError(f"snr_db must be within ±{MAX_LEVEL_DB:g} dB, got {level_db}")
    return levels_db


def _checked(source: AnyFloatArray, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    if source.shape != shape:
        raise ValueError(f"{name} has shape {source.shape}, the target {shape}")
    if source.size == 0:
        raise ValueError(f"{name} is empty")
    return np.asarray(source, dtype=np.float64)


def _power(source: npt.NDArray[np.float64], name: str) -> float:
    power = float(np.mean(np.square(source)))
    if power == 0.0:
        raise ValueError(f"{name} is silent, so no level relative to it can be set")
    if not math.isfinite(power):
        raise ValueError(f"{name} holds samples that are not finite")
    return power
