"""Says how a job runs at each place, runs a graph there, and reads what it counted.

`RUNNERS` has a line for each runner that needs something of its own; any other runner that Beam
knows is taken as it is. To add one: a subclass of `Runner` in a module, and its line here.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import json
import logging
import math
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import apache_beam as beam
from apache_beam.metrics.cells import DistributionData
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.metrics.metricbase import MetricName
from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
    TestOptions,
    WorkerOptions,
)
from apache_beam.runners.runner import PipelineResult, PipelineRunner
from apache_beam.transforms import core
from apache_beam.transforms.resources import (
    MaxActiveBundlesPerWorkerHint,
    ResourceHint,
    parse_resource_hints,
)

from model.devices import cores
from pipelines import flags
from pipelines.config import IN_PROCESS, CommonConfig, Execution
from pipelines.flags import Arguments, Command, UsageError
from transforms.tables.row_counts import AUDIO_MSEC, OUT

logger = logging.getLogger(__name__)

_AUDIO = f"/{AUDIO_MSEC}"
_MEANS = (
    ("ReadAudio/read_msec", "{:.0f} ms to read a mixture"),
    ("SeparateClips/network_msec", "{:.0f} ms a forward pass"),
    ("SeparateClips/batch_windows", "{:.1f} windows in it"),
    ("WriteStems/write_msec", "{:.0f} ms to write its stems"),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Values that were observed: how many, their sum, the least and the greatest."""

    count: int
    sum: int
    min: int
    max: int

    @property
    def mean(self) -> float:
        """Their mean."""
        return self.sum / self.count

    def to_json(self) -> dict[str, float]:
        """Everything, and the mean."""
        return {**dataclasses.asdict(self), "mean": round(self.mean, 3)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """Counters and distributions by ``namespace/name``, over all steps of a job."""

    counters: Mapping[str, int]
    distributions: Mapping[str, Distribution]

    @property
    def audio_s(self) -> float:
        """Seconds of audio in the rows that are done."""
        return sum(self._of_done(AUDIO_MSEC)) / 1_000

    def _of_done(self, counter: str) -> list[int]:
        """The values of a counter at the steps that finish rows: those that count their audio."""
        steps = [name.rpartition("/")[0] for name in self.counters if name.endswith(_AUDIO)]
        return [self.counters.get(f"{step}/{counter}", 0) for step in steps]

    def adding(self, counters: Mapping[str, int]) -> Measurements:
        """Returns a copy with the given counters added to these."""
        names = sorted({*self.counters, *counters})
        added = {name: self.counters.get(name, 0) + counters.get(name, 0) for name in names}
        return dataclasses.replace(self, counters=added)

    def progress(self) -> dict[str, float]:
        """Rows done and failed so far, their audio, and rows that were read."""
        failed = sum(v for name, v in self.counters.items() if name.endswith("/dead"))
        rows = self.counters.get("ReadManifest/in", 0)
        done = sum(self._of_done(OUT))
        return {"done": done, "failed": failed, "audio_s": self.audio_s, "rows": rows}

    def to_json(self) -> dict[str, Any]:
        """As it stands in ``run.json``."""
        found = {name: each.to_json() for name, each in self.distributions.items()}
        return {"counters": dict(self.counters), "distributions": found}

    def log(self) -> None:
        """One line each, for who asked for ``--log_level info``."""
        for name, value in self.counters.items():
            logger.info("%s = %d", name, value)
        for name, each in self.distributions.items():
            logger.info(
                "%s: n %d, mean %.1f, from %d to %d",
                name,
                each.count,
                each.mean,
                each.min,
                each.max,
            )

    def line(self) -> str:
        """Where the time of a clip went; empty where nothing was separated."""
        parts = [
            form.format(self.distributions[name].mean)
            for name, form in _MEANS
            if name in self.distributions
        ]
        return f"on average {', '.join(parts)}" if parts else ""


def measurements_of(result: PipelineResult) -> Measurements:
    """What a job that has ended, or still runs, has counted so far."""
    found = result.metrics().query(MetricsFilter())
    counters: dict[str, int] = {}
    for entry in found["counters"]:
        name, value = _name(entry.key.metric), _value(entry)
        counters[name] = counters.get(name, 0) + int(value or 0)
    distributions: dict[str, Distribution] = {}
    for entry in found["distributions"]:
        name, value = _name(entry.key.metric), _value(entry)
        if value is not None and value.data.count:
            distributions[name] = _with(distributions.get(name), value.data)
    return Measurements(
        counters=dict(sorted(counters.items())), distributions=dict(sorted(distributions.items()))
    )


def _name(metric: MetricName) -> str:
    return f"{metric.namespace}/{metric.name}"


def _value(entry: Any) -> Any:
    return entry.committed if entry.committed is not None else entry.attempted


def _with(known: Distribution | None, data: DistributionData) -> Distribution:
    if known is None:
        return Distribution(count=data.count, sum=data.sum, min=data.min, max=data.max)
    return Distribution(
        count=known.count + data.count,
        sum=known.sum + data.sum,
        min=min(known.min, data.min),
        max=max(known.max, data.max),
    )


DATAFLOW = "DataflowRunner"
DASK = "dask"
RUNNERS: dict[str, str] = {
    IN_PROCESS: "pipelines.runners.local:Local",
    DASK: "pipelines.runners.dask.runner:Dask",
    DATAFLOW: "pipelines.runners.dataflow:Dataflow",
}
"""Where each runner's class is, imported when a job asks for it: some bring large libraries."""
_LOCAL = (None, "", "DirectRunner", IN_PROCESS, "SwitchingDirectRunner")
_REFUSED = {
    "DaskRunner": "Beam's own silently loses data (2.77 drops what finish_bundle gives); "
    "use --runner=dask",
    "PrismRunner": "Prism is a binary that would be downloaded, and does not run this job",
    "BundleBasedDirectRunner": "it does not run this job",
}
Graph = beam.PTransform[Any, Any]


def _nothing() -> None:
    return


class JobError(RuntimeError):
    """The job itself failed; not one of its rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A runner that is ready for one graph.

    Attributes:
        runner: None for the one that Beam makes from its options.
        check: polled while the graph runs; raises where it does not end any more.
        counts: how far a job elsewhere is; None where the processes of this machine count.
    """

    runner: PipelineRunner | None = None
    check: Callable[[], None] = _nothing
    counts: Callable[[], Mapping[str, float]] | None = None


class Runner:
    """How a job runs at one place; this one is any runner that Beam knows, as it is."""

    ends_with_launcher = False
    """Whether nothing goes on when the launcher has ended."""

    def check(self, config: CommonConfig, options: PipelineOptions) -> None:
        """Checks what the runner or its workers would only find out later.

        Raises:
            UsageError: a flag is missing, or workers could not reach what it names.
        """

    def open(
        self,
        execution: Execution,
        options: PipelineOptions,
        on_submitted: Callable[[Mapping[str, Any]], None],
    ) -> AbstractContextManager[Opened]:
        """Makes the runner ready for one graph; what it started ends with the ``with`` statement.

        Args:
            execution: where the graph runs.
            options: of Beam.
            on_submitted: called where a service takes the job, with what identifies it there; one
                of its fields is ``id``.
        """
        return _as_it_is()

    def only_builds(self, options: PipelineOptions) -> bool:
        """Whether the job is to be built, and neither staged nor submitted."""
        return False

    def left_at(self, options: PipelineOptions) -> str | None:
        """Where the job is left, for something else to submit; None where it is submitted."""
        return None

    def require_ended(self, job: Mapping[str, Any], options: PipelineOptions) -> None:
        """Asks whether the job of an earlier run has ended.

        Raises:
            UsageError: the job still runs, or nobody can say.
        """


@contextmanager
def _as_it_is() -> Iterator[Opened]:
    yield Opened()


def runner_of(name: str) -> Runner:
    """Finds the runner of that name."""
    place = RUNNERS.get(name)
    if place is None:
        return Runner()
    module, _, attribute = place.partition(":")
    found: Runner = getattr(importlib.import_module(module), attribute)()
    return found


def require_ended(job: Mapping[str, Any], options: PipelineOptions) -> None:
    """Asks the service that has the job of an earlier run whether it has ended.

    Args:
        job: as ``run.json`` and the lock have it.
        options: of the run that is to write into the same folder.

    Raises:
        UsageError: the job still runs, or nobody can say.
    """
    runner_of(str(job.get("runner", DATAFLOW))).require_ended(job, options)


def parse(command: Command, words: Sequence[str]) -> Arguments:
    """Parses the words of a command line, those of Beam with Beam's own checks.

    Raises:
        UsageError: a word that belongs to no flag, an unknown flag, a missing or an unusable value.
    """
    beam = _beam_parser()
    arguments = flags.parse(command, words, beam._actions)
    beam.parse_known_args(arguments.beam)
    return arguments


def beam_flags() -> set[str]:
    """Names the flags of Beam and its runners."""
    return {flag for action in _beam_parser()._actions for flag in action.option_strings}


def record_beam_flags() -> str:
    """Describes the flags of this Beam and its runners, as ``pipelines/beam_flags.json`` has them.

    To be called in a process that has imported all that a job imports: runners bring flags along.
    """
    record = {
        "version": beam.__version__,
        "flags": flags.record_of(_beam_parser()._actions),
    }
    lines = ",\n".join(f"    {json.dumps(each)}" for each in record["flags"])
    return f'{{\n  "version": {json.dumps(record["version"])},\n  "flags": [\n{lines}\n  ]\n}}\n'


class Options(PipelineOptions):
    """Beam's options, each view of which is made once.

    Beam asks for a view at every step that it adds to a graph, and to make one builds a parser:
    without this, that is half of the time of building a graph.
    """

    def view_as(self, cls: type[Any]) -> Any:
        """As ``PipelineOptions.view_as``; all views share their values."""
        views = self.__dict__.setdefault("_views", {})
        if cls not in views:
            views[cls] = super().view_as(cls)
        return views[cls]

    def __getstate__(self) -> dict[str, Any]:
        """Without the views, which would still share the values of the original."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {key: value for key, value in state.items() if key != "_views"}


_look_at_arguments = core.get_function_args_defaults
_ARGUMENTS: weakref.WeakKeyDictionary[Any, tuple[list[str], list[Any]]] = (
    weakref.WeakKeyDictionary()
)


def _arguments_of(function: Any) -> tuple[list[str], list[Any]]:
    """As Beam's ``get_function_args_defaults``; methods of a class are looked at once.

    Beam looks at all methods of every DoFn whenever it wants to know whether there is state, 27,000
    times for the graph of the main job: without this, that is a third of the time of a small job.
    """
    if type(function) is not types.MethodType:
        return _look_at_arguments(function)
    if function.__func__ not in _ARGUMENTS:
        _ARGUMENTS[function.__func__] = _look_at_arguments(function)
    names, defaults = _ARGUMENTS[function.__func__]
    return names[:], defaults[:]


core.get_function_args_defaults = _arguments_of  # type: ignore[assignment]


class _BeamParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _beam_parser() -> argparse.ArgumentParser:
    """Builds a parser of Beam's flags and those of its runners, with its own checks of values."""
    parser = _BeamParser(add_help=False, conflict_handler="resolve", allow_abbrev=False)
    for options in _all_subclasses(PipelineOptions):
        if options.__module__.startswith("apache_beam."):
            options._add_argparse_args(parser)
    return parser


def _all_subclasses(cls: type[Any]) -> list[type[Any]]:
    found = []
    for child in cls.__subclasses__():
        found += [child, *_all_subclasses(child)]
    return found


class _ActiveBundles(MaxActiveBundlesPerWorkerHint):
    """The hint of that name, of which the lesser holds where two meet.

    Beam 2.77 adds them up, and merges the hint of a composite several times into what it consists
    of: 16 became 16, 48, 112, 240 and 496, in five environments, and what they part is five stages.
    """

    @classmethod
    def get_merged_value(cls, outer_value: bytes, inner_value: bytes) -> bytes:
        return min(outer_value, inner_value, key=int)


def execution_of(arguments: Arguments) -> Execution:
    """Reads from the flags where a job runs.

    Raises:
        UsageError: a runner that is refused or unknown, a hint that says nothing, or flags that do
            not go together.
    """
    own, options = arguments.own, PipelineOptions(list(arguments.beam))
    name = _name_of(options.view_as(StandardOptions).runner)
    if name in _REFUSED:
        raise UsageError(f"--runner={name} is refused: {_REFUSED[name]}")
    _require_submission(name, options)
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
    num_threads = getattr(own, "num_threads", 0)  # a job without a network has none
    if not 0 <= own.max_silence_s < math.inf:
        raise UsageError(f"--max_silence_s={own.max_silence_s}: expected seconds, or 0 for ever")
    if num_threads < 0:
        raise UsageError(f"--num_threads={num_threads}: expected at least 0")
    num_workers = int(workers) if local else 1
    cluster = _cluster(name, own.dask_client_address)
    if cluster is not None and options.view_as(WorkerOptions).num_workers is not None:
        raise UsageError(
            f"--num_workers={workers}: a Dask cluster has the workers that were started for it; "
            "leave the flag out"
        )
    threads = max(1, cores() // num_workers) if local else int(cluster is not None)
    min_ram = getattr(own, "min_ram", None)
    asked = {"accelerator": getattr(own, "accelerator", None), "min_ram": min_ram}
    hints = {key: value for key, value in asked.items() if value}
    for key in ("cpu_count", "max_active_bundles_per_worker"):
        count = getattr(own, key, None)
        if count is not None and count < 1:
            raise UsageError(f"--{key}={count}: expected at least 1")
        if count is not None:
            hints[key] = str(count)  # Beam takes no number here
    if cluster is not None and "max_active_bundles_per_worker" in hints:
        raise UsageError(
            f"--max_active_bundles_per_worker={hints['max_active_bundles_per_worker']}: a Dask "
            "worker works on one bundle a thread; leave the flag out, and start workers with "
            "--nthreads"
        )
    ResourceHint.register_resource_hint("max_active_bundles_per_worker", _ActiveBundles)
    try:
        parse_resource_hints(hints)
    except ValueError as err:
        raise UsageError(f"--min_ram {min_ram}: expected a size such as 16GB") from err
    return Execution(
        runner=IN_PROCESS if local else str(name),
        num_workers=num_workers,
        num_threads=num_threads or threads,
        resource_hints=hints,
        isolate_decoder=own.isolate_decoder,
        progress=own.progress,
        log_level=own.log_level,
        cluster=cluster,
        device=_device(getattr(own, "device", "cpu"), local, num_workers),
        max_silence_s=own.max_silence_s,
    )


def _require_submission(name: str | None, options: PipelineOptions) -> None:
    """Refuses flags that keep a job from being run, where nothing heeds them and it would be."""
    dry_run = options.view_as(TestOptions).dry_run
    location = options.view_as(GoogleCloudOptions).template_location
    for flag, value in (("--dry_run", dry_run), ("--template_location", location)):
        if value and name != DATAFLOW:
            raise UsageError(f"{flag}={value} goes with --runner={DATAFLOW}; this job would be run")
    if dry_run and dry_run.lower() != "true":
        raise UsageError(
            f"--dry_run={dry_run}: Beam takes every value for yes; write --dry_run=True, or leave "
            "the flag out"
        )


def _device(device: str, local: bool, num_workers: int) -> str:
    if "," in device and not (local and num_workers > 1):
        several = f"add --num_workers {device.count(',') + 1}" if local else "it has its own"
        raise UsageError(
            f"--device {device}: several GPUs are for several worker processes of this machine, "
            f"and a process computes on one of them; {several}"
        )
    return device


def _name_of(runner: str | None) -> str | None:
    """The runner's name as Beam or our table has it.

    Capitals do not count, and ``Runner`` at the end may be left out; a name with dots is that of a
    class.

    Raises:
        UsageError: there is no such runner.
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
    known = (*StandardOptions.KNOWN_RUNNER_NAMES, *_REFUSED, *RUNNERS)
    names = {each.lower(): each for each in known}
    low = runner.lower()
    if low not in names and f"{low}runner" not in names:
        close = difflib.get_close_matches(low, names, n=1)
        near = f"; is it {names[close[0]]}?" if close else ""
        raise UsageError(f"--runner={runner}: no such runner is known{near}")
    return names.get(low) or names[f"{low}runner"]


def _cluster(runner: str | None, address: str | None) -> str | None:
    if runner == DASK and not address:
        raise UsageError(
            "--runner=dask needs --dask_client_address, which `dask scheduler` prints when it "
            "starts; for example tcp://10.0.0.5:8786"
        )
    if runner != DASK and address:
        raise UsageError(f"--dask_client_address={address} goes with --runner=dask")
    return address


def run_graph(
    graph: Graph, opened: Opened, options: PipelineOptions, check: Callable[[], None] = _nothing
) -> PipelineResult:
    """Runs a graph to its end.

    Args:
        graph: of the job.
        opened: what runs it.
        options: of Beam.
        check: polled while it runs; raises where it must end.

    Raises:
        JobError: it did not succeed.
        WorkerError: a worker process died, or the runner does not end.
    """
    job = _Job(graph, opened.runner, options)
    job.start()
    while job.is_alive():
        job.join(timeout=0.2)
        opened.check()
        check()
    if job.error is not None:
        raise job.error
    if job.result is None:
        raise JobError("the pipeline gave no result")
    if job.result.state not in (None, "DONE"):
        raise JobError(f"the runner says {job.result.state}")
    return job.result


class _Job(threading.Thread):
    """The pipeline in a thread of its own, so that an interrupt is noticed at once."""

    def __init__(
        self, graph: Graph, runner: PipelineRunner | None, options: PipelineOptions
    ) -> None:
        super().__init__(name="pipeline", daemon=True)
        self._graph, self._runner, self._options = graph, runner, options
        self.result: PipelineResult | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            pipeline = beam.Pipeline(runner=self._runner, options=self._options)
            _ = pipeline | self._graph
            result = pipeline.run()
            result.wait_until_finish()
            self.result = result
        except BaseException as err:  # handed to the thread that waits
            self.error = err
