"""Configurations: JSON and back, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from model.config import (
    MINI,
    PUBLISHED,
    TINY,
    ClapConfig,
    ClapSepConfig,
    DecoderConfig,
    EncoderConfig,
    LoraConfig,
    SignalConfig,
    TextConfig,
    from_json,
    to_json,
)
from model.training.settings import ClapSettings, TrainingSettings

VARIANT = dataclasses.replace(
    TINY, decoder=dataclasses.replace(TINY.decoder, conv=True, phase=True), lora=None
)


@pytest.mark.parametrize("config", [PUBLISHED, MINI, TINY, VARIANT])
def test_json_and_back(config: ClapSepConfig) -> None:
    text = to_json(config)
    assert from_json(ClapSepConfig, text) == config
    assert text == to_json(from_json(ClapSepConfig, text))
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_fields_left_out_have_their_defaults() -> None:
    text = '{"clap": {"audio": {"depths": [2, 2, 6, 2]}}, "lora": null}'
    config = from_json(ClapSepConfig, text)
    assert config.clap.audio == EncoderConfig(depths=(2, 2, 6, 2))
    assert config.lora is None
    assert config.decoder == PUBLISHED.decoder


def test_what_a_part_leaves_out_is_as_in_the_default_of_that_part() -> None:
    """Of a part whose default is not that of its class."""
    text = '{"clap": {"optimiser": {"steps": 5}, "windows": {"cut_share": 0}}, "seed": 0}'
    settings = from_json(TrainingSettings, text)
    expected = ClapSettings()
    assert settings.clap.optimiser == dataclasses.replace(expected.optimiser, steps=5)
    assert settings.clap.windows == dataclasses.replace(expected.windows, cut_share=0)
    assert from_json(TrainingSettings, to_json(settings)) == settings


def test_a_field_of_a_part_that_stands_outside_of_it_is_named_with_the_part() -> None:
    text = '{"finetuning": {"steps": 40, "open_share": 0.5}}'
    with pytest.raises(
        ValueError, match=r"unknown fields .*; open_share belongs into queries"
    ) as e:
        from_json(TrainingSettings, text)
    assert "; steps belongs into optimiser" in str(e.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('"optimiser": {"held_share": 1.5}', "held_share: expected a share from 0 to 1, found 1.5"),
        ('"queries": {"open_share": -1}', "open_share: expected a share from 0 to 1, found -1"),
        ('"queries": {"source_shares": [1, 1]}', "source_shares: expected shares that sum to 1"),
        ('"queries": {"source_shares": [2, -1]}', "source_shares: expected a share from 0 to 1"),
        ('"optimiser": {"precision": "fp16"}', "precision='fp16': expected 'bf16' or 'fp32'"),
        ('"optimiser": {"ema_decay": 1}', "ema_decay=1: expected 0 or more, and less than 1"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        from_json(TrainingSettings, f'{{"finetuning": {{{change}}}}}')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"signal": {"hop": 320}}', r"ClapSepConfig\.signal: unknown fields \['hop'\]; known"),
        ('{"decoder": [1]}', r"ClapSepConfig\.decoder: expected an object, found \[1\]"),
        ("7", "ClapSepConfig: expected an object, found 7"),
        ("{", "Expecting property name"),
    ],
)
def test_wrong_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(ClapSepConfig, text)


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (EncoderConfig, {"mel_bins": 60}, "spec_size=256 must be a multiple of mel_bins=60"),
        (EncoderConfig, {"depths": (2, 2)}, r"depths=\(2, 2\) and num_heads=.* differ in length"),
        (EncoderConfig, {"window_size": 5}, "stage 0: a grid of 64 patches does not divide"),
        (EncoderConfig, {"spec_size": 192, "window_size": 16}, "stage 1: a grid of 48 patches"),
        (TextConfig, {"kind": "bag"}, "text.kind='bag': expected 'roberta' or 'sentence'"),
        (
            ClapSepConfig,
            {"signal": SignalConfig(window_samples=330_000)},
            "a window of 330000 samples has 1032 encoder frames, but .* holds 1024",
        ),
        (
            ClapSepConfig,
            {"signal": SignalConfig(hop_samples=256)},
            "encoder hop 480 at 48000 Hz and mask hop 256 at 32000 Hz are different times",
        ),
        (
            ClapSepConfig,
            {"decoder": DecoderConfig(depths=(1, 1), num_heads=(4, 8))},
            "decoder and encoder must have the same number of stages",
        ),
    ],
)
def test_impossible_network_is_refused(
    cls: type[Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**arguments)


def test_published_sizes() -> None:
    audio, signal = PUBLISHED.clap.audio, PUBLISHED.signal
    assert (audio.freq_ratio, audio.num_frames, audio.grid_size) == (4, 1024, 64)
    assert (audio.num_features, PUBLISHED.condition_dim) == (1024, 1024)
    assert (signal.num_bins, signal.num_frames(320_000)) == (513, 1001)
    assert (PUBLISHED.lora, PUBLISHED.clap) == (LoraConfig(rank=16, alpha=1.0), ClapConfig())


@pytest.mark.parametrize(("num_samples", "heard"), [(1, 2), (2, 3), (3, 5), (320_000, 480_000)])
def test_encoder_hears_every_sample(num_samples: int, heard: int) -> None:
    assert PUBLISHED.encoder_samples(num_samples) == heard
