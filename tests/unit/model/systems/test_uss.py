from __future__ import annotations

import librosa
import pytest
import torch

from golden import baselines
from layouts_of_baselines import Spoiled, hollow, parsed, spoil
from model.checkpoints.loading import LayoutError
from model.systems import Condition, uss
from model.systems.masking import MaskingSeparator
from model.systems.uss import Cnn14Config

SMALL_TAGGER = Cnn14Config(channels=(8, 8, 8), num_classes=8)


@pytest.fixture(scope="module")
def golden() -> dict[str, object]:
    return dict(baselines.stored("uss"))


@pytest.fixture(scope="module")
def unfilled() -> tuple[MaskingSeparator, uss.TaggerQueries]:
    return uss.build_separator(), uss.TaggerQueries(uss.QUERY_CONFIG)


@pytest.fixture(scope="module")
def small() -> uss.TaggerQueries:
    queries = uss.TaggerQueries(SMALL_TAGGER, clip_samples=16_000)
    prefix = "query_net.base."
    shapes = {prefix + key: value.shape for key, value in queries.network.state_dict().items()}
    for key, value in baselines.formula_state("uss", shapes).items():
        queries.network.state_dict()[key.removeprefix(prefix)].copy_(torch.from_numpy(value))
    torch.nn.init.uniform_(queries.network.logmel_extractor.melW)
    return queries.prepare()


@pytest.mark.parametrize("dtype", baselines.DTYPES)
def test_both_networks_equal_the_public_code(golden: dict[str, object], dtype: torch.dtype) -> None:
    layout = parsed(golden["layout"])
    drawn = baselines.formula_state("uss", layout)
    separator, queries = uss.build_separator(), uss.TaggerQueries(uss.QUERY_CONFIG)
    state = {key: torch.from_numpy(value) for key, value in drawn.items()}
    filters = librosa.filters.mel(sr=32_000, n_fft=1024, n_mels=64, fmin=50, fmax=14_000)
    state["query_net.base.logmel_extractor.melW"] = torch.from_numpy(filters.T.copy())
    uss.fill_networks(separator, queries, state, "formula")
    separator.to(dtype).prepare()
    queries.to(dtype).prepare()
    clips = [torch.from_numpy(baselines.mixture(seed, 32_000, 64_000)) for seed in (1001, 1002)]
    mixture = torch.from_numpy(baselines.mixture(1000, 32_000, 32_000))[None]
    with torch.inference_mode():
        asked = queries.embed_audio([clip.to(dtype) for clip in clips])
        encoded = separator.encode(mixture.to(dtype)).index(torch.tensor([0, 0]))
        answer = separator.decode(
            encoded, Condition(positive=asked, negative=torch.zeros_like(asked))
        )
    expected_queries, expected = (torch.from_numpy(golden[key]) for key in ("queries", "wav"))
    assert expected_queries.std() > 0.1
    assert (expected[0] - expected[1]).square().mean().sqrt() > 0.05 * expected.std()
    baselines.assert_stored("uss", queries=asked, wav=answer)


def test_a_clip_is_cut_and_its_last_segment_repeated() -> None:
    clip = torch.arange(1.0, 8.0)
    assert uss.cut(clip, 3).tolist() == [[1, 2, 3], [4, 5, 6], [7, 7, 7]]
    assert uss.cut(clip[:2], 5).tolist() == [[1, 2, 1, 2, 1]]
    assert uss.cut(clip[:3], 3).tolist() == [[1, 2, 3]]
    for wrong in (torch.zeros(0), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match="mono clip"):
            uss.cut(wrong, 3)


def test_a_query_is_the_mean_of_its_segments_whatever_else_is_embedded(
    small: uss.TaggerQueries,
) -> None:
    clips = [torch.randn(16_000), 10 * torch.randn(40_000), 0.1 * torch.randn(900)]
    with torch.inference_mode():
        together = small.embed_audio(clips)
        for row, clip in zip(together, clips, strict=True):
            parts = [small.network(part[None])[0] for part in uss.cut(clip, 16_000)]
            torch.testing.assert_close(row, torch.stack(parts).mean(dim=0))
    assert together.std(dim=0).max() > 1e-4


def test_text_is_refused(small: uss.TaggerQueries) -> None:
    with pytest.raises(ValueError, match="'bell': USS takes example clips"):
        small.embed_text(["bell"])
    assert small.embed_text([]).shape == (0, 8)
    assert small.embed_audio([]).shape == (0, 8)
    with pytest.raises(ValueError, match="expected at least"):
        small.network(torch.zeros(1, 100))


@pytest.mark.parametrize("spoiled", list(Spoiled))
@pytest.mark.parametrize("key", ["ss_model.base.bn0.bias", "query_net.base.fc1.bias"])
def test_a_spoiled_file_is_refused_with_the_key(
    golden: dict[str, object],
    unfilled: tuple[MaskingSeparator, uss.TaggerQueries],
    spoiled: Spoiled,
    key: str,
) -> None:
    state = spoil(hollow(parsed(golden["layout"])), key, spoiled)
    with pytest.raises(LayoutError, match=r"spoiled\.ckpt.*" + key.replace(".", r"\.")):
        uss.fill_networks(*unfilled, state, "spoiled.ckpt")


def test_the_detector_that_training_used_may_be_in_the_file(golden: dict[str, object]) -> None:
    state = hollow(parsed(golden["layout"]) | {"anchor_segment_detector.sed_model.fc1.bias": (3,)})
    separator, queries = uss.build_separator(), uss.TaggerQueries(uss.QUERY_CONFIG)
    uss.fill_networks(separator, queries, state, "a.ckpt")
    assert not separator.network.base.pre_conv.weight.any()


def test_mel_filters_must_be_in_the_file(
    golden: dict[str, object], unfilled: tuple[MaskingSeparator, uss.TaggerQueries]
) -> None:
    state = hollow(parsed(golden["layout"]))
    del state["query_net.base.logmel_extractor.melW"]
    with pytest.raises(LayoutError, match="melW"):
        uss.fill_networks(*unfilled, state, "a.ckpt")
