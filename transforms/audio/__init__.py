"""A part of an audio file, what reads it, and what is wrong with a file that cannot be used."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transforms.elements import Samples

MIN_RATE_HZ = 1_000
"""A lower rate is a damaged header: ten megabytes at 1 Hz would be two months of sound."""
MAX_RATE_HZ = 10_000_000
"""A higher rate is a damaged header: recorders and converters end at a few megahertz."""
MAX_CHANNELS = 8


class AudioError(ValueError):
    """A file that cannot be used; ``code`` says why in one word, for tables and counters."""

    def __init__(self, code: str, message: str) -> None:
        """An error with a code."""
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[AudioError], tuple[str, str]]:
        """Pickles code and message; the base class would pass on only the message."""
        return type(self), (self.code, str(self))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AudioPart:
    """The part of a file that a row uses, in samples at the file's rate.

    Attributes:
        sample_rate_hz: of the file.
        num_channels: of the file.
        start: where the part begins.
        num_samples: how long it is.
        from_start: whether a place in the file is reached only by decoding all before it.
    """

    sample_rate_hz: int
    num_channels: int
    start: int
    num_samples: int
    from_start: bool = False

    @property
    def num_values(self) -> int:
        """Samples of all channels together."""
        return self.num_samples * self.num_channels

    def num_values_at(self, rate_hz: int) -> int:
        """Samples of all channels at the file's rate or at ``rate_hz``, whichever is more."""
        return max(self.num_values, round(self.duration_s * rate_hz) * self.num_channels)

    @property
    def start_s(self) -> float:
        """Where the part begins."""
        return self.start / self.sample_rate_hz

    @property
    def duration_s(self) -> float:
        """How long it lasts."""
        return self.num_samples / self.sample_rate_hz


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The part of a file that is asked for, and how the file is called in messages.

    Attributes:
        uri: the file.
        offset_s: where the part begins; None: where the file does.
        duration_s: how long it lasts at most; None: to the end of the file.
        known: the part itself, where an earlier look at the same file found it: what has to be
            counted by decoding is not counted again.
    """

    uri: str
    offset_s: float | None = None
    duration_s: float | None = None
    known: AudioPart | None = None

    def place(self, rate_hz: int, num_channels: int) -> tuple[int, int | None]:
        """Where the part begins and how many samples it has at most; None: all that follow.

        Raises:
            AudioError: the rate or the channels are unusable, or the part has no sample.
        """
        uri = self.uri
        if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
            expected = f"expected {MIN_RATE_HZ} to {MAX_RATE_HZ}"
            raise AudioError("rate", f"{uri}: sample rate {rate_hz} Hz; {expected}")
        if not 0 < num_channels <= MAX_CHANNELS:
            expected = f"expected 1 to {MAX_CHANNELS}"
            raise AudioError("channels", f"{uri}: {num_channels} channels; {expected}")
        wanted = None if self.duration_s is None else round(self.duration_s * rate_hz)
        if wanted is not None and wanted < 1:
            raise AudioError(
                "zero_duration", f"{uri}: duration_s={self.duration_s} is less than a sample"
            )
        return round((self.offset_s or 0.0) * rate_hz), wanted

    def require_inside(self, start: int, total: int, rate_hz: int) -> None:
        """Raises AudioError where a part would begin behind the last of ``total`` samples."""
        if total < 1:
            raise AudioError("zero_duration", f"{self.uri}: has no samples")
        if start >= total:
            raise AudioError(
                "zero_duration",
                f"{self.uri}: offset_s={self.offset_s} is past its end at {total / rate_hz:g} s",
            )


class AudioReader(abc.ABC):
    """An open audio file and the part of it that a row uses."""

    part: AudioPart

    @abc.abstractmethod
    def blocks(self, block_samples: int) -> Iterator[Samples]:
        """The part in order, float32[C, T ≤ block_samples] each. To be asked for once.

        Raises:
            AudioError: the file ends early, cannot be decoded, or has values that are not finite.
        """

    def read(self) -> Samples:
        """All of the part, float32[C, T].

        Raises:
            AudioError: as :meth:`blocks`.
        """
        return next(self.blocks(self.part.num_samples))
