"""Several processes that ``torchrun`` starts train what one process trains with their batches."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import shared_training
from model.checkpoints.loading import load_converted
from model.config import ClapSepConfig, to_json
from model.training import engine
from model.training.drawing import QUERIES, Drawn, MixturePlanner
from model.training.material import Material
from tiny_model import write_tiny_model

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
OPTIMISER = {"steps": 2, "validate_every": 1, "precision": "fp32"}
ROOT = Path(__file__).resolve().parents[4]


def torchrun(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    return subprocess.run(
        [sys.executable, *TORCHRUN, *map(str, words)],
        check=False, capture_output=True, text=True, env=environment,
    )  # fmt: skip


class _WholeBatches:
    """Draws what two processes draw, as one batch."""

    def __init__(self, parts: Sequence[MixturePlanner]) -> None:
        self._parts, self._step = parts, -1  # the first draw is for the layout

    def draw(self, rng: np.random.Generator) -> Drawn:
        step, self._step = max(self._step, 0), self._step + 1
        drawn = [
            part.draw(np.random.default_rng([*shared_training.SEED, rank, step]))
            for rank, part in enumerate(self._parts)
        ]
        half = QUERIES * shared_training.BATCH_SIZE // len(drawn)
        for rank, each in enumerate(drawn):
            each["side"] = each["side"] + rank * half
        by_polarity = ("text", "shots", "text_weight")
        return {
            name: np.concatenate([each[name] for each in drawn], axis=int(name in by_polarity))
            for name in drawn[0]
        }


def test_two_processes_train_as_one_with_the_same_batch(
    corpus_folder: Path, material: Material, small_config: ClapSepConfig, tmp_path: Path
) -> None:
    audio = dataclasses.replace(small_config.clap.audio, drop_path_rate=0.0)
    config = dataclasses.replace(
        small_config,
        clap=dataclasses.replace(small_config.clap, audio=audio),
        decoder=dataclasses.replace(small_config.decoder, drop_path_rate=0.0),
    )
    (tmp_path / "corpus").symlink_to(corpus_folder)
    (tmp_path / "config.json").write_text(to_json(config), encoding="utf-8")
    material.save(tmp_path / "plan.npz")
    done = torchrun(ROOT / "tests" / "shared_training.py", tmp_path)
    assert done.returncode == 0, done.stderr
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    for name, value in both[0]["after"].items():
        assert value.equal(both[1]["after"][name]), name

    task, _ = shared_training.build(tmp_path, shared_training.BATCH_SIZE)
    parts = [shared_training.build(tmp_path, shared_training.BATCH_SIZE // 2)[1] for _ in range(2)]
    alone = shared_training.train(tmp_path, task, _WholeBatches(parts), engine.Processes())
    names = list(alone["after"])

    def joined(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([values[name].flatten() for name in names])

    before, one, two = (joined(v) for v in (alone["before"], alone["after"], both[0]["after"]))
    assert (one - two).norm() < 1e-3 * (one - before).norm()
    for name in names:
        if name.endswith(("running_mean", "running_var")):
            torch.testing.assert_close(
                both[0]["after"][name], alone["after"][name], rtol=1e-4, atol=1e-6
            )
    gradient = both[0]["figures"]["gradient"]
    assert gradient == pytest.approx(alone["figures"]["gradient"], rel=1e-2)


def test_one_process_writes_what_both_trained(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "tiny.safetensors")
    rng = np.random.default_rng(0)
    (tmp_path / "mine" / "owl").mkdir(parents=True)
    for number in range(3):
        name = tmp_path / "mine" / "owl" / f"{number}.wav"
        soundfile.write(name, 0.1 * rng.standard_normal(16_000), 32_000)
    optimiser = {"steps": 2, "validate_every": 1}
    settings = {"batch_size": 4, "query_variants": 1, "optimiser": optimiser}
    (tmp_path / "quick.json").write_text(json.dumps({"finetuning": settings}), encoding="utf-8")
    words = (
        "-m", "model.training", "finetune", "--from", tmp_path / "tiny.safetensors",
        "--corpus", tmp_path / "mine", "--settings", tmp_path / "quick.json", "--device", "cpu",
    )  # fmt: skip
    done = torchrun(*words, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("step 2 of 2") == 1
    assert done.stderr.count("give it as --model") == 1
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_both_stages_are_trained_by_two_processes(
    corpus_folder: Path, material: Material, small_config: ClapSepConfig, tmp_path: Path
) -> None:
    """From nothing, and again from where the first process was when it last validated."""
    settings = {
        "clap": {"batch_size": 4, "optimiser": OPTIMISER},
        "words": {"steps": 3},
        "separation": {
            "batch_size": 4,
            "query_variants": 1,
            "validation_mixtures": 2,
            "queries": {"source_shares": [0.5, 0.5]},
            "optimiser": OPTIMISER,
        },
    }
    (tmp_path / "config.json").write_text(to_json(small_config), encoding="utf-8")
    (tmp_path / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    material.save(tmp_path / "plan.npz")
    words = (
        "-m", "model.training", "fit", "--corpus", corpus_folder, "--plan", tmp_path / "plan.npz",
        "--config", tmp_path / "config.json", "--settings", tmp_path / "settings.json",
        "--device", "cpu", "--workers", "1", "--output", tmp_path / "run",
    )  # fmt: skip
    for _ in range(2):
        done = torchrun(*words)
        assert done.returncode == 0, done.stderr
        curve = json.loads((tmp_path / "run" / "curve.json").read_text(encoding="utf-8"))
        steps = [(row["stage"], row["step"]) for row in curve]
        assert steps == [("clap", 1), ("clap", 2), ("separation", 1), ("separation", 2)]
        load_converted(str(tmp_path / "run" / "weights" / "model.safetensors"))
        stored = torch.load(tmp_path / "run" / "resume.pt", weights_only=True)
        stored["curve"].pop()
        stored["learner"]["steps"] = 1
        torch.save(stored, tmp_path / "run" / "resume.pt")


def test_what_does_not_combine_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from model.training import __main__ as command

    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0",
                        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="give --no_capture, or one process"):
        engine.join("cuda", capture=True)
    with pytest.raises(ValueError, match="each process takes a GPU; give cuda"):
        engine.join("cuda:1", capture=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="more processes than the 1 GPUs"):
        engine.join("cuda", capture=False)
    with pytest.raises(ValueError, match="batch_size=5 cannot be divided among 2 processes"):
        engine.Processes(count=2).part_of(5, "batch_size")
    words = ["presence", "--model", "m", "--corpus", "c", "--plan", "p", "--output", "o"]
    assert command.run(words) == 2
    assert "presence runs in one process; start it without torchrun" in capsys.readouterr().err
