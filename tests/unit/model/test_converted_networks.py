"""A converted file gives the network that it was made from, or an error."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import safetensors.torch
import torch

from golden import pairs
from model.checkpoints import loading
from model.checkpoints.convert import save
from model.checkpoints.fetch import CheckpointError
from model.checkpoints.loading import Networks, load_clap, load_converted
from model.config import TINY
from model.systems.clapsep import lora

pytestmark = pytest.mark.usefixtures("own_cache")


def test_converted_file_gives_the_same_network_bit_for_bit(
    tmp_path: Path, networks: Networks
) -> None:
    path = tmp_path / "model.safetensors"
    sha256 = save(str(path), networks)
    found = load_converted(str(path), sha256=sha256)
    assert found.config == TINY
    assert torch.equal(pairs.answer(found), pairs.answer(networks))
    assert (found.model_sha256, found.clap_sha256) == (sha256, networks.clap_sha256)
    assert found.sources == networks.sources
    assert found.clap.digest == networks.clap_sha256
    clap = found.clap.state_dict()
    assert all(torch.equal(clap[key], v) for key, v in networks.clap.state_dict().items())


@pytest.mark.parametrize("adapters", ["merge", "keep"])
def test_converted_adapters_are_merged_when_asked(
    tmp_path: Path, pair: pairs.Pair, networks: Networks, adapters: loading.Adapters
) -> None:
    trainable = pairs.load(pairs.write(tmp_path, pair), adapters="keep")
    path = str(tmp_path / "model.safetensors")
    save(path, trainable, adapters="keep")
    found = load_converted(path, adapters=adapters)
    assert bool(lora.adapted_layers(found.separator.encoder)) == (adapters == "keep")
    assert torch.equal(
        pairs.answer(found), pairs.answer(trainable if adapters == "keep" else networks)
    )


def test_merged_adapters_cannot_be_kept(tmp_path: Path, networks: Networks) -> None:
    path = str(tmp_path / "model.safetensors")
    save(path, networks)
    with pytest.raises(CheckpointError, match="were merged"):
        load_converted(path, adapters="keep")


def more_than_half(networks: Networks, folder: Path) -> int:
    """Bytes that hold more than half of a network's tensors, and not all."""
    path = folder / "whole"
    save(str(path), networks)
    tensors = safetensors.torch.load_file(path)
    path.unlink()
    return sum(value.nbytes for value in tensors.values()) * 2 // 3


def test_set_of_files_is_loaded_by_its_first(tmp_path: Path, networks: Networks) -> None:
    limit = more_than_half(networks, tmp_path)
    sha256 = save(str(tmp_path / "model.safetensors"), networks, max_file_bytes=limit)
    files = sorted(tmp_path.glob("model*.safetensors"))
    assert [path.name for path in files] == [f"model-{n}-of-2.safetensors" for n in (1, 2)]
    assert all(path.stat().st_size < limit + 60_000 for path in files)  # and a header
    found = load_converted(str(files[0]), sha256=sha256)
    assert torch.equal(pairs.answer(found), pairs.answer(networks))
    assert found.model_sha256 == sha256
    assert torch.equal(
        load_clap(str(files[0]), sha256=sha256).text_projection[0].weight,
        networks.clap.text_projection[0].weight,
    )


def test_set_with_a_foreign_file_is_refused(tmp_path: Path, networks: Networks) -> None:
    other = dataclasses.replace(networks, clap_sha256="f" * 64)
    limit = more_than_half(networks, tmp_path)
    first = save(str(tmp_path / "a.safetensors"), networks, max_file_bytes=limit)
    save(str(tmp_path / "b.safetensors"), other, max_file_bytes=limit)
    (tmp_path / "b-2-of-2.safetensors").replace(tmp_path / "a-2-of-2.safetensors")
    uri = str(tmp_path / "a-1-of-2.safetensors")
    with pytest.raises(CheckpointError, match="not of one model"):
        load_converted(uri)
    with pytest.raises(CheckpointError, match=f"expected SHA-256 {first} of the set, found"):
        load_converted(uri, sha256=first)


def test_half_precision_file_is_close_and_known_to_differ(
    tmp_path: Path, networks: Networks
) -> None:
    path = tmp_path / "model.safetensors"
    save(str(path), networks, dtype="fp16")
    found = load_converted(str(path))
    expected, given = pairs.answer(networks), pairs.answer(found)
    error = (given - expected).square().sum() / expected.square().sum()
    assert 0 < error < 1e-4
    assert all(p.dtype == torch.float32 for p in found.separator.parameters())
    assert found.clap_sha256 not in ("", networks.clap_sha256)


def test_converted_file_without_a_tensor_is_refused(tmp_path: Path, networks: Networks) -> None:
    path = tmp_path / "model.safetensors"
    save(str(path), networks)
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    del tensors["decoder.film.norm.bias"], tensors["clap.audio_branch.bn0.weight"]
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    with pytest.raises(
        CheckpointError, match=r"2 missing \(clap\.audio_branch\.bn0\.weight, decoder\.film"
    ):
        load_converted(str(path))


def test_published_file_is_not_taken_for_a_converted_one(tmp_path: Path, pair: pairs.Pair) -> None:
    path = pairs.write(tmp_path, pair)[1]
    with pytest.raises(CheckpointError, match=r"not a converted file; make one with: python -m"):
        load_converted(str(path))
