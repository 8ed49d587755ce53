"""From a configuration to an exit code: checks, the run, the books, what is said at the end."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import importlib
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from manifests.errors import ManifestError
from model.checkpoints.fetch import CheckpointError
from model.registry import UnknownModelError
from model.systems import Capabilities
from pipelines.config import SeparateConfig
from pipelines.console import closing_lines, configure_logging
from pipelines.execution import (
    JobError,
    Outcome,
    failed,
    finishing,
    first_cause,
    run_graph,
    run_plan,
)
from pipelines.flags import (
    EXIT_FAILURE_RATE,
    EXIT_INTERRUPTED,
    EXIT_JOB_FAILED,
    EXIT_OK,
    UsageError,
)
from pipelines.output_folder import (
    Earlier,
    clear,
    examine,
    held,
    require_free,
    require_no_job,
    require_same_settings,
    resumed_lines,
    say,
    sources_after,
    storage_of,
    tidy,
    usable,
)
from pipelines.output_folder.clearing import SEPARATE, reads_of, remove_working_files, require_apart
from pipelines.output_folder.lock import Lock, LockLostError, RequireEnded
from pipelines.output_folder.record import (
    FILE,
    ManifestFacts,
    code_version,
    manifest_facts,
    new_record,
    write_record,
)
from pipelines.plan import BOOKS, ERROR_FILE, Plan, model_choice, scorer_choice
from pipelines.preflight import PackageCollisionError, check_packages
from pipelines.runners import DATAFLOW
from pipelines.separate_graph import SeparateManifest
from transforms import model_cache
from transforms.storage import Storage, join
from transforms.storage.redaction import redact, redacted
from transforms.tables.row_counts import Resumed, read_resumed

_UNUSABLE = (
    *(ManifestError, UnknownModelError, CheckpointError, ValueError, OSError, ImportError),
)
SUBMITTED = "submitted"


class JobGoesOnError(RuntimeError):
    """Waiting was interrupted; the job, which is elsewhere, was not."""


class RunFailedError(RuntimeError):
    """A run that had begun did not end well; its message is the cause.

    Attributes:
        details: where the whole story was written, if it could be.
    """

    def __init__(self, cause: str, details: str | None) -> None:
        super().__init__(cause)
        self.details = details


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What the launcher must know of the models."""

    rate_hz: int
    window_samples: int
    scorer: str
    capabilities: Capabilities
    digests: Mapping[str, str | None]


def separate(config: SeparateConfig, options: PipelineOptions) -> int:
    """Runs the main job; gives the exit code.

    Raises:
        UsageError: a manifest, a model or the output folder cannot be used.
    """
    configure_logging(config.execution.log_level, config.secrets)
    on_dataflow = config.execution.runner == DATAFLOW
    if on_dataflow:
        _dataflow().check(config, options)
    storage = storage_of(config)
    require_ended = functools.partial(_require_ended, options=options)
    manifests, facts = _examined(config, storage, require_ended)
    config = dataclasses.replace(config, scorer=facts.scorer)
    if on_dataflow and _dataflow().is_dry_run(options):
        plan = _plan(config, storage, examine(config, storage, SEPARATE), facts)
        runner = _dataflow().runner_for(config.execution)
        run_graph(SeparateManifest(plan), config.execution, options, runner)
        sys.stdout.write("dry run: the job can be built; nothing was staged or submitted\n")
        return EXIT_OK
    with held(config, storage, require_ended) as lock:
        return _run(config, options, storage, manifests, facts, lock)


def _run(
    config: SeparateConfig,
    options: PipelineOptions,
    storage: Storage,
    manifests: Sequence[ManifestFacts],
    facts: ModelFacts,
    lock: Lock,
) -> int:
    """What happens while the output folder is this run's."""
    earlier = examine(config, storage, SEPARATE)  # again: a run may have ended meanwhile
    settings = redacted({**config.settings(), **facts.digests})
    if config.resume:
        require_same_settings(earlier, settings)
    record = new_record(
        command=config.command,
        config=config.to_json(),
        settings=settings,
        manifests=manifests,
        attempt=earlier.attempt,
        started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    record["sources"] = sources_after(config, storage, earlier)
    if config.resume and earlier.damage is not None:
        say(
            f"{join(config.output, FILE)} {earlier.damage}: what its rows were made with is not "
            "known, and those of this manifest are done again"
        )
    plan = _plan(config, storage, earlier, facts)
    total = _total_rows(config, manifests)
    with usable(config.output):
        for line in clear(config, storage, earlier, SEPARATE) if config.overwrite else ():
            say(line)
        write_record(storage, join(config.output, FILE), record)
    with _recorded(storage, config, record, lock):
        if config.execution.runner == DATAFLOW:
            outcome = _run_on_dataflow(plan, options, total, record, lock)
        else:
            outcome = run_plan(plan, options, total, check=lock.check)
        if outcome is None:
            return EXIT_OK
        lock.check()
        if not outcome.books.balanced:
            raise JobError(f"the books do not balance: {outcome.books}")
        tidy(config, storage, earlier)
        resumed = read_resumed(storage, plan.uri(BOOKS))
        others = resumed.others + resumed.letters
        record["sources"] = sources_after(config, storage, earlier, others=others)
        if plan.kept:
            record["resumed"] = dataclasses.asdict(resumed)
        write_record(storage, plan.uri(FILE), _finished(record, outcome))
    return _finish(plan, resumed, outcome)


def _plan(config: SeparateConfig, storage: Storage, earlier: Earlier, facts: ModelFacts) -> Plan:
    return Plan(
        config=config,
        storage=storage,
        attempt=earlier.attempt,
        metrics_uris=earlier.metrics_uris,
        journal_uris=earlier.journal_uris,
        letter_uris=earlier.letter_uris,
        rules=earlier.rules,
        model_rate_hz=facts.rate_hz,
        window_samples=facts.window_samples,
        capabilities=facts.capabilities,
        code_version=code_version(),
    )


def _examined(
    config: SeparateConfig, storage: Storage, require_ended: RequireEnded
) -> tuple[list[ManifestFacts], ModelFacts]:
    """What the output folder, the manifests and the model say, before anything is written."""
    with usable(config.output, "read"):
        require_free(config, storage, require_ended)
        earlier = examine(config, storage, SEPARATE)
    try:
        require_no_job(earlier, config, require_ended)
        manifests = manifest_facts(config.manifests, storage)
        if earlier.exists:
            require_apart(config, storage, reads_of(config, manifests, storage))
        return manifests, model_facts(config)
    except _UNUSABLE as err:
        raise UsageError(str(err)) from err


def _require_ended(job: Mapping[str, Any], options: PipelineOptions) -> None:
    _dataflow().require_ended(job, options)


def _total_rows(config: SeparateConfig, manifests: Sequence[ManifestFacts]) -> int | None:
    """Of all manifests, for the progress display; None where one would have to be read."""
    if not manifests:
        return len(config.rows)
    known = [each.rows for each in manifests if each.rows is not None]
    return sum(known) if len(known) == len(manifests) else None


def _dataflow() -> ModuleType:
    """Imported where it is needed: it brings Google's libraries, which take seconds."""
    return importlib.import_module("pipelines.runners.dataflow")


def _run_on_dataflow(
    plan: Plan, options: PipelineOptions, total: int | None, record: dict[str, Any], lock: Lock
) -> Outcome | None:
    """Submits and waits; None where the job was only left as a template."""

    def submitted(job: Any) -> None:
        record.update(status=SUBMITTED, job=dataclasses.asdict(job))
        lock.name_job(record["job"])
        write_record(plan.storage, plan.uri(FILE), record)

    runner = _dataflow().runner_for(plan.config.execution, submitted)
    template = _dataflow().template_of(options)
    if template is None:
        return run_plan(plan, options, total, runner, runner.counts, check=lock.check)
    run_graph(SeparateManifest(plan), plan.config.execution, options, runner)
    write_record(plan.storage, plan.uri(FILE), {**record, "status": SUBMITTED})
    lock.leave_to(f"the template {template}")
    sys.stdout.write(f"the job was left at {template}, to be submitted from there\n")
    return None


def model_facts(config: SeparateConfig) -> ModelFacts:
    """Loads the models: in this process they are then there; elsewhere they are let go of again.

    Raises:
        UnknownModelError: a name that no model has.
        CheckpointError: weights cannot be had.
        ValueError: the model cannot be used as it is asked to be.
    """
    if not config.execution.is_local:  # the launcher needs none of the workers' devices
        config = dataclasses.replace(config, device="cpu")
    loaded = model_cache.load_model(model_choice(config))
    if (
        config.scorer == model_cache.OWN
    ):  # a baseline has no CLAP of its own, but says whose to take
        config = dataclasses.replace(config, scorer=loaded.card.scorer)
    scorer = scorer_choice(config)
    facts = ModelFacts(
        rate_hz=loaded.separator.sample_rate_hz,
        window_samples=loaded.separator.window_samples,
        scorer=config.scorer,
        capabilities=loaded.separator.capabilities,
        digests={
            "model_sha256": loaded.model_sha256,
            "clap_sha256": loaded.clap_sha256,
            "scorer_sha256": None if scorer is None else model_cache.load_scorer(scorer).digest,
        },
    )
    if not config.execution.in_process:
        model_cache.forget()
    return facts


@contextmanager
def _recorded(
    storage: Storage, config: SeparateConfig, record: dict[str, Any], lock: Lock
) -> Iterator[None]:
    """Writes into ``run.json`` how a run ended that did not end well."""
    uri = join(config.output, FILE)
    try:
        yield
    except LockLostError:  # what is there is another run's by now
        raise
    except KeyboardInterrupt:
        if "job" in record:
            lock.leave_to()
            raise JobGoesOnError(f"Dataflow job {record['job']['id']} goes on") from None
        if not config.execution.ends_with_launcher:
            lock.leave_to(config.execution.runner)
        write_record(storage, uri, {**record, "status": "interrupted"})
        raise
    except BaseException as err:
        cause = first_cause(err, config.secrets)
        details: str | None = join(config.output, ERROR_FILE)
        story = redact("".join(traceback.format_exception(err)), config.secrets)
        try:
            write_record(storage, uri, {**record, "status": "failed", "error": cause})
            storage.write_bytes(join(config.output, ERROR_FILE), story.encode("utf-8", "replace"))
        except OSError:  # a full disk, say: what is told on the screen must then do
            details = None
        raise RunFailedError(cause, details) from err


def _finished(record: Mapping[str, Any], outcome: Outcome) -> dict[str, Any]:
    """The record of a run that has done its work."""
    return {
        **record,
        "status": "finished",
        "books": dataclasses.asdict(outcome.books),
        **outcome.measurements.to_json(),
        "audio_s": outcome.measurements.audio_s,
        "wall_s": round(outcome.wall_s, 3),
    }


def _finish(plan: Plan, resumed: Resumed, outcome: Outcome) -> int:
    """Tidies up and says what came of a run that ``run.json`` calls finished."""
    config, books = plan.config, outcome.books
    with finishing(config.secrets):
        remove_working_files(plan.storage, config.output)
    outcome.measurements.log()
    with finishing(config.secrets):
        for line in resumed_lines(resumed):
            say(line)
        for text in closing_lines(plan, books, outcome.measurements, wall_s=outcome.wall_s):
            sys.stdout.write(redact(text) + "\n")
    if books.failure_rate > config.max_failure_rate:
        sys.stdout.write(
            f"{books.failure_rate:.1%} of the rows failed; "
            f"--max_failure_rate allows {config.max_failure_rate:.1%}\n"
        )
        return EXIT_FAILURE_RATE
    return EXIT_OK


def run_separate(config: SeparateConfig, options: PipelineOptions) -> int:
    """As :func:`separate`, but what goes wrong with the job is said in a line, not raised.

    Raises:
        UsageError: as :func:`separate`, or the project's packages are not its own.
    """
    try:
        check_packages()
        return separate(config, options)
    except JobGoesOnError as err:
        sys.stderr.write(f"no longer waiting: {err}; --resume closes the run when it has ended\n")
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        storage_of(config).discard_unfinished(config.output)
        sys.stderr.write("interrupted; only complete files are left, --resume goes on from here\n")
        return EXIT_INTERRUPTED
    except PackageCollisionError as err:
        raise UsageError(str(err)) from err
    except UsageError:
        raise
    except LockLostError as err:
        sys.stderr.write(f"error: this run was stopped: {err}\n")
        return EXIT_JOB_FAILED
    except RunFailedError as err:
        sys.stderr.write(f"error: the job failed: {err}\n")
        details = "" if err.details is None else f"Details are in {redact(err.details)}; "
        sys.stderr.write(f"{details}--resume goes on from here\n")
        return EXIT_JOB_FAILED
    except Exception as err:
        return failed(err, config.secrets)
