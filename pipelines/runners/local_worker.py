"""A worker process of a local job: Beam's SDK worker, which ends with the process it works for."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from apache_beam.runners.worker import sdk_worker_main

POLL_S = 0.5


def run(argv: Sequence[str]) -> None:
    """Works until the job has ended.

    Args:
        argv: the folder in which a file ``stop`` may appear, and the id of the process that started
            this one. It is told and not asked for here: that process may have ended by now.
    """
    folder, parent = argv
    # Where the launcher finds the process that hangs, to end it; it knows the shell's only.
    Path(folder, f"{os.environ['WORKER_ID']}.pid").write_text(str(os.getpid()), encoding="ascii")
    threading.Thread(target=_watch, args=(Path(folder), int(parent)), daemon=True).start()
    sdk_worker_main.main(sys.argv[:1])


def _watch(folder: Path, parent: int) -> None:
    while os.getppid() == parent and folder.is_dir() and not (folder / "stop").exists():
        time.sleep(POLL_S)
    os._exit(1)
