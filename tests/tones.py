"""A corpus of pure tones, and a separator and a CLAP that know them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from model.systems import Capabilities, Condition

RATE_HZ = 8_000
LABELS = ("bell", "dog_bark", "frog", "rain", "singing", "wind")
PHRASINGS = {label: [f"{label} one", f"{label} two", f"{label} three"] for label in LABELS}


def frequency_hz(label: str) -> float:
    """Each label is a pure tone of its own."""
    return 400.0 * (1 + LABELS.index(label))


def tone(label: str, duration_s: float, phase: float = 0.0) -> np.ndarray:
    time_s = np.arange(round(duration_s * RATE_HZ)) / RATE_HZ
    return 0.3 * np.sin(2 * np.pi * frequency_hz(label) * time_s + phase).astype(np.float32)


def write_corpus(folder: Path) -> Path:
    """Two test clips a label (wind: one) and one to train on, and a clip without a class."""
    rows = []
    for label in LABELS:
        names = ["test-a", "test-b", "train-c"] if label != "wind" else ["test-a", "train-c"]
        for number, name in enumerate(names):
            rows.append((label, f"{label} heard", name.split("-")[0], name, number))
    rows.append(("open", "a thing", "test", "x", 0))
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "caption", "alt_caption", "split", "group"])
        for label, caption, split, name, number in rows:
            path = f"{label}-{name}.wav"
            sounding = tone("bell" if label == "open" else label, 0.8 + 0.1 * number, number)
            soundfile.write(folder / path, sounding, RATE_HZ)
            writer.writerow([path, label, caption, "", split, f"{label}-{name}"])
    return folder


class ToneClap:
    """Embeds a text by the first label it names, and a clip by its strongest tone."""

    embedding_dim = len(LABELS)
    sample_rate_hz = RATE_HZ
    clip_samples = RATE_HZ
    digest = "tones"
    input_level_dbfs: float | None = None

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        self.embedded += texts
        rows = [[float(label in text) for label in LABELS] for text in texts]
        return torch.nn.functional.normalize(torch.tensor(rows), dim=-1)

    def embed_audio(self, clips: Sequence[Tensor]) -> Tensor:
        rows = [torch.tensor([_power(clip, label) for label in LABELS]) for clip in clips]
        return torch.eye(len(LABELS))[torch.stack(rows).argmax(dim=1)]


class ToneEncoded:
    def __init__(self, mixture: Tensor) -> None:
        self.mixture = mixture

    def index(self, rows: Tensor) -> ToneEncoded:
        return ToneEncoded(self.mixture[rows])


class ToneSeparator:
    """Keeps the tones of the positive query, or without one all but those of the negative one."""

    name = "tones"
    sample_rate_hz = RATE_HZ
    embedding_dim = len(LABELS)
    capabilities = Capabilities()
    input_level_dbfs: float | None = None

    def __init__(self, window_samples: int = 4_000) -> None:
        self.window_samples = window_samples
        self.heard = 0

    def encode(self, mixture: Tensor) -> ToneEncoded:
        self.heard += len(mixture)
        return ToneEncoded(mixture)

    def decode(self, encoded: ToneEncoded, condition: Condition) -> Tensor:
        num_samples = encoded.mixture.shape[1]
        frequency = torch.fft.rfftfreq(num_samples, 1 / RATE_HZ)
        band = torch.stack([(frequency - frequency_hz(label)).abs() < 150 for label in LABELS])
        wanted = (condition.positive > 0).float() @ band.float()
        unwanted = (condition.negative > 0).float() @ band.float()
        asked = condition.positive.abs().sum(dim=1, keepdim=True) > 0
        mask = torch.where(asked, wanted, 1 - unwanted)
        spectrum = torch.fft.rfft(encoded.mixture) * mask.clamp(1e-3, 1)
        return torch.fft.irfft(spectrum, num_samples)

    def separate(self, mixture: Tensor, condition: Condition) -> Tensor:
        return self.decode(self.encode(mixture), condition)


def _power(clip: Tensor, label: str) -> float:
    time_s = torch.arange(len(clip)) / RATE_HZ
    angle = 2 * torch.pi * frequency_hz(label) * time_s
    return float((clip * angle.sin()).mean() ** 2 + (clip * angle.cos()).mean() ** 2)


class SuspiciousSeparator(ToneSeparator):
    """Says how likely a query is by the power of its tones in the window."""

    says = True

    def presence(self, encoded: ToneEncoded, condition: Condition) -> Tensor | None:
        """The log odds, float32[B]; even at a power of 0.001."""
        kept = self.decode(encoded, condition).square().mean(dim=1)
        return torch.log(kept / 1e-3) if self.says else None
