"""Counts the house: modules, the largest flat floor, and the files that one manifest row passes.

    python bench/structure.py            # counts; and one row through pipelines.separate
    python bench/structure.py --no_run   # counts only

A floor is a folder of a package with its modules; subfolders count as one room each. A file is
passed where a function of it runs between the first step of the job and the last, from the
command line to the Parquet row; importing it alone does not count.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("terminal", "manifests", "model", "transforms", "pipelines")
sys.path.insert(0, str(ROOT))


def modules() -> list[Path]:
    """Every Python file of the product: outside of tests, benches and docs."""
    found = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    return sorted([*found, ROOT / "setup.py"])


def floors() -> dict[str, int]:
    """Rooms of each folder: its modules and its folders with modules, without ``__init__``."""
    rooms: dict[str, set[str]] = {}
    for path in modules():
        parts = path.relative_to(ROOT).parts
        for depth in range(1, len(parts)):
            name = parts[depth].removesuffix(".py")
            if name != "__init__":
                rooms.setdefault("/".join(parts[:depth]), set()).add(name)
    return {floor: len(names) for floor, names in sorted(rooms.items())}


class Passed:
    """Records the files of the product in which a function runs, in all threads."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self._seen: set[CodeType] = set()

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        """Notes the file of a function that is called."""
        code = frame.f_code
        if event == "call" and code not in self._seen:
            self._seen.add(code)
            file = code.co_filename
            inside = file.startswith(str(ROOT)) and code.co_name not in ("<module>",)
            is_body = code.co_flags & 0x2 == 0  # of a class: runs while its module is imported
            if inside and not is_body and not file.startswith(str(ROOT / "bench")):
                name = Path(file).relative_to(ROOT).as_posix()
                if name.split("/")[0] in PACKAGES:
                    self.files.add(name)

    def __enter__(self) -> Passed:
        """Begins to record."""
        threading.setprofile(self)
        sys.setprofile(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Ends recording."""
        sys.setprofile(None)
        threading.setprofile(None)


def files_of_one_row() -> list[str]:
    """The files that a row of the bundled demo passes, from the command line to its tables."""
    from manifests.files.readers import iter_rows
    from manifests.files.writing import write_rows
    from pipelines import separate

    for name in ("pipelines.launch", "pipelines.separate_graph"):
        importlib.import_module(name)  # what imports run is not counted
    with tempfile.TemporaryDirectory() as folder:
        row = next(iter(iter_rows(str(ROOT / "manifests" / "examples" / "demo.csv"))))
        manifest = f"{folder}/one.csv"
        write_rows(manifest, [row])
        given = ["--manifest", manifest, "--output", f"{folder}/out", "--progress", "none"]
        with Passed() as passed:
            code = separate.run(given)
    if code != 0:
        raise SystemExit(f"the run ended with {code}")
    return sorted(passed.files)


def main() -> None:
    """Prints the counts as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--no_run", action="store_true", help="Count files only.")
    given = parser.parse_args()
    counted: dict[str, Any] = {
        "modules": len(modules()),
        "lines": sum(len(path.read_text("utf-8").splitlines()) for path in modules()),
        "largest_floors": dict(sorted(floors().items(), key=lambda each: -each[1])[:5]),
    }
    if not given.no_run:
        passed = files_of_one_row()
        counted |= {"files_of_one_row": len(passed), "passed": passed}
    print(json.dumps(counted, indent=1))


if __name__ == "__main__":
    main()
