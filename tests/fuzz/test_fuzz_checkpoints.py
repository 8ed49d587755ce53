"""Damaged and hostile weight files: an error that says so, and nothing in them is run."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import fuzzing
import tiny_model
from model.checkpoints import convert, loading, tensorfiles
from model.checkpoints.fetch import CheckpointError
from model.checkpoints.tensorfiles import UnsafePickleError
from model.clap import load_tokenizer
from model.config import TINY, ClapSepConfig, from_json, to_json

FORMS = ("safetensors", "torch", "legacy")
WEIGHTS = {"a.weight": torch.arange(300.0), "b": torch.ones(3, 2, dtype=torch.float16)}


@functools.cache
def whole(form: str) -> bytes:
    if form == "safetensors":
        return safetensors.torch.save(WEIGHTS, {"note": "text"})
    buffer = io.BytesIO()
    content = {"state_dict": WEIGHTS, "epoch": 3}
    torch.save(content, buffer, _use_new_zipfile_serialization=form == "torch")
    # The older format names tensors by where they lay in memory, which is elsewhere every time.
    names = sorted(set(re.findall(rb"\d{12,16}", buffer.getvalue())))
    found = buffer.getvalue()
    for number, name in enumerate(names):
        found = found.replace(name, b"%0*d" % (len(name), number))
    return found


def read(path: Path) -> None:
    with fuzzing.refused(CheckpointError, naming="fuzzed"):
        tensorfiles.read(path, "fuzzed")


@given(st.sampled_from(FORMS), fuzzing.mutations(head=600))
@fuzzing.few(120)
def test_damaged_files(
    tmp_path_factory: pytest.TempPathFactory, form: str, mutate: Callable[[bytes], bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.weights"
    path.write_bytes(mutate(whole(form)))
    with fuzzing.bounded():
        read(path)


@fuzzing.found("weights")
def test_found_files(path: Path) -> None:
    with fuzzing.bounded():
        read(path)


HEADERS: tuple[dict[str, Any], ...] = (
    {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
    {"a": {"dtype": "F32", "shape": [2**63, 2], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
    {"a": {"dtype": "F32", "shape": [0] * 10_000, "data_offsets": [0, 0]}},
    {"__metadata__": {"x": 1}},
    {"a": []},
)


@pytest.mark.parametrize("header", HEADERS)
def test_lying_safetensors_headers(tmp_path: Path, header: dict[str, Any]) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "lie.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0\0\0\0")
    with fuzzing.bounded(tmp_path):
        read(path)


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def _calls(trace: Path) -> dict[str, Any]:
    import builtins
    import os
    import shutil
    import subprocess

    return {
        "mkdir": Call(os.mkdir, str(trace)),
        "system": Call(os.system, f"touch {trace}"),
        "eval": Call(builtins.eval, f"open({str(trace)!r}, 'w')"),
        "popen": Call(subprocess.Popen, ["touch", str(trace)]),
        "open": Call(builtins.open, str(trace), "w"),
        "copy": Call(shutil.copy, "/etc/hostname", str(trace)),
    }


@pytest.mark.parametrize("name", ["mkdir", "system", "eval", "popen", "open", "copy"])
@pytest.mark.parametrize("form", ["torch", "legacy", "bare", "nested"])
def test_no_call_in_a_pickle_is_made(tmp_path: Path, name: str, form: str) -> None:
    trace, path = tmp_path / "trace", tmp_path / "file.ckpt"
    call = _calls(trace)[name]
    if form == "bare":
        path.write_bytes(pickle.dumps(call))
    else:
        content = {"state_dict": WEIGHTS, "x": [{"y": (call,)}] if form == "nested" else call}
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError if form == "bare" else UnsafePickleError):
        tensorfiles.read(path, "file")
    with pytest.raises(CheckpointError):
        loading.load_converted(str(path))
    assert sorted(tmp_path.iterdir()) == before


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    torch.save(WEIGHTS, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/99", bytes(2**28))
        archive.writestr("../../outside", b"x")
    with fuzzing.bounded(tmp_path):
        read(path)


@pytest.mark.parametrize(
    "name", ["this", "antigravity", "os", "a.b", "__main__", "../x", "fuzzing"]
)
def test_a_weight_file_cannot_have_a_module_imported(tmp_path: Path, name: str) -> None:
    text = json.loads(to_json(tiny_model.CONFIG))
    text["clap"]["text"]["tokenizer"] = f"package:{name}"
    config = from_json(ClapSepConfig, json.dumps(text))
    before = set(sys.modules)
    with pytest.raises(CheckpointError, match=r"is not (a|installed)"):
        load_tokenizer(config.clap.text)
    assert not {name for name in set(sys.modules) - before if name.startswith(("this", "anti"))}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=5,
    ),
    st.lists(st.sampled_from(["clap", "audio", "text", "lora", "window", "decoder"]), max_size=3),
)
@fuzzing.few(60)
def test_any_configuration_is_one_or_an_error(value: Any, path: list[str]) -> None:
    record = json.loads(to_json(TINY))
    place: Any = record
    for name in path:
        if isinstance(place.get(name), dict):
            place = place[name]
    for name in list(place)[:3]:
        changed = dict(place)
        place[name] = value
        with contextlib.suppress(ValueError):  # which loading turns into a CheckpointError
            from_json(ClapSepConfig, json.dumps(record))
        place.update(changed)


def test_a_converted_file_with_a_hostile_configuration_is_an_error(tmp_path: Path) -> None:
    path = Path(tiny_model.write_tiny_model(tmp_path / "tiny.safetensors"))
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for name, text in header["__metadata__"].items():
        for value in ("", "{}", "[]", "null", text[:-3], text.replace("1", "9" * 8), "[" * 100_000):
            changed = {**header, "__metadata__": {**header["__metadata__"], name: value}}
            head = json.dumps(changed).encode()
            other = tmp_path / "other.safetensors"
            other.write_bytes(struct.pack("<Q", len(head)) + head + data[8 + size :])
            with fuzzing.bounded():
                try:
                    loading.load_converted(str(other))
                    convert.file_facts(str(other))
                except CheckpointError:
                    continue
