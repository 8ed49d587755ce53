"""Linear layers and attention in the fastest of their equal forms.

Under gradients, under ``torch.compile`` and on a GPU these are torch's own. In inference on a CPU,
linear layers go to oneDNN, which torch asks for bfloat16 only: its float32 product reaches twice
the rate of MKL's on AMD processors, and is its equal on Intel's. Attention has one form for each
size and type, chosen by measurement (``bench/kernels.py``).
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["none", "relu", "gelu"]

_ATTENDING = 256
"""Queries that attend at a time: their weights over a thousand keys stay in a core's cache."""
_VECTOR = 64
"""A multiple of the values in a vector register, whatever their type."""
_HIDDEN = 2**22
"""Values of a hidden layer that exist at a time, in inference on a CPU."""


def linear(layer: nn.Module, x: Tensor, activation: Activation = "none") -> Tensor:
    """``activation(layer(x))``.

    Args:
        layer: ``nn.Linear``, or what stands in its place, such as one with an adapter.
        x: float[..., in_features].
        activation: applied to the result.

    Returns:
        float[..., out_features].
    """
    if isinstance(layer, nn.Linear):
        return project(x, layer.weight, layer.bias, activation)
    projected: Tensor = layer(x)
    return _activate(projected, activation)


def project(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation = "none"
) -> Tensor:
    """``activation(x · weightᵀ + bias)``, by autocast's rules.

    Args:
        x: float[..., in_features].
        weight: float[out_features, in_features]; its type is the result's outside autocast.
        bias: float[out_features], or None.
        activation: applied to the result.

    Returns:
        float[..., out_features].
    """
    dtype = _compute_dtype(weight)
    if not _onednn_takes(dtype, x, weight):
        return _activate(F.linear(x.to(dtype), weight, bias), activation)
    # A row by itself would be summed in another order than among others: the same answer is wanted
    # from a batch of one as from any other batch.
    alone = x.shape[:-1].numel() == 1
    product = _product(
        x.to(dtype).expand(2, *x.shape) if alone else x.to(dtype),
        weight.to(dtype),
        None if bias is None else bias.to(dtype),
        activation,
    )
    return product[0] if alone else product


def sigmoid(x: Tensor) -> Tensor:
    """``torch.sigmoid``, whose values do not depend on what else is in the batch.

    On a CPU torch computes the values at the end that do not fill a vector by another formula.
    """
    if x.device.type != "cpu":
        return torch.sigmoid(x)
    filled = F.pad(x.flatten(), (0, -x.numel() % _VECTOR))
    return torch.sigmoid(filled)[: x.numel()].view_as(x)


def feed_forward(first: nn.Module, second: nn.Module, x: Tensor, activation: Activation) -> Tensor:
    """``second(activation(first(x)))``.

    In inference on a CPU the hidden layer, the widest there is, comes in blocks of rows.

    Args:
        first: float[..., C] → float[..., hidden].
        second: float[..., hidden] → float[..., C'].
        x: float[..., C].
        activation: of the hidden layer.

    Returns:
        float[..., C'].
    """
    rows = x.flatten(0, -2)
    blocks = [rows]
    if isinstance(first, nn.Linear) and _onednn_takes(
        _compute_dtype(first.weight), x, first.weight
    ):
        blocks = list(rows.split(max(1, _HIDDEN // first.out_features)))
    hidden_by_block = (linear(first, block, activation) for block in blocks)
    out = [linear(second, hidden) for hidden in hidden_by_block]
    return (out[0] if len(out) == 1 else torch.cat(out)).view(*x.shape[:-1], -1)


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None = None
) -> Tensor:
    """Multi-head attention: ``softmax(scale · query · keyᵀ + bias) · value``.

    Args:
        query: float[B, H, N, D].
        key: float[B, H, N, D].
        value: float[B, H, N, D].
        scale: of the products.
        bias: float[W, H, N, N] where W divides B: item b has the bias of index b modulo W.

    Returns:
        float[B, N, H·D].
    """
    if bias is None and _onednn_takes(query.dtype, query, key, value):
        return _attend_by_head(query, key, value, scale)
    batch = query.shape[0]
    mask = None
    if bias is not None:
        mask = bias.to(query.dtype)
        mask = mask.expand(batch, -1, -1, -1) if len(mask) == 1 else _repeat(mask, batch)
    if mask is not None and query.dtype == torch.bfloat16 and _onednn_takes(query.dtype, query):
        return _attend_batched(query, key, value, scale, mask)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return mixed.transpose(1, 2).flatten(2)


def cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Keeps the weights of all linear layers in the type that they are used in.

    Autocast would convert them at every call; the results are the same.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.MultiheadAttention)):
            for name, parameter in layer.named_parameters(recurse=False):
                cast = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
                setattr(layer, name, cast)


def _attend_by_head(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Long sequences: two oneDNN products for each head and block of queries."""
    batch, heads, length, width = query.shape
    mixed = query.new_empty(batch, length, heads, width)
    for item in range(batch):
        for head in range(heads):
            asked, keys = query[item, head] * scale, key[item, head].contiguous()
            values = value[item, head].t().contiguous()
            for start in range(0, length, _ATTENDING):
                rows = slice(start, start + _ATTENDING)
                weights = torch.softmax(_product(asked[rows], keys, None), dim=-1)
                mixed[item, rows, head] = _product(weights, values, None)
    return mixed.flatten(2)


def _attend_batched(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor
) -> Tensor:
    """Many short sequences in bfloat16, of which torch's fused attention makes slow work."""
    batch, heads, length, width = query.shape
    query, key, value = (part.reshape(-1, length, width) for part in (query, key, value))
    scores = torch.baddbmm(
        mask.reshape(-1, length, length), query, key.transpose(1, 2), alpha=scale
    )
    mixed = torch.bmm(torch.softmax(scores, dim=-1), value)
    return mixed.view(batch, heads, length, width).transpose(1, 2).flatten(2)


def _repeat(mask: Tensor, batch: int) -> Tensor:
    return mask if len(mask) == batch else mask.repeat(batch // len(mask), 1, 1, 1)


def _activate(x: Tensor, activation: Activation) -> Tensor:
    if activation == "none":
        return x
    return F.relu(x) if activation == "relu" else F.gelu(x)


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation = "none"
) -> Tensor:
    """``activation(x · weightᵀ + bias)`` by oneDNN."""
    operators: Any = torch.ops.mkldnn
    algorithm = "none" if activation == "gelu" else ""
    product: Tensor = operators._linear_pointwise(x, weight, bias, activation, [], algorithm)
    return product


def _compute_dtype(weight: Tensor) -> torch.dtype:
    device = weight.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


def _onednn_takes(dtype: torch.dtype, *tensors: Tensor) -> bool:
    if torch.compiler.is_compiling() or any(tensor.device.type != "cpu" for tensor in tensors):
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    return dtype in _onednn_types()


@functools.cache
def _onednn_types() -> tuple[torch.dtype, ...]:
    """The types that this build of torch multiplies with oneDNN on this processor."""
    if not torch.backends.mkldnn.is_available() or not hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    ):
        return ()
    operators: Any = torch.ops.mkldnn
    if hasattr(operators, "_is_mkldnn_bf16_supported") and operators._is_mkldnn_bf16_supported():
        return (torch.float32, torch.bfloat16)
    return (torch.float32,)
