from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

import tone_runs
from manifests.benchmarks.corpus_sets import Draw, read_corpus
from model import registry
from model.catalogue import Entry, WeightsFile
from pipelines.evaluation.model_figures import ZeroShot, bundle_files, classify, measure_cost
from tones import LABELS, PHRASINGS, ToneClap, ToneSeparator, write_corpus
from transforms.audio.files import SILENT
from transforms.storage import Storage


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_corpus(tmp_path_factory.mktemp("corpus")))


def _classify(
    corpus: str, clap: ToneClap, phrasings: object = PHRASINGS, **limits: Any
) -> tuple[ZeroShot, ...]:
    draw = Draw(read_corpus(corpus), audio_root=corpus, phrasings=phrasings)
    return classify(clap, draw, audio_root=corpus, storage=Storage(), **limits)


def test_a_clap_that_knows_the_tones_is_always_right(corpus: str) -> None:
    found = _classify(corpus, ToneClap())
    assert [each.phrasing for each in found] == ["caption", "heldout"]
    for each in found:
        assert each.num_classes == 6
        assert (each.top1.n, each.top1.mean, each.top5.mean) == (11, 1.0, 1.0)
        assert each.per_class == dict.fromkeys(LABELS, 1.0)


class _Deaf(ToneClap):
    """Hears a bell in everything, and knows held-out phrasing ``two`` only for it."""

    def embed_audio(self, clips: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]]).repeat(len(clips), 1)

    def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
        rows = super().embed_text(texts)
        wrong = torch.tensor([text.endswith("two") for text in texts])
        return torch.where(wrong[:, None], rows.flip(1), rows)


def test_shares_count_clips_and_ranks_count_classes(corpus: str) -> None:
    caption, heldout = _classify(corpus, _Deaf())
    assert caption.top1.mean == pytest.approx(2 / 11)
    assert caption.top5.mean == pytest.approx(10 / 11)
    assert caption.per_class == {label: float(label == "bell") for label in LABELS}
    # In one of three rounds the order of the classes is reversed: wind has one clip.
    assert heldout.top1.mean == pytest.approx((2 + 1 + 2) / 33)
    assert heldout.per_class["bell"] == pytest.approx(2 / 3)


def test_a_limit_takes_clips_of_every_class_and_all_classes_compete(corpus: str) -> None:
    caption, _ = _classify(corpus, _Deaf(), limit=6)
    assert caption.top1.n == 6
    assert caption.num_classes == 6
    assert set(caption.per_class) == set(LABELS)
    assert caption.top1.mean == pytest.approx(1 / 6)
    assert caption.top1.ci_low is not None


def test_heldout_phrasings_are_left_out_where_a_class_has_too_few(corpus: str) -> None:
    few = {**PHRASINGS, "rain": PHRASINGS["rain"][:2]}
    (found,) = _classify(corpus, ToneClap(), phrasings=few)
    assert found.phrasing == "caption"


def test_a_clip_that_cannot_be_embedded_is_named(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    soundfile.write(corpus / "frog-test-a.wav", np.zeros(8_000, np.float32), 8_000)
    with pytest.raises(ValueError, match=r"zero-shot: .*frog-test-a\.wav"):
        _classify(str(corpus), ToneClap())


def test_clips_that_may_fail_are_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = str(write_corpus(tmp_path))
    soundfile.write(tmp_path / "frog-test-a.wav", np.zeros(8_000, np.float32), 8_000)
    found = _classify(corpus, ToneClap(), max_failure_rate=0.1)
    assert [each.top1.n for each in found] == [10, 10]
    assert caplog.messages == [f"zero-shot: left out: {tmp_path / 'frog-test-a.wav'}: {SILENT}"]
    with pytest.raises(ValueError, match="--max_clip_in_memory_s"):
        _classify(corpus, ToneClap(), max_in_memory_s=0.001)
    assert _classify(corpus, ToneClap(), max_in_memory_s=0.001, max_failure_rate=1.0) == ()


class _Separator(ToneSeparator, nn.Module):
    def __init__(self, **networks: nn.Module) -> None:
        nn.Module.__init__(self)
        ToneSeparator.__init__(self)
        for name, network in networks.items():
            self.add_module(name, network)


class _Clap(ToneClap, nn.Module):
    def __init__(self, audio: nn.Module) -> None:
        nn.Module.__init__(self)
        ToneClap.__init__(self)
        self.audio = audio


def _card(*files: Path) -> Entry:
    weights = tuple(WeightsFile(role=path.name, uri=str(path)) for path in files)
    return Entry(
        name="m",
        kind="separator",
        loader="",
        summary="",
        licence="",
        source="",
        sample_rate_hz=8_000,
        files=weights,
    )


def test_shared_parameters_are_counted_once_in_all(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"123")
    shared = nn.Linear(3, 2)
    loaded = dataclasses.replace(
        tone_runs.loaded_tones(),
        separator=_Separator(encoder=shared, decoder=nn.Linear(2, 2, bias=False)),
        query_encoder=_Clap(shared),
        card=_card(file),
    )
    cost = measure_cost(loaded, "cpu")
    assert cost.parameters == {"separator.encoder": 8, "separator.decoder": 4, "clap.audio": 8}
    assert cost.parameters_in_all == 12
    assert cost.file_bytes == {"weights.safetensors": 3}
    assert cost.real_time_factor > 0
    assert cost.threads >= 1


def test_a_system_without_networks_has_no_parameters() -> None:
    cost = measure_cost(dataclasses.replace(tone_runs.loaded_tones(), card=_card()), "cpu")
    assert (cost.parameters, cost.parameters_in_all, cost.file_bytes) == ({}, 0, {})


def test_an_oracle_is_timed_too() -> None:
    assert measure_cost(registry.load("oracle-irm"), "cpu").real_time_factor > 0


def test_all_parts_of_a_split_file_belong_to_the_bundle(tmp_path: Path) -> None:
    for name in ("m-1-of-2.bin", "m-2-of-2.bin", "other-1-of-2.bin", "single.bin"):
        (tmp_path / name).touch()
    card = _card(*(tmp_path / name for name in ("m-1-of-2.bin", "single.bin", "absent.bin")))
    assert [path.name for path in bundle_files(card)] == [
        "m-1-of-2.bin",
        "m-2-of-2.bin",
        "single.bin",
    ]


def test_the_weights_in_a_folder_belong_to_its_bundle(tmp_path: Path) -> None:
    for name in ("model.safetensors", "presence.safetensors", "README.md"):
        (tmp_path / name).touch()
    found = [path.name for path in bundle_files(_card(tmp_path))]
    assert found == ["model.safetensors", "presence.safetensors"]
