"""Saving, and the command line: convert and inspect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from golden import pairs
from model import config
from model.checkpoints import convert, loading
from model.checkpoints.__main__ import run
from model.checkpoints.convert import save
from model.checkpoints.fetch import CheckpointError
from model.checkpoints.loading import Networks, load_clap, load_converted, load_published
from model.config import TINY, ClapSepConfig

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    return pairs.write(tmp_path, pairs.formula_pair(TINY))


@pytest.fixture
def arguments(tmp_path: Path, paths: tuple[Path, Path]) -> list[str]:
    """A conversion of the tiny pair."""
    settings = tmp_path / "tiny.json"
    settings.write_text(config.to_json(TINY))
    return [
        "convert",
        *("--clap", str(paths[0]), "--config", str(settings)),
        *("--output", str(tmp_path / "out.safetensors")),
    ]


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("flags", [[], ["--merge_lora"], ["--dtype", "fp16"]])
def test_convert_writes_what_loads_fast(
    tmp_path: Path,
    paths: tuple[Path, Path],
    arguments: list[str],
    flags: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run([*arguments, "--clapsep", str(paths[1]), *flags]) == 0
    found = load_converted(str(tmp_path / "out.safetensors"))
    assert f"(SHA-256 {found.model_sha256})" in capsys.readouterr().out
    expected = load_published(str(paths[0]), str(paths[1]), config=TINY)
    if "fp16" in flags:
        torch.testing.assert_close(
            dict(found.separator.state_dict()),
            dict(expected.separator.state_dict()),
            rtol=2e-3,
            atol=2e-3,
        )
    else:
        assert same(found.separator, expected.separator)
        assert same(found.clap, expected.clap)


def test_convert_clap_alone(tmp_path: Path, paths: tuple[Path, Path], arguments: list[str]) -> None:
    assert run(arguments) == 0
    uri = str(tmp_path / "out.safetensors")
    expected = load_clap(str(paths[0]), config=TINY.clap)
    assert same(load_clap(uri), expected)
    assert load_clap(uri).digest == expected.digest
    with pytest.raises(CheckpointError, match="holds a clap, expected a clapsep"):
        load_converted(uri)


def test_convert_says_what_is_wrong(
    paths: tuple[Path, Path], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "--clapsep", str(paths[0])]) == 1
    captured = capsys.readouterr()
    assert captured.err == (f"{paths[0]}: expected a CLAPSep checkpoint, found a CLAP checkpoint\n")
    assert run([*arguments, "--clap_sha256", "0" * 64]) == 1
    assert "expected SHA-256" in capsys.readouterr().err
    assert run([*arguments, "--clap_sha256", "abc"]) == 1
    assert "sha256='abc': expected 64" in capsys.readouterr().err


@pytest.mark.parametrize("text", [b'{"nothing": 1}', b"\xff", b"[]"])
def test_convert_says_which_configuration_is_none(
    text: bytes,
    paths: tuple[Path, Path],
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "c.json").write_bytes(text)
    arguments[arguments.index("--config") + 1] = str(tmp_path / "c.json")
    assert run(arguments) == 1
    assert f"{tmp_path / 'c.json'}: is no configuration: " in capsys.readouterr().err


def test_convert_says_where_it_cannot_write(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    arguments[arguments.index("--output") + 1] = str(tmp_path / "folder")
    assert run(arguments) == 1
    assert str(tmp_path / "folder") in capsys.readouterr().err


def test_inspect_converted(
    tmp_path: Path,
    paths: tuple[Path, Path],
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run([*arguments, "--clapsep", str(paths[1]), "--merge_lora"])
    capsys.readouterr()
    uri = str(tmp_path / "out.safetensors")
    assert run(["inspect", uri]) == 0
    lines = dict(
        line.strip().split("  ", maxsplit=1) for line in capsys.readouterr().out.splitlines()
    )
    networks = load_converted(uri)
    assert lines["kind"] == "clapsep, converted (fp32, LoRA: merged)"
    assert lines["sha256"] == networks.model_sha256
    assert lines["clap_sha256"] == networks.clap_sha256
    assert json.loads(lines["config"]) == json.loads(config.to_json(TINY))
    assert lines["source clapsep"] == f"{paths[1]} {networks.sources[1].sha256}"
    (tmp_path / "mine").mkdir()
    (tmp_path / "out.safetensors").rename(tmp_path / "mine" / "model.safetensors")
    assert run(["inspect", str(tmp_path / "mine")]) == 0
    assert networks.model_sha256 in capsys.readouterr().out


@pytest.mark.parametrize(("index", "kind"), [(0, "clap"), (1, "clapsep")])
def test_inspect_published(paths: tuple[Path, Path], index: int, kind: str) -> None:
    facts = convert.file_facts(str(paths[index]))
    pair = pairs.formula_pair(TINY)
    tensors = (pair.clap, pair.clapsep)[index]
    numbers = sum(value.numel() for value in tensors.values())
    assert facts["kind"] == f"{kind}, torch file"
    assert facts["tensors"] == f"{len(tensors)} of {numbers:,} numbers (float32, int64)"
    assert facts["bytes"] == f"{paths[index].stat().st_size:,}"


def test_inspect_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"")
    assert run(["inspect", str(path)]) == 1
    assert capsys.readouterr().err == f"{path}: the file is empty\n"


@pytest.fixture
def networks(paths: tuple[Path, Path]) -> Networks:
    return load_published(str(paths[0]), str(paths[1]), config=TINY)


def test_what_encoder_and_clap_share_is_stored_once(tmp_path: Path, networks: Networks) -> None:
    import safetensors.torch

    path = tmp_path / "x.safetensors"
    save(str(path), networks)
    own = {key for key in safetensors.torch.load_file(path) if key.startswith("encoder.")}
    assert own == {
        f"encoder.layers.{stage}.blocks.{block}.attn.{layer}.{part}"
        for stage in range(2)
        for block in range(2)
        for layer in ("qkv", "proj")
        for part in ("weight", "bias")
    }


def test_network_without_known_source_gets_a_digest_of_its_clap(tmp_path: Path) -> None:
    from model.clap import Clap
    from model.systems.clapsep.network import ClapSep

    torch.manual_seed(0)
    fresh = Networks(config=TINY, clap=Clap(TINY.clap), separator=ClapSep(TINY))
    first = save(str(tmp_path / "x"), fresh, notes="by hand")
    assert save(str(tmp_path / "y"), fresh, notes="by hand") == first
    found = load_converted(str(tmp_path / "x"))
    assert len(found.clap_sha256) == 64
    assert found.clap.digest == found.clap_sha256
    assert same(found.clap, fresh.clap)
    assert same(found.separator, fresh.separator)
    assert "by hand" in convert.file_facts(str(tmp_path / "x"))["notes"]


def test_adapters_without_configuration_are_refused(
    tmp_path: Path, paths: tuple[Path, Path]
) -> None:
    trained = load_published(str(paths[0]), str(paths[1]), config=TINY, adapters="keep")
    bare = ClapSepConfig(signal=TINY.signal, clap=TINY.clap, decoder=TINY.decoder, lora=None)
    wrong = loading.Networks(config=bare, clap=trained.clap, separator=trained.separator)
    with pytest.raises(CheckpointError, match=r"config\.lora is None"):
        save(str(tmp_path / "x"), wrong)
