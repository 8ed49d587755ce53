"""A corpus of sixteen formula-made clips of four classes, a teacher for it, a small network."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from model.config import MINI, ClapSepConfig
from model.training.material import BUNDLED_CAPTIONS, Material, PreparationSettings, prepare

RATE_HZ = 32_000
_FREQUENCIES_HZ = {"hum": 120.0, "horn": 440.0, "whistle": 1_800.0, "hiss": 0.0}
_CLASSES = ("Hum", "Horn, brass", "Whistle")


def _tone(label: str, take: int) -> np.ndarray:
    rng = np.random.default_rng([len(label), take])
    time_s = np.arange(12_000 + 9_000 * take) / RATE_HZ
    frequency = _FREQUENCIES_HZ[label]
    if not frequency:
        return 0.1 * rng.standard_normal(len(time_s))
    envelope = 0.6 + 0.4 * np.sin(2 * np.pi * (2 + take) * time_s)
    return 0.2 * envelope * np.sin(2 * np.pi * frequency * (1 + 0.02 * take) * time_s)


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two takes a class for training and two for validation; nobody changes it."""
    folder = tmp_path_factory.mktemp("data") / "corpus"
    folder.mkdir()
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
    return folder


@pytest.fixture(scope="session")
def teacher_file(corpus_folder: Path) -> Path:
    """Logits of three classes and an embedding for every clip."""
    paths = sorted(f"corpus/{path.name}" for path in corpus_folder.glob("*.flac"))
    rng = np.random.default_rng(0)
    target = corpus_folder.parent / "teacher.npz"
    np.savez(
        target,
        path=np.array(paths),
        classes=np.array(_CLASSES),
        logits=rng.normal(size=(len(paths), 3)).astype(np.float32),
        embedding=rng.normal(size=(len(paths), 4)).astype(np.float32),
    )
    return target


def _latents(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Some latent for each text, with a mean square of 1."""
    rows = [np.random.default_rng(list(text.encode())).normal(size=384) for text in texts]
    values = np.array(rows)
    values /= np.sqrt(np.mean(values**2, axis=1, keepdims=True))
    return values.astype(np.float32)


@pytest.fixture(scope="session")
def material(corpus_folder: Path, teacher_file: Path) -> Material:
    settings = PreparationSettings(pairs=20, triples=10)
    return prepare([corpus_folder], teacher_file, BUNDLED_CAPTIONS, _latents, settings)


@pytest.fixture(scope="session")
def small_config() -> ClapSepConfig:
    """The bundled model's kind of network with windows of a second."""
    audio = dataclasses.replace(
        MINI.clap.audio, embed_dim=16, depths=(1, 1, 1), num_heads=(2, 2, 2), clip_samples=32_000
    )
    decoder = dataclasses.replace(
        MINI.decoder,
        embed_dim=16,
        depths=(1, 1, 1),
        num_heads=(2, 2, 2),
        d_attn=32,
        num_masker_layers=1,
        masker_heads=2,
    )
    return dataclasses.replace(
        MINI,
        clap=dataclasses.replace(MINI.clap, audio=audio, embedding_dim=32),
        decoder=decoder,
        signal=dataclasses.replace(MINI.signal, window_samples=32_000),
    )
