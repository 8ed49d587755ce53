"""The Dockerfile agrees with the rest of the project, and its steps do what they say."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from images import dockerfile
from pipelines.preflight import PACKAGES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def parsed() -> dockerfile.Dockerfile:
    return dockerfile.parse(ROOT / "Dockerfile")


def pinned(name: str) -> str:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    (version,) = re.findall(rf"^{re.escape(name)}==(\S+)$", text, flags=re.MULTILINE)
    return version


def test_beams_launcher_is_of_the_pinned_version(parsed: dockerfile.Dockerfile) -> None:
    assert parsed.arguments["BEAM_IMAGE"] == f"apache/beam_python3.11_sdk:{pinned('apache-beam')}"


@pytest.mark.parametrize("image", ["PYTHON_IMAGE", "CUDA_IMAGE"])
def test_base_images_are_pinned_by_digest(image: str, parsed: dockerfile.Dockerfile) -> None:
    assert re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", parsed.arguments[image])


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_every_base_is_a_stage_or_an_argument(variant: str, parsed: dockerfile.Dockerfile) -> None:
    values = parsed.arguments | {"VARIANT": variant}
    bases = {dockerfile.expand(stage.base, values) for stage in parsed.stages.values()}
    images = {value for key, value in values.items() if key.endswith("_IMAGE")}
    assert bases - set(parsed.stages) == images
    assert variant in bases


def test_what_is_copied_exists_and_reaches_the_build(parsed: dockerfile.Dockerfile) -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    sources = {
        source
        for stage in parsed.stages.values()
        for copy in stage.named("COPY")
        if copy.option("from") is None
        for source in copy.words()[:-1]
    }
    assert {source for source in sources if not (ROOT / source).exists()} == set()
    assert {f"!{source}" for source in sources} == {line for line in ignored if line[0] == "!"}
    assert sources >= set(PACKAGES)


def test_the_worker_starts_beams_launcher_in_the_environment_that_was_filled(
    parsed: dockerfile.Dockerfile,
) -> None:
    name, worker = list(parsed.stages.items())[-1]
    assert name == "worker"
    (entrypoint,) = worker.named("ENTRYPOINT")
    assert json.loads(entrypoint.text) == ["/opt/apache/beam/boot"]
    environment = [instruction.text for instruction in worker.named("ENV")]
    assert environment == ["RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1"]


def test_the_commands_run_as_an_unprivileged_user(parsed: dockerfile.Dockerfile) -> None:
    (user,) = parsed.stages["cli"].named("USER")
    assert int(user.text) > 0


def test_the_template_starts_dataflows_launcher_on_a_script_that_is_there(
    parsed: dockerfile.Dockerfile,
) -> None:
    template = parsed.stages["template"]
    (copied,) = template.named("COPY")
    (entrypoint,) = template.named("ENTRYPOINT")
    assert copied.option("from") == "launcher"
    assert json.loads(entrypoint.text) == [copied.words()[-1]]
    (script,) = (words for words in map(dockerfile.assignment, _environment(template)))
    assert script == ("FLEX_TEMPLATE_PYTHON_PY_FILE", "/opt/clapsep/launch.py")
    (written,) = template.named("RUN")
    assert "> launch.py" in written.text  # WORKDIR is /opt/clapsep


def _environment(stage: dockerfile.Stage) -> list[str]:
    return [instruction.text for instruction in stage.named("ENV")]


def test_nothing_is_downloaded_once_the_image_is_built(parsed: dockerfile.Dockerfile) -> None:
    last = parsed.stages["application"].instructions[-1]
    assert (last.name, last.text) == ("ENV", "HF_HUB_OFFLINE=1")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None,
    reason="needs root on Linux, for mounts",
)
def test_the_steps_can_be_replayed_in_a_clean_environment(tmp_path: Path) -> None:
    """Installs everything anew: some minutes, and a few gigabytes while it lasts."""
    script = ROOT / "tests" / "images" / "replay.py"
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    weights = f"WEIGHTS=/opt/clapsep/LICENSE#{digest}"  # of an image, any file will do
    command = [sys.executable, str(script), "--target", "cli", "--build-arg", weights]
    command.append(str(tmp_path / "work"))
    result = subprocess.run(command, capture_output=True, text=True)
    shutil.rmtree(tmp_path / "work", ignore_errors=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert digest in result.stdout
    assert "usage:" in result.stdout.lower()
