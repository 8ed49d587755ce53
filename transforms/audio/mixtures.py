"""A row's mixture and reference as arrays: read as they are, or mixed from their sources."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from manifests.row import ManifestRow
from model import signal
from model import signal as waveforms
from transforms.audio import NO_TAGS, AudioError, AudioPart, Tags
from transforms.audio.files import Audio, open_audio, require_sound
from transforms.elements import Samples
from transforms.storage import Storage

VALUES_PER_SECOND = 2 * 48_000
LENGTH_TOLERANCE_S = 0.1
MAX_SOURCES_IN_MEMORY = 8
"""As many of the longest allowed; of shorter sources a mixture may have more."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReadSettings:
    """How audio is read.

    Attributes:
        model_rate_hz: what the model works at.
        mix_down: separate the mean of the channels, instead of each of them.
        max_in_memory_s: what has more samples than so many seconds of 48 kHz stereo, in the file or
            at the model's rate, is streamed.
    """

    model_rate_hz: int
    mix_down: bool = False
    max_in_memory_s: float = 60.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.model_rate_hz < 1 or not self.max_in_memory_s > 0:
            raise ValueError(f"{self}: model_rate_hz and max_in_memory_s must be positive")

    @property
    def max_values(self) -> int:
        """Samples of one file, all channels together, that are held in memory."""
        return max(1, int(self.max_in_memory_s * VALUES_PER_SECOND))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MixtureAudio:
    """A mixture in memory.

    Attributes:
        audio: as in the file; what is mixed here is mono at the model's rate.
        model_audio: float32[C', T'] at the model's rate.
        reference: float32[T'] at the model's rate, where the mixture was made here.
        tags: what its file says of it.
    """

    audio: Audio
    model_audio: Samples
    reference: Samples | None = None
    tags: Tags = NO_TAGS


def read_mixture(row: ManifestRow, storage: Storage, settings: ReadSettings) -> MixtureAudio | None:
    """The mixture of a row; None where it is to be streamed.

    Raises:
        AudioError: a file cannot be used.
        OSError: a file cannot be reached.
    """
    if row.mixture_uri is None:
        # Other rows may have the same mixture, and what it holds of the targets as their reference.
        mixed = mix_row(dataclasses.replace(row, target_absent=None), storage, settings)
        samples = mixed.mixture[None]
        return MixtureAudio(
            audio=Audio(samples=samples, sample_rate_hz=settings.model_rate_hz),
            model_audio=samples,
            reference=mixed.reference,
        )
    with open_audio(
        storage, row.mixture_uri, row.offset_s, row.duration_s, place=row.place
    ) as reader:
        if reader.part.num_values_at(settings.model_rate_hz) > settings.max_values:
            return None
        samples, rate_hz = reader.read(), reader.part.sample_rate_hz
        tags = reader.tags
    heard = waveforms.to_mono(samples)[None] if settings.mix_down else samples
    require_sound(heard, row.mixture_uri)
    return MixtureAudio(
        audio=Audio(samples=samples, sample_rate_hz=rate_hz),
        model_audio=waveforms.resample(heard, rate_hz, settings.model_rate_hz),
        tags=tags,
    )


def read_mono(
    uri: str,
    storage: Storage,
    rate_hz: int,
    max_values: int,
    part: ManifestRow | None = None,
    *,
    is_example: bool = False,
) -> Samples:
    """A file, or the part of it that a row uses, as float32[T] mono at ``rate_hz``.

    Raises:
        AudioError: the file cannot be used, or has more than ``max_values`` samples, or is an
            example clip without a sound.
        OSError: the file cannot be reached.
    """
    offset_s, duration_s = (part.offset_s, part.duration_s) if part else (None, None)
    with open_audio(storage, uri, offset_s, duration_s) as reader:
        require_short(reader.part, uri, rate_hz, max_values)
        samples = waveforms.to_mono(reader.read())
    if is_example:  # resampled, what is constant would not be so at its ends
        require_sound(samples, uri, varying=True)
    return waveforms.resample(samples, reader.part.sample_rate_hz, rate_hz)


def require_short(part: AudioPart, uri: str, rate_hz: int, max_values: int) -> None:
    """Raises AudioError for a file that must fit into memory, and does not."""
    num_values = part.num_values_at(rate_hz)
    if num_values > max_values:
        raise AudioError(
            "too_long",
            f"{uri}: {part.num_samples / part.sample_rate_hz:.0f} s in {part.num_channels} "
            f"channels is {num_values} samples; expected at most {max_values} "
            "(--max_clip_in_memory_s)",
        )


def read_reference(
    row: ManifestRow, num_samples: int, storage: Storage, settings: ReadSettings
) -> Samples | None:
    """The reference of a row whose mixture is a file, as long as the mixture; None if it has none.

    Args:
        row: the row.
        num_samples: length of its mixture at the model's rate.
        storage: how files are reached.
        settings: how audio is read.

    Returns:
        float32[num_samples] mono at the model's rate.

    Raises:
        AudioError: the file cannot be used, or is longer or shorter than the mixture by over 0.1 s.
        OSError: the file cannot be reached.
    """
    if row.reference_uri is None:
        return None
    rate_hz = settings.model_rate_hz
    samples = read_mono(row.reference_uri, storage, rate_hz, settings.max_values, part=row)
    require_equal_length(row.reference_uri, len(samples) / rate_hz, num_samples / rate_hz)
    return waveforms.fit_length(samples, num_samples)


def require_equal_length(reference_uri: str, reference_s: float, mixture_s: float) -> None:
    """Raises AudioError where a reference and its mixture differ by more than 0.1 s."""
    if abs(reference_s - mixture_s) > LENGTH_TOLERANCE_S:
        raise AudioError(
            "reference_length",
            f"{reference_uri}: lasts {reference_s:.3f} s, its mixture {mixture_s:.3f} s",
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MixedSources:
    """What sources give when they are mixed, float32[T] each at the model's rate.

    Attributes:
        mixture: of all of them.
        reference: the sum of the targets in it; silence where what is asked for is absent.
        interferers: as they sound in it.
        extents: where in it each source lies, targets first.
    """

    mixture: Samples
    reference: Samples
    interferers: tuple[Samples, ...]
    extents: tuple[range, ...]


def mix_row(row: ManifestRow, storage: Storage, settings: ReadSettings) -> MixedSources:
    """Reads the sources of a row and mixes them.

    Raises:
        AudioError: a source cannot be used, or all of them together do not fit into memory.
        OSError: a source cannot be reached.
    """
    rate_hz, max_values = settings.model_rate_hz, settings.max_values
    length = None if row.duration_s is None else round(row.duration_s * rate_hz)
    uris = (*row.targets, *row.interferer_uris)
    sources, extents = [], []
    for uri, onset_s in zip(uris, row.onsets_s or (0.0,) * len(uris), strict=True):
        source = read_mono(uri, storage, rate_hz, max_values, part=row)
        length = len(source) if length is None else length
        if length > max_values or length * len(uris) > MAX_SOURCES_IN_MEMORY * max_values:
            raise AudioError(
                "too_long",
                f"{uri}: {len(uris)} sources of {length / rate_hz:g} s each do not fit into memory "
                "(--max_clip_in_memory_s)",
            )
        begin = min(round(onset_s * rate_hz), length - 1)
        extents.append(range(begin, min(begin + len(source), length)))
        used = _placed(source, extents[-1], length)
        if not used.any():
            raise AudioError(
                "cannot_mix",
                f"{uri}: is silent in the {len(extents[-1]) / rate_hz:g} s that are used, so that "
                "no level relative to it can be set",
            )
        sources.append(used)
    mixed = mix_sources(
        sources, len(row.targets), row.levels_db, tuple(extents) if row.onsets_s else None
    )
    if row.target_absent:
        return dataclasses.replace(mixed, reference=np.zeros_like(mixed.reference))
    return mixed


def _placed(source: Samples, extent: range, length: int) -> Samples:
    """A source where it belongs in the mixture, float32[length], with zeros around it."""
    placed = np.zeros(length, dtype=np.float32)
    placed[extent.start : extent.stop] = source[: len(extent)]
    return placed


def mix_sources(
    sources: Sequence[Samples],
    num_targets: int,
    levels_db: Sequence[float],
    extents: tuple[range, ...] | None = None,
) -> MixedSources:
    """Mixes by the paper's rule; further targets are brought to the power of the first.

    Args:
        sources: float32[T] each, targets first; none of them silent.
        num_targets: how many of them are targets.
        levels_db: of the first target above each interferer.
        extents: where each source lies, over which its power is the mean; None: over all of T.
    """
    levels = [0.0] * (num_targets - 1) + list(levels_db)
    lie = extents or (range(len(sources[0])),) * len(sources)
    over_all = [
        level + 10.0 * math.log10(len(lie[0]) / len(extent))
        for level, extent in zip(levels, lie[1:], strict=True)
    ]
    mixed = signal.mix(sources[0], list(sources[1:]), over_all)
    targets = [mixed.target, *mixed.interferers[: num_targets - 1]]
    return MixedSources(
        mixture=mixed.mixture,
        reference=np.sum(targets, axis=0, dtype=np.float64).astype(np.float32),
        interferers=mixed.interferers[num_targets - 1 :],
        extents=lie,
    )
