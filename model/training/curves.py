"""Training curves on disk: one CSV, one picture (the paper's Fig. 7)."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

_LEVELS = ("step", "learning_rate")


def append(path: Path, row: Mapping[str, float]) -> None:
    """Adds a row; the first one decides the columns.

    Raises:
        ValueError: the row's columns are not the file's.
    """
    new = not path.is_file()
    if not new:
        with path.open(newline="", encoding="utf-8") as stream:
            header = next(csv.reader(stream))
        if header != list(row):
            raise ValueError(f"{path}: columns {header} cannot take a row of {list(row)}")
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def plot(source: Path, target: Path) -> None:
    """Draws the training loss and every validation figure over the steps."""
    from matplotlib.figure import Figure

    with source.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    steps = [float(row["step"]) for row in rows]
    figures = [name for name in rows[0] if name not in (*_LEVELS, "train_loss", "score")]
    canvas = Figure(figsize=(10, 4), layout="constrained")
    left, right = canvas.subplots(1, 2)
    left.plot(steps, [float(row["train_loss"]) for row in rows], color="tab:blue")
    left.set(xlabel="step", ylabel="training loss")
    for name in figures:
        right.plot(steps, [float(row[name]) for row in rows], label=name)
    right.set(xlabel="step", ylabel="validation")
    right.legend(fontsize="small")
    canvas.savefig(target, dpi=120)
