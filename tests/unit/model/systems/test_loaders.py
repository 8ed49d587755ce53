"""The registry's loaders, on files of the published layouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from golden import baselines
from layouts_of_baselines import hollow, parsed
from model import registry
from model.catalogue import Entry, WeightsFile
from model.checkpoints.fetch import CheckpointError
from model.clap import Clap
from model.config import PUBLISHED, TINY
from model.systems import audiosep, lass, uss


def entry_of(name: str, folder: Path, files: Mapping[str, Any]) -> Entry:
    """The registry's entry with these files in the place of the published ones."""
    weights = []
    for role, content in files.items():
        torch.save(content, folder / f"{role}.ckpt")
        weights.append(WeightsFile(role=role, uri=str(folder / f"{role}.ckpt")))
    return dataclasses.replace(registry.find(name), files=tuple(weights))


def state_of(name: str) -> dict[str, torch.Tensor]:
    return hollow(parsed(baselines.stored(name)["layout"]))


@pytest.mark.parametrize("name", ["audiosep", "audiosep-hive"])
def test_audiosep_takes_the_clap_of_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(audiosep, "PUBLISHED", TINY)
    clap = Clap(TINY.clap)
    state = state_of("audiosep")
    state |= {f"query_encoder.model.{key}": value for key, value in clap.state_dict().items()}
    entry = entry_of(name, tmp_path, {"audiosep": {"state_dict": state}})
    loaded = audiosep.load(entry, registry.LoadOptions(precision="bf16"))
    assert loaded.name == loaded.separator.name == name
    assert loaded.model_sha256 == loaded.clap_sha256 == loaded.query_encoder.digest
    assert loaded.separator.precision == "bf16"
    assert not loaded.separator.training
    assert loaded.query_encoder.embedding_dim == TINY.clap.embedding_dim
    assert PUBLISHED.clap.embedding_dim == loaded.separator.embedding_dim == 512


def test_audiosep_without_a_clap_asks_for_the_file_it_was_trained_with(tmp_path: Path) -> None:
    entry = entry_of("audiosep", tmp_path, {"audiosep": {"state_dict": state_of("audiosep")}})
    with pytest.raises(CheckpointError, match="audiosep has no 'clap' weights"):
        audiosep.load(entry, registry.LoadOptions())


def test_uss_brings_its_tagger(tmp_path: Path) -> None:
    state = state_of("uss")
    state["anchor_segment_detector.sed_model.fc1.bias"] = torch.zeros(3)
    loaded = uss.load(
        entry_of("uss", tmp_path, {"uss": {"state_dict": state}}), registry.LoadOptions()
    )
    assert loaded.separator.embedding_dim == loaded.query_encoder.embedding_dim == 527
    assert loaded.separator.window_samples == loaded.query_encoder.clip_samples == 64_000
    assert loaded.query_encoder.digest == loaded.model_sha256
    assert loaded.clap_sha256 == ""
    assert loaded.card.scorer == "clapsep-mini"
    assert not any(each.requires_grad for each in loaded.separator.parameters())


def test_lass_brings_its_bert_and_names_its_tokenizer(tmp_path: Path) -> None:
    wrapped = {"model": {f"module.{key}": value for key, value in state_of("lass").items()}}
    entry = entry_of("lass-net", tmp_path, {"lass": wrapped, "tokenizer": {}})
    loaded = lass.load(entry, registry.LoadOptions())
    assert loaded.separator.embedding_dim == loaded.query_encoder.embedding_dim == 256
    assert loaded.query_encoder.digest == loaded.model_sha256
    assert loaded.separator.name == "lass-net"
