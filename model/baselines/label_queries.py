"""The labels that Waveformer was trained on, as its queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.labels import label_vectors

SAMPLE_RATE_HZ = 44_100
WINDOW_SAMPLES = 441_000
LABELS = (
    "Acoustic_guitar", "Applause", "Bark", "Bass_drum", "Burping_or_eructation", "Bus", "Cello",
    "Chime", "Clarinet", "Computer_keyboard", "Cough", "Cowbell", "Double_bass",
    "Drawer_open_or_close", "Electric_piano", "Fart", "Finger_snapping", "Fireworks", "Flute",
    "Glockenspiel", "Gong", "Gunshot_or_gunfire", "Harmonica", "Hi-hat", "Keys_jangling", "Knock",
    "Laughter", "Meow", "Microwave_oven", "Oboe", "Saxophone", "Scissors", "Shatter", "Snare_drum",
    "Squeak", "Tambourine", "Tearing", "Telephone", "Trumpet", "Violin_or_fiddle", "Writing",
)  # fmt: skip
"""FSDKaggle2018's classes, in the order of the network's query vector."""


class LabelQueries:
    """Labels → query vectors; implements ``model.clap.QueryEncoder`` but for audio."""

    sample_rate_hz = SAMPLE_RATE_HZ
    clip_samples = WINDOW_SAMPLES
    digest = ""
    input_level_dbfs: float | None = None

    def __init__(self, labels: Sequence[str] = LABELS) -> None:
        self.labels = tuple(labels)
        self.embedding_dim = len(self.labels)

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """float32[N, labels], a one for each label that a text names.

        Raises:
            ValueError: a text names something else.
        """
        return label_vectors(texts, self.labels)

    def embed_audio(self, clips: Sequence[Tensor]) -> Tensor:
        """There is no audio encoder.

        Raises:
            ValueError: always, but for no clip at all.
        """
        if clips:
            raise ValueError("Waveformer takes labels, and no example clips")
        return torch.zeros(0, self.embedding_dim)
