"""The main job handed to Dataflow: what its answers become, and what is said."""

from __future__ import annotations

import functools
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gcsfs.core
import pytest
import torch
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns, python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

import cloud
import dataflow_job
import jobs
import tone_runs
from model import devices
from pipelines import export, flags, runners

pytestmark = pytest.mark.timeout(300)
JOBS = f"/v1b3/projects/{cloud.PROJECT}/locations/{cloud.REGION}/jobs"
CREATE, POLL = f"POST {JOBS}", f"GET {JOBS}/{cloud.JOB_ID}"


@pytest.fixture(scope="module")
def server() -> Iterator[cloud.Cloud]:
    with cloud.serving() as found:
        yield found


@pytest.fixture
def dataflow(server: cloud.Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[cloud.Cloud]:
    """A fresh cloud with a manifest of one row; waiting for it takes no time."""
    server.reset()
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.02)))
    server.objects[f"{dataflow_job.BUCKET}/rows.jsonl"] = json.dumps(dataflow_job.ROW).encode()
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    gcsfs.core.GCSFileSystem.clear_instance_cache()
    with tone_runs.tones_as_models():
        yield server
    gcsfs.core.GCSFileSystem.clear_instance_cache()
    root.setLevel(level)
    root.handlers[:] = handlers


OF_SEPARATE = ("accelerator", "min_ram")
L4 = "type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver"


def _run(
    server: cloud.Cloud,
    *extra: str,
    without: str = "",
    job: jobs.Job = jobs.JOBS["separate"],
    stems: str = f"gs://{dataflow_job.BUCKET}/stems",
) -> int:
    left_out = [without, *(() if job.command is flags.SEPARATE else OF_SEPARATE)]
    given = {name: value for name, value in dataflow_job.BASIC.items() if name not in left_out}
    words = dataflow_job.flags(given, server.url)
    own = [f"--stems={stems}"] if job.command is flags.SCORE else []
    return job.run([*words, *own, *extra])


def _record(server: cloud.Cloud) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(server.objects[f"{dataflow_job.BUCKET}/out/run.json"])
    return record


def _play(server: cloud.Cloud) -> None:
    """Does what the workers would: runs the staged graph, and reports its metrics."""
    (data,) = (data for key, data in server.objects.items() if key.endswith("/pipeline.pb"))
    pipeline = beam_runner_api_pb2.Pipeline.FromString(data)
    for environment in pipeline.components.environments.values():
        assert environment.urn == common_urns.environments.DOCKER.urn
        environment.urn, environment.payload = python_urns.EMBEDDED_PYTHON, b""
        del environment.dependencies[:]
    result = FnApiRunner().run_via_runner_api(pipeline, PipelineOptions([]))
    result.wait_until_finish()
    found = result.metrics().query(MetricsFilter())
    for entry in found["counters"]:
        metric = entry.key.metric
        server.metrics += cloud.counter(metric.namespace, metric.name, entry.committed)
    for entry in found["distributions"]:
        metric, values = entry.key.metric, entry.committed.data
        numbers = (values.count, values.sum, values.min, values.max)
        server.metrics += cloud.distribution(metric.namespace, metric.name, *numbers)


def test_a_worker_without_the_gpu_that_was_asked_for_fails_in_setup(
    dataflow: cloud.Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On its CPU it would go on, a hundred times slower, and be paid for as a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said: list[str] = []

    def play() -> None:
        try:
            _play(dataflow)
        except (RuntimeError, ValueError) as err:
            said.append(str(err))
        _finish(dataflow)

    dataflow.work = play
    _run(dataflow)
    (message,) = said
    assert "--accelerator asked for a GPU, which this machine cannot compute on" in message
    assert f"torch {torch.__version__} is built " in message
    assert "NVIDIA driver" in message


def test_the_submitted_graph_gives_what_a_local_run_gives(
    dataflow: cloud.Cloud,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server plays the workers with the graph that was staged, from bucket to bucket."""
    monkeypatch.setattr(devices, "required_gpu", lambda _: "cpu")
    rows = tone_runs.write_mixtures(tmp_path / "clips")
    local = tmp_path / "local"
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    assert tone_runs.run("--manifest", manifest, "--output", local) == 0
    there = json.dumps(rows[:]).replace(str(tmp_path / "clips"), f"gs://{dataflow_job.BUCKET}")
    lines = "\n".join(json.dumps(row) for row in json.loads(there))
    dataflow.objects[f"{dataflow_job.BUCKET}/rows.jsonl"] = lines.encode()
    for path in (tmp_path / "clips").iterdir():
        dataflow.objects[f"{dataflow_job.BUCKET}/{path.name}"] = path.read_bytes()

    dataflow.work = functools.partial(_play, dataflow)
    assert _run(dataflow) == 0, capsys.readouterr().err
    copy = tmp_path / "copy"
    prefix = f"{dataflow_job.BUCKET}/out/"
    for key, data in list(dataflow.objects.items()):
        if key.startswith(prefix):
            path = copy / key.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    tone_runs.assert_same_results(local, copy)
    record = tone_runs.record(copy)
    assert (record["status"], record["row_counts"]["stems"]) == ("finished", 6)
    assert record["counters"] == tone_runs.record(local)["counters"]
    assert not (copy / "_work").exists()


def _until(happened: Any) -> None:
    while not happened():
        time.sleep(0.01)


def _finish(server: cloud.Cloud) -> None:
    row_counts = {"rows": 1, "stems": 1, "metrics_files": 1}
    server.work = lambda: server.objects.update(
        {f"{dataflow_job.BUCKET}/out/_work/row_counts.json": json.dumps(row_counts).encode()}
    )


@pytest.mark.parametrize("name", ["score", "synthesize"])
def test_the_smaller_jobs_are_submitted_and_closed_alike(name: str, dataflow: cloud.Cloud) -> None:
    job = jobs.JOBS[name]
    _finish(dataflow)
    assert _run(dataflow, job=job) == flags.EXIT_OK
    record = _record(dataflow)
    assert (record["status"], record["row_counts"]["stems"]) == ("finished", 1)
    assert (record["job"]["id"], record["job"]["runner"]) == (cloud.JOB_ID, "DataflowRunner")
    assert f"{dataflow_job.BUCKET}/out/_work/lock.json" not in dataflow.objects


def test_what_fails_for_a_moment_is_asked_again(dataflow: cloud.Cloud) -> None:
    _finish(dataflow)
    dataflow.faults = {CREATE: [503, 503], POLL: [503, 503, 503]}
    assert _run(dataflow) == flags.EXIT_OK
    assert dataflow.asked.count(CREATE) == 3
    assert len(dataflow.jobs) == 1
    assert dataflow.asked.count(POLL) >= 4


def test_counters_that_cannot_be_had_do_not_fail_a_job_that_is_done(
    dataflow: cloud.Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    _finish(dataflow)
    dataflow.faults = {f"{POLL}/metrics": [403] * 20}
    assert _run(dataflow) == flags.EXIT_OK
    assert _record(dataflow)["counters"] == {}


@pytest.mark.parametrize(
    ("code", "advice"),
    [(403, "roles/dataflow.developer on project test-project"), (409, "another --job_name")],
)
def test_a_refusal_is_said_at_once_and_what_to_do(
    dataflow: cloud.Cloud, code: int, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dataflow.faults = {CREATE: [code]}
    assert _run(dataflow) == flags.EXIT_JOB_FAILED
    assert dataflow.asked.count(CREATE) == 1
    said = capsys.readouterr().err
    assert f"Dataflow did not take the job ({code}: " in said
    assert advice in said
    assert "Traceback" not in said
    assert _record(dataflow)["status"] == "failed"


def test_a_failed_job_is_said_with_its_last_error(
    dataflow: cloud.Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    dataflow.states = ["JOB_STATE_RUNNING", "JOB_STATE_FAILED"]
    message = {
        "id": "m",
        "time": cloud.TIME,
        "messageImportance": "JOB_MESSAGE_ERROR",
        "messageText": "Traceback (most recent call last):\nValueError: no such device",
    }
    dataflow.messages = [message]
    assert _run(dataflow) == flags.EXIT_JOB_FAILED
    said = capsys.readouterr().err
    assert f"Dataflow job {cloud.JOB_ID} ended as FAILED: ValueError: no such device" in said
    record = _record(dataflow)
    assert (record["status"], record["job"]["id"]) == ("failed", cloud.JOB_ID)


def test_a_cancelled_job_is_no_success(
    dataflow: cloud.Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    dataflow.states = ["JOB_STATE_RUNNING", "JOB_STATE_CANCELLED"]
    assert _run(dataflow) == flags.EXIT_JOB_FAILED
    assert "ended as CANCELLED: Dataflow gives no reason" in capsys.readouterr().err


def test_a_run_is_not_resumed_while_its_job_goes_on(
    dataflow: cloud.Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    dataflow.states = ["JOB_STATE_RUNNING", "JOB_STATE_FAILED"]
    assert _run(dataflow) == flags.EXIT_JOB_FAILED
    dataflow.states = ["JOB_STATE_RUNNING"]
    assert _run(dataflow, "--resume") == flags.EXIT_USAGE
    assert f"Dataflow job {cloud.JOB_ID} of that run is RUNNING" in capsys.readouterr().err
    dataflow.faults = {POLL: [404]}
    dataflow.states = ["JOB_STATE_RUNNING", "JOB_STATE_DONE"]
    _finish(dataflow)
    assert _run(dataflow, "--resume") == flags.EXIT_OK
    assert _record(dataflow)["attempt"] == 1


def test_results_are_not_deleted_while_their_job_goes_on(
    dataflow: cloud.Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    dataflow.states = ["JOB_STATE_RUNNING", "JOB_STATE_FAILED"]
    assert _run(dataflow) == flags.EXIT_JOB_FAILED
    dataflow.states = ["JOB_STATE_RUNNING"]
    before = dict(dataflow.objects)
    assert _run(dataflow, "--overwrite") == flags.EXIT_USAGE
    assert f"Dataflow job {cloud.JOB_ID} of that run is RUNNING" in capsys.readouterr().err
    assert dataflow.objects == before
    dataflow.states = ["JOB_STATE_FAILED", "JOB_STATE_RUNNING", "JOB_STATE_DONE"]
    _finish(dataflow)
    assert _run(dataflow, "--overwrite") == flags.EXIT_OK
    assert _record(dataflow)["attempt"] == 0


@pytest.mark.parametrize("name", jobs.JOBS)
def test_an_interrupt_stops_the_waiting_only(
    name: str,
    dataflow: cloud.Cloud,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = jobs.JOBS[name]
    dataflow.states = ["JOB_STATE_RUNNING"]

    def interrupted(*_: object) -> None:
        _until(lambda: POLL in dataflow.asked)
        raise KeyboardInterrupt

    started = runners._Job.start

    following: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        started(thread)
        following.append(thread)
        interrupted()

    monkeypatch.setattr(runners._Job, "start", start)
    assert _run(dataflow, job=job) == flags.EXIT_INTERRUPTED
    said = capsys.readouterr().err
    goes_on = f"no longer waiting: job {cloud.JOB_ID} of DataflowRunner goes on"
    advice = "the same command with --resume closes the run when the job has ended"
    assert f"after an interruption, {advice}.\n" in said
    assert said.endswith(f"{goes_on}; {advice}\n")
    assert _record(dataflow)["status"] == "submitted"
    lock = f"{dataflow_job.BUCKET}/out/_work/lock.json"
    assert json.loads(dataflow.objects[lock])["job"]["id"] == cloud.JOB_ID
    del dataflow.objects[f"{dataflow_job.BUCKET}/out/run.json"]  # the lock alone says it
    for flag in ("--resume", "--overwrite"):
        assert _run(dataflow, flag, job=job) == flags.EXIT_USAGE
        assert f"Dataflow job {cloud.JOB_ID} of that run is RUNNING" in capsys.readouterr().err
    dataflow.states = ["JOB_STATE_CANCELLED"]  # so that the thread that follows it ends
    following[0].join()


def test_a_dry_run_builds_the_job_and_leaves_nothing(
    dataflow: cloud.Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(dataflow.objects)
    assert _run(dataflow, "--dry_run=True") == flags.EXIT_OK
    assert "nothing was staged or submitted" in capsys.readouterr().out
    assert set(dataflow.objects) == before
    assert dataflow.jobs == []


def test_a_template_is_left_where_it_is_wanted(
    dataflow: cloud.Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    location = f"gs://{dataflow_job.BUCKET}/templates/job"
    assert _run(dataflow, f"--template_location={location}") == flags.EXIT_OK
    assert f"the job was left at {location}" in capsys.readouterr().out
    job = json.loads(dataflow.objects[f"{dataflow_job.BUCKET}/templates/job"])
    assert job["name"] == "clapsep-test"
    assert dataflow.jobs == []
    assert _record(dataflow)["status"] == "submitted"
    _finish(dataflow)
    for flag in ("--resume", "--overwrite"):
        assert _run(dataflow, flag) == flags.EXIT_USAGE
        said = capsys.readouterr().err
        assert f"left to the template {location}" in said
        assert "--force_unlock" in said
    assert _run(dataflow, "--resume", "--force_unlock") == flags.EXIT_OK
    assert f"{dataflow_job.BUCKET}/out/_work/lock.json" not in dataflow.objects


@pytest.mark.parametrize("flag", ["project", "region", "temp_location", "sdk_container_image"])
def test_what_is_missing_is_named_before_anything_is_done(
    dataflow: cloud.Cloud, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dataflow.asked.clear()
    assert _run(dataflow, without=flag) == flags.EXIT_USAGE
    assert f"--{flag}" in capsys.readouterr().err
    assert dataflow.asked == []


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        *(("separate", flag) for flag in ("manifest", "output", "temp_location")),
        ("synthesize", "output"),
        ("score", "manifest"),
    ],
)
def test_places_that_workers_cannot_reach_are_refused(
    name: str, flag: str, dataflow: cloud.Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    job = jobs.JOBS[name]
    assert _run(dataflow, f"--{flag}=here/it/is", without=flag, job=job) == flags.EXIT_USAGE
    assert "Dataflow's workers cannot reach it" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["model", "scorer"])
def test_weights_that_workers_cannot_reach_are_refused(
    flag: str, dataflow: cloud.Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = f"--{flag}=here/mine.safetensors"
    assert _run(dataflow, mine) == flags.EXIT_USAGE
    assert f"{mine}: Dataflow's workers cannot reach it" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["--mixture=gs://b/a.wav", "--recordings=gs://b/"])
@pytest.mark.parametrize("flag", ["--positive_audio", "--negative_audio"])
def test_example_clips_that_workers_cannot_reach_are_refused(
    given: str, flag: str, dataflow: cloud.Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = f"{flag}=/here/it/is.wav"
    assert _run(dataflow, given, clip, without="manifest") == flags.EXIT_USAGE
    assert f"{clip}: Dataflow's workers cannot reach it" in capsys.readouterr().err


def test_runs_that_workers_cannot_reach_are_not_exported(
    dataflow: cloud.Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {name: dataflow_job.BASIC[name] for name in ("output", "runner", "project", "region")}
    given |= {"temp_location": dataflow_job.BASIC["temp_location"], "runs": "/here/it/is"}
    assert export.run(dataflow_job.flags(given, dataflow.url)) == flags.EXIT_USAGE
    assert "--runs=/here/it/is: Dataflow's workers cannot reach it" in capsys.readouterr().err


def test_stems_that_workers_cannot_reach_are_refused(
    dataflow: cloud.Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    score = jobs.JOBS["score"]
    assert _run(dataflow, job=score, stems="/here/it/is") == flags.EXIT_USAGE
    assert "--stems=/here/it/is: Dataflow's workers cannot reach it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--accelerator=nvidia-l4"], "'nvidia-l4' is no part of an accelerator; expected type:"),
        (["--accelerator=type:nvidia-l4"], "has no count"),
        (["--accelerator=type:nvidia-l4;count:0"], "count:0 is no number of GPUs"),
        (["--accelerator=count:1;type:a;type:b"], "type stands there twice"),
        (["--accelerator=type:nvidia-l4;count:1"], "only machines of the family g2 have nvidia-l4"),
        (
            ["--accelerator=type:nvidia-l4;count:1;machine_type:n1-standard-8"],
            "machines of type n1-standard-8 have no nvidia-l4, which goes with g2",
        ),
        (
            ["--accelerator=type:nvidia-tesla-t4;count:1;machine_type:g2-standard-8"],
            "which goes with n1",
        ),
        (
            [f"--accelerator={L4}", "--machine_type=g2-standard-8"],
            "would run on machines with GPUs",
        ),
        ([f"--accelerator={L4}", "--flexrs_goal=COST_OPTIMIZED"], "FlexRS has neither GPUs nor"),
        (
            [f"--accelerator={L4}", "--dataflow_service_options=worker_accelerator=type:nvidia-l4"],
            "goes without --accelerator",
        ),
        (
            [f"--accelerator={L4};use_nvidia_mps", "--experiments=no_use_multiple_sdk_containers"],
            "leaves only one",
        ),
        ([f"--accelerator={L4.replace('count:1', 'count:2')};use_nvidia_mps"], "take count:1"),
        ([f"--accelerator={L4}", "--device=cpu"], "would be paid for and not used"),
        (["--cpu_count=0"], "--cpu_count=0: expected at least 1"),
    ],
)
def test_accelerators_that_workers_would_not_have_are_refused(
    dataflow: cloud.Cloud, given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(dataflow, *given, without="accelerator") == flags.EXIT_USAGE
    assert message in capsys.readouterr().err
    assert dataflow.jobs == []
