"""How well a CLAP names sounds whose words its training left out, with and without a tagger.

``python bench/new_words.py --corpus corpus corpus2 --plan plan.npz --teacher teacher.npz``, by the
plan and the teacher file of docs/training.md.

Nine labels are left out: their clips, and single captions that speak of them. Two new projections,
over latents of the model's audio tower that stay as they are, learn by the contrastive stage's own
loss, for several weights of the tagger's logits. A clip of the nine is then asked which of the nine
captions is its own; chance is 11 %. These side models are never written to a file. Minutes on a
CPU.

The tower itself heard the nine labels when it was trained, so this measures what ties a new *word*
to a sound, and not what a tower makes of a sound that it never heard. For that the whole stage is
trained without them, on a GPU: ``--write_plan side.npz`` writes the plan, ``python -m
model.training fit --plan side.npz --output side`` trains, and ``--trained
side/weights/model-1-of-3.safetensors`` measures it.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from model import registry
from model.clap import Clap
from model.training.contrastive import ClapStep, embed_wordings, standardised
from model.training.drawing import ClapPlanner, WindowDrawer, as_tensors
from model.training.material import Material
from model.training.settings import PLAIN_WINDOWS, ClapSettings, OptimiserSettings, QuerySettings
from model.training.sound import ClipStore, Renderer, decode_all

LEFT_OUT = {
    "baby_cry": ("Baby cry, infant cry", ("baby", "infant", "crying")),
    "chainsaw": ("Chainsaw", ("chainsaw", "chain saw")),
    "clock_tick": ("Tick-tock", ("clock", "tick")),
    "cow_moo": ("Moo", ("cow", "moo", "cattle")),
    "dog_bark": ("Bark", ("dog", "bark", "puppy")),
    "helicopter": ("Helicopter", ("helicopter", "chopper")),
    "saxophone": ("Saxophone", ("saxophone", "sax")),
    "sneeze": ("Sneeze", ("sneez",)),
    "typing": ("Typing", ("typing", "keyboard", "typewriter")),
}
"""By label, all of ten recordings or more: the tagger's class of that name, and what gives it away
in a single caption. Chosen before anything was measured."""
_BATCH = 32
_RIDGE = 0.03
"""Of the readout's normal matrix, as a share of its mean diagonal."""
_DRAWS = 2_000

Latents = NDArray[np.float32]


class _Heard(nn.Module):
    """Stands for an audio tower whose latents are known."""

    def latent(self, latents: Tensor, augment: object = None) -> Tensor:
        """float32[B, num_features], as they are."""
        del augment
        return latents


@torch.no_grad()
def hear(clap: Clap, material: Material, renderer: Renderer) -> Latents:
    """The tower's latents of all clips, as in validation; float32[N, num_features]."""
    drawer = WindowDrawer(renderer.store.lengths.numpy(), renderer.num_samples, PLAIN_WINDOWS)
    rng, found = np.random.default_rng(0), []
    for start in range(0, len(material.path), _BATCH):
        clips = np.arange(start, min(start + _BATCH, len(material.path)))
        sound = renderer(as_tensors(drawer.draw(clips, rng), clap.device))
        found.append(clap.audio_branch.latent(sound).numpy())
    return np.concatenate(found)


def left_out(material: Material) -> NDArray[np.bool_]:
    """bool[N], clips of the labels left out, and of single captions that speak of them."""
    names = np.array([str(name) for name in material.class_names])
    labels = np.isin(names, list(LEFT_OUT)) & ~material.is_open
    words = [word for _, given in LEFT_OUT.values() for word in given]
    speaks = np.array([any(word in text.lower() for word in words) for text in names])
    return (labels | (material.is_open & speaks))[material.class_of]


def train(
    clap: Clap, material: Material, latents: Latents, settings: ClapSettings, seed: int
) -> Clap:
    """Two projections for latents, trained by the contrastive stage's loss.

    Args:
        clap: whose shapes they have.
        material: without what is left out.
        latents: of its clips.
        settings: of the stage.
        seed: of everything that is drawn.
    """
    torch.manual_seed(seed)
    side = Clap(clap.config)
    side.audio_branch = _Heard()  # type: ignore[assignment]
    step = ClapStep(side, material, settings)
    planner = ClapPlanner(material, np.ones(len(latents), np.int64), 1, settings, QuerySettings())
    optimiser = torch.optim.AdamW(
        [value for value in step.parameters() if value.requires_grad],
        lr=settings.optimiser.learning_rate,
        weight_decay=settings.optimiser.weight_decay,
    )
    for number in range(settings.optimiser.steps):
        for group in optimiser.param_groups:
            left = 1.0 - number / settings.optimiser.steps
            group["lr"] = settings.optimiser.learning_rate * left
        drawn = planner.draw(np.random.default_rng([seed, number]))
        inputs = as_tensors(drawn, torch.device("cpu"))
        clips = inputs["clip"][: settings.batch_size]
        heard = torch.from_numpy(latents[clips.numpy()])
        names = ("target", "wordings", "between", "names")
        made = {"sound": heard, "clip": clips, **{name: inputs[name] for name in names}}
        loss, _ = step(made)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return side.requires_grad_(False)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """Clips, and the captions of which one is theirs."""

    clips: NDArray[np.int64]
    truth: NDArray[np.int64]
    captions: NDArray[np.int64]

    @classmethod
    def of(cls, material: Material, clips: NDArray[np.int64], labels: Sequence[int]) -> Asked:
        """By each label's first caption."""
        place = {label: number for number, label in enumerate(labels)}
        classes = material.class_of
        first = [int(np.nonzero(classes == label)[0][0]) for label in labels]
        return cls(
            clips=clips,
            truth=np.array([place[int(label)] for label in classes[clips]]),
            captions=material.caption_of[first],
        )

    def hits(self, audio: Tensor, texts: Tensor) -> NDArray[np.float64]:
        """1 where a clip's own caption is the nearest, float64[n]; embeddings of unit norm."""
        similar = audio[self.clips] @ texts[self.captions].T
        right: NDArray[np.float64] = (similar.argmax(1).numpy() == self.truth).astype(float)
        return right


def interval(values: NDArray[np.float64], group: NDArray[np.str_]) -> str:
    """The mean in percent, with its 95 % interval: a bootstrap over recordings."""
    _, number = np.unique(group, return_inverse=True)
    sums, counts = np.bincount(number, values), np.bincount(number)
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(sums), size=(_DRAWS, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return f"{100 * values.mean():5.1f} [{100 * low:5.1f}, {100 * high:5.1f}]"


def readout(latents: Latents, logits: Latents, asked: Latents) -> Latents:
    """A ridge regression from latents to logits, applied to other latents."""
    mean, deviation = latents.mean(0), latents.std(0) + 1e-6
    known, other = (latents - mean) / deviation, (asked - mean) / deviation
    normal = known.T @ known
    normal += _RIDGE * np.trace(normal) / len(normal) * np.eye(len(normal), dtype=np.float32)
    weights = np.linalg.solve(normal, known.T @ (logits - logits.mean(0)))
    found: Latents = other @ weights + logits.mean(0)
    return found


def main() -> None:
    """Prints a line for each way to name the clips."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, nargs="+", required=True)
    parser.add_argument("--plan", type=Path, required=True, help="of model.training prepare")
    parser.add_argument("--teacher", type=Path, required=True, help="the plan's teacher file")
    parser.add_argument("--model", default="clapsep-mini", help="name or URI")
    parser.add_argument("--write_plan", type=Path, help="write the plan without the nine, and end")
    parser.add_argument("--trained", help="URI of a model that was trained by that plan")
    parser.add_argument("--latents", type=Path, help=".npy: read if it is there, else written")
    parser.add_argument("--weights", type=float, nargs="+", default=(0.0, 1.0, 3.0))
    parser.add_argument("--steps", type=int, default=1_200)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    material = Material.load(options.plan)
    left = left_out(material)
    kept = np.nonzero(~left)[0]
    if options.write_plan:
        material.only(kept).save(options.write_plan)
        return
    if options.trained:
        options.model, options.weights = options.trained, ()
    clap = registry.load_query_encoder(options.model)
    if not isinstance(clap, Clap):
        sys.exit(f"--model {options.model}: its queries are not embedded by a CLAP of ours")
    if options.latents and options.latents.is_file():
        latents = np.load(options.latents)
    else:
        store = ClipStore(decode_all(material.files_in(options.corpus), clap.sample_rate_hz))
        latents = hear(clap, material, Renderer(store, clap.clip_samples, clap.sample_rate_hz))
        if options.latents:
            np.save(options.latents, latents)
    names = [str(name) for name in material.class_names]
    labels = [names.index(name) for name in LEFT_OUT]
    clips = np.nonzero(np.isin(material.class_of, labels))[0]
    new = Asked.of(material, clips, labels)
    seen_material = material.only(kept)
    held = np.nonzero(
        (material.split == "val") & ~left & np.isin(material.class_of, seen_material.labels)
    )[0]
    seen = Asked.of(material, held, sorted(set(material.class_of[held].tolist())))
    print(
        f"{options.model}: {len(clips)} clips of {len(set(material.group[clips]))} recordings of"
        f" nine labels left out, {len(held)} held-out clips of {len(seen.captions)} labels kept;"
        f" {int(left.sum()) - len(clips)} single captions left out beside them"
    )
    groups = (material.group[new.clips], material.group[seen.clips])

    def line(name: str, first: NDArray[np.float64], second: NDArray[np.float64] | None) -> None:
        shown = interval(first, groups[0])
        of_seen = interval(second, groups[1]) if second is not None else ""
        print(f"{name:<52}  {shown}   {of_seen}", flush=True)

    print(f"{'named by':<52}  nine left out, %       kept, %")
    tagger = standardised(material.logits, (material.split == "train") & ~left)
    with np.load(options.teacher) as stored:
        classes = stored["classes"].tolist()
    of_nine = [classes.index(name) for name, _ in LEFT_OUT.values()]
    line("the tagger itself", _right(tagger[clips][:, of_nine], new.truth), None)
    training = np.nonzero((material.split == "train") & ~left)[0]
    read = readout(latents[training], tagger[training], latents[clips])
    line("a linear readout of its logits", _right(read[:, of_nine], new.truth), None)
    with torch.no_grad():
        audio = F.normalize(clap.audio_projection(torch.from_numpy(latents)), dim=-1)
        texts = embed_wordings(clap, material)
    first, second = new.hits(audio, texts), seen.hits(audio, texts)
    had = "never had" if options.trained else "had"
    line(f"the model's own CLAP, which {had} these words", first, second)
    base: NDArray[np.float64] | None = None
    for weight in options.weights:
        settings = ClapSettings(
            batch_size=options.batch, logit_weight=weight,
            embedding_weight=0.0,
            optimiser=OptimiserSettings(steps=options.steps, precision="fp32"),
        )  # fmt: skip
        found = []
        for seed in range(options.seeds):
            side = train(clap, seen_material, latents[kept], settings, seed)
            with torch.no_grad():
                audio = F.normalize(side.audio_projection(torch.from_numpy(latents)), dim=-1)
                texts = embed_wordings(side, material)
            found.append((new.hits(audio, texts), seen.hits(audio, texts)))
        first, second = (np.mean(each, axis=0) for each in zip(*found, strict=True))
        line(f"new projections, weight of the logits {weight:g}", first, second)
        if base is None:
            base = first
        else:
            line(f"  that less weight {options.weights[0]:g}", first - base, None)
    for label, number in zip(LEFT_OUT, range(len(LEFT_OUT)), strict=True):
        chosen = new.truth == number
        print(f"  {label:<12} {int(chosen.sum()):>4} clips {100 * first[chosen].mean():5.1f} %")


def _right(scores: Latents, truth: NDArray[np.int64]) -> NDArray[np.float64]:
    right: NDArray[np.float64] = (scores.argmax(1) == truth).astype(float)
    return right


if __name__ == "__main__":
    main()
