"""The separation stage: the paper's recipe on the fly, and its ablations (Table VII)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import systems
from model.clap import Clap
from model.clap.audio import StageFeatures
from model.config import ClapSepConfig, LoraConfig
from model.systems import Condition
from model.systems.clapsep import lora
from model.systems.clapsep.network import ClapSep
from model.training.augment import SpecAugment
from model.training.captions import CaptionBook, LatentCache
from model.training.contrastive import embed_clips
from model.training.corpus import Corpus
from model.training.mixtures import QUERIES, Example, MixtureSampler, PolarityQuery
from model.training.settings import MixingSettings, OptimiserSettings, SeparationSettings

_QUERY_SPEEDS = (0.9, 1.1)
_VALIDATION_SEED = 20_240_227
_SNR_WEIGHT = 0.9
_RESIDUAL_FLOOR_DB = -20.0
_MODES = {
    "text_pn": (1.0, True, True),
    "text_p": (1.0, True, False),
    "text_n": (1.0, False, True),
    "audio_pn": (0.0, True, True),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeparationBatch:
    """Mixtures and, mixture by mixture, their queries."""

    mixture: Tensor
    """float32[B, T]."""
    targets: Tensor
    """float32[B·Q, T]."""
    condition: Condition

    def to_device(self, device: torch.device) -> SeparationBatch:
        """The same batch elsewhere."""
        return SeparationBatch(
            mixture=self.mixture.to(device),
            targets=self.targets.to(device),
            condition=Condition(
                positive=self.condition.positive.to(device),
                negative=self.condition.negative.to(device),
            ),
        )


def build_separator(config: ClapSepConfig, clap: Clap, settings: SeparationSettings) -> ClapSep:
    """A separator ready to train, with CLAP's encoder and the frozen parts frozen.

    Raises:
        ValueError: the CLAP's audio tower is not the one ``config`` describes.
    """
    separator = ClapSep(
        config, precision="bf16" if settings.optimiser.precision == "bf16" else "fp32"
    )
    if settings.encoder == "pretrained":
        if clap.config.audio != config.clap.audio:
            raise ValueError("the CLAP's audio tower differs from the separator's configuration")
        separator.encoder.load_state_dict(clap.audio_branch.state_dict())
    if settings.train == "lora":
        lora.add_adapters(separator.encoder, config.lora or LoraConfig())
    elif settings.train == "frozen" or settings.encoder == "none":
        separator.encoder.requires_grad_(False)
    separator.encoder.norm.requires_grad_(False)
    return separator


def negative_snr(estimate: Tensor, target: Tensor, ceiling_db: float | None) -> Tensor:
    """−0.9·SNR − 0.1·SI-SNR in dB, the paper's loss, float32[B].

    Args:
        estimate: float32[B, T].
        target: float32[B, T]; of a silent one, see :func:`residual_level`.
        ceiling_db: an error this far below the target no longer counts (Wisdom et al. 2020); None:
            no bound.
    """
    floor = 0.0 if ceiling_db is None else 10 ** (-ceiling_db / 10)
    power = target.square().sum(-1)
    snr = power / ((estimate - target).square().sum(-1) + floor * power + 1e-8)
    estimate, target = estimate - estimate.mean(-1, True), target - target.mean(-1, True)
    scale = (estimate * target).sum(-1, True) / (target.square().sum(-1, True) + 1e-8)
    image = scale * target
    image_power = image.square().sum(-1)
    si_snr = image_power / ((estimate - image).square().sum(-1) + floor * image_power + 1e-8)
    decibels = 10 * torch.log10(torch.stack((snr, si_snr)) + 1e-8)
    return -_SNR_WEIGHT * decibels[0] - (1 - _SNR_WEIGHT) * decibels[1]


def residual_level(estimate: Tensor, mixture: Tensor) -> Tensor:
    """What is left of a mixture that holds nothing of what is asked for, in dB, float32[B].

    Bounded below by -20 dB: what is this far down no longer counts (Wisdom et al. 2021).

    Args:
        estimate: float32[B, T].
        mixture: float32[B, T].
    """
    share = estimate.square().sum(-1) / (mixture.square().sum(-1) + 1e-8)
    return 10 * torch.log10(share + 10 ** (_RESIDUAL_FLOOR_DB / 10))


class SeparationStep(nn.Module):
    """The loss of a batch; one encoder pass serves all queries of a mixture."""

    def __init__(self, separator: ClapSep, settings: SeparationSettings) -> None:
        super().__init__()
        self.separator = separator
        self._settings = settings

    def train(self, mode: bool = True) -> SeparationStep:
        """As in the recipe, an encoder that is not trained as a whole stays in evaluation mode."""
        super().train(mode)
        if self._settings.train != "all":
            self.separator.encoder.eval()
        return self

    def estimate(self, mixture: Tensor, condition: Condition) -> Tensor:
        """float32[B, T] and B·Q conditions, mixture by mixture → float32[B·Q, T]."""
        encoded = self.separator.encode(mixture)
        if self._settings.encoder == "none":
            silent = tuple(torch.zeros_like(stage) for stage in encoded.features.stages)
            encoded = dataclasses.replace(encoded, features=StageFeatures(stages=silent))
        queries = condition.positive.shape[0] // mixture.shape[0]
        rows = torch.arange(mixture.shape[0], device=mixture.device).repeat_interleave(queries)
        return self.separator.decode(encoded.index(rows), condition)

    def forward(self, batch: SeparationBatch) -> Tensor:
        """The mean loss in dB."""
        estimate = self.estimate(batch.mixture, batch.condition)
        present = negative_snr(estimate, batch.targets, self._settings.snr_ceiling_db)
        mixture = batch.mixture.repeat_interleave(QUERIES, dim=0)
        absent = residual_level(estimate, mixture)
        return torch.where(batch.targets.abs().amax(-1) > 0, present, absent).mean()


class SeparationTask:
    """Draws mixtures and validates by SI-SDR improvement with text, audio, P, N and P+N."""

    def __init__(
        self,
        separator: ClapSep,
        clap: Clap,
        train: Corpus,
        book: CaptionBook,
        held_out: Corpus,
        settings: SeparationSettings,
    ) -> None:
        step = SeparationStep(separator, settings)
        self.step_module: nn.Module = step
        self._estimate = step.estimate
        self._settings = settings
        samples = separator.window_samples
        level_dbfs = separator.input_level_dbfs
        self._sampler = MixtureSampler(train, book, settings.mixing, samples, level_dbfs)
        self._queries = QueryEmbedder(clap, train, settings.optimiser)
        self._held_out = held_out
        pairs = MixingSettings(
            level_range_db=0.0,
            own_audio_share=0.0,
            positive_only_share=0.0,
            negative_only_share=0.0,
        )
        self._validation = MixtureSampler(
            held_out, CaptionBook(held_out, {}), pairs, samples, level_dbfs
        )
        self._validation_queries = QueryEmbedder(clap, held_out, None)

    def draw(self, rng: np.random.Generator, batch_size: int) -> SeparationBatch:
        """A batch of mixtures, two queries each."""
        examples = [self._sampler.draw(rng) for _ in range(batch_size)]
        device = next(self.step_module.parameters()).device
        return _collate(examples, self._queries, rng).to_device(device)

    def validate(self) -> dict[str, float]:
        """Mean SI-SDR improvement in dB of two-source mixtures at 0 dB, for every kind of query."""
        rng = np.random.default_rng(_VALIDATION_SEED)
        examples = [self._validation.draw(rng) for _ in range(self._settings.validation_mixtures)]
        device = next(self.step_module.parameters()).device
        gains: dict[str, list[Tensor]] = {mode: [] for mode in _MODES}
        for start in range(0, len(examples), 8):
            chunk = examples[start : start + 8]
            for mode, (weight, positive, negative) in _MODES.items():
                asked = [_restrict(example, weight, positive, negative) for example in chunk]
                batch = _collate(asked, self._validation_queries, rng).to_device(device)
                estimate = self._estimate(batch.mixture, batch.condition)
                repeated = batch.mixture.repeat_interleave(QUERIES, dim=0)
                gains[mode].append(
                    _si_sdr(estimate, batch.targets) - _si_sdr(repeated, batch.targets)
                )
        figures = {mode: torch.cat(values).mean().item() for mode, values in gains.items()}
        return {"score": float(np.mean(list(figures.values()))), **figures}


class QueryEmbedder:
    """Embeddings of captions, computed as they come, and of every clip of a corpus, computed once.

    Args:
        clap: the frozen CLAP.
        corpus: whose clips are the shots.
        settings: for SpecAugment and speed changes of the shots, as in the recipe; None leaves the
            shots as they are.
    """

    def __init__(self, clap: Clap, corpus: Corpus, settings: OptimiserSettings | None) -> None:
        self._clap = clap
        self._latents = LatentCache(clap.text_branch)
        if settings is None:
            variants = [embed_clips(clap, corpus)]
        else:
            augment = SpecAugment(torch.Generator().manual_seed(settings.seed))
            variants = [
                embed_clips(
                    clap, corpus, speed=speed, augment=augment, precision=settings.precision
                )
                for speed in _QUERY_SPEEDS
            ]
        self._shots = torch.stack(variants)

    def __call__(self, queries: Sequence[PolarityQuery | None], rng: np.random.Generator) -> Tensor:
        """float32[N, D]; zeros where there is no query."""
        asked = [query for query in queries if query is not None]
        result = torch.zeros(len(queries), self._clap.embedding_dim)
        if not asked:
            return result
        with torch.no_grad():
            latents = self._latents([query.caption for query in asked])
            texts = F.normalize(self._clap.text_projection(latents), dim=-1)
        fused = []
        for query, text in zip(asked, texts, strict=True):
            variant = int(rng.integers(len(self._shots)))
            audio = systems.pool_shots(self._shots[variant, list(query.clips)])
            fused.append(systems.fuse(text, audio, text_weight=query.text_weight))
        rows = [index for index, query in enumerate(queries) if query is not None]
        result[rows] = torch.stack([item for item in fused if item is not None])
        return result


def _collate(
    examples: Sequence[Example], embed: QueryEmbedder, rng: np.random.Generator
) -> SeparationBatch:
    return SeparationBatch(
        mixture=torch.from_numpy(np.stack([example.mixture for example in examples])),
        targets=torch.from_numpy(
            np.stack([target for example in examples for target in example.targets])
        ),
        condition=Condition(
            positive=embed([query for example in examples for query in example.positives], rng),
            negative=embed([query for example in examples for query in example.negatives], rng),
        ),
    )


def _restrict(example: Example, text_weight: float, positive: bool, negative: bool) -> Example:
    def side(
        queries: Sequence[PolarityQuery | None], wanted: bool
    ) -> tuple[PolarityQuery | None, ...]:
        return tuple(
            dataclasses.replace(query, text_weight=text_weight)
            if wanted and query is not None
            else None
            for query in queries
        )

    return dataclasses.replace(
        example,
        positives=side(example.positives, positive),
        negatives=side(example.negatives, negative),
    )


def _si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    scale = (estimate * target).sum(-1, True) / target.square().sum(-1, True)
    image = scale * target
    ratio = image.square().sum(-1) / (estimate - image).square().sum(-1).clamp(min=1e-12)
    return 10 * torch.log10(ratio.clamp(min=1e-12))
