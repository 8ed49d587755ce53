"""Training as users start it: it is resumed bit for bit, and its weights load."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.checkpoints.loading import load_converted
from model.config import ClapSepConfig, to_json
from model.training import __main__ as command
from model.training import engine
from model.training.material import Material

SETTINGS = {
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
        return command.main(
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
    assert loaded[0].config.decoder.presence


def test_a_run_with_other_settings_is_not_gone_on_with(
    train: Callable[[str], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_text("{}", encoding="utf-8")
    assert train("run") == 2
    assert "the run there has other settings; choose another --output" in capsys.readouterr().err


def test_a_plan_of_another_corpus_is_refused(
    train: Callable[[str], int], material: Material, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    other = dataclasses.replace(material, path=material.path.astype("<U40"))
    other.path[0] = "elsewhere/hum-0.flac"
    other.save(tmp_path / "plan.npz")
    assert train("run") == 2
    assert "the plan names the corpus 'elsewhere'" in capsys.readouterr().err
