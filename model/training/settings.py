"""Settings of a training run: every augmentation, every query and every loss term."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WindowSettings:
    """How a window of sound is made from a clip. Shares are probabilities of a source."""

    speed_share: float = 0.6
    speed_lowest: float = 0.87
    speed_highest: float = 1.15
    """Played slower or faster, pitch included."""
    repeated_share: float = 0.5
    """Of the clips that are shorter than the window; the others stand in silence."""
    pause_mean: float = 0.3
    """Of the exponentially distributed pause between repetitions, as a share of the clip."""
    cut_share: float = 0.3
    """Sounds that begin and end within the window, with fades of 15 ms."""
    equaliser_share: float = 0.6
    equaliser_db: float = 4.5
    """Standard deviation of a smooth equaliser's gains at ten frequencies."""
    low_pass_share: float = 0.12
    low_pass_db_per_octave: float = 24.0
    reverberant_share: float = 0.28
    """The same number of sources in every batch."""
    level_range_db: float = 12.0
    """Sources differ from the reference level by up to half of this, either way."""


QUERY_WINDOWS = WindowSettings(repeated_share=1.0, cut_share=0.15, level_range_db=0.0)
"""Of the example clips of queries."""
PLAIN_WINDOWS = WindowSettings(
    speed_share=0.0,
    repeated_share=1.0,
    pause_mean=0.0,
    cut_share=0.0,
    equaliser_share=0.0,
    low_pass_share=0.0,
    reverberant_share=0.0,
    level_range_db=0.0,
)
"""Nothing but what a recording is in use: for validation."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OptimiserSettings:
    """How the weights are moved, and the moving average of them that is validated and saved."""

    steps: int = 4_375
    validate_every: int = 875
    """Steps between validations; after each of them a stopped run can go on."""
    matrices: str = "muon"
    """``muon``; or ``adamw``, as everything else is always trained (the paper)."""
    learning_rate: float = 2e-3
    warmup_steps: int = 200
    held_share: float = 0.25
    """Of the steps, after which the learning rate falls linearly to zero."""
    weight_decay: float = 0.02
    momentum: float = 0.95
    clip_norm: float = 5.0
    ema_decay: float = 0.999
    """0: the weights as they are."""
    precision: str = "bf16"
    """``bf16`` or ``fp32``."""

    def __post_init__(self) -> None:
        """Checks names and the decay."""
        if self.matrices not in ("muon", "adamw"):
            raise ValueError(f"matrices={self.matrices!r}: expected 'muon' or 'adamw'")
        if self.precision not in ("bf16", "fp32"):
            raise ValueError(f"precision={self.precision!r}: expected 'bf16' or 'fp32'")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay={self.ema_decay}: expected 0 or more, and less than 1")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClapSettings:
    """The contrastive stage, with what it learns from a tagger."""

    batch_size: int = 512
    windows: WindowSettings = WindowSettings(
        repeated_share=0.7, cut_share=0.25, level_range_db=18.0
    )
    optimiser: OptimiserSettings = OptimiserSettings(
        steps=1_400, validate_every=350, weight_decay=0.05, ema_decay=0.995
    )
    noisy_share: float = 0.55
    """Clips with another clip 3.5 to 19.5 dB below them."""
    text_noise: float = 0.6
    """Largest noise on the latents of captions, as a share of their root mean square."""
    between_share: float = 0.5
    """Captions that lie between two wordings of their class."""
    contrast_weight: float = 1.0
    logit_weight: float = 1.5
    """Of the mean square between scaled similarities to class names and the tagger's logits."""
    name_noise: float = 0.3
    embedding_weight: float = 1.5
    """Of the cosine distance to the tagger's embedding."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WordingSettings:
    """The text projection fitted again, for words that it has not read."""

    steps: int = 800
    learning_rate: float = 1e-3
    weight_decay: float = 1.0
    noise: float = 1.0
    scale: float = 20.0
    closeness_weight: float = 5.0
    kept_a_step: int = 256


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QuerySettings:
    """What mixtures are asked. Two queries a mixture: each side of it, or something absent."""

    source_shares: tuple[float, ...] = (0.1, 0.62, 0.2, 0.08)
    """Of 1, 2, 3 … sources; the same numbers in every batch."""
    open_share: float = 0.12
    """Of sources whose class is a single caption."""
    absent_share: float = 0.12
    """Of the second queries of mixtures that have a second side."""
    near_share: float = 0.0
    """Of the absent ones: a class that is near in the text space, instead of any."""
    near_classes: int = 8
    named_share: float = 0.0
    """Queries by a name of the tagger's that it is sure of."""
    sure_score: float = 0.5
    unsure_score: float = 0.1
    """A name counts for a source if every other source scores below this."""
    negative_only_share: float = 0.18
    positive_only_share: float = 0.22
    own_clip_share: float = 0.3
    """Example clips that are the target's own recording."""
    text_only_share: float = 0.45
    clips_only_share: float = 0.23
    plain_text_share: float = 0.6
    """Captions as written; the others stand in a template."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SeparatorTraining:
    """The separation stage. The paper's recipe is one of its settings: docs/training.md."""

    encoder: str = "whole"
    """What is trained beside the decoder: ``whole``, the encoder; ``lora``, adapters on its window
    attention and the biases there (the paper); ``frozen``, nothing."""
    encoder_rate: float = 1.0
    """Share of the learning rate for what is trained of the encoder, which knows sounds already."""
    decoder: str = "whole"
    """``whole``; or ``query``: only the layers by which the query steers it, whose changes reach
    queries as far as they are like those that were trained."""
    batch_size: int = 256
    windows: WindowSettings = WindowSettings()
    queries: QuerySettings = QuerySettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    query_variants: int = 8
    """Embeddings of every clip as an example, each with another augmentation."""
    lowest_gain_db: float = -12.0
    highest_gain_db: float = 3.0
    """Of the mixture, from the level that the network hears recordings at."""
    noisy_share: float = 0.25
    noise_highest_db: float = -25.0
    noise_lowest_db: float = -55.0
    """White noise in the mixture alone, below the reference level."""
    text_noise: float = 0.3
    """Length of the noise on text embeddings, on half of them."""
    snr_ceiling_db: float | None = 30.0
    """Softly bounds the loss of easy examples; None is the paper's plain SNR."""
    validation_mixtures: int = 192
    fixed_statistics: bool = False
    """Batch norms keep the statistics that they have: those of a few mixtures are no better."""

    def __post_init__(self) -> None:
        """Checks the name."""
        if self.encoder not in ("whole", "lora", "frozen"):
            raise ValueError(f"encoder={self.encoder!r}: expected 'whole', 'lora' or 'frozen'")
        if self.decoder not in ("whole", "query"):
            raise ValueError(f"decoder={self.decoder!r}: expected 'whole' or 'query'")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PresenceTraining:
    """The presence stage: a head on a CLAP that stays as it is."""

    num_windows: int = 12_288
    """Mixtures that are made and heard once."""
    windows_at_once: int = 64
    source_shares: tuple[float, ...] = (0.125, 0.5625, 0.22, 0.0925)
    """Of 1, 2, 3 … sources."""
    open_share: float = 0.2
    """Of sources and queries whose class is a single caption."""
    windows: WindowSettings = WindowSettings(
        repeated_share=0.4, reverberant_share=0.15, level_range_db=16.0
    )
    level_dbfs: float = -24.0
    """Of a mixture, before its gain."""
    lowest_gain_db: float = -12.0
    highest_gain_db: float = 3.0
    noisy_share: float = 0.25
    noise_highest_db: float = -25.0
    noise_lowest_db: float = -55.0
    """White noise, below the reference level."""
    batch_size: int = 64
    queries: int = 10
    """Of a window; those for what is there weigh as much as the others."""
    present_queries: int = 3
    audible_db: float = -25.0
    """A source that is quieter, beside all sources, is not called present."""
    near_share: float = 0.4
    """Of what is absent: a class that is near in the text space to one that is there."""
    near_classes: int = 12
    open_similarity: float = 0.6
    """A single caption is not called absent where it is nearer than this to what is there."""
    negative_share: float = 0.5
    """Of the queries: with a negative query, for another sound that is there."""
    text_only_share: float = 0.6
    clips_only_share: float = 0.25
    plain_text_share: float = 0.6
    text_noise: float = 0.3
    logit_weight: float = 0.3
    """Of the mean square between answers to the tagger's class names and its logits."""
    names: int = 32
    """Of the tagger's classes in a step."""
    dropout: float = 0.1
    steps: int = 2_700
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    clip_norm: float = 2.0
    ema_decay: float = 0.99


TRAINED = ("query", "decoder", "all")
"""What fine-tuning can train: the layers by which the query steers the decoder; the decoder;
everything, or with LoRA adapters in the configuration these and the decoder."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneSettings:
    """Fine-tuning with a few recordings; ADR 209 has what was tried."""

    batch_size: int = 8
    optimiser: OptimiserSettings = OptimiserSettings(
        steps=60,
        validate_every=10,
        matrices="adamw",
        learning_rate=3e-4,
        warmup_steps=10,
        weight_decay=0.0,
        ema_decay=0.98,
        precision="fp32",
    )
    """``validate_every``: steps between lines of the terms of the loss; nothing is validated."""
    queries: QuerySettings = QuerySettings(
        source_shares=(0.1, 0.9), open_share=0.4, text_only_share=0.6, clips_only_share=0.15
    )
    """``open_share``: of the sources, those that are bundled sounds, of other kinds."""
    query_variants: int = 4
    moved_share: float = 1.0
    """Of the way from the weights before to those after, that is kept (Wortsman et al. 2022)."""
    held_out_share: float = 0.3
    """Of the recordings of each label: for the figures before and after."""

    def __post_init__(self) -> None:
        """Checks the shares."""
        for name in ("moved_share", "held_out_share"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"{name}={getattr(self, name)}: expected more than 0, at most 1")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """All stages, and what ties them together."""

    clap: ClapSettings = ClapSettings()
    words: WordingSettings = WordingSettings()
    separation: SeparatorTraining = SeparatorTraining()
    presence: PresenceTraining = PresenceTraining()
    finetuning: FinetuneSettings = FinetuneSettings()
    seed: int = 0
