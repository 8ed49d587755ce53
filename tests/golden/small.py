"""A small network with every part of the published one, and the cases stored for it."""

from __future__ import annotations

import dataclasses

from model.config import (
    TINY,
    ClapConfig,
    ClapSepConfig,
    DecoderConfig,
    EncoderConfig,
    LoraConfig,
    SignalConfig,
)

SMALL = ClapSepConfig(
    signal=SignalConfig(n_fft=512, hop_samples=320, window_samples=80_000),
    clap=ClapConfig(
        audio=EncoderConfig(
            n_fft=512,
            hop_samples=480,
            clip_samples=120_000,
            mel_bins=64,
            spec_size=128,
            patch_size=2,
            embed_dim=8,
            depths=(2, 2, 2, 2),
            num_heads=(1, 2, 4, 8),
        ),
        text=TINY.clap.text,
        embedding_dim=16,
    ),
    decoder=DecoderConfig(
        embed_dim=8,
        num_heads=(1, 2, 4, 8),
        d_attn=64,
        num_masker_layers=2,
        masker_heads=8,
    ),
    lora=LoraConfig(rank=2),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One stored forward: mixtures 0 to B - 1 of the formula, and the seeds of their queries."""

    positive_seeds: tuple[int | None, ...]
    """``None`` is an absent polarity."""
    negative_seeds: tuple[int | None, ...]
    num_samples: int = 80_000
    phase: bool = False
    conv: bool = False

    def config(self) -> ClapSepConfig:
        """The small network in this case's variant."""
        decoder = dataclasses.replace(SMALL.decoder, phase=self.phase, conv=self.conv)
        return dataclasses.replace(SMALL, decoder=decoder)


CASES = {
    "batch": Case(positive_seeds=(1100, 1102, None), negative_seeds=(1101, None, 1103)),
    "short": Case(positive_seeds=(1100,), negative_seeds=(1101,), num_samples=25_001),
    "phase": Case(positive_seeds=(1100,), negative_seeds=(1101,), phase=True),
    "conv": Case(positive_seeds=(1100,), negative_seeds=(1101,), conv=True),
    "phase_conv": Case(positive_seeds=(1100,), negative_seeds=(1101,), phase=True, conv=True),
}
