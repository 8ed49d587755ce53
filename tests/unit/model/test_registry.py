"""The registry: models by name or URI, and words that help where there is none."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import float_noise
from golden import pairs
from model import catalogue, registry
from model.catalogue import Entry, WeightsFile
from model.checkpoints.convert import save
from model.checkpoints.fetch import CheckpointError
from model.checkpoints.loading import load_published
from model.config import TINY
from model.registry import UnknownModelError, load, load_query_encoder, load_scorer
from model.systems import Condition
from model.systems.clapsep import network

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    return pairs.write(tmp_path, pairs.formula_pair(TINY))


@pytest.fixture
def converted(tmp_path: Path, paths: tuple[Path, Path]) -> str:
    uri = str(tmp_path / "tiny.safetensors")
    save(uri, load_published(str(paths[0]), str(paths[1]), config=TINY))
    return uri


@pytest.fixture
def tiny_entry(converted: str, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """A model of the catalogue whose weights are at hand."""
    entry = dataclasses.replace(
        registry.find("clapsep-mini"),
        name="clapsep-tiny",
        files=(WeightsFile(role="converted", uri=converted),),
    )
    monkeypatch.setattr(catalogue, "ENTRIES", (*catalogue.ENTRIES, entry))
    return entry


def separate(model: registry.LoadedModel, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(0)
    mixture, query = torch.randn(1, 9000).to(dtype), torch.randn(2, 1, 16).to(dtype)
    with torch.inference_mode():
        return model.separator.separate(mixture, Condition(positive=query[0], negative=query[1]))


def test_converted_file_is_loaded_by_uri(converted: str, paths: tuple[Path, Path]) -> None:
    model = load(converted)
    assert model.name == model.separator.name == converted
    assert len(model.model_sha256) == len(model.clap_sha256) == 64
    assert model.query_encoder.digest == model.clap_sha256
    assert model.card.sample_rate_hz == model.separator.sample_rate_hz == 32_000
    assert str(paths[1]) in model.card.source
    network = model.separator
    assert isinstance(network, torch.nn.Module)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert separate(model).shape == (1, 9000)


def test_model_is_loaded_by_name(tiny_entry: Entry, converted: str) -> None:
    model = load("clapsep-tiny")
    assert (model.name, model.card) == ("clapsep-tiny", tiny_entry)
    assert torch.equal(separate(model), separate(load(converted)))


def test_precision_reaches_the_network(converted: str) -> None:
    exact, coarse = separate(load(converted)), separate(load(converted, precision="bf16"))
    assert coarse.dtype == torch.float32
    assert 0 < (exact - coarse).abs().max() < 0.05 * exact.abs().max()
    with pytest.raises(ValueError, match="precision='fp8': expected one of"):
        load(converted, precision="fp8")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("clapsep-hybird", "Did you mean clapsep-hybrid"),
        ("clapsep_mini", "Did you mean clapsep-mini"),
        ("xyzzy", r"unknown model 'xyzzy'\. Known: clapsep-mini, clapsep-hybrid"),
    ],
)
@pytest.mark.parametrize("function", [load, load_scorer])
def test_unknown_name_suggests_the_closest(
    name: str, suggestion: str, function: type[object]
) -> None:
    with pytest.raises(UnknownModelError, match=suggestion):
        function(name)


def test_missing_file_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"nowhere/x\.safetensors: no such file"):
        load("nowhere/x.safetensors")


def test_missing_bundled_weights_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = dataclasses.replace(
        registry.find("clapsep-mini"),
        files=(WeightsFile(role="converted", uri="bundled:nothing.safetensors"),),
    )
    monkeypatch.setattr(catalogue, "ENTRIES", (absent,))
    for function in (load, load_scorer):
        with pytest.raises(CheckpointError, match=r"weights/nothing\.safetensors: the bundled"):
            function("clapsep-mini")


def test_scorer_does_not_separate() -> None:
    with pytest.raises(ValueError, match="clap-music-audioset embeds queries and does not"):
        load("clap-music-audioset")


@pytest.mark.parametrize("name", ["mixture", "lass-net"])
def test_a_separator_without_a_clap_does_not_score(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"{name} has no CLAP, which would give the scores"):
        load_scorer(name)


@pytest.mark.parametrize("by", ["name", "converted"])
def test_separator_lends_its_clap_for_scoring(tiny_entry: Entry, converted: str, by: str) -> None:
    scorer = load_scorer(converted if by == "converted" else tiny_entry.name)
    clip = torch.linspace(-1, 1, 30_000)
    embedding = scorer.embed_audio([clip])
    assert torch.equal(embedding, load(converted).query_encoder.embed_audio([clip]))
    assert embedding.norm() == pytest.approx(1.0, abs=1e-6)


def test_published_pair_loads_through_its_entry(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from model.checkpoints import loading

    files = tuple(
        WeightsFile(role=role, uri=str(path))
        for role, path in zip(("clap", "clapsep"), paths, strict=True)
    )
    entry = dataclasses.replace(registry.find("clapsep-hybrid"), files=files)
    monkeypatch.setattr(catalogue, "ENTRIES", (entry,))
    small = load_published
    monkeypatch.setattr(
        loading, "load_published", lambda *args, **kwargs: small(*args, config=TINY, **kwargs)
    )
    model = load("clapsep-hybrid")
    assert (model.name, model.card) == ("clapsep-hybrid", entry)
    assert separate(model).shape == (1, 9000)


@pytest.mark.parametrize("entry", catalogue.ENTRIES, ids=lambda entry: entry.name)
def test_every_entry_is_complete(entry: Entry) -> None:
    module, _, function = entry.loader.partition(":")
    source = Path(registry.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    assert f"def {function}(" in source.read_text(encoding="utf-8")
    assert all((entry.summary, entry.licence, entry.source))
    for file in entry.files:
        assert file.sha256 is None or len(bytes.fromhex(file.sha256)) == 32


def test_published_files_are_the_known_ones() -> None:
    hybrid = registry.find("clapsep-hybrid")
    assert [(file.uri, file.num_bytes) for file in hybrid.files] == [
        ("hf://lukewys/laion_clap/music_audioset_epoch_15_esc_90.14.pt", 2_352_471_003),
        ("hf://spaces/AisakaMikoto/CLAPSep/model/best_model.ckpt", 177_818_986),
    ]


def test_names_are_unique() -> None:
    assert len(registry.entries()) == len(catalogue.ENTRIES)


def test_table_lists_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert registry.run([]) == 0
    table = capsys.readouterr().out
    assert all(entry.name in table for entry in catalogue.ENTRIES)


def test_card_of_one_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert registry.run(["clapsep-hybrid"]) == 0
    card = capsys.readouterr().out
    assert "hf://spaces/AisakaMikoto/CLAPSep/model/best_model.ckpt, 177,818,986 bytes" in card
    assert registry.run(["nothing"]) == 1
    assert "unknown model 'nothing'" in capsys.readouterr().err
    assert registry.run(["runs/mine"]) == 1
    assert "model.checkpoints inspect says what it is" in capsys.readouterr().err


def test_an_empty_name_is_no_folder_here() -> None:
    with pytest.raises(UnknownModelError, match="unknown model ''"):
        registry.load("")


def test_listing_the_models_does_not_load_torch() -> None:
    program = (
        "import sys; from model import registry; registry.run([]); "
        "sys.exit('torch' in sys.modules or 'laion_clap' in sys.modules)"
    )
    root = Path(registry.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, stdout=subprocess.DEVNULL)
    assert done.returncode == 0


def test_without_a_compiler_the_model_runs_as_it_is(
    converted: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no C++ compiler\nhere")

    monkeypatch.setattr(network.torch, "compile", broken)
    with caplog.at_level(logging.WARNING):
        model = load(converted, compile=True)
    assert caplog.messages == ["torch.compile is not used on cpu: RuntimeError: no C++ compiler"]
    assert torch.equal(separate(model), separate(load(converted)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiled_model_computes_the_same(converted: str, caplog: pytest.LogCaptureFixture) -> None:
    """C++ is compiled for every part: 40 s of a core that has nothing else to do, and no cache."""
    compiled, plain, exact = load(converted, compile=True), load(converted), load(converted)
    assert isinstance(exact.separator, torch.nn.Module)
    exact.separator.double()
    expected = separate(plain)
    noise = float_noise.distance(expected, separate(exact, torch.float64))
    assert float_noise.distance(separate(compiled), expected) <= float_noise.of(noise)
    if "torch.compile is not used" in caplog.text:
        pytest.skip(caplog.text)


def test_the_encoder_of_queries_alone_is_the_one_of_the_model() -> None:
    """What embeds example clips on machines that do not separate."""
    whole, alone = load("clapsep-mini").query_encoder, load_query_encoder("clapsep-mini")
    assert alone.input_level_dbfs == whole.input_level_dbfs
    assert alone.digest == whole.digest
    assert torch.equal(alone.embed_text(["a dog"]), whole.embed_text(["a dog"]))
    clip = torch.randn(whole.sample_rate_hz, generator=torch.Generator().manual_seed(0))
    assert torch.equal(alone.embed_audio([clip]), whole.embed_audio([clip]))
