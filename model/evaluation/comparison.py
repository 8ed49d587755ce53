"""Does a recomputed result match the recorded one?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DECIBEL_TOLERANCE = 0.05
SHARE_TOLERANCE = 0.01


def differences(
    recorded: Mapping[str, Any],
    found: Mapping[str, Any],
    *,
    tolerance_db: float = DECIBEL_TOLERANCE,
    tolerance_share: float = SHARE_TOLERANCE,
) -> list[str]:
    """What differs between two records of :func:`model.evaluation.report.as_record`.

    Means of every data set and metric, and the zero-shot shares, are compared; what was not
    measured again differs. Cost is not compared: it depends on the machine.

    Args:
        recorded: what is expected.
        found: what was measured now.
        tolerance_db: how far a mean may be off: another processor rounds differently.
        tolerance_share: how far a share of clips may be off.

    Returns:
        A line for each difference; none where the results match.
    """
    lines = [
        f"{name}: recorded {recorded[name]!r}, found {found[name]!r}"
        for name in ("split", "seed", "limit")
        if recorded[name] != found[name]
    ]
    for group, tolerance in (("datasets", tolerance_db), ("zero_shot", tolerance_share)):
        for name, expected in recorded[group].items():
            measured = found[group].get(name)
            if measured is None:
                lines.append(f"{name}: recorded, but not measured")
                continue
            lines += _compared(name, expected, measured, tolerance)
    return lines


def _compared(
    name: str, expected: Mapping[str, Any], measured: Mapping[str, Any], tolerance: float
) -> list[str]:
    lines = []
    for metric, summary in expected.items():
        if not (isinstance(summary, Mapping) and "mean" in summary):
            continue
        before, after = summary["mean"], measured[metric]["mean"]
        if summary["n"] != measured[metric]["n"]:
            lines.append(
                f"{name}.{metric}.n: recorded {summary['n']}, found {measured[metric]['n']}"
            )
        if before != after and (
            before is None or after is None or not abs(before - after) <= tolerance
        ):
            lines.append(f"{name}.{metric}: recorded {before}, found {after}")
    return lines
