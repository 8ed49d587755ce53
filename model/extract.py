"""Sound extraction from Python: arrays in, arrays out, without Beam.

    from model.extract import Extractor

    extract = Extractor("clapsep-mini")
    found = extract(samples, 44_100, positive="a dog barking", negative="traffic")
    found.stem, found.residual, found.segments

The stem has the bits that ``python -m pipelines.separate`` gives for the same recording and query,
before they are rounded to those of a file: both run the same functions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model import devices, registry, signal, systems
from model.clap import UnknownWordsError
from model.inference import (
    Network,
    NetworkSettings,
    RecordingStream,
    SeparationError,
    WindowEstimates,
    WindowQueries,
)
from model.metrics import presence_of
from model.signal import (
    AS_IT_IS,
    ActivityOptions,
    Envelope,
    FloatArray,
    InputGain,
    Stretch,
    active_stretches,
    input_gain,
)
from model.signal.windowing import DEFAULT_OVERLAP, WindowPlan
from model.systems import Normalisation, QuerySetting, adapt, fuse

MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 10_000_000
MAX_CHANNELS = 1_024
_MANY_CHANNELS = 64
"""More than these, and than samples, are taken for samples in the place of channels."""
_KEPT_IN_MEMORY_BYTES = 2**26
_KEPT_BLOCK_SAMPLES = 2**16
_NUMBERS = (int, float, np.integer, np.floating)

Signal = TypeVar("Signal", npt.NDArray[Any], Tensor)
"""A numpy array or a torch tensor on any device, of floating-point samples: [T] for a mono signal,
[C, T] for one of C channels. Any scale will do; ±1 is full scale."""
_Item = TypeVar("_Item")
Clip: TypeAlias = npt.NDArray[Any] | Tensor | tuple[npt.NDArray[Any] | Tensor, int]
"""An example clip, like a recording: at the rate of the recording, or in a pair with its own."""
Examples: TypeAlias = Clip | Sequence[Clip]
"""One example clip or several."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Extraction(Generic[Signal]):
    """What was extracted: float32 arrays or tensors, of the kind and shape of what was given.

    Attributes:
        stem: the sound that was asked for, at the rate, in the channels and at the level of the
            recording.
        residual: the recording minus the stem.
        presence: how likely the sound is in the recording, from 0 to 1: in that window and channel
            where it is the likeliest. In a stream it is for what was heard so far, so that the last
            block has that of the whole. None: the model does not say, or nothing is asked for but
            what to suppress.
        segments: where the stem is active: ``start_s`` and ``end_s`` in the recording, ``peak_db``
            and ``stem_to_mixture_db``, as in the pipeline's ``segments/``. A stream knows them when
            it has ended: its last block has them, and all others None.
    """

    stem: Signal
    residual: Signal
    presence: float | None = None
    segments: tuple[Stretch, ...] | None = None


class Extractor:
    """Extracts described sounds from recordings.

    Threads may share it. What is set in torch for other computations, as autocast, a default device
    or a default type, changes nothing here. Pickled, for other processes, it is what it was made
    from: where it arrives, the model is loaded again.
    """

    def __init__(
        self,
        model: str = "clapsep-mini",
        *,
        device: str = devices.AUTO,
        precision: str = "fp32",
        batch_size: int = 8,
        num_threads: int = 0,
        overlap: float = DEFAULT_OVERLAP,
        condition_norm: Normalisation = "normalised",
        activity: ActivityOptions | None = None,
    ) -> None:
        """Loads a model.

        Args:
            model: a name that ``python -m model.registry`` lists, or the URI of a converted
                checkpoint.
            device: a torch device, or ``auto``: the GPU, where there is one.
            precision: ``fp32``, or where the device computes in it ``bf16``, or ``tf32`` on a GPU.
            batch_size: the most windows, channels counted, in one forward pass.
            num_threads: threads on a CPU, each of which runs batches of its own; 0: one a core.
            overlap: the part of a window that it shares with the next, in [0, 1).
            condition_norm: ``unnormalised`` reproduces the authors' evaluation script.
            activity: when a stem counts as active; None: as where the pipeline has no
                ``--segment_…`` flags.

        Raises:
            UnknownModelError: no such name; the message says which are near.
            ValueError: another argument has a value that it cannot have, or the model is an oracle.
            CheckpointError: the weights cannot be had or are not what they should be.
        """
        self._made_from: dict[str, Any] = {
            "model": model,
            "device": device,
            "precision": precision,
            "batch_size": batch_size,
            "num_threads": num_threads,
            "overlap": overlap,
            "condition_norm": condition_norm,
            "activity": activity,
        }
        settings = NetworkSettings(
            batch_size=batch_size, num_threads=num_threads, normalisation=condition_norm
        )
        device = devices.resolved(device, "device")
        devices.require_precision(precision, device, "precision")
        with devices.torch_as_it_comes(), devices.float32_by_default():
            loaded = registry.load(model, device=device, precision=precision)
        self._separator, self._encoder = loaded.separator, loaded.query_encoder
        if self._separator.capabilities.needs_reference:
            raise ValueError(
                f"model={model!r} is an oracle, which needs the sound that it is asked for; run it "
                "with python -m pipelines.separate, on rows that have a reference"
            )
        self._on_cpu = device == "cpu"
        kind = _OneThreadNetwork if self._on_cpu else Network
        self._network = kind(self._separator, device, settings)
        self._plan = WindowPlan(window_samples=self._separator.window_samples, overlap=overlap)
        self._name = model
        self._activity = activity or ActivityOptions()

    def __reduce__(self) -> tuple[Callable[[], Extractor], tuple[()]]:
        """Leaves the network behind, which has threads and locks."""
        return functools.partial(Extractor, **self._made_from), ()

    @devices.torch_as_it_comes()
    def __call__(
        self,
        samples: Signal,
        rate_hz: int,
        positive: str | None = None,
        negative: str | None = None,
        examples: Examples = (),
        negative_examples: Examples = (),
        text_weight: float = 0.5,
    ) -> Extraction[Signal]:
        """Extracts one sound from a recording in memory.

        Args:
            samples: float[T] or float[C, T], a numpy array or a torch tensor; left untouched. Each
                channel is separated by itself.
            rate_hz: its sample rate.
            positive: what to extract, in words.
            negative: what to suppress, in words.
            examples: clips of what to extract, each an array like ``samples`` at ``rate_hz``, or a
                pair of an array and its own rate.
            negative_examples: clips of what to suppress, likewise.
            text_weight: where a query has words and clips: 1 is words alone, 0 clips alone.

        Returns:
            Stem and residual, float32 in the shape of ``samples``.

        Raises:
            ValueError: a value, a shape or a sample that cannot be used, no query, or one that the
                model cannot use.
            TypeError: an argument of another kind.
            SeparationError: the network failed, or memory is too small for one window.
            MachineError: the network failed, and fails on silence too.
        """
        rate = _rate("rate_hz", rate_hz)
        mixture = _channels("samples", samples)
        stream = self._begin(rate, positive, negative, examples, negative_examples, text_weight)
        model_hz = self._separator.sample_rate_hz
        heard = signal.resample(mixture, rate, model_hz)
        active = _Active(model_hz, self._activity)
        pieces = active.stems(stream.pieces(active.mixtures([heard]), self._gain([heard])))
        stem = signal.resample(np.concatenate(list(pieces), axis=1), model_hz, rate)
        stem = signal.fit_length(stem, mixture.shape[1])
        return _extraction(stem, mixture - stem, samples, stream, active.segments())

    def stream(
        self,
        blocks: Iterable[Signal],
        rate_hz: int,
        positive: str | None = None,
        negative: str | None = None,
        examples: Examples = (),
        negative_examples: Examples = (),
        text_weight: float = 0.5,
    ) -> Iterator[Extraction[Signal]]:
        """Extracts one sound from a recording that arrives in blocks.

        Memory does not grow with the length of the recording, and the blocks that come out, put
        together, have the bits that :meth:`__call__` gives for the whole. A model that hears
        recordings at a level (as the bundled one does) needs the loudness of all of it before the
        first block can come out. ``blocks`` that can be iterated again, such as a list or an object
        whose ``__iter__`` opens a file, are read twice; those of an iterator are kept in a
        temporary file.

        Args:
            blocks: consecutive, float[n] or float[C, n], of any lengths; C does not change.
            rate_hz: as in :meth:`__call__`, like all that follows.
            positive: what to extract, in words.
            negative: what to suppress, in words.
            examples: clips of what to extract.
            negative_examples: clips of what to suppress.
            text_weight: of words beside clips.

        Returns:
            An iterator of stems and residuals of lengths of their own, together as long as the
            recording.

        Raises:
            ValueError: as :meth:`__call__`; what is wrong with a block is raised when it is read.
            TypeError: an argument of another kind.
            SeparationError: the network failed, or memory is too small for one window.
            MachineError: the network failed, and fails on silence too.
        """
        rate = _rate("rate_hz", rate_hz)
        stream = self._begin(rate, positive, negative, examples, negative_examples, text_weight)
        if isinstance(blocks, np.ndarray | Tensor):
            raise TypeError(
                "blocks: expected an iterable of arrays, found one array; give it to the extractor "
                "itself"
            )
        if not isinstance(blocks, Iterable):
            raise TypeError(
                f"blocks: expected an iterable of arrays, found {type(blocks).__name__}"
            )
        return _as_torch_comes(self._streamed(blocks, rate, stream))

    def _streamed(
        self, blocks: Iterable[Signal], rate: int, stream: RecordingStream
    ) -> Iterator[Extraction[Signal]]:
        model_hz, level_dbfs = self._separator.sample_rate_hz, self._separator.input_level_dbfs
        with tempfile.SpooledTemporaryFile(max_size=_KEPT_IN_MEMORY_BYTES) as file:
            recording = _Recording(blocks, file if level_dbfs is not None else None)
            gain = AS_IT_IS
            if level_dbfs is not None:
                gain = self._gain(signal.resample_blocks(recording.read(), rate, model_hz))
            waiting: deque[FloatArray] = deque()  # not itertools.tee: it keeps 57 blocks too long
            mixture = signal.Cutter(waiting.popleft() for _ in itertools.count())
            num_done = 0
            heard = signal.resample_blocks(_noted(recording.read(), waiting), rate, model_hz)
            active = _Active(model_hz, self._activity)
            pieces = active.stems(stream.pieces(active.mixtures(heard), gain))
            last: Extraction[Signal] | None = None
            for block in signal.resample_blocks(pieces, model_hz, rate):
                stem = block[:, : recording.num_samples - num_done]
                num_done += stem.shape[1]
                if stem.shape[1]:
                    if last is not None:
                        yield last
                    residual = mixture.take(stem.shape[1]) - stem
                    last = _extraction(stem, residual, recording.like, stream)
            if last is not None:
                yield dataclasses.replace(last, segments=active.segments())

    @devices.torch_as_it_comes()
    def _begin(
        self,
        rate: int,
        positive: str | None,
        negative: str | None,
        examples: Examples,
        negative_examples: Examples,
        text_weight: float,
    ) -> RecordingStream:
        """Embeds a query, and begins a recording with it."""
        if not isinstance(text_weight, _NUMBERS):
            raise TypeError(f"text_weight={text_weight!r}: expected a number from 0 to 1")
        words = (_words("positive", positive), _words("negative", negative))
        clips = (
            _clips("examples", examples, rate),
            _clips("negative_examples", negative_examples, rate),
        )
        self._require_usable(words, clips)
        vectors = [
            self._embedded(name, text, shots, text_weight)
            for name, text, shots in zip(("positive", "negative"), words, clips, strict=True)
        ]
        absent = np.zeros((1, self._separator.embedding_dim), dtype=np.float32)
        return RecordingStream(
            self._network,
            self._plan,
            *(absent if vector is None else vector[None] for vector in vectors),
        )

    def _require_usable(
        self, words: Sequence[str | None], clips: Sequence[Sequence[_ExampleClip]]
    ) -> None:
        setting = QuerySetting(
            positive_text=words[0],
            negative_text=words[1],
            positive_audio=bool(clips[0]),
            negative_audio=bool(clips[1]),
        )
        if not setting.asks:
            raise ValueError(
                "there is no query; give positive, negative, examples or negative_examples"
            )
        adaptation = adapt(self._separator.capabilities, setting)
        if not adaptation.supported:
            reasons = "; ".join(adaptation.reasons)
            raise ValueError(f"model={self._name!r} cannot use this query: {reasons}")

    def _embedded(
        self, name: str, text: str | None, clips: Sequence[_ExampleClip], text_weight: float
    ) -> FloatArray | None:
        """One polarity's embedding, float32[D]; None where nothing is asked."""
        rate_hz = self._encoder.sample_rate_hz
        spoken = shown = None
        with self._alone():
            try:
                if text is not None:
                    spoken = torch.from_numpy(systems.embed_texts(self._encoder, [text])[0])
                if clips:
                    mono = (clip.mono_at(rate_hz) for clip in clips)
                    shown = torch.from_numpy(systems.embed_examples(self._encoder, mono))
            except UnknownWordsError as err:
                raise ValueError(f"{name}={err}") from err
            except RuntimeError as err:
                raise SeparationError("model_error", f"{name}: {err}") from err
        fused = fuse(spoken, shown, text_weight=text_weight)
        return None if fused is None else fused.numpy()

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        return devices.one_thread_an_operation() if self._on_cpu else contextlib.nullcontext()

    def _gain(self, pieces: Iterable[FloatArray]) -> InputGain:
        """Computes the input gain of a recording."""
        return input_gain(pieces, self._separator.sample_rate_hz, self._separator.input_level_dbfs)


class _OneThreadNetwork(Network):
    """Leaves torch's number of threads as it found it: the process may have other uses for them."""

    def separate(self, windows: Sequence[WindowQueries]) -> list[WindowEstimates]:
        with devices.one_thread_an_operation():
            return super().separate(windows)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _ExampleClip:
    """An example clip: float32[C, T], its rate, and what messages call it."""

    name: str
    samples: FloatArray
    rate_hz: int

    def mono_at(self, rate_hz: int) -> FloatArray:
        """float32[T] at another rate."""
        return signal.resample(signal.to_mono(self.samples), self.rate_hz, rate_hz)


class _Recording(Generic[Signal]):
    """A recording in blocks, which are checked and counted as they are read, once or twice."""

    like: Signal
    """The first block."""

    def __init__(self, blocks: Iterable[Signal], file: IO[bytes] | None) -> None:
        """Reads nothing yet.

        Args:
            blocks: of the recording.
            file: takes the blocks of an iterator, which gives them once, so that they can be read
                twice; None: they are read once only.
        """
        self._blocks: Iterable[Signal] = blocks
        self._file = file if isinstance(blocks, Iterator) else None
        self._is_read = False
        self.num_samples = 0
        """Of the whole recording after it was read once; until then, of what was read."""

    def read(self) -> Iterator[FloatArray]:
        """The blocks that have samples, float32[C, n] each.

        Raises:
            ValueError: a block that cannot be used, no samples at all, or at the second time
                another number of samples than at the first.
        """
        if not self._is_read:
            return self._read_first()
        return self._read_again() if self._file is None else self._kept(self._file)

    def _read_first(self) -> Iterator[FloatArray]:
        for block in self._checked():
            self.num_samples += block.shape[1]
            if self._file is not None:
                self._file.write(block.T.tobytes())
            yield block
        if self.num_samples == 0:
            raise ValueError("blocks: the recording has no samples")
        self._is_read = True

    def _read_again(self) -> Iterator[FloatArray]:
        num_samples = 0
        for block in self._checked():
            num_samples += block.shape[1]
            yield block
        if num_samples != self.num_samples:
            raise ValueError(
                f"blocks: gave {self.num_samples} samples when they were read first and "
                f"{num_samples} when they were read again; give an iterator, iter(blocks), which "
                "is read once"
            )

    def _kept(self, file: IO[bytes]) -> Iterator[FloatArray]:
        num_channels = 1 if self.like.ndim == 1 else len(self.like)
        num_bytes = 4 * num_channels * _KEPT_BLOCK_SAMPLES
        file.seek(0)
        while data := file.read(num_bytes):
            frames = np.frombuffer(data, dtype=np.float32).reshape(-1, num_channels)
            yield np.ascontiguousarray(frames.T)

    def _checked(self) -> Iterator[FloatArray]:
        shape: tuple[int, int] | None = None
        for index, block in enumerate(self._blocks):
            name = f"blocks[{index}]"
            samples = _channels(name, block, empty=True)
            found = (block.ndim, len(samples))
            if shape is None:
                shape, self.like = found, block
            if found != shape:
                raise ValueError(
                    f"{name}: has shape {tuple(block.shape)}; the blocks before it have "
                    f"{shape[1]} channels in {shape[0]} dimensions"
                )
            if samples.shape[1]:
                yield samples


def _rate(name: str, rate_hz: Any) -> int:
    if isinstance(rate_hz, bool) or not isinstance(rate_hz, _NUMBERS):
        raise TypeError(f"{name}={rate_hz!r}: expected a number of hertz")
    if not (MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ and rate_hz == int(rate_hz)):
        raise ValueError(
            f"{name}={rate_hz!r}: expected a whole number of hertz from {MIN_RATE_HZ} to "
            f"{MAX_RATE_HZ}"
        )
    return int(rate_hz)


def _channels(name: str, given: Signal, *, empty: bool = False) -> FloatArray:
    """float[T] or float[C, T] as float32[C, T], checked.

    Args:
        name: what messages call it.
        given: the signal.
        empty: whether T may be 0.
    """
    array = _host_array(name, given)
    shape = array.shape
    most = min(MAX_CHANNELS, max(_MANY_CHANNELS, shape[-1])) if array.ndim else 0
    if array.ndim not in (1, 2) or (array.ndim == 2 and not 1 <= shape[0] <= most):
        turn = ""
        if array.ndim == 2 and 1 <= shape[1] <= MAX_CHANNELS:
            turn = f"; the transpose, {name}.T, has {shape[1]} channels"
        raise ValueError(
            f"{name}: has shape {shape}; expected [samples] or [channels, samples] of at most "
            f"{MAX_CHANNELS} channels, and of more than {_MANY_CHANNELS} only where there are as "
            f"many samples{turn}"
        )
    if shape[-1] == 0 and not empty:
        raise ValueError(f"{name}: has shape {shape}, and so no samples; expected at least one")
    with np.errstate(over="ignore"):  # what float32 does not hold becomes infinite
        channels: FloatArray = np.ascontiguousarray(np.atleast_2d(array), dtype=np.float32)
    finite = np.isfinite(channels)
    if not finite.all():
        channel, sample = np.argwhere(~finite)[0]
        raise ValueError(
            f"{name}: sample {sample} of channel {channel} is {channels[channel, sample]}; "
            "expected finite numbers (numpy.nan_to_num makes them so)"
        )
    return channels


def _host_array(name: str, given: Any) -> npt.NDArray[Any]:
    """The samples as an array of floating-point numbers."""
    if isinstance(given, Tensor):
        kind, real = str(given.dtype), given.is_floating_point()
        array: npt.NDArray[Any] = given.detach().float().cpu().numpy() if real else np.empty(0)
    elif isinstance(given, np.ndarray):
        kind, real, array = str(given.dtype), given.dtype.kind == "f", given
    else:
        raise TypeError(
            f"{name}: expected a numpy array or a torch tensor, found {type(given).__name__}"
        )
    if not real:
        raise TypeError(
            f"{name}: has samples of type {kind}; expected floating-point ones (16-bit integers "
            "become so by / 32768)"
        )
    return array


def _words(name: str, text: Any) -> str | None:
    if text is None:
        return None
    if not isinstance(text, str):
        raise TypeError(f"{name}: expected text, found {type(text).__name__}")
    if not text.strip():
        raise ValueError(f"{name}={text!r}: expected words, or None")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as err:
        raise ValueError(f"{name}={text!r}: is no text: {err.reason}") from err
    return text


def _clips(name: str, given: Any, rate_hz: int) -> list[_ExampleClip]:
    """The example clips that were given: one or several, each with or without a rate."""
    one = isinstance(given, np.ndarray | Tensor) or (
        isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], _NUMBERS)
    )
    if not one and not isinstance(given, list | tuple):
        raise TypeError(
            f"{name}: expected a clip, or a list of clips, found {type(given).__name__}"
        )
    clips = []
    for index, each in enumerate([given] if one else given):
        place = name if one else f"{name}[{index}]"
        samples, rate = each if isinstance(each, tuple) and len(each) == 2 else (each, rate_hz)
        clip = _ExampleClip(
            name=place,
            samples=_channels(place, samples),
            rate_hz=_rate(f"{place}: rate_hz", rate),
        )
        mono = signal.to_mono(clip.samples)
        if signal.is_constant(mono):
            value = "the same" if mono.any() else "zero, or the mean of the channels is"
            raise ValueError(f"{place}: all samples are {value}; expected a clip that can be heard")
        clips.append(clip)
    return clips


def _as_torch_comes(blocks: Iterator[_Item]) -> Iterator[_Item]:
    """The blocks, each computed as torch comes; in between its settings are the caller's."""
    while True:
        with devices.torch_as_it_comes():
            try:
                block = next(blocks)
            except StopIteration:
                return
        yield block


def _noted(blocks: Iterable[FloatArray], waiting: deque[FloatArray]) -> Iterator[FloatArray]:
    """The blocks, each of which is appended to ``waiting`` too."""
    for block in blocks:
        waiting.append(block)
        yield block


class _Active:
    """Measures a recording and its only stem as they go by, at the model's rate."""

    def __init__(self, rate_hz: int, options: ActivityOptions) -> None:
        self._stem, self._options = Envelope(rate_hz), options
        self._mixture = Envelope(rate_hz, centred=True)

    def mixtures(self, blocks: Iterable[FloatArray]) -> Iterator[FloatArray]:
        """The blocks of the recording."""
        for block in blocks:
            self._mixture.add(signal.to_mono(block))
            yield block

    def stems(self, pieces: Iterable[list[FloatArray]]) -> Iterator[FloatArray]:
        """The pieces of the stem, without empty ones."""
        for (piece,) in pieces:
            if not np.isfinite(piece).all():
                raise SeparationError("not_finite", "the network's output is not finite")
            if piece.shape[1]:
                self._stem.add(signal.to_mono(piece))
                yield piece

    def segments(self) -> tuple[Stretch, ...]:
        """Where the stem is active, once all of it has gone by."""
        return tuple(active_stretches(self._stem, self._mixture, self._options))


def _extraction(
    stem: FloatArray,
    residual: FloatArray,
    like: Signal,
    stream: RecordingStream,
    segments: tuple[Stretch, ...] | None = None,
) -> Extraction[Signal]:
    (log_odds,) = np.where(stream.seeks, stream.presence, np.nan)
    return Extraction(
        stem=_restored(stem, like),
        residual=_restored(residual, like),
        presence=None if np.isnan(log_odds) else presence_of(float(log_odds)),
        segments=segments,
    )


def _restored(samples: FloatArray, like: Signal) -> Signal:
    """float32[C, T] as an array or a tensor, of the dimensions and on the device of another."""
    shaped = samples[0] if like.ndim == 1 else samples
    if isinstance(like, Tensor):
        return torch.from_numpy(shaped).to(like.device)
    return shaped
