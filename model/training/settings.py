"""Settings of a training run: what is drawn, what is trained, and how."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OptimiserSettings:
    """Steps, learning rate and what surrounds them."""

    steps: int = 10_000
    batch_size: int = 16
    """Examples a step and process."""
    optimiser: str = "adamw"
    """``adamw`` (the paper), or ``muon``: matrices by Muon, the rest by AdamW (docs/adr/0203)."""
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    schedule: str = "plateau"
    """``plateau``: times 0.3 after 5 validations without gain, floor 5e-6 (the paper);
    ``constant``: with a linear decay to zero over the last ``decay_steps``."""
    decay_steps: int = 0
    weight_decay: float = 0.01
    clip_norm: float = 5.0
    ema_decay: float = 0.0
    """Decay of the weights' moving average that is validated and saved; 0 keeps none."""
    precision: str = "bf16"
    seed: int = 0
    validate_every: int = 1_000
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        """Checks names and ranges."""
        if self.optimiser not in ("adamw", "muon"):
            raise ValueError(f"optimiser={self.optimiser!r}: expected 'adamw' or 'muon'")
        if self.schedule not in ("plateau", "constant"):
            raise ValueError(f"schedule={self.schedule!r}: expected 'plateau' or 'constant'")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision={self.precision!r}: expected 'fp32' or 'bf16'")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay={self.ema_decay}: expected a number in [0, 1)")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MixingSettings:
    """What mixtures and queries are drawn. Defaults: the paper's, but for the levels."""

    source_shares: tuple[float, ...] = (0.0, 1.0)
    """Probability of 1, 2, 3 … sources. With 1, one query asks for it: the input is clean already.
    The other asks for something absent: the answer is silence."""
    level_range_db: float = 10.0
    """Two sources differ by up to this much, either way; 0 is the paper's 0 dB."""
    gain_range_db: float = 0.0
    """The mixture's level is lowered by up to this much, from the level that the network hears
    recordings at where it has one."""
    shifted_share: float = 0.0
    """Share of sources that are moved by up to half a window: they begin or end within it."""
    pure_text_share: float = 0.0
    pure_audio_share: float = 0.0
    """Shares of queries by text and by audio alone; the others mix the two, weight ~ U(0, 1)."""
    positive_only_share: float = 0.25
    negative_only_share: float = 0.25
    open_share: float = 0.15
    """Share of sources whose class is a single caption, of the label ``open``: they widen what is
    heard, but hardly any text model tells a ``fiberboard rumble`` from a ``dumpster hit``."""
    own_audio_share: float = 0.5
    """Share of audio queries that are the target's own recording, at another speed; the others are
    another recording of the same class."""

    def __post_init__(self) -> None:
        """Checks the shares."""
        if abs(sum(self.source_shares) - 1.0) > 1e-6:
            raise ValueError(
                f"source_shares={self.source_shares}: expected numbers that add up to 1"
            )
        for pair in (
            self.pure_text_share + self.pure_audio_share,
            self.positive_only_share + self.negative_only_share,
        ):
            if not 0.0 <= pair <= 1.0:
                raise ValueError(f"two shares add up to {pair}: expected at most 1")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SeparationSettings:
    """The separation stage: the paper's recipe, or an ablation of Table VII."""

    optimiser: OptimiserSettings = OptimiserSettings()
    mixing: MixingSettings = MixingSettings()
    train: str = "lora"
    """``lora``: adapters and decoder (the paper); ``frozen``: decoder; ``all``: the encoder too."""
    encoder: str = "pretrained"
    """``pretrained``: CLAP's weights; ``random``: not pre-trained; ``none``: no CLAP encoder, the
    decoder sees the spectrogram only."""
    snr_ceiling_db: float | None = None
    """Softly bounds the loss of easy examples; None is the paper's plain SNR."""
    validation_mixtures: int = 48

    def __post_init__(self) -> None:
        """Checks the names."""
        if self.train not in ("lora", "frozen", "all"):
            raise ValueError(f"train={self.train!r}: expected 'lora', 'frozen' or 'all'")
        if self.encoder not in ("pretrained", "random", "none"):
            raise ValueError(f"encoder={self.encoder!r}: expected 'pretrained', 'random' or 'none'")
