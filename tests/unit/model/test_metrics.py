"""Ratios against closed forms, in batches and blocks, and their edges."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metric_signals import ALL, Metric, references, stems_and_mixtures, white_noise
from model import metrics


def _assert_same(
    actual: list[metrics.Outcomes], expected: list[metrics.Outcomes], *, within_db: float
) -> None:
    """The same values, and the same reasons for what has none."""
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            if isinstance(value, metrics.Undefined):
                assert one[name] == value, name
            else:
                assert one[name] == pytest.approx(value, rel=0, abs=within_db), name


class TestClosedForms:
    """Orthogonal tones of whole periods: shares of power are exact."""

    @staticmethod
    def _tones() -> tuple[torch.Tensor, torch.Tensor]:
        turns = torch.arange(32_000, dtype=torch.float64) * (2 * math.pi / 320)
        return turns.sin()[None], (3 * turns).cos()[None]

    @pytest.mark.parametrize("gain", [1.0, 0.5, -2.0])
    @pytest.mark.parametrize("error", [1.0, 0.1, 1e-3, 1e-5])
    def test_si_sdr_is_the_power_ratio_whatever_the_gain(self, gain: float, error: float) -> None:
        target, other = self._tones()
        estimate = gain * (target + error * other)
        expected = -20 * math.log10(error)
        assert metrics.si_sdr_db(estimate, target).item() == pytest.approx(expected, abs=1e-4)
        offset = metrics.si_snr_db(estimate + 0.3, target - 0.1)
        assert offset.item() == pytest.approx(expected, abs=1e-4)

    def test_an_offset_counts_as_distortion_unless_the_mean_is_removed(self) -> None:
        target, _ = self._tones()
        power_ratio_db = 10 * math.log10(0.5 / 0.01)
        assert metrics.si_sdr_db(target + 0.1, target).item() == pytest.approx(power_ratio_db)
        assert metrics.si_snr_db(target + 0.1, target).isnan()  # the same tone

    @pytest.mark.parametrize("gain", [0.5, -1.0, 3.0])
    def test_snr_counts_a_gain_as_error(self, gain: float) -> None:
        target, _ = self._tones()
        expected = -20 * math.log10(abs(gain - 1))
        assert metrics.snr_db(gain * target, target).item() == pytest.approx(expected)

    def test_sdr_forgives_a_short_filter_and_no_longer_one(self) -> None:
        reference = torch.nn.functional.pad(white_noise(1, 60_000).double(), (0, 600))
        other = 0.1 * white_noise(1, 60_600, seed=1).double()

        def delayed_db(delay: int) -> float:
            return metrics.sdr_db(reference.roll(delay, dims=1) + other, reference).item()

        assert delayed_db(0) == pytest.approx(20.0, abs=0.1)
        assert delayed_db(511) == pytest.approx(20.0, abs=0.1)
        assert delayed_db(512) < -15.0


class TestBatches:
    def test_pair_equals_two_single_calls(self) -> None:
        stem, mixture, reference = stems_and_mixtures()
        pair = metrics.sdr_pair_db(stem, mixture, reference)
        torch.testing.assert_close(pair.stem, metrics.sdr_db(stem, reference), rtol=0, atol=1e-9)
        torch.testing.assert_close(
            pair.mixture, metrics.sdr_db(mixture, reference), rtol=0, atol=1e-9
        )

    @pytest.mark.parametrize("metric", ALL)
    def test_neither_size_nor_order_of_the_batch_matters(self, metric: Metric) -> None:
        stem, _, reference = stems_and_mixtures()
        together = metric(stem, reference)
        order = torch.randperm(len(stem), generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(
            metric(stem[order], reference[order]), together[order], rtol=0, atol=1e-9
        )
        for index in range(len(stem)):
            alone = metric(stem[index : index + 1], reference[index : index + 1])
            torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-9)

    def test_threads_do_not_disturb_each_other(self) -> None:
        stem, mixture, reference = stems_and_mixtures()
        expected = metrics.score_pair(stem, mixture, reference)
        with ThreadPoolExecutor(4) as pool:
            results = list(
                pool.map(lambda _: metrics.score_pair(stem, mixture, reference), range(8))
            )
        for result in results:
            _assert_same(result, expected, within_db=1e-9)

    def test_undefined_clips_leave_their_neighbours_alone(self) -> None:
        stem, _, reference = stems_and_mixtures()
        expected = {metric: metric(stem, reference) for metric in ALL}
        stem[2], reference[4], stem[6, 7], reference[8, 3] = 0.0, 0.0, torch.nan, torch.inf
        spoilt = [2, 4, 6, 8]
        rest = [index for index in range(len(stem)) if index not in spoilt]
        for metric in ALL:
            actual = metric(stem, reference)
            assert actual[spoilt].isnan().all()
            torch.testing.assert_close(actual[rest], expected[metric][rest], rtol=0, atol=1e-9)


class TestEdges:
    @pytest.mark.parametrize("metric", ALL)
    def test_silence_gives_nan(self, metric: Metric) -> None:
        sound, silence = white_noise(1, 900), torch.zeros(1, 900)
        assert metric(silence, sound).isnan().all()
        assert metric(sound, silence).isnan().all()
        assert metric(silence, silence).isnan().all()

    @pytest.mark.parametrize("metric", ALL)
    def test_identical_signals_give_nan(self, metric: Metric) -> None:
        for signal in references().values():
            assert metric(signal[None], signal[None]).isnan().all()

    @pytest.mark.parametrize("metric", [metrics.sdr_db, metrics.si_sdr_db, metrics.si_snr_db])
    def test_scaled_copies_give_nan_where_scale_is_forgiven(self, metric: Metric) -> None:
        for signal in references().values():
            assert metric(0.7 * signal[None], signal[None]).isnan().all()

    @pytest.mark.parametrize("metric", ALL)
    def test_values_that_are_not_finite_give_nan(self, metric: Metric) -> None:
        for value in (torch.nan, torch.inf, -torch.inf):
            broken = white_noise(1, 900)
            broken[0, 5] = value
            assert metric(broken, white_noise(1, 900)).isnan().all()
            assert metric(white_noise(1, 900), broken).isnan().all()

    @pytest.mark.parametrize("metric", [metrics.si_sdr_db, metrics.sdr_db])
    def test_nothing_in_common_gives_nan(self, metric: Metric) -> None:
        estimate, reference = torch.zeros(1, 9000), torch.zeros(1, 9000)
        reference[:, :4000], estimate[:, 5000:] = 1.0, white_noise(1, 4000)
        assert metric(estimate, reference).isnan().all()

    def test_one_sample(self) -> None:
        one, two = torch.tensor([[1.0]]), torch.tensor([[2.0]])
        assert metrics.snr_db(two, one).item() == pytest.approx(0.0)
        for metric in ALL[:3]:
            assert metric(two, one).isnan().all()

    def test_constant_signals_are_silent_without_their_mean(self) -> None:
        assert metrics.si_snr_db(white_noise(1, 900), torch.full((1, 900), 0.3)).isnan().all()

    def test_nearly_perfect_is_still_a_number(self) -> None:
        reference = white_noise(1, 32_000).double()
        estimate = reference + 1e-5 * white_noise(1, 32_000, seed=1).double()
        for metric in ALL:
            assert metric(estimate, reference).item() == pytest.approx(100.0, abs=0.2)

    @pytest.mark.parametrize("metric", ALL)
    def test_scale_of_both_does_not_matter(self, metric: Metric) -> None:
        stem, _, reference = stems_and_mixtures()
        for scale in (1e-12, 1e12):
            torch.testing.assert_close(
                metric(stem.double() * scale, reference.double() * scale),
                metric(stem, reference),
                rtol=0,
                atol=1e-6,
            )

    @pytest.mark.parametrize("metric", ALL)
    def test_inputs_are_left_untouched(self, metric: Metric) -> None:
        stem, _, reference = stems_and_mixtures()
        before = stem.clone(), reference.clone()
        metric(stem, reference)
        assert torch.equal(stem, before[0])
        assert torch.equal(reference, before[1])

    @pytest.mark.parametrize("metric", ALL)
    def test_bad_shapes_are_refused(self, metric: Metric) -> None:
        with pytest.raises(ValueError, match=r"shape \(1, 8\) cannot .* shape \(1, 9\)"):
            metric(torch.ones(1, 8), torch.ones(1, 9))
        with pytest.raises(ValueError, match=r"expected \[clips, samples\], got shape \(9,\)"):
            metric(torch.ones(9), torch.ones(9))
        with pytest.raises(ValueError, match="no samples"):
            metric(torch.ones(1, 0), torch.ones(1, 0))


class TestPairScorer:
    @given(lengths=st.lists(st.integers(0, 6000), min_size=1, max_size=5).filter(any))
    @settings(max_examples=25)
    def test_blocks_give_the_scores_of_the_whole(self, lengths: list[int]) -> None:
        stem, mixture, reference = (white_noise(2, sum(lengths), seed=seed) for seed in range(3))
        mixture = mixture + reference
        scorer = metrics.PairScorer()
        for blocks in zip(
            *(signal.split(lengths, dim=1) for signal in (stem, mixture, reference)), strict=True
        ):
            scorer.update(*blocks)
        expected = metrics.score_pair(stem, mixture, reference)
        _assert_same(scorer.scores(), expected, within_db=1e-7)

    def test_bad_shapes_are_refused(self) -> None:
        with pytest.raises(ValueError, match="cannot be scored"):
            metrics.PairScorer().update(torch.ones(1, 3), torch.ones(1, 4), torch.ones(1, 3))
        with pytest.raises(ValueError, match="no samples"):
            metrics.PairScorer().scores()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_what_the_cpu_gives() -> None:
    signals = stems_and_mixtures()
    expected = metrics.score_pair(*signals)
    actual = metrics.score_pair(*(signal.cuda() for signal in signals))
    _assert_same(actual, expected, within_db=1e-6)
