"""Loading: a published pair gives one network, however it is stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from golden import pairs, published
from model.checkpoints.convert import save
from model.checkpoints.fetch import CheckpointError
from model.checkpoints.loading import Networks, load_clap, load_published
from model.config import PUBLISHED, TINY, LoraConfig
from model.systems.clapsep import lora

pytestmark = pytest.mark.usefixtures("own_cache")


def test_every_tensor_lands_where_it_belongs(tmp_path: Path, pair: pairs.Pair) -> None:
    networks = pairs.load(pairs.write(tmp_path, pair))
    clap = networks.clap.state_dict()
    assert all(torch.equal(value, pair.clap[key]) for key, value in clap.items())
    decoder = networks.separator.decoder.state_dict()
    assert all(
        torch.equal(value, pair.clapsep[f"decoder_model.{key}"]) for key, value in decoder.items()
    )
    encoder = networks.separator.encoder.state_dict()
    name = "layers.1.blocks.0.attn.qkv"
    assert torch.equal(encoder[f"{name}.bias"], pair.clapsep[f"audio_branch.{name}.bias"])
    assert not torch.equal(encoder[f"{name}.bias"], clap[f"audio_branch.{name}.bias"])
    factors = [pair.clapsep[f"audio_branch.{name}.lora_{x}"].double() for x in "BA"]
    expected = pair.clap[f"audio_branch.{name}.weight"].double() + factors[0] @ factors[1] / 2
    torch.testing.assert_close(encoder[f"{name}.weight"].double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(encoder["bn0.running_mean"], pair.clap["audio_branch.bn0.running_mean"])


def test_networks_say_where_they_came_from(tmp_path: Path, pair: pairs.Pair) -> None:
    paths = pairs.write(tmp_path, pair)
    networks = pairs.load(paths)
    digests = [source.sha256 for source in networks.sources]
    assert [source.role for source in networks.sources] == ["clap", "clapsep"]
    assert [source.uri for source in networks.sources] == [str(path) for path in paths]
    assert [networks.clap_sha256, networks.model_sha256] == digests
    assert networks.clap.digest == networks.clap_sha256
    assert not networks.clap.training
    assert not networks.separator.training


def test_kept_adapters_compute_what_merged_ones_do(tmp_path: Path, pair: pairs.Pair) -> None:
    paths = pairs.write(tmp_path, pair)
    merged, kept = pairs.load(paths), pairs.load(paths, adapters="keep")
    assert len(lora.adapted_layers(kept.separator.encoder)) == 8
    torch.testing.assert_close(pairs.answer(kept), pairs.answer(merged), rtol=1e-4, atol=1e-6)


def test_networks_survive_their_files(tmp_path: Path, pair: pairs.Pair) -> None:
    paths = pairs.write(tmp_path, pair)
    networks = pairs.load(paths)
    before = pairs.answer(networks)
    for path in paths:
        path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(pairs.answer(networks), before)


def test_kept_adapters_do_not_reach_clap(tmp_path: Path, pair: pairs.Pair) -> None:
    networks = pairs.load(pairs.write(tmp_path, pair), adapters="keep")
    with torch.no_grad():
        for parameter in networks.separator.encoder.parameters():
            parameter.zero_()
    clap = networks.clap.state_dict()
    assert all(torch.equal(value, pair.clap[key]) for key, value in clap.items())


# Ways in which the same weights may be stored.


def flat_clap(pair: pairs.Pair, paths: tuple[Path, Path]) -> None:
    torch.save(pair.clap, paths[0])


def old_text_buffers(pair: pairs.Pair, paths: tuple[Path, Path]) -> None:
    state = pair.clap | {"text_branch.embeddings.position_ids": torch.arange(514)[None]}
    torch.save(pairs.clap_checkpoint(state), paths[0])


def legacy_format(pair: pairs.Pair, paths: tuple[Path, Path]) -> None:
    torch.save(pair.clapsep, paths[1], _use_new_zipfile_serialization=False)


def as_safetensors(pair: pairs.Pair, paths: tuple[Path, Path]) -> None:
    safetensors.torch.save_file(pair.clapsep, paths[1])


def in_float64(pair: pairs.Pair, paths: tuple[Path, Path]) -> None:
    doubled = {k: v.double() if v.is_floating_point() else v for k, v in pair.clapsep.items()}
    torch.save(doubled, paths[1])


def without_copies(pair: pairs.Pair, paths: tuple[Path, Path]) -> None:
    torch.save({k: v for k, v in pair.clapsep.items() if "clap_model" not in k}, paths[1])


def without_derived(pair: pairs.Pair, paths: tuple[Path, Path]) -> None:
    derived = ("relative_position_index", "num_batches_tracked")
    torch.save({k: v for k, v in pair.clapsep.items() if not k.endswith(derived)}, paths[1])


def nested_lightning(pair: pairs.Pair, paths: tuple[Path, Path]) -> None:
    whole = {k: v for k, v in pair.clap.items() if k.startswith("audio_branch.")}
    whole |= {f"clap_model.model.{key}": value for key, value in pair.clap.items()}
    whole |= {"stft.conv_real.weight": torch.ones(3), "istft.ola_window": torch.ones(3)}
    whole |= {"resampler.kernel": torch.ones(3)} | pair.clapsep
    content = {
        "epoch": 149,
        "pytorch-lightning_version": "2.2.0",
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}}],
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(9.0)}},
        "state_dict": whole,
    }
    torch.save(content, paths[1])


def wrapped_for_ddp(pair: pairs.Pair, paths: tuple[Path, Path]) -> None:
    torch.save({f"module.{key}": value for key, value in pair.clapsep.items()}, paths[1])


@pytest.mark.parametrize(
    "store",
    [
        flat_clap,
        old_text_buffers,
        legacy_format,
        as_safetensors,
        in_float64,
        without_copies,
        without_derived,
        nested_lightning,
        wrapped_for_ddp,
    ],
)
def test_other_ways_to_store_the_same_weights(
    tmp_path: Path,
    pair: pairs.Pair,
    store: Callable[[pairs.Pair, tuple[Path, Path]], None],
) -> None:
    paths = pairs.write(tmp_path, pair)
    expected = pairs.load(paths)
    store(pair, paths)
    found = pairs.load(paths)
    for part in ("clap", "separator"):
        before, after = getattr(expected, part).state_dict(), getattr(found, part).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("which", ["clap_sha256", "clapsep_sha256"])
def test_wrong_digest_is_refused_before_reading(
    tmp_path: Path, pair: pairs.Pair, which: str
) -> None:
    paths = pairs.write(tmp_path, pair)
    for path in paths:
        path.write_bytes(b"never read as weights")
    with pytest.raises(CheckpointError, match=f"expected SHA-256 {'0' * 64}, found ") as caught:
        pairs.load(paths, **{which: "0" * 64, "clap_sha256": "0" * 64})
    assert str(caught.value).startswith(str(paths[0]))


@pytest.mark.parametrize("form", ["published", "converted"])
def test_clap_alone_is_loaded_from_either_file(
    tmp_path: Path, networks: Networks, form: str
) -> None:
    path = tmp_path / "clap.pt"
    if form == "converted":
        path = tmp_path / "model.safetensors"
        save(str(path), networks)
    found = load_clap(str(path), config=TINY.clap)
    state = networks.clap.state_dict()
    assert all(torch.equal(state[key], value) for key, value in found.state_dict().items())
    assert found.digest == networks.clap_sha256


@pytest.mark.slow
def test_full_size_pair_loads_strictly(tmp_path: Path) -> None:
    pair = pairs.Pair(
        clap=published.hollow_state("clap"), clapsep=published.hollow_state("clapsep")
    )
    paths = pairs.write(tmp_path, pair)
    networks = load_published(str(paths[0]), str(paths[1]))
    assert networks.config is PUBLISHED
    assert networks.config.lora == LoraConfig(rank=16, alpha=1.0)
    assert sum(p.numel() for p in networks.separator.decoder.parameters()) == 43_463_616
