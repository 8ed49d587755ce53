"""Swin blocks: equal to laion_clap's own forward, and prepared for inference."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from float_noise import rounding
from laion_original import htsat_module, original_block
from model.clap import audio
from model.clap.audio import Encoder, SwinBlock
from model.config import TINY

TERMS = 500
"""Summed one after the other in a block: projections, attention over a window, feed-forward."""


def block(grid: int, window: int, shifted: bool, dim: int = 12, heads: int = 3) -> SwinBlock:
    torch.manual_seed(grid + window + shifted)
    module = SwinBlock(
        dim, grid, heads, window, shifted=shifted, mlp_ratio=4.0, drop_path=0.1
    ).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize(("grid", "window"), [(8, 4), (6, 3), (4, 4), (4, 8), (10, 5)])
def test_block_equals_the_original(grid: int, window: int, shifted: bool, inference: bool) -> None:
    module, x = block(grid, window, shifted), torch.randn(3, grid * grid, 12)
    with torch.inference_mode(inference):
        expected, _ = original_block(module)(x)
        found = module(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(expected, TERMS))


def test_dropped_paths_are_the_original_ones() -> None:
    module, x = block(8, 4, True).train(), torch.randn(16, 64, 12)
    original = original_block(module)
    torch.manual_seed(1)
    expected, _ = original(x)
    torch.manual_seed(1)
    found = module(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(expected, TERMS))


def test_bias_of_a_shifted_block_masks_other_regions() -> None:
    bias = block(8, 4, True).attention_bias()
    assert bias.shape == (4, 3, 16, 16)
    masked = bias < -50
    assert not masked[0].any()  # the first window does not touch the seam
    assert masked[3].any(dim=-1).all()
    assert block(8, 4, False).attention_bias().shape == (1, 3, 16, 16)


def test_merging_equals_the_original() -> None:
    torch.manual_seed(0)
    merging, original = audio.PatchMerging(5), htsat_module().PatchMerging((6, 6), 5)
    original.load_state_dict(merging.state_dict(), strict=True)
    x = torch.randn(2, 36, 5)
    with torch.inference_mode():
        found, expected = merging(x), original(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(expected, TERMS))


def shuffled(expand: audio.PatchExpand, x: Tensor) -> Tensor:
    """Pixel by pixel: quarter q of a patch's channels goes to row q % 2 and column q // 2."""
    batch, patches, channels = x.shape
    side, quarter = int(patches**0.5), channels // 2
    wide = x @ expand.expand.weight.T
    image = torch.zeros(batch, 2 * side, 2 * side, quarter)
    for row in range(side):
        for column in range(side):
            for q in range(4):
                part = wide[:, row * side + column, q * quarter : (q + 1) * quarter]
                image[:, 2 * row + q % 2, 2 * column + q // 2] = part
    return expand.norm(image.view(batch, -1, quarter))


def test_patch_expansion_by_brute_force() -> None:
    torch.manual_seed(0)
    expand, x = audio.PatchExpand(12).requires_grad_(False), torch.randn(2, 9, 12)
    found, expected = expand(x), shuffled(expand, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(expected, TERMS))


def test_expansion_puts_patches_where_merging_took_them_from() -> None:
    merging = audio.PatchMerging(3)
    merging.norm, merging.reduction = nn.Identity(), nn.Identity()
    x = torch.randn(1, 16, 3)
    expand = audio.PatchExpand(6)
    expand.expand = Given(merging(x))
    expand.norm = nn.Identity()
    assert torch.equal(expand(torch.zeros(1, 4, 6)), x)


class Given(nn.Module):
    """Always gives the same."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, _: Tensor) -> Tensor:
        return self.value


@pytest.fixture
def prepared() -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(TINY.clap.audio).eval().requires_grad_(False)
    encoder.prepare()
    return encoder


def biases(encoder: Encoder) -> dict[str, Tensor]:
    return {name: value for name, value in encoder.named_buffers() if "prepared_bias" in name}


def test_prepared_biases_are_kept_for_every_block(prepared: Encoder) -> None:
    assert len(biases(prepared)) == sum(TINY.clap.audio.depths)
    assert not any("prepared_bias" in name for name in prepared.state_dict())


def test_prepared_biases_move_with_the_network(prepared: Encoder) -> None:
    assert {value.dtype for value in biases(prepared.double()).values()} == {torch.float64}
    assert {value.device.type for value in biases(prepared.to("meta")).values()} == {"meta"}


def test_prepared_biases_are_forgotten_with_the_parameters_they_came_from(
    prepared: Encoder,
) -> None:
    waveform = torch.randn(1, 30_000)
    state = {key: value * 1.5 for key, value in prepared.state_dict().items() if "table" in key}
    before = prepared.latent(waveform)
    prepared.load_state_dict(state, strict=False)
    assert not biases(prepared)
    loaded = prepared.latent(waveform)
    assert not torch.equal(loaded, before)
    prepared.prepare()
    assert biases(prepared)
    again = prepared.latent(waveform)
    torch.testing.assert_close(again, loaded, rtol=0, atol=rounding(loaded, 4 * TERMS))
    assert not biases(prepared.train())
    assert not prepared.eval().train(mode=False).training


def test_prepared_network_can_be_copied(prepared: Encoder) -> None:
    twin = copy.deepcopy(prepared)
    waveform = torch.randn(1, 30_000)
    assert torch.equal(twin.latent(waveform), prepared.latent(waveform))
    twin.forget()
    assert biases(prepared)
