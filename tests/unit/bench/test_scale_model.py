from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import scale_model


def test_hours_and_dollars_by_hand() -> None:
    worker = scale_model.Worker(clips_per_s=2.0, startup_s=100.0, price_per_hour=0.5)
    assert worker.audio_hours_per_hour == 20.0
    assert worker.price_per_1000_audio_hours == 25.0
    assert worker.wall_s(1_600, 8) == 200.0
    assert worker.price(1_600, 9 - 1) == pytest.approx(8 * 200 / 3_600 * 0.5)


def test_the_lesser_of_accelerator_and_host_is_computed(capsys: pytest.CaptureFixture[str]) -> None:
    assert scale_model.computed_rate(1e11, 100, 0.5, 0.1, 16) == pytest.approx(160.0)
    assert "the host's cores" in capsys.readouterr().out
    assert scale_model.computed_rate(1e11, 1, 0.5, 0.1, 16) == pytest.approx(5.0)
    assert "computed, not measured" in capsys.readouterr().out


def _record(path: Path, workers: int, wall_s: float, status: str = "finished") -> Path:
    found = {
        "status": status,
        "row_counts": {"stems": 100},
        "audio_s": 500.0,
        "wall_s": wall_s,
        "config": {"execution": {"num_workers": workers}},
    }
    path.write_text(json.dumps(found), encoding="utf-8")
    return path


def test_a_second_run_is_predicted_from_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = _record(tmp_path / "1", 1, 110.0), _record(tmp_path / "2", 2, 72.0)
    scale_model.run(["--check", str(one), str(two), "--startup_s", "10"])
    assert "predicted 60.0 s, measured 72.0 s, ratio 1.20" in capsys.readouterr().out


def test_what_cannot_be_a_measurement_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finished"):
        scale_model.read_run(_record(tmp_path / "1", 1, 110.0, status="failed"))
    measured = scale_model.read_run(_record(tmp_path / "1", 1, 110.0))
    with pytest.raises(ValueError, match="too long"):
        scale_model.worker_of(measured, 200.0)
    with pytest.raises(ValueError, match="above 0"):
        scale_model.Worker(clips_per_s=0.0)
