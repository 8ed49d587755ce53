#!/usr/bin/env bash
# An AudioFolder whose metadata.jsonl names every file loses files because another's path has the word of a split.
#
# Guess: metadata.jsonl is what counts: its three rows, each with a file_name that exists, give three examples.
# Seen (datasets 5.2.0, torchcodec 0.13.0, torch 2.13.0): beside rain and wind, a recording called dog-test-1 is
# taken for the split test, and a folder called train for the split train; the two other files are then left out
# with their rows, nothing is logged and no error raised. With a ~ after the word all four are there, in one split.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet datasets==5.2.0 torch==2.13.0 torchcodec==0.13.0
cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" "$folder/venv/bin/python" - <<'PYTHON'
import json
import logging
import sys
import wave
from importlib.metadata import version
from pathlib import Path

import datasets

datasets.disable_progress_bars()
print(f"datasets {version('datasets')}")


def load(folder, names):
    """The examples of each split of an AudioFolder with these files."""
    data = Path(folder)
    rows = []
    for name in names:
        path = data / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8_000)
            file.writeframes(bytes(16_000))
        rows.append(json.dumps({"file_name": f"{name}.wav", "label": "a sound"}))
    (data / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    found = datasets.load_dataset("audiofolder", data_dir=folder)
    return {split: len(examples) for split, examples in found.items()}


logging.basicConfig(level=logging.WARNING)
seen = [
    load("by_file", ["rain", "wind", "dog-test-1"]),
    load("by_folder", ["rain", "wind", "train/horn"]),
    load("ended", ["rain", "wind", "dog-test~-1", "train~/horn"]),
]
print(f"with the word in a name: {seen[0]}, in a folder's: {seen[1]}; with a ~ after both: {seen[2]}")
sys.exit(seen != [{"test": 1}, {"train": 1}, {"train": 4}])
PYTHON
