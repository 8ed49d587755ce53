"""The local runner, pinned: Beam's FnApiRunner in this process, or with worker processes.

``DirectRunner`` may switch to a runner that is a downloaded binary, and with worker processes the
runner can wait for ever: for a worker that died before it was connected, and for one that does not
end after a step failed. Here the runner is fixed, its workers are watched, and waiting is bounded.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    ControlConnection,
    SubprocessSdkWorkerHandler,
    WorkerHandler,
)
from apache_beam.runners.portability.local_job_service import SubprocessSdkWorker
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from pipelines.config import Execution
from pipelines.runners import Opened, Runner

STOP_FILE = "stop"
STOP_WAIT_S = 10.0
"""How long a worker may take to end when it is asked to, before all are told to by the file."""
FAILURE_WAIT_S = 5.0
"""How long the runner may take to end by itself after a worker died or a step failed."""
CLOSING_WAIT_S = 60.0
"""How long the runner may take to end after its workers were asked to."""
_EXIT_WAIT_S = 1.0
"""How long a worker's exit code may be behind the end of its connection."""


class WorkerError(RuntimeError):
    """A worker process died, or failed at a step, or the runner does not end."""


class WorkerWatch:
    """What is known of the worker processes of one run; whoever waits for the runner asks it."""

    def __init__(self, folder: Path) -> None:
        """Workers end when there is a file ``stop`` in ``folder``, or no folder."""
        self._folder = folder
        self._lock = threading.Lock()
        self._problem: WorkerError | None = None
        self._deadline_s = 0.0
        self._waiting: list[threading.Thread] = []

    def started(self, waiting: threading.Thread) -> None:
        """A worker was started, and ``waiting`` ends when it does."""
        self._waiting.append(waiting)

    def died(self, status: str) -> WorkerError | None:
        """A worker ended with ``status``; None where that was to be expected."""
        return self._note(f"a worker process ended before its work did ({status})", FAILURE_WAIT_S)

    def failed(self, error: str) -> None:
        """A step failed in a worker."""
        self._note(error, FAILURE_WAIT_S)

    def closing(self) -> None:
        """The runner has begun to end its workers."""
        self._note("the runner did not end after its worker processes were told to", CLOSING_WAIT_S)

    def _note(self, problem: str, wait_s: float) -> WorkerError | None:
        """Keeps the first problem, with the time at which waiting for the runner ends."""
        with self._lock:
            if self._problem is not None:
                return None
            self._problem, self._deadline_s = WorkerError(problem), time.monotonic() + wait_s
            return self._problem

    def stop_workers(self) -> None:
        """Tells all workers to end at once, and waits a while until they have."""
        (self._folder / STOP_FILE).touch()
        for waiting in self._waiting:
            waiting.join(timeout=STOP_WAIT_S)

    def check(self) -> None:
        """Polled while the runner runs.

        Raises:
            WorkerError: the runner is not worth waiting for any longer.
        """
        with self._lock:
            if self._problem is not None and time.monotonic() > self._deadline_s:
                raise self._problem


class _WatchedConnection(ControlConnection):
    """Says at once that a step failed; the runner first waits for what other workers do."""

    def __init__(self, watch: WorkerWatch) -> None:
        super().__init__()
        self._watch = watch
        self._bundles: set[str] = set()

    def push(self, req: Any) -> Any:
        future = super().push(req)
        if future is not None and req.WhichOneof("request") == "process_bundle":
            self._bundles.add(req.instruction_id)
        return future

    def _read(self) -> None:
        try:
            for data in self._input or ():
                if data.error and data.instruction_id in self._bundles:
                    self._watch.failed(data.error)
                self._futures_by_id.pop(data.instruction_id).set(data)
        except Exception as err:  # of gRPC: the stream is broken, and nothing more will come
            time.sleep(_EXIT_WAIT_S)
            self.abort(self._watch.died("its connection broke") or err)


class _WatchedWorkerHandler(SubprocessSdkWorkerHandler):
    """Notices a worker that just ended, and waits only so long for one that is to end."""

    watch: WorkerWatch

    def __init__(self, command: bytes, state: Any, provision_info: Any, grpc_server: Any) -> None:
        super().__init__(command, state, provision_info, grpc_server)
        connection = _WatchedConnection(self.watch)
        grpc_server.control_handler._connections_by_worker_id[self.worker_id] = connection
        self.control_conn = connection

    def start_worker(self) -> None:
        self.worker = SubprocessSdkWorker(
            self._worker_command_line, self.control_address, self.provision_info, self.worker_id
        )
        self.worker_thread = threading.Thread(name="run_worker", target=self._run, daemon=True)
        self.worker_thread.start()
        self.watch.started(self.worker_thread)

    def _run(self) -> None:
        status = "exit code 0"
        try:
            self.worker.run()
        except RuntimeError as err:  # it says which other code
            status = str(err)
        error = self.watch.died(status)
        if error is not None:
            self.control_conn.abort(error)

    def close(self) -> None:
        self.watch.closing()
        closer = threading.Thread(target=super().close, name="close", daemon=True)
        closer.start()
        closer.join(timeout=STOP_WAIT_S)
        if closer.is_alive():
            self.watch.stop_workers()
            closer.join(timeout=STOP_WAIT_S)


class Local(Runner):
    """This process, or worker processes of this machine."""

    ends_with_launcher = True

    @contextmanager
    def open(
        self,
        execution: Execution,
        options: PipelineOptions,
        on_submitted: Callable[[Mapping[str, Any]], None],
    ) -> Iterator[Opened]:
        """Makes the runner; its workers do not outlive the ``with`` statement."""
        with local_runner(options, execution.num_workers) as (runner, watch):
            yield (
                Opened(runner=runner) if watch is None else Opened(runner=runner, check=watch.check)
            )


@contextmanager
def local_runner(
    options: PipelineOptions, num_workers: int
) -> Iterator[tuple[FnApiRunner, WorkerWatch | None]]:
    """The runner of a local job; its workers do not outlive the ``with`` statement.

    Args:
        options: of the pipeline; the number of workers is set in them.
        num_workers: processes; 1 is this process.
    """
    direct = options.view_as(DirectOptions)
    direct.direct_num_workers = num_workers
    direct.direct_running_mode = "in_memory"  # the environment below decides
    if num_workers == 1:
        yield FnApiRunner(), None
        return
    with tempfile.TemporaryDirectory(prefix="clapsep-workers-") as name:
        watch = WorkerWatch(Path(name))
        _register(watch)
        command = [sys.executable, "-m", "pipelines.runners.local_worker", name, str(os.getpid())]
        environment = SubprocessSDKEnvironment.from_command_string(f"exec {shlex.join(command)}")
        hook, threading.excepthook = threading.excepthook, _quiet_about_connections
        try:
            yield FnApiRunner(default_environment=environment), watch
        finally:
            watch.stop_workers()
            threading.excepthook = hook


def _quiet_about_connections(event: threading.ExceptHookArgs) -> None:
    """That a worker died is said in a line by the launcher, not in tracebacks of its readers."""
    if not issubclass(event.exc_type, grpc.RpcError):
        threading.__excepthook__(event)


def _register(watch: WorkerWatch) -> None:
    handler: Any = type("_Handler", (_WatchedWorkerHandler,), {"watch": watch})
    WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)(handler)
