"""The encoder equals laion_clap's own forward, run on its own modules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from golden import pairs
from laion_original import whole_htsat
from model.clap.audio import Encoder
from model.config import MINI, TINY, EncoderConfig

CONFIG = TINY.clap.audio
TOLERANCE = 1e-4  # the log of nearly silent mel bands magnifies the two STFTs' difference


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return pairs.networks(TINY).clap.audio_branch


def original(encoder: Encoder) -> nn.Module:
    """laion_clap's whole network with the same weights: convolutional STFT, explicit attention."""
    network = whole_htsat(encoder.config, num_classes=3)
    unexpected = network.load_state_dict(encoder.state_dict(), strict=False).unexpected_keys
    assert not unexpected
    return network.eval()


def original_features(network: nn.Module, waveform: Tensor, pad_to: int | None) -> list[Tensor]:
    """What the reference collects with hooks, its spectrogram padded with zeros of power."""
    stages: list[Tensor] = []
    network.patch_embed.register_forward_hook(lambda _, __, out: stages.append(out))
    for layer in network.layers:
        layer.register_forward_hook(lambda _, __, out: stages.append(out[0]))
    if pad_to is not None:
        network.spectrogram_extractor.register_forward_hook(
            lambda _, __, out: nn.functional.pad(out, (0, 0, 0, pad_to - out.shape[2]))
        )
    with torch.inference_mode():
        stages.append(network({"waveform": waveform})["embedding"])
    return stages


def sound(batch: int, num_samples: int) -> Tensor:
    return 0.1 * torch.randn(batch, num_samples, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("num_samples", [30_000, 20_011, 481])
def test_stage_features_equal_the_original(encoder: Encoder, num_samples: int) -> None:
    waveform = sound(2, num_samples)
    *expected, _ = original_features(original(encoder), waveform, CONFIG.num_frames)
    with torch.inference_mode():
        found = encoder.stage_features(waveform).stages
    assert len(found) == len(expected) == 3
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


def test_latent_equals_the_original_embedding(encoder: Encoder) -> None:
    clips = sound(2, CONFIG.clip_samples)
    expected = original_features(original(encoder), clips, None)[-1]
    with torch.inference_mode():
        found = encoder.latent(clips)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


def test_training_form_equals_inference_form(encoder: Encoder) -> None:
    waveform = sound(2, 20_000)
    with torch.inference_mode():
        fast = encoder.stage_features(waveform).stages
    waveform.requires_grad_()
    slow = encoder.stage_features(waveform).stages
    assert all(stage.requires_grad for stage in slow)
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=2e-5)


def test_augmentation_sees_the_normalised_mel_spectrogram(encoder: Encoder) -> None:
    seen: list[Tensor] = []

    def silence_second_half(image: Tensor) -> Tensor:
        seen.append(image)
        return torch.cat((image[:, :30], torch.zeros_like(image[:, 30:])), dim=1)

    clips = sound(2, CONFIG.clip_samples)
    with torch.inference_mode():
        plain, augmented = encoder.latent(clips), encoder.latent(clips, silence_second_half)
    assert [image.shape for image in seen] == [(2, 63, 32)]
    assert (plain - augmented).abs().max() > 1e-3


@pytest.mark.parametrize("config", [CONFIG, MINI.clap.audio])
def test_silence_and_one_frame_are_finite(config: EncoderConfig) -> None:
    torch.manual_seed(0)
    network = Encoder(config).eval().requires_grad_(False)
    for waveform in (torch.zeros(1, config.n_fft), sound(1, config.n_fft // 2 + 1)):
        for stage in network.stage_features(waveform).stages:
            assert stage.isfinite().all()


def test_grid_halves_and_channels_double(encoder: Encoder) -> None:
    with torch.inference_mode():
        stages = encoder.stage_features(sound(1, 20_000)).stages
    assert [tuple(stage.shape) for stage in stages] == [(1, 256, 8), (1, 64, 16), (1, 64, 16)]
