"""Where sounds were found, without references: ranked recordings, and what a listener judged.

The judgements of a page are a table, ``reviews.csv``. Segments for it are drawn evenly over their
scores, as users of BirdNET do (Wood & Kahl, J. Ornithology 2024), so that a logistic curve can be
fitted from both ends: its score at which 90 % are right is the threshold to use.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.reporting.listening import (
    Picture,
    Signal,
    audio_uri,
    data_uri,
    picture,
    power,
    reach_of,
    read_part,
    stem_uris_of,
)
from pipelines.reporting.runs import ReportConfig, Run, RunError, or_none
from transforms.audio.files import READ_ERRORS, describe
from transforms.storage import Storage

logger = logging.getLogger(__name__)

NUM_BINS = 10
"""Of scores, from a query's lowest to its highest: as many of each are judged."""
MAX_RANKED, MAX_SHOWN = 10, 8
"""Recordings in a query's list; examples in a page, which take about 1 MB each."""
WANTED = 0.9
_BEFORE_S = 1.0
_DRAWS = 4_000
_COLUMNS = ("run", "id", "start_s", "end_s", "positive_text", "score", "present")
_FORMULA = "=+-@\t\r'\uff1d\uff0b\uff0d\uff20"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What a query's segments were found to be.

    Attributes:
        run: name of the run.
        query: what was asked for.
        num_segments: of the run, for this query.
        num_judged: of those, that a listener judged.
        num_right: of those, that he called right.
        precision: part of all segments that are right, weighted by how many have such scores.
        low: lower end of its 95 % interval (Jeffreys, in each bin of scores).
        high: upper end.
        score: what segments were drawn by: ``presence`` or ``stem_to_mixture_db``.
        threshold: of the score, from which 90 % are right; None where no score of the run is.
        num_above: segments from there on.
    """

    run: str
    query: str
    num_segments: int
    num_judged: int
    num_right: int
    precision: float
    low: float
    high: float
    score: str
    threshold: float | None
    num_above: int


def scored(run: Run) -> pd.DataFrame:
    """The segments of a run with ``query`` (what was asked for) and ``score``.

    Scores are presences where any segment has one, and else levels to the mixture.
    """
    name = score_name(run)
    clips = run.clips[["id", "positive_text", "label"]]
    found = run.segments.merge(clips, on="id", how="inner", validate="many_to_one")
    query = found["positive_text"].fillna(found["label"]).fillna("by example clips")
    return found.assign(query=query, score=found[name].astype(np.float64))


def score_name(run: Run) -> str:
    """The column that a run's segments are ranked and judged by."""
    return "presence" if run.segments["presence"].notna().any() else "stem_to_mixture_db"


def ranked_by(clips: pd.DataFrame) -> str:
    """The column that recordings are ranked by: presence, or else the seconds found."""
    return "presence" if clips["presence"].notna().any() else "active_s"


def ranked(run: Run) -> list[tuple[str, pd.DataFrame]]:
    """The recordings of each query in which something was found, best first, at most ten."""
    clips = run.clips
    query = clips["positive_text"].fillna(clips["label"]).fillna("by example clips")
    found = clips.assign(query=query)[clips["n_segments"].fillna(0) > 0]
    ordered = found.sort_values([ranked_by(clips), "id"], ascending=[False, True])
    return [
        (str(name), group.head(MAX_RANKED)) for name, group in ordered.groupby("query", sort=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shown:
    """The best segment of a recording, to see and to hear.

    Attributes:
        title: mixture or stem.
        audio_uri: at most 10 s, as 16-bit FLAC in a URI.
        image_uri: its spectrogram.
        marks: segments in it: from and to, in percent of its width.
    """

    title: str
    audio_uri: str
    image_uri: str
    marks: tuple[tuple[float, float], ...]


def views(runs: Sequence[Run], config: ReportConfig) -> list[dict[str, Any]]:
    """The section of the page: for each run and query the ranked recordings, and the best to hear.

    Raises:
        RunError: the record of a run has something else than prefixes.
    """
    found = []
    left = MAX_SHOWN if config.listen else 0
    for run in runs:
        if run.segments.empty:
            continue
        for query, clips in ranked(run):
            shown: list[Shown] = []
            notes: list[str] = []
            if left > 0:
                left -= 1
                shown, notes = _shown(run, clips.iloc[[0]], config)
            found.append(
                {
                    "run": run.name,
                    "query": query,
                    "rows": [_row(clip) for clip in clips.to_dict("records")],
                    "shown": shown,
                    "note": " ".join(notes),
                }
            )
    return found


def _row(clip: dict[Any, Any]) -> dict[str, str]:
    presence = clip["presence"]
    return {
        "id": clip["id"],
        "presence": "-" if pd.isna(presence) else f"{presence:.2f}",
        "active_s": "-" if pd.isna(clip["active_s"]) else f"{clip['active_s']:.1f}",
        "n_segments": f"{int(clip['n_segments']):,}",
        "duration_s": "-" if pd.isna(clip["duration_s"]) else f"{clip['duration_s']:.1f}",
    }


def _shown(run: Run, clip: pd.DataFrame, config: ReportConfig) -> tuple[list[Shown], list[str]]:
    """Mixture and stem of a recording around its best segment; what cannot be read is said."""
    reach = reach_of(run, config)
    segments = run.segments[run.segments["id"] == clip["id"].item()]
    if segments.empty:
        return [], ["Its segments are missing from the run's folder segments/."]
    best = segments.sort_values([score_name(run), "start_s"], ascending=[False, True]).iloc[0]
    start_s = max(0.0, float(best["start_s"]) - _BEFORE_S)
    offset_s = clip["offset_s"].fillna(0.0).item()
    places = (
        ("mixture", or_none(clip["mixture_uri"])[0], offset_s + start_s, reach.rows),
        ("stem", stem_uris_of(run, clip)[0], start_s, reach.stems),
    )
    signals, notes = [], []
    for title, uri, place_s, access in places:
        if uri is None:
            continue
        try:
            access.require(uri)
            signals.append((title, *read_part(uri, place_s, reach.storage)))
        except READ_ERRORS as err:
            notes.append(f"{title.capitalize()}: {describe(err, uri)}.")
    peak = max((float(np.abs(signal).max(initial=0.0)) for _, signal, _ in signals), default=0.0)
    gain = np.float32(1.0 / peak if peak > 1.0 else 1.0)
    loudest = max((float(power(signal * gain).max()) for _, signal, _ in signals), default=0.0)
    return [
        _seen(title, signal * gain, rate_hz, loudest, segments, start_s)
        for title, signal, rate_hz in signals
    ], notes


def _seen(
    title: str,
    signal: Signal,
    rate_hz: int,
    loudest: float,
    segments: pd.DataFrame,
    start_s: float,
) -> Shown:
    drawn: Picture = picture(title, signal, rate_hz, loudest)
    length_s = max(drawn.duration_s, 1.0 / rate_hz)
    marks = []
    for begin, end in segments[["start_s", "end_s"]].to_numpy(np.float64):
        low, high = max(begin - start_s, 0.0), min(end - start_s, length_s)
        if low < high:
            marks.append((round(100 * low / length_s, 2), round(100 * (high - low) / length_s, 2)))
    return Shown(
        title=f"{title}, from {start_s:.1f} s",
        audio_uri=audio_uri(signal, rate_hz),
        image_uri=data_uri(drawn),
        marks=tuple(marks),
    )


def segment_data(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Segments of all clips for the script, clip by clip; None where no run has any.

    ``first`` has the place at which each clip's segments begin, and the end of the last.
    """
    if all(run.segments.empty for run in runs):
        return None
    parts = []
    for number, run in enumerate(runs):
        place = pd.Series(np.arange(len(run.clips)), index=run.clips["id"])
        known = scored(run)
        parts.append(known.assign(run=number, place=place.reindex(known["id"]).to_numpy()))
    together = pd.concat(parts)
    offsets = np.cumsum([0, *(len(run.clips) for run in runs)])
    rows = offsets[together["run"].to_numpy(np.int64)] + together["place"].to_numpy(np.int64)
    together = together.assign(row=rows).sort_values(["row", "start_s"], kind="stable")
    queries = pd.Categorical(together["query"])
    first = np.searchsorted(together["row"].to_numpy(), np.arange(offsets[-1] + 1))
    return {
        "first": first.tolist(),
        "start": [round(float(value), 3) for value in together["start_s"]],
        "end": [round(float(value), 3) for value in together["end_s"]],
        "score": [None if math.isnan(v) else round(v, 4) for v in together["score"].tolist()],
        "queries": queries.categories.tolist(),
        "query": queries.codes.tolist(),
        "num_bins": NUM_BINS,
    }


def read_reviews(uri: str, storage: Storage) -> pd.DataFrame:
    """Reads what a page saved, or a spreadsheet after it, be it with semicolons or tabs.

    Raises:
        RunError: it is not such a table.
    """
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
        header = text.partition("\n")[0]
        separator = next((each for each in ",;\t" if each in header), ",")
        lines = io.StringIO(text, newline="")
        rows = list(csv.DictReader(lines, delimiter=separator, strict=True, restval=""))
    except (UnicodeDecodeError, csv.Error) as err:
        raise RunError(f"--reviews {uri}: is not CSV in UTF-8 ({err})") from err
    if rows and (lacking := [name for name in _COLUMNS if name not in rows[0]]):
        raise RunError(
            f"--reviews {uri}: has no column {lacking[0]}; expected {', '.join(_COLUMNS)}"
        )
    found = pd.DataFrame([_judgement(row, number, uri) for number, row in enumerate(rows, 2)])
    if found.empty:
        raise RunError(f"--reviews {uri}: has no rows")
    return found


def _judgement(row: dict[str, Any], number: int, uri: str) -> dict[str, Any]:
    present = str(row["present"]).strip().lower()
    if present not in ("yes", "no"):
        raise RunError(f"--reviews {uri}, line {number}, present: {present!r}; expected yes or no")
    try:
        start_s = round(float(str(row["start_s"]).replace(",", ".")), 3)
    except (TypeError, ValueError) as err:
        raise RunError(f"--reviews {uri}, line {number}, start_s: {row['start_s']!r}") from err
    return {
        "run": _plain(row["run"]),
        "id": _plain(row["id"]),
        "start_s": start_s,
        "right": present == "yes",
    }


def _plain(text: str) -> str:
    """The text of a cell before which the page may have put ``'``, so that it is no formula."""
    return text[1:] if text[:1] == "'" and text[1:2] in tuple(_FORMULA) else text


def judged(runs: Sequence[Run], reviews: pd.DataFrame) -> list[Judged]:
    """What the reviews say of each query of each run.

    Raises:
        RunError: no review is of a segment of these runs.
    """
    found = [each for run in runs if not run.segments.empty for each in _judged(run, reviews)]
    if not found:
        raise RunError(
            "--reviews: none of its rows is about a segment of these runs; expected the names of "
            "the runs, ids and starts as the page saved them"
        )
    places = [run.segments[["id", "start_s"]].round(3).assign(run=run.name) for run in runs]
    asked = reviews.drop_duplicates(_PLACE).merge(pd.concat(places), "left", indicator=True)
    if lost := int((asked["_merge"] == "left_only").sum()):
        logger.warning(
            "--reviews: %s of %s segments judged are in none of these runs, and do not count: by "
            "run, id and start_s, which other flags of segments and some spreadsheets change",
            *(lost, len(asked)),
        )
    return found


_PLACE = ["run", "id", "start_s"]


def _judged(run: Run, reviews: pd.DataFrame) -> Iterator[Judged]:
    segments = scored(run).assign(start_s=lambda frame: frame["start_s"].round(3))
    ours = reviews[reviews["run"] == run.name].drop_duplicates(["id", "start_s"], keep="last")
    segments = segments.merge(ours[["id", "start_s", "right"]], on=["id", "start_s"], how="left")
    for query, group in segments.groupby("query", sort=True):
        known = group[group["right"].notna() & group["score"].notna()]
        if known.empty:
            continue
        right = known["right"].to_numpy(bool)
        scores = group["score"].dropna().to_numpy(np.float64)
        judged_scores = known["score"].to_numpy(np.float64)
        precision, low, high = precision_of(scores, judged_scores, right)
        threshold = threshold_of(scores, judged_scores, right)
        yield Judged(
            run=run.name,
            query=str(query),
            num_segments=len(group),
            num_judged=len(known),
            num_right=int(right.sum()),
            precision=precision,
            low=low,
            high=high,
            score=score_name(run),
            threshold=threshold,
            num_above=0 if threshold is None else int((scores >= threshold).sum()),
        )


def bins_of(scores: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bin of each value, 0 to 9, of equal width between the ends of ``scores``."""
    low, high = float(scores.min()), float(scores.max())
    width = (high - low) or 1.0
    places = np.floor((values - low) / width * NUM_BINS).astype(np.int64)
    return np.clip(places, 0, NUM_BINS - 1)


def precision_of(
    scores: NDArray[np.float64], judged_scores: NDArray[np.float64], right: NDArray[np.bool_]
) -> tuple[float, float, float]:
    """Part of all segments that are right, with its 95 % interval.

    Bins of scores are weighted by how many segments lie in them; one in which nothing was judged
    counts as the nearest that was.

    Args:
        scores: float64[N] of all segments.
        judged_scores: float64[M] of those that were judged.
        right: bool[M].
    """
    places = bins_of(scores, judged_scores)
    there = np.unique(places)
    nearest = there[np.abs(there[None, :] - bins_of(scores, scores)[:, None]).argmin(axis=1)]
    weights = np.array([(nearest == place).mean() for place in there])
    hits = np.array([right[places == place].sum() for place in there], np.float64)
    counts = np.array([(places == place).sum() for place in there], np.float64)
    draws = np.random.default_rng(0).beta(
        hits + 0.5, counts - hits + 0.5, size=(_DRAWS, len(there))
    )
    low, high = np.quantile(draws @ weights, (0.025, 0.975))
    mean = float(weights @ (hits / counts))
    return mean, min(mean, float(low)), max(mean, float(high))


def threshold_of(
    scores: NDArray[np.float64], judged_scores: NDArray[np.float64], right: NDArray[np.bool_]
) -> float | None:
    """The score at which a segment is right with probability 0.9, by logistic regression.

    The lowest score there is where all are; None where not even the highest one is. Where a higher
    score is no better it is all segments or none, by whether 90 % of them are right.

    Args:
        scores: float64[N] of all segments.
        judged_scores: float64[M] of those that were judged.
        right: bool[M].
    """
    scale = float(judged_scores.std()) or 1.0
    centre = float(judged_scores.mean())
    design = np.stack([np.ones(len(right)), (judged_scores - centre) / scale], axis=1)
    weights = np.zeros(2)
    ridge = np.diag([1e-6, 0.005])  # keeps the slope finite where the two are parted without error
    for _ in range(100):
        chance = 1.0 / (1.0 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (right - chance) - ridge @ weights
        curvature = design.T @ (design * (chance * (1.0 - chance))[:, None]) + ridge
        step = np.linalg.solve(curvature + 1e-9 * np.eye(2), gradient)
        weights = weights + np.clip(step, -5.0, 5.0)
        if np.abs(step).max() < 1e-10:
            break
    intercept, slope = weights
    wanted = math.log(WANTED / (1.0 - WANTED))
    low, high = float(scores.min()), float(scores.max())
    if slope <= 0.0:
        logits = np.clip(intercept + slope * (scores - centre) / scale, -30, 30)
        return low if float((1.0 / (1.0 + np.exp(-logits))).mean()) >= WANTED else None
    if intercept + slope * (low - centre) / scale >= wanted:
        return low
    threshold = centre + scale * float((wanted - intercept) / slope)
    return threshold if threshold <= high else None


def judged_view(each: Judged) -> dict[str, str]:
    """A line of the page's table of what was judged."""
    percent = f"{100 * each.precision:.0f} %"
    return {
        **{name: f"{value:,}" if isinstance(value, int) else str(value)
           for name, value in dataclasses.asdict(each).items()},
        "precision": f"{percent} ({100 * each.low:.0f} … {100 * each.high:.0f})",
        "threshold": "not reached" if each.threshold is None else f"{each.threshold:.3f}",
    }  # fmt: skip
