"""Training as users start it: it is resumed bit for bit, and its weights load."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoints.loading import load_converted
from model.config import ClapSepConfig, LoraConfig, from_json, to_json
from model.systems import Condition
from model.training import __main__ as command
from model.training import engine
from model.training.material import Material
from model.training.separation import build_separator
from model.training.settings import SeparatorTraining, TrainingSettings

SETTINGS: dict[str, Any] = {
    "clap": {
        "batch_size": 3,
        "optimiser": {"steps": 3, "validate_every": 2, "precision": "fp32"},
    },
    "words": {"steps": 3},
    "separation": {
        "batch_size": 2,
        "query_variants": 1,
        "validation_mixtures": 2,
        "queries": {"source_shares": [0.5, 0.5]},
        "optimiser": {"steps": 4, "validate_every": 2, "precision": "fp32"},
    },
}


@pytest.fixture
def train(
    corpus_folder: Path, material: Material, small_config: ClapSepConfig, tmp_path: Path
) -> Callable[[str], int]:
    material.save(tmp_path / "plan.npz")
    (tmp_path / "config.json").write_text(to_json(small_config), encoding="utf-8")
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")

    def run(output: str) -> int:
        return command.run(
            [
                "fit", "--corpus", str(corpus_folder), "--plan", str(tmp_path / "plan.npz"),
                "--config", str(tmp_path / "config.json"), "--device", "cpu", "--workers", "0",
                "--settings", str(tmp_path / "settings.json"), "--output", str(tmp_path / output),
            ]
        )  # fmt: skip

    return run


class _Stopped(Exception):
    pass


@pytest.mark.usefixtures("own_cache")
def test_a_stopped_run_goes_on_bit_for_bit(
    train: Callable[[str], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("whole") == 0
    original = engine.Learner.run
    allowed = 0

    def run(learner: engine.Learner, *arguments: Any) -> None:
        nonlocal allowed
        if not allowed:
            raise _Stopped
        allowed -= 1
        original(learner, *arguments)

    monkeypatch.setattr(engine.Learner, "run", run)
    for steps in (2, 1, 3):  # after a validation of either stage, and between two validations
        allowed = steps
        with pytest.raises(_Stopped):
            train("parts")
    allowed = 100
    assert train("parts") == 0
    files = [tmp_path / run / "weights" / "model.safetensors" for run in ("whole", "parts")]
    loaded = [load_converted(str(file)) for file in files]
    for name, value in loaded[0].separator.state_dict().items():
        assert value.equal(loaded[1].separator.state_dict()[name]), name
    curves = [json.loads((tmp_path / run / "curve.json").read_text()) for run in ("whole", "parts")]
    assert [(row["stage"], row["step"]) for row in curves[0]] == [
        ("clap", 2), ("clap", 3), ("separation", 2), ("separation", 4)
    ]  # fmt: skip
    assert curves[0] == curves[1]


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("encoder", ["lora", "frozen"])
def test_the_papers_recipe_trains_and_its_weights_load(
    train: Callable[[str], int], small_config: ClapSepConfig, tmp_path: Path, encoder: str
) -> None:
    """The settings of docs/training.md; fewer steps, and adapters that 16 bits do not hide."""
    config = dataclasses.replace(small_config, lora=LoraConfig(rank=4, alpha=400.0))
    (tmp_path / "config.json").write_text(to_json(config), encoding="utf-8")
    settings = paper_settings()
    assert settings["separation"]["encoder"] == "lora"
    settings["clap"] |= SETTINGS["clap"]
    settings["words"] = SETTINGS["words"]
    settings["separation"] |= {
        "encoder": encoder, "batch_size": 2, "query_variants": 1, "validation_mixtures": 2
    }  # fmt: skip
    settings["separation"]["optimiser"] |= {
        "steps": 3, "validate_every": 3, "precision": "fp32", "learning_rate": 1e-3
    }  # fmt: skip
    (tmp_path / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    assert train("run") == 0
    loaded = load_converted(str(tmp_path / "run" / "weights" / "model.safetensors"))
    clap, own = loaded.clap.audio_branch.state_dict(), loaded.separator.encoder.state_dict()
    moved = {name for name, value in own.items() if not value.equal(clap[name])}
    adapted = re.compile(r"layers\.\d+\.blocks\.\d+\.attn\.(qkv|proj)\.(weight|bias)")
    expected = {name for name in own if adapted.fullmatch(name)}
    assert moved == (expected if encoder == "lora" else set())

    stored = torch.load(tmp_path / "run" / "resume.pt", weights_only=True)
    trained = build_separator(
        config,
        loaded.clap,
        from_json(SeparatorTraining, json.dumps(settings["separation"])),
    )
    untrained = copy.deepcopy(trained)
    trained.load_state_dict(stored["learner"]["average"])
    untrained.decoder.load_state_dict(trained.decoder.state_dict())
    torch.manual_seed(0)
    mixture, query = 0.06 * torch.randn(2, 32_000), torch.randn(2, 32)
    condition = Condition(positive=query, negative=-query)
    with torch.no_grad():
        sounds = [each.eval().separate(mixture, condition) for each in (loaded.separator, trained)]
        encoded, expected_state, without = (
            each.eval().encode(mixture).features.stages[-1]
            for each in (loaded.separator, trained, untrained)
        )
    assert (sounds[0] - sounds[1]).norm() < 1e-3 * sounds[1].norm()
    rounding = (encoded - expected_state).norm() / expected_state.norm()
    adapters = (without - expected_state).norm() / expected_state.norm()
    assert rounding < 0.01
    assert (adapters > 0.05) == (encoder == "lora")


def paper_settings() -> dict[str, Any]:
    """The last JSON of docs/training.md, checked against what the trainer knows."""
    page = Path(__file__).resolve().parents[4] / "docs" / "training.md"
    text = re.findall(r"```json\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[-1]
    from_json(TrainingSettings, text)
    settings: dict[str, Any] = json.loads(text)
    return settings


def test_a_run_with_other_settings_is_not_gone_on_with(
    train: Callable[[str], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_text("{}", encoding="utf-8")
    assert train("run") == 2
    assert "the run there has other settings; choose another --output" in capsys.readouterr().err


def test_an_interrupted_training_says_how_it_goes_on(
    train: Callable[[str], int], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.Learner, "run", interrupted)
    assert train("run") == 130
    said = "\ninterrupted; the same command goes on from the last validation\n"
    assert capsys.readouterr().err == said


def test_a_plan_of_another_corpus_is_refused(
    train: Callable[[str], int], material: Material, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    other = dataclasses.replace(material, path=material.path.astype("<U40"))
    other.path[0] = "elsewhere/hum-0.flac"
    other.save(tmp_path / "plan.npz")
    assert train("run") == 2
    assert "the plan names the corpus 'elsewhere'" in capsys.readouterr().err


def test_a_plan_of_too_few_classes_is_refused_before_anything_is_trained(
    train: Callable[[str], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = copy.deepcopy(SETTINGS)
    given["separation"]["queries"]["source_shares"] = [0.1, 0.62, 0.2, 0.08]
    (tmp_path / "settings.json").write_text(json.dumps(given), encoding="utf-8")
    assert train("out") == 2
    assert "4 classes are drawn: mixtures of up to 4" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
