"""The contrastive stage: a small CLAP from labelled clips (Radford et al. 2021; Wu et al. 2023).

Clips of one class are each other's positives, which plain InfoNCE would push apart.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.clap import Clap, cover
from model.signal import at_level
from model.training.augment import Audio, SpecAugment, at_rms, change_speed, place
from model.training.captions import CaptionBook, LatentCache
from model.training.corpus import Corpus

_LEVEL_RMS = 0.06
_OPEN_SHARE = 0.1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ContrastiveBatch:
    """Clips and the captions of the classes they are told apart from."""

    windows: Tensor
    """float32[B, clip_samples]."""
    latents: Tensor
    """float32[C, H], one caption a class."""
    targets: Tensor
    """int64[B], every clip's class."""


class ContrastiveStep(nn.Module):
    """The loss of a batch."""

    def __init__(self, clap: Clap, precision: str) -> None:
        super().__init__()
        self.clap = clap
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self._enabled = precision == "bf16"

    def forward(self, batch: ContrastiveBatch) -> Tensor:
        """Mean of the audio → text and the text → audio cross entropies."""
        augment = SpecAugment(torch.Generator().manual_seed(int(torch.randint(2**31, (1,)))))
        with torch.autocast(batch.windows.device.type, torch.bfloat16, enabled=self._enabled):
            latent = self.clap.audio_branch.latent(batch.windows, augment)
            audio = self.clap.audio_projection(latent)
            text = self.clap.text_projection(batch.latents)
        audio, text = F.normalize(audio.float(), dim=-1), F.normalize(text.float(), dim=-1)
        logits = self.log_scale.exp().clamp(max=100.0) * audio @ text.T
        to_text = F.cross_entropy(logits, batch.targets)
        positive = F.one_hot(batch.targets, text.shape[0]).bool()
        heard = positive.any(dim=0)
        among = torch.logsumexp(logits.masked_fill(~positive, -torch.inf)[:, heard], dim=0)
        to_audio = (torch.logsumexp(logits[:, heard], dim=0) - among).mean()
        return 0.5 * (to_text + to_audio)


class ContrastiveTask:
    """Draws clips, balanced by the square root of their class's size; validates zero-shot."""

    def __init__(
        self, clap: Clap, train: Corpus, book: CaptionBook, held_out: Corpus, precision: str
    ) -> None:
        self.step_module: nn.Module = ContrastiveStep(clap, precision)
        self._clap = clap
        self._train = train
        self._book = book
        self._held_out = held_out
        self._latents = LatentCache(clap.text_branch)
        sizes = np.bincount(book.class_of, minlength=len(book.names))
        self._labels = [name for name, rare in enumerate(book.is_open) if not rare]
        self._weights = (book.weights(_OPEN_SHARE) / sizes)[book.class_of]

    def draw(self, rng: np.random.Generator, batch_size: int) -> ContrastiveBatch:
        """A batch, and one random caption for each of its classes and for every label."""
        indices = rng.choice(len(self._train.clips), size=batch_size, p=self._weights)
        classes = [self._book.class_of[index] for index in indices]
        bank = sorted({*classes, *self._labels})
        captions = [self._book.draw([name], rng) for name in bank]
        windows = np.stack([self._window(int(index), rng) for index in indices])
        return ContrastiveBatch(
            windows=torch.from_numpy(windows),
            latents=self._latents(captions),
            targets=torch.tensor([bank.index(name) for name in classes]),
        )

    def _window(self, index: int, rng: np.random.Generator) -> Audio:
        audio = change_speed(self._train.audio(index), float(rng.uniform(0.88, 1.14)))
        window = place(audio, self._clap.clip_samples, rng, repeat_share=0.7)
        window = at_rms(window, _LEVEL_RMS * 10 ** rng.uniform(-0.6, 0.3))
        if rng.random() < 0.5:
            other = self._train.audio(int(rng.integers(len(self._train.clips))))
            noise = place(other, self._clap.clip_samples, rng)
            window = window + at_rms(noise, _LEVEL_RMS * 10 ** rng.uniform(-2.0, -0.8))
        return window.astype(np.float32)

    def validate(self) -> dict[str, float]:
        """Zero-shot accuracy on the held-out clips, by the captions of all their classes."""
        corpus = self._held_out
        captions = {clip.label: clip.caption for clip in corpus.clips}
        latents = self._latents([captions[label] for label in corpus.labels])
        text = F.normalize(self._clap.text_projection(latents), dim=-1)
        audio = embed_clips(self._clap, corpus)
        truth = torch.tensor([corpus.labels.index(clip.label) for clip in corpus.clips])
        ranked = (audio @ text.T).argsort(dim=1, descending=True)
        hits = ranked[:, :5] == truth[:, None]
        top1, top5 = hits[:, 0].float().mean().item(), hits.any(dim=1).float().mean().item()
        return {"score": top1, "top1": top1, "top5": top5}


def embed_clips(
    clap: Clap,
    corpus: Corpus,
    *,
    speed: float = 1.0,
    augment: SpecAugment | None = None,
    precision: str = "fp32",
    batch_size: int = 16,
) -> Tensor:
    """Audio embeddings of a corpus, as audio queries see them: float32[N, D], unit norm.

    Args:
        clap: the model; put it in evaluation mode first.
        corpus: its clips, in order.
        speed: plays the clips faster or slower first.
        augment: SpecAugment, on the query encoder only, as in the paper's recipe.
        precision: ``bf16`` runs the encoder under autocast.
        batch_size: windows a forward.
    """
    windows: list[Tensor] = []
    counts: list[int] = []
    found: list[Tensor] = []

    def flush() -> None:
        inputs = torch.stack(windows).to(clap.device)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16"):
            latent = clap.audio_branch.latent(inputs, augment).float()
        unit = F.normalize(clap.audio_projection(latent), dim=-1)
        found.extend(F.normalize(part.mean(dim=0), dim=0) for part in unit.split(counts))
        windows.clear()
        counts.clear()

    with torch.no_grad():
        for index in range(len(corpus.clips)):
            audio = change_speed(corpus.audio(index), speed)
            audio = at_level(audio, corpus.sample_rate_hz, clap.input_level_dbfs)
            clip = torch.from_numpy(audio)
            pieces = cover(clip, clap.clip_samples)
            windows.extend(pieces)
            counts.append(len(pieces))
            if len(windows) >= batch_size:
                flush()
        if windows:
            flush()
    return torch.stack(found).cpu()
