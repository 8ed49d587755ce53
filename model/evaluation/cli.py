"""Command line of the evaluation."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from model import devices, registry
from model.evaluation import report
from model.evaluation.comparison import DECIBEL_TOLERANCE, differences
from model.evaluation.cost import bundle_files, measure
from model.evaluation.results import Results
from model.evaluation.rows import write_manifests
from model.evaluation.suite import ALL_SETS, EvaluationSettings, draw_rows, evaluate, load_phrasings
from model.training.corpus import Corpus
from terminal import flags, screen

logger = logging.getLogger(__name__)

_EXAMPLES = """examples:
  python -m model.evaluation --corpus corpus/ --output results/
  python -m model.evaluation --corpus corpus/ --output quick/ --quick 16 --sets text_pn text_p
  python -m model.evaluation --corpus corpus/ --write_manifest corpus/
  python -m model.evaluation --corpus corpus/ --output results/ --expect model/weights/results.json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, evaluates, and compares with what is expected.

    Returns:
        The exit code: 1 where the results differ from the expected ones.
    """
    screen.steady()
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not (arguments.output or arguments.write_manifest):
        parser.error("nothing to do: give --output or --write_manifest")
    try:
        arguments.device = devices.resolved(arguments.device)
    except ValueError as err:
        parser.error(str(err))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = EvaluationSettings(
        split=arguments.split,
        seed=arguments.seed,
        limit=arguments.quick,
        duration_s=arguments.duration_s,
        workers=arguments.workers,
    )
    if arguments.write_manifest:
        corpus = Corpus.load(arguments.corpus, splits=_splits(arguments.split))
        rows = draw_rows(corpus, arguments.sets, settings, load_phrasings())
        for path in write_manifests(rows, arguments.write_manifest, settings.duration_s):
            logger.info("%s", path)
    if not arguments.output:
        return 0
    results = _evaluate(arguments, settings)
    _write(results, arguments.output)
    return _compare(results, arguments) if arguments.expect else 0


def _parser() -> argparse.ArgumentParser:
    cores = len(os.sched_getaffinity(0))
    parser = flags.Parser(
        prog="python -m model.evaluation",
        description="Results of a model on a corpus of labelled clips, as JSON, CSV and Markdown.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--corpus", type=flags.path, required=True, help="folder with manifest.csv and the clips")
    add("--model", default="clapsep-mini", help="name or URI of a model (default: %(default)s)")
    add("--output", type=flags.path, help="folder for results.json, results.md and scores.csv")
    add("--write_manifest", type=flags.path, help="folder for one manifest a set; its URIs begin "
        "at the corpus: only manifests in the corpus folder itself run in place")  # fmt: skip
    add("--sets", nargs="+", choices=ALL_SETS, default=ALL_SETS, metavar="SET",
        help=f"some of {', '.join(ALL_SETS)} (default: all)")  # fmt: skip
    add("--split", default="test", help="whose clips are mixed (default: %(default)s)")
    add("--seed", type=int, default=0, help="of every draw (default: %(default)s)")
    add("--quick", type=int, metavar="N", help="only the first N mixtures of each set")
    add("--duration_s", type=float, default=10.0, help="of a mixture (default: %(default)s)")
    add("--device", default="cpu", help=f"{devices.EXPECTED} (default: %(default)s)")
    add("--workers", type=int, default=cores, help="threads (default: %(default)s, the cores)")
    add("--expect", type=flags.path, help="results.json that the new results must match")
    add("--tolerance_db", type=float, default=DECIBEL_TOLERANCE,
        help="how far a mean may be off (default: %(default)s)")  # fmt: skip
    return parser


def _evaluate(arguments: argparse.Namespace, settings: EvaluationSettings) -> Results:
    loaded = registry.load(arguments.model, device=arguments.device)
    rate_hz = loaded.separator.sample_rate_hz
    corpus = Corpus.load(arguments.corpus, sample_rate_hz=rate_hz, splits=_splits(settings.split))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tqdm(unit="row", disable=None) as bar:
            results = evaluate(
                loaded.separator,
                loaded.query_encoder,
                corpus,
                arguments.sets,
                settings=settings,
                device=arguments.device,
                progress=lambda done, total: _show(bar, done, total),
            )
    finally:
        torch.set_num_threads(threads)
    parts = {"separator": loaded.separator, "clap": loaded.query_encoder}
    networks = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    cost = measure(loaded.separator, networks, bundle_files(loaded.card), arguments.device)
    return dataclasses.replace(results, cost=cost)


def _splits(split: str) -> tuple[str, ...]:
    """The split, and the one that example clips come from where it has none."""
    return tuple(dict.fromkeys(("train", split)))


def _show(bar: tqdm[Any], done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _write(results: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    table = report.to_markdown(results)
    (folder / "results.json").write_text(report.to_json(results), encoding="utf-8")
    (folder / "results.md").write_text(table, encoding="utf-8")
    (folder / "scores.csv").write_text(report.to_csv(results), encoding="utf-8")
    logger.info("%s", table)


def _compare(results: Results, arguments: argparse.Namespace) -> int:
    recorded = json.loads(arguments.expect.read_text(encoding="utf-8"))
    found = report.as_record(results)
    lines = differences(recorded, found, tolerance_db=arguments.tolerance_db)
    for line in lines:
        logger.error("%s", line)
    if not lines:
        logger.info("the results match %s", arguments.expect)
    return 1 if lines else 0
