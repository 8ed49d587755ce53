"""The converted file: what is written is read, byte for byte the same each time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import safetensors.torch
import torch

from model.checkpoints import convert, tensorfiles
from model.checkpoints.fetch import CheckpointError, DigestMismatchError
from model.checkpoints.loading import Networks, build
from model.checkpoints.tensorfiles import Header, SourceFile
from model.clap import Clap
from model.config import PUBLISHED
from model.systems.clapsep.network import ClapSep

ROOT = Path(__file__).parents[3]

HEADER = Header(
    kind="clapsep",
    config="{}",
    clap_sha256="c" * 64,
    lora="merged",
    dtype="fp16",
    shared=("bn0.weight",),
    sources=(SourceFile(role="clap", uri="hf://x/y.pt", sha256="d" * 64),),
    notes="trained on a Sunday",
)
TENSORS = {f"decoder.w{number}": torch.full((100,), float(number)) for number in range(6)}


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def memory() -> Iterator[str]:
    yield "memory://converted"
    fsspec.filesystem("memory").rm("/converted", recursive=True)


def test_written_file_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x.safetensors"
    sha256 = tensorfiles.write_converted(str(path), TENSORS, HEADER)
    found = tensorfiles.read_converted(str(path), sha256=sha256)
    assert (found.header, found.sha256) == (HEADER, sha256)
    assert found.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(found.tensors[key], value) for key, value in TENSORS.items())
    assert [each.name for each in path.parent.iterdir()] == ["x.safetensors"]


def test_tensors_are_read_when_they_are_asked_for_and_stay_when_the_file_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorfiles, "_MAX_MAPPED_BYTES", 500)  # of 400 each
    path = tmp_path / "x.safetensors"
    tensorfiles.write_converted(str(path), TENSORS, HEADER)
    found = tensorfiles.read_converted(str(path)).tensors
    read = {key: found[key] for key in TENSORS}
    path.write_bytes(bytes(path.stat().st_size))
    assert all(torch.equal(read[key], value) for key, value in TENSORS.items())
    assert len(found) == len(TENSORS)
    assert "decoder.other" not in found
    with pytest.raises(KeyError, match=r"decoder\.other"):
        found["decoder.other"]


LOAD = """
import re, sys
from pathlib import Path
import torch
from model.checkpoints import {module}
def peak_kib():  # that of getrusage is at least that of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before_kib = peak_kib()
kept = {load}
print(peak_kib() - before_kib)
"""


def _growth_mib(module: str, load: str, path: Path) -> float:
    """By how much loading a file raises the peak of a process's memory."""
    code = LOAD.format(module=module, load=load)
    process = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(process.stdout) / 1024


def test_a_file_is_not_in_memory_beside_its_tensors(tmp_path: Path) -> None:
    tensors = {f"decoder.w{number}": torch.ones(4 << 20) for number in range(16)}
    path = tmp_path / "x.safetensors"
    tensorfiles.write_converted(str(path), tensors, HEADER)
    load = "dict(tensorfiles.read_converted(sys.argv[1]).tensors)"
    assert 250 < _growth_mib("tensorfiles", load, path) < 400


@pytest.mark.slow
def test_the_full_size_model_loads_in_twice_its_size(tmp_path: Path) -> None:
    """Published shapes, nothing shared between the encoders: 1.2 GB."""
    clap = build(lambda: Clap(PUBLISHED.clap)).eval()
    separator = build(lambda: ClapSep(PUBLISHED)).eval()
    for parameter in [*clap.parameters(), *separator.parameters()]:
        torch.nn.init.normal_(parameter, std=0.02)
    path = tmp_path / "full.safetensors"
    convert.save(str(path), Networks(config=PUBLISHED, clap=clap, separator=separator))
    assert path.stat().st_size > 1.2e9
    assert _growth_mib("loading", "loading.load_converted(sys.argv[1])", path) < 1_600


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    backwards = dict(reversed(TENSORS.items()))
    digests = {
        tensorfiles.write_converted(str(tmp_path / f"{number}"), tensors, HEADER)
        for number, tensors in enumerate((TENSORS, backwards, TENSORS))
    }
    assert len(digests) == 1


def test_any_file_system_is_written_and_read(memory: str) -> None:
    sha256 = tensorfiles.write_converted(f"{memory}/x.safetensors", TENSORS, HEADER)
    assert tensorfiles.read_converted(f"{memory}/x.safetensors", sha256=sha256).header == HEADER


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    sha256 = tensorfiles.write_converted(str(path), TENSORS, HEADER)
    one = torch.zeros(8)
    with pytest.raises(RuntimeError, match="share memory"):
        tensorfiles.write_converted(str(path), {"a": one[:6], "b": one[2:]}, HEADER)
    assert tensorfiles.read_converted(str(path)).sha256 == sha256
    assert [each.name for each in tmp_path.iterdir() if each.name != "cache"] == ["x.safetensors"]


@pytest.mark.parametrize(("limit", "count"), [(2400, 1), (2399, 2), (800, 3), (799, 6), (1, 6)])
def test_set_stays_within_the_limit(tmp_path: Path, limit: int, count: int) -> None:
    uri = str(tmp_path / "x.safetensors")
    sha256 = tensorfiles.write_converted(uri, TENSORS, HEADER, max_file_bytes=limit)
    paths = sorted(tmp_path.glob("*.safetensors"))
    assert len(paths) == count
    sizes = [
        sum(value.nbytes for value in safetensors.torch.load_file(path).values()) for path in paths
    ]
    assert all(size <= max(limit, 400) for size in sizes)
    found = tensorfiles.read_converted(str(paths[0]), sha256=sha256.upper())
    assert found.tensors.keys() == TENSORS.keys()
    assert found.sha256 == sha256


def test_set_lacks_a_file(tmp_path: Path) -> None:
    tensorfiles.write_converted(
        str(tmp_path / "x.safetensors"), TENSORS, HEADER, max_file_bytes=1200
    )
    (tmp_path / "x-2-of-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"x-2-of-2\.safetensors: no such file"):
        tensorfiles.read_converted(str(tmp_path / "x-1-of-2.safetensors"))


def test_changed_file_of_a_set_is_noticed(tmp_path: Path) -> None:
    uri, first = str(tmp_path / "x.safetensors"), str(tmp_path / "x-1-of-2.safetensors")
    sha256 = tensorfiles.write_converted(uri, TENSORS, HEADER, max_file_bytes=1200)
    other = TENSORS | {"decoder.w5": torch.zeros(100)}
    tensorfiles.write_converted(uri, other, HEADER, max_file_bytes=1200)
    with pytest.raises(DigestMismatchError, match=f"expected SHA-256 {sha256} of the set, found"):
        tensorfiles.read_converted(first, sha256=sha256)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "not a converted file"),
        ({"format": "pt"}, "not a converted file"),
        ({tensorfiles.FORMAT: "{"}, "damaged header"),
        ({tensorfiles.FORMAT: "[]"}, "damaged header"),
        ({tensorfiles.FORMAT: "{}"}, "damaged header: KeyError.*version"),
        ({tensorfiles.FORMAT: json.dumps({"version": 2})}, "version 2 of the format, expected 1"),
        ({tensorfiles.FORMAT: json.dumps({"version": 1})}, "damaged header: KeyError.*sources"),
        (
            {tensorfiles.FORMAT: json.dumps({"version": 1, "sources": [], "shared": [], "x": 1})},
            "damaged header: TypeError",
        ),
    ],
)
def test_other_headers_are_refused(metadata: dict[str, str], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^there: {message}"):
        tensorfiles.read_header(metadata, "there")


def test_half_precision_keeps_vectors_buffers_and_integers() -> None:
    tensors = {
        "weight": torch.ones(2, 3) / 3,
        "bias": torch.ones(3) / 3,
        "filters": torch.ones(2, 3) / 3,
        "index": torch.ones(2, 3, dtype=torch.int64),
    }
    found = tensorfiles.stored(tensors, "fp16", {"filters"})
    assert {key: value.dtype for key, value in found.items()} == {
        "weight": torch.float16,
        "bias": torch.float32,
        "filters": torch.float32,
        "index": torch.int64,
    }
    assert tensorfiles.stored(tensors, "fp32", {"filters"}) == tensors


def test_too_large_for_half_precision_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="weight: values do not fit half precision"):
        tensorfiles.stored({"weight": torch.full((2, 2), 7e4)}, "fp16", set())


def test_digest_covers_names_types_shapes_and_values() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.ones(2, dtype=torch.int64)}
    same = {"b": base["b"], "a": torch.zeros(3, 2).T}
    others = [
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"].half(), "b": base["b"]},
        {"a": base["a"].reshape(3, 2), "b": base["b"]},
        {"a": base["a"], "b": base["b"] + 1},
    ]
    digest = tensorfiles.digest_tensors(base)
    assert tensorfiles.digest_tensors(same) == digest
    assert len({digest, *(tensorfiles.digest_tensors(other) for other in others)}) == 5
