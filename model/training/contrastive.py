"""The contrastive stage: a small CLAP from labelled clips and from what a tagger makes of them.

Clips of one class are each other's positives, which plain InfoNCE would push apart. Beside that the
audio tower predicts a tagger's embedding, and the scaled similarities of a clip to the names of the
tagger's classes follow the tagger's logits, standardised by class: what the corpus does not have is
known by how the logits of what it has differ. Probabilities would not do: they are all near zero.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.clap import Clap, TextTower
from model.signal.stft import sinc_resample
from model.training.drawing import Drawn, WindowDrawer, as_tensors
from model.training.engine import MovingAverage, Tensors
from model.training.material import Floats, Ints, Material
from model.training.settings import PLAIN_WINDOWS, ClapSettings, WindowSettings, WordingSettings
from model.training.sound import Renderer

_BATCH = 256
_IMPOSSIBLE = -1e4
"""In place of a similarity that does not count."""


def spec_augment(image: Tensor) -> Tensor:
    """Zeroes two stripes of time and two of frequency (Park et al. 2019), float[B, F, mel_bins]."""
    keep = torch.ones_like(image)
    for axis, share in ((1, 1 / 12), (2, 1 / 8)):
        size = image.shape[axis]
        place = torch.arange(size, device=image.device)[None]
        for _ in range(2):
            width = torch.rand(len(image), 1, device=image.device) * size * share
            start = torch.rand(len(image), 1, device=image.device) * (size - width)
            outside = ((place < start) | (place >= start + width)).to(image.dtype)
            keep = keep * (outside[:, :, None] if axis == 1 else outside[:, None, :])
    return image * keep


def standardised(logits: Floats, training: npt.NDArray[np.bool_]) -> Floats:
    """A tagger's logits, each class to zero mean and unit deviation over the training clips."""
    values = logits.astype(np.float32)
    mean, deviation = values[training].mean(0), values[training].std(0)
    scaled: Floats = np.clip((values - mean) / np.maximum(deviation, 1e-3), -3.0, 6.0)
    return scaled


class ClapStep(nn.Module):
    """The loss of a batch."""

    latents: Tensor
    logits: Tensor
    embeddings: Tensor
    is_label: Tensor

    def __init__(self, clap: Clap, material: Material, settings: ClapSettings) -> None:
        """Trains a CLAP on a device; the text tower stays as it is."""
        super().__init__()
        self.clap = clap
        self._settings = settings
        self.log_scale = nn.Parameter(torch.tensor(math.log(14.0)))
        self.log_slope = nn.Parameter(torch.tensor(math.log(4.0)))
        self.offsets = nn.Parameter(torch.zeros(material.logits.shape[1]))
        self.to_tagger = nn.Linear(clap.config.audio.num_features, material.embedding.shape[1])
        training = material.split == "train"
        is_label = np.isin(np.arange(material.num_classes), material.labels)
        for name, value in (
            ("latents", material.latents.astype(np.float32)),
            ("logits", standardised(material.logits, training)),
            ("embeddings", material.embedding.astype(np.float32)),
            ("is_label", is_label),
        ):
            self.register_buffer(name, torch.from_numpy(value), persistent=False)

    def texts(self, numbers: Tensor, noise: float = 0.0) -> Tensor:
        """Places of texts, float32[N, D] of unit norm."""
        return self.place(self.latents.index_select(0, numbers), noise)

    def place(self, latents: Tensor, noise: float = 0.0) -> Tensor:
        """Places of latents, which have a unit mean square."""
        if noise:
            size = torch.rand(len(latents), 1, device=latents.device) * noise
            latents = latents + size * torch.randn_like(latents)
        return F.normalize(self.clap.text_projection(latents).float(), dim=-1)

    def forward(self, made: Tensors) -> tuple[Tensor, Tensor]:
        """The loss, and its terms."""
        settings = self._settings
        with torch.autocast(
            made["sound"].device.type,
            torch.bfloat16,
            enabled=settings.optimiser.precision == "bf16",
        ):
            latent = self.clap.audio_branch.latent(made["sound"], spec_augment)
            audio = self.clap.audio_projection(latent)
            guessed = self.to_tagger(latent)
        audio, guessed = F.normalize(audio.float(), dim=-1), F.normalize(guessed.float(), dim=-1)
        contrast = self._contrast(audio, made)
        names = self.texts(made["names"], settings.name_noise)
        clips = made["clip"]
        expected = self.log_slope.exp() * audio @ names.T + self.offsets
        taught = (expected - self.logits.index_select(0, clips)).square().mean()
        heard = F.normalize(self.embeddings.index_select(0, clips), dim=-1)
        distance = (1.0 - (guessed * heard).sum(-1)).mean()
        loss = (
            settings.contrast_weight * contrast
            + settings.logit_weight * taught
            + settings.embedding_weight * distance
        )
        return loss, torch.stack([contrast, taught, distance])

    def _contrast(self, audio: Tensor, made: Tensors) -> Tensor:
        """Mean of the audio → text and the text → audio cross entropies, over a batch's classes."""
        first, second = (self.latents.index_select(0, row) for row in made["wordings"])
        share = made["between"][:, None]
        text = self.place(share * first + (1.0 - share) * second, self._settings.text_noise)
        classes = torch.arange(len(text), device=text.device)
        positive = made["target"][:, None] == classes
        heard = positive.any(0)
        similar = self.log_scale.exp().clamp(max=100.0) * audio @ text.T
        similar = similar.masked_fill(~(heard | self.is_label), _IMPOSSIBLE)
        to_text = F.cross_entropy(similar, made["target"])
        among = torch.logsumexp(similar.masked_fill(~positive, _IMPOSSIBLE), dim=0)
        missed = (torch.logsumexp(similar, dim=0) - among).masked_fill(~heard, 0.0)
        return 0.5 * (to_text + missed.sum() / heard.sum())


class ClapTask:
    """Makes the batches of the contrastive stage; validates zero-shot."""

    figures: tuple[str, ...] = ("contrast", "logits", "embedding")
    rates: Mapping[str, float] = MappingProxyType({})

    def __init__(
        self, clap: Clap, material: Material, renderer: Renderer, settings: ClapSettings
    ) -> None:
        """For a CLAP on a device."""
        self.step = ClapStep(clap, material, settings).to(clap.device)
        self.step_module: nn.Module = self.step
        self.average = MovingAverage(clap, settings.optimiser.ema_decay)
        self._renderer, self._material = renderer, material
        self._size = settings.batch_size

    def make(self, inputs: Tensors) -> Tensors:
        """Clips with other clips behind them."""
        sound = self._renderer(inputs)
        names = ("target", "wordings", "between", "names")
        return {
            "sound": sound[: self._size] + sound[self._size :],
            "clip": inputs["clip"][: self._size],
            **{name: inputs[name] for name in names},
        }

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Share of the held-out clips whose own label is the nearest, and among the nearest five.

        By each label's first caption, among the labels that were held out.
        """
        return zero_shot(self.average.module, self._material, self._renderer)


def zero_shot(clap: Clap, material: Material, renderer: Renderer) -> dict[str, float]:
    """See :meth:`ClapTask.validate`."""
    held_out = [
        clip
        for clip in material.clips_of("val").tolist()
        if not material.is_open[material.class_of[clip]]
    ]
    labels = sorted({int(material.class_of[clip]) for clip in held_out})
    captions = {
        int(material.class_of[clip]): int(material.caption_of[clip]) for clip in held_out[::-1]
    }
    latents = torch.from_numpy(material.latents[[captions[name] for name in labels]]).float()
    with torch.no_grad():
        text = F.normalize(clap.text_projection(latents.to(clap.device)).float(), dim=-1)
    audio = embed_clips(clap, renderer, np.array(held_out), PLAIN_WINDOWS)
    truth = torch.tensor([labels.index(int(material.class_of[clip])) for clip in held_out])
    ranked = (audio @ text.T).argsort(dim=1, descending=True)[:, :5].cpu()
    hits = ranked == truth[:, None]
    return {
        "top1": hits[:, 0].float().mean().item(),
        "top5": hits.any(1).float().mean().item(),
    }


@torch.no_grad()
def embed_clips(
    clap: Clap, renderer: Renderer, clips: Ints, windows: WindowSettings, seed: int = 0
) -> Tensor:
    """Embeddings of clips as example queries, float32[N, D] of unit norm, at the query level."""
    rng = np.random.default_rng([7, seed])
    lengths = renderer.store.lengths.cpu().numpy()
    drawer = WindowDrawer(lengths, renderer.num_samples, windows)
    found = []
    for start in range(0, len(clips), _BATCH):
        drawn: Drawn = drawer.draw(clips[start : start + _BATCH], rng)
        if clap.input_level_dbfs is not None:
            drawn["rms"] = np.full_like(drawn["rms"], 10 ** (clap.input_level_dbfs / 20))
        sound = sinc_resample(
            renderer(as_tensors(drawn, clap.device)), renderer.sample_rate_hz, clap.sample_rate_hz
        )
        with torch.autocast(sound.device.type, torch.bfloat16, enabled=sound.is_cuda):
            latent = clap.audio_branch.latent(sound)
        found.append(F.normalize(clap.audio_projection(latent.float()).float(), dim=-1))
    return torch.cat(found)


@torch.no_grad()
def text_latents(tower: TextTower, texts: Sequence[str]) -> Floats:
    """What a text tower makes of texts, float32[N, C]; texts of like length go together."""
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    found = np.zeros((len(texts), tower.config.hidden_size), dtype=np.float32)
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        latents = tower.latent([texts[number] for number in chosen])
        found[chosen] = latents.cpu().float().numpy()
    return found


@torch.no_grad()
def embed_wordings(clap: Clap, material: Material) -> Tensor:
    """Places of all texts, float32[M, D] of unit norm."""
    latents = torch.from_numpy(material.latents).to(clap.device).float()
    return F.normalize(clap.text_projection(latents).float(), dim=-1)


def centres(texts: Tensor, material: Material) -> Tensor:
    """The mean place of each class's wordings, float32[C, D] of unit norm; zeros for none."""
    wordings = torch.from_numpy(material.wordings[:, :2]).to(texts.device)
    sums = torch.zeros(material.num_classes, texts.shape[1], device=texts.device)
    sums.index_add_(0, wordings[:, 0], texts.index_select(0, wordings[:, 1]))
    return F.normalize(sums, dim=-1)


def nearest_labels(texts: Tensor, material: Material, count: int) -> Ints:
    """The labels that lie nearest to each class in the text space, int64[C, count]."""
    places = centres(texts, material)
    labels = torch.tensor(material.labels, device=texts.device)
    similar = places @ places.index_select(0, labels).T
    own = torch.arange(len(places), device=texts.device)[:, None] == labels
    count = min(count, len(material.labels) - 1)
    nearest = similar.masked_fill(own, -2.0).topk(count, dim=1).indices
    found: Ints = labels[nearest].cpu().numpy()
    return found


def refit(clap: Clap, material: Material, settings: WordingSettings) -> None:
    """Fits the text projection anew, so that it places unread words near those it has read.

    The contrastive stage fits it to its captions so closely that other wordings of the same sound
    land elsewhere. Here labels are placed where their captions are on average, from mixtures of two
    captions with noise; all other texts, the tagger's names among them, keep their places.
    """
    device = clap.device
    before = embed_wordings(clap, material)
    latents = torch.from_numpy(material.latents).to(device).float()
    labels = torch.tensor(material.labels, device=device)
    goals = centres(before, material).index_select(0, labels)
    wordings = [
        [*plain, *framed] for plain, framed in map(material.texts_of.__getitem__, material.labels)
    ]
    counts = torch.tensor([len(each) for each in wordings], device=device)
    longest = int(counts.max())
    table = torch.tensor([(each * longest)[:longest] for each in wordings], device=device)
    of_labels = {text for each in wordings for text in each}
    others = [text for text in range(len(latents)) if text not in of_labels]
    kept = torch.tensor(others, device=device)
    projection = copy.deepcopy(clap.text_projection).requires_grad_(True)
    for layer in projection.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    optimiser = torch.optim.AdamW(
        projection.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    truth = torch.arange(len(labels), device=device)

    def drawn() -> Tensor:
        place = torch.rand(len(labels), 1, device=device) * counts[:, None]
        return latents.index_select(0, table.gather(1, place.long())[:, 0])

    for step in range(settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * (1 - step / settings.steps)
        share = torch.rand(len(labels), 1, device=device)
        share = torch.where(torch.rand_like(share) < 0.5, share, 1.0)
        between = share * drawn() + (1 - share) * drawn()
        between = between + settings.noise * torch.randn_like(between)
        placed = F.normalize(projection(between), dim=-1)
        told_apart = F.cross_entropy(settings.scale * placed @ goals.T, truth)
        distance = 1 - (placed * goals).sum(-1).mean()
        chosen = kept[torch.randint(len(kept), (settings.kept_a_step,), device=device)]
        again = F.normalize(projection(latents.index_select(0, chosen)), dim=-1)
        moved = 1 - (again * before.index_select(0, chosen)).sum(-1).mean()
        loss = told_apart + settings.closeness_weight * (distance + moved)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    clap.text_projection.load_state_dict(projection.state_dict())
