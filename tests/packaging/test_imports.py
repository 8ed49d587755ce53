"""Imports have no cycle, and what needs neither Beam nor torch is imported without them."""

from __future__ import annotations

import ast
import graphlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipelines.preflight import PACKAGES

ROOT = Path(__file__).resolve().parents[2]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, str]:
    """The text of each module of the product, by the module's name."""
    files = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    return {module_name(path): path.read_text(encoding="utf-8") for path in files}


def named_modules(source: str, modules: Mapping[str, str]) -> Iterator[str]:
    """The modules that a source names in its import statements, inside of functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield from [full] if full in modules else {node.module} & modules.keys()


def with_packages(name: str) -> Iterator[str]:
    """A module and the packages around it, which Python imports before it."""
    parts = name.split(".")
    yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def imports_of(modules: Mapping[str, str]) -> dict[str, set[str]]:
    """What each module has imported, without itself and the packages around it."""
    return {
        name: {
            imported
            for named in named_modules(source, modules)
            for imported in with_packages(named)
        }
        - set(with_packages(name))
        for name, source in modules.items()
    }


def test_no_module_imports_itself_through_others() -> None:
    graph = imports_of(sources())
    assert graph["pipelines.launch"] > {"pipelines.runners", "pipelines.config"}
    graphlib.TopologicalSorter(graph).prepare()  # the CycleError names the modules


@pytest.mark.parametrize(
    "other",
    [
        "import b",
        "from b import name",
        "def late():\n    from b import name",
        "from b.c import name",
        "from b import c",
    ],
)
def test_a_cycle_is_found_wherever_the_import_stands(other: str) -> None:
    modules = {"a": other, "b": "import a" if "c" not in other else "", "b.c": "import a"}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(imports_of(modules)).prepare()


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("pipelines.report", {"apache_beam", "torch", "pandas", "matplotlib"}),
        ("pipelines.reporting.build", {"apache_beam", "torch"}),
        ("pipelines.output_folder", {"apache_beam", "torch"}),
        ("pipelines.flags", {"apache_beam", "torch"}),
        ("transforms.audio.mixtures", {"apache_beam", "torch"}),
        ("transforms.storage", {"apache_beam", "torch"}),
    ],
)
def test_a_fresh_interpreter_loads_no_framework(module: str, absent: set[str]) -> None:
    script = f"import sys, {module}; print(sorted({absent!r} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout == "[]\n"


HEAVY = {
    "accelerate", "huggingface_hub", "laion_clap", "librosa", "matplotlib", "numba", "peft",
    "scipy.signal", "scipy.stats", "sklearn", "sympy", "torch._dynamo", "torch._inductor",
    "torchaudio", "torchlibrosa", "torchmetrics", "torchvision", "transformers",
}  # fmt: skip
"""What took as long as everything else together before a first stem, or would."""

ONE_CLIP = """
import os, sys
from pipelines import separate
code = separate.run(sys.argv[1:])
print(code, *sorted(set(os.environ["HEAVY"].split()) & set(sys.modules)))
"""


def test_separating_a_clip_loads_nothing_heavy(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", np.full(32_000, 0.1), 32_000)
    words = ("--mixture", str(tmp_path / "clip.wav"), "--positive", "a dog")
    done = subprocess.run(
        [sys.executable, "-c", ONE_CLIP, *words, "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "HEAVY": " ".join(HEAVY)},
    )
    assert done.stdout.splitlines()[-1] == "0"


@pytest.mark.parametrize(
    "module", ["pipelines.separate", "pipelines.score", "pipelines.synthesize"]
)
@pytest.mark.parametrize("words", ["--help", "--hlep", "--output out --progress often"])
def test_an_answer_about_flags_loads_no_framework(module: str, words: str) -> None:
    script = (
        f"import sys, {module} as job; job.run({words.split()!r}); "
        "print(sorted({'apache_beam', 'torch', 'scipy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("model.checkpoints.__main__", "--help"),
        ("model.checkpoints.__main__", "convert --help"),
        ("model.checkpoints.__main__", "convert --clap a"),
        ("model.registry", "--help"),
        ("model.training.__main__", "--help"),
        ("model.training.__main__", "finetune --help"),
        ("model.training.__main__", "fit --corpus a"),
        ("manifests.recordings", "--help"),
        ("pipelines.export", "--help"),
        ("pipelines.report", "--help"),
    ],
)
def test_flags_of_other_commands_are_answered_without_a_framework(module: str, words: str) -> None:
    script = (
        f"import sys, importlib; job = importlib.import_module({module!r})\n"
        f"try: job.run({words.split()!r})\n"
        "except SystemExit: pass\n"
        "print(sorted({'apache_beam', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "[]"
