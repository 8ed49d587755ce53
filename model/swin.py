"""Swin transformer blocks run by one explicit, stateless function, for the encoder and the decoder alike.

The modules (parameters, names, initialisation) are laion_clap's; see :mod:`model.laion`. Nothing here keeps
anything on a module, so one model serves many threads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attention_bias(block: Any) -> Tensor:
    """The additive attention bias of a block: relative positions, and the mask of a shifted block.

    Returns:
        float[W, H, N, N] for ``W`` distinct windows (1 where the block is not shifted), ``H`` heads and ``N``
        patches a window.
    """
    attention = block.attn
    size = attention.window_size[0] * attention.window_size[1]
    index = attention.relative_position_index.view(-1)
    bias: Tensor = attention.relative_position_bias_table[index].view(size, size, -1)
    bias = bias.permute(2, 0, 1).unsqueeze(0)
    if block.attn_mask is not None:
        bias = bias + block.attn_mask.unsqueeze(1)
    return bias.contiguous()


def run_block(block: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Runs one Swin transformer block.

    Args:
        block: ``SwinTransformerBlock`` of laion_clap.
        x: float[B, N, C], patches in row-major order of the block's square grid.
        bias: :func:`attention_bias` of the block where it was computed beforehand.

    Returns:
        float[B, N, C].
    """
    height, width = block.input_resolution
    batch, _, channels = x.shape
    side, shift = block.window_size, block.shift_size
    grid = block.norm1(x).view(batch, height, width, channels)
    if shift:
        grid = torch.roll(grid, shifts=(-shift, -shift), dims=(1, 2))
    windows = grid.view(batch, height // side, side, width // side, side, channels)
    windows = windows.transpose(2, 3).reshape(-1, side * side, channels)
    windows = _attend(block.attn, windows, attention_bias(block) if bias is None else bias)
    grid = windows.view(batch, height // side, width // side, side, side, channels)
    grid = grid.transpose(2, 3).reshape(batch, height, width, channels)
    if shift:
        grid = torch.roll(grid, shifts=(shift, shift), dims=(1, 2))
    x = x + block.drop_path(grid.view(batch, height * width, channels))
    hidden = block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    return x + block.drop_path(hidden)


def _attend(attention: Any, windows: Tensor, bias: Tensor) -> Tensor:
    """Multi-head attention inside each window; ``windows`` is float[B·W, N, C]."""
    total, size, channels = windows.shape
    heads = attention.num_heads
    qkv = attention.qkv(windows).view(total, size, 3, heads, channels // heads)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    repeats = total // bias.shape[0] if bias.shape[0] > 1 else 1
    mask = bias.to(query.dtype).repeat(repeats, 1, 1, 1)
    mixed = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask.expand(total, -1, -1, -1), scale=attention.scale
    )
    projected: Tensor = attention.proj(mixed.transpose(1, 2).reshape(total, size, channels))
    return projected


class PatchExpand(nn.Module):
    """Doubles the grid and halves the channels: the inverse of Swin's patch merging.

    Source: Aisaka0v0/CLAPSep, ``model/CLAPSep_decoder.py`` (same parameters, one permutation instead of a chunk,
    a concatenation and a pixel shuffle).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(dim // 2)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, G·G, C] → float[B, 4·G·G, C/2]."""
        batch, patches, channels = x.shape
        side = int(patches**0.5)
        grid = self.expand(x).view(batch, side, side, 2, 2, channels // 2)
        grid = grid.permute(0, 1, 4, 2, 3, 5).reshape(batch, 4 * patches, channels // 2)
        expanded: Tensor = self.norm(grid)
        return expanded
