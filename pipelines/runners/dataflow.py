"""Runs a job on Google Cloud Dataflow: checks it before, follows it, and explains its end."""

from __future__ import annotations

import dataclasses
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from apache_beam.metrics.metric import MetricResults, MetricsFilter
from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    TestOptions,
    WorkerOptions,
)
from apache_beam.runners.dataflow.dataflow_runner import (
    DataflowPipelineResult,
    DataflowRunner,
    DataflowRuntimeException,
)
from apache_beam.runners.dataflow.internal.apiclient import (
    DataflowApplicationClient,
    DataflowJobAlreadyExistsError,
)
from apache_beam.runners.runner import PipelineResult, PipelineState
from google.api_core.exceptions import Forbidden, GoogleAPICallError, NotFound

from model.registry import is_uri
from pipelines.config import CommonConfig, Execution
from pipelines.flags import UsageError
from pipelines.runners import DATAFLOW, Opened, Runner, measurements_of

logger = logging.getLogger(__name__)
_COUNT_INTERVAL_S = 30.0
_JOB_MESSAGES = "apache_beam.runners.dataflow.dataflow_runner"


_FAMILIES = {
    "nvidia-l4": ("g2",),
    "nvidia-tesla-a100": ("a2-highgpu", "a2-megagpu"),
    "nvidia-a100-80gb": ("a2-ultragpu",),
    "nvidia-h100-80gb": ("a3-highgpu",),
    "nvidia-h100-mega-80gb": ("a3-megagpu",),
    "nvidia-h200-141gb": ("a3-ultragpu",),
    "nvidia-b200": ("a4-highgpu",),
    "nvidia-rtx-pro-6000": ("g4",),
}
"""Accelerators that only machines of some families have, which have no other: Compute Engine's
documentation of GPU machine types. All others are attached to N1 machines."""
_GPU_MACHINES = ("a2", "a3", "a4", "g2", "g4")
_KEYS = ("type", "count", "machine_type")
DRIVER, MPS = "install-nvidia-driver", "use_nvidia_mps"
_ACCELERATOR = f"type:GPU_TYPE;count:N;machine_type:MACHINE_TYPE;{DRIVER}[:VERSION];{MPS}"


class DataflowError(RuntimeError):
    """Dataflow did not take the job, or the job did not end well."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DataflowJob:
    """A job that Dataflow has taken."""

    id: str
    name: str
    project: str
    region: str

    @property
    def console_url(self) -> str:
        """Its page."""
        place = f"{self.region}/{self.id}?project={self.project}"
        return f"https://console.cloud.google.com/dataflow/jobs/{place}"

    def command(self, verb: str) -> str:
        """Returns the ``gcloud`` command line that does ``verb`` to this job."""
        place = f"--region={self.region} --project={self.project}"
        return f"gcloud dataflow jobs {verb} {self.id} {place}"

    def lines(self) -> list[str]:
        """What is said when it was submitted."""
        return [
            f"Dataflow job {self.id} ({self.name}) was submitted",
            f"  watch: {self.console_url}",
            f"  state: {self.command('show')}",
            f"  stop:  {self.command('cancel')}",
        ]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """What ``--accelerator`` asks for.

    Attributes:
        type: of the GPU, as Compute Engine names it.
        count: GPUs of a worker.
        machine_type: of the workers that have them; None where it was not named.
        options: the configuration options, without their values.
    """

    type: str
    count: int
    machine_type: str | None = None
    options: tuple[str, ...] = ()


def accelerator_of(text: str) -> Accelerator:
    """Reads an accelerator in the form that Dataflow documents, its parts in any order.

    Raises:
        UsageError: it has not that form; the message names the part and the form.
    """

    def refused(why: str) -> UsageError:
        return UsageError(f"--accelerator {text}: {why}; expected {_ACCELERATOR}")

    fields: dict[str, str] = {}
    options: list[str] = []
    for part in (each.strip() for each in text.split(";")):
        name, _, value = part.partition(":")
        if name in fields or name in options:
            raise refused(f"{name} stands there twice")
        if name in _KEYS:
            fields[name] = value
        elif name in (DRIVER, MPS):
            options.append(name)
        else:
            raise refused(f"{part!r} is no part of an accelerator")
    for name in ("type", "count"):
        if not fields.get(name):
            raise refused(f"has no {name}")
    if not re.fullmatch(r"[1-9]\d?", fields["count"]):
        raise refused(f"count:{fields['count']} is no number of GPUs")
    return Accelerator(
        type=fields["type"],
        count=int(fields["count"]),
        machine_type=fields.get("machine_type") or None,
        options=tuple(options),
    )


def _check_accelerator(text: str, options: PipelineOptions) -> None:
    """Checks what Dataflow would refuse, or what would be paid for and not used.

    Raises:
        UsageError: with the flag, its value and what to give instead.
    """
    found = accelerator_of(text)
    families = _FAMILIES.get(found.type, ("n1",))
    example = f"machine_type:{'n1-standard-8' if families == ('n1',) else families[0] + '-…'}"
    if found.machine_type is None and found.type in _FAMILIES:
        raise UsageError(
            f"--accelerator {text}: only machines of the family {' or '.join(families)} have "
            f"{found.type}; name one, as in {example}"
        )
    if found.machine_type and not found.machine_type.startswith(tuple(f"{f}-" for f in families)):
        raise UsageError(
            f"--accelerator {text}: machines of type {found.machine_type} have no {found.type}, "
            f"which goes with {' or '.join(families)}, as in {example}"
        )
    everywhere = options.view_as(WorkerOptions).machine_type or ""
    if everywhere.startswith(tuple(f"{family}-" for family in _GPU_MACHINES)):
        raise UsageError(
            f"--machine_type {everywhere}: the steps without --accelerator would run on machines "
            f"with GPUs too; name it in the accelerator, as in machine_type:{everywhere}, and give "
            "--machine_type one without a GPU, such as e2-standard-4"
        )
    cloud = options.view_as(GoogleCloudOptions)
    if any(each.startswith("worker_accelerator") for each in cloud.dataflow_service_options or ()):
        raise UsageError(
            "--dataflow_service_options worker_accelerator=…: goes without --accelerator, which "
            "asks for GPUs for the separation step alone"
        )
    if cloud.flexrs_goal:
        raise UsageError(
            f"--flexrs_goal {cloud.flexrs_goal}: FlexRS has neither GPUs nor resource hints; leave "
            "it or --accelerator out"
        )
    if MPS in found.options:
        if found.count != 1:
            raise UsageError(f"--accelerator {text}: {MPS} is for one GPU a worker; take count:1")
        if "no_use_multiple_sdk_containers" in (options.view_as(DebugOptions).experiments or ()):
            raise UsageError(
                f"--accelerator {text}: {MPS} shares a GPU among processes, and --experiments "
                "no_use_multiple_sdk_containers leaves only one; leave one of them out"
            )


class Dataflow(Runner):
    """Google Cloud Dataflow: a service that has the job, and goes on without this command."""

    def check(self, config: CommonConfig, options: PipelineOptions) -> None:
        """Checks flags and places; see the base class."""
        _check(config, options)

    @contextmanager
    def open(
        self,
        execution: Execution,
        options: PipelineOptions,
        on_submitted: Callable[[Mapping[str, Any]], None],
    ) -> Iterator[Opened]:
        """Makes the runner that submits, follows and explains the job."""

        def submitted(job: DataflowJob) -> None:
            on_submitted(dataclasses.asdict(job))

        runner = SubmittingRunner(execution.log_level, submitted)
        yield Opened(runner=runner, counts=runner.counts)

    def only_builds(self, options: PipelineOptions) -> bool:
        """Whether ``--dry_run`` was given."""
        return bool(options.view_as(TestOptions).dry_run)

    def left_at(self, options: PipelineOptions) -> str | None:
        """Where ``--template_location`` is."""
        location: str | None = options.view_as(GoogleCloudOptions).template_location
        return location

    def require_ended(self, job: Mapping[str, Any], options: PipelineOptions) -> None:
        """Asks Dataflow; see the base class."""
        known = {field.name: job[field.name] for field in dataclasses.fields(DataflowJob)}
        _require_ended(DataflowJob(**known), options)


def _check(config: CommonConfig, options: PipelineOptions) -> None:
    """Checks what Dataflow would only find out, or its workers, some minutes later.

    Raises:
        UsageError: a flag is missing, or workers could not reach what it names.
    """
    cloud = options.view_as(GoogleCloudOptions)
    for name in ("project", "region", "temp_location"):
        if not getattr(cloud, name):
            raise UsageError(f"--runner={DATAFLOW} needs --{name}")
    places = {"--output": config.output, "--temp_location": cloud.temp_location}
    places["--stems"] = getattr(config, "stems", None)
    named = [(flag, uri) for flag, uri in places.items() if uri]
    named += [("--manifest", uri) for uri in config.manifests]
    named += [("--runs", uri) for uri in getattr(config, "runs", ())]
    weights = [(f"--{name}", getattr(config, name, "none")) for name in ("model", "scorer")]
    named += [each for each in weights if each[1] not in ("own", "none") and is_uri(each[1])]
    local = [(flag, uri) for flag, uri in (*named, *config.named) if "://" not in uri]
    for flag, uri in local:
        raise UsageError(f"{flag}={uri}: Dataflow's workers cannot reach it; expected gs://…")
    if accelerator := config.execution.resource_hints.get("accelerator"):
        _check_accelerator(accelerator, options)
    code = options.view_as(SetupOptions)
    if not (options.view_as(WorkerOptions).sdk_container_image or code.setup_file):
        raise UsageError(
            f"--runner={DATAFLOW} needs --sdk_container_image IMAGE with this project in it (see "
            "Dockerfile), or --setup_file ./setup.py: else workers do not have its code"
        )


def _require_ended(job: DataflowJob, options: PipelineOptions) -> None:
    cloud = options.view_as(GoogleCloudOptions)
    there = PipelineOptions(
        [],
        project=job.project,
        region=job.region,
        dataflow_endpoint=cloud.dataflow_endpoint,
        no_auth=cloud.no_auth,
        impersonate_service_account=cloud.impersonate_service_account,
    )
    try:
        # Without Beam's retries: they take minutes to believe that there is no such job.
        client = DataflowApplicationClient(there)
        answer = DataflowApplicationClient.get_job.__wrapped__(client, job.id)
    except NotFound:  # Dataflow forgets jobs after some weeks
        return
    except GoogleAPICallError as err:
        raise UsageError(
            f"--output: Dataflow does not say whether job {job.id} of the earlier run ended: "
            f"{err}; when you know that it has, --force_unlock goes on"
        ) from err
    state = DataflowPipelineResult.api_jobstate_to_pipeline_state(answer.current_state)
    if not PipelineState.is_terminal(state):
        raise UsageError(
            f"--output: Dataflow job {job.id} of that run is {state}: wait for it "
            f"({job.console_url}) or stop it: {job.command('cancel')}"
        )


class SubmittingRunner(DataflowRunner):
    """Beam's runner, which says what it did and what went wrong."""

    def __init__(self, log_level: str, on_submitted: Callable[[DataflowJob], None]) -> None:
        """Nothing is submitted yet; ``log_level`` is of workers and of what is said of the job."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._result: DataflowPipelineResult | None = None
        self._counts: Mapping[str, float] = {}
        self._counted_at_s = float("-inf")
        self._log_level, self._on_submitted = log_level, on_submitted

    def run_pipeline(
        self, pipeline: Any, options: PipelineOptions, pipeline_proto: Any = None
    ) -> PipelineResult:
        """Stages and submits.

        Raises:
            DataflowError: Dataflow did not take the job; the message says what to do.
        """
        logging.getLogger(_JOB_MESSAGES).setLevel(self._log_level.upper())
        workers = options.view_as(WorkerOptions)
        if workers.default_sdk_harness_log_level is None:
            workers.default_sdk_harness_log_level = self._log_level.upper()
        try:
            result: PipelineResult = super().run_pipeline(  # type: ignore[no-untyped-call]
                pipeline, options, pipeline_proto
            )
        except DataflowJobAlreadyExistsError as err:
            raise DataflowError(str(err)) from err
        except GoogleAPICallError as err:
            raise DataflowError(_refusal(err, options)) from err
        if not isinstance(result, DataflowPipelineResult) or not result.has_job:
            return result
        self._result = result
        cloud = options.view_as(GoogleCloudOptions)
        job = DataflowJob(
            id=result.job_id(), name=cloud.job_name, project=cloud.project, region=cloud.region
        )
        sys.stderr.write("\n".join(job.lines()) + "\n")
        self._on_submitted(job)
        return _Followed(result, job)

    def counts(self) -> Mapping[str, float]:
        """How far the job is, asked at most every half minute."""
        now_s = time.monotonic()
        if self._result is not None and now_s - self._counted_at_s >= _COUNT_INTERVAL_S:
            self._counted_at_s = now_s
            try:
                self._counts = measurements_of(self._result).progress()
            except GoogleAPICallError as err:  # the job does not depend on it
                logger.debug("no counters: %s", err)
        return self._counts


class _Followed(PipelineResult):
    """A submitted job whose end is put into words."""

    def __init__(self, result: DataflowPipelineResult, job: DataflowJob) -> None:
        super().__init__(result.state)  # type: ignore[no-untyped-call]
        self._result, self._job = result, job

    @property
    def state(self) -> str:
        return str(self._result.state)

    def metrics(self) -> MetricResults:
        return _Metrics(self._result.metrics())

    def cancel(self) -> Any:
        return self._result.cancel()

    def wait_until_finish(self, duration: int | None = None) -> Any:
        """Waits.

        Raises:
            DataflowError: the job failed or was cancelled, or can no longer be followed.
        """
        try:
            return self._result.wait_until_finish(duration)
        except DataflowRuntimeException as err:
            said = [line.strip() for line in str(err).splitlines()[1:] if line.strip()]
            why = said[-1] if said and said[-1] != "None" else "Dataflow gives no reason"
            raise DataflowError(
                f"Dataflow job {self._job.id} ended as {self._result.state}: {why}; "
                f"its log: {self._job.console_url}"
            ) from err
        except (AssertionError, GoogleAPICallError) as err:  # the thread that asks has died
            raise DataflowError(
                f"Dataflow job {self._job.id} can no longer be followed, and may go on: "
                f"{self._job.console_url}"
            ) from err


class _Metrics(MetricResults):
    """Counters for the record: a job that is done is not failed because they cannot be had."""

    def __init__(self, metrics: MetricResults) -> None:
        super().__init__()
        self._metrics = metrics

    def query(self, filter: MetricsFilter | None = None) -> Any:
        try:
            return self._metrics.query(filter)
        except (GoogleAPICallError, KeyError) as err:  # Beam wants each metric twice
            logger.warning("Dataflow did not give the job's counters: %r", err)
            return {name: [] for name in (self.COUNTERS, self.DISTRIBUTIONS)}


def _refusal(error: GoogleAPICallError, options: PipelineOptions) -> str:
    cloud = options.view_as(GoogleCloudOptions)
    text = f"Dataflow did not take the job ({int(error.code or 0)}: {error.message})"
    if isinstance(error, Forbidden):
        return (
            f"{text}; this account needs roles/dataflow.developer on project {cloud.project} and "
            "roles/iam.serviceAccountUser on the workers' account, and the Dataflow API has to be "
            "enabled there"
        )
    if error.code == 409:
        return (
            f"{text}; a job named {cloud.job_name} runs in {cloud.region}: wait for it, or give "
            "another --job_name"
        )
    return text
