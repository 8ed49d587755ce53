"""Real, tiny training runs: the loss falls, a stopped run resumes bit for bit, the bundle loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.checkpoints.loading import load_converted
from model.config import ClapSepConfig, to_json
from model.training import cli
from model.training.bundle import load_networks
from model.training.loop import BEST, CHECKPOINT
from model.training.separation import negative_snr, residual_level

COMMON = [
    "--cpu", "--num_threads", "1", "--precision", "fp32", "--batch_size", "4",
    "--learning_rate", "3e-3", "--schedule", "constant", "--ema_decay", "0.5",
]  # fmt: skip


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory, tiny_config: ClapSepConfig) -> Path:
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(to_json(tiny_config), encoding="utf-8")
    return path


def _train(stage: str, folder: Path, config: Path, output: Path, *more: str) -> Path:
    arguments = ["--corpus", str(folder), "--config", str(config), "--output", str(output)]
    assert cli.main([stage, *arguments, *COMMON, *more]) == 0
    return output


def _losses(output: Path) -> list[float]:
    lines = (output / "curves.csv").read_text(encoding="utf-8").splitlines()
    column = lines[0].split(",").index("train_loss")
    return [float(line.split(",")[column]) for line in lines[1:]]


@pytest.fixture(scope="module")
def trained_clap(
    corpus_folder: Path, config_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp("trained") / "clap"
    _train(
        "contrastive", corpus_folder, config_file, output, "--steps", "30", "--validate_every", "10"
    )
    return output


def test_both_stages_lower_the_loss_and_bundle_what_they_trained(
    corpus_folder: Path, config_file: Path, trained_clap: Path, tmp_path: Path,
    tiny_config: ClapSepConfig,
) -> None:  # fmt: skip
    losses = _losses(trained_clap)
    assert losses[-1] < losses[0]
    output = tmp_path / "separation"
    _train(
        "separation", corpus_folder, config_file, output, "--clap", str(trained_clap / BEST),
        "--steps", "40", "--validate_every", "10", "--validation_mixtures", "2",
    )  # fmt: skip
    losses = _losses(output)
    assert losses[-1] < losses[0]
    assert (output / "curves.png").stat().st_size > 1_000
    target = tmp_path / "bundle.safetensors"
    stages = ["--clap", str(trained_clap / BEST), "--separation", str(output / BEST)]
    arguments = ["bundle", "--config", str(config_file), "--output", str(target), *stages]
    assert cli.main(arguments) == 0
    loaded = load_converted(str(target))
    direct = load_networks(tiny_config, trained_clap / BEST, output / BEST)
    text = direct.clap.embed_text(["a horn sounding"])
    torch.testing.assert_close(loaded.clap.embed_text(["a horn sounding"]), text, atol=5e-3, rtol=0)


@pytest.mark.parametrize("train", ["lora", "frozen", "all"])
def test_ablations_train_what_they_name(
    train: str, corpus_folder: Path, config_file: Path, trained_clap: Path, tmp_path: Path
) -> None:
    output = tmp_path / train
    encoder = "random" if train == "all" else "pretrained"
    _train(
        "separation", corpus_folder, config_file, output, "--clap", str(trained_clap / BEST),
        "--steps", "2", "--validate_every", "2", "--validation_mixtures", "1", "--train", train,
        "--encoder", encoder,
    )  # fmt: skip
    tuned = torch.load(output / BEST, weights_only=True)["module"]
    before = torch.load(trained_clap / BEST, weights_only=True)["module"]
    name = "layers.0.blocks.0.mlp.fc1.weight"
    kept = torch.equal(tuned[f"separator.encoder.{name}"], before[f"clap.audio_branch.{name}"])
    assert kept == (train != "all")
    assert any("lora_A" in key for key in tuned) == (train == "lora")


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_stopped_run_resumes_bit_for_bit(
    optimiser: str, corpus_folder: Path, config_file: Path, trained_clap: Path, tmp_path: Path
) -> None:
    common = [
        "--optimiser", optimiser, "--clap", str(trained_clap / BEST), "--steps", "6",
        "--validate_every", "3", "--validation_mixtures", "1", "--checkpoint_every", "3",
    ]  # fmt: skip
    whole = _train("separation", corpus_folder, config_file, tmp_path / "whole", *common)
    halves = tmp_path / "halves"
    _train("separation", corpus_folder, config_file, halves, *common, "--max_minutes", "0")
    first = torch.load(halves / CHECKPOINT, weights_only=True)
    assert first["progress"]["step"] == 1
    _train("separation", corpus_folder, config_file, halves, *common)
    expected = torch.load(whole / CHECKPOINT, weights_only=True)
    resumed = torch.load(halves / CHECKPOINT, weights_only=True)
    assert resumed["progress"]["step"] == 6
    for part in ("module", "ema"):
        assert all(torch.equal(resumed[part][key], value) for key, value in expected[part].items())


def test_loss_is_minus_the_snr_and_bounded_by_its_ceiling() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(2, 4_000, generator=generator)
    noise = torch.randn(2, 4_000, generator=generator)
    noise -= (noise * target).sum(-1, True) / target.square().sum(-1, True) * target
    noise *= target.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True) * 0.1
    torch.testing.assert_close(
        negative_snr(target + noise, target, None), torch.full((2,), -20.0), atol=0.05, rtol=0
    )
    perfect = negative_snr(target, target, 30.0)
    torch.testing.assert_close(perfect, torch.full((2,), -30.0), atol=0.01, rtol=0)


def test_what_is_left_where_nothing_was_asked_for_counts_down_to_20_db() -> None:
    mixture = torch.ones(3, 1_000)
    left = residual_level(mixture * torch.tensor([[1.0], [0.1], [0.0]]), mixture)
    torch.testing.assert_close(left, torch.tensor([0.0432, -16.9897, -20.0]), atol=1e-3, rtol=0)


def test_an_absent_target_is_answered_with_less_and_less(
    corpus_folder: Path, config_file: Path, trained_clap: Path, tmp_path: Path
) -> None:
    losses = _losses(
        _train(
            "separation", corpus_folder, config_file, tmp_path / "absent",
            "--clap", str(trained_clap / BEST), "--steps", "30", "--validate_every", "10",
            "--validation_mixtures", "1", "--source_shares", "1.0", "--snr_ceiling_db", "30",
        )
    )  # fmt: skip
    assert losses[-1] < losses[0]
