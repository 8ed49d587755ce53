"""Loading: a published pair and a converted file give one network; spoiled files, an error."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from golden import pairs, published
from model import loading, lora
from model.checkpoints import save
from model.conditioning import Condition
from model.config import PUBLISHED, TINY, LoraConfig
from model.fetch import CheckpointError
from model.loading import Networks, load_clap, load_converted, load_published


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAPSEP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pair() -> pairs.Pair:
    made = pairs.formula_pair(TINY)
    return pairs.Pair(clap=dict(made.clap), clapsep=dict(made.clapsep))


def load(paths: tuple[Path, Path], **options: Any) -> Networks:
    return load_published(str(paths[0]), str(paths[1]), config=TINY, **options)


def answer(networks: Networks) -> Tensor:
    """What a network makes of one mixture and query."""
    rng = np.random.default_rng(5)
    mixture = torch.tensor(rng.standard_normal((1, 12_000)), dtype=torch.float32)
    query = torch.tensor(rng.standard_normal((2, 1, 16)), dtype=torch.float32)
    with torch.inference_mode():
        return networks.separator.separate(mixture, Condition(positive=query[0], negative=query[1]))


def test_every_tensor_lands_where_it_belongs(tmp_path: Path, pair: pairs.Pair) -> None:
    networks = load(pairs.write(tmp_path, pair))
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
    networks = load(paths)
    digests = [source.sha256 for source in networks.sources]
    assert [source.role for source in networks.sources] == ["clap", "clapsep"]
    assert [source.uri for source in networks.sources] == [str(path) for path in paths]
    assert [networks.clap_sha256, networks.model_sha256] == digests
    assert networks.clap.digest == networks.clap_sha256
    assert not networks.clap.training
    assert not networks.separator.training


def test_kept_adapters_compute_what_merged_ones_do(tmp_path: Path, pair: pairs.Pair) -> None:
    paths = pairs.write(tmp_path, pair)
    merged, kept = load(paths), load(paths, adapters="keep")
    assert len(lora.adapted_layers(kept.separator.encoder)) == 8
    torch.testing.assert_close(answer(kept), answer(merged), rtol=1e-4, atol=1e-6)


def test_networks_survive_their_files(tmp_path: Path, pair: pairs.Pair) -> None:
    paths = pairs.write(tmp_path, pair)
    networks = load(paths)
    before = answer(networks)
    for path in paths:
        path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(answer(networks), before)


def test_kept_adapters_do_not_reach_clap(tmp_path: Path, pair: pairs.Pair) -> None:
    networks = load(pairs.write(tmp_path, pair), adapters="keep")
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
    expected = load(paths)
    store(pair, paths)
    found = load(paths)
    for part in ("clap", "separator"):
        before, after = getattr(expected, part).state_dict(), getattr(found, part).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


# Ways to spoil a pair. Each writes its file over the good one and returns the message's pattern.

Spoil = Callable[[pairs.Pair, tuple[Path, Path]], str]
DECODER_KEY = "decoder_model.film.norm.bias"


def missing_key(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    del pair.clapsep[DECODER_KEY]
    torch.save(pair.clapsep, paths[1])
    return rf"clapsep\.ckpt: not this network's weights: 1 missing \({DECODER_KEY}\)$"


def missing_adapter(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    del pair.clapsep["audio_branch.layers.0.blocks.1.attn.proj.lora_B"]
    torch.save(pair.clapsep, paths[1])
    return r"1 missing \(audio_branch\.layers\.0\.blocks\.1\.attn\.proj\.lora_B\)$"


def missing_tower(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    kept = {key: value for key, value in pair.clap.items() if not key.startswith("text_branch")}
    torch.save(pairs.clap_checkpoint(kept), paths[0])
    return r"clap\.pt: .* 23 missing \(text_branch\.[^)]*, … 13 more\)$"


def extra_key(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    torch.save(pair.clapsep | {"decoder_model.extra.weight": torch.ones(2)}, paths[1])
    return r"1 unexpected \(decoder_model\.extra\.weight\)$"


def wrong_shape(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    torch.save(pair.clapsep | {DECODER_KEY: torch.ones(17)}, paths[1])
    return rf"1 misshapen \({DECODER_KEY}: found \[17\], expected \[16\]\)$"


def wrong_rank(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    halved = {
        k: v[:1] if k.endswith("lora_A") else v[:, :1] if k.endswith("lora_B") else v
        for k, v in pair.clapsep.items()
    }
    torch.save(halved, paths[1])
    return r"16 misshapen \(.*lora_A: found \[1, 8\], expected \[2, 8\]"


def another_size(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    torch.save(published.hollow_state("clapsep"), paths[1])
    return r"clapsep\.ckpt: .*\d+ unexpected .*\d+ misshapen .* … \d+ more\)$"


def nested_wrongly(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    torch.save({"model": {"state_dict": pair.clapsep}}, paths[1])
    return r"clapsep\.ckpt: not a state dict: 1 are \(model\) not tensors$"


def a_list(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    torch.save(list(pair.clapsep.values()), paths[1])
    return r"clapsep\.ckpt: expected a dict of tensors, found list$"


def no_weights(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    torch.save({"epoch": 3, "state_dict": {}}, paths[1])
    return r"clapsep\.ckpt: expected a dict of tensors, found an empty dict$"


def integer_weights(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    torch.save(pair.clapsep | {DECODER_KEY: torch.ones(16, dtype=torch.int8)}, paths[1])
    return rf"1 of another type \({DECODER_KEY}: found torch\.int8, expected torch\.float32\)$"


def not_a_number(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    torch.save(pair.clapsep | {DECODER_KEY: torch.full((16,), torch.nan)}, paths[1])
    return rf"1 with NaN or infinite values \({DECODER_KEY}\)$"


def swapped(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    first, second = paths[0].read_bytes(), paths[1].read_bytes()
    paths[0].write_bytes(second)
    paths[1].write_bytes(first)
    return r"clap\.pt: expected a CLAP checkpoint, found a CLAPSep checkpoint$"


def pickle_with_code(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    torch.save(pair.clapsep | {"hook": threading.Thread}, paths[1])
    return r"clapsep\.ckpt: the pickle asks for threading\.Thread, .*; it was not run$"


def truncated(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    paths[1].write_bytes(paths[1].read_bytes()[:-1000])
    return r"clapsep\.ckpt: only a part of a torch file \(\d+ bytes\)$"


def empty(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    paths[1].write_bytes(b"")
    return r"clapsep\.ckpt: the file is empty$"


def web_page(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    paths[0].write_text("<!DOCTYPE html><html><head><title>429 Too Many Requests")
    return r"clap\.pt: a web page, not weights"


def lfs_pointer(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    paths[0].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:fae3\nsize 2352\n")
    return r"clap\.pt: a Git LFS pointer"


def absent(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    paths[0].unlink()
    return r"clap\.pt: no such file$"


@pytest.mark.parametrize(
    "spoil",
    [
        missing_key,
        missing_adapter,
        missing_tower,
        extra_key,
        wrong_shape,
        wrong_rank,
        another_size,
        nested_wrongly,
        a_list,
        no_weights,
        integer_weights,
        not_a_number,
        swapped,
        pickle_with_code,
        truncated,
        empty,
        web_page,
        lfs_pointer,
        absent,
    ],
)
def test_spoiled_file_gives_one_clear_error(
    tmp_path: Path, pair: pairs.Pair, spoil: Spoil, recwarn: pytest.WarningsRecorder
) -> None:
    paths = pairs.write(tmp_path, pair)
    pattern = spoil(pair, paths)
    with pytest.raises(CheckpointError, match=pattern) as caught:
        load(paths)
    message = str(caught.value)
    assert message.startswith(str(tmp_path))
    assert "\n" not in message
    assert not [str(w.message) for w in recwarn if "meshgrid" not in str(w.message)]


@pytest.mark.parametrize("which", ["clap_sha256", "clapsep_sha256"])
def test_wrong_digest_is_refused_before_reading(
    tmp_path: Path, pair: pairs.Pair, which: str
) -> None:
    paths = pairs.write(tmp_path, pair)
    for path in paths:
        path.write_bytes(b"never read as weights")
    with pytest.raises(CheckpointError, match=f"expected SHA-256 {'0' * 64}, found ") as caught:
        load(paths, **{which: "0" * 64, "clap_sha256": "0" * 64})
    assert str(caught.value).startswith(str(paths[0]))


# The converted file.


@pytest.fixture
def networks(tmp_path: Path, pair: pairs.Pair) -> Networks:
    return load(pairs.write(tmp_path, pair))


def test_converted_file_gives_the_same_network_bit_for_bit(
    tmp_path: Path, networks: Networks
) -> None:
    path = tmp_path / "model.safetensors"
    sha256 = save(str(path), networks)
    found = load_converted(str(path), sha256=sha256)
    assert found.config == TINY
    assert torch.equal(answer(found), answer(networks))
    assert (found.model_sha256, found.clap_sha256) == (sha256, networks.clap_sha256)
    assert found.sources == networks.sources
    assert found.clap.digest == networks.clap_sha256
    clap = found.clap.state_dict()
    assert all(torch.equal(clap[key], v) for key, v in networks.clap.state_dict().items())


@pytest.mark.parametrize("adapters", ["merge", "keep"])
def test_converted_adapters_are_merged_when_asked(
    tmp_path: Path, pair: pairs.Pair, networks: Networks, adapters: loading.Adapters
) -> None:
    trainable = load(pairs.write(tmp_path, pair), adapters="keep")
    path = str(tmp_path / "model.safetensors")
    save(path, trainable, adapters="keep")
    found = load_converted(path, adapters=adapters)
    assert bool(lora.adapted_layers(found.separator.encoder)) == (adapters == "keep")
    assert torch.equal(answer(found), answer(trainable if adapters == "keep" else networks))


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
    assert torch.equal(answer(found), answer(networks))
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
    expected, given = answer(networks), answer(found)
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
