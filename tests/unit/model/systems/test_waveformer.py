from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import float_noise
from golden import baselines
from layouts_of_baselines import Spoiled, hollow, parsed, spoil
from model import registry
from model.catalogue import WeightsFile
from model.checkpoints.loading import LayoutError, published_state
from model.systems import Condition, waveformer
from model.systems.waveformer import LABELS, LabelQueries, Positions, WaveformerConfig

SMALL = WaveformerConfig(encoder_dim=16, decoder_dim=8, num_encoder_layers=3, frame_samples=4)


def ask(*texts: str) -> Condition:
    vectors = LabelQueries().embed_text(texts)
    return Condition(positive=vectors, negative=torch.zeros_like(vectors))


@pytest.fixture(scope="module")
def golden() -> dict[str, object]:
    return dict(baselines.stored("waveformer"))


@pytest.fixture(scope="module")
def small() -> waveformer.Waveformer:
    torch.manual_seed(0)
    return waveformer.Waveformer(SMALL).prepare()


@pytest.mark.parametrize("dtype", baselines.DTYPES)
@pytest.mark.parametrize("size", ["256_128", "512_256"])
def test_the_network_equals_the_public_code(
    golden: dict[str, object], size: str, dtype: torch.dtype
) -> None:
    layout = parsed(golden[f"layout_{size}"])
    drawn = baselines.formula_state("waveformer", layout)
    state = {key: torch.from_numpy(value) for key, value in drawn.items()}
    width = int(size.split("_")[1])
    state["mask_gen.decoder.pos_enc.pe"] = Positions(width).pe  # equal to the public code's, too
    network = waveformer.from_state(state, "formula").to(dtype).prepare()
    assert f"{network.config.encoder_dim}_{network.config.decoder_dim}" == size
    mixture = torch.from_numpy(baselines.mixture(1000, 44_100, 22_091))[None].to(dtype)
    asked = ask("Bark", "bus and computer keyboard")
    asked = dataclasses.replace(asked, positive=asked.positive.to(dtype))
    with torch.inference_mode():
        heard = network.encode(mixture).index(torch.tensor([0, 0]))
        answer = network.decode(heard, asked)
    expected = torch.from_numpy(golden[f"wav_{size}"])
    assert (expected[0] - expected[1]).square().mean().sqrt() > 0.2 * expected.std()
    baselines.assert_stored("waveformer", **{f"wav_{size}": answer})


def test_the_labels_are_in_the_order_of_the_public_code() -> None:
    # run_baselines.py asks for columns 2, and 5 and 9
    assert (LABELS[2], LABELS[5], LABELS[9]) == ("Bark", "Bus", "Computer_keyboard")
    assert len(LABELS) == 41
    assert list(LABELS) == sorted(LABELS)


@pytest.mark.parametrize("chunks_at_once", [1, 3])
def test_a_stream_gives_what_the_whole_gives(
    small: waveformer.Waveformer, chunks_at_once: int
) -> None:
    step, margin = chunks_at_once * small.chunk_samples, small.margin_samples
    mixture = torch.randn(2, 6 * small.chunk_samples)
    condition = ask("Bark", "Meow")
    padded = torch.nn.functional.pad(mixture, (margin, margin))
    state, pieces = small.start(2), []
    with torch.inference_mode():
        for start in range(0, mixture.shape[-1], step):
            chunk = padded[:, start : start + step + 2 * margin]
            piece, state = small.stream(chunk, condition, state)
            pieces.append(piece)
        whole = small.separate(mixture, condition)
    assert whole.std() > 1e-3
    joined = torch.cat(pieces, dim=-1)
    torch.testing.assert_close(joined, whole, rtol=0, atol=float_noise.rounding(whole, 3 * 100))


def test_the_past_of_a_stream_is_not_changed_in_place(small: waveformer.Waveformer) -> None:
    state = small.start(1)
    chunk = torch.randn(1, small.chunk_samples + 2 * small.margin_samples)
    with torch.inference_mode():
        first, _ = small.stream(chunk, ask("Bark"), state)
        again, _ = small.stream(chunk, ask("Bark"), state)
    assert torch.equal(first, again)


def test_the_future_is_not_heard(small: waveformer.Waveformer) -> None:
    mixture = torch.randn(1, 10 * small.chunk_samples)
    changed = mixture.clone()
    begin = 6 * small.chunk_samples
    changed[:, begin:] = 0
    with torch.inference_mode():
        before, after = (small.separate(each, ask("Bark")) for each in (mixture, changed))
    heard = begin - small.margin_samples - small.chunk_samples
    torch.testing.assert_close(before[:, :heard], after[:, :heard])
    assert not torch.allclose(before[:, begin:], after[:, begin:])


@pytest.mark.parametrize("num_samples", [1, 3, 4, 51, 52, 53, 1000])
def test_any_length(small: waveformer.Waveformer, num_samples: int) -> None:
    with torch.inference_mode():
        answer = small.separate(torch.randn(1, num_samples), ask("Bark"))
    assert answer.shape == (1, num_samples)


def test_what_cannot_be_heard_or_asked_is_refused(small: waveformer.Waveformer) -> None:
    for length in (0, small.window_samples + 1):
        with pytest.raises(ValueError, match="1 ≤ T ≤"):
            small.encode(torch.zeros(1, length))
    with pytest.raises(ValueError, match="multiple of 52"):
        small.stream(torch.zeros(1, 53), ask("Bark"), small.start(1))
    with pytest.raises(ValueError, match="labels, and no example clips"):
        LabelQueries().embed_audio([torch.zeros(9)])
    with pytest.raises(ValueError, match="'a dog' is none of the 41 labels"):
        LabelQueries().embed_text(["a dog"])
    assert LabelQueries().embed_audio([]).shape == (0, 41)


@pytest.mark.parametrize("spoiled", list(Spoiled))
@pytest.mark.parametrize("key", ["out_conv.0.weight", "mask_gen.proj_d2e.0.bias"])
def test_a_spoiled_file_is_refused(golden: dict[str, object], spoiled: Spoiled, key: str) -> None:
    state = spoil(hollow(parsed(golden["layout_256_128"])), key, spoiled)
    with pytest.raises(LayoutError, match=r"spoiled\.pt.*" + key.replace(".", r"\.")):
        waveformer.from_state(state, "spoiled.pt")


def test_another_file_is_refused() -> None:
    with pytest.raises(LayoutError, match="not a Waveformer checkpoint"):
        waveformer.from_state({"ss_model.x": torch.zeros(1)}, "audiosep.ckpt")


def test_the_registry_loads_a_file_of_the_published_layout(
    golden: dict[str, object], tmp_path: Path
) -> None:
    state = hollow(parsed(golden["layout_256_128"]))
    torch.save({"model_state_dict": state, "epoch": 149}, tmp_path / "default_ckpt.pt")
    weights = WeightsFile(role="waveformer", uri=str(tmp_path / "default_ckpt.pt"))
    entry = dataclasses.replace(registry.find("waveformer"), files=(weights,))
    loaded = waveformer.load(entry, registry.LoadOptions())
    assert loaded.separator.sample_rate_hz == 44_100
    assert loaded.separator.embedding_dim == loaded.query_encoder.embedding_dim == 41
    assert loaded.model_sha256 == published_state(weights).file.sha256
    assert loaded.separator.capabilities.labels == LABELS
    with pytest.raises(ValueError, match="fp32 only"):
        waveformer.load(entry, registry.LoadOptions(precision="bf16"))
