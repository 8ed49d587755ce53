"""The evaluation of a separator and its CLAP on a corpus, set by set."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from model import training
from model.clap import QueryEncoder
from model.evaluation.queries import EmbeddedQueries
from model.evaluation.results import Results, Score
from model.evaluation.rows import EvaluationRow
from model.evaluation.runner import Answer, Runner
from model.evaluation.sets import SETS, Draw, Phrasings
from model.evaluation.zero_shot import classify
from model.metrics import ClipScore, score_pair
from model.systems import Separator
from model.training.corpus import Corpus

ZERO_SHOT = "zero_shot"
ALL_SETS = (*SETS, ZERO_SHOT)
HELDOUT = Path(training.__path__[0]) / "captions_heldout.json"

Progress = Callable[[int, int], None]
"""Told how many rows of how many are done."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """What is drawn, and how it is run.

    Attributes:
        split: whose clips are mixed and classified.
        seed: of every draw.
        limit: mixtures of each data set, and clips of zero-shot, all by default. A data set's rows
            are in an order drawn by the seed: the first ones are a fair sample.
        duration_s: length of a mixture.
        workers: threads that separate and score. On a CPU, one for each core and a single thread
            in each of torch's operations is the fastest.
    """

    split: str = "test"
    seed: int = 0
    limit: int | None = None
    duration_s: float = 10.0
    workers: int = 1

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit}: expected at least 1, or None")
        if not self.duration_s > 0:
            raise ValueError(f"duration_s={self.duration_s}: expected a positive number")
        if self.workers < 1:
            raise ValueError(f"workers={self.workers}: expected at least 1")


def evaluate(
    clapsep: Separator,
    clap: QueryEncoder,
    corpus: Corpus,
    sets: Sequence[str] = ALL_SETS,
    limit: int | None = None,
    *,
    settings: EvaluationSettings | None = None,
    heldout: Phrasings | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Results:
    """Runs some of :data:`ALL_SETS`.

    The result is the same whichever sets are run together. Both models must be in evaluation mode.

    Args:
        clapsep: the system under test.
        clap: embeds the queries.
        corpus: clips of the split, and of those that example clips may come from.
        sets: names.
        limit: overrides that of the settings.
        settings: what is drawn, and how it is run.
        heldout: phrasings a label that training has not seen; the bundled ones by default.
        device: where the separator is.
        progress: told how far the run is.

    Raises:
        ValueError: a set is unknown, or the split cannot be drawn from.
    """
    settings = settings or EvaluationSettings()
    if limit is not None:
        settings = dataclasses.replace(settings, limit=limit)
    phrasings = heldout if heldout is not None else load_phrasings()
    rows = draw_rows(corpus, sets, settings, phrasings)
    queries = EmbeddedQueries([row.query for row in rows], clap, corpus)
    runner = Runner(clapsep, queries, corpus, duration_s=settings.duration_s, device=device)
    batches = runner.batches(rows)
    scored: dict[str, Score] = {}
    with ThreadPoolExecutor(settings.workers) as pool:
        for scores in pool.map(lambda batch: _scores(runner.answer(batch)), batches):
            scored.update({score.id: score for score in scores})
            if progress is not None:
                progress(len(scored), len(rows))
    zero_shot = (
        classify(clap, corpus, split=settings.split, heldout=phrasings, limit=settings.limit)
        if ZERO_SHOT in sets
        else ()
    )
    return Results(
        split=settings.split,
        seed=settings.seed,
        limit=settings.limit,
        scores=tuple(scored[row.id] for row in rows),
        zero_shot=zero_shot,
    )


def load_phrasings(path: Path = HELDOUT) -> Mapping[str, Sequence[str]]:
    """Reads a JSON object of label → list of phrasings."""
    phrasings: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    return phrasings


def draw_rows(
    corpus: Corpus, sets: Sequence[str], settings: EvaluationSettings, heldout: Phrasings
) -> list[EvaluationRow]:
    """The rows of some sets, the first ``limit`` of each data set.

    Raises:
        ValueError: a set is unknown, or the split cannot be drawn from.
    """
    unknown = sorted(set(sets) - set(ALL_SETS))
    if unknown:
        raise ValueError(f"sets {unknown}: expected some of {ALL_SETS}")
    names = [name for name in SETS if name in sets]
    if not names:
        return []
    draw = Draw(corpus, split=settings.split, seed=settings.seed, heldout=heldout)
    by_dataset: dict[str, list[EvaluationRow]] = {}
    for row in (row for name in names for row in draw.rows(name)):
        by_dataset.setdefault(row.dataset, []).append(row)
    return [row for rows in by_dataset.values() for row in rows[: settings.limit]]


def _scores(answers: Sequence[Answer]) -> list[Score]:
    stems, mixtures, references = (
        torch.from_numpy(np.stack([getattr(answer, name) for answer in answers]))
        for name in ("stem", "mixture", "reference")
    )
    clips = score_pair(stems, mixtures, references).clips()
    return [_score(answer.row, clip) for answer, clip in zip(answers, clips, strict=True)]


def _score(row: EvaluationRow, clip: ClipScore) -> Score:
    return Score(
        id=row.id,
        dataset=row.dataset,
        label=row.label,
        group=row.group,
        phrase=row.query.positive_text or "",
        sdri_db=_number(clip.sdri_db),
        si_sdri_db=_number(clip.si_sdri_db),
        snri_db=_number(clip.snri_db),
        undefined_reason=clip.undefined_reason or "",
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
