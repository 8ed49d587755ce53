"""Key layouts: what is published maps to our names, and every difference is listed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from golden import pairs, published
from model.checkpoints import loading
from model.checkpoints.loading import LayoutError
from model.config import PUBLISHED, TINY, LoraConfig
from model.systems.clapsep.network import ClapSep

LORA = TINY.lora
assert LORA is not None


def numbers(*shape: int) -> Tensor:
    return torch.arange(float(np.prod(shape))).reshape(shape)


def test_layout_of_the_published_configuration_is_the_published_one() -> None:
    made = pairs.shapes(PUBLISHED)
    for namespace, tensors in (("clap", made.clap), ("clapsep", made.clapsep)):
        expected = published.layout(namespace)
        assert {key: (value.dtype, tuple(value.shape)) for key, value in tensors.items()} == {
            key: (spec.dtype, spec.shape) for key, spec in expected.items()
        }


@pytest.mark.parametrize("without_copies", [False, True])
def test_published_keys_map_strictly(without_copies: bool) -> None:
    networks = pairs.states(PUBLISHED)
    clap_file = published.hollow_state("clap")
    clapsep_file = published.hollow_state("clapsep")
    if without_copies:
        clapsep_file = {k: v for k, v in clapsep_file.items() if not k.startswith("clap_model.")}
        assert len(clapsep_file) == 264
    found = loading.clap_tensors(clap_file, networks.clap, "clap.pt")
    assert set(found) == set(networks.clap)
    tuned = loading.clapsep_tensors(
        clapsep_file, networks.encoder, networks.decoder, PUBLISHED.lora, "clapsep.ckpt"
    )
    assert len(tuned.encoder) == 108
    assert sum(value.numel() for value in tuned.encoder.values()) == 896_000
    assert set(tuned.decoder) == set(networks.decoder)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("nested", [False, True])
def test_unwrap_finds_the_tensors(prefix: str, nested: bool) -> None:
    state = {f"{prefix}a.weight": numbers(2), f"{prefix}b": numbers(3)}
    content = {"epoch": 3, "optimizer": {}, "state_dict": state} if nested else state
    assert list(loading.unwrap(content, "file")) == ["a.weight", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([numbers(2)], "expected a dict of tensors, found list"),
        ({}, "found an empty dict"),
        ({"state_dict": None}, "found NoneType"),
        ({"model": {"a": numbers(2)}}, r"1 are \(model\) not tensors"),
        ({"a": numbers(2), "epoch": 3, "name": "x"}, r"2 are \(epoch, name\) not tensors"),
    ],
)
def test_unwrap_refuses_what_is_no_state_dict(content: object, message: str) -> None:
    with pytest.raises(LayoutError, match=f"^file: .*{message}"):
        loading.unwrap(content, "file")


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["text_branch.pooler.dense.weight"], "clap"),
        (["audio_projection.0.weight"], "clap"),
        (["decoder_model.film.norm.bias"], "clapsep"),
        (["clap_model.model.text_branch.x", "decoder_model.film.norm.bias"], "clapsep"),
        (["encoder.weight"], "unknown"),
    ],
)
def test_identify_by_keys(keys: list[str], kind: str) -> None:
    assert loading.identify(keys) == kind


def test_match_lists_every_difference() -> None:
    expected = {
        "missing": numbers(1),
        "shape": numbers(2, 3),
        "type": numbers(2),
        "broken": numbers(2),
        "endless": numbers(2),
        "fine": numbers(4),
    }
    found = {
        "shape": numbers(3, 2),
        "type": numbers(2).long(),
        "broken": torch.tensor([1.0, torch.nan]),
        "endless": torch.tensor([torch.inf, -torch.inf]),
        "fine": numbers(4),
        "extra": numbers(1),
    }
    with pytest.raises(LayoutError) as caught:
        loading.match(found, expected, where="there")
    assert str(caught.value) == (
        "there: not this network's weights: 1 missing (missing); 1 unexpected (extra); "
        "1 misshapen (shape: found [3, 2], expected [2, 3]); "
        "1 of another type (type: found torch.int64, expected torch.float32); "
        "2 with NaN or infinite values (broken, endless)"
    )


def test_match_counts_what_it_does_not_list() -> None:
    expected = {f"w{index:02d}": numbers(1) for index in range(25)}
    with pytest.raises(LayoutError, match=r"25 missing \(w00, .*, w09, … 15 more\)$"):
        loading.match({}, expected, where="there")


def test_large_but_finite_values_are_accepted() -> None:
    large = {"w": torch.full((4,), 3e38)}
    assert loading.match(large, {"w": numbers(4)}, where="there")["w"] is large["w"]


def test_match_allows_derived_optional_and_ignored_keys_only() -> None:
    expected = {
        "attn.relative_position_index": numbers(2).long(),
        "block.attn_mask": numbers(2),
        "chosen": numbers(2),
        "needed": numbers(2),
    }
    found = {"needed": numbers(2), "ballast.x": numbers(9)}
    kept = loading.match(
        found, expected, where="there", ignored=[r"ballast\."], optional={"chosen"}
    )
    assert list(kept) == ["needed"]
    with pytest.raises(LayoutError, match=r"1 unexpected \(not\.ballast\.x\)"):
        loading.match(
            {"needed": numbers(2), "not.ballast.x": numbers(9)},
            expected,
            where="there",
            ignored=[r"ballast\."],
            optional={"chosen"},
        )


def test_present_derived_key_is_taken_and_checked() -> None:
    expected = {"block.attn_mask": numbers(2)}
    found = {"block.attn_mask": -numbers(2)}
    assert loading.match(found, expected, where="there") == found
    with pytest.raises(LayoutError, match="misshapen"):
        loading.match({"block.attn_mask": numbers(3)}, expected, where="there")


def test_adapters_cover_window_attention_only() -> None:
    encoder = pairs.states(TINY).encoder
    names = {key.rpartition(".")[0] for key in loading.adapter_shapes(encoder, LORA)}
    assert names == {
        f"layers.{stage}.blocks.{block}.attn.{layer}"
        for stage in range(2)
        for block in range(2)
        for layer in ("qkv", "proj")
    }
    only_qkv = LoraConfig(rank=3, targets=("qkv",))
    shapes = loading.adapter_shapes(encoder, only_qkv)
    assert not any(".proj." in key for key in shapes)
    assert shapes["layers.0.blocks.0.attn.qkv.lora_A"].shape == (3, 8)
    assert shapes["layers.0.blocks.0.attn.qkv.lora_B"].shape == (24, 3)


def test_merge_adds_the_scaled_product() -> None:
    rng = np.random.default_rng(3)
    weight, down, up = (rng.standard_normal(size) for size in ((6, 4), (2, 4), (6, 2)))
    state = {
        "x.weight": torch.tensor(weight),
        "x.bias": numbers(6),
        "x.lora_A": torch.tensor(down),
        "x.lora_B": torch.tensor(up),
        "y.weight": numbers(2, 2),
    }
    before = {key: value.clone() for key, value in state.items()}
    merged = loading.merge_lora(state, LoraConfig(rank=2, alpha=3.0))
    assert set(merged) == {"x.weight", "x.bias", "y.weight"}
    np.testing.assert_allclose(merged["x.weight"], weight + 1.5 * up @ down, rtol=1e-6)
    assert all(torch.equal(state[key], value) for key, value in before.items())


def test_names_translate_to_peft_and_back() -> None:
    state = {
        "layers.0.blocks.0.attn.qkv.weight": numbers(6, 2),
        "layers.0.blocks.0.attn.qkv.bias": numbers(6),
        "layers.0.blocks.0.attn.qkv.lora_A": numbers(1, 2),
        "layers.0.blocks.0.attn.qkv.lora_B": numbers(6, 1),
        "layers.0.blocks.0.attn.proj.weight": numbers(2, 2),
        "bn0.weight": numbers(2),
    }
    there = loading.to_peft(state)
    assert list(there) == [
        "layers.0.blocks.0.attn.qkv.base_layer.weight",
        "layers.0.blocks.0.attn.qkv.base_layer.bias",
        "layers.0.blocks.0.attn.qkv.lora_A.default.weight",
        "layers.0.blocks.0.attn.qkv.lora_B.default.weight",
        "layers.0.blocks.0.attn.proj.weight",
        "bn0.weight",
    ]
    assert loading.from_peft(there) == state


@pytest.mark.parametrize("targets", [("qkv", "proj"), ("qkv",)])
def test_translated_names_are_those_peft_gives(targets: tuple[str, ...]) -> None:
    from model.systems.clapsep import lora

    settings = LoraConfig(rank=2, targets=targets)
    encoder = ClapSep(TINY).encoder
    plain = encoder.state_dict()
    tuned = loading.adapter_shapes(plain, settings)
    lora.add_adapters(encoder, settings)
    adapted = encoder.state_dict()
    translated = loading.to_peft({**plain, **tuned})
    assert {key: value.shape for key, value in translated.items()} == {
        key: value.shape for key, value in adapted.items()
    }
    assert set(loading.from_peft(adapted)) == {*plain, *tuned}


def test_file_of_the_other_kind_is_named() -> None:
    pair = pairs.formula_pair(TINY)
    networks = pairs.states(TINY)
    with pytest.raises(LayoutError, match="x: expected a CLAP checkpoint, found a CLAPSep"):
        loading.clap_tensors(pair.clapsep, networks.clap, "x")
    with pytest.raises(LayoutError, match="x: expected a CLAPSep checkpoint, found a CLAP"):
        loading.clapsep_tensors(pair.clap, networks.encoder, networks.decoder, LORA, "x")


def test_configuration_without_lora_expects_no_adapters() -> None:
    networks = pairs.states(TINY)
    encoder, decoder = networks.encoder, networks.decoder
    pair = pairs.formula_pair(TINY)
    bare = {k: v for k, v in pair.clapsep.items() if not k.startswith("audio_branch.")}
    assert loading.clapsep_tensors(bare, encoder, decoder, None, "x").encoder == {}
    with pytest.raises(LayoutError, match=r"16 unexpected \(audio_branch.*lora_A"):
        loading.clapsep_tensors(pair.clapsep, encoder, decoder, None, "x")
