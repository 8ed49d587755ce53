"""The formula gives the weights that the stored outputs were made with, to the bit."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from golden import published, synth

# Key (with its prefix), and the first 16 hexadecimal digits of the SHA-256 of its float32 bytes.
CHECKSUMS = {
    ("", "clap", "audio_branch.bn0.running_mean"): "08f8da85601f072b",
    ("", "clap", "audio_branch.bn0.running_var"): "6c1da4200f901427",
    ("", "clap", "audio_branch.patch_embed.proj.weight"): "e20b483ed5e89cac",
    ("", "clap", "audio_branch.layers.0.blocks.1.attn.qkv.weight"): "20ef42e205673343",
    (
        "",
        "clap",
        "audio_branch.layers.2.blocks.11.attn.relative_position_bias_table",
    ): "e608592391fe899a",
    ("", "clap", "audio_branch.layers.1.downsample.reduction.weight"): "aa975f0eca8bc620",
    (
        "",
        "clap",
        "text_branch.encoder.layer.3.attention.output.LayerNorm.weight",
    ): "dc9ebd2d873acbee",
    ("", "clap", "audio_projection.2.bias"): "042086e586ed86f7",
    ("", "clapsep", "audio_branch.layers.0.blocks.1.attn.qkv.lora_A"): "a4070acc9ec6627a",
    ("", "clapsep", "audio_branch.layers.0.blocks.1.attn.qkv.lora_B"): "d0c0a67516c4369e",
    ("", "clapsep", "audio_branch.layers.0.blocks.1.attn.qkv.bias"): "b0ab5d2fe4e55e24",
    ("", "clapsep", "decoder_model.inverse_patch_embed.proj.weight"): "f0c07b1d5b0f2196",
    (
        "",
        "clapsep",
        "decoder_model.mask_net.2.layers.0.self_attn.in_proj_weight",
    ): "fdb28b65f4cd8600",
    ("", "clapsep", "decoder_model.mask_net.3.weight"): "2744aefe5e9b8a59",
    ("", "clapsep", "decoder_model.film.skip_conv.gamma.weight"): "94c53c5bfddd1a9b",
    ("", "clapsep", "decoder_model.spec_norm.running_var"): "20f37bf5251d1363",
    ("B:", "clap", "audio_branch.layers.0.blocks.1.attn.qkv.weight"): "f3a8211f58583fae",
    (
        "B:",
        "clapsep",
        "decoder_model.mask_net.2.layers.0.self_attn.in_proj_weight",
    ): "d3a620710413deed",
}


@pytest.mark.parametrize(("name", "expected"), CHECKSUMS.items())
def test_drawn_tensor_has_the_published_checksum(name: tuple[str, str, str], expected: str) -> None:
    prefix, namespace, key = name
    shape = published.layout(namespace)[key].shape
    drawn = synth.tensor(namespace, key, shape, prefix)
    assert hashlib.sha256(drawn.tobytes()).hexdigest()[:16] == expected


def test_layouts_hold_the_published_number_of_tensors() -> None:
    clap, clapsep = published.layout("clap"), published.layout("clapsep")
    assert (len(clap), len(clapsep)) == (504, 300)
    assert sum(synth.is_skipped(key) for key in clap) == 32
    own = [key for key in clapsep if not key.startswith("clap_model.")]
    assert (len(own), sum(synth.is_skipped(key) for key in own)) == (264, 5)


def test_tokens_are_the_stored_ones() -> None:
    with np.load(published.DATA / "clap_text.npz") as stored:
        tokens = synth.token_batch(json.loads(str(stored["meta"]))["seed_base"] + 300)
        np.testing.assert_array_equal(tokens.input_ids, stored["input_ids"])
        np.testing.assert_array_equal(tokens.attention_mask, stored["attention_mask"])


def test_stored_waveform_excerpts_are_one_signal() -> None:
    with np.load(published.DATA / "sep_short.npz") as stored:
        stride = int(stored["wav_stride"])
        for start, stretch in zip(stored["wav_starts"], stored["wav_stretches"][0], strict=True):
            skip = -int(start) % stride
            first = (int(start) + skip) // stride
            on_grid = stretch[skip::stride]
            np.testing.assert_array_equal(
                on_grid, stored["wav_strided"][0, first : first + on_grid.size]
            )


def test_same_sound_at_two_rates_agrees_where_the_samples_coincide() -> None:
    at_32k = synth.mixture(1000, 32000, 3200)
    at_48k = synth.mixture(1000, 48000, 4800)
    np.testing.assert_allclose(at_32k[::2], at_48k[::3], atol=1e-7)
