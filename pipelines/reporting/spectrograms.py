"""Spectrograms as small pictures, and as one figure of several clips (the paper's Fig. 9)."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import image
from matplotlib.figure import Figure
from numpy.typing import NDArray

from model import plain_text

_N_FFT = 1024
_MAX_COLUMNS = 500
_ROWS = 128
_RANGE_DB = 70.0
_COLOURS = "magma"
_FLOOR = 1e-10
_NO_SOFTWARE: Any = {"Software": None}  # the version of matplotlib would change the bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """A spectrogram in dB below the loudest bin of its mixture, float64[rows, columns]."""

    title: str
    levels_db: NDArray[np.float64]
    duration_s: float
    rate_hz: int


def power(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """Power over frequency and time, float64[128, at most 500]; the ends are padded with zeros.

    Args:
        samples: float32[T].
    """
    hop = max(_N_FFT // 4, -(-len(samples) // _MAX_COLUMNS))
    padded = np.pad(samples.astype(np.float64), (_N_FFT // 2, _N_FFT))
    starts = np.arange(0, max(1, len(samples)), hop)
    frames = padded[starts[:, None] + np.arange(_N_FFT)] * np.hanning(_N_FFT)
    bins = np.abs(np.fft.rfft(frames, axis=1))[:, : _N_FFT // 2] ** 2
    pooled: NDArray[np.float64] = bins.reshape(len(starts), _ROWS, -1).max(axis=2).T
    return pooled


def picture(title: str, samples: NDArray[np.float32], rate_hz: int, loudest: float) -> Picture:
    """The spectrogram of a signal beside a mixture whose loudest bin has power ``loudest``."""
    levels = 10.0 * np.log10(np.maximum(power(samples), _FLOOR) / max(loudest, _FLOOR))
    return Picture(
        title=title, levels_db=levels, duration_s=len(samples) / rate_hz, rate_hz=rate_hz
    )


def data_uri(shown: Picture) -> str:
    """The picture as a PNG in a URI."""
    buffer = io.BytesIO()
    image.imsave(
        buffer,
        shown.levels_db,
        cmap=_COLOURS,
        vmin=-_RANGE_DB,
        vmax=0.0,
        origin="lower",
        format="png",
        metadata=_NO_SOFTWARE,
    )
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def grid(rows: Sequence[Sequence[Picture]], caption: str) -> bytes:
    """A PNG with a line of pictures for each clip."""
    columns = max(len(row) for row in rows)
    style: Any = {"text.parse_math": False, "font.family": "sans-serif", "font.size": 8}
    with mpl.rc_context(style):
        figure = Figure(figsize=(3.0 * columns, 1.9 * len(rows) + 0.4), layout="constrained")
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for row, places in zip(rows, axes, strict=True):
            for place in places[len(row) :]:
                place.set_axis_off()
            for shown, place in zip(row, places, strict=False):
                place.imshow(
                    shown.levels_db,
                    cmap=_COLOURS,
                    vmin=-_RANGE_DB,
                    vmax=0.0,
                    origin="lower",
                    aspect="auto",
                    extent=(0.0, shown.duration_s, 0.0, shown.rate_hz / 2000.0),
                )
                place.set_title(shown.title, fontsize=8)
                place.set_xlabel("s")
                place.set_ylabel("kHz")
        figure.supxlabel(plain_text.one_line(caption), fontsize=5.5, x=0.01, ha="left")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130, facecolor="white", metadata=_NO_SOFTWARE)
    return buffer.getvalue()
