"""Seconds and memory that it takes to list one flat folder with very many names.

    python -m bench.listing                       # 1,000,000 names
    python -m bench.listing --names 100000

The names are those of empty files, a tenth of them no audio. Each measurement is a process of its
own, whose peak resident size the system says; the one of ten names is what importing takes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

_LIST = """
import sys
from collections import Counter
from manifests.recordings import list_root
from manifests.shards import Listed
found = Counter(isinstance(each, Listed) for each in list_root(0, sys.argv[1]))
print(found[True])
"""


def measured(folder: Path) -> tuple[int, float, float, float]:
    """How many recordings are listed; seconds, of the processor too; and the peak in MiB."""
    root = Path(__file__).resolve().parent.parent
    started_s = time.perf_counter()
    said, says = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", _LIST, str(folder)], cwd=root, stdout=says)
    os.close(says)
    with os.fdopen(said) as text:
        listed = int(text.read())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"exit code {process.returncode}")
    used_s = usage.ru_utime + usage.ru_stime
    return listed, time.perf_counter() - started_s, used_s, usage.ru_maxrss / 1024


def run(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--names", type=int, default=1_000_000)
    given = parser.parse_args(argv)
    for names in (10, given.names):
        with tempfile.TemporaryDirectory() as name:
            for number in range(names):
                suffix = "txt" if number % 10 == 9 else "flac"
                os.close(os.open(f"{name}/recording_{number:08}.{suffix}", os.O_CREAT))
            listed, seconds, used_s, mib = measured(Path(name))
            print(
                f"{names:>9,} names: {listed:,} recordings, {seconds:.1f} s "
                f"({used_s:.1f} s of processor), {mib:.0f} MiB"
            )


if __name__ == "__main__":
    run()
