"""The presence stage: is what a query asks for in a mixture? Told from CLAP's frozen latents.

Windows of mixtures are made and heard once. Then a small head is trained on them, with queries that
are drawn anew at every step: by texts, by example clips and by both, for what is there, for
anything that is not, and for what is not and sounds alike. Beside that the head's answers to the
tagger's class names follow the tagger's logits, as in the contrastive stage, for words that the
corpus does not have. It is calibrated on validation clips. Minutes on a CPU.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.special
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import registry
from model.checkpoints import convert
from model.checkpoints.loading import in_bundle, load_converted
from model.checkpoints.tensorfiles import SourceFile
from model.clap import Clap
from model.config import PresenceConfig
from model.signal import fit_length, input_gain, mix
from model.signal.windowing import WindowPlan
from model.systems.clapsep.network import PresenceHead
from model.training.contrastive import (
    centres,
    embed_clips,
    embed_wordings,
    nearest_labels,
    standardised,
)
from model.training.drawing import (
    NONE,
    REFERENCE_RMS,
    Chooser,
    Drawn,
    WindowDrawer,
    as_tensors,
    source_counts,
)
from model.training.engine import MovingAverage
from model.training.material import Material
from model.training.separation import Words
from model.training.settings import PLAIN_WINDOWS, PresenceTraining
from model.training.sound import ClipStore, Renderer, decode_all

logger = logging.getLogger(__name__)

_AT_ONCE = 16
"""Windows that the tower hears at a time."""
_REPORTS = 5
_ABSENT = 3
_RECORDING_S = 10.0
_OVERLAP = 0.25
"""Of the windows of validation recordings: what separation has by default."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeardWindows:
    """Windows of mixtures, as CLAP's tower hears them, and what is in them."""

    latents: Tensor
    """float16[W, N, C], on the CPU."""
    whole: Tensor
    """float32[W, D], CLAP's embeddings, on the CPU."""
    clips: npt.NDArray[np.int64]
    """int64[W, S]; :data:`NONE` beyond the last source."""
    levels_db: npt.NDArray[np.float32]
    """float32[W, S], of the sources, below all of them together."""


@torch.no_grad()
def hear_windows(
    clap: Clap, material: Material, renderer: Renderer, settings: PresenceTraining, seed: int
) -> HeardWindows:
    """Makes windows of mixtures of training clips, and hears each once."""
    chooser = Chooser(material, settings.open_share, settings.plain_text_share)
    chooser.require_strangers(len(settings.source_shares))
    drawer = WindowDrawer(
        renderer.store.lengths.cpu().numpy(), renderer.num_samples, settings.windows
    )
    size = settings.windows_at_once
    counts = source_counts(settings.source_shares, size)
    parts: list[HeardWindows] = []
    for part in range(-(-settings.num_windows // size)):
        rng = np.random.default_rng([seed, part])
        torch.manual_seed(seed + part)
        clips = np.full((size, len(settings.source_shares)), NONE)
        for row, count in enumerate(counts):
            names: list[int] = []
            while len(names) < count:
                name = chooser.name(rng)
                names += [name] * (name not in names)
            clips[row, :count] = [chooser.clip(name, rng) for name in names]
        mixture, levels_db = _mixed(clips, drawer, renderer, settings, rng)
        latents, whole = _latents(clap, mixture)
        parts.append(
            HeardWindows(
                latents=latents, whole=whole, clips=clips, levels_db=levels_db.astype(np.float32)
            )
        )
    return HeardWindows(
        latents=torch.cat([part.latents for part in parts]),
        whole=torch.cat([part.whole for part in parts]),
        clips=np.concatenate([part.clips for part in parts]),
        levels_db=np.concatenate([part.levels_db for part in parts]),
    )


def _mixed(
    clips: npt.NDArray[np.int64],
    drawer: WindowDrawer,
    renderer: Renderer,
    settings: PresenceTraining,
    rng: np.random.Generator,
) -> tuple[Tensor, npt.NDArray[np.float64]]:
    """Mixtures float32[B, T] at their levels, and the levels of their sources in dB."""
    device = renderer.store.samples.device
    row, column = np.nonzero(clips != NONE)
    drawn = drawer.draw(clips[row, column], rng)
    sound = renderer(as_tensors(drawn, device))
    mixture = torch.zeros(len(clips), sound.shape[-1], device=device)
    mixture.index_add_(0, torch.from_numpy(row).to(device), sound)
    power = np.zeros(clips.shape)
    power[row, column] = sound.square().mean(-1).cpu().numpy()
    noise_db = rng.uniform(settings.noise_lowest_db, settings.noise_highest_db, len(clips))
    noise = REFERENCE_RMS * 10 ** (noise_db / 20) * (rng.random(len(clips)) < settings.noisy_share)
    mixture += torch.randn_like(mixture) * torch.from_numpy(noise).to(mixture)[:, None]
    gain_db = rng.uniform(settings.lowest_gain_db, settings.highest_gain_db, len(clips))
    wanted = torch.from_numpy(10 ** ((settings.level_dbfs + gain_db) / 20)).to(mixture)
    level = mixture.square().mean(-1).sqrt().clamp(min=1e-4)
    total = np.maximum(power.sum(1, keepdims=True), 1e-12)
    return mixture * (wanted / level)[:, None], 10 * np.log10(np.maximum(power / total, 1e-12))


def _latents(clap: Clap, windows: Tensor) -> tuple[Tensor, Tensor]:
    """float32[B, clip_samples] → float16[B, N, C] and float32[B, D], on the CPU."""
    latents, whole = [], []
    for part in windows.split(_AT_ONCE):
        patches = clap.audio_branch.clip_features(part).stages[-1]
        embedded = clap.audio_projection(clap.audio_branch.pooled(patches)).float()
        latents.append(patches.half().cpu())
        whole.append(F.normalize(embedded, dim=-1).cpu())
    return torch.cat(latents), torch.cat(whole)


class PresencePlanner:
    """Draws windows, and what is asked of each of them."""

    def __init__(
        self,
        material: Material,
        heard: HeardWindows,
        texts: Tensor,
        settings: PresenceTraining,
    ) -> None:
        """Asks in texts at these places, float32[M, D] of unit norm."""
        self._material, self._heard, self._settings = material, heard, settings
        self._chooser = Chooser(material, settings.open_share, settings.plain_text_share)
        self._near = nearest_labels(texts, material, settings.near_classes)
        places = centres(texts, material)
        self._alike = (places @ places.T).cpu().numpy()
        classes = material.class_of[np.maximum(heard.clips, 0)]
        self._classes = np.where(heard.clips == NONE, NONE, classes)

    def draw(self, rng: np.random.Generator) -> Drawn:
        """The windows, and for each the queries, those for what is there first."""
        settings = self._settings
        size, asked = settings.batch_size, settings.queries
        windows = rng.integers(len(self._classes), size=size)
        text = np.full((2, size * asked), NONE)
        shots = np.full((2, size * asked, 1), NONE)
        weight = np.ones((2, size * asked))
        present = np.zeros(size * asked, dtype=np.int64)
        for place, window in enumerate(windows.tolist()):
            there = [name for name in self._classes[window].tolist() if name != NONE]
            audible = [
                name
                for name, level_db in zip(there, self._heard.levels_db[window], strict=False)
                if level_db > settings.audible_db
            ]
            for number in range(asked):
                row = place * asked + number
                is_there = number < settings.present_queries and bool(audible)
                present[row] = is_there
                name = (
                    audible[int(rng.random() * len(audible))]
                    if is_there
                    else self._absent(there, rng)
                )
                self._put(name, text[0], shots[0], weight[0], row, rng)
                others = [other for other in there if other != name]
                if others and rng.random() < settings.negative_share:
                    other = others[int(rng.random() * len(others))]
                    self._put(other, text[1], shots[1], weight[1], row, rng)
        names = rng.choice(len(self._material.tagger_names), settings.names, replace=False)
        variants = rng.integers(self._material.tagger_names.shape[1], size=len(names))
        return {
            "windows": windows, "text": text, "shots": shots, "weight": weight, "present": present,
            "names": names, "name_texts": self._material.tagger_names[names, variants],
        }  # fmt: skip

    def _put(
        self,
        name: int,
        text: npt.NDArray[np.int64],
        shots: npt.NDArray[np.int64],
        weight: npt.NDArray[np.float64],
        row: int,
        rng: np.random.Generator,
    ) -> None:
        """Asks for a class by a text, by an example clip, or by both."""
        text[row] = self._chooser.text(name, rng)
        kind = rng.random()
        if kind < self._settings.text_only_share:
            return
        shots[row] = self._chooser.clip(name, rng)
        both = kind >= self._settings.text_only_share + self._settings.clips_only_share
        weight[row] = rng.random() if both else 0.0

    def _absent(self, there: Sequence[int], rng: np.random.Generator) -> int:
        """A class that is not in a mixture.

        Single captions are not known to be of another sound than a class is: one that lies near to
        what is there in the text space is not called absent.
        """
        is_open = self._material.is_open
        while True:
            name = self._chooser.name(rng)
            if rng.random() < self._settings.near_share:
                around = self._near[there[int(rng.random() * len(there))]]
                name = int(around[int(rng.random() * len(around))])
            doubtful = is_open[name] or is_open[list(there)].any()
            if doubtful and self._alike[name, there].max() > self._settings.open_similarity:
                continue
            if name not in there:
                return name


class PresenceStep(nn.Module):
    """The loss of a batch: of what is there and what is not, and of the tagger's logits."""

    def __init__(self, head: PresenceHead, num_names: int, settings: PresenceTraining) -> None:
        """Trains a head, and beside it how its answers become a tagger's logits."""
        super().__init__()
        self.head, self._settings = head, settings
        self.slope = nn.Parameter(torch.full((), 0.3))
        self.offsets = nn.Parameter(torch.zeros(num_names))

    def forward(
        self,
        latents: Tensor,
        whole: Tensor,
        asked: tuple[Tensor, Tensor],
        present: Tensor,
        names: tuple[Tensor, Tensor, Tensor],
    ) -> Tensor:
        """The mean loss.

        Args:
            latents: float32[B, N, C].
            whole: float32[B, D], CLAP's embeddings of the windows.
            asked: positive and negative queries, float32[B·Q, D] each, those of a window together.
            present: float32[B·Q], 1 for what is there.
            names: numbers of the tagger's classes int64[K], the places of their names
                float32[K, D], and the logits wanted, float32[B, K], NaN where none is known.
        """
        heard = self.head.hear(latents, whole, self._settings.dropout)
        windows = torch.arange(len(latents), device=latents.device)
        rows = windows.repeat_interleave(len(present) // len(latents))
        odds = self.head(heard.index(rows), *asked)
        share = present.mean().clamp(0.01, 0.99)
        weight = torch.where(present > 0, (1.0 - share) / share, 1.0)
        loss = F.binary_cross_entropy_with_logits(odds, present, weight)
        numbers, places, wanted = names
        positive = places.repeat(len(latents), 1)
        rows = windows.repeat_interleave(len(places))
        found = self.head(heard.index(rows), positive, torch.zeros_like(positive))
        found = found.view(len(latents), -1)
        known = ~wanted.isnan()
        error = self.slope * found + self.offsets[numbers] - wanted.nan_to_num()
        taught = (error.square() * known).sum() / known.sum().clamp(min=1)
        total: Tensor = loss + self._settings.logit_weight * taught
        return total


def train_presence(
    clap: Clap,
    material: Material,
    renderer: Renderer,
    config: PresenceConfig,
    settings: PresenceTraining,
    seed: int = 0,
) -> tuple[PresenceHead, dict[str, float]]:
    """Trains a head for a CLAP that stays as it is, and calibrates it.

    Args:
        clap: on the device that trains, frozen, in evaluation mode.
        material: clips and words.
        renderer: makes windows of the clips, on the same device.
        config: of the head.
        settings: see there.
        seed: of everything that is drawn.

    Returns:
        The head, on the CPU, and its figures on validation clips.
    """
    device = clap.device
    heard = hear_windows(clap, material, renderer, settings, seed)
    logger.info("heard %d windows", len(heard.latents))
    texts = embed_wordings(clap, material)
    shots = embed_clips(clap, renderer, np.arange(len(material.path)), PLAIN_WINDOWS)
    words = Words(texts, shots)
    validation = PresenceValidation(clap, material, renderer, words)
    planner = PresencePlanner(material, heard, texts, settings)
    torch.manual_seed(seed)
    head = PresenceHead(clap.config.audio.num_features, clap.embedding_dim, config).to(device)
    step_module = PresenceStep(head, len(material.tagger_names), settings).to(device)
    average = MovingAverage(head, settings.ema_decay)
    logits = standardised(material.logits, material.split == "train")
    optimiser = torch.optim.AdamW(
        [
            {
                "params": [value for value in step_module.parameters() if (value.ndim > 1) == wide],
                "weight_decay": settings.weight_decay if wide else 0.0,
            }
            for wide in (True, False)
        ]
    )
    for step in range(settings.steps):
        drawn = planner.draw(np.random.default_rng([seed, 1, step]))
        rising = min(1.0, (step + 1) / settings.warmup_steps)
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * rising * (1.0 - step / settings.steps)
        loss = step_module(*_inputs(drawn, heard, words, logits, settings, device))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), settings.clip_norm)
        optimiser.step()
        average.update()
        if (step + 1) % max(1, settings.steps // _REPORTS) == 0:
            _log(step + 1, loss.item(), validation.figures(average.module))
    trained = copy.deepcopy(average.module)
    validation.calibrate(trained, heard.whole.mean(dim=0))
    return trained.cpu().eval(), validation.figures(trained)


def _log(step: int, loss: float, figures: dict[str, float]) -> None:
    shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
    logger.info("presence %d: loss %.3f, %s", step, loss, shown)


def _inputs(
    drawn: Drawn,
    heard: HeardWindows,
    words: Words,
    logits: npt.NDArray[np.float32],
    settings: PresenceTraining,
    device: torch.device,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor, tuple[Tensor, Tensor, Tensor]]:
    """What :class:`PresenceStep` takes, on the device."""
    windows = drawn["windows"]
    batch = as_tensors({name: drawn[name] for name in drawn if name != "windows"}, device)
    positive, negative = (
        words(text, shots, weight, settings.text_noise)
        for text, shots, weight in zip(batch["text"], batch["shots"], batch["weight"], strict=True)
    )
    clips = heard.clips[windows]
    unheard = (clips == NONE) | (heard.levels_db[windows] < settings.audible_db)
    of_source = logits[np.maximum(clips, 0)][..., drawn["names"]]
    loudest = np.where(unheard[..., None], -np.inf, of_source).max(axis=1)
    wanted = torch.from_numpy(np.where(np.isfinite(loudest), loudest, np.nan)).float().to(device)
    alone = torch.full((len(drawn["names"]), 1), NONE, device=device)
    places = words(batch["name_texts"], alone, torch.ones(len(alone), device=device))
    return (
        heard.latents[torch.from_numpy(windows)].to(device).float(),
        heard.whole[torch.from_numpy(windows)].to(device),
        (positive, negative),
        batch["present"].float(),
        (batch["names"], places, wanted),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Asked:
    """A query of a validation recording, float32[D] each side."""

    positive: Tensor
    negative: Tensor
    kind: str


class PresenceValidation:
    """Recordings of two held-out clips at 0 dB, asked for one, for others, and for near ones."""

    def __init__(self, clap: Clap, material: Material, renderer: Renderer, words: Words) -> None:
        """Makes and hears the recordings: every held-out clip of a label is a target once."""
        self._material, self._words = material, words
        self._near = nearest_labels(words.texts, material, 2 * _ABSENT)
        self._rate_hz = round(renderer.num_samples / clap.clip_samples * clap.sample_rate_hz)
        rng = np.random.default_rng(0)
        self._of_label = self._sounding(renderer)
        self._latents: list[tuple[Tensor, Tensor]] = []
        self._asked: list[list[_Asked]] = []
        for clip in sorted(itertools.chain.from_iterable(self._of_label.values())):
            other = self._stranger(clip, rng)
            recording = self._recording(renderer, clap, clip, other)
            self._latents.append(_latents(clap, recording))
            self._asked.append(list(self._queries(clip, other, rng)))

    def figures(self, head: PresenceHead) -> dict[str, float]:
        """AUROC of what is there against what is not, and against what is not and is near.

        Args:
            head: in evaluation mode.
        """
        by_window, _, _, kinds = self._scores(head)
        odds = by_window.max(axis=1)
        there = odds[kinds == "present"]
        return {name: _auroc(there, odds[kinds == name]) for name in ("absent", "near")}

    def calibrate(self, head: PresenceHead, typical: Tensor) -> None:
        """Fits the head's logistic function; what is there and what is not weigh the same.

        Args:
            head: in evaluation mode.
            typical: float32[D], the mean embedding of mixtures.
        """
        head.typical.copy_(typical)
        odds, similar, typicality, kinds = self._scores(head)
        weights, offset = fit_logistic(
            np.stack([odds, similar, np.broadcast_to(-typicality[:, None], odds.shape)]),
            kinds == "present",
        )
        numbers = (head.scale, head.similarity, head.typicality, head.offset)
        for number, value in zip(numbers, (*weights.tolist(), offset), strict=True):
            number.fill_(value)

    def _sounding(self, renderer: Renderer) -> dict[int, list[int]]:
        """Validation clips by label, without those that are silent where they are heard."""
        length = round(_RECORDING_S * self._rate_hz)
        heard = {
            name: [clip for clip in clips if renderer.store.clip(clip)[:length].any()]
            for name, clips in self._material.held_out.items()
        }
        return {name: clips for name, clips in heard.items() if clips}

    def _stranger(self, clip: int, rng: np.random.Generator) -> int:
        own = self._material.class_of[clip]
        names = [name for name in self._of_label if name != own]
        clips = self._of_label[names[int(rng.integers(len(names)))]]
        return clips[int(rng.integers(len(clips)))]

    def _recording(self, renderer: Renderer, clap: Clap, clip: int, other: int) -> Tensor:
        """Windows float32[n, clip_samples] of a recording of 10 s."""
        total = round(_RECORDING_S * self._rate_hz)
        sources = [fit_length(renderer.store.clip(number), total) for number in (clip, other)]
        mixture = mix(sources[0], sources[1:]).mixture
        gain = input_gain([mixture[None]], self._rate_hz, clap.input_level_dbfs)
        length = renderer.num_samples
        cut = [
            gain.heard(mixture[None, start : start + length], start)[0]
            for start in WindowPlan(window_samples=length, overlap=_OVERLAP).starts(total)
        ]
        return torch.from_numpy(np.stack(cut)).to(clap.device)

    def _queries(self, clip: int, other: int, rng: np.random.Generator) -> Iterator[_Asked]:
        """By text and by example, with and without the other sound as the negative query."""
        there = [int(self._material.class_of[each]) for each in (clip, other)]
        free = [name for name in self._of_label if name not in there]
        near = [name for name in self._near[there[0]].tolist() if name in free]
        chosen = [("present", clip)]
        for kind, names in (("absent", free), ("near", near)):
            drawn = rng.permutation(len(names))[:_ABSENT].tolist()
            for name in (names[number] for number in drawn):
                clips = self._of_label[name]
                chosen.append((kind, clips[int(rng.integers(len(clips)))]))
        for kind, wanted in chosen:
            for by_text in (True, False):
                positive = self._place(wanted, by_text, wanted if kind != "present" else None)
                negative = self._place(other, by_text, None)
                yield _Asked(positive=positive, negative=negative, kind=kind)
                yield _Asked(positive=positive, negative=0 * negative, kind=kind)

    def _place(self, clip: int, by_text: bool, example: int | None) -> Tensor:
        """A query for a clip's sound: its caption, or an example (another clip where there is)."""
        if by_text:
            return self._words.texts[int(self._material.caption_of[clip])]
        if example is None:
            own = self._of_label[int(self._material.class_of[clip])]
            groups = self._material.group
            example = next((each for each in own if groups[each] != groups[clip]), clip)
        return self._words.shots[example]

    @torch.no_grad()
    def _scores(self, head: PresenceHead) -> tuple[npt.NDArray[Any], ...]:
        """The head's answers, similarities, typicality, and kinds of the n queries.

        Returns:
            float64[n, W], float64[n, W], float64[n] and str[n], for W windows a recording.
        """
        odds, similar, typicality, kinds = [], [], [], []
        device = self._words.texts.device
        for (latents, whole), asked in zip(self._latents, self._asked, strict=True):
            heard = head.hear(latents.to(device), whole.to(device))
            count, windows = len(asked), len(latents)
            positive = torch.stack([each.positive for each in asked])
            found = head(
                heard.index(torch.arange(windows, device=device).repeat_interleave(count)),
                positive.repeat(windows, 1),
                torch.stack([each.negative for each in asked]).repeat(windows, 1),
            )
            odds.append(found.view(windows, count).T)
            similar.append(positive @ heard.whole.T)
            typicality.append(positive @ head.typical)
            kinds += [each.kind for each in asked]
        arrays = [torch.cat(part).double().cpu().numpy() for part in (odds, similar, typicality)]
        return *arrays, np.array(kinds)


def _auroc(there: npt.NDArray[np.float64], absent: npt.NDArray[np.float64]) -> float:
    """How often what is there scores above what is not; ties count half."""
    order = np.sort(absent)
    below = np.searchsorted(order, there, side="left")
    at_most = np.searchsorted(order, there, side="right")
    return float((below + at_most).mean() / (2 * len(order)))


def fit_logistic(
    scores: npt.NDArray[np.float64], present: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], float]:
    """Weights and an offset that make scores log odds, of as much that is there as is not.

    Args:
        scores: float64[F, n, W], some scores of n queries in each of W windows, of which the
            likeliest counts.
        present: bool[n].

    Returns:
        float64[F] and the offset.

    Source:
        Platt 1999, without its smoothing of the targets; the two classes weigh the same.
    """
    share = np.where(present, 0.5 / present.sum(), 0.5 / (~present).sum())
    sign = np.where(present, 1.0, -1.0)

    def cost(numbers: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        odds = np.tensordot(numbers[:-1], scores, axes=1)
        window = odds.argmax(axis=1)
        counted = np.take_along_axis(scores, window[None, :, None], axis=2)[:, :, 0]
        margin = sign * (odds.max(axis=1) + numbers[-1])
        slope = -share * sign * scipy.special.expit(-margin)
        value = float((share * np.logaddexp(0.0, -margin)).sum())
        return value, np.append(counted @ slope, slope.sum())

    start = np.zeros(len(scores) + 1)
    start[0] = 1.0
    found = scipy.optimize.minimize(cost, start, jac=True, method="BFGS", options={"gtol": 1e-7})
    return found.x[:-1], float(found.x[-1])


def run(
    model: str,
    plan: Path,
    corpora: Sequence[Path],
    output: Path,
    settings: PresenceTraining,
    *,
    seed: int,
    device: str,
) -> None:
    """Trains a presence head for a model, and writes it beside the model.

    Args:
        model: a name of the registry, or a converted file.
        plan: what :mod:`model.training.material` prepared.
        corpora: the folders of its clips.
        output: file to write.
        settings: how.
        seed: of all that is drawn.
        device: a torch device.

    Raises:
        ValueError: the output would be in another folder than the model, or over its file.
    """
    entry = registry.entries().get(model)
    path = Path(in_bundle(model) if entry is None else entry.file("converted").location())
    if output.resolve().parent != path.resolve().parent or output.resolve() == path.resolve():
        raise ValueError(
            f"--output {output}: expected a new file in the folder of the model, {path.parent}"
        )
    networks = load_converted(str(path))
    if networks.separator.listener is not None:
        raise ValueError(f"--model {path}: has a presence head; give the model that it stands for")
    clap = networks.clap.to(device).requires_grad_(False).eval()
    material = Material.load(plan)
    store = ClipStore(decode_all(material.files_in(corpora), clap.sample_rate_hz))
    renderer = Renderer(store, clap.clip_samples, clap.sample_rate_hz).to(device)
    head, figures = train_presence(clap, material, renderer, PresenceConfig(), settings, seed)
    source = SourceFile(role="model", uri=path.name, sha256=networks.model_sha256)
    notes = ", ".join(f"validation AUROC {name} {value:.3f}" for name, value in figures.items())
    digest = convert.save_presence(str(output), head, source, notes=notes)
    logger.info("%s: %s; SHA-256 %s", output, notes, digest)
