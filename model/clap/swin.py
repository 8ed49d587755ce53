"""Swin transformer blocks run by one explicit function, for the encoder and the decoder alike.

The modules (parameters, names, initialisation) are laion_clap's; see :mod:`model.clap.laion`. A
call keeps nothing on a module, so one model serves many threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

from model.clap import kernels, laion

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
            kernels.cast_weights(self, dtype)
        with torch.inference_mode(False), torch.no_grad():
            for block in self._blocks():
                block.register_buffer(_PREPARED, attention_bias(block).to(dtype), persistent=False)

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

    def _blocks(self) -> Iterator[Any]:
        """Every Swin block inside."""
        kind = laion.htsat_module().SwinTransformerBlock
        return (module for module in self.modules() if isinstance(module, kind))


def _forget(network: SwinNetwork, _: object) -> None:
    network.forget()


def attention_bias(block: Any) -> Tensor:
    """The additive attention bias of a block: relative positions, and the mask of a shifted block.

    Returns:
        float[W, H, N, N] for ``W`` distinct windows (1 where the block is not shifted), ``H`` heads
        and ``N`` patches a window.
    """
    attention = block.attn
    size = attention.window_size[0] * attention.window_size[1]
    index = attention.relative_position_index.view(-1)
    bias: Tensor = attention.relative_position_bias_table[index].view(size, size, -1)
    bias = bias.permute(2, 0, 1).unsqueeze(0)
    if block.attn_mask is not None:
        bias = bias + block.attn_mask.unsqueeze(1)
    return bias.contiguous()


def run_block(block: Any, x: Tensor) -> Tensor:
    """Runs one Swin transformer block.

    Args:
        block: ``SwinTransformerBlock`` of laion_clap.
        x: float[B, N, C], patches in row-major order of the block's square grid.

    Returns:
        float[B, N, C].
    """
    x = x + block.drop_path(_attend_in_windows(block, block.norm1(x)))
    mixed = kernels.feed_forward(block.mlp.fc1, block.mlp.fc2, block.norm2(x), "gelu")
    out: Tensor = x + block.drop_path(mixed)
    return out


def _attend_in_windows(block: Any, x: Tensor) -> Tensor:
    """Cuts the grid into windows, shifted or not, and puts them back; float[B, N, C]."""
    height, width = block.input_resolution
    batch, _, channels = x.shape
    side, shift = block.window_size, block.shift_size
    grid = x.view(batch, height, width, channels)
    if shift:
        grid = torch.roll(grid, shifts=(-shift, -shift), dims=(1, 2))
    windows = grid.view(batch, height // side, side, width // side, side, channels)
    windows = _attend(block, windows.transpose(2, 3).reshape(-1, side * side, channels))
    grid = windows.view(batch, height // side, width // side, side, side, channels)
    grid = grid.transpose(2, 3).reshape(batch, height, width, channels)
    if shift:
        grid = torch.roll(grid, shifts=(shift, shift), dims=(1, 2))
    return grid.view(batch, height * width, channels)


def _attend(block: Any, windows: Tensor) -> Tensor:
    """Multi-head attention inside each window; ``windows`` is float[B·W, N, C]."""
    attention = block.attn
    total, size, channels = windows.shape
    heads = attention.num_heads
    bias = getattr(block, _PREPARED, None)
    if bias is None:
        bias = attention_bias(block)
    qkv = kernels.linear(attention.qkv, windows).view(total, size, 3, heads, channels // heads)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return kernels.linear(attention.proj, kernels.attend(query, key, value, attention.scale, bias))


def merge_patches(merging: Any, x: Tensor) -> Tensor:
    """Halves the grid and doubles the channels: ``PatchMerging`` of laion_clap.

    Args:
        merging: the module.
        x: float[B, G·G, C], in row-major order.

    Returns:
        float[B, G·G/4, 2·C].
    """
    height, width = merging.input_resolution
    batch, _, channels = x.shape
    grid = x.view(batch, height // 2, 2, width // 2, 2, channels)
    grid = grid.permute(0, 1, 3, 4, 2, 5).reshape(batch, -1, 4 * channels)
    return kernels.linear(merging.reduction, merging.norm(grid))


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
        grid = kernels.linear(self.expand, x).view(batch, side, side, 2, 2, channels // 2)
        grid = grid.permute(0, 1, 4, 2, 3, 5).reshape(batch, 4 * patches, channels // 2)
        expanded: Tensor = self.norm(grid)
        return expanded
