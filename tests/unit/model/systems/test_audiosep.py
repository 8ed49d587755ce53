from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from golden import baselines, synth
from layouts_of_baselines import Spoiled, hollow, parsed, spoil
from model import catalogue, registry
from model.catalogue import WeightsFile
from model.checkpoints.fetch import CheckpointError, LocalFile
from model.checkpoints.loading import LayoutError, published_state
from model.checkpoints.loading import unwrap_published as unwrap
from model.systems import Condition, audiosep
from model.systems.masking import MaskingSeparator

SMALL = dataclasses.replace(
    audiosep.CONFIG, condition_size=8, channels=(4, 6, 8), n_fft=256, hop_samples=80
)


@pytest.fixture(scope="module")
def golden() -> dict[str, object]:
    return dict(baselines.stored("audiosep"))


@pytest.fixture(scope="module")
def unfilled() -> MaskingSeparator:
    return audiosep.build_separator()


@pytest.mark.parametrize("dtype", baselines.DTYPES)
def test_the_network_equals_the_public_code(golden: dict[str, object], dtype: torch.dtype) -> None:
    layout = parsed(golden["layout"])
    separator = audiosep.build_separator()
    state = {
        key: torch.from_numpy(value)
        for key, value in baselines.formula_state("audiosep", layout).items()
    }
    audiosep.fill_separator(separator, state, "formula")
    separator.to(dtype).prepare()
    mixture = torch.from_numpy(baselines.mixture(1000, 32_000, 32_100))[None].to(dtype)
    drawn = [torch.from_numpy(synth.unit_embed(seed)) for seed in (1100, 1101)]
    queries = torch.stack(drawn).to(dtype)
    with torch.inference_mode():
        encoded = separator.encode(mixture).index(torch.tensor([0, 0]))
        answer = separator.decode(
            encoded, Condition(positive=queries, negative=torch.zeros_like(queries))
        )
    expected = torch.from_numpy(golden["wav"])
    assert (expected[0] - expected[1]).square().mean().sqrt() > 0.2 * expected.std()
    baselines.assert_stored("audiosep", wav=answer)


def test_a_published_file_is_read_whole_or_not_at_all(
    golden: dict[str, object], tmp_path: Path
) -> None:
    clap = {"query_encoder.model.logit_scale_a": (), "query_encoder.model.text_branch.x": (3,)}
    state = hollow(parsed(golden["layout"]) | clap)
    torch.save({"epoch": 3, "global_step": 4_000_000, "state_dict": state}, tmp_path / "a.ckpt")
    found = published_state(WeightsFile(role="audiosep", uri=str(tmp_path / "a.ckpt")))
    separator = audiosep.build_separator()
    audiosep.fill_separator(separator, found.state, found.file.uri)
    assert all(not tensor.any() for tensor in separator.network.parameters())


@pytest.mark.parametrize("spoiled", list(Spoiled))
def test_a_spoiled_file_is_refused_with_the_key(
    golden: dict[str, object], unfilled: MaskingSeparator, spoiled: Spoiled
) -> None:
    state = spoil(hollow(parsed(golden["layout"])), "ss_model.base.pre_conv.weight", spoiled)
    with pytest.raises(LayoutError, match=r"spoiled\.ckpt.*ss_model\.base\.pre_conv\.weight"):
        audiosep.fill_separator(unfilled, state, "spoiled.ckpt")


def test_another_file_is_refused() -> None:
    separator = audiosep.build_separator(SMALL)
    with pytest.raises(LayoutError, match="missing"):
        audiosep.fill_separator(separator, {"decoder_model.x": torch.zeros(1)}, "clapsep.ckpt")
    with pytest.raises(LayoutError, match="expected a dict of tensors"):
        unwrap([1, 2], "list.ckpt")


def test_a_file_may_carry_its_clap_or_not(tmp_path: Path) -> None:
    from model.clap import Clap
    from model.config import TINY

    clap = Clap(TINY.clap)
    file = LocalFile(uri="a.ckpt", path=tmp_path, sha256="d" * 64, num_bytes=1)
    inner = {f"query_encoder.model.{key}": value for key, value in clap.state_dict().items()}
    found = audiosep.own_clap(inner, file, TINY.clap)
    assert found is not None
    assert found.digest == "d" * 64
    for key, value in found.state_dict().items():
        assert torch.equal(value, clap.state_dict()[key])
    assert audiosep.own_clap({"ss_model.x": torch.zeros(1)}, file, TINY.clap) is None
    inner.popitem()
    with pytest.raises(CheckpointError, match="missing"):
        audiosep.own_clap(inner, file, TINY.clap)


@pytest.mark.parametrize("num_samples", [1, 128, 129, 1000, 5001])
def test_any_length_up_to_a_window(num_samples: int) -> None:
    separator = audiosep.build_separator(SMALL)
    for parameter in separator.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    separator.prepare()
    mixture = torch.randn(2, num_samples)
    ask = Condition(positive=torch.randn(2, 8), negative=torch.zeros(2, 8))
    with torch.inference_mode():
        together = separator.separate(mixture, ask)
        alone = separator.separate(mixture[1:], ask.index(torch.tensor([1])))
    assert together.shape == (2, num_samples)
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_heard_is_refused() -> None:
    separator = audiosep.build_separator(SMALL)
    with pytest.raises(ValueError, match="at most 320000"):
        separator.encode(torch.zeros(1, 320_001))
    with pytest.raises(ValueError, match="T ≥ 1"):
        separator.encode(torch.zeros(1, 0))
    with pytest.raises(ValueError, match="precision='int4'"):
        separator.prepare("int4")


def test_the_registry_says_where_it_comes_from() -> None:
    entry = registry.find("audiosep")
    assert entry.file("audiosep").uri.endswith("audiosep_base_4M_steps.ckpt")
    assert entry.file("clap") in catalogue.ENTRIES[-1].files
    assert not audiosep.CAPABILITIES.negative
    assert not audiosep.CAPABILITIES.audio
