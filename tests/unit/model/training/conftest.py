"""A corpus of eight formula-made clips of four classes, and a tiny configuration."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from model.config import MINI, TINY, ClapSepConfig

RATE_HZ = 32_000
_FREQUENCIES_HZ = {"hum": 120.0, "horn": 440.0, "whistle": 1_800.0, "hiss": 0.0}


def _tone(label: str, take: int) -> np.ndarray:
    rng = np.random.default_rng([len(label), take])
    time_s = np.arange(12_000 + 9_000 * take) / RATE_HZ
    frequency = _FREQUENCIES_HZ[label]
    if not frequency:
        return 0.1 * rng.standard_normal(len(time_s))
    envelope = 0.6 + 0.4 * np.sin(2 * np.pi * (2 + take) * time_s)
    return 0.2 * envelope * np.sin(2 * np.pi * frequency * (1 + 0.02 * take) * time_s)


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Train and validation split, two takes a class each; nobody changes it."""
    folder = tmp_path_factory.mktemp("corpus")
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
        columns = ["path", "label", "caption", "alt_caption", "split", "group"]
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        for label in _FREQUENCIES_HZ:
            for take in range(4):
                name = f"{label}-{take}.flac"
                soundfile.write(folder / name, _tone(label, take), RATE_HZ)
                split = "train" if take < 2 else "val"
                writer.writerow({
                    "path": name, "label": label, "caption": f"a {label} sounding",
                    "alt_caption": "", "split": split, "group": f"{label}{take}",
                })  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLAPSEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield folder


@pytest.fixture(scope="session")
def tiny_config() -> ClapSepConfig:
    """The tiny network with the bundled model's sentence encoder."""
    clap = dataclasses.replace(TINY.clap, text=MINI.clap.text)
    return dataclasses.replace(TINY, clap=clap)
