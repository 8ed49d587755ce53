"""Runs of the main job with the tone separator: manifests, the job itself, and its tables."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

import tones
from model import catalogue, registry
from pipelines import separate
from transforms import model_cache

QUIET = ("--progress", "none", "--num_threads", "1")


def loaded_tones() -> registry.LoadedModel:
    """The tone separator as the registry would give it."""
    return registry.LoadedModel(
        name="tones",
        separator=tones.ToneSeparator(),
        query_encoder=tones.ToneClap(),
        model_sha256="m" * 64,
        clap_sha256="c" * 64,
        card=catalogue.ENTRIES[0],
    )


@dataclasses.dataclass
class Loaded:
    """What was loaded while the tones stood in for models."""

    model: registry.LoadedModel


@contextmanager
def tones_as_models() -> Iterator[Loaded]:
    """Lets the registry give the tone separator, whatever name it is asked for."""
    loaded = Loaded(loaded_tones())
    model_cache.forget()
    with (
        mock.patch.object(registry, "load", side_effect=lambda *_, **__: loaded.model),
        mock.patch.object(
            registry, "load_query_encoder", side_effect=lambda *_, **__: loaded.model.query_encoder
        ),
        mock.patch.object(registry, "load_scorer", side_effect=lambda *_, **__: tones.ToneClap()),
    ):
        yield loaded
    model_cache.forget()


def run(*arguments: str | Path) -> int:
    """The job, quietly."""
    return separate.run([*(str(argument) for argument in arguments), *QUIET])


def write_mixtures(folder: Path, count: int = 6, duration_s: float = 1.0) -> list[dict[str, Any]]:
    """Mixtures of two tones each, with references; gives the rows of a manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        wanted = tones.LABELS[number % len(tones.LABELS)]
        other = tones.LABELS[(number + 1 + number // 6) % len(tones.LABELS)]
        target = tones.tone(wanted, duration_s, phase=number)
        soundfile.write(folder / f"r{number}.wav", target, tones.RATE_HZ, "FLOAT")
        mixture = target + tones.tone(other, duration_s, phase=1 + number)
        soundfile.write(folder / f"m{number}.wav", mixture, tones.RATE_HZ, "FLOAT")
        rows.append(
            {
                "id": f"clip/{number}",
                "mixture_uri": str(folder / f"m{number}.wav"),
                "reference_uri": str(folder / f"r{number}.wav"),
                "positive_text": f"{wanted} one",
                "negative_text": f"{other} two",
                "dataset": "even" if number % 2 == 0 else "odd",
                "split": "test",
                "colour": "red",
            }
        )
    return rows


def write_manifest(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A manifest in the format of the name's ending."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    elif path.suffix == ".csv":
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        for row in rows:
            values = {k: ";".join(v) if isinstance(v, list) else v for k, v in row.items()}
            writer.writerow(values)
        path.write_text(text.getvalue(), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(output: Path, name: str) -> list[dict[str, Any]]:
    """Rows of one of a run's tables, sorted by id or metric."""
    rows: list[dict[str, Any]] = []
    for file in sorted((output / name).rglob("*.parquet")):
        rows.extend(pq.ParquetFile(file).read().to_pylist())
    return sorted(rows, key=lambda row: (row.get("id") or "", row.get("metric") or ""))


def record(output: Path) -> dict[str, Any]:
    """A run's ``run.json``."""
    found: dict[str, Any] = json.loads((output / "run.json").read_text(encoding="utf-8"))
    return found


def stems(output: Path) -> dict[str, np.ndarray]:
    """Samples [T, C] of every stem, by the file's path in the output folder."""
    return {
        str(path.relative_to(output)): soundfile.read(path, always_2d=True)[0]
        for path in sorted((output / "stems").rglob("*"))
        if path.is_file()
    }


VOLATILE = {
    *("inference_s", "stem_uri", "residual_uri"),
    *("mixture_uri", "reference_uri", "target_uris", "interferer_uris", "row_sha256"),
    *("positive_audio_uris", "negative_audio_uris"),
}
"""What differs between runs over copies of the same inputs in other places."""


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below one by its path, with what files hold."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def comparable(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of metrics without what may differ between equal runs."""
    return [{k: v for k, v in row.items() if k not in VOLATILE} for row in rows]


def assert_same_results(one: Path, other: Path) -> None:
    """The same stems to 1e-5 and the same metrics to 1e-4 dB."""
    first, second = stems(one), stems(other)
    assert first.keys() == second.keys()
    for name, samples in first.items():
        np.testing.assert_allclose(samples, second[name], rtol=0, atol=1e-5, err_msg=name)
    for name in ("metrics", "summary"):
        left, right = comparable(table(one, name)), comparable(table(other, name))
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert a.keys() == b.keys()
            for key, value in a.items():
                if isinstance(value, float) and b[key] is not None:
                    assert abs(value - b[key]) <= 1e-4, (key, value, b[key])
                else:
                    assert value == b[key], key
