"""The converted file: what is written is read, byte for byte the same each time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import safetensors.torch
import torch

from model.checkpoints import tensorfiles
from model.checkpoints.fetch import CheckpointError, DigestMismatchError
from model.checkpoints.tensorfiles import Header, SourceFile

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


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAPSEP_CACHE", str(tmp_path / "cache"))


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
