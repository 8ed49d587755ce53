"""The tables of a model card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from manifests.benchmarks.corpus_sets import ABSENT_SETS, SETS
from model.bootstrap import Detection, Summary
from pipelines.evaluation.model_figures import Cost, ZeroShot
from pipelines.evaluation.results import METRICS, Results
from pipelines.reporting.measured import interval, mean_std
from terminal import screen

_UNDEFINED = "n/a"


def card_tables(results: Results) -> str:
    """Writes the tables of an evaluation in Markdown; parts that were not run have none."""
    limit = f", the first {results.limit} mixtures of each set" if results.limit else ""
    parts = [
        f"Split `{results.split}`, seed {results.seed}{limit}. Mean ± standard deviation; 95 % "
        "intervals are a bootstrap over recordings. All figures in dB are improvements over the "
        "mixture."
    ]
    if summaries := results.summaries():
        parts.append(_sets(summaries))
    if found := results.presence():
        parts += ["### Present or absent", _presence(found)]
    if suppressed := results.suppression():
        parts.append(_suppression(suppressed))
    if phrases := results.by_phrase():
        parts += ["### Ways to ask for a dog", _phrases(phrases)]
    if by_class := results.by_class():
        parts += ["### By class (SDRi)", _classes(by_class)]
    if results.zero_shot:
        parts += ["### Zero-shot classification by text", _zero_shot(results.zero_shot)]
    if results.cost is not None:
        parts += ["### Size and speed", _cost(results.cost)]
    return "\n\n".join(parts) + "\n"


def _sets(summaries: Mapping[str, Mapping[str, Summary]]) -> str:
    head = ["set", "SDRi", "95 %", "median", "SI-SDRi", "SNRi", "n", "undefined", "asks"]
    rows = []
    for name, by_metric in summaries.items():
        sdri, *others = (by_metric[metric] for metric in METRICS)
        rows.append(
            [
                *(f"`{name}`", _spread(sdri), interval(sdri), _fixed(sdri.median)),
                *map(_spread, others),
                *(str(sdri.n), str(sdri.n_undefined), SETS[name].about),
            ]
        )
    return _table(head, rows)


def _presence(found: Mapping[str, Mapping[str, Detection]]) -> str:
    head = ["absent classes", "told from", "AUROC", "95 %", "present", "absent"]
    rows = [
        [
            *(f"`{name}`", f"`{column}`", _fixed(each.auroc, 3)),
            "" if each.ci_low is None else f"[{each.ci_low:.3f}, {each.ci_high:.3f}]",
            *(str(each.n_present), str(each.n_absent)),
        ]
        for name in ABSENT_SETS
        for column, each in found.get(name, {}).items()
    ]
    return _table(head, rows)


def _suppression(found: Mapping[str, Summary]) -> str:
    head = ["absent classes", "suppression", "95 %", "median", "n", "silent"]
    rows = [
        [
            *(f"`{name}`", _spread(each), interval(each), _fixed(each.median)),
            *(str(each.n), str(each.n_undefined)),
        ]
        for name, each in found.items()
    ]
    return _table(head, rows)


def _phrases(phrases: Mapping[str, Summary]) -> str:
    rows = [
        [screen.markdown(phrase), _spread(each), _fixed(each.median), str(each.n)]
        for phrase, each in phrases.items()
    ]
    return _table(["positive query", "SDRi", "median", "n"], rows)


def _classes(by_class: Mapping[str, Mapping[str, Summary]]) -> str:
    labels = sorted({label for known in by_class.values() for label in known})
    rows = []
    for label in labels:
        found = [known.get(label) for known in by_class.values()]
        n = max(each.n + each.n_undefined for each in found if each is not None)
        cells = [_UNDEFINED if each is None else _spread(each) for each in found]
        rows.append([screen.markdown(label), *cells, str(n)])
    return _table(["class", *(f"`{name}`" for name in by_class), "n"], rows)


def _zero_shot(found: Sequence[ZeroShot]) -> str:
    rows = [
        [
            one.phrasing,
            *map(_share, (one.top1, one.top5)),
            str(one.num_classes),
            str(one.top1.n),
        ]
        for one in found
    ]
    return _table(["class names", "top-1", "top-5", "classes", "clips"], rows)


def _share(summary: Summary) -> str:
    if summary.mean is None:
        return _UNDEFINED
    text = f"{100 * summary.mean:.1f} %"
    if summary.ci_low is None or summary.ci_high is None:
        return text
    return f"{text} [{100 * summary.ci_low:.1f}, {100 * summary.ci_high:.1f}]"


def _cost(cost: Cost) -> str:
    rows = [
        # A text encoder that a package carries is no part of the model's own networks.
        [f"parameters, `{name}`", f"{count:,}" if count else "none of its own"]
        for name, count in cost.parameters.items()
    ]
    rows.append(["parameters, all", f"{cost.parameters_in_all:,}"])
    rows += [[f"`{name}`", f"{size / 1e6:.1f} MB"] for name, size in cost.file_bytes.items()]
    threads = "1 thread" if cost.threads == 1 else f"{cost.threads} threads"
    rows.append([f"speed on {cost.device}, {threads}", f"{cost.real_time_factor:.0f}x real time"])
    return _table(["", ""], rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _spread(summary: Summary) -> str:
    return _UNDEFINED if summary.mean is None else mean_std(summary)


def _fixed(value: float | None, digits: int = 2) -> str:
    return _UNDEFINED if value is None else f"{value:.{digits}f}"
