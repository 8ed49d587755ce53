"""A Dask cluster on this machine, started from the command line as an operator would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).parent
START_WAIT_S = 120.0


class DaskCluster:
    """A scheduler, and workers of one thread each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # The graphs of tests are in modules that workers import too.
        path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        self._environment = {
            **os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1",
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
        }  # fmt: skip
        file = folder / "scheduler.json"
        self.scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
            "--no-show", "--scheduler-file", str(file),
        )  # fmt: skip
        deadline_s = time.monotonic() + START_WAIT_S
        while not file.exists() or not file.read_text(encoding="utf-8"):
            if self.scheduler.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError("the Dask scheduler did not start")
            time.sleep(0.1)
        self.address: str = json.loads(file.read_text(encoding="utf-8"))["address"]
        self.workers: list[subprocess.Popen[bytes]] = []
        self._kept: dict[tuple[str, ...], subprocess.Popen[bytes]] = {}

    def add_worker(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts a worker; it registers while others work."""
        worker = self._start(
            "worker", self.address, "--nworkers", "1", "--nthreads", "1", "--no-dashboard",
            "--no-nanny", "--local-directory", str(self._folder), *arguments,
        )  # fmt: skip
        self.workers.append(worker)
        return worker

    def keep(self, *workers: tuple[str, ...]) -> None:
        """Has a worker for each tuple of arguments: those that have ended are started again."""
        missing = [
            each
            for each in workers
            if each not in self._kept or self._kept[each].poll() is not None
        ]
        for arguments in missing:
            self._kept[arguments] = self.add_worker(*arguments)
        if missing:
            self.wait_for_workers(len(workers))

    def wait_for_workers(self, count: int) -> None:
        """Until so many have registered."""
        import distributed

        with distributed.Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=START_WAIT_S)

    def stop(self) -> None:
        """Ends all processes."""
        for process in (*self.workers, self.scheduler):
            process.kill()
        for process in (*self.workers, self.scheduler):
            process.wait()

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self._folder / f"{arguments[0]}.log").open("ab")
        with log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments],
                env=self._environment, stdout=log, stderr=subprocess.STDOUT, cwd=self._folder,
            )  # fmt: skip


@contextmanager
def dask_cluster(folder: Path, workers: Sequence[Sequence[str]]) -> Iterator[DaskCluster]:
    """A cluster with a worker for each list of further arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    cluster = DaskCluster(folder)
    try:
        for arguments in workers:
            cluster.add_worker(*arguments)
        if workers:
            cluster.wait_for_workers(len(workers))
        yield cluster
    finally:
        cluster.stop()
