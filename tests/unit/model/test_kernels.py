"""The forms of linear layers and attention are equal, and each is used where it should be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench import counts
from float_noise import rounding
from model.checkpoints.loading import build
from model.clap import audio
from model.clap.audio import Activation, Encoder
from model.config import MINI, PUBLISHED, ClapSepConfig

ACTIVATIONS: dict[Activation, object] = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The types of the products that oneDNN was asked for."""
    asked: list[torch.dtype] = []
    product = audio._product

    def spy(x: Tensor, *args: object, **options: object) -> Tensor:
        asked.append(x.dtype)
        return product(x, *args, **options)

    monkeypatch.setattr(audio, "_product", spy)
    return asked


@pytest.fixture(params=["oneDNN", "torch"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both what this machine may have and what any machine has."""
    if request.param == "torch":
        monkeypatch.setattr(audio, "_onednn_types", tuple)
    return str(request.param)


def naive(query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    query, key, value = query.double(), key.double(), value.double()
    scores = scale * query @ key.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias.double()[torch.arange(len(query)) % len(bias)]
    return (torch.softmax(scores, dim=-1) @ value).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_equals_torch(form: str, activation: Activation, with_bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(37, 19, bias=with_bias), torch.randn(2, 3, 37)
    expected = ACTIVATIONS[activation](layer(x))
    with torch.inference_mode():
        found = audio.linear(layer, x, activation)
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=rounding(expected, 37))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_row_gives_the_same_bits_alone_and_among_others(activation: Activation) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(512, 256), torch.randn(5, 512)
    with torch.inference_mode():
        together = audio.linear(layer, x, activation)
        for row, expected in zip(x, together, strict=True):
            assert torch.equal(audio.linear(layer, row[None], activation), expected[None])
            assert torch.equal(audio.linear(layer, row, activation), expected)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 1_037])
def test_sigmoids_are_the_same_alone_and_among_others(length: int) -> None:
    torch.manual_seed(0)
    x = 5 * torch.randn(7, length)
    together = audio.sigmoid(x)
    torch.testing.assert_close(together, torch.sigmoid(x))
    for row, expected in zip(x, together, strict=True):
        assert torch.equal(audio.sigmoid(row), expected)


def test_linear_takes_a_strided_input(form: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 8), torch.randn(3, 16, 40).transpose(1, 2)[:, ::3]
    with torch.inference_mode():
        found = audio.linear(layer, x)
    torch.testing.assert_close(found, layer(x).detach(), rtol=0, atol=rounding(found, 16))


def test_other_layers_are_called() -> None:
    x = torch.randn(4, 8)
    assert torch.equal(audio.linear(nn.Softplus(), x, "relu"), F.relu(F.softplus(x)))


def test_gradients_flow_and_keep_to_torch(products: list[torch.dtype]) -> None:
    layer, x = nn.Linear(8, 8), torch.randn(4, 8, requires_grad=True)
    audio.linear(layer, x, "gelu").sum().backward()
    query = torch.randn(2, 3, 5, 4, requires_grad=True)
    audio.attend(query, query, query, 0.5).sum().backward()
    assert layer.weight.grad is not None
    assert x.grad is not None
    assert query.grad is not None
    assert not products


def test_frozen_layer_needs_no_inference_mode(products: list[torch.dtype]) -> None:
    if not audio._onednn_types():
        pytest.skip("this build of torch has no oneDNN")
    layer, x = nn.Linear(8, 8).requires_grad_(False), torch.randn(4, 8)
    audio.linear(layer, x)
    assert products == [torch.float32]


def test_autocast_is_followed(form: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 32), torch.randn(5, 64)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found, expected = audio.linear(layer, x), F.linear(x, layer.weight, layer.bias)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


def test_double_precision_is_kept() -> None:
    layer, x = nn.Linear(8, 8).double(), torch.randn(4, 8).double()
    with torch.inference_mode():
        assert audio.linear(layer, x).dtype == torch.float64


def test_on_a_gpu_layer_norms_keep_to_two_bytes_where_all_else_does() -> None:
    """By CUDA's rules, on the meta device; a CPU does so by itself."""
    norm = nn.LayerNorm(16)
    x = torch.randn(3, 16)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert audio.layer_norm(norm, x.bfloat16()).dtype == torch.bfloat16
        assert torch.equal(audio.layer_norm(norm, x), norm(x))
    norm.to("meta")
    wide, narrow = x.to("meta"), x.to("meta", torch.bfloat16)
    with counts.as_on_cuda() as rules, rules.autocast():
        assert audio.layer_norm(norm, narrow).dtype == torch.float32
        audio.cast_weights(norm, torch.bfloat16)
        assert norm.weight.dtype == torch.bfloat16
        assert audio.layer_norm(norm, narrow).dtype == torch.bfloat16
        assert audio.layer_norm(norm, wide).dtype == torch.float32


def test_weights_cast_beforehand_give_what_autocast_gives() -> None:
    torch.manual_seed(0)
    network = nn.ModuleDict({"a": nn.Linear(16, 16), "b": nn.MultiheadAttention(16, 2)})
    network["c"] = nn.LayerNorm(16)
    x = torch.randn(3, 16)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        before = audio.linear(network["a"], x)
        audio.cast_weights(network, torch.bfloat16)
        after = audio.linear(network["a"], x)
    assert torch.equal(before, after)
    types = {name: value.dtype for name, value in network.named_parameters()}
    assert types.pop("c.weight") == types.pop("c.bias") == torch.float32
    assert len(types) == 6
    assert set(types.values()) == {torch.bfloat16}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("windows", [None, 1, 2, 6])
@pytest.mark.parametrize(("length", "heads"), [(16, 3), (1, 2), (300, 2)])
def test_attention(form: str, windows: int | None, length: int, heads: int, padded: bool) -> None:
    generator = torch.Generator().manual_seed(length)
    query, key, value = torch.randn(3, 6, heads, length, 8, generator=generator)
    bias = None
    if windows is not None:
        bias = torch.randn(windows, heads, length, length, generator=generator)
    expected = naive(query, key, value, 0.3, bias)
    if bias is not None and padded:
        bias = F.pad(audio.aligned(bias), (0, 8), value=torch.nan)
        bias[..., length:] = torch.nan  # not to be read
    with torch.inference_mode():
        found = audio.attend(query, key, value, 0.3, bias)
        low = audio.attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), 0.3, bias)
    assert found.shape == (6, length, 8 * heads)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=rounding(value, 8 + length))
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), expected, rtol=0.05, atol=0.05)


def test_attention_of_views_of_one_projection(form: str) -> None:
    torch.manual_seed(0)
    joint = torch.randn(2, 9, 3 * 2 * 4)
    query, key, value = joint.unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
    with torch.inference_mode():
        found = audio.attend(query, key, value, 0.5)
    torch.testing.assert_close(
        found.double(),
        naive(query, key, value, 0.5, None),
        rtol=0,
        atol=rounding(value, 4 + 9),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [PUBLISHED, MINI], ids=["published", "mini"])
def test_fused_attention_on_a_gpu_takes_what_it_is_given(
    config: ClapSepConfig, dtype: torch.dtype
) -> None:
    """By PyTorch's conditions, since there is no GPU to ask; see ``sdp_utils.cpp`` beside its CUDA.

    The memory-efficient kernel, the only fused one that takes a bias in float32, wants rows of
    queries, keys, values and bias to begin at multiples of 8 values; it copies a bias that is
    otherwise, and computes unfused where it cannot copy. cuDNN, first choice on some cards for
    bfloat16, does not look at the bias' type: it has to be the query's.
    """
    encoder = build(lambda: Encoder(config.clap.audio)).eval().requires_grad_(False)
    encoder.prepare(dtype)
    blocks = [module for module in encoder.modules() if isinstance(module, audio.SwinBlock)]
    assert {block.shift > 0 for block in blocks} == {False, True}
    for block in blocks:
        length, heads = block.window**2, block.attn.num_heads
        joint = torch.empty(
            2 * (block.grid // block.window) ** 2, length, block.attn.qkv.out_features, dtype=dtype
        )
        query, key, value = audio.by_head(joint, heads)
        mask = audio.mask_of(block.get_buffer("prepared_bias"), query)
        assert mask.shape == (len(joint), heads, length, length)
        assert mask.dtype == dtype
        for tensor in (query, key, value, mask):
            *rows, last = tensor.stride()
            assert last == 1
            assert all(step % 8 == 0 for step in rows)
            assert tensor.storage_offset() % 8 == 0
        if not block.shift:
            assert mask.data_ptr() == block.get_buffer("prepared_bias").data_ptr()


def test_gradients_of_a_joint_projection_are_put_together_in_one_copy() -> None:
    joint = torch.randn(3, 9, 3 * 2 * 4, generator=torch.Generator().manual_seed(0))
    joint.requires_grad_()
    weights = torch.randn(3, 3, 2, 9, 4, generator=torch.Generator().manual_seed(1))
    parts = audio.by_head(joint, 2)
    for part, expected in zip(parts, joint.chunk(3, dim=-1), strict=True):
        assert torch.equal(part.transpose(1, 2).flatten(2), expected)
    loss = sum((part * weight).sum() for part, weight in zip(parts, weights, strict=True))
    with Copies() as copies:
        loss.backward()
    assert copies.names == ["aten.stack.default"]
    assert joint.grad is not None
    assert torch.equal(joint.grad, torch.cat(list(weights.transpose(2, 3).flatten(3)), dim=-1))


class Copies(TorchDispatchMode):
    """Names the operations that copy."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if any(word in str(function) for word in ("copy", "clone", "stack", "cat", "contiguous")):
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("hidden_values", [2**22, 24 * 5])
def test_feed_forward_equals_two_layers(
    form: str, hidden_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio, "_HIDDEN", hidden_values)
    torch.manual_seed(0)
    first, second, x = nn.Linear(8, 24), nn.Linear(24, 6), torch.randn(2, 17, 8)
    with torch.inference_mode():
        out = audio.feed_forward(first, second, x, "gelu")
        expected = second(F.gelu(first(x)))
    torch.testing.assert_close(out, expected, rtol=0, atol=rounding(expected, 8 + 24))
