from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from golden import baselines
from layouts_of_baselines import Spoiled, hollow, parsed, spoil
from model.catalogue import WeightsFile
from model.checkpoints.loading import LayoutError, published_state
from model.systems import Condition, lass
from model.systems.masking import MaskingSeparator

CHANNELS = (2, 3, 4)


@pytest.fixture(scope="module")
def golden() -> dict[str, object]:
    return dict(baselines.stored("lass"))


@pytest.fixture(scope="module")
def queries() -> lass.BertQueries:
    return lass.BertQueries("nowhere/tokenizer.json")


@pytest.fixture(scope="module")
def unfilled() -> MaskingSeparator:
    return lass.build_separator()


@pytest.mark.parametrize("dtype", baselines.DTYPES)
def test_both_networks_equal_the_public_code(golden: dict[str, object], dtype: torch.dtype) -> None:
    drawn = baselines.formula_state("lass", parsed(golden["layout"]))
    state = {key: torch.from_numpy(value) for key, value in drawn.items()}
    separator, queries = lass.build_separator(), lass.BertQueries("nowhere")
    lass.fill_networks(separator, queries, state, "formula")
    separator.to(dtype).prepare()
    queries.to(dtype).prepare()
    ids = torch.from_numpy(baselines.TOKENS)
    mixture = torch.from_numpy(baselines.mixture(1000, 32_000, 30_720))[None]
    with torch.inference_mode():
        asked = queries.embed_tokens(ids, (ids > 0).long())
        encoded = separator.encode(mixture.to(dtype)).index(torch.tensor([0, 0]))
        answer = separator.decode(
            encoded, Condition(positive=asked, negative=torch.zeros_like(asked))
        )
    expected = torch.from_numpy(golden["wav"])
    assert (expected[0] - expected[1]).square().mean().sqrt() > 0.05 * expected.std()
    baselines.assert_stored("lass", queries=asked, wav=answer)


@pytest.mark.parametrize("num_samples", [1, 512, 513, 5000])
def test_any_length_keeps_its_last_samples(num_samples: int) -> None:
    torch.manual_seed(0)
    separator = lass.build_separator(channels=CHANNELS)
    for parameter in separator.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    separator.prepare()
    mixture = torch.randn(1, num_samples)
    with torch.inference_mode():
        answer = separator.separate(
            mixture, Condition(positive=torch.randn(1, 256), negative=torch.zeros(1, 256))
        )
    assert answer.shape == mixture.shape
    assert answer[:, -1:].abs().min() > 0
    assert answer.abs().max() < 2 * mixture.abs().max()


def test_captions_begin_with_a_class_token_and_have_no_end(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "bark", "##ing"]
    tokenizer = Tokenizer(
        models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["type"] == "WordPiece"
    own = lass.BertQueries(str(tmp_path / "tokenizer.json"))
    for parameter in own.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    own.prepare()
    with torch.inference_mode():
        found = own.embed_text(["A dog barking", "dog"])
        ids = torch.tensor([[2, 4, 5, 6, 7], [2, 5, 0, 0, 0]])
        torch.testing.assert_close(found, own.embed_tokens(ids, (ids > 0).long()))
    assert own.embed_text([]).shape == (0, 256)
    with pytest.raises(ValueError, match="no example clips"):
        own.embed_audio([torch.zeros(9)])
    assert own.embed_audio([]).shape == (0, 256)


@pytest.mark.parametrize("spoiled", list(Spoiled))
@pytest.mark.parametrize("key", ["UNet.after_conv2.bias", "text_embedder.linear_layer.0.bias"])
def test_a_spoiled_file_is_refused_with_the_key(
    golden: dict[str, object],
    unfilled: MaskingSeparator,
    queries: lass.BertQueries,
    spoiled: Spoiled,
    key: str,
) -> None:
    state = spoil(hollow(parsed(golden["layout"])), key, spoiled)
    with pytest.raises(LayoutError, match=r"spoiled\.pt.*" + key.replace(".", r"\.")):
        lass.fill_networks(unfilled, queries, state, "spoiled.pt")


def test_a_published_file_is_wrapped_and_has_position_ids(
    golden: dict[str, object], tmp_path: Path
) -> None:
    state = hollow(parsed(golden["layout"]))
    state["text_embedder.bert_layer.embeddings.position_ids"] = torch.arange(512)[None]
    wrapped = {"model": {f"module.{key}": value for key, value in state.items()}}
    torch.save(wrapped, tmp_path / "LASSNet.pt")
    found = published_state(WeightsFile(role="lass", uri=str(tmp_path / "LASSNet.pt")))
    own = lass.BertQueries("nowhere")
    separator = lass.build_separator()
    lass.fill_networks(separator, own, found.state, found.file.uri)
    assert not own.linear_layer[0].weight.any()
    assert not separator.network.after_conv2.weight.any()
