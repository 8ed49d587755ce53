"""The notebooks run from their first cell to their last, and download nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
MAX_BYTES = 150_000
OFFLINE = """import socket, sys
sys.path.insert(0, {root!r})
def _refuse(*_, **__): raise RuntimeError("a notebook opened a connection")
socket.socket.connect = socket.getaddrinfo = _refuse
"""


def test_there_is_a_notebook() -> None:
    assert [path.name for path in NOTEBOOKS] == ["extract.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_committed_without_what_it_gave(path: Path) -> None:
    assert path.stat().st_size < MAX_BYTES
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


def test_the_extraction_notebook_runs_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / "extract.ipynb", as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(OFFLINE.format(root=str(ROOT))))
    (tmp_path / "work").mkdir()
    client = nbclient.NotebookClient(
        notebook, timeout=None, resources={"metadata": {"path": str(tmp_path / "work")}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = Counter(kind for output in outputs for kind in output.get("data", ()))
    assert shown["image/png"] == 4
    assert sum("<audio" in output.get("data", {}).get("text/html", "") for output in outputs) == 10
    streams = [output for output in outputs if output.output_type == "stream"]
    assert [output.text for output in streams if output.name == "stderr"] == []
    assert "] True\n" in "".join(output.text for output in streams)  # the bits of the whole
    assert (tmp_path / "work" / "dog.wav").stat().st_size > 600_000
