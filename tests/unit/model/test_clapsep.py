"""The one forward: batches, threads, lengths, precision, and what a query gets."""

from __future__ import annotations

import copy
import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from golden import pairs
from model.clap.audio import Precision, StageFeatures, computing_in
from model.config import TINY, ClapSepConfig
from model.inference import Network, NetworkSettings, WindowQueries
from model.signal.stft import sinc_resample
from model.systems import Condition
from model.systems.clapsep.network import ClapSep

CONFIGS = {
    "plain": TINY,
    "conv": dataclasses.replace(TINY, decoder=dataclasses.replace(TINY.decoder, conv=True)),
    "phase": dataclasses.replace(TINY, decoder=dataclasses.replace(TINY.decoder, phase=True)),
}
WINDOW = TINY.signal.window_samples
ROUNDING = 2e-6


@pytest.fixture(scope="module", params=CONFIGS)
def network(request: pytest.FixtureRequest) -> ClapSep:
    return pairs.networks(CONFIGS[request.param]).separator


@pytest.fixture(scope="module")
def plain() -> ClapSep:
    return pairs.networks(TINY).separator


def mixtures(batch: int, num_samples: int = WINDOW) -> Tensor:
    return 0.1 * torch.randn(batch, num_samples, generator=torch.Generator().manual_seed(7))


def conditions(batch: int) -> Condition:
    queries = torch.randn(2, batch, 16, generator=torch.Generator().manual_seed(8))
    positive, negative = torch.nn.functional.normalize(queries, dim=-1)
    return Condition(positive=positive, negative=negative)


def separate(network: ClapSep, mixture: Tensor, condition: Condition) -> Tensor:
    with torch.inference_mode():
        return network.separate(mixture, condition)


def assert_same(found: Tensor, expected: Tensor, tolerance: float = ROUNDING) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_query_changes_the_answer(network: ClapSep) -> None:
    mixture, condition = mixtures(1), conditions(2)
    first = separate(network, mixture, condition.index(torch.tensor([0])))
    second = separate(network, mixture, condition.index(torch.tensor([1])))
    assert (first - second).norm() > 0.02 * first.norm()
    assert 0.05 * mixture.norm() < first.norm() < mixture.norm()


def test_batch_size_and_order_do_not_matter(network: ClapSep) -> None:
    mixture, condition = mixtures(5), conditions(5)
    together = separate(network, mixture, condition)
    for row in range(5):
        only = torch.tensor([row])
        assert_same(separate(network, mixture[only], condition.index(only))[0], together[row])
    order = torch.tensor([3, 0, 4, 1, 2])
    assert_same(separate(network, mixture[order], condition.index(order)), together[order])


def test_threads_share_one_model(network: ClapSep) -> None:
    mixture, condition = mixtures(8), conditions(8)
    alone = [separate(network, mixture[[i]], condition.index(torch.tensor([i]))) for i in range(8)]
    jobs = [row for row in range(8) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(
            lambda i: separate(network, mixture[[i]], condition.index(torch.tensor([i]))), jobs
        )
        for row, estimate in zip(jobs, found, strict=True):
            assert torch.equal(estimate, alone[row])


def test_encoding_once_answers_many_queries(network: ClapSep) -> None:
    mixture, condition = mixtures(2), conditions(6)
    rows = torch.tensor([0, 0, 1, 0, 1, 1])
    with torch.inference_mode():
        shared = network.decode(network.encode(mixture).index(rows), condition)
    assert_same(shared, separate(network, mixture[rows], condition))


@pytest.mark.parametrize(("num_threads", "batch_size"), [(1, 8), (2, 8), (2, 1), (3, 64)])
def test_queries_are_answered_alike_however_threads_share_them(
    network: ClapSep, num_threads: int, batch_size: int
) -> None:
    asked, sound = conditions(9), mixtures(4)
    windows = [
        WindowQueries(
            samples=sound[channels].numpy(),
            positive=asked.positive[queries].numpy(),
            negative=asked.negative[queries].numpy(),
        )
        for channels, queries in ((slice(0, 1), slice(0, 9)), (slice(1, 3), slice(2, 5)))
    ]
    settings = NetworkSettings(num_threads=num_threads, batch_size=batch_size)
    found = Network(network, "cpu", settings).separate(windows)
    for window, estimates in zip(windows, found, strict=True):
        for query in range(len(window.positive)):
            positive, negative = (
                torch.from_numpy(part[query]).expand(len(window.samples), -1)
                for part in (window.positive, window.negative)
            )
            condition = Condition(positive=positive, negative=negative)
            alone = separate(network, torch.from_numpy(window.samples), condition)
            assert_same(torch.from_numpy(estimates.samples[query]), alone)


def test_what_serves_all_queries_is_computed_with_the_mixture(
    network: ClapSep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("computed again")

    condition = conditions(2)
    with torch.inference_mode():
        encoded = network.encode(mixtures(2))
        expected = network.decode(encoded, condition)
        monkeypatch.setattr(network.encoder, "stage_features", refuse)
        monkeypatch.setattr(network.decoder, "hear", refuse)
        assert torch.equal(network.decode(encoded, condition), expected)


def test_chosen_rows_are_chosen_from(plain: ClapSep) -> None:
    mixture, condition = mixtures(3, 5000), conditions(2)
    with torch.inference_mode():
        encoded = plain.encode(mixture)
        chosen = encoded.index(torch.tensor([2, 0, 1, 2])).index(torch.tensor([3, 1]))
        found = plain.decode(chosen, condition)
    assert (encoded.batch_size, chosen.batch_size, chosen.num_samples) == (3, 2, 5000)
    assert_same(found, separate(plain, mixture[[2, 0]], condition))


@pytest.mark.parametrize("queries", [1, 3])
def test_every_mixture_needs_its_query(plain: ClapSep, queries: int) -> None:
    with torch.inference_mode(), pytest.raises(ValueError, match=f"{queries} queries for 2 mixtur"):
        plain.separate(mixtures(2), conditions(queries))


@pytest.mark.parametrize("num_samples", [1, 100, 128, 256, 257, 320, 481, 4999, WINDOW])
def test_output_is_as_long_as_the_input(network: ClapSep, num_samples: int) -> None:
    mixture = mixtures(2, num_samples)
    kept = mixture.clone()
    estimate = separate(network, mixture, conditions(2))
    assert estimate.shape == mixture.shape
    assert estimate.dtype == torch.float32
    assert estimate.isfinite().all()
    assert torch.equal(mixture, kept)


def test_short_input_is_heard_with_silence_after_it(plain: ClapSep) -> None:
    mixture, condition = mixtures(1, 100), conditions(1)
    padded = torch.nn.functional.pad(mixture, (0, TINY.signal.n_fft // 2 + 1 - 100))
    assert_same(separate(plain, mixture, condition), separate(plain, padded, condition)[:, :100])


@pytest.mark.parametrize("shape", [(1, 0), (1, WINDOW + 1), (WINDOW,), (1, 1, 100)])
def test_impossible_mixture_is_refused(plain: ClapSep, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \[B, T\], 1 ≤ T ≤ 20000"):
        plain.encode(torch.zeros(shape))


@pytest.mark.parametrize("num_samples", [1, 5000, WINDOW])
def test_silence_gives_silence(network: ClapSep, num_samples: int) -> None:
    silence = torch.zeros(2, num_samples)
    assert torch.equal(separate(network, silence, conditions(2)), silence)


def test_absent_queries_are_allowed(network: ClapSep) -> None:
    nothing = Condition(positive=torch.zeros(1, 16), negative=torch.zeros(1, 16))
    assert separate(network, mixtures(1), nothing).isfinite().all()


def test_encoder_hears_the_resampled_mixture(plain: ClapSep) -> None:
    mixture, condition = mixtures(1, 5000), conditions(1)
    heard = sinc_resample(mixture, 32_000, 48_000)
    with torch.inference_mode():
        found = plain.separate(mixture, condition, heard)
        other = plain.separate(mixture, condition, torch.zeros_like(heard))
    assert torch.equal(found, separate(plain, mixture, condition))
    assert not torch.equal(found, other)


def test_preparing_changes_no_output(network: ClapSep) -> None:
    fresh = ClapSep(network.config).eval()
    fresh.load_state_dict(_unadapted(network))
    mixture, condition = mixtures(2), conditions(2)
    before = separate(fresh, mixture, condition)
    keys = list(fresh.state_dict())
    assert fresh.prepare() is fresh
    assert list(fresh.state_dict()) == keys
    assert_same(separate(fresh, mixture, condition), before, 1e-7)
    assert_same(before, separate(network, mixture, condition))


def _unadapted(network: ClapSep) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def test_call_and_gradients_give_the_same_output(network: ClapSep) -> None:
    mixture, condition = mixtures(1, 5000), conditions(1)
    condition.positive.requires_grad_()
    estimate = network(mixture, condition)
    estimate.square().sum().backward()
    assert condition.positive.grad is not None
    assert condition.positive.grad.abs().max() > 0
    assert_same(estimate.detach(), separate(network, mixture, conditions(1)), 1e-5)


@pytest.mark.parametrize("prepared", [True, False])
def test_bfloat16_is_close(plain: ClapSep, prepared: bool) -> None:
    coarse = copy.deepcopy(plain)
    coarse.precision = "bf16"
    if prepared:
        coarse.prepare()
    mixture, condition = mixtures(3), conditions(3)
    exact, found = separate(plain, mixture, condition), separate(coarse, mixture, condition)
    assert found.dtype == torch.float32
    error_db = 20 * torch.log10(exact.norm(dim=-1) / (exact - found).norm(dim=-1))
    assert error_db.min() > 35
    assert error_db.max() < 80


def test_preparing_in_bfloat16_halves_the_weights(plain: ClapSep) -> None:
    coarse = copy.deepcopy(plain)
    coarse.precision = "bf16"
    unprepared = separate(coarse, mixtures(2), conditions(2))
    coarse.prepare()
    assert_same(separate(coarse, mixtures(2), conditions(2)), unprepared, 1e-3)
    assert coarse.encoder.layers[0].blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert plain.encoder.layers[0].blocks[0].attn.qkv.weight.dtype == torch.float32
    with pytest.raises(ValueError, match="precision='fp32': this network was prepared for bf16"):
        coarse.precision = "fp32"


@pytest.mark.parametrize(
    ("precision", "inside"), [("fp32", ("highest", False)), ("tf32", ("high", True))]
)
def test_a_gpu_rounds_factors_where_it_is_told_to_and_nowhere_else(
    precision: Precision, inside: tuple[str, bool]
) -> None:
    """Torch's own default rounds those of convolutions."""

    def settings() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = settings()
    assert before == ("highest", True)
    with computing_in(precision, "cuda"):
        assert settings() == inside
    assert settings() == before
    with computing_in("fp32", "cpu"):
        assert settings() == before


def test_tf32_is_set_while_the_network_computes_and_not_after(
    plain: ClapSep, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = copy.deepcopy(plain)
    network.precision = "tf32"
    seen: list[str] = []
    network.decoder.register_forward_hook(
        lambda *_: seen.append(torch.get_float32_matmul_precision())
    )
    original = network.encoder.stage_features

    def stage_features(waveform: Tensor, power: Tensor | None) -> StageFeatures:
        seen.append(torch.get_float32_matmul_precision())
        return original(waveform, power)

    monkeypatch.setattr(network.encoder, "stage_features", stage_features)
    before = torch.get_float32_matmul_precision()
    found = separate(network, mixtures(1), conditions(1))
    assert seen == ["high", "high"]
    assert torch.get_float32_matmul_precision() == before != "high"
    # On some processors the setting means something too: ten bits of mantissa are left.
    assert_same(found, separate(plain, mixtures(1), conditions(1)), 1e-2)


def test_unknown_precision_is_refused(plain: ClapSep) -> None:
    with pytest.raises(ValueError, match="precision='fp8': expected one of"):
        ClapSep(TINY, precision="fp8")
    with pytest.raises(ValueError, match="precision='int8': expected one of"):
        plain.precision = "int8"
    assert plain.precision == "fp32"


def test_every_tensor_moves_with_the_network(plain: ClapSep) -> None:
    moved = copy.deepcopy(plain).to("meta")
    tensors = [*moved.parameters(), *moved.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    names = {name.rpartition(".")[2] for name, _ in moved.named_buffers()}
    assert {"hann", "prepared_bias"} <= names


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same(network: ClapSep) -> None:
    mixture, condition = mixtures(2), conditions(2)
    expected = separate(network, mixture, condition)
    on_gpu = copy.deepcopy(network).to("cuda")
    found = separate(on_gpu, mixture.to("cuda"), condition)
    assert found.device.type == "cuda"
    assert_same(found.cpu(), expected, 1e-4)


def test_interface(plain: ClapSep) -> None:
    assert (plain.sample_rate_hz, plain.window_samples, plain.embedding_dim) == (32_000, WINDOW, 16)
    assert plain.name == "clapsep"
    assert plain.capabilities.text
    assert plain.capabilities.audio
    assert plain.capabilities.labels is None


def test_configuration_is_kept(network: ClapSep) -> None:
    assert isinstance(network.config, ClapSepConfig)
    assert (network.config.decoder.phase, hasattr(network.decoder, "phase_net")) in [
        (True, True),
        (False, False),
    ]
