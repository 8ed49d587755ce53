"""The local runner, pinned: Beam's FnApiRunner in this process, or with worker processes.

``DirectRunner`` may switch to a runner that is a downloaded binary, and with worker processes the
runner can wait for ever: for a worker that died before it was connected, and for one that does not
end after a step failed. Here the runner is fixed, its workers are watched, and waiting is bounded.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    ControlConnection,
    SubprocessSdkWorkerHandler,
    WorkerHandler,
)
from apache_beam.runners.portability.local_job_service import SubprocessSdkWorker
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from model import devices
from pipelines.config import MAX_SILENCE_S, Execution
from pipelines.runners import Opened, Runner
from transforms.tables import row_counts

STOP_FILE = "stop"
STOP_WAIT_S = 10.0
"""How long a worker may take to end when it is asked to, before all are told to by the file."""
FAILURE_WAIT_S = 5.0
"""How long the runner may take to end by itself after a worker died or a step failed."""
CLOSING_WAIT_S = 60.0
"""How long the runner may take to end after its workers were asked to."""
_EXIT_WAIT_S = 1.0
"""How long a worker's exit code may be behind the end of its connection."""
LOOK_S = 10.0
"""How often, at most, the workers are asked how far they are."""
_PROGRESS = frozenset(
    {
        "beam:metric:element_count:v1",
        "beam:metric:data_channel:read_index:v1",
        "beam:metric:user:sum_int64:v1",
        "beam:metric:user:distribution_int64:v1",
    }
)
"""What of a worker's measurements only changes when work goes on; times do when it hangs too."""


_WORKER = """import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
from pipelines import flags
with flags.without_collections():
    from pipelines.runners import local_worker
local_worker.run(sys.argv[1:])
"""
"""The program of a worker: ``-m`` would import Beam before anything could be said about how.

An interrupt from the terminal reaches the whole group; the launcher decides what it means.
"""


class WorkerError(RuntimeError):
    """A worker process died, or failed at a step, or the runner does not end."""


class WorkerWatch:
    """What is known of the worker processes of one run; whoever waits for the runner asks it."""

    def __init__(
        self, folder: Path, gpus: Sequence[str] = (), max_silence_s: float = MAX_SILENCE_S
    ) -> None:
        """Workers end when there is a file ``stop`` in ``folder``, or no folder.

        Args:
            folder: of the run's workers, which leave their process ids there.
            gpus: one for each worker, in turn; none: they see what this process sees.
            max_silence_s: a worker without a sign of life for so long hangs; 0: never.
        """
        self._folder = folder
        self._gpus = gpus
        self._lock = threading.Lock()
        self._problem: WorkerError | None = None
        self._deadline_s = 0.0
        self._workers: list[_WatchedWorkerHandler] = []
        self._max_silence_s = max_silence_s
        self._first_result_s: float | None = None
        self._looked_s = 0.0

    def started(self, worker: _WatchedWorkerHandler) -> None:
        """A worker was started."""
        self._workers.append(worker)

    def command_of_next(self, command: bytes) -> bytes:
        """The command of the worker that is started next, with the one GPU that it is to see."""
        if not self._gpus:
            return command
        gpu = self._gpus[len(self._workers) % len(self._gpus)]
        environment = shlex.join(["env", f"{devices.VISIBLE}={gpu}"])
        return command.replace(b"exec ", f"exec {environment} ".encode(), 1)

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
        for worker in self._workers:
            worker.worker_thread.join(timeout=STOP_WAIT_S)
            if worker.worker_thread.is_alive():  # it is stopped, or its lock is held for ever
                self._kill(worker)
                worker.worker_thread.join(timeout=STOP_WAIT_S)

    def _kill(self, worker: _WatchedWorkerHandler) -> None:
        with contextlib.suppress(OSError, ValueError):  # it has not begun, or just ended
            os.kill(int(self._pid(worker)), signal.SIGKILL)

    def _pid(self, worker: _WatchedWorkerHandler) -> str:
        try:
            return (self._folder / f"{worker.worker_id}.pid").read_text(encoding="ascii")
        except FileNotFoundError:
            return ""

    def check(self) -> None:
        """Polled while the runner runs.

        Raises:
            WorkerError: the runner is not worth waiting for any longer.
        """
        if self._max_silence_s:
            self._look(time.monotonic())
        with self._lock:
            if self._problem is not None and time.monotonic() > self._deadline_s:
                raise self._problem

    def _look(self, now_s: float) -> None:
        """Asks the workers how far they are, and notes one that has been silent for too long."""
        interval_s = min(LOOK_S, self._max_silence_s / 10)
        since_s = now_s - self._looked_s
        if since_s < interval_s:
            return
        self._looked_s = now_s
        tally = os.environ.get(row_counts.FOLDER_VARIABLE)
        if self._first_result_s is None:
            counts = row_counts.snapshot(tally) if tally else {}
            if counts.get("done", 0) + counts.get("failed", 0):
                self._first_result_s = now_s
            return
        # This process was stopped itself, and so were they: the time does not count.
        asleep_s = since_s if since_s > 5 * interval_s + LOOK_S else 0.0
        self._first_result_s += asleep_s
        for worker in self._workers:
            pid = self._pid(worker)
            connection = worker.connection
            connection.saw(f"{tally}/{pid}.json" if tally else None, asleep_s)
            if connection.silent_since(self._first_result_s, now_s) > self._max_silence_s:
                self._note(
                    f"a worker process ({pid or 'not begun'}) has given no sign of life for "
                    f"{self._max_silence_s:g} s, as --max_silence_s allows: it hangs",
                    0.0,
                )
            connection.ask()


class _WatchedConnection(ControlConnection):
    """Says at once that a step failed; the runner first waits for what other workers do.

    It also knows when the worker last gave a sign of life while it should work: the end of a
    bundle, elements or counts that have become more, windows that went through the network.
    """

    def __init__(self, watch: WorkerWatch) -> None:
        super().__init__()
        self._watch = watch
        self._bundles: set[str] = set()
        self._open: set[str] = set()
        self._asked: dict[str, str] = {}
        self._found: dict[str, bytes] = {}
        self._sign_s = time.monotonic()

    def push(self, req: Any) -> Any:
        future = super().push(req)
        if future is not None and req.WhichOneof("request") == "process_bundle":
            self._sign_s = time.monotonic()
            self._bundles.add(req.instruction_id)
            self._open.add(req.instruction_id)
        return future

    def ask(self) -> None:
        """Asks for the progress of each bundle that is under way; the answer comes by and by."""
        waiting = set(self._asked.values())
        for bundle in tuple(self._open):
            if bundle not in waiting:
                request = beam_fn_api_pb2.ProcessBundleProgressRequest(instruction_id=bundle)
                asked = beam_fn_api_pb2.InstructionRequest(
                    instruction_id=f"progress_{uuid.uuid4().hex}", process_bundle_progress=request
                )
                self._asked[asked.instruction_id] = bundle
                self.push(asked)

    def saw(self, tally: str | None, asleep_s: float) -> None:
        """Looks at the counts that the worker leaves on the disk."""
        self._sign_s += asleep_s
        with contextlib.suppress(OSError):
            if tally is not None:
                self._changed("tally", Path(tally).read_bytes())

    def silent_since(self, first_result_s: float, now_s: float) -> float:
        """For how many seconds no sign came; 0 where the worker has nothing to do."""
        return now_s - max(first_result_s, self._sign_s) if self._open else 0.0

    def _changed(self, name: str, found: bytes) -> None:
        if self._found.get(name) != found:
            self._found[name] = found
            self._sign_s = time.monotonic()

    def _heard(self, data: Any) -> None:
        bundle = self._asked.pop(data.instruction_id, None)
        if bundle is not None:
            infos = data.process_bundle_progress.monitoring_infos
            shown = [i.SerializeToString(deterministic=True) for i in infos if i.urn in _PROGRESS]
            self._changed(bundle, b"".join(sorted(shown)))
        elif data.instruction_id in self._open:
            self._open.discard(data.instruction_id)
            self._found.pop(data.instruction_id, None)
            self._sign_s = time.monotonic()

    def _read(self) -> None:
        try:
            for data in self._input or ():
                self._heard(data)
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
        self.connection = _WatchedConnection(self.watch)
        grpc_server.control_handler._connections_by_worker_id[self.worker_id] = self.connection
        self.control_conn = self.connection

    def start_worker(self) -> None:
        command = self.watch.command_of_next(self._worker_command_line)
        self.worker = SubprocessSdkWorker(
            command, self.control_address, self.provision_info, self.worker_id
        )
        self.worker_thread = threading.Thread(name="run_worker", target=self._run, daemon=True)
        self.worker_thread.start()
        self.watch.started(self)

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
        with local_runner(options, execution) as (runner, watch):
            yield (
                Opened(runner=runner) if watch is None else Opened(runner=runner, check=watch.check)
            )


@contextmanager
def local_runner(
    options: PipelineOptions, execution: Execution
) -> Iterator[tuple[FnApiRunner, WorkerWatch | None]]:
    """The runner of a local job; its workers do not outlive the ``with`` statement.

    Args:
        options: of the pipeline; the number of workers is set in them.
        execution: how many processes, where 1 is this process, on which GPUs.
    """
    num_workers = execution.num_workers
    direct = options.view_as(DirectOptions)
    direct.direct_num_workers = num_workers
    direct.direct_running_mode = "in_memory"  # the environment below decides
    if num_workers == 1:
        yield FnApiRunner(), None
        return
    with tempfile.TemporaryDirectory(prefix="clapsep-workers-") as name:
        gpus = devices.visible_gpus(execution.device)
        watch = WorkerWatch(Path(name), gpus, execution.max_silence_s)
        _register(watch)
        command = [sys.executable, "-c", _WORKER, name, str(os.getpid())]
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
