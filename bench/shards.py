"""Clips in tar shards against the same clips as loose files, in an emulated bucket.

    python -m bench.shards                                # 2,000 clips of 5 s, 20 tars
    python -m bench.shards --clips 200 --shards 4

Both are listed, read and written by the main job with a model that leaves the mixture as it is, so
that what differs is how recordings are found and fetched. Printed are the requests for what is
read (listings, sizes, content) and seconds, each layout twice, in turn.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

RATE_HZ = 32_000


def write_clips(folder: Path, clips: int, shards: int, seconds: float) -> None:
    """Noise, one file a clip below ``loose`` and the same files in tars below ``tars``."""
    rng = np.random.default_rng(0)
    samples = 0.1 * rng.standard_normal(round(seconds * RATE_HZ))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE_HZ, "PCM_16", format="FLAC")
    data = buffer.getvalue()
    (folder / "loose").mkdir()
    (folder / "tars").mkdir()
    for shard in range(shards):
        with tarfile.open(folder / "tars" / f"{shard:03}.tar", "w") as tar:
            for number in range(shard, clips, shards):
                (folder / "loose" / f"{number:06}.flac").write_bytes(data)
                info = tarfile.TarInfo(f"{number:06}.flac")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def run(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    import gcsfs.core

    import gcs_emulator
    from pipelines import separate

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=2_000)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_clips(folder, given.clips, given.shards, given.seconds)
        with gcs_emulator.running(folder) as front:
            bucket = front.bucket("archive")
            for layout in ("loose", "tars"):
                files = gcsfs.core.GCSFileSystem()
                source = f"{folder}/{layout}/"
                files.put(source, f"{bucket}/{layout}/", recursive=True, batch_size=8)
            for repeat in range(given.repeats):
                for layout in ("loose", "tars"):
                    front.forget()
                    output = folder / f"{layout}{repeat}"
                    started_s = time.perf_counter()
                    code = separate.run(
                        [
                            *("--recordings", f"{bucket}/{layout}", "--positive", "a dog"),
                            *("--model", "mixture", "--scorer", "none", "--progress", "none"),
                            *("--output", str(output)),
                        ]
                    )
                    seconds = time.perf_counter() - started_s
                    kinds = Counter(_kind(each.method, each.path) for each in front.log)
                    counts = json.loads((output / "run.json").read_text("utf-8"))["row_counts"]
                    if code or counts["stems"] != given.clips:
                        raise SystemExit(f"exit code {code}, {counts['stems']} stems")
                    requests = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
                    print(
                        f"{layout}: {sum(kinds.values())} requests ({requests}), {seconds:.1f} s",
                        flush=True,
                    )


def _kind(method: str, path: str) -> str:
    if method != "GET":
        return method
    if "alt=media" in path or "/download/" in path:
        return "content"
    return "listing" if path.partition("?")[0].rstrip("/").endswith("/o") else "size"


if __name__ == "__main__":
    run()
