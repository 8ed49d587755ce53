"""Ratios against torchmetrics, least squares, mir_eval and the stored reference."""

from __future__ import annotations

import mir_eval
import numpy as np
import pytest
import torch
import torchmetrics.functional.audio as reference_metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from golden import published, synth
from metric_signals import ALL, Metric, references, stems_and_mixtures, white_noise
from model import metrics


class TestAgainstTorchmetrics:
    """Clip by clip, in float64, where torchmetrics' epsilons do not reach."""

    def test_sdr(self) -> None:
        stem, mixture, reference = stems_and_mixtures()
        for estimate in (stem, mixture):
            actual = metrics.sdr_db(estimate, reference)
            for index, value in enumerate(actual.tolist()):
                expected = reference_metrics.signal_distortion_ratio(
                    estimate[index].double(), reference[index].double()
                )
                assert value == pytest.approx(expected.item(), abs=1e-6), list(references())[index]

    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [
            (metrics.si_sdr_db, reference_metrics.scale_invariant_signal_distortion_ratio),
            (metrics.si_snr_db, reference_metrics.scale_invariant_signal_noise_ratio),
            (metrics.snr_db, reference_metrics.signal_noise_ratio),
        ],
    )
    def test_other_ratios(self, ours: Metric, theirs: Metric) -> None:
        stem, mixture, reference = stems_and_mixtures()
        for estimate in (stem, mixture):
            expected = theirs(estimate.double(), reference.double())
            torch.testing.assert_close(ours(estimate, reference), expected, rtol=0, atol=1e-7)

    @given(
        seed=st.integers(0, 2**32 - 1),
        num_samples=st.integers(512, 4000),
        level_db=st.floats(-30, 60),
    )
    @settings(max_examples=40)
    def test_sdr_of_any_length_and_level(
        self, seed: int, num_samples: int, level_db: float
    ) -> None:
        reference = white_noise(num_samples, seed=seed).double()
        noise = white_noise(num_samples, seed=seed + 1).double()
        estimate = reference + 10 ** (-level_db / 20) * noise
        actual = metrics.sdr_db(estimate[None], reference[None])
        expected = reference_metrics.signal_distortion_ratio(estimate, reference)
        assert actual.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("num_samples", [2, 3, 50, 300, 511, 2000])
def test_sdr_is_what_least_squares_leave(num_samples: int) -> None:
    """Also where torchmetrics wraps round, below 512 samples."""
    estimate, reference = (white_noise(num_samples, seed=seed).double().numpy() for seed in (1, 2))
    delayed = np.zeros((num_samples + 511, 512))
    for delay in range(512):
        delayed[delay : delay + num_samples, delay] = reference
    padded = np.pad(estimate, (0, 511))
    best = delayed @ np.linalg.lstsq(delayed, padded, rcond=None)[0]
    expected = 10 * np.log10(np.sum(best**2) / np.sum((padded - best) ** 2))
    actual = metrics.sdr_db(torch.from_numpy(estimate)[None], torch.from_numpy(reference)[None])
    assert actual.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
class TestAgainstMirEval:
    def test_sdr_is_the_bss_eval_one(self) -> None:
        stem, _, reference = stems_and_mixtures()
        for index in (0, 1, 7):
            expected, *_ = mir_eval.separation.bss_eval_sources(
                reference[index : index + 1].double().numpy(),
                stem[index : index + 1].double().numpy(),
                compute_permutation=False,
            )
            actual = metrics.sdr_db(stem[index : index + 1], reference[index : index + 1])
            assert actual.item() == pytest.approx(float(expected[0]), abs=1e-3)


class TestAgainstTheStoredValues:
    @staticmethod
    def _coloured(seed: int, scale: float) -> torch.Tensor:
        noise = synth.noise(seed, 320_000, scale)
        coloured = noise.copy()
        coloured[1:] += np.float32(0.9) * noise[:-1]
        return torch.from_numpy(coloured)[None]

    @pytest.mark.parametrize("name", ["mixed", "pred", "pred_delayed"])
    def test_values_on_formula_made_signals(self, name: str) -> None:
        target, interferer = self._coloured(1200, 0.1), self._coloured(1201, 0.05)
        with np.load(published.DATA / "metrics.npz") as stored:
            estimate = {
                "mixed": target + float(stored["mixed_scale"]) * interferer,
                "pred": 0.7 * target + 0.2 * interferer,
                "pred_delayed": torch.nn.functional.pad(0.7 * target + 0.2 * interferer, (3, 0))[
                    :, :-3
                ],
            }[name]
            for ours, key in zip(ALL, ["sdr", "si_sdr", "si_snr", "snr"], strict=True):
                expected = float(stored[f"{key}_{name}"].item())
                # stored in float32: -72 dB are 2.4e-4 of the amplitude, on 320,000 samples
                tolerance_db = 0.02 if expected < -60 else 1e-5 * max(1.0, abs(expected))
                assert ours(estimate, target).item() == pytest.approx(expected, abs=tolerance_db)
