"""Importing the package: quick, silent, and alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import model

ROOT = Path(model.__file__).parents[1]

PROGRAM = """
import importlib, pathlib, socket, sys, time
import torch

def refuse(*_):
    raise SystemExit("a connection was opened")

socket.socket.connect = socket.getaddrinfo = refuse
before = time.process_time()
for path in sorted(pathlib.Path("model").rglob("*.py")):
    if path.stem != "__main__":
        importlib.import_module(".".join(path.with_suffix("").parts))
print(time.process_time() - before)
heavy = {"laion_clap", "transformers", "peft", "apache_beam", "manifests"}
print("and", *sorted(heavy & set(sys.modules)))
"""


def test_import_opens_no_connection_and_loads_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", PROGRAM],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seconds, loaded = done.stdout.splitlines()
    assert float(seconds) < 3.0  # of processor time, beyond torch itself
    assert loaded == "and"
