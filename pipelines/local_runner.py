"""The local runner, pinned: Beam's FnApiRunner in this process, or with worker processes.

``DirectRunner`` may switch to an engine that is a downloaded binary, and with worker processes its
end can hang when a step failed. Here the engine is fixed, workers end with the process that
started them, and waiting for them is bounded.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    SubprocessSdkWorkerHandler,
    WorkerHandler,
)
from apache_beam.transforms.environments import SubprocessSDKEnvironment

STOP_WAIT_S = 20.0
STOP_FILE = "stop"
WORKER_DIED = threading.Event()
"""Set when a worker process has ended by itself. The engine waits for ever for one that died before
it was connected, so whoever waits for the engine has to look."""


class _BoundedWorkerHandler(SubprocessSdkWorkerHandler):
    """Waits a while for a worker to end, then tells all workers to; notices one that just died."""

    folder: Path
    _is_stopping = False

    def start_worker(self) -> None:
        super().start_worker()
        threading.Thread(target=self._notice, name="notice", daemon=True).start()

    def _notice(self) -> None:
        self.worker_thread.join()
        if not self._is_stopping:
            WORKER_DIED.set()

    def stop_worker(self) -> None:
        self._is_stopping = True
        self.worker_thread.join(timeout=STOP_WAIT_S)
        if self.worker_thread.is_alive():
            (self.folder / STOP_FILE).touch()
            self.worker_thread.join(timeout=STOP_WAIT_S)


@contextmanager
def local_runner(options: PipelineOptions, num_workers: int) -> Iterator[FnApiRunner]:
    """The runner of a local job; its workers do not outlive the ``with`` statement.

    Args:
        options: of the pipeline; the number of workers is set in them.
        num_workers: processes; 1 is this process.
    """
    direct = options.view_as(DirectOptions)
    direct.direct_num_workers = num_workers
    direct.direct_running_mode = "in_memory"  # the environment below decides
    if num_workers == 1:
        yield FnApiRunner()
        return
    with tempfile.TemporaryDirectory(prefix="clapsep-workers-") as name:
        folder = Path(name)
        WORKER_DIED.clear()
        _register(folder)
        command = [sys.executable, "-m", "pipelines.local_worker", str(folder)]
        environment = SubprocessSDKEnvironment.from_command_string(f"exec {shlex.join(command)}")
        hook, threading.excepthook = threading.excepthook, _quiet_about_workers
        try:
            yield FnApiRunner(default_environment=environment)
        finally:
            threading.excepthook = hook
            (folder / STOP_FILE).touch()


def _quiet_about_workers(event: threading.ExceptHookArgs) -> None:
    """A worker that died is said in a line by the launcher, not in a traceback of its thread."""
    if event.thread is None or event.thread.name != "run_worker":
        threading.__excepthook__(event)


def _register(folder: Path) -> None:
    handler: Any = type("_Handler", (_BoundedWorkerHandler,), {"folder": folder})
    WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)(handler)
