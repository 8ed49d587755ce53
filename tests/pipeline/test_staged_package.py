"""What Dataflow's workers get, in the place where they would have it: the staged graph and package.

The package that the command staged is installed into an environment that has nothing else of this
project, and the staged graph runs there: a job service, and a pool of workers for each of its two
kinds of machines.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2, endpoints_pb2
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.runner import PipelineState

import cloud
import dataflow_job
import installations
import tone_runs
from pipelines import separate
from ports import free_port, wait_for_port

START_WAIT_S = 300.0
BUCKET = f"gs://{dataflow_job.BUCKET}"
NEEDS_GPU = ("accelerator", "machine_type")  # a worker without the one that is asked for fails
GIVEN = {name: value for name, value in dataflow_job.FULL.items() if name not in NEEDS_GPU}
TOLERATES = {"max_failure_rate": "0.5"}


def _inputs(folder: Path, server: cloud.Cloud) -> Path:
    """Rows on this machine and in the bucket: one by an example, one missing, one twice."""
    rows = tone_runs.write_mixtures(folder / "clips", count=8)
    rows[2]["positive_audio_uris"] = [rows[4]["reference_uri"]]
    rows[3]["mixture_uri"] = str(folder / "clips" / "gone.wav")
    rows.append({**rows[0]})
    manifest = tone_runs.write_manifest(folder / "rows.jsonl", rows)
    there = manifest.read_text(encoding="utf-8").replace(str(folder / "clips"), BUCKET)
    server.objects[f"{dataflow_job.BUCKET}/rows.jsonl"] = there.encode()
    for path in (folder / "clips").iterdir():
        server.objects[f"{dataflow_job.BUCKET}/{path.name}"] = path.read_bytes()
    return manifest


@contextmanager
def _submitted(folder: Path, server: cloud.Cloud) -> Iterator[subprocess.Popen[str]]:
    """The command, which has staged and submitted everything and waits for the job."""
    server.states = ["JOB_STATE_RUNNING"]
    setup_file = str(dataflow_job.source_tree(folder / "source"))
    given = {**GIVEN, **TOLERATES, "setup_file": setup_file}
    command = [sys.executable, "-m", "pipelines.separate", *dataflow_job.flags(given, server.url)]
    environment = {**os.environ, **server.environment(), "PYTHONPATH": str(dataflow_job.ROOT)}
    with (folder / "command.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=log, stderr=log, text=True
        )
    try:
        deadline_s = time.monotonic() + START_WAIT_S
        while not server.jobs:
            said = (folder / "command.log").read_text(encoding="utf-8")
            assert process.poll() is None and time.monotonic() < deadline_s, said  # noqa: PT018
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


def _staged(server: cloud.Cloud, name: str) -> bytes:
    (data,) = (data for key, data in server.objects.items() if key.endswith(f"/{name}"))
    return data


@contextmanager
def _started(
    installed: installations.Installation, folder: Path, environment: Mapping[str, str]
) -> Iterator[dict[str, str]]:
    """A job service and two pools, each in a folder of its own; gives their addresses by name."""
    ports = {name: free_port() for name in ("service", "plain", "hinted")}
    words = {
        "service": ("portability.local_job_service_main", "--port", str(ports["service"])),
        "plain": ("worker.worker_pool_main", "--service_port", str(ports["plain"])),
        "hinted": ("worker.worker_pool_main", "--service_port", str(ports["hinted"])),
    }
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for name, (module, *arguments) in words.items():
            (folder / name).mkdir()
            with (folder / f"{name}.log").open("wb") as log:
                command = [installed.python, "-m", f"apache_beam.runners.{module}", *arguments]
                processes.append(
                    subprocess.Popen(
                        command, env=dict(environment), cwd=folder / name, stdout=log, stderr=log
                    )
                )
        for port in ports.values():
            wait_for_port(port, START_WAIT_S)
        yield {name: f"localhost:{port}" for name, port in ports.items()}
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def _on_pools(
    pipeline: beam_runner_api_pb2.Pipeline, addresses: Mapping[str, str]
) -> beam_runner_api_pb2.Pipeline:
    """The staged graph, with pools in the place of containers: which is all that is changed."""
    for environment in pipeline.components.environments.values():
        assert environment.urn == common_urns.environments.DOCKER.urn
        pool = addresses["hinted" if environment.resource_hints else "plain"]
        payload = beam_runner_api_pb2.ExternalPayload(
            endpoint=endpoints_pb2.ApiServiceDescriptor(url=pool)
        )
        environment.urn = common_urns.environments.EXTERNAL.urn
        environment.payload = payload.SerializeToString()
        del environment.dependencies[:]  # installed before, as a worker's start does
    return pipeline


def _copy(server: cloud.Cloud, folder: Path) -> Path:
    """What lies in the job's output folder, on this machine."""
    prefix = f"{dataflow_job.BUCKET}/out/"
    for key, data in list(server.objects.items()):
        if key.startswith(prefix):
            path = folder / key.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_staged_graph_on_two_pools_of_workers_that_have_the_staged_package_alone(
    tmp_path: Path,
) -> None:
    with cloud.serving() as server:
        manifest = _inputs(tmp_path, server)
        with _submitted(tmp_path, server) as command:
            package = tmp_path / "workflow.tar.gz"
            package.write_bytes(_staged(server, "workflow.tar.gz"))
            installed = installations.install(package, tmp_path / "installed", clean=True)
            tests = installed.run("-c", "import tone_runs")
            assert "No module named 'tone_runs'" in tests.stderr
            graph = beam_runner_api_pb2.Pipeline.FromString(_staged(server, "pipeline.pb"))
            environment = {**installed.environment(), **server.environment()}
            with _started(installed, tmp_path, environment) as addresses:
                options = PipelineOptions(job_endpoint=addresses["service"])
                job = PortableRunner().run_portable_pipeline(_on_pools(graph, addresses), options)
                assert job.wait_until_finish() == PipelineState.DONE
            server.states = ["JOB_STATE_DONE"]
            code = command.wait(START_WAIT_S)
            assert code == 0, (tmp_path / "command.log").read_text(encoding="utf-8")
        copy = _copy(server, tmp_path / "copy")
    for name in ("plain", "hinted"):
        assert "Starting worker" in (tmp_path / f"{name}.log").read_text(encoding="utf-8")

    local = tmp_path / "local"
    words = ["--manifest", str(manifest), "--output", str(local), *tone_runs.QUIET]
    words += [f"--{name}={value}" for name, value in TOLERATES.items()]
    assert separate.run(words) == 0
    tone_runs.assert_same_results(local, copy)
    there, here = tone_runs.record(copy), tone_runs.record(local)
    assert there["status"] == "finished"
    assert there["row_counts"] == here["row_counts"]
    letters = [
        [(row["id"], row["error_type"]) for row in tone_runs.table(output, "dead_letters")]
        for output in (copy, local)
    ]
    assert letters[0] == letters[1]
    ids = [row["id"] for row in tone_runs.table(copy, "metrics")] + [id for id, _ in letters[0]]
    assert sorted(ids) == sorted([f"clip/{number}" for number in range(8)] + ["clip/0"])
