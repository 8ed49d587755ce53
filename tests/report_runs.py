"""Run folders written by hand, for tests of the report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.columns import (
    DEAD_LETTER_SCHEMA,
    METRIC_COLUMNS,
    METRICS_SCHEMA,
    SEGMENTS_SCHEMA,
    with_extra,
)

NASTY = (
    *("[/]", "[red]x[/red]", ":dog:", "[a](http://b.c)", "![a](b)", "<http://b.c>", "www.b.c"),
    *("</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>", "&lt;&amp;", "a|b"),
    *("`a`", "**a** __b__ ~~c~~", "# a", "- a", "1. a", "{{7*7}} ${7*7} {% x %}", "$\\frac{1}{2$"),
    *("\\input{x}", "\\", "100 % & #1_2^3~4", "*", "[1ex]", "_a", "#1c2128", "日本 🐕 e\u0301"),
    *("=1+1", "+1", "-1", "@a", "\t=1", "\r=1", "a\r=1+1", "a\n=1+1", "a\r\n@b", "a;=1", "a; -1"),
    *('"', '",=1', "a,b", "\uff1d1+1", "'", "''=1", "a\u2028=1", "a\x85=1"),
    *("a\x1b[2Jb", "a\x9bKb", "a\u202eb"),
)
"""Names that are markup, formulas or commands to something that a report or a screen is made of."""
MODEL_SHA, SCORER_SHA, MANIFEST_SHA = "a1" * 32, "b2" * 32, "c3" * 32


def clip(number: int, **given: Any) -> dict[str, Any]:
    """A row of metrics with every column of the schema."""
    row: dict[str, Any] = dict.fromkeys(METRICS_SCHEMA.names)
    row.update(
        id=f"clip-{number:05d}",
        dataset="AudioCaps",
        split="test",
        label=None,
        query_type="text",
        polarity="P+N",
        n_shots=0,
        n_sources=2,
        input_snr_db=0.0,
        sdri_db=float(number),
        sdr_db=float(number),
        sdr_mixture_db=0.0,
        si_sdri_db=number - 1.0,
        clap_score=0.25,
        duration_s=10.0,
        sample_rate_hz=32_000,
        n_channels=1,
        n_windows=1,
        model="tones",
        model_sha256=MODEL_SHA,
        clap_sha256="d4" * 32,
        scorer_sha256=SCORER_SHA,
        code_version="0.1.0",
        schema_version=1,
    )
    row.update(given)
    return row


def many_clips(count: int, seed: int = 0, gain_db: float = 0.0) -> list[dict[str, Any]]:
    """Clips of several datasets, queries, levels, source counts and classes."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        labelled = number % 2 == 0
        level = float((-10, -5, 0, 5, 10)[number % 5]) if not labelled else 0.0
        shots = (0, 1, 5, 10)[number // 2 % 4] if labelled else 0
        gain = 9.0 - 0.35 * level + 0.3 * shots + 3.0 * rng.standard_normal() + gain_db
        rows.append(
            clip(
                number,
                dataset="ESC-50" if labelled else "AudioCaps",
                label=f"class {number // 2 % 25:02d}" if labelled else None,
                query_type="text" if not shots else "audio",
                polarity=("P", "N", "P+N")[number // 3 % 3],
                n_shots=shots,
                input_snr_db=level,
                sdr_mixture_db=level + rng.standard_normal(),
                sdri_db=gain if number % 401 else None,
                sdr_db=gain + level,
                si_sdri_db=gain - 0.8,
                snri_db=gain - 0.3,
                clap_score=0.3 + 0.1 * rng.standard_normal(),
                clap_score_improvement=0.1 + 0.1 * rng.standard_normal(),
                undefined_reason=None if number % 401 else "sdri_db=silent_reference",
            )
        )
    return rows


def write_run(
    folder: Path,
    clips: Sequence[Mapping[str, Any]],
    failures: Sequence[Mapping[str, Any]] = (),
    record: Mapping[str, Any] | None = None,
    segments: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """A run folder as the pipelines write it."""
    extra = sorted({name.removeprefix("extra_") for row in clips for name in row} - _KNOWN)
    metrics = folder / "metrics" / "dataset=x"
    metrics.mkdir(parents=True)
    schema = with_extra(METRICS_SCHEMA, extra)
    pq.write_table(
        pa.Table.from_pylist([dict(row) for row in clips], schema), metrics / "a.parquet"
    )
    if failures:
        letters = folder / "dead_letters"
        letters.mkdir()
        table = pa.Table.from_pylist([dict(row) for row in failures], DEAD_LETTER_SCHEMA)
        pq.write_table(table, letters / "a.parquet")
    if segments:
        (folder / "segments").mkdir()
        table = pa.Table.from_pylist([dict(row) for row in segments], SEGMENTS_SCHEMA)
        pq.write_table(table, folder / "segments" / "a.parquet")
    whole = {
        "status": "finished",
        "started_at": "2026-01-02T03:04:05+00:00",
        "manifests": [{"uri": "/nowhere.csv", "sha256": MANIFEST_SHA}],
        "config": {"output": str(folder)},
        **(record or {}),
    }
    (folder / "run.json").write_text(json.dumps(whole), encoding="utf-8")
    return folder


_KNOWN = {*METRICS_SCHEMA.names, *(name for name in METRIC_COLUMNS)}


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """By the book."""
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
