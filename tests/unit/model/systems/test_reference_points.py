from __future__ import annotations

import numpy as np
import pytest
import torch

from golden import synth
from model import registry
from model.config import SignalConfig
from model.metrics import snr_db
from model.systems import Condition
from model.systems.reference_points import MixtureSeparator, OracleIrm

SIGNAL = SignalConfig(n_fft=256, hop_samples=64, window_samples=16_000)


def condition(count: int, reference: torch.Tensor | None = None) -> Condition:
    ones = torch.ones(count, 1)
    return Condition(positive=ones, negative=0 * ones, reference=reference)


def sounds() -> tuple[torch.Tensor, torch.Tensor]:
    target, other = (
        torch.from_numpy(0.05 * synth.source(seed, 32_000, 16_000)).float()[None] for seed in (1, 2)
    )
    return target, target + other


def test_the_mixture_is_returned_as_it_is_and_not_lent() -> None:
    _, mixture = sounds()
    separator = MixtureSeparator(SIGNAL)
    answer = separator.separate(mixture, condition(1))
    assert torch.equal(answer, mixture)
    answer.zero_()
    assert mixture.abs().max() > 0


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_the_oracle_equals_the_mask_computed_bin_by_bin(exponent: float) -> None:
    target, mixture = sounds()
    given = Condition(positive=torch.ones(1, 1), negative=torch.ones(1, 1), reference=target)
    estimate = OracleIrm(SIGNAL, exponent).separate(mixture, given)[0].numpy()

    def frames(signal: torch.Tensor) -> np.ndarray:
        padded = np.pad(signal[0].double().numpy(), 128, mode="reflect")
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256)
        pieces = [padded[start : start + 256] for start in range(0, 16_001, 64)]
        return np.fft.rfft(np.stack(pieces) * window)

    s, n = np.abs(frames(target)) ** 2, np.abs(frames(mixture - target)) ** 2
    masked = np.fft.irfft(frames(mixture) * (s / (s + n + 1e-30)) ** exponent)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256)
    total, weight = np.zeros(16_256), np.zeros(16_256)
    for index, frame in enumerate(masked):
        total[64 * index : 64 * index + 256] += frame * window
        weight[64 * index : 64 * index + 256] += window**2
    np.testing.assert_allclose(estimate, (total / weight.clip(1e-9))[128:-128], atol=2e-6)


def test_the_default_exponent_gives_the_higher_snr() -> None:
    target, mixture = sounds()
    given = condition(1, target)
    levels = [
        float(snr_db(OracleIrm(SIGNAL, exponent).separate(mixture, given), target))
        for exponent in (0.5, 1.0)
    ]
    assert levels[1] > levels[0] > float(snr_db(mixture, target)) + 5


def test_the_oracle_gives_silence_for_silence_and_the_whole_for_the_whole() -> None:
    _, mixture = sounds()
    oracle = OracleIrm(SIGNAL)
    assert oracle.separate(mixture, condition(1, torch.zeros_like(mixture))).abs().max() == 0
    torch.testing.assert_close(
        oracle.separate(mixture, condition(1, mixture)), mixture, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("num_samples", [1, 100, 129, 1000])
def test_short_clips_keep_their_length(num_samples: int) -> None:
    target, mixture = (sound[:, :num_samples] for sound in sounds())
    answer = OracleIrm(SIGNAL).separate(mixture, condition(1, target))
    assert answer.shape == (1, num_samples)
    assert torch.isfinite(answer).all()


def test_queries_of_one_encoding_have_references_of_their_own() -> None:
    target, mixture = sounds()
    oracle = OracleIrm(SIGNAL)
    both = torch.cat([target, mixture - target])
    shared = oracle.decode(oracle.encode(mixture).index(torch.tensor([0, 0])), condition(2, both))
    for row in range(2):
        alone = oracle.separate(mixture, condition(1, both[row : row + 1]))
        torch.testing.assert_close(shared[row : row + 1], alone)
    chosen = condition(2, both).index(torch.tensor([1]))
    assert chosen.reference is not None
    assert torch.equal(chosen.reference, both[1:])


def test_a_missing_or_misshapen_reference_is_refused() -> None:
    target, mixture = sounds()
    oracle = OracleIrm(SIGNAL)
    with pytest.raises(ValueError, match="needs the reference"):
        oracle.separate(mixture, condition(1))
    with pytest.raises(ValueError, match="expected the mixture's shape"):
        oracle.separate(mixture, condition(1, target[:, :-1]))
    with pytest.raises(ValueError, match="exponent=0"):
        OracleIrm(SIGNAL, exponent=0)


@pytest.mark.parametrize("name", ["mixture", "oracle-irm"])
def test_both_are_in_the_registry_without_weights(name: str) -> None:
    loaded = registry.load(name)
    assert loaded.name == loaded.separator.name == name
    assert loaded.card.files == ()
    assert loaded.query_encoder.embed_text(["a", "b"]).shape == (2, loaded.separator.embedding_dim)
    assert loaded.query_encoder.embed_audio([torch.zeros(9)]).shape == (1, 1)
    assert loaded.separator.capabilities.needs_reference == (name == "oracle-irm")
    assert registry.default_scorer(name) == "clapsep-mini"
    assert registry.default_scorer("file.safetensors") == "own"
