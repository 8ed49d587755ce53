"""Reading weight files: data only, and a clear word about everything that is not data."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from model.checkpoints import tensorfiles
from model.checkpoints.tensorfiles import DamagedFileError, UnsafePickleError

WEIGHTS = {"a": torch.arange(2000.0), "b": torch.ones(3, 2)}


class Trap:
    """Leaves a trace where unpickling runs it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, int]]:
        return os.mkdir, (str(self.trace), 0o700)


def whole_file(legacy: bool, folder: Path) -> bytes:
    path = folder / "whole"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=not legacy)
    return path.read_bytes()


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_file_with_numpy_scalars_is_read(tmp_path: Path, legacy: bool) -> None:
    content = {
        "epoch": 15,
        "losses": [np.float64(3.5), np.float32(0.5), np.int64(7), np.bool_(True)],
        "state_dict": WEIGHTS,
    }
    path = tmp_path / "file"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    found = tensorfiles.read(path, "file")
    assert (found.format, found.metadata) == ("torch", {})
    assert found.content["losses"] == [3.5, 0.5, 7, True]
    assert torch.equal(found.content["state_dict"]["a"], WEIGHTS["a"])


def test_scalar_pickled_under_numpy_2_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    torch.save({"loss": np.float64(3.5)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    other = {b"numpy.core.multiarray": b"numpy._core.multiarray"}
    if b"numpy._core.multiarray" in content:
        other = {new: old for old, new in other.items()}
    for old, new in other.items():
        assert old in content
        content = content.replace(old, new)
    path.write_bytes(content)
    assert tensorfiles.read(path, "file").content == {"loss": 3.5}


def test_safetensors_file_is_read_with_its_metadata(tmp_path: Path) -> None:
    path = tmp_path / "file"
    safetensors.torch.save_file(WEIGHTS, path, metadata={"note": "x"})
    found = tensorfiles.read(path, "file")
    assert (found.format, found.metadata) == ("safetensors", {"note": "x"})
    assert torch.equal(found.content["a"], WEIGHTS["a"])


def test_safetensors_header_that_starts_like_a_pickle_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for filling in range(600):
        safetensors.torch.save_file(WEIGHTS, path, metadata={"note": "x" * filling})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert tensorfiles.read(path, "file").format == "safetensors"


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_pickle_with_code_is_named_and_not_run(tmp_path: Path, form: str) -> None:
    path, trace = tmp_path / "file", tmp_path / "trace"
    content = {"state_dict": WEIGHTS, "trap": Trap(trace)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(Trap(trace), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(
        UnsafePickleError, match=r"^where: the pickle asks for \w+\.mkdir, .*not run"
    ):
        tensorfiles.read(path, "where")
    assert not trace.exists()


def test_numpy_arrays_of_objects_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    torch.save({"a": np.array([{}], dtype=object)}, path)
    with pytest.raises(UnsafePickleError, match=r"multiarray\._reconstruct"):
        tensorfiles.read(path, "where")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page, not weights"),
        (b"\n <HTML>404</HTML>", "a web page, not weights"),
        (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code>", "a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", r"not a weight file: starts with b'RIFF"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{bad json    ", "a damaged safetensors file"),
        (pickle.dumps({"a": 1}, protocol=4), "a damaged torch file"),
        (pickle.dumps({"a": 1}, protocol=2)[:-3], "a damaged torch file"),
    ],
)
def test_other_files_are_named_for_what_they_are(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=f"^where: .*{message}"):
        tensorfiles.read(path, "where")


@pytest.mark.parametrize("kept", [0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("legacy", [False, True])
def test_part_of_a_torch_file_is_an_error(tmp_path: Path, legacy: bool, kept: float) -> None:
    content = whole_file(legacy, tmp_path)
    path = tmp_path / "file"
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DamagedFileError, match=r"^where: .*(part of|damaged) .*"):
        tensorfiles.read(path, "where")


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.999])
def test_part_of_a_safetensors_file_is_an_error(tmp_path: Path, kept: float) -> None:
    content = safetensors.torch.save(WEIGHTS)
    path = tmp_path / "file"
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(
        DamagedFileError, match=r"^where: a damaged safetensors file, or only a part"
    ):
        tensorfiles.read(path, "where")


def test_overwritten_middle_of_a_torch_file_is_an_error(tmp_path: Path) -> None:
    content = bytearray(whole_file(False, tmp_path))
    content[100:400] = bytes(300)
    path = tmp_path / "file"
    path.write_bytes(bytes(content))
    with pytest.raises(DamagedFileError, match=r"^where: a damaged torch file"):
        tensorfiles.read(path, "where")


def test_errors_never_advise_to_read_unsafely(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(pickle.dumps({"a": 1}, protocol=4))
    with pytest.raises(DamagedFileError) as caught:
        tensorfiles.read(path, "where")
    assert "weights_only" not in str(caught.value)
