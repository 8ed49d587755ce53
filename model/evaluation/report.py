"""Results as JSON, CSV and Markdown tables."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from model.evaluation.results import (
    METRICS,
    Cost,
    Results,
    Score,
    Summary,
    ZeroShot,
    summarise_scores,
)
from model.evaluation.sets import QUERY_SETS
from terminal import escaping

_DECIMALS = 4
_UNDEFINED = "n/a"


def to_json(results: Results) -> str:
    """Everything but the rows, in a stable order; undefined is null."""
    return json.dumps(as_record(results), indent=1, allow_nan=False) + "\n"


def as_record(results: Results) -> dict[str, Any]:
    """What :func:`to_json` writes."""
    record = {
        "split": results.split,
        "seed": results.seed,
        "limit": results.limit,
        "datasets": {
            dataset: {metric: _plain(results.summary(dataset, metric)) for metric in METRICS}
            for dataset in results.datasets
        },
        "per_class": {
            dataset: {
                label: _plain(summarise_scores(scores))
                for label, scores in _by(results.of(dataset), "label").items()
            }
            for dataset in results.datasets
            if dataset in QUERY_SETS
        },
        "phrases": {
            phrase: _plain(summarise_scores(scores))
            for phrase, scores in _by(results.of("dog_phrases"), "phrase").items()
        },
        "zero_shot": {found.phrasing: _plain(found) for found in results.zero_shot},
    }
    if results.cost is not None:
        record["cost"] = _plain(results.cost)
    return record


def to_csv(results: Results) -> str:
    """One line a row; undefined is empty."""
    text = io.StringIO()
    names = [field.name for field in dataclasses.fields(Score)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for score in results.scores:
        values = {name: _rounded(getattr(score, name)) for name in names}
        writer.writerow({name: _cell(value) for name, value in values.items()})
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return escaping.spreadsheet(value)
    return "" if value is None else value


def to_markdown(results: Results) -> str:
    """The tables of a model card."""
    parts = [
        f"Split `{results.split}`, seed {results.seed}"
        + (f", the first {results.limit} mixtures of each set" if results.limit else "")
        + ". Mean ± standard deviation; the 95 % interval of the mean is a bootstrap over "
        "recordings. All figures in dB are improvements over the mixture.",
        _datasets(results),
    ]
    phrases = _by(results.of("dog_phrases"), "phrase")
    if phrases:
        parts += ["### Ways to ask for a dog", _phrases(phrases)]
    if any(name in results.datasets for name in QUERY_SETS):
        parts += ["### By class (SDRi)", _per_class(results)]
    if results.zero_shot:
        parts += ["### Zero-shot classification by text", _zero_shot(results.zero_shot)]
    if results.cost is not None:
        parts += ["### Size and speed", _cost(results.cost)]
    return "\n\n".join(parts) + "\n"


def _datasets(results: Results) -> str:
    rows = []
    for dataset in results.datasets:
        sdri = results.summary(dataset)
        others = [results.summary(dataset, metric) for metric in METRICS[1:]]
        rows.append(
            [
                f"`{dataset}`",
                _spread(sdri),
                f"{_fixed(sdri.low)} … {_fixed(sdri.high)}",
                _fixed(sdri.median),
                *map(_spread, others),
                str(sdri.n),
                str(sdri.n_undefined),
            ]
        )
    head = ["set", "SDRi", "95 %", "median", "SI-SDRi", "SNRi", "n", "undefined"]
    return _table(head, rows)


def _phrases(phrases: dict[str, list[Score]]) -> str:
    rows = []
    for phrase, scores in phrases.items():
        summary = summarise_scores(scores)
        rows.append(
            [escaping.markdown(phrase), _spread(summary), _fixed(summary.median), str(summary.n)]
        )
    return _table(["positive query", "SDRi", "median", "n"], rows)


def _per_class(results: Results) -> str:
    datasets = [name for name in QUERY_SETS if name in results.datasets]
    by_label = {name: _by(results.of(name), "label") for name in datasets}
    labels = sorted({label for known in by_label.values() for label in known})
    rows = []
    for label in labels:
        cells = [_spread(summarise_scores(by_label[name].get(label, []))) for name in datasets]
        rows.append(
            [escaping.markdown(label), *cells, str(len(by_label[datasets[0]].get(label, [])))]
        )
    return _table(["class", *(f"`{name}`" for name in datasets), "n"], rows)


def _zero_shot(found: Sequence[ZeroShot]) -> str:
    rows = [
        [
            one.phrasing,
            *(
                f"{100 * share.mean:.1f} % ({100 * share.low:.1f} … {100 * share.high:.1f})"
                for share in (one.top1, one.top5)
            ),
            str(one.num_classes),
            str(one.top1.n),
        ]
        for one in found
    ]
    return _table(["class names", "top-1", "top-5", "classes", "clips"], rows)


def _cost(cost: Cost) -> str:
    rows = [[f"parameters, `{name}`", f"{count:,}"] for name, count in cost.parameters.items()]
    rows.append(["parameters, all", f"{cost.parameters_in_all:,}"])
    rows += [[f"`{name}`", f"{size / 1e6:.1f} MB"] for name, size in cost.file_bytes.items()]
    place = f"{cost.device}, {cost.threads} threads"
    rows.append([f"speed on {place}", f"{cost.real_time_factor:.0f}x real time"])
    return _table(["", ""], rows)


def _by(scores: Iterable[Score], field: str) -> dict[str, list[Score]]:
    groups: dict[str, list[Score]] = {}
    for score in scores:
        groups.setdefault(getattr(score, field), []).append(score)
    return dict(sorted(groups.items())) if field == "label" else groups


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _spread(summary: Summary) -> str:
    if summary.n == 0:
        return _UNDEFINED
    if math.isnan(summary.std):
        return _fixed(summary.mean)
    return f"{_fixed(summary.mean)} ± {_fixed(summary.std)}"


def _fixed(value: float) -> str:
    return _UNDEFINED if math.isnan(value) else f"{value:.2f}"


def _plain(record: Any) -> dict[str, Any]:
    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: rounded(item) for name, item in value.items()}
        return _rounded(value)

    plain: dict[str, Any] = rounded(dataclasses.asdict(record))
    return plain


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return round(value, _DECIMALS) if math.isfinite(value) else None
