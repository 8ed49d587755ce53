"""Cuts the reference implementation's outputs down to what the repository keeps.

``python tests/golden/excerpt.py SOURCE_FOLDER``; values are copied, never rounded or re-typed.
The one case that decibels are measured on keeps its whole waveform; of the others every 8th sample
stays and three unbroken stretches (start, middle, end). The encoder's features are kept once for
each mixture, since the query does not reach them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from golden import published

STRIDE = 8
STRETCH_SAMPLES = 2000
WHOLE = frozenset({"sep_pn", "app_path", "clap_audio", "clap_text", "metrics"})
OWN_MIXTURE = frozenset({"sep_batch2", "sep_short"})


def excerpt(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The kept part of one golden file.

    Args:
        name: the file's stem.
        arrays: its arrays; ``wav`` is float32[B, T].

    Returns:
        The same arrays with ``wav`` replaced by ``wav_shape``, ``wav_stride``, ``wav_strided``
        float32[B, T / stride], ``wav_starts`` int64[3] and ``wav_stretches`` float32[B, 3, n].
    """
    if name in WHOLE:
        return arrays
    wav = arrays["wav"]
    kept = {
        key: value
        for key, value in arrays.items()
        if key != "wav" and (name in OWN_MIXTURE or not key.startswith(("feat_", "stft_mag_")))
    }
    num_samples = wav.shape[-1]
    starts = [0, (num_samples - STRETCH_SAMPLES) // 2, num_samples - STRETCH_SAMPLES]
    return kept | {
        "wav_shape": np.array(wav.shape, dtype=np.int64),
        "wav_stride": np.int64(STRIDE),
        "wav_strided": wav[:, ::STRIDE],
        "wav_starts": np.array(starts, dtype=np.int64),
        "wav_stretches": np.stack([wav[:, s : s + STRETCH_SAMPLES] for s in starts], axis=1),
    }


def run(argv: list[str] | None = None) -> None:
    """Writes the excerpts of every ``*.npz`` in the folder to ``data``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source_folder", type=Path)
    options = parser.parse_args(argv)
    for path in sorted(options.source_folder.glob("*.npz")):
        with np.load(path) as file:
            arrays = {key: file[key] for key in file.files}
        np.savez_compressed(published.DATA / path.name, **excerpt(path.stem, arrays))


if __name__ == "__main__":
    run()
