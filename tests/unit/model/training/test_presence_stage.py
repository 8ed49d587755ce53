"""The presence stage: what it asks, what it fits, and its command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import torch

from model.checkpoints.convert import save
from model.checkpoints.loading import Networks, load_converted
from model.clap import Clap
from model.config import ClapSepConfig
from model.systems import Condition
from model.systems.clapsep.network import ClapSep
from model.training import __main__ as command
from model.training.drawing import NONE
from model.training.material import Material
from model.training.presence import HeardWindows, PresencePlanner, fit_logistic, hear_windows
from model.training.settings import PresenceTraining
from model.training.sound import ClipStore, Renderer

SMALL = {
    "presence": {
        "num_windows": 4, "windows_at_once": 4, "source_shares": [0.5, 0.5], "batch_size": 2,
        "queries": 3, "present_queries": 1, "names": 2, "near_classes": 2, "steps": 4,
        "warmup_steps": 1,
    }
}  # fmt: skip


def _heard(material: Material, settings: PresenceTraining) -> HeardWindows:
    """Windows of one or two training clips of different classes, the second one barely audible."""
    first, *_, last = material.clips_of("train").tolist()
    clips = np.array([[first, NONE], [last, NONE], [first, last], [last, first]])
    quiet = settings.audible_db - 1.0
    levels_db = np.array([[0, -120], [0, -120], [0, -3], [0, quiet]], dtype=np.float32)
    return HeardWindows(
        latents=torch.zeros(4, 1, 1).half(),
        whole=torch.zeros(4, 8),
        clips=clips,
        levels_db=levels_db,
    )


def test_what_is_asked_for_is_there_or_not(material: Material) -> None:
    settings = PresenceTraining(batch_size=200, queries=4, present_queries=2, names=2)
    heard = _heard(material, settings)
    texts = torch.nn.functional.normalize(torch.randn(len(material.latents), 8), dim=-1)
    drawn = PresencePlanner(material, heard, texts, settings).draw(np.random.default_rng(0))
    wordings = {name: {*plain, *framed} for name, (plain, framed) in material.texts_of.items()}
    kinds = {"text": 0, "clips": 0, "both": 0}
    for row in range(800):
        window = drawn["windows"][row // 4]
        clips = [clip for clip in heard.clips[window].tolist() if clip != NONE]
        there = material.class_of[clips].tolist()
        audible = there[:1] if window == 3 else there
        assert drawn["present"][row] == (row % 4 < 2)
        (asked,) = [name for name, texts in wordings.items() if drawn["text"][0, row] in texts]
        assert asked in audible if drawn["present"][row] else asked not in there
        shot = drawn["shots"][0, row, 0]
        assert shot == NONE or material.class_of[shot] == asked
        weight = drawn["weight"][0, row]
        kinds["text" if shot == NONE else "clips" if weight == 0 else "both"] += 1
        if drawn["text"][1, row] != NONE:
            (other,) = [name for name, texts in wordings.items() if drawn["text"][1, row] in texts]
            assert other in there
            assert other != asked
    assert kinds["text"] / 800 == pytest.approx(0.6, abs=0.06)
    assert kinds["clips"] / 800 == pytest.approx(0.25, abs=0.06)


def test_classes_that_mixtures_can_use_up_are_refused(
    material: Material, small_config: ClapSepConfig
) -> None:
    store = ClipStore([np.ones(100, dtype=np.int16)] * len(material.path))
    settings = PresenceTraining()
    assert len(settings.source_shares) == 4 == len(material.recordings)
    with pytest.raises(ValueError, match="4 classes are drawn: mixtures of up to 4 sources"):
        hear_windows(
            Clap(small_config.clap), material, Renderer(store, 32_000, 32_000), settings, seed=0
        )


def test_scores_become_log_odds_of_as_much_there_as_not() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(scale=2.0, size=(40_000, 2))
    present = rng.random(40_000) < scipy.special.expit(truth.max(axis=1))
    other = rng.normal(size=truth.shape)
    weights, offset = fit_logistic(np.stack([(truth - other - 0.7) / 3.0, other]), present)
    balance = np.log(present.mean() / (1 - present.mean()))
    assert weights == pytest.approx([3.0, 1.0], rel=0.06)
    assert offset == pytest.approx(0.7 - balance, abs=0.08)


@pytest.fixture
def trained(small_config: ClapSepConfig, tmp_path: Path) -> Path:
    """A model that nobody has trained, in a file."""
    torch.manual_seed(0)
    networks = Networks(
        config=small_config, clap=Clap(small_config.clap), separator=ClapSep(small_config)
    )
    save(str(tmp_path / "model.safetensors"), networks)
    return tmp_path / "model.safetensors"


def _train(corpus: Path, folder: Path, model: Path, output: Path) -> int:
    (folder / "settings.json").write_text(json.dumps(SMALL), encoding="utf-8")
    return command.run(
        [
            "presence", "--corpus", str(corpus), "--plan", str(folder / "plan.npz"),
            "--model", str(model), "--device", "cpu", "--output", str(output),
            "--settings", str(folder / "settings.json"),
        ]
    )  # fmt: skip


@pytest.mark.usefixtures("own_cache")
def test_the_command_gives_a_model_the_output_and_leaves_its_stems(
    corpus_folder: Path, material: Material, trained: Path, tmp_path: Path
) -> None:
    material.save(tmp_path / "plan.npz")
    outputs = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for output in outputs:
        assert _train(corpus_folder, tmp_path, trained, output) == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    before, after = load_converted(str(trained)), load_converted(str(outputs[0]))
    mixture = 0.1 * torch.randn(2, 32_000, generator=torch.Generator().manual_seed(0))
    query = torch.nn.functional.normalize(torch.ones(2, 32), dim=-1)
    condition = Condition(positive=query, negative=torch.zeros_like(query))
    with torch.inference_mode():
        stems = [each.separator.separate(mixture, condition) for each in (before, after)]
        encoded = after.separator.encode(mixture)
        odds = after.separator.presence(encoded, condition)
        assert before.separator.presence(before.separator.encode(mixture), condition) is None
    assert torch.equal(*stems)
    assert odds is not None
    assert odds.isfinite().all()
    listener = after.separator.listener
    assert listener is not None
    assert (listener.head.scale.item(), listener.head.offset.item()) != (1.0, 0.0)


@pytest.mark.usefixtures("own_cache")
def test_the_output_lies_beside_the_model(
    corpus_folder: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for output in (tmp_path / "elsewhere" / "p.safetensors", trained):
        assert _train(corpus_folder, tmp_path, trained, output) == 2
        message = capsys.readouterr().err
        assert "expected a new file in the folder of the model" in message
        assert message.count("\n") == 1
