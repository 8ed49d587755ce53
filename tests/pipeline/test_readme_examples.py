"""The README's first command and its Python example run as they stand, and agree."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPT = "import sys; from pipelines.clapsep import run; sys.exit(run())"


def first_block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_the_first_command_and_the_python_example_give_the_same_stem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, command = first_block("sh").replace("\\\n", "").split(" && ")
    assert make == "make environment"
    script, *words = shlex.split(command.replace("out/dog", str(tmp_path / "out")))
    assert script == ".venv/bin/clapsep"
    subprocess.run([sys.executable, "-c", SCRIPT, *words], cwd=ROOT, check=True)
    stem = re.search(r"The stem is `out/dog/(\S+)`", TEXT)
    assert stem
    by_command, rate_hz = soundfile.read(tmp_path / "out" / stem[1])

    code = first_block("python")
    for name in ("dog.wav", "rest.wav"):
        code = code.replace(f'"{name}"', repr(os.fspath(tmp_path / name)))
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - our own page
    by_python, its_rate_hz = soundfile.read(tmp_path / "dog.wav")
    assert its_rate_hz == rate_hz
    np.testing.assert_allclose(by_python, by_command, rtol=0, atol=2**-15)
    assert np.abs(by_command).max() > 0.01
    rest, _ = soundfile.read(tmp_path / "rest.wav")
    samples, _ = soundfile.read(ROOT / "manifests/examples/audio/mixture_dog_river.flac")
    np.testing.assert_allclose(by_python + rest, samples, rtol=0, atol=2**-14)
