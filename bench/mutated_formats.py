"""Damaged files of the formats that FFmpeg reads: how each of many mutations ends, and how soon.

    python -m bench.mutated_formats [--count 2000]

Every mutation overwrites some bytes or numbers, half of them in the first kilobyte, or cuts,
repeats or drops a stretch. It is read to its end with ``--isolate_decoder``, in this one process;
what a decoder does that dies or hangs is in the table too. The draws are the same at every run.
"""

from __future__ import annotations

import argparse
import collections
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.formats import EXAMPLES, signal
from transforms.audio.files import READ_ERRORS, error_code, open_audio
from transforms.storage import Storage

CONTAINERS = (
    *("M4A AAC", "MP4 AAC in fragments", "WebM Opus", "Matroska AAC"),
    *("AAC (ADTS)", "MPEG Layer II", "WMA", "Ogg Vorbis, two in a row"),
)
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A file with up to four kinds of damage."""
    damaged = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        head = 1_024 if rng.random() < 0.5 else len(damaged)
        place = int(rng.integers(0, max(1, min(head, len(damaged)))))
        size = int(rng.integers(1, 5))
        kind = int(rng.integers(0, 6))
        if kind == 0:
            damaged[place : place + size] = rng.bytes(size)
        elif kind == 1:
            value = int(rng.choice(_EXTREMES))
            order = "big" if rng.random() < 0.5 else "little"
            damaged[place : place + 4] = value.to_bytes(4, order)
        elif kind == 2:
            damaged[place] ^= 1 << int(rng.integers(0, 8))
        elif kind == 3:
            del damaged[int(rng.integers(0, len(damaged))) + 1 :]
        elif kind == 4:
            stretch = bytes(damaged[place : place + 64 * size])
            damaged[place:place] = stretch
        else:
            del damaged[place : place + size]
        if not damaged:
            damaged = bytearray(data[:1])
    return bytes(damaged)


def outcome(storage: Storage, path: str) -> str:
    """The code of the dead letter, or ``read``."""
    try:
        with open_audio(storage, path) as reader:
            for block in reader.blocks(65_536):
                if not np.isfinite(block).all():
                    return "not finite, and given out"
    except READ_ERRORS as err:
        return error_code(err)
    return "read"


def run(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2_000, help="Mutations of all containers.")
    options = parser.parse_args(argv)
    storage = Storage(isolate_decoder=True)
    rng = np.random.default_rng(0)
    examples = {example.name: example for example in EXAMPLES}
    with tempfile.TemporaryDirectory() as folder:
        for name in CONTAINERS:
            example = examples[name]
            rate_hz = example.rates_hz[0]
            whole = example.make(signal(rate_hz), rate_hz)
            path = Path(folder) / f"mutated{example.suffix}"
            found: collections.Counter[str] = collections.Counter()
            slowest_s = 0.0
            for _ in range(options.count // len(CONTAINERS)):
                path.write_bytes(mutated(whole, rng))
                began_s = time.perf_counter()
                code = outcome(storage, str(path))
                slowest_s = max(slowest_s, time.perf_counter() - began_s)
                found[code] += 1
                if code == "decoder_crashed":
                    kept = Path(tempfile.gettempdir()) / f"crash-{found.total()}{example.suffix}"
                    kept.write_bytes(path.read_bytes())
            codes = ", ".join(f"{code} {count}" for code, count in found.most_common())
            print(f"{name:26} slowest {slowest_s:5.2f} s   {codes}", flush=True)


if __name__ == "__main__":
    run()
