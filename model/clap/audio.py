"""Encodes audio with HTSAT, CLAP's audio tower, and defines the Swin blocks that decoders share.

HTSAT is laion_clap's network (Chen et al. 2022): the parameters have its names, shapes and initial
distributions, so that its checkpoints fit. The modules are written out here, without hooks, state
and classifier, and with an FFT instead of a convolution for the STFT: importing laion_clap would
bring librosa, numba and scipy.signal along, which take longer than everything else at a start.

Under gradients, under ``torch.compile`` and on a GPU these are torch's own. In inference on a CPU,
linear layers go to oneDNN, which torch asks for bfloat16 only: its float32 product reaches twice
the rate of MKL's on AMD processors, and is its equal on Intel's. Attention has one form for each
size and type, chosen by measurement (``bench/kernels.py``).

A call keeps nothing on a module, so one model serves many threads.

Source: LAION-AI/CLAP, ``src/laion_clap/clap_module/htsat.py`` (laion-clap 1.1.7), which the tests
compare with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from model.config import EncoderConfig
from model.signal.stft import torch_hann

Activation = Literal["none", "relu", "gelu"]
Precision = Literal["fp32", "tf32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "bf16")


@contextlib.contextmanager
def computing_in(precision: Precision, device_type: str) -> Iterator[None]:
    """Has torch compute a network's products in a precision, and restores its settings afterwards.

    Args:
        precision: ``bf16`` is autocast; ``tf32`` rounds the factors of float32 products on a GPU to
            ten bits of mantissa; ``fp32`` rounds none, convolutions included, which torch itself
            computes in TF32. The latter two are settings of the process: threads that compute at
            the same time should want the same.
        device_type: ``cpu`` or ``cuda``.
    """
    if precision == "bf16":
        with torch.autocast(device_type, dtype=torch.bfloat16):
            yield
        return
    if precision == "fp32" and device_type == "cpu":
        yield
        return
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


_ATTENDING = 256
"""Queries that attend at a time: their weights over a thousand keys stay in a core's cache."""
_VECTOR = 64
"""A multiple of the values in a vector register, whatever their type."""
_HIDDEN = 2**22
"""Values of a hidden layer that exist at a time, in inference on a CPU."""
_ALIGNMENT = 8
"""Values: fused attention on a GPU copies a bias at each call, unless its rows begin at multiples.

Source: ``preprocess_mask`` in PyTorch's ``aten/src/ATen/native/transformers/attention.cpp``.
"""


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
        bias: float[W, H, N, N' ≥ N] where W divides B: item b has the bias of index b modulo W.
            What is beyond N is not read: see :func:`aligned`.

    Returns:
        float[B, N, H·D].
    """
    if bias is None and _onednn_takes(query.dtype, query, key, value):
        return _attend_by_head(query, key, value, scale)
    mask = None if bias is None else mask_of(bias, query)
    if mask is not None and query.dtype == torch.bfloat16 and _onednn_takes(query.dtype, query):
        return _attend_batched(query, key, value, scale, mask)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return mixed.transpose(1, 2).flatten(2)


def by_head(joint: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, float[B, H, N, D] each, of one projection float[B, N, 3·H·D].

    They are parted before anything is permuted: going back, their gradients are put together in
    one copy.
    """
    query, key, value = joint.unflatten(-1, (3, heads, -1)).unbind(2)
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def aligned(bias: Tensor) -> Tensor:
    """A bias in memory of its own, its last dimension filled up to a multiple of 8."""
    missing = -bias.shape[-1] % _ALIGNMENT
    return F.pad(bias, (0, missing)) if missing else bias.contiguous()


def mask_of(bias: Tensor, query: Tensor) -> Tensor:
    """The bias of each item, float[B, H, N, N], for attention that takes it as a mask.

    In the type of the query, as kernels expect it without asking. One bias for all is not copied.
    """
    batch, _, length, _ = query.shape
    mask = bias.to(query.dtype)
    mask = mask.expand(batch, -1, -1, -1) if len(mask) == 1 else _repeat(mask, batch)
    return mask[..., :length]


def layer_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(x)``, in the type of both where they have the same.

    Autocast would take float32 on a GPU, and have everything between products wait for four bytes a
    value instead of two. Sums are in float32 either way. On a CPU it does as this does.
    """
    if x.device.type != "cpu" and next(norm.parameters()).dtype == x.dtype:
        with torch.autocast(x.device.type, enabled=False):
            normalised: Tensor = norm(x)
    else:
        normalised = norm(x)
    return normalised


def cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Keeps the weights of all linear layers in the type that they are used in.

    Autocast would convert them at every call; the results are the same. On a GPU layer norms come
    along, whose kernels there take one type only: see :func:`layer_norm`.
    """
    for layer in module.modules():
        norm = isinstance(layer, nn.LayerNorm) and layer.weight.device.type != "cpu"
        if norm or isinstance(layer, (nn.Linear, nn.MultiheadAttention)):
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


_PREPARED = "prepared_bias"


class SwinNetwork(nn.Module):
    """A network with Swin blocks, which can be prepared for inference.

    What follows from the parameters alone is then kept in buffers outside the state dict, which
    move with the network, and is forgotten when the parameters are loaded anew or trained.
    """

    def __init__(self) -> None:
        """Starts unprepared."""
        super().__init__()
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    def prepare(self, dtype: torch.dtype = torch.float32) -> None:
        """Computes the attention biases, and keeps the linear layers' weights in ``dtype``."""
        if dtype != torch.float32:
            cast_weights(self, dtype)
        with torch.inference_mode(False), torch.no_grad():
            for block in self._blocks():
                bias = aligned(block.attention_bias()).to(dtype)
                block.register_buffer(_PREPARED, bias, persistent=False)

    def forget(self) -> None:
        """Takes back what :meth:`prepare` computed."""
        for block in self._blocks():
            block._buffers.pop(_PREPARED, None)
            block._non_persistent_buffers_set.discard(_PREPARED)

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module``; parameters that will change leave nothing computed from them."""
        if mode:
            self.forget()
        return super().train(mode)

    def _blocks(self) -> Iterator[SwinBlock]:
        """Every Swin block inside."""
        return (module for module in self.modules() if isinstance(module, SwinBlock))


def _forget(network: SwinNetwork, _: object) -> None:
    network.forget()


def init_weights(module: nn.Module) -> None:
    """Swin's and BERT's initialisation: normal (σ = 0.02) weights, zero biases, unit norms.

    laion_clap truncates the normal distribution at 100 σ, which changes nothing.
    """
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.zeros_(module.bias)
        nn.init.ones_(module.weight)


class WindowAttention(nn.Module):
    """The parameters of multi-head attention inside windows of ``side`` × ``side`` patches."""

    relative_position_index: Tensor

    def __init__(self, dim: int, side: int, num_heads: int) -> None:
        """For ``dim`` channels."""
        super().__init__()
        self.side = side
        self.num_heads = num_heads
        self.scale: float = (dim // num_heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * side - 1) ** 2, num_heads)
        )
        nn.init.normal_(self.relative_position_bias_table, std=0.02)
        rows, columns = (place.flatten() for place in _grid(side, side))
        down = rows[:, None] - rows + side - 1
        right = columns[:, None] - columns + side - 1
        self.register_buffer("relative_position_index", down * (2 * side - 1) + right)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def relative_bias(self) -> Tensor:
        """The bias of each head by the places of two patches; float[1, H, N, N]."""
        index = self.relative_position_index
        chosen = self.relative_position_bias_table.index_select(0, index.view(-1))
        return chosen.view(*index.shape, -1).permute(2, 0, 1).unsqueeze(0)

    def forward(self, windows: Tensor, bias: Tensor) -> Tensor:
        """float[B·W, N, C] and the bias of :meth:`SwinBlock.attention_bias` → float[B·W, N, C]."""
        query, key, value = by_head(linear(self.qkv, windows), self.num_heads)
        return linear(self.proj, attend(query, key, value, self.scale, bias))


class FeedForward(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        """From ``dim`` channels to ``hidden`` and back."""
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """float[..., C] → float[..., C]."""
        return feed_forward(self.fc1, self.fc2, x, "gelu")


class DropPath(nn.Module):
    """Leaves out what a branch computes for random items of a batch, while training.

    Source: Huang et al. 2016, arXiv 1603.09382 (stochastic depth).
    """

    def __init__(self, rate: float) -> None:
        """Leaves out this part of the items; the others are scaled up for it."""
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """float[B, ...] → float[B, ...]."""
        if not self.training or self.rate == 0.0:
            return x
        kept = 1.0 - self.rate
        drawn = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)
        return x.div(kept) * (kept + drawn).floor_()


class SwinBlock(nn.Module):
    """A Swin transformer block on a square grid of patches (Liu et al. 2021, arXiv 2103.14030).

    A grid as small as the window is one window, and is not shifted.
    """

    attn_mask: Tensor | None

    def __init__(
        self,
        dim: int,
        grid: int,
        num_heads: int,
        window: int,
        *,
        shifted: bool,
        mlp_ratio: float,
        drop_path: float,
    ) -> None:
        """Builds the block with random parameters.

        Args:
            dim: channels.
            grid: patches along a side of the grid.
            num_heads: of attention.
            window: patches along a side of an attention window.
            shifted: whether windows are shifted by half their side.
            mlp_ratio: width of the hidden layer, in multiples of ``dim``.
            drop_path: see :class:`DropPath`.
        """
        super().__init__()
        self.grid = grid
        self.window = min(window, grid)
        self.shift = window // 2 if shifted and grid > window else 0
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, self.window, num_heads)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, int(dim * mlp_ratio))
        mask = _shift_mask(grid, self.window, self.shift) if self.shift else None
        self.register_buffer("attn_mask", mask)

    def attention_bias(self) -> Tensor:
        """The additive attention bias: relative positions, and the mask of a shifted block.

        Returns:
            float[W, H, N, N] for ``W`` distinct windows (1 where the block is not shifted), ``H``
            heads and ``N`` patches a window.
        """
        bias = self.attn.relative_bias()
        if self.attn_mask is not None:
            bias = bias + self.attn_mask.unsqueeze(1)
        return bias

    def forward(self, x: Tensor) -> Tensor:
        """float[B, N, C] → float[B, N, C], patches in row-major order of the grid."""
        attending = layer_norm(self.norm1, x).to(
            _compute_dtype(self.norm1.weight)
        )  # before it is moved about
        x = x + self.drop_path(self._attend_in_windows(attending))
        out: Tensor = x + self.drop_path(self.mlp(layer_norm(self.norm2, x)))
        return out

    def _attend_in_windows(self, x: Tensor) -> Tensor:
        """Cuts the grid into windows, shifted or not, and puts them back; float[B, N, C]."""
        batch, _, channels = x.shape
        height = width = self.grid
        side, shift = self.window, self.shift
        grid = x.view(batch, height, width, channels)
        if shift:
            grid = torch.roll(grid, shifts=(-shift, -shift), dims=(1, 2))
        windows = grid.view(batch, height // side, side, width // side, side, channels)
        bias = getattr(self, _PREPARED, None)
        if bias is None:
            bias = aligned(self.attention_bias())
        windows = self.attn(windows.transpose(2, 3).reshape(-1, side * side, channels), bias)
        grid = windows.view(batch, height // side, width // side, side, side, channels)
        grid = grid.transpose(2, 3).reshape(batch, height, width, channels)
        if shift:
            grid = torch.roll(grid, shifts=(shift, shift), dims=(1, 2))
        return grid.view(batch, height * width, channels)


def _grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """The row and the column of every place; int64[height, width] each."""
    rows, columns = torch.arange(height), torch.arange(width)
    return rows[:, None].expand(-1, width), columns.expand(height, -1)


def _shift_mask(grid: int, side: int, shift: int) -> Tensor:
    """What keeps patches apart that a shift has brought into one window.

    Returns:
        float[W, N, N]: 0 between patches that are neighbours without the shift, else -100.
    """
    band = torch.arange(grid)
    band = (band >= grid - side).int() + (band >= grid - shift).int()
    region = 3 * band[:, None] + band
    windows = region.view(grid // side, side, grid // side, side).transpose(1, 2)
    windows = windows.reshape(-1, side * side)
    apart = windows[:, None] != windows[:, :, None]
    return torch.zeros(apart.shape).masked_fill(apart, -100.0)


class PatchMerging(nn.Module):
    """Halves the grid and doubles the channels."""

    def __init__(self, dim: int) -> None:
        """Merges patches of ``dim`` channels."""
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, G·G, C], in row-major order → float[B, G·G/4, 2·C]."""
        batch, patches, channels = x.shape
        side = math.isqrt(patches) // 2
        grid = x.view(batch, side, 2, side, 2, channels)
        grid = grid.permute(0, 1, 3, 4, 2, 5).reshape(batch, -1, 4 * channels)
        return linear(self.reduction, layer_norm(self.norm, grid))


class PatchEmbed(nn.Module):
    """Image → patches, by a convolution that steps from patch to patch."""

    def __init__(self, dim: int, patch_size: int) -> None:
        """Embeds patches of ``patch_size`` × ``patch_size`` pixels in ``dim`` channels."""
        super().__init__()
        self.proj = nn.Conv2d(1, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        """float[B, 1, S, S] → float[B, N, C]."""
        return layer_norm(self.norm, self.proj(image).flatten(2).transpose(1, 2))


class Stage(nn.Module):
    """The Swin blocks of one grid, and what merges their patches into the next one's."""

    def __init__(
        self,
        dim: int,
        grid: int,
        num_heads: int,
        config: EncoderConfig,
        rates: Sequence[float],
        *,
        last: bool,
    ) -> None:
        """One block of width ``dim`` for each rate of :class:`DropPath`, shifted in turn."""
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(
                dim,
                grid,
                num_heads,
                config.window_size,
                shifted=index % 2 == 1,
                mlp_ratio=config.mlp_ratio,
                drop_path=rate,
            )
            for index, rate in enumerate(rates)
        )
        self.downsample = None if last else PatchMerging(dim)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, N, C] → float[B, N/4, 2·C]; after the last stage float[B, N, C]."""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class PatchExpand(nn.Module):
    """Doubles the grid and halves the channels: the inverse of Swin's patch merging.

    Source: Aisaka0v0/CLAPSep, ``model/CLAPSep_decoder.py`` (same parameters, one permutation
    instead of a chunk, a concatenation and a pixel shuffle).
    """

    def __init__(self, dim: int) -> None:
        """Expands ``dim`` channels."""
        super().__init__()
        self.expand = nn.Linear(dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(dim // 2)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, G·G, C] → float[B, 4·G·G, C/2]."""
        batch, patches, channels = x.shape
        side = int(patches**0.5)
        grid = linear(self.expand, x).view(batch, side, side, 2, 2, channels // 2)
        grid = grid.permute(0, 1, 4, 2, 3, 5).reshape(batch, 4 * patches, channels // 2)
        return layer_norm(self.norm, grid)


_LINEAR_MELS_HZ = 200.0 / 3.0
_LOGARITHMIC_FROM_HZ = 1_000.0
_LOGARITHMIC_FROM = _LOGARITHMIC_FROM_HZ / _LINEAR_MELS_HZ
_LOGARITHMIC_STEP = np.log(6.4) / 27.0
"""Slaney's mel scale: linear to 1 kHz, then 27 mels for each factor of 6.4."""


def mel_filters(config: EncoderConfig) -> NDArray[np.float32]:
    """Computes triangular filters of equal area on Slaney's mel scale; float32[mel_bins, K].

    Source: Slaney 1998, Auditory Toolbox; librosa 0.11, ``filters.mel``: the same to the bit.
    """
    frequencies = np.fft.rfftfreq(config.n_fft, 1.0 / config.sample_rate_hz)
    lowest, highest = _mel(config.fmin_hz), _mel(config.fmax_hz)
    corners = _hz(np.linspace(lowest, highest, config.mel_bins + 2))
    widths = np.diff(corners)[:, None]
    ramps = np.subtract.outer(corners, frequencies)
    rising, falling = -ramps[:-2] / widths[:-1], ramps[2:] / widths[1:]
    filters: NDArray[np.float32] = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    filters *= (2.0 / (corners[2:] - corners[:-2]))[:, None]
    return filters


def _mel(frequency_hz: float) -> float:
    if frequency_hz < _LOGARITHMIC_FROM_HZ:
        return frequency_hz / _LINEAR_MELS_HZ
    octaves = np.log(frequency_hz / _LOGARITHMIC_FROM_HZ)
    return float(_LOGARITHMIC_FROM + octaves / _LOGARITHMIC_STEP)


def _hz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    above = np.exp(_LOGARITHMIC_STEP * (mels - _LOGARITHMIC_FROM))
    linear_hz, logarithmic_hz = _LINEAR_MELS_HZ * mels, _LOGARITHMIC_FROM_HZ * above
    return np.where(mels >= _LOGARITHMIC_FROM, logarithmic_hz, linear_hz)


class MelFilters(nn.Module):
    """The mel filters as a buffer: a network that may learn everything does not learn them."""

    melW: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        """Computes them; float32[K, mel_bins]."""
        super().__init__()
        self.register_buffer("melW", torch.from_numpy(mel_filters(config).T.copy()))

    def forward(self, power: Tensor) -> Tensor:
        """float[..., K] → float[..., mel_bins]."""
        return power @ self.melW


_POWER_FLOOR = 1e-10

ImageHook = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageFeatures:
    """What the decoder reads: the patch embedding and every stage's output, float[B, N, C] each."""

    stages: tuple[Tensor, ...]


class Encoder(SwinNetwork):
    """HTSAT with laion_clap's parameter names; ``prepare()`` it for inference."""

    hann: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        """Builds the network with random parameters."""
        super().__init__()
        self.config = config
        self.logmel_extractor = MelFilters(config)
        self.bn0 = nn.BatchNorm2d(config.mel_bins)
        self.patch_embed = PatchEmbed(config.embed_dim, config.patch_size)
        rates = iter(torch.linspace(0, config.drop_path_rate, sum(config.depths)).tolist())
        self.layers = nn.ModuleList(
            Stage(
                config.embed_dim << level,
                config.grid_size >> level,
                config.num_heads[level],
                config,
                list(itertools.islice(rates, depth)),
                last=level == len(config.depths) - 1,
            )
            for level, depth in enumerate(config.depths)
        )
        self.norm = nn.LayerNorm(config.num_features)
        self.apply(init_weights)
        self.register_buffer("hann", torch_hann(config.n_fft), persistent=False)

    def stage_features(self, waveform: Tensor, power: Tensor | None = None) -> StageFeatures:
        """Encodes a mixture into the features of every stage.

        Args:
            waveform: float32[B, T] at the encoder's rate, at most a window; the spectrogram's
                missing frames are zeros of power, as in the reference.
            power: its :meth:`power`, where that is known.

        Returns:
            The patch embedding and each stage's output, coarsest last.
        """
        log_mel = self._log_mel(waveform, power)
        missing = self.config.num_frames - log_mel.shape[1]
        silence = 10.0 * math.log10(_POWER_FLOOR)
        log_mel = F.pad(log_mel, (0, 0, 0, missing), value=silence)
        return self._transform(self._normalise(log_mel))

    def latent(self, waveform: Tensor, augment: ImageHook | None = None) -> Tensor:
        """The clip-level latent that CLAP projects into the shared space.

        Args:
            waveform: float32[B, clip_samples] at the encoder's rate.
            augment: SpecAugment or the like, on float[B, F, mel_bins] after normalisation; for
                training.

        Returns:
            float[B, num_features].
        """
        return self.pooled(self.clip_features(waveform, augment).stages[-1])

    def pooled(self, patches: Tensor) -> Tensor:
        """The latent of a clip from the last stage of its :meth:`clip_features`."""
        latent: Tensor = self.norm(patches).mean(dim=1)
        return latent

    def clip_features(
        self,
        waveform: Tensor,
        augment: ImageHook | None = None,
        power: Tensor | None = None,
    ) -> StageFeatures:
        """The features of every stage as CLAP has them, where a clip's frames fill the image.

        Args:
            waveform: float32[B, clip_samples] at the encoder's rate.
            augment: see :meth:`latent`.
            power: its :meth:`power`, where that is known.

        Returns:
            The patch embedding and each stage's output, coarsest last.
        """
        image = self._normalise(self._log_mel(waveform, power))
        if augment is not None:
            image = augment(image)
        if image.shape[1] < self.config.num_frames:
            size = (self.config.num_frames, image.shape[2])
            image = F.interpolate(image[:, None], size, mode="bicubic", align_corners=True)[:, 0]
        return self._transform(image)

    def power(self, spectrum: Tensor) -> Tensor:
        """What the mel filters take of a spectrum complex64[B, K, F], float32[B, F, K]."""
        return (spectrum.real.square() + spectrum.imag.square()).transpose(1, 2)

    def _log_mel(self, waveform: Tensor, power: Tensor | None = None) -> Tensor:
        """float32[B, T] → float32[B, F, mel_bins] in dB of power."""
        config = self.config
        with torch.autocast(waveform.device.type, enabled=False):
            if power is None:
                spectrum = torch.stft(
                    waveform.float(),
                    config.n_fft,
                    config.hop_samples,
                    window=self.hann,
                    center=True,
                    pad_mode="reflect",
                    return_complex=True,
                )
                power = self.power(spectrum)
            mel = self.logmel_extractor(power)
            return 10.0 * torch.log10(mel.clamp(min=_POWER_FLOOR))

    def _normalise(self, log_mel: Tensor) -> Tensor:
        """Batch normalisation of every mel band, float[B, F, mel_bins]."""
        bands = log_mel.transpose(1, 2).unsqueeze(-1)
        normalised: Tensor = self.bn0(bands).squeeze(-1).transpose(1, 2)
        return normalised

    def _transform(self, frames: Tensor) -> StageFeatures:
        """Folds float[B, F, mel_bins] into the square image and runs the stages."""
        config = self.config
        batch, _, bands = frames.shape
        pieces = frames.transpose(1, 2).reshape(batch, bands, config.freq_ratio, -1)
        image = pieces.transpose(1, 2).reshape(batch, 1, config.spec_size, config.spec_size)
        stages: list[Tensor] = [self.patch_embed(image)]
        for stage in self.layers:
            stages.append(stage(stages[-1]))
        return StageFeatures(stages=tuple(stages))
