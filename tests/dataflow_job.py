"""The job that ``pipelines.separate`` submits to Dataflow, as one can read it, and its snapshot.

``PYTHONPATH=. python tests/dataflow_job.py`` submits to the server in ``cloud.py`` and writes the
snapshot anew; the difference is then to be read before it is committed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apache_beam.portability.api import beam_runner_api_pb2

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cloud

ROOT = Path(__file__).resolve().parents[1]
SNAPSHOT = Path(__file__).resolve().parent / "pipeline" / "dataflow_job.json"
BUCKET = "test-bucket"
MANIFEST, OUTPUT = f"gs://{BUCKET}/rows.jsonl", f"gs://{BUCKET}/out"
IMAGE = "us-docker.pkg.dev/test-project/images/clapsep:1"
ACCELERATOR = (
    "type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver;use_nvidia_mps"
)
ROW = {"id": "a", "mixture_uri": f"gs://{BUCKET}/a.wav", "positive_text": "a dog barking"}
BASIC = {
    "manifest": MANIFEST,
    "output": OUTPUT,
    "storage_options": '{"gs": {"token": "anon"}}',
    "runner": "DataflowRunner",
    "project": cloud.PROJECT,
    "region": cloud.REGION,
    "temp_location": f"gs://{BUCKET}/temp",
    "staging_location": f"gs://{BUCKET}/staging",
    "job_name": "clapsep-test",
    "sdk_container_image": IMAGE,
    "accelerator": ACCELERATOR,
    "min_ram": "16GB",
}
FULL = BASIC | {
    "machine_type": "e2-standard-4",
    "cpu_count": "8",
    "max_active_bundles_per_worker": "16",
    "disk_size_gb": "100",
    "num_workers": "2",
    "max_num_workers": "20",
    "autoscaling_algorithm": "THROUGHPUT_BASED",
    "number_of_worker_harness_threads": "2",
    "labels": "team=audio",
    "batch_size": "32",
}


def flags(given: Mapping[str, str], endpoint: str) -> list[str]:
    """A command line for the server at ``endpoint``."""
    named = [f"--{name}={value}" for name, value in given.items()]
    return [*named, f"--dataflow_endpoint={endpoint}", "--no_auth", "--progress=none"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What the server was given, and what the user saw."""

    job: dict[str, Any]
    objects: dict[str, bytes]
    asked: list[str]
    result: subprocess.CompletedProcess[str]

    @property
    def pipeline(self) -> beam_runner_api_pb2.Pipeline:
        """The staged graph."""
        (data,) = (data for key, data in self.objects.items() if key.endswith("/pipeline.pb"))
        return beam_runner_api_pb2.Pipeline.FromString(data)


def source_tree(folder: Path, *without: str) -> Path:
    """A copy of what the source distribution is made from, ``without`` some of the files."""
    folder.mkdir()
    names = ("setup.py", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE", "NOTICE")
    for name in (*names, "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("terminal", "model", "manifests", "transforms", "pipelines"):
        skip = shutil.ignore_patterns("__pycache__", *without)
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    return folder / "setup.py"


def submit(folder: Path) -> Submission:
    """``python -m pipelines.separate`` with every option of interest, to its end."""
    with cloud.serving() as server:
        server.objects[f"{BUCKET}/rows.jsonl"] = json.dumps(ROW).encode()
        row_counts = {"rows": 1, "stems": 1, "metrics_files": 1}
        server.work = lambda: server.objects.update(
            {f"{BUCKET}/out/_work/row_counts.json": json.dumps(row_counts).encode()}
        )
        server.metrics = [
            *cloud.counter("WriteStems", "audio_msec", 5_000),
            *cloud.distribution("SeparateClips", "network_msec", 2, 90, 40, 50),
        ]
        setup_file = source_tree(folder / "source", "*.safetensors", "*.flac", "*.png")
        given = FULL | {"setup_file": str(setup_file)}
        command = [sys.executable, "-m", "pipelines.separate", *flags(given, server.url)]
        result = subprocess.run(
            command,
            env={**os.environ, **server.environment(), "PYTHONPATH": str(ROOT)},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=280,
        )
        (job,) = server.jobs or [{}]
        return Submission(
            job=job, objects=dict(server.objects), asked=list(server.asked), result=result
        )


def steps(pipeline: beam_runner_api_pb2.Pipeline) -> list[str]:
    """Steps in the order in which elements meet them: kind, ``*`` for one with hints, and name."""
    components = pipeline.components
    producers = {
        output: key
        for key, step in components.transforms.items()
        if not step.subtransforms
        for output in step.outputs.values()
    }
    ordered: dict[str, None] = {}

    def visit(key: str) -> None:
        step = components.transforms[key]
        for name in sorted(step.inputs):
            if producers[step.inputs[name]] not in ordered:
                visit(producers[step.inputs[name]])
        ordered.setdefault(key)

    for key in sorted(producers.values(), key=lambda key: components.transforms[key].unique_name):
        visit(key)
    found = []
    for step in map(components.transforms.__getitem__, ordered):
        hints = components.environments[step.environment_id].resource_hints
        kind = re.sub(r"^beam:transform:|:v\d+$", "", step.spec.urn)
        found.append(f"{kind}{' *' if hints else ''}  {step.unique_name}")
    return found


def readable(submission: Submission) -> dict[str, Any]:
    """The job without what differs from one submission to the next, or from Beam alone."""
    job = json.loads(json.dumps(submission.job))
    del job["clientRequestId"]
    environment = job["environment"]
    options = environment["sdkPipelineOptions"]["options"]
    given = [*FULL, "setup_file", "default_sdk_harness_log_level", "save_main_session"]
    # Flags of ours are in run.json and not among Beam's options, which Dataflow shows.
    environment["sdkPipelineOptions"] = {n: options[n] for n in sorted(given) if n in options}
    (pool,) = environment["workerPools"]
    for image in pool["sdkHarnessContainerImages"]:
        del image["capabilities"]
    pool["sdkHarnessContainerImages"].sort(key=lambda image: str(image["environmentId"]))
    pool["packages"].sort(key=lambda package: str(package["name"]))
    found = {
        "job": job,
        "environments": {
            key: {urn: value.decode() for urn, value in each.resource_hints.items()}
            for key, each in sorted(submission.pipeline.components.environments.items())
        },
        "steps": steps(submission.pipeline),
    }
    text = json.dumps(found, indent=2, sort_keys=True)
    text = re.sub(r"clapsep-test\.\d+\.\d+", "clapsep-test.TIME", text)
    text = re.sub(r"http://localhost:\d+", "http://localhost:PORT", text)
    text = re.sub(r'"[^"]*/setup\.py"', '"setup.py"', text)
    text = re.sub(r"core\.py:\d+", "core.py", text)
    readable_job: dict[str, Any] = json.loads(text)
    return readable_job


def main() -> None:
    """Writes the snapshot."""
    with tempfile.TemporaryDirectory() as folder:
        submission = submit(Path(folder))
    if submission.result.returncode != 0:
        raise SystemExit(submission.result.stdout + submission.result.stderr)
    text = json.dumps(readable(submission), indent=2, sort_keys=True)
    SNAPSHOT.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
