"""The separation stage: mixtures of two sides, each of which is asked for, or something absent."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.clap import Clap
from model.config import ClapSepConfig, LoraConfig
from model.systems import Condition
from model.systems.clapsep import lora
from model.systems.clapsep.network import ClapSep, Film
from model.training.contrastive import embed_clips, embed_wordings
from model.training.drawing import (
    ABSENT,
    NONE,
    QUERIES,
    REFERENCE_RMS,
    WindowDrawer,
    as_tensors,
)
from model.training.engine import MovingAverage, Tensors
from model.training.material import Ints, Material
from model.training.settings import (
    PLAIN_WINDOWS,
    QUERY_WINDOWS,
    SeparatorTraining,
)
from model.training.sound import Renderer, at_rms

_SNR_WEIGHT = 0.9
_RESIDUAL_FLOOR_DB = -20.0
_TINY = 1e-8
_BATCH = 64
_VALIDATION_SEED = 7
_AUDIBLE = 1e-4
"""A target with less than this share of the mixture's energy counts as silent: -40 dB."""
MODES = {
    "text_pn": (1.0, True, True),
    "text_p": (1.0, True, False),
    "text_n": (1.0, False, True),
    "audio_pn": (0.0, True, True),
}


def build_separator(config: ClapSepConfig, clap: Clap, settings: SeparatorTraining) -> ClapSep:
    """A separator with CLAP's audio tower for its encoder; what is not trained is frozen."""
    precision = settings.optimiser.precision
    separator = ClapSep(config, precision="bf16" if precision == "bf16" else "fp32")
    separator.encoder.load_state_dict(clap.audio_branch.state_dict())
    choose_trained(separator, settings.encoder, settings.decoder)
    return separator.to(clap.device)


def choose_trained(separator: ClapSep, encoder: str, decoder: str = "whole") -> None:
    """Lets that be trained which :class:`SeparatorTraining` names so, and nothing else.

    ``lora`` adds adapters, which do nothing yet.
    """
    separator.requires_grad_(True)
    if decoder == "query":
        separator.decoder.requires_grad_(False)
        for module in separator.decoder.modules():
            if isinstance(module, Film):
                module.requires_grad_(True)
    if encoder == "lora":
        lora.add_adapters(separator.encoder, separator.config.lora or LoraConfig())
    elif encoder == "frozen":
        separator.encoder.requires_grad_(False)
    separator.encoder.norm.requires_grad_(False)  # of CLAP's latent alone


class Words(nn.Module):
    """Places of all texts, and of every clip as an example, for queries by number."""

    texts: Tensor
    shots: Tensor

    def __init__(self, texts: Tensor, shots: Tensor) -> None:
        """Looks up float32[M, D] and float32[N, D], both of unit norm."""
        super().__init__()
        self.register_buffer("texts", texts, persistent=False)
        self.register_buffer("shots", shots, persistent=False)

    def forward(self, text: Tensor, shots: Tensor, weight: Tensor, noise: float = 0.0) -> Tensor:
        """Embeddings of queries, float32[Q, D]; zeros where there is none.

        Args:
            text: int64[Q]; :data:`NONE` where there is no query.
            shots: int64[Q, S], of examples; :data:`NONE` beyond the last.
            weight: float32[Q], of the text against the mean of the examples.
            noise: length of the noise that is added to half of the texts.
        """
        named = self.texts.index_select(0, text.clamp(min=0))
        if noise:
            some = torch.rand(len(named), 1, device=named.device) < 0.5
            length = noise / math.sqrt(named.shape[1])
            named = F.normalize(named + length * some * torch.randn_like(named), dim=-1)
        given = (shots != NONE).to(named.dtype)
        chosen = self.shots.index_select(0, shots.clamp(min=0).flatten()).view(*shots.shape, -1)
        mean = (chosen * given[..., None]).sum(1) / given.sum(1, keepdim=True).clamp(min=1.0)
        fused = weight[:, None] * named + (1.0 - weight[:, None]) * mean
        return fused * (text != NONE)[:, None]


class _EstimateSums(torch.autograd.Function):
    """An estimate's energy, what it has in common with its target, and its sum, float32[B] each.

    Their gradients are one sum over two arrays; torch's own would go through either a dozen times.
    There are none for the target.
    """

    @staticmethod
    def forward(ctx: Any, estimate: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of float32[B, T] both."""
        ctx.save_for_backward(estimate, target)
        return energy(estimate), (estimate * target).sum(-1), estimate.sum(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient for the estimate."""
        estimate, target = ctx.saved_tensors
        of_energy, of_common, of_sum = (each[:, None] for each in gradients)
        gradient = torch.addcmul(of_sum, of_common, target)
        return gradient.addcmul_(2.0 * of_energy, estimate), None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sums:
    """What the terms of the loss follow from, float32[B] each."""

    estimated: Tensor
    """Energy of the estimate."""
    common: Tensor
    """Inner product of estimate and target."""
    sum_estimate: Tensor
    power: Tensor
    """Energy of the target."""
    sum_target: Tensor
    samples: int

    @classmethod
    def of(cls, estimate: Tensor, target: Tensor) -> Sums:
        """Of float32[B, T] both; gradients are for the estimate alone."""
        apply: Any = _EstimateSums.apply
        estimated, common, sum_estimate = apply(estimate, target)
        return cls(
            estimated=estimated,
            common=common,
            sum_estimate=sum_estimate,
            power=energy(target),
            sum_target=target.sum(-1),
            samples=estimate.shape[-1],
        )


def negative_snr(sums: Sums, ceiling_db: float | None) -> Tensor:
    """−0.9·SNR − 0.1·SI-SNR in dB, the paper's loss, float32[B].

    Both follow from five sums. In float32 the energy of an error comes out to within 60 dB of the
    target's: far below any ceiling that is of use.

    Args:
        sums: of an estimate and its target; of a silent one, see :func:`residual_level`.
        ceiling_db: an error this far below the target no longer counts (Wisdom et al. 2020); None:
            no bound.
    """
    floor = 0.0 if ceiling_db is None else 10 ** (-ceiling_db / 10)
    power, estimated, common = sums.power, sums.estimated, sums.common
    error = (estimated + power - 2.0 * common).clamp(min=0.0)
    snr = power / (error + floor * power + _TINY)
    power = power - sums.sum_target.square() / sums.samples
    estimated = estimated - sums.sum_estimate.square() / sums.samples
    common = common - sums.sum_estimate * sums.sum_target / sums.samples
    image = common.square() / (power + _TINY)
    error = (estimated - image).clamp(min=0.0)
    si_snr = image / (error + floor * image + _TINY)
    decibels = 10 * torch.log10(torch.stack((snr, si_snr)) + _TINY)
    return -_SNR_WEIGHT * decibels[0] - (1 - _SNR_WEIGHT) * decibels[1]


def residual_level(estimated: Tensor, mixed: Tensor) -> Tensor:
    """What is left of a mixture that holds nothing of what is asked for, in dB, float32[B].

    Bounded below by -20 dB: what is this far down no longer counts (Wisdom et al. 2021).

    Args:
        estimated: energies of the estimates, float32[B].
        mixed: energies of the mixtures, float32[B].
    """
    share = estimated / (mixed + _TINY)
    return 10 * torch.log10(share + 10 ** (_RESIDUAL_FLOOR_DB / 10))


def energy(sound: Tensor) -> Tensor:
    """The sum of the squares, float32[B]."""
    power: Tensor = torch.linalg.vector_norm(sound, dim=-1).square()
    return power


class SeparationStep(nn.Module):
    """The loss of a batch; one encoder pass serves all queries of a mixture."""

    rows: Tensor

    def __init__(self, separator: ClapSep, settings: SeparatorTraining) -> None:
        """Trains a separator on its device."""
        super().__init__()
        self.separator = separator
        self._settings = settings
        rows = torch.arange(settings.batch_size).repeat_interleave(QUERIES)
        self.register_buffer("rows", rows, persistent=False)

    def train(self, mode: bool = True) -> SeparationStep:
        """Sets the mode; an encoder that is not trained whole stays in evaluation mode."""
        super().train(mode)
        if self._settings.encoder != "whole":
            self.separator.encoder.eval()
        if self._settings.fixed_statistics:
            for module in self.modules():
                if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                    module.eval()
        return self

    def forward(self, made: Tensors) -> tuple[Tensor, Tensor]:
        """The loss, and its terms: of what is there, and of what is absent."""
        separator, settings, mixture = self.separator, self._settings, made["mixture"]
        asked = len(self.rows)
        encoded = separator.encode(mixture).index(self.rows)
        condition = Condition(positive=made["positive"], negative=made["negative"])
        estimate = separator.decode(encoded, condition)
        sums = Sums.of(estimate, made["targets"])
        mixed = energy(mixture).index_select(0, self.rows)
        sounds = sums.power > _AUDIBLE * mixed
        near = negative_snr(sums, settings.snr_ceiling_db)
        far = residual_level(sums.estimated, mixed)
        present = near.masked_fill(~sounds, 0.0).sum()
        absent = far.masked_fill(sounds, 0.0).sum()
        loss = (present + absent) / asked
        count = sounds.sum()
        figures = [present / count.clamp(min=1), absent / (asked - count).clamp(min=1)]
        return loss, torch.stack([value.detach() for value in figures])


class SeparationTask:
    """Makes the batches of the separation stage; validates by SI-SDR improvement."""

    figures: tuple[str, ...] = ("present", "absent")

    def __init__(
        self,
        separator: ClapSep,
        clap: Clap,
        material: Material,
        renderer: Renderer,
        settings: SeparatorTraining,
        pairs: Ints | None = None,
    ) -> None:
        """For networks on a device; the CLAP stays as it is."""
        self.step_module: nn.Module = SeparationStep(separator, settings).to(clap.device)
        self.average = MovingAverage(separator, settings.optimiser.ema_decay)
        self.rates: Mapping[str, float] = {"separator.encoder.": settings.encoder_rate}
        self._settings, self._renderer, self._material = settings, renderer, material
        level_dbfs = separator.input_level_dbfs
        self._level_db = 20 * math.log10(REFERENCE_RMS) if level_dbfs is None else level_dbfs
        texts = embed_wordings(clap, material)
        everything = np.arange(len(material.path))
        variants = [
            embed_clips(clap, renderer, everything, QUERY_WINDOWS, seed=1 + number)
            for number in range(settings.query_variants)
        ]
        self._words = Words(texts, torch.cat(variants))
        plain = embed_clips(clap, renderer, everything, PLAIN_WINDOWS)
        rng = np.random.default_rng(_VALIDATION_SEED)
        if pairs is None:
            pairs = _held_out_pairs(material, settings.validation_mixtures, rng)
        self.validation = Validation(
            material, renderer, Words(texts, plain), self._level_db, pairs, rng
        )

    def make(self, inputs: Tensors) -> Tensors:
        """Mixtures at their level, targets, and the embeddings of the queries."""
        size = self._settings.batch_size
        sound = self._renderer(inputs)
        targets = torch.zeros(QUERIES * size, sound.shape[-1], device=sound.device)
        targets.index_add_(0, inputs["side"], sound)
        targets = targets.view(size, QUERIES, -1)
        mixture = targets.sum(1)
        level = torch.linalg.vector_norm(mixture, dim=-1) / math.sqrt(mixture.shape[-1])
        level_db = inputs["gain_db"] + self._level_db
        gain = torch.exp(level_db * (math.log(10.0) / 20)) / level.clamp(min=1e-4)
        mixture = mixture + torch.randn_like(mixture) * inputs["noise_rms"][:, None]
        wanted = (inputs["presence"] != ABSENT).view(size, QUERIES)
        positive, negative = (
            self._words(text, shots, weight, self._settings.text_noise)
            for text, shots, weight in zip(
                inputs["text"], inputs["shots"], inputs["text_weight"], strict=True
            )
        )
        return {
            "mixture": mixture * gain[:, None],
            "targets": (targets * (gain[:, None] * wanted)[..., None]).flatten(0, 1),
            "positive": positive,
            "negative": negative,
        }

    def validate(self) -> dict[str, float]:
        """Mean SI-SDR improvement in dB of two-source mixtures at 0 dB."""
        return self.validation.improvements(self.average.module)


def _held_out_pairs(material: Material, count: int, rng: np.random.Generator) -> Ints:
    """Held-out clips of two labels each, int64[count, 2]."""
    by_label = material.held_out
    labels = sorted(by_label)
    pairs = []
    for _ in range(count):
        chosen = rng.choice(labels, 2, replace=False)
        pairs.append([int(rng.choice(by_label[name])) for name in chosen])
    return np.array(pairs)


class Validation:
    """Pairs of clips at 0 dB, the same at every validation."""

    def __init__(
        self,
        material: Material,
        renderer: Renderer,
        words: Words,
        level_db: float,
        pairs: Ints,
        rng: np.random.Generator,
    ) -> None:
        """Mixes pairs of clips, int64[P, 2], at ``level_db``; ``rng`` places windows in them."""
        self._words = words
        by_label = material.held_out
        others = [
            [
                next((o for o in by_label.get(int(material.class_of[clip]), []) if o != clip), clip)
                for clip in pair
            ]
            for pair in pairs.tolist()
        ]
        device = words.texts.device
        self._captions = torch.from_numpy(material.caption_of[pairs]).to(device)
        self._others = torch.tensor(others, device=device)
        drawer = WindowDrawer(
            renderer.store.lengths.cpu().numpy(), renderer.num_samples, PLAIN_WINDOWS
        )
        with torch.no_grad():
            drawn = drawer.draw(pairs.T.ravel(), rng)
            sound = renderer(as_tensors(drawn, device)).view(2, len(pairs), -1)
            mixture = sound.sum(0)
            gain = at_rms(mixture, torch.full_like(mixture[:, 0], 10 ** (level_db / 20)))
            norm = torch.linalg.vector_norm(mixture, dim=-1).clamp(min=_TINY)
            scale = torch.linalg.vector_norm(gain, dim=-1) / norm
            self.sources = sound * scale[:, None]
            """float32[2, P, T]."""
            self.mixtures = gain
            """float32[P, T]."""

    def improvements(self, separator: ClapSep) -> dict[str, float]:
        """By the kind of query, over pairs of which both sound; ``score`` is their mean."""
        sound = self.sources.any(-1).all(0)
        found: dict[str, float] = {}
        for mode in MODES:
            gains = []
            for wanted in (0, 1):
                estimate, target = self.estimates(separator, mode, wanted), self.sources[wanted]
                gain = si_sdr(estimate, target) - si_sdr(self.mixtures, target)
                gains.append(gain[sound])
            found[mode] = torch.cat(gains).mean().item()
        return {"score": float(np.mean(list(found.values()))), **found}

    @torch.no_grad()
    def estimates(self, separator: ClapSep, mode: str, wanted: int) -> Tensor:
        """What a separator finds of the first (0) or second (1) of each pair, float32[P, T].

        Args:
            separator: in evaluation mode.
            mode: how it is asked, of :data:`MODES`.
            wanted: 0 or 1.
        """
        weight, positive, negative = MODES[mode]
        condition = Condition(
            positive=self._query(wanted, weight, positive),
            negative=self._query(1 - wanted, weight, negative),
        )
        return torch.cat(
            [
                separator.separate(
                    self.mixtures[start : start + _BATCH],
                    condition.index(torch.arange(start, end, device=self.mixtures.device)),
                )
                for start, end in self._chunks()
            ]
        )

    def _query(self, wanted: int, weight: float, used: bool) -> Tensor:
        text = self._captions[:, wanted]
        if not used:
            text = torch.full_like(text, NONE)
        weights = torch.full(text.shape, weight, device=text.device)
        embedded: Tensor = self._words(text, self._others[:, wanted : wanted + 1], weights)
        return embedded

    def _chunks(self) -> list[tuple[int, int]]:
        total = len(self.mixtures)
        return [(start, min(start + _BATCH, total)) for start in range(0, total, _BATCH)]


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """In dB, float32[B]."""
    scale = (estimate * target).sum(-1, True) / target.square().sum(-1, True)
    image = scale * target
    ratio = image.square().sum(-1) / (estimate - image).square().sum(-1).clamp(min=1e-12)
    return 10 * torch.log10(ratio.clamp(min=1e-12))
