"""The decoder's parts against torch's and laion_clap's own, and the mask's properties."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from float_noise import rounding
from golden import pairs
from laion_original import htsat_module, original_block
from model.clap.audio import StageFeatures
from model.config import TINY, ClapSepConfig
from model.systems.clapsep.network import (
    Decoder,
    DecoderStage,
    Film,
    InversePatchEmbed,
    Mask,
    SkipConnection,
)

DIM = 2 * TINY.clap.embedding_dim
SHAPES = ((256, 8), (64, 16), (64, 16))


def variant(*, conv: bool = False, phase: bool = False) -> ClapSepConfig:
    decoder = dataclasses.replace(TINY.decoder, conv=conv, phase=phase)
    return dataclasses.replace(TINY, decoder=decoder)


def decoder_of(config: ClapSepConfig) -> Decoder:
    return pairs.networks(config).separator.decoder


def scene(batch: int, num_frames: int = 63) -> tuple[StageFeatures, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    stages = tuple(torch.randn(batch, *shape, generator=generator) for shape in SHAPES)
    magnitude = torch.rand(batch, num_frames, TINY.signal.num_bins, generator=generator)
    condition = F.normalize(torch.randn(batch, DIM, generator=generator), dim=-1)
    return StageFeatures(stages=stages), magnitude, condition


def mask_of(decoder: Decoder, num_frames: int = 63) -> Mask:
    features, magnitude, condition = scene(1, num_frames)
    mask: Mask = decoder(decoder.hear(features, magnitude), condition)
    return mask


def test_film_scales_and_shifts_every_channel() -> None:
    torch.manual_seed(0)
    film, hidden, condition = Film(4, 3), torch.randn(2, 5, 3), torch.randn(2, 4)
    found = film(hidden, condition)
    for row in range(2):
        expected = film.gamma(condition[row]) * hidden[row] + film.beta(condition[row])
        torch.testing.assert_close(found[row], expected, rtol=0, atol=rounding(expected, 2 * 4))


def test_skip_connection_adds_the_state_before_its_norm() -> None:
    torch.manual_seed(0)
    skip, feature = SkipConnection(4, 3, 6), torch.randn(2, 5, 3)
    condition, state = torch.randn(2, 4), torch.randn(2, 5, 6)
    modulated = skip.skip_conv(skip.feature_proj(feature), condition)
    torch.testing.assert_close(skip(skip.hear(feature), condition), skip.norm(modulated))
    added = skip(skip.hear(feature), condition, state)
    torch.testing.assert_close(added, skip.norm(modulated + state))


def test_stage_equals_the_original_blocks() -> None:
    torch.manual_seed(0)
    stage = DecoderStage(8, 16, 2, 2, 8, TINY.decoder, [0.0, 0.1]).eval()
    for parameter in stage.parameters():
        nn.init.normal_(parameter, std=0.3)
    assert [block.shift for block in stage.blocks] == [0, 4]
    x = torch.randn(2, 256, 8)
    with torch.inference_mode():
        expected = x
        for block in stage.blocks:
            expected, _ = original_block(block)(expected)
        found = stage(x)
    terms = 2 * (4 * 8 + 64 + 32)  # two blocks: projections, a window of 8 x 8, feed-forward
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(expected, terms))


def test_image_is_folded_back_as_the_encoder_folded_it() -> None:
    network = htsat_module().HTSAT_Swin_Transformer
    audio = TINY.clap.audio
    frames = torch.randn(2, 1, audio.num_frames, audio.mel_bins)
    folder = nn.Module()
    folder.spec_size, folder.freq_ratio = audio.spec_size, audio.freq_ratio
    image = network.reshape_wav2img(folder, frames)
    found = Decoder(TINY)._unfold(image[:, 0])
    assert torch.equal(found, frames[:, 0])


def test_inverse_patch_embedding_writes_each_patch_where_it_was() -> None:
    torch.manual_seed(0)
    inverse = InversePatchEmbed(3, 4, 2)
    x = torch.randn(1, 4, 3)
    image = inverse(x)
    assert image.shape == (1, 8, 8)
    normed = inverse.norm(x)[0]
    for patch, (row, column) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        expected = torch.einsum("c,cij->ij", normed[patch], inverse.proj.weight[:, 0])
        torch.testing.assert_close(
            image[0, row : row + 4, column : column + 4],
            expected + inverse.proj.bias,
            rtol=0,
            atol=rounding(image, 3 + 3),
        )


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("phase", [False, True])
def test_mask_is_between_nothing_and_all(conv: bool, phase: bool) -> None:
    decoder = decoder_of(variant(conv=conv, phase=phase))
    features, magnitude, condition = scene(2)
    with torch.inference_mode():
        heard = decoder.hear(features, magnitude)
        mask, other = decoder(heard, condition), decoder(heard, condition.flip(0))
    assert mask.magnitude.shape == magnitude.shape
    assert 0 <= mask.magnitude.min() < 0.3
    assert 0.7 < mask.magnitude.max() <= 1
    assert (mask.magnitude - other.magnitude).abs().max() > 0.05
    assert (mask.rotation is not None) == phase
    if mask.rotation is not None:
        torch.testing.assert_close(
            mask.rotation.abs(), torch.ones_like(magnitude), rtol=0, atol=rounding(1.0, 4)
        )


def test_rotation_by_nothing_is_zero_and_not_a_nan() -> None:
    decoder = decoder_of(variant(phase=True))
    nn.init.zeros_(decoder.phase_net[-1].ln.weight)
    nn.init.zeros_(decoder.phase_net[-1].ln.bias)
    with torch.inference_mode():
        rotation = mask_of(decoder).rotation
    assert rotation is not None
    assert not rotation.abs().any()


@pytest.mark.parametrize("num_frames", [1, 7, 63])
def test_mask_is_as_long_as_the_spectrogram(num_frames: int) -> None:
    decoder = decoder_of(TINY)
    with torch.inference_mode():
        mask = mask_of(decoder, num_frames)
    assert mask.magnitude.shape == (1, num_frames, TINY.signal.num_bins)


def test_stochastic_depth_grows_with_the_level() -> None:
    config = dataclasses.replace(TINY.decoder, drop_path_rate=0.2)
    decoder = Decoder(dataclasses.replace(TINY, decoder=config))
    rates = [stage.blocks[0].drop_path.rate for stage in decoder.layers]
    assert rates == [pytest.approx(0.2), 0.0]
