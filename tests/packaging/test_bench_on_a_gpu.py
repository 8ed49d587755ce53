"""The bench for a GPU runs where there is little: here, without one, and on a bare machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BARE = """
import importlib.machinery, runpy, sys

INSTALLED = {
    "torch", "functorch", "torchgen", "numpy", "soundfile", "cffi", "filelock", "fsspec", "jinja2",
    "markupsafe", "mpmath", "networkx", "setuptools", "sympy", "typing_extensions",
}
OURS = {
    "bare", "bench", "counts", "model", "network_forms", "reference_style", "terminal",
}

class Bare(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition(".")[0]
        known = INSTALLED | OURS | sys.stdlib_module_names
        return super().find_spec(name, path, target) if top in known or top[0] == "_" else None

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Bare
sys.argv = sys.argv[1:]
sys.path.insert(0, "bench")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_every_part_of_the_bench_runs_with_torch_numpy_and_soundfile_alone(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    done = subprocess.run(
        [
            sys.executable, "-c", BARE, "bench/gpu.py", "--device", "cpu", "--small",
            "--budget_s", "100000", "--output", str(output),
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["machine"]["device"] == "cpu"
    parts = {name: part for name, part in found["parts"].items() if not name.endswith(": s")}
    assert len(parts) == 7
    forms = [part for part in parts.values() if "plain fp32" in part]
    assert len(forms) == 3
    for part in forms:
        for name, row in part.items():
            assert row["clips_per_s"] > 0
            if name.startswith("fp32"):
                assert row["error_db"] < -80
    assert parts["a training step"]["eager_ms"] > 0
    assert "fp32 compiled graphs" in parts["compiled networks"]
    for part in parts.values():
        assert isinstance(part, list) or not {"failed", "skipped"} & set(part)
