"""``python -m manifests.benchmarks``: writes a benchmark's manifest from its official lists."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from manifests.benchmarks import corpus_sets, importers, mixtures
from manifests.benchmarks.clips import (
    MODALITIES,
    ON_MISSING,
    POLARITIES,
    BenchmarkSetting,
    PresenceFilter,
    listing,
)
from manifests.benchmarks.lists import read_pairs, read_samples, read_table
from manifests.benchmarks.mixtures import BENCHMARKS, DURATION_S, SWEEP_LEVELS_DB
from manifests.benchmarks.mixtures import DATASET as MULTISOURCE
from manifests.files import ManifestError, absolute
from manifests.files.writing import write_rows
from manifests.row import ManifestRow, RowError, parse_record
from terminal import flags, screen

_EXAMPLES = """\
examples:
  python -m manifests.benchmarks audiocaps --pairs audiocaps_eval.csv \\
      --audio_root gs://bucket/audiocaps/test --output audiocaps.parquet
  python -m manifests.benchmarks esc50 --pairs esc_eval.csv --samples esc_eval_samples.csv \\
      --query both --shots 10 --audio_root ESC-50/audio --output esc50.csv
  python -m manifests.benchmarks folder --audio_root sounds --output sounds.jsonl --seed 1
  python -m manifests.benchmarks corpus --audio_root corpus --output sets.parquet --sets 'text_*'
exit code: 0 written, 1 clips are missing, 2 a list or folder cannot be used
"""


def parser() -> flags.Parser:
    """Every subcommand and its flags."""
    top = flags.Parser(
        prog="python -m manifests.benchmarks",
        description="Builds the manifest of a benchmark from its lists, wherever those are.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(
            name, help=f"{benchmark.dataset}: {benchmark.num_rows:,} mixtures of two clips"
        )
        _add_pairs(command, name)
        _add_level(command)
    command = commands.add_parser("pairs", help="a list of your own in the same format")
    _add_pairs(command, None)
    _add_level(command)
    command.add_argument("--dataset", required=True, help="its name in metrics and reports")
    command = commands.add_parser("multisource", help="2 to 4 sources, 1 or more targets (Table V)")
    _add_pairs(command, "audiocaps")
    _add_level(command)
    command.add_argument("--dataset", default=MULTISOURCE, help="default %(default)s")
    command.add_argument(
        "--num_sources", type=int, nargs="+", default=[2, 3, 4], help="default 2 3 4"
    )
    _add_seed(command)
    command = commands.add_parser("input_sdr", help="every pair at several levels (Table VI)")
    _add_benchmark(command, "audiocaps")
    command.add_argument("--dataset", help="for a list of your own: its name, not --benchmark's")
    levels = list(SWEEP_LEVELS_DB)
    command.add_argument(
        "--levels_db", type=float, nargs="+", default=levels, help="default -10 -5 0 5 10"
    )
    command = commands.add_parser("zeroshot", help="classes seen and unseen in training (Fig. 6)")
    _add_benchmark(command, "esc50")
    _add_level(command)
    _add_unseen(command)
    _add_importers(commands)
    return top


def _add_importers(commands: argparse._SubParsersAction[flags.Parser]) -> None:
    command = commands.add_parser("audiosep", help="one of AudioSep's lists, mixtures on disk")
    command.add_argument("--list", required=True, help="evaluation/metadata/…_eval.csv")
    command.add_argument(
        "--query_column", choices=("caption", "labels"), default="caption", help="default caption"
    )
    command.add_argument("--dataset", required=True, help="for example AudioSep-Clotho")
    _add_common(command)
    _add_query(command, polarity="P")
    command = commands.add_parser("audiosep_json", help="AudioSep's JSON of captioned clips")
    command.add_argument("--list", required=True, help='{"data": [{"wav": …, "caption": …}]}')
    _add_drawn(command)
    command = commands.add_parser("dcase", help="DCASE 2024 Task 9: source, noise, level, caption")
    command.add_argument("--list", required=True, help="such as lass_synthetic_validation.csv")
    _add_common(command)
    command = commands.add_parser("folder", help="clips in folders named after their sound")
    _add_drawn(command)
    command.add_argument(
        "--template", default="the sound of {label}", help="caption of a clip; default %(default)r"
    )
    _add_corpus(commands)


def _add_corpus(commands: argparse._SubParsersAction[flags.Parser]) -> None:
    command = commands.add_parser(
        "corpus", help="the evaluation sets of a folder whose manifest.csv says what its clips are"
    )
    _add_common(command)
    _add_seed(command)
    command.add_argument(
        "--sets",
        nargs="+",
        default=["*"],
        metavar="SET",
        help=f"names, or patterns such as 'levels_*', of {', '.join(corpus_sets.SETS)}; "
        "default: all",
    )
    command.add_argument("--split", default="test", help="clips to mix; default %(default)s")
    command.add_argument("--limit", type=int, help="mixtures of each set at most; default: all")
    command.add_argument(
        "--duration_s", type=float, default=DURATION_S, help="of each mixture; default 10"
    )
    command = commands.add_parser(
        corpus_sets.EVENTS,
        help="mixtures of such clips with known onsets, to measure where sounds are found",
    )
    _add_common(command)
    _add_seed(command)
    _add_level(command)
    command.add_argument("--split", default="test", help="clips to mix; default %(default)s")
    command.add_argument(
        "--num_mixtures", type=int, default=200, metavar="N", help="default %(default)s"
    )
    command.add_argument(
        "--duration_s",
        type=float,
        default=corpus_sets.EVENTS_S,
        help="of each mixture; default %(default)g",
    )
    command.add_argument(
        "--num_others",
        type=int,
        default=4,
        metavar="N",
        help="clips of other classes in each; default %(default)s",
    )
    command.add_argument(
        "--query",
        choices=MODALITIES,
        default="both",
        help="the first clip's caption, an example clip of another recording, or both; "
        "default %(default)s",
    )


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--audio_root", required=True, help="folder of the clips; any fsspec URI")
    command.add_argument("--output", required=True, help=".csv, .jsonl or .parquet; any fsspec URI")
    command.add_argument(
        "--on_missing",
        choices=ON_MISSING,
        default="error",
        help="where clips are not there: write nothing, leave their rows out, or do not look; "
        "default error",
    )


def _add_query(command: argparse.ArgumentParser, polarity: str) -> None:
    command.add_argument("--query", choices=MODALITIES, default="text", help="default text")
    command.add_argument(
        "--polarity", type=_polarity, default=polarity, help=f"P, N or P+N; default {polarity}"
    )
    command.add_argument(
        "--shots",
        type=int,
        help="with --query audio or both: example clips of a class, the first ones; default 1",
    )
    command.add_argument("--samples", help="list of example clips: class,file")
    command.add_argument("--samples_root", help="their folder; default --audio_root")
    command.add_argument("--text_weight", type=float, help="0 to 1, for --query both")


def _add_pairs(command: argparse.ArgumentParser, name: str | None) -> None:
    prefix = {"esc50": "esc", "fsdkaggle2018": "fsd", "music21": "music"}.get(name or "", name)
    example = f"the official list, {prefix}_eval.csv" if name else "CSV list"
    command.add_argument("--pairs", required=True, help=f"{example}; any fsspec URI")
    _add_common(command)
    _add_query(command, polarity="P+N")


def _add_benchmark(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument(
        "--benchmark", choices=tuple(BENCHMARKS), default=default, help="default %(default)s"
    )
    _add_pairs(command, default)


def _add_level(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--snr_db", type=float, default=0.0, help="target above each interferer; default 0"
    )


def _add_seed(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, default=0, help="of what is drawn; default 0")


def _add_drawn(command: argparse.ArgumentParser) -> None:
    _add_common(command)
    _add_query(command, polarity="P+N")
    _add_level(command)
    _add_seed(command)
    command.add_argument("--dataset", default="clips", help="default %(default)s")
    command.add_argument(
        "--mixtures_per_clip", type=int, default=1, help="interferers of each clip; default 1"
    )
    command.add_argument(
        "--duration_s", type=float, default=DURATION_S, help="of each mixture; default 10"
    )


def _add_unseen(command: argparse.ArgumentParser) -> None:
    group = command.add_mutually_exclusive_group(required=True)
    group.add_argument("--unseen", help="classes absent from training, separated by ;")
    group.add_argument(
        "--training_captions", help="CSV of the training data: absent are classes it does not name"
    )
    command.add_argument(
        "--caption_column", default="caption", help="its column; default %(default)s"
    )


def _polarity(text: str) -> str:
    value = {"PN": "P+N"}.get(text.upper(), text.upper())
    if value not in POLARITIES:
        raise argparse.ArgumentTypeError(f"{text}; expected P, N or P+N")
    return value


class MissingClipsError(Exception):
    """Clips that rows name are not there, and that is an error; the message lists them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltManifest:
    """What was written.

    Attributes:
        num_rows: rows in the file.
        num_skipped: rows left out for missing clips.
        missing: the missing clips in words, a line each; empty without any.
    """

    num_rows: int
    num_skipped: int
    missing: str


def build(options: argparse.Namespace) -> BuiltManifest:
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
        clips = screen.counted(len(keep.missing), "clip is missing", "clips are missing")
        rows_name = screen.counted(keep.num_skipped, "row names", "rows name")
        count = f"{clips}, which {rows_name}"
        raise MissingClipsError(f"{keep.describe()}\n{count}")
    ids = Counter(row.id for row in kept)
    twice = [row_id for row_id, count in ids.items() if count > 1]
    if twice:
        raise ManifestError(f"the list gives {ids[twice[0]]} rows the id {twice[0]}")
    num_rows = write_rows(options.output, _checked(kept, options.output))
    return BuiltManifest(num_rows=num_rows, num_skipped=keep.num_skipped, missing=keep.describe())


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


def _setting(options: argparse.Namespace, root: str) -> BenchmarkSetting:
    needs_samples = options.query != "text"
    for name, given, wanted in (
        ("shots", options.shots, ("audio", "both")),
        ("text_weight", options.text_weight, ("both",)),
    ):
        if given is not None and options.query not in wanted:
            raise ManifestError(
                f"--{name} {given} goes with --query {' or '.join(wanted)}, "
                f"and --query is {options.query}"
            )
    if needs_samples and not options.samples:
        raise ManifestError(f"--query {options.query} needs --samples: the list of example clips")
    return BenchmarkSetting(
        modality=options.query,
        polarity=options.polarity,
        shots=1 if options.shots is None else options.shots,
        samples=read_samples(options.samples) if needs_samples else {},
        samples_root=absolute(options.samples_root) if options.samples_root else root,
        text_weight=options.text_weight,
    )


def _benchmark(options: argparse.Namespace, name: str) -> mixtures.Benchmark:
    if getattr(options, "dataset", None):
        return mixtures.Benchmark(dataset=options.dataset, num_rows=0, has_classes=True)
    return mixtures.BENCHMARKS[name]


def _pairs(options: argparse.Namespace, root: str) -> Iterator[ManifestRow]:
    return mixtures.build_pairs(
        read_pairs(options.pairs),
        _benchmark(options, options.command),
        _setting(options, root),
        audio_root=root,
        snr_db=options.snr_db,
    )


def _multisource(options: argparse.Namespace, root: str) -> Iterator[ManifestRow]:
    return mixtures.build_multisource(
        mixtures.mixture_clips_of(read_pairs(options.pairs)),
        _setting(options, root),
        audio_root=root,
        dataset=options.dataset,
        num_sources=options.num_sources,
        seed=options.seed,
        snr_db=options.snr_db,
    )


def _input_sdr(options: argparse.Namespace, root: str) -> Iterator[ManifestRow]:
    return mixtures.build_input_sdr(
        read_pairs(options.pairs),
        _benchmark(options, options.benchmark),
        _setting(options, root),
        audio_root=root,
        levels_db=options.levels_db,
    )


def _zeroshot(options: argparse.Namespace, root: str) -> Iterator[ManifestRow]:
    listed = read_pairs(options.pairs)
    classes = {mixtures.class_of(pair.positive_caption) for pair in listed}
    if options.training_captions is not None:
        column = options.caption_column
        lines = read_table(options.training_captions, (column,))
        unseen = mixtures.unseen_classes(classes, (line.cells[column] for line in lines))
    else:
        unseen = frozenset(name.strip() for name in options.unseen.split(";") if name.strip())
        unknown = sorted(unseen - classes)
        if unknown:
            raise ManifestError(f"--unseen {unknown[0]}: no such class in {options.pairs}")
    return mixtures.build_pairs(
        listed,
        mixtures.BENCHMARKS[options.benchmark],
        _setting(options, root),
        audio_root=root,
        snr_db=options.snr_db,
        split_of=mixtures.split_by(unseen),
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


def _corpus(options: argparse.Namespace, root: str) -> Iterator[ManifestRow]:
    return corpus_sets.build_corpus_sets(
        corpus_sets.read_corpus(root),
        corpus_sets.chosen_sets(options.sets),
        limit=options.limit,
        audio_root=root,
        split=options.split,
        seed=options.seed,
        duration_s=options.duration_s,
    )


def _events(options: argparse.Namespace, root: str) -> Iterator[ManifestRow]:
    settings = corpus_sets.EventSettings(
        audio_root=root,
        split=options.split,
        seed=options.seed,
        num_mixtures=options.num_mixtures,
        duration_s=options.duration_s,
        num_others=options.num_others,
        snr_db=options.snr_db,
        query=options.query,
    )
    return corpus_sets.build_events(corpus_sets.read_corpus(root), settings)


def _drawn(
    clips: list[mixtures.MixtureClip], options: argparse.Namespace, root: str
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
    **dict.fromkeys(mixtures.BENCHMARKS, _pairs),
    "pairs": _pairs,
    "multisource": _multisource,
    "input_sdr": _input_sdr,
    "zeroshot": _zeroshot,
    "audiosep": _audiosep,
    "audiosep_json": _audiosep_json,
    "dcase": _dcase,
    "folder": _folder,
    "corpus": _corpus,
    corpus_sets.EVENTS: _events,
}


def run(argv: Sequence[str] | None = None) -> int:
    """Builds a manifest and says what it holds.

    Args:
        argv: command line without the program's name; None for that of the process.

    Returns:
        0 if it was written, 1 if clips are missing, 2 if a list or folder cannot be used.
    """
    screen.steady()
    options = parser().parse_args(argv)
    try:
        outcome = build(options)
    except MissingClipsError as err:
        sys.stderr.write(f"{err}; nothing was written (--on_missing skip leaves those rows out)\n")
        return 1
    except (ManifestError, ValueError, OSError) as err:
        sys.stderr.write(f"{err}\n")
        return 2
    if outcome.missing:
        sys.stderr.write(f"{outcome.missing}\n")
    text = f"{options.output}: {screen.counted(outcome.num_rows, 'row')}"
    if outcome.num_skipped:
        text += f", {outcome.num_skipped:,} left out for missing clips"
    benchmark = BENCHMARKS.get(options.command)
    if benchmark is not None and outcome.num_rows != benchmark.num_rows:
        text += f" (the official set has {benchmark.num_rows:,})"
    sys.stdout.write(f"{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(run())
