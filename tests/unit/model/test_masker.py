"""The masker against torch's own encoder, and its layers against plain formulas."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from float_noise import rounding
from model.config import TINY
from model.systems.clapsep.network import (
    ConvolutionModule,
    TransformerMasker,
    convolutional_masker,
    spectral_masker,
)


@pytest.mark.parametrize("inference", [True, False])
def test_masker_equals_torchs_encoder(inference: bool) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(TINY.decoder, num_masker_layers=2)
    masker = TransformerMasker(config).eval()
    layer = nn.TransformerEncoderLayer(16, 2, 64, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    encoder.load_state_dict(masker.state_dict())
    x = torch.randn(2, 301, 16)
    with torch.inference_mode(inference):
        found, expected = masker(x), encoder(x)
    terms = 2 * (4 * 16 + 301 + 64)  # two layers: projections, attention, feed-forward
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(expected, terms))


def test_convolution_module_equals_its_layers_in_sequence() -> None:
    torch.manual_seed(0)
    module = ConvolutionModule(6).eval()
    parts = module.layers
    nn.init.uniform_(parts["5"].running_var, 0.5, 2.0)
    x = torch.randn(2, 20, 6)
    hidden = parts["2"](parts["0"](x).transpose(1, 2))
    gated = hidden[:, :6] * torch.sigmoid(hidden[:, 6:])
    smooth = parts["5"](parts["4"](gated))
    expected = parts["7"](smooth * torch.sigmoid(smooth)).transpose(1, 2) + x
    found, expected = module(x), module.ln(expected)
    terms = 6 * 3 + parts["4"].kernel_size[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(expected, terms))


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("inference", [True, False])
def test_first_layer_takes_both_inputs_joined(conv: bool, inference: bool) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(TINY.decoder, conv=conv)
    masker = spectral_masker(9 + 4, 9, config).eval()
    spectrogram, frames = torch.randn(2, 30, 9), torch.randn(2, 30, 4)
    with torch.inference_mode(inference):
        expected = torch.cat((spectrogram, frames), dim=-1)
        for layer in masker:
            expected = layer(expected)
        found = masker(masker.hear(spectrogram), frames)
    assert found.shape == (2, 30, 9)
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(expected, 500))


def test_queries_share_the_spectrogram_of_their_mixture() -> None:
    torch.manual_seed(0)
    masker = spectral_masker(9 + 4, 9, TINY.decoder).eval()
    spectrogram, frames = torch.randn(2, 30, 9), torch.randn(5, 30, 4)
    rows = torch.tensor([1, 0, 1, 1, 0])
    with torch.inference_mode():
        shared = masker(masker.hear(spectrogram), frames, rows)
        repeated = masker(masker.hear(spectrogram[rows]), frames)
    torch.testing.assert_close(shared, repeated, rtol=0, atol=rounding(repeated, 500))


def test_names_are_the_published_ones() -> None:
    keys = set(spectral_masker(13, 9, TINY.decoder).state_dict())
    assert {"0.weight", "1.bias", "2.layers.0.self_attn.in_proj_weight", "3.bias"} <= keys
    phase = set(convolutional_masker(13, 18, 1).state_dict())
    assert {"0.weight", "1.bias", "2.layers.4.weight", "2.ln.bias"} <= phase
