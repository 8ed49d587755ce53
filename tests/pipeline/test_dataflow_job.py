"""The job that the command hands to Dataflow: what is submitted, staged and said of it."""

from __future__ import annotations

import base64
import bz2
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator

import pytest
from apache_beam.portability.api import beam_runner_api_pb2

import cloud
import dataflow_job
from pipelines.preflight import PACKAGES
from pipelines.runners import dataflow

pytestmark = pytest.mark.timeout(300)
STAGE = "/SeparateMixtures/"


@pytest.fixture(scope="module")
def submission(tmp_path_factory: pytest.TempPathFactory) -> dataflow_job.Submission:
    """The command as a user gives it, in a process of its own: there it is ``__main__``."""
    found = dataflow_job.submit(tmp_path_factory.mktemp("submission"))
    assert found.result.returncode == 0, found.result.stderr
    return found


def test_the_job_is_the_one_in_the_snapshot(submission: dataflow_job.Submission) -> None:
    """``PYTHONPATH=. python tests/dataflow_job.py`` writes it anew."""
    expected = json.loads(dataflow_job.SNAPSHOT.read_text(encoding="utf-8"))
    assert dataflow_job.readable(submission) == expected


def test_workers_are_those_that_were_asked_for(submission: dataflow_job.Submission) -> None:
    environment = submission.job["environment"]
    (pool,) = environment["workerPools"]
    assert (pool["machineType"], pool["diskSizeGb"]) == ("e2-standard-4", 100)
    assert (pool["numWorkers"], pool["numThreadsPerWorker"]) == (2, 2)
    assert pool["autoscalingSettings"] == {"algorithm": 2, "maxNumWorkers": 20}
    images = {each["containerImage"] for each in pool["sdkHarnessContainerImages"]}
    assert images == {dataflow_job.IMAGE}
    assert submission.job["labels"] == {"team": "audio"}
    assert (
        "use_multiple_sdk_containers" in environment["experiments"]
    )  # Beam's default; MPS needs it
    assert "no_use_multiple_sdk_containers" not in environment["experiments"]


def test_the_machines_with_the_gpu_are_others(submission: dataflow_job.Submission) -> None:
    """Two pools: that of the job, and the one that right fitting makes from the hints."""
    (pool,) = submission.job["environment"]["workerPools"]
    asked = {
        dataflow.accelerator_of(value.decode()).machine_type
        for environment in submission.pipeline.components.environments.values()
        for urn, value in environment.resource_hints.items()
        if urn == "beam:resources:accelerator:v1"
    }
    assert asked == {"g2-standard-8"}
    assert pool["machineType"] not in asked


def test_only_the_separation_step_asks_for_an_accelerator(
    submission: dataflow_job.Submission,
) -> None:
    components = submission.pipeline.components
    hinted, plain = set(), set()
    for step in components.transforms.values():
        if step.environment_id and not step.subtransforms:
            hints = dict(components.environments[step.environment_id].resource_hints)
            (hinted if hints else plain).add(step.unique_name)
            if hints:
                assert hints == {
                    "beam:resources:accelerator:v1": dataflow_job.ACCELERATOR.encode(),
                    "beam:resources:min_ram_bytes:v1": b"16000000000",
                    "beam:resources:cpu_count:v1": b"8",
                    "beam:resources:max_active_bundles_per_worker:v1": b"16",
                }
    assert hinted
    assert all(STAGE in name for name in hinted)
    assert not any(STAGE in name for name in plain)


def test_the_source_distribution_of_all_packages_is_staged(
    submission: dataflow_job.Submission,
) -> None:
    (data,) = (data for key, data in submission.objects.items() if key.endswith("workflow.tar.gz"))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {f"{package}/__init__.py" for package in PACKAGES} <= names
    assert {"setup.py", "manifests/examples/demo.csv", "pipelines/separate.py"} <= names
    assert not {name for name in names if name.startswith(("tests/", "bench/"))}
    for environment in submission.pipeline.components.environments.values():
        staged = [
            beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(each.role_payload)
            for each in environment.dependencies
        ]
        assert "workflow.tar.gz" in {each.staged_name for each in staged}


def _pickled(pipeline: beam_runner_api_pb2.Pipeline) -> Iterator[bytes]:
    """What was pickled into the graph: zlib or bz2, in base64, anywhere in a step's payload."""
    for step in pipeline.components.transforms.values():
        for found in re.findall(rb"[A-Za-z0-9+/]{80,}={0,2}", step.spec.payload):
            raw = base64.b64decode(found[: len(found) // 4 * 4])
            for unpack in (zlib.decompress, bz2.decompress):
                try:
                    yield unpack(raw)
                except (zlib.error, OSError, ValueError):
                    continue


def test_nothing_of_the_started_module_is_pickled(submission: dataflow_job.Submission) -> None:
    pickled = list(_pickled(submission.pipeline))
    everything = b"".join(pickled)
    for known in (b"transforms.writing", b"transforms.separation", b"transforms.tables.summary"):
        assert known in everything  # so that the search below would find something
    assert b"__main__" not in everything
    assert b"__main__" not in submission.pipeline.SerializeToString()


def test_the_user_is_told_how_to_watch_stop_and_resume(
    submission: dataflow_job.Submission,
) -> None:
    said = submission.result.stderr
    place = f"{cloud.JOB_ID} --region={cloud.REGION} --project={cloud.PROJECT}"
    assert f"Dataflow job {cloud.JOB_ID} (clapsep-test) was submitted" in said
    console = "https://console.cloud.google.com/dataflow/jobs"
    assert f"{console}/{cloud.REGION}/{cloud.JOB_ID}?project={cloud.PROJECT}" in said
    assert f"gcloud dataflow jobs show {place}" in said
    assert f"gcloud dataflow jobs cancel {place}" in said
    assert "--resume" in said


def test_the_record_holds_the_job_and_its_counters(submission: dataflow_job.Submission) -> None:
    record = json.loads(submission.objects[f"{dataflow_job.BUCKET}/out/run.json"])
    assert record["status"] == "finished"
    assert record["job"] == {
        "id": cloud.JOB_ID,
        "name": "clapsep-test",
        "project": cloud.PROJECT,
        "region": cloud.REGION,
        "runner": "DataflowRunner",
    }
    assert record["counters"] == {"WriteStems/audio_msec": 5_000}
    assert record["distributions"]["SeparateClips/network_msec"]["mean"] == 45
    assert "1 clip (5 s of audio)" in submission.result.stdout
