"""Measures what fine-tuning with ten clips of a few classes gains, and what other sounds lose.

For every seed: ten clips of each class, of ten recordings, become a folder of folders, which
``python -m model.training finetune`` is given as a user would. Then the model before and after is
asked for sounds in mixtures of recordings that are neither among these nor in the training of the
bundled model (model/weights/training_clips.csv): other recordings of the classes, by the name of
the folder (``--names`` gives other ones than the labels), and a fixed set of pairs of other
classes, by their captions.

    python bench/finetuning.py --corpus CORPUS ... --work FOLDER --output TABLE.txt

A run whose folder is in FOLDER already is only measured, and what is measured is kept there.
"""

from __future__ import annotations

import argparse
import collections
import csv
import dataclasses
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from model import registry
from model.bootstrap import Summary, summarise
from model.metrics import FILTER_TAPS, distortion
from model.systems import Condition, Separator
from model.training import sound

CLASSES = ("clock_tick", "fire_crackle", "footsteps")
NUM_CLIPS = 10
NUM_OTHERS = 8
"""Other recordings of a class that are measured."""
NUM_REST = 40
"""Pairs of other classes."""
PARTNERS = 2
LEVEL = 10 ** (-24 / 20)
BATCH = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """A clip of a recording that the bundled model was not trained on."""

    path: Path
    label: str
    caption: str
    group: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """What is asked for, by which words, beside what."""

    wanted: Recording
    other: Recording
    words: str
    other_words: str


def untrained(corpora: Sequence[Path]) -> dict[str, list[Recording]]:
    """One clip of each recording, by label."""
    table = Path(__file__).parents[1] / "model" / "weights" / "training_clips.csv"
    with table.open(newline="", encoding="utf-8") as stream:
        trained = {(row["corpus"], row["path"]) for row in csv.DictReader(stream)}
    found: dict[str, dict[str, Recording]] = {}
    for corpus in corpora:
        with (corpus / "manifest.csv").open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                if (corpus.name, row["path"]) in trained or row["label"] == "open":
                    continue
                group = f"{corpus.name}/{row['group']}"
                own = found.setdefault(row["label"], {})
                own.setdefault(
                    group,
                    Recording(
                        path=corpus / row["path"],
                        label=row["label"],
                        caption=row["caption"],
                        group=group,
                    ),
                )
    return {label: [own[name] for name in sorted(own)] for label, own in sorted(found.items())}


def given(known: Mapping[str, list[Recording]], label: str, seed: int) -> list[Recording]:
    """The ten recordings of a class that a run is given."""
    order = np.random.default_rng([seed, len(label)]).permutation(len(known[label]))
    return [known[label][place] for place in order[:NUM_CLIPS]]


def mixtures_of(
    known: Mapping[str, list[Recording]],
    classes: Sequence[str],
    seed: int,
    names: Mapping[str, str] = MappingProxyType({}),
) -> list[Mixture]:
    """Other recordings of the classes, each beside some sounds of other kinds."""
    rng = np.random.default_rng([seed, 1])
    strangers = [each for label, own in known.items() if label not in classes for each in own[:1]]
    found = []
    for label in classes:
        taken = {each.group for each in given(known, label, seed)}
        rest = [each for each in known[label] if each.group not in taken][:NUM_OTHERS]
        for wanted in rest:
            for place in rng.permutation(len(strangers))[:PARTNERS].tolist():
                other = strangers[place]
                found.append(
                    Mixture(
                        wanted=wanted,
                        other=other,
                        words=names.get(label, label).replace("_", " "),
                        other_words=other.caption,
                    )
                )
    return found


def rest_of(known: Mapping[str, list[Recording]], classes: Sequence[str]) -> list[Mixture]:
    """Pairs of other classes, the same for every seed."""
    rng = np.random.default_rng(2)
    labels = [label for label in known if label not in classes]
    found = []
    for _ in range(NUM_REST):
        first, second = (
            known[labels[place]][int(rng.integers(len(known[labels[place]])))]
            for place in rng.permutation(len(labels))[:2]
        )
        found.append(
            Mixture(wanted=first, other=second, words=first.caption, other_words=second.caption)
        )
    return found


def measured(
    path: Path, loaded: registry.LoadedModel, mixtures: Sequence[Mixture]
) -> dict[str, np.ndarray]:
    """The improvements, kept in a file, so that a stopped bench goes on."""
    if not path.exists():
        found = improvements(loaded, mixtures)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".partial").open("wb") as stream:
            np.savez(stream, **found)  # type: ignore[arg-type]
        path.with_suffix(".partial").rename(path)
    with np.load(path) as stored:
        return {mode: stored[mode] for mode in stored.files}


def improvements(
    loaded: registry.LoadedModel, mixtures: Sequence[Mixture]
) -> dict[str, np.ndarray]:
    """SDR improvements in dB, float64[N], by positive and negative text and by positive alone."""
    encoder, separator = loaded.query_encoder, loaded.separator
    found: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    for start in range(0, len(mixtures), BATCH):
        part = mixtures[start : start + BATCH]
        wanted = torch.stack([_window(each.wanted, separator) for each in part])
        mixture = wanted + torch.stack([_window(each.other, separator) for each in part])
        gain = LEVEL / mixture.square().mean(-1, keepdim=True).sqrt()
        wanted, mixture = wanted * gain, mixture * gain
        words = encoder.embed_text([each.words for each in part])
        others = encoder.embed_text([each.other_words for each in part])
        for mode, negative in (("text_pn", others), ("text_p", torch.zeros_like(others))):
            with torch.inference_mode():
                condition = Condition(positive=words, negative=negative)
                estimate = separator.decode(separator.encode(mixture), condition)
            moments = distortion.measure(torch.stack([estimate, mixture], 1), wanted, FILTER_TAPS)
            ours, theirs = distortion.filtered(moments).value_db.unbind(1)
            found[mode].append((ours - theirs).numpy())
    return {mode: np.concatenate(parts) for mode, parts in found.items()}


def _window(recording: Recording, separator: Separator) -> torch.Tensor:
    """A clip from its beginning, repeated to a window, at one level."""
    rate_hz, size = separator.sample_rate_hz, separator.window_samples
    samples = sound.decode(str(recording.path), rate_hz).astype(np.float32)
    repeated = np.resize(samples, size)
    return torch.from_numpy(repeated / np.sqrt(np.mean(repeated**2)))


def prepare(
    folder: Path,
    known: Mapping[str, list[Recording]],
    classes: Sequence[str],
    seed: int,
    names: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Copies the ten clips of each class."""
    for label in classes:
        own = folder / names.get(label, label)
        own.mkdir(parents=True, exist_ok=True)
        for number, each in enumerate(given(known, label, seed)):
            shutil.copy(each.path, own / f"{number:02d}{each.path.suffix}")


def lines_of(
    title: str, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray],
    chosen: np.ndarray, groups: Sequence[str],
) -> Iterator[str]:  # fmt: skip
    """The figures of some mixtures, a line for each kind of query."""
    own = [group for group, mine in zip(groups, chosen.tolist(), strict=True) if mine]
    for mode in before:
        cells = [
            _shown(summarise(values[chosen], own))
            for values in (before[mode], after[mode], after[mode] - before[mode])
        ]
        yield f"{title:32} {mode:8} {int(chosen.sum()):4} {'  '.join(f'{c:>24}' for c in cells)}"


def _shown(summary: Summary) -> str:
    if summary.mean is None or summary.ci_low is None:
        return f"{summary.mean}"
    return f"{summary.mean:.2f} ({summary.ci_low:.2f} to {summary.ci_high:.2f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what is not there yet, measures, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--classes", nargs="+", default=CLASSES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--names", nargs="+", default=[], help="LABEL=WORDS: what a folder is called"
    )
    parser.add_argument("--settings", type=Path, help="of the fine-tuning")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(argv)
    known = untrained(options.corpus)
    names = dict(each.split("=", 1) for each in options.names)
    rest = rest_of(known, options.classes)
    base = registry.load("clapsep-mini")
    kept = options.work / "measured"
    before_rest = measured(kept / "rest-base.npz", base, rest)
    parts: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    labels: list[str] = []
    groups: list[str] = []
    lines = []
    for seed in options.seeds:
        run = options.work / f"run-{seed}"
        if not run.exists():
            prepare(options.work / f"mine-{seed}", known, options.classes, seed, names)
            words = [
                "finetune",
                "--corpus",
                str(options.work / f"mine-{seed}"),
                "--seed",
                str(seed),
            ]
            words += ["--output", str(run), "--device", "cpu"]
            words += ["--settings", str(options.settings)] if options.settings else []
            begun = time.time()
            subprocess.run([sys.executable, "-m", "model.training", *words], check=True)
            lines.append(f"seed {seed}: {time.time() - begun:.0f} s")
        tuned = registry.load(str(run))
        mixtures = mixtures_of(known, options.classes, seed, names)
        for name, values in (
            ("before", measured(kept / f"{seed}-base.npz", base, mixtures)),
            ("after", measured(kept / f"{seed}-tuned.npz", tuned, mixtures)),
            ("rest", measured(kept / f"rest-{seed}.npz", tuned, rest)),
        ):
            for mode in values:
                parts[f"{name} {mode}"].append(values[mode])
        labels += [each.wanted.label for each in mixtures]
        groups += [each.wanted.group for each in mixtures]
    modes = list(before_rest)
    before, after = (
        {mode: np.concatenate(parts[f"{name} {mode}"]) for mode in modes}
        for name in ("before", "after")
    )
    of_class = np.array(labels)
    header = f"{'mixtures of':32} {'asked by':8} {'n':>4} "
    lines.append(header + "  ".join(f"{each:>24}" for each in ("before", "after", "change")))
    lines += lines_of("their other recordings", before, after, np.ones(len(of_class), bool), groups)
    for label in options.classes:
        lines += lines_of(f"  {label}", before, after, of_class == label, groups)
    seeds = len(options.seeds)
    lines += lines_of(
        "other classes",
        {mode: np.tile(before_rest[mode], seeds) for mode in modes},
        {mode: np.concatenate(parts[f"rest {mode}"]) for mode in modes},
        np.ones(seeds * len(rest), bool),
        [each.wanted.group for each in rest] * seeds,
    )
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
