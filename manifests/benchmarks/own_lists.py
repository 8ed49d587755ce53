"""``python -m manifests.benchmarks.own_lists``: a benchmark's lists from your own labelled clips.

Writes ``pairs.csv`` and ``samples.csv`` in the format of the official lists, so that the commands
of ``python -m manifests.benchmarks`` make every table of the paper from them.
"""

from __future__ import annotations

import argparse
import posixpath
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from manifests.benchmarks.lists import Pair, filled, optional, read_table
from manifests.files import ManifestError, filesystem, reading, written
from manifests.files.writing import csv_cell
from manifests.row import stable_seed
from terminal import flags, screen

_EXAMPLES = """\
example:
  python -m manifests.benchmarks.own_lists --clips sounds/manifest.csv --output lists/
  python -m manifests.benchmarks pairs --pairs lists/pairs.csv --audio_root sounds/ \\
      --dataset sounds --output sounds.parquet
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledClip:
    """A clip of the list: its path, its class's caption, what it is for, and its recording."""

    path: str
    caption: str
    split: str
    group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnLists:
    """Pairs of clips, and the example clips of each class that they name."""

    pairs: tuple[Pair, ...]
    samples: Mapping[str, tuple[str, ...]]


def read_clips(uri: str) -> list[LabelledClip]:
    """The clips of a CSV list with the columns ``path``, ``caption``, ``split``; maybe ``group``.

    Raises:
        ManifestError: the list cannot be read, or a cell is empty.
    """
    names = ("path", "caption", "split")
    return [
        LabelledClip(
            **{name: filled(line, name, uri) for name in names},
            group=optional(line, "group"),
        )
        for line in read_table(uri, names)
    ]


def draw_lists(
    clips: Sequence[LabelledClip],
    *,
    split: str,
    examples_split: str,
    shots: int,
    limit: int | None = None,
    seed: int = 0,
) -> OwnLists:
    """Each clip of a split once as the target, beside a clip of another class.

    What is drawn depends on ``seed`` and the clips' paths only.

    Args:
        clips: the labelled clips.
        split: whose clips are mixed.
        examples_split: whose clips are the example clips, another split.
        shots: example clips of a class; classes with fewer are left out.
        limit: so many pairs at most, spread evenly over the split; None: all.
        seed: of the draws.

    Raises:
        ValueError: a number is out of range, or the splits are the same.
        ManifestError: fewer than two classes are left.
    """
    if shots < 1 or (limit is not None and limit < 1):
        raise ValueError(f"shots {shots}, limit {limit}; expected 1 or more")
    if split == examples_split:
        raise ValueError(f"split {split!r} is also examples_split; expected another one")
    by_class: dict[str, list[str]] = {}
    for clip in clips:
        if clip.split == examples_split:
            by_class.setdefault(clip.caption, []).append(clip.path)
    usable = {name for name, paths in by_class.items() if len(paths) >= shots}
    mixed = [clip for clip in clips if clip.split == split and clip.caption in usable]
    if limit is not None and limit < len(mixed):
        mixed = [mixed[index * len(mixed) // limit] for index in range(limit)]
    if len({clip.caption for clip in mixed}) < 2:
        raise ManifestError(
            f"{screen.counted(len(mixed), 'clip')} of the split {split!r}: fewer than two classes "
            f"with {shots} clips in {examples_split!r}"
        )
    pairs = tuple(_pair(clip, mixed, seed) for clip in mixed)
    named = sorted({clip.caption for clip in mixed})
    return OwnLists(
        pairs=pairs, samples={name: _examples(name, by_class[name], shots, seed) for name in named}
    )


def _pair(target: LabelledClip, clips: Sequence[LabelledClip], seed: int) -> Pair:
    rng = np.random.Generator(np.random.PCG64(stable_seed(seed, target.path)))
    while True:
        other = clips[int(rng.integers(len(clips)))]
        if other.caption != target.caption:
            return Pair(
                source_file=target.path,
                positive_caption=target.caption,
                noise_file=other.path,
                negative_caption=other.caption,
                group=target.group,
            )


def _examples(name: str, paths: Sequence[str], shots: int, seed: int) -> tuple[str, ...]:
    rng = np.random.Generator(np.random.PCG64(stable_seed(seed, f"examples/{name}")))
    return tuple(paths[int(index)] for index in rng.permutation(len(paths))[:shots])


def write_lists(lists: OwnLists, folder: str) -> None:
    """Writes ``pairs.csv`` and ``samples.csv`` into a folder, any fsspec URI.

    Raises:
        ManifestError: the folder cannot be written.
    """
    files, path = filesystem(folder)
    names = ["source_file", "positive_caption", "noise_file", "negative_caption"]
    names += ["group"] if any(pair.group for pair in lists.pairs) else []
    pairs = [[getattr(pair, name) or "" for name in names] for pair in lists.pairs]
    samples = [[name, repr(list(paths))] for name, paths in lists.samples.items()]
    with reading(folder):
        for name, data in (
            ("pairs.csv", _as_csv(names, pairs)),
            ("samples.csv", _as_csv(("class", "file"), samples)),
        ):
            with written(files, posixpath.join(path, name)) as unfinished:
                Path(unfinished).write_bytes(data)


def _as_csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    lines = (",".join(csv_cell(cell) for cell in cells) + "\n" for cells in (header, *rows))
    return "".join(lines).encode()


def run(argv: Sequence[str] | None = None) -> int:
    """Writes the lists and says how long they are; 0, or 2 where that is not possible."""
    screen.steady()
    options = _parser().parse_args(argv)
    try:
        lists = draw_lists(
            read_clips(options.clips),
            split=options.split,
            examples_split=options.examples_split,
            shots=options.shots,
            limit=options.limit,
            seed=options.seed,
        )
        write_lists(lists, options.output)
    except (ManifestError, ValueError, OSError) as err:
        sys.stderr.write(f"{err}\n")
        return 2
    count = f"{len(lists.pairs):,} pairs, {len(lists.samples):,} classes"
    sys.stdout.write(f"{options.output}: {count}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = flags.Parser(
        prog="python -m manifests.benchmarks.own_lists",
        description="A benchmark's lists from labelled clips: pairs.csv and samples.csv.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--clips",
        required=True,
        help="CSV with path, caption and split, and group where clips share recordings; any URI",
    )
    parser.add_argument("--output", required=True, help="folder of the lists; any fsspec URI")
    parser.add_argument("--split", default="test", help="clips to mix; default %(default)s")
    parser.add_argument(
        "--examples_split", default="train", help="example clips; default %(default)s"
    )
    parser.add_argument(
        "--shots", type=int, default=10, help="example clips of a class; default %(default)s"
    )
    parser.add_argument("--limit", type=int, help="pairs at most; default: every clip of the split")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn; default 0")
    return parser


if __name__ == "__main__":
    sys.exit(run())
