"""The full-size network equals the reference implementation's stored outputs, in every case.

With weights made by formula: 2 GB of memory and, on two cores, about a minute.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from golden import pairs, published, synth
from model.checkpoints.loading import Networks
from model.clap import quantise_int16
from model.config import PUBLISHED
from model.signal.windowing import WindowPlan, separate_array
from model.systems import Condition, Normalisation, fuse

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

WAVEFORM_TOLERANCE = 2e-6
MASK_TOLERANCE = 5e-5
FEATURE_TOLERANCE = 5e-4
EMBEDDING_TOLERANCE = 1e-5
BF16_SDR_DB = 40.0
SAMPLES, HEARD_SAMPLES = 320_000, 480_000
RATE_HZ, HEARD_RATE_HZ = 32_000, 48_000
P0, N0, P1 = 1100, 1101, 1102  # seeds of the stored cases' query embeddings
FEATURES = ("feat_patch_embed", *(f"feat_layer{number}" for number in range(4)))


@pytest.fixture(scope="module")
def networks() -> Networks:
    return pairs.networks(PUBLISHED)


@functools.cache
def stored(name: str) -> dict[str, np.ndarray]:
    with np.load(published.DATA / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


@functools.cache
def sound(index: int, rate_hz: int) -> np.ndarray:
    """Mixture ``index`` of the formula, 10 s."""
    return synth.mixture(synth.SEED_BASE + index, rate_hz, 10 * rate_hz)


def embedding(seed: int) -> Tensor:
    return torch.from_numpy(synth.unit_embed(seed))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One stored forward."""

    positive: tuple[Callable[[], Tensor | None], ...]
    negative: tuple[int | None, ...]
    normalisation: Normalisation = "normalised"
    num_samples: int = SAMPLES
    heard_samples: int = HEARD_SAMPLES

    def mixture(self) -> Tensor:
        rows = [sound(index, RATE_HZ) for index in range(len(self.positive))]
        return torch.from_numpy(np.stack(rows))[:, : self.num_samples]

    def heard(self) -> Tensor:
        rows = [sound(index, HEARD_RATE_HZ) for index in range(len(self.positive))]
        return torch.from_numpy(np.stack(rows))[:, : self.heard_samples]

    def condition(self) -> Condition:
        absent = torch.zeros(PUBLISHED.clap.embedding_dim)
        positive = [make() for make in self.positive]
        negative = [None if seed is None else embedding(seed) for seed in self.negative]
        return Condition(
            positive=torch.stack([absent if row is None else row for row in positive]),
            negative=torch.stack([absent if row is None else row for row in negative]),
            normalisation=self.normalisation,
        )


def asks_for(seed: int) -> Callable[[], Tensor]:
    return lambda: embedding(seed)


def asks_for_nothing() -> None:
    return None


def asks_for_a_sum() -> Tensor | None:
    return fuse(embedding(P0), embedding(P1), fusion="sum")


CASES = {
    "sep_pn": Case(positive=(asks_for(P0),), negative=(N0,)),
    "sep_p_only": Case(positive=(asks_for(P0),), negative=(None,)),
    "sep_n_only": Case(positive=(asks_for_nothing,), negative=(N0,)),
    "sep_pn_raw": Case(positive=(asks_for(P0),), negative=(N0,), normalisation="unnormalised"),
    "sep_sum_query": Case(positive=(asks_for_a_sum,), negative=(N0,)),
    "sep_batch2": Case(positive=(asks_for(P0), asks_for(P1)), negative=(N0, None)),
    "sep_short": Case(
        positive=(asks_for(P0),), negative=(N0,), num_samples=100_001, heard_samples=150_002
    ),
}


def close(found: Tensor | np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=tolerance)


def check_waveform(found: np.ndarray, golden: dict[str, np.ndarray]) -> None:
    if "wav" in golden:
        close(found, golden["wav"], WAVEFORM_TOLERANCE)
        return
    assert found.shape == tuple(golden["wav_shape"])
    close(found[:, :: int(golden["wav_stride"])], golden["wav_strided"], WAVEFORM_TOLERANCE)
    length = golden["wav_stretches"].shape[-1]
    for position, start in enumerate(golden["wav_starts"]):
        stretch = found[:, start : start + length]
        close(stretch, golden["wav_stretches"][:, position], WAVEFORM_TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_separation(name: str, networks: Networks) -> None:
    case, golden = CASES[name], stored(name)
    with torch.inference_mode():
        encoded = networks.separator.encode(case.mixture(), case.heard())
        mask = networks.separator.predict_mask(encoded, case.condition()).magnitude
        waveform = networks.separator.decode(encoded, case.condition()).numpy()
    close(mask[:, ::20, ::4], golden["mask_slice"], MASK_TOLERANCE)
    moments = torch.stack((mask.mean(dim=(1, 2)), mask.std(dim=(1, 2), correction=0)), dim=1)
    close(moments, golden["mask_mean_std"], MASK_TOLERANCE)
    check_waveform(waveform, golden)


@pytest.mark.parametrize("name", ["sep_pn", "sep_batch2", "sep_short"])
def test_features(name: str, networks: Networks) -> None:
    case, golden = CASES[name], stored(name)
    with torch.inference_mode():
        encoded = networks.separator.encode(case.mixture(), case.heard())
    for key, stage in zip(FEATURES, encoded.features.stages, strict=True):
        assert tuple(stage.shape) == tuple(golden[f"{key}_shape"])
        flat = stage.reshape(-1)[:: int(golden[f"{key}_step"])]
        close(flat, golden[f"{key}_flat"], FEATURE_TOLERANCE)
    magnitude = encoded.spectrum.abs().transpose(1, 2).reshape(-1)
    flat = magnitude[:: int(golden["stft_mag_step"])]
    close(flat, golden["stft_mag_flat"], FEATURE_TOLERANCE)


def test_double_precision_reference(networks: Networks) -> None:
    case, golden = CASES["sep_pn"], stored("sep_pn_float64")
    with torch.inference_mode():
        encoded = networks.separator.encode(case.mixture(), case.heard())
        mask = networks.separator.predict_mask(encoded, case.condition()).magnitude
        waveform = networks.separator.decode(encoded, case.condition()).numpy()
    close(mask[:, ::20, ::4], golden["mask_slice"], MASK_TOLERANCE)
    check_waveform(waveform, golden)


def test_bfloat16_stays_close(networks: Networks) -> None:
    case, expected = CASES["sep_pn"], stored("sep_pn")["wav"].astype(np.float64)
    separator = networks.separator
    separator.precision = "bf16"
    try:
        with torch.inference_mode():
            waveform = separator.separate(case.mixture(), case.condition(), case.heard()).numpy()
    finally:
        separator.precision = "fp32"
    error = np.square(waveform - expected).sum()
    assert 10 * np.log10(np.square(expected).sum() / error) >= BF16_SDR_DB


def test_application_protocol(networks: Networks) -> None:
    golden = stored("app_path")
    third = synth.mixture(synth.SEED_BASE + 2, RATE_HZ, SAMPLES)[:108_801]
    recording = 5 * np.concatenate((sound(0, RATE_HZ), sound(1, RATE_HZ), third))
    assert recording.shape[-1] == int(golden["length_in"])
    gain = 0.9 / np.abs(recording).max()
    assert gain == pytest.approx(float(golden["gain"]), rel=1e-6)
    scaled = (recording * np.float32(gain))[None].astype(np.float32)
    condition = CASES["sep_pn"].condition()

    def separate(windows: Tensor) -> Tensor:
        rows = torch.zeros(len(windows), dtype=torch.int64)
        return networks.separator.separate(windows, condition.index(rows))

    with torch.inference_mode():
        plan = WindowPlan.application_protocol(SAMPLES)
        found = separate_array(scaled, separate, plan, batch_size=1)[0]
    assert found.shape[-1] == int(golden["length_out"])
    close(found[::5], golden["wav_every5"], WAVEFORM_TOLERANCE)
    end = int(golden["length_in"])
    pieces = {
        "wav_head": slice(0, 4000),
        "wav_tail": slice(-4000, None),
        "wav_border1": slice(SAMPLES - 2000, SAMPLES + 2000),
        "wav_border2": slice(2 * SAMPLES - 2000, 2 * SAMPLES + 2000),
        "wav_end_of_input": slice(end - 2000, end + 2000),
    }
    for name, piece in pieces.items():
        close(found[piece], golden[name], WAVEFORM_TOLERANCE)


def clips(name: str) -> list[np.ndarray]:
    first, second = sound(0, HEARD_RATE_HZ), sound(1, HEARD_RATE_HZ)
    return {
        "emb": [first, second],
        "emb_short_repeatpad": [first[:150_002]],
        "emb_loud": [4 * first],
    }[name]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("emb", "quant"),
        ("emb", "noquant"),
        ("emb_short_repeatpad", "quant"),
        ("emb_short_repeatpad", "noquant"),
        ("emb_loud", "quant"),
    ],
)
def test_audio_embedding(name: str, suffix: str, networks: Networks) -> None:
    tensors = [torch.from_numpy(clip) for clip in clips(name)]
    with torch.inference_mode():
        found = networks.clap.embed_audio(tensors, quantise=suffix == "quant")
    close(found, stored("clap_audio")[f"{name}_{suffix}"], EMBEDDING_TOLERANCE)


def test_audio_embedding_of_a_crop(networks: Networks) -> None:
    """The reference crops at random; its crop's embedding is ours of the same stretch."""
    golden = stored("clap_audio")
    both = np.concatenate((sound(0, HEARD_RATE_HZ), sound(1, HEARD_RATE_HZ)[:120_000]))
    start = int(golden["long_crop_index"])
    quantised = quantise_int16(torch.from_numpy(both))[start : start + HEARD_SAMPLES]
    with torch.inference_mode():
        found = networks.clap.embed_audio([quantised])
    close(found, golden["emb_long_randtrunc_seed0"], EMBEDDING_TOLERANCE)


def test_audio_latent(networks: Networks) -> None:
    golden = stored("clap_audio")
    with torch.inference_mode():
        latent = networks.clap.audio_branch.latent(torch.from_numpy(np.stack(clips("emb"))))
    assert tuple(latent.shape) == tuple(golden["latent1024_shape"])
    flat = latent.reshape(-1)[:: int(golden["latent1024_step"])]
    close(flat, golden["latent1024_flat"], FEATURE_TOLERANCE)


def test_text_embedding(networks: Networks) -> None:
    golden = stored("clap_text")
    tokens = synth.token_batch(synth.SEED_BASE + 300)
    ids, mask = torch.from_numpy(tokens.input_ids), torch.from_numpy(tokens.attention_mask)
    with torch.inference_mode():
        found = networks.clap.embed_tokens(ids, mask)
        pooled = networks.clap.text_branch.token_latent(ids, mask)
    close(found, golden["emb"], EMBEDDING_TOLERANCE)
    close(pooled, golden["pooler_output"], EMBEDDING_TOLERANCE)


@pytest.mark.parametrize("row", range(5))
def test_text_padding_does_not_matter(row: int, networks: Networks) -> None:
    tokens = synth.token_batch(synth.SEED_BASE + 300)
    ids, mask = torch.from_numpy(tokens.input_ids), torch.from_numpy(tokens.attention_mask)
    with torch.inference_mode():
        alone = networks.clap.embed_tokens(ids[row : row + 1], mask[row : row + 1])
    close(alone[0], stored("clap_text")["emb"][row], EMBEDDING_TOLERANCE)
