"""From parsed flags to rows, and rows to a file."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from manifests.benchmarks import importers, multisource, pairs, zeroshot
from manifests.benchmarks.clips import PresenceFilter, listing
from manifests.benchmarks.lists import read_pairs, read_samples, read_table
from manifests.benchmarks.queries import QuerySetting
from manifests.errors import ManifestError, RowError
from manifests.files import absolute
from manifests.row import ManifestRow
from manifests.validation import parse_record
from manifests.writing import write_rows


class MissingClipsError(Exception):
    """Clips that rows name are not there, and that is an error; the message lists them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was written.

    Attributes:
        num_rows: rows in the file.
        num_skipped: rows left out for missing clips.
        missing: the missing clips in words, a line each; empty without any.
    """

    num_rows: int
    num_skipped: int
    missing: str


def build(options: argparse.Namespace) -> Outcome:
    """Writes the manifest that the flags describe.

    Raises:
        ManifestError: a list, a folder or the output cannot be used.
        MissingClipsError: clips are missing and ``on_missing`` is ``error``.
        ValueError: a flag's value is out of range.
    """
    root = absolute(options.audio_root)
    rows = _RECIPES[options.command](options, root)
    keep = PresenceFilter(present=_present(options, root))
    kept = list(keep(rows))
    if keep.missing and options.on_missing == "error":
        count = f"{len(keep.missing):,} clips are missing, which {keep.num_skipped:,} rows name"
        raise MissingClipsError(f"{keep.describe()}\n{count}")
    ids = Counter(row.id for row in kept)
    twice = [row_id for row_id, count in ids.items() if count > 1]
    if twice:
        raise ManifestError(f"the list gives {ids[twice[0]]} rows the id {twice[0]}")
    num_rows = write_rows(options.output, _checked(kept, options.output))
    return Outcome(num_rows=num_rows, num_skipped=keep.num_skipped, missing=keep.describe())


def _checked(rows: Iterable[ManifestRow], uri: str) -> Iterator[ManifestRow]:
    """Rows, as long as a reader of the manifest will take them; a list can hold anything."""
    for number, row in enumerate(rows, 1):
        result = parse_record(row.to_record(), uri=uri, row=number, folder="/")
        if isinstance(result, RowError):
            raise ManifestError(str(result))
        yield row


def _present(options: argparse.Namespace, root: str) -> frozenset[str] | None:
    if options.on_missing == "ignore":
        return None
    samples_root = getattr(options, "samples_root", None)
    roots = {root} | ({absolute(samples_root)} if samples_root else set())
    return frozenset[str]().union(*(listing(folder) for folder in sorted(roots)))


def _setting(options: argparse.Namespace, root: str) -> QuerySetting:
    needs_samples = options.query != "text"
    if needs_samples and not options.samples:
        raise ManifestError(f"--query {options.query} needs --samples: the list of example clips")
    return QuerySetting(
        modality=options.query,
        polarity=options.polarity,
        shots=options.shots,
        samples=read_samples(options.samples) if needs_samples else {},
        samples_root=absolute(options.samples_root) if options.samples_root else root,
        text_weight=options.text_weight,
    )


def _benchmark(options: argparse.Namespace, name: str) -> pairs.Benchmark:
    if getattr(options, "dataset", None):
        return pairs.Benchmark(dataset=options.dataset, num_rows=0, has_classes=True)
    return pairs.BENCHMARKS[name]


def _pairs(options: argparse.Namespace, root: str) -> Iterator[ManifestRow]:
    return pairs.build_pairs(
        read_pairs(options.pairs),
        _benchmark(options, options.command),
        _setting(options, root),
        audio_root=root,
        snr_db=options.snr_db,
    )


def _multisource(options: argparse.Namespace, root: str) -> Iterator[ManifestRow]:
    return multisource.build_multisource(
        multisource.clips_of(read_pairs(options.pairs)),
        _setting(options, root),
        audio_root=root,
        dataset=options.dataset,
        num_sources=options.num_sources,
        seed=options.seed,
        snr_db=options.snr_db,
    )


def _input_sdr(options: argparse.Namespace, root: str) -> Iterator[ManifestRow]:
    return pairs.build_input_sdr(
        read_pairs(options.pairs),
        _benchmark(options, options.benchmark),
        _setting(options, root),
        audio_root=root,
        levels_db=options.levels_db,
    )


def _zeroshot(options: argparse.Namespace, root: str) -> Iterator[ManifestRow]:
    listed = read_pairs(options.pairs)
    classes = {pairs.class_of(pair.positive_caption) for pair in listed}
    if options.training_captions is not None:
        column = options.caption_column
        lines = read_table(options.training_captions, (column,))
        unseen = zeroshot.unseen_classes(classes, (line.cells[column] for line in lines))
    else:
        unseen = frozenset(name.strip() for name in options.unseen.split(";") if name.strip())
        unknown = sorted(unseen - classes)
        if unknown:
            raise ManifestError(f"--unseen {unknown[0]}: no such class in {options.pairs}")
    return pairs.build_pairs(
        listed,
        pairs.BENCHMARKS[options.benchmark],
        _setting(options, root),
        audio_root=root,
        snr_db=options.snr_db,
        split_of=zeroshot.split_by(unseen),
    )


def _audiosep(options: argparse.Namespace, root: str) -> Iterator[ManifestRow]:
    return importers.build_mixed(
        importers.read_audiosep_csv(options.list, options.query_column),
        _setting(options, root),
        audio_root=root,
        dataset=options.dataset,
    )


def _dcase(options: argparse.Namespace, root: str) -> Iterator[ManifestRow]:
    return importers.read_dcase(options.list, audio_root=root)


def _audiosep_json(options: argparse.Namespace, root: str) -> Iterator[ManifestRow]:
    return _drawn(importers.read_captioned_json(options.list), options, root)


def _folder(options: argparse.Namespace, root: str) -> Iterator[ManifestRow]:
    clips = importers.labelled_clips(root, listing(root), options.template)
    if not clips:
        raise ManifestError(f"{root}: no clips in folders below it; expected <label>/<clip>.wav")
    return _drawn(clips, options, root)


def _drawn(
    clips: list[multisource.Clip], options: argparse.Namespace, root: str
) -> Iterator[ManifestRow]:
    return importers.build_drawn(
        clips,
        _setting(options, root),
        audio_root=root,
        dataset=options.dataset,
        mixtures_per_clip=options.mixtures_per_clip,
        seed=options.seed,
        snr_db=options.snr_db,
        duration_s=options.duration_s,
    )


_RECIPES: Final[Mapping[str, Callable[[argparse.Namespace, str], Iterator[ManifestRow]]]] = {
    **dict.fromkeys(pairs.BENCHMARKS, _pairs),
    "pairs": _pairs,
    "multisource": _multisource,
    "input_sdr": _input_sdr,
    "zeroshot": _zeroshot,
    "audiosep": _audiosep,
    "audiosep_json": _audiosep_json,
    "dcase": _dcase,
    "folder": _folder,
}
