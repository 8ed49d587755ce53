"""Where a job computes: the engine that the flags ask for, and those that are refused."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Mapping

from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    StandardOptions,
    WorkerOptions,
)
from apache_beam.transforms.resources import parse_resource_hints

from model.devices import cores
from pipelines.flags import ModelOptions, RunOptions, UsageError

IN_PROCESS = "FnApiRunner"
DATAFLOW = "DataflowRunner"
DASK = "dask"
_LOCAL = (None, "", "DirectRunner", "FnApiRunner", "SwitchingDirectRunner")
_REFUSED = {
    "DaskRunner": "Beam's own silently loses data (2.77 drops what finish_bundle gives); "
    "use --runner=dask",
    "PrismRunner": "Prism is a binary that would be downloaded, and does not run this job",
    "BundleBasedDirectRunner": "it does not run this job",
}
_NAMES = {name.lower(): name for name in (*StandardOptions.KNOWN_RUNNER_NAMES, *_REFUSED, DASK)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """Where a run computes; changes nothing about its results.

    Attributes:
        runner: a Beam runner; ``FnApiRunner`` in this process.
        num_workers: worker processes of a local run.
        num_threads: threads of the network in each; 0: the cores of whichever machine it runs on.
        resource_hints: of the separation step.
        share_model: one copy of the model for all worker processes of a machine.
        isolate_decoder: audio is decoded in processes of its own.
        progress: ``auto``, ``bar``, ``log`` or ``none``.
        log_level: for the root logger.
        cluster: address of the Dask scheduler; None for every other runner.
    """

    runner: str
    num_workers: int
    num_threads: int
    resource_hints: Mapping[str, str]
    share_model: bool
    isolate_decoder: bool
    progress: str
    log_level: str
    cluster: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether everything happens on this machine."""
        return self.runner == IN_PROCESS

    @property
    def ends_with_launcher(self) -> bool:
        """Whether nothing goes on when the launcher has ended."""
        return self.is_local or self.cluster is not None

    @property
    def in_process(self) -> bool:
        """Whether everything happens in this process."""
        return self.is_local and self.num_workers == 1


def execution_of(options: PipelineOptions) -> Execution:
    """Where the flags say that a job runs.

    Raises:
        UsageError: an engine that is refused or unknown, a hint that says nothing, or flags that do
            not go together.
    """
    run = options.view_as(RunOptions)
    name = _name_of(options.view_as(StandardOptions).runner)
    if name in _REFUSED:
        raise UsageError(f"--runner={name} is refused: {_REFUSED[name]}")
    direct = options.view_as(DirectOptions)
    if direct.direct_running_mode == "multi_threading":
        raise UsageError(
            "--direct_running_mode=multi_threading is refused: it silently loses elements "
            "(Beam 2.77); use --num_workers N"
        )
    local = name in _LOCAL
    workers = options.view_as(WorkerOptions).num_workers
    if workers is None:
        workers = direct.direct_num_workers
    if workers < 1:
        raise UsageError(f"--num_workers={workers}: expected at least 1")
    num_workers = int(workers) if local else 1
    cluster = _cluster(name, run.dask_client_address)
    threads = max(1, cores() // num_workers) if local else int(cluster is not None)
    hints = {"accelerator": run.accelerator, "min_ram": run.min_ram}
    hints = {key: value for key, value in hints.items() if value}
    try:
        parse_resource_hints(hints)
    except ValueError as err:
        raise UsageError(f"--min_ram {run.min_ram}: expected a size such as 16GB") from err
    return Execution(
        runner=IN_PROCESS if local else str(name),
        num_workers=num_workers,
        num_threads=options.view_as(ModelOptions).num_threads or threads,
        resource_hints=hints,
        share_model=run.share_model,
        isolate_decoder=run.isolate_decoder,
        progress=run.progress,
        log_level=run.log_level,
        cluster=cluster,
    )


def _name_of(runner: str | None) -> str | None:
    """The engine's name as Beam understands it.

    Capitals do not count, and ``Runner`` at the end may be left out; a name with dots is that of a
    class.

    Raises:
        UsageError: there is no such engine.
    """
    if not runner:
        return None
    module, _, name = runner.rpartition(".")
    if module:
        try:
            getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as err:
            raise UsageError(f"--runner={runner}: cannot be had: {err}") from err
        return name
    low = runner.lower()
    if low not in _NAMES and f"{low}runner" not in _NAMES:
        close = difflib.get_close_matches(low, _NAMES, n=1)
        near = f"; is it {_NAMES[close[0]]}?" if close else ""
        raise UsageError(f"--runner={runner}: no such runner is known{near}")
    return _NAMES.get(low) or _NAMES[f"{low}runner"]


def _cluster(runner: str | None, address: str | None) -> str | None:
    if runner == DASK and not address:
        raise UsageError(
            "--runner=dask needs --dask_client_address, which `dask scheduler` prints when it "
            "starts; for example tcp://10.0.0.5:8786"
        )
    if runner != DASK and address:
        raise UsageError(f"--dask_client_address={address} goes with --runner=dask")
    return address
