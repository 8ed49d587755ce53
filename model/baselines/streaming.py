"""Waveformer's causal parts: what they remember goes in and comes out, and is never kept inside."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_KERNEL = 3
_POSITIONS = 200
"""Rows of the table of positions that published weights hold."""
_CHUNKS_AT_ONCE = 1000
"""Attended to in one go: bounds memory and changes nothing."""
_NUM_HEADS = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WaveformerConfig:
    """Sizes of the network; chunk and context are those of every published one.

    Attributes:
        num_labels: of the query.
        frame_samples: of a latent frame.
        encoder_dim: channels of the encoder.
        num_encoder_layers: of dilations 1, 2, 4, …
        decoder_dim: channels of the decoder.
        num_decoder_layers: of the transformer.
        context_frames: that the decoder sees before its chunk.
        chunk_frames: of a chunk.
        output_frames: before it, that a sample of the output still depends on.
    """

    num_labels: int = 41
    frame_samples: int = 32
    encoder_dim: int = 512
    num_encoder_layers: int = 10
    decoder_dim: int = 256
    num_decoder_layers: int = 1
    context_frames: int = 13
    chunk_frames: int = 13
    output_frames: int = 4

    def __post_init__(self) -> None:
        """Checks what must divide, and what must fit."""
        if self.encoder_dim % self.decoder_dim or self.decoder_dim % _NUM_HEADS:
            raise ValueError(
                f"decoder_dim={self.decoder_dim} must divide encoder_dim={self.encoder_dim} and be "
                f"a multiple of {_NUM_HEADS}"
            )
        if self.context_frames + self.chunk_frames > _POSITIONS:
            raise ValueError(f"context and chunk must have at most {_POSITIONS} frames together")


def grouped(in_channels: int, out_channels: int, groups: int) -> nn.Sequential:
    """A projection between the widths of encoder and decoder, group by group."""
    return nn.Sequential(nn.Conv1d(in_channels, out_channels, 1, groups=groups), nn.ReLU())


class CausalEncoder(nn.Module):
    """Dilated causal convolutions with residual paths."""

    def __init__(self, channels: int, num_layers: int) -> None:
        super().__init__()
        self.past_frames = tuple((_KERNEL - 1) * 2**layer for layer in range(num_layers))
        self.dcc_layers = nn.Sequential(
            OrderedDict(
                (f"dcc_{layer}", _SeparableConv(channels, 2**layer)) for layer in range(num_layers)
            )
        )

    def no_past(self, like: Tensor) -> Tensor:
        """What a beginning remembers, float32[B, E, frames]; B, E and the place as of ``like``."""
        return like.new_zeros(like.shape[0], like.shape[1], sum(self.past_frames))

    def forward(self, latent: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """float32[B, E, N] → float32[B, E, N], and the past for the next frames."""
        kept = []
        for layer, before in zip(
            self.dcc_layers, past.split(list(self.past_frames), dim=-1), strict=True
        ):
            heard = torch.cat((before, latent), dim=-1)
            kept.append(heard[..., -before.shape[-1] :])
            latent = latent + layer(heard)
        return latent, torch.cat(kept, dim=-1)


class _SeparableConv(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(channels, channels, _KERNEL, groups=channels, dilation=dilation),
            _ChannelNorm(channels),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 1),
            _ChannelNorm(channels),
            nn.ReLU(),
        )

    def forward(self, latent: Tensor) -> Tensor:
        convolved: Tensor = self.layers(latent)
        return convolved


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of float32[B, E, N]."""

    def forward(self, latent: Tensor) -> Tensor:
        return super().forward(latent.transpose(1, 2)).transpose(1, 2)


class ChunkDecoder(nn.Module):
    """A transformer decoder over chunks, each with the frames before it and none after."""

    def __init__(self, config: WaveformerConfig) -> None:
        super().__init__()
        self._context, self._chunk = config.context_frames, config.chunk_frames
        self.pos_enc = Positions(config.decoder_dim)
        self.tf_dec_layers = nn.ModuleList(
            _ChunkLayer(config.decoder_dim) for _ in range(config.num_decoder_layers)
        )

    def no_past(self, like: Tensor) -> tuple[Tensor, ...]:
        """What a beginning remembers; batch size and place as of ``like``."""
        shape = (like.shape[0], self._context, self.pos_enc.pe.shape[-1])
        return tuple(like.new_zeros(shape) for _ in range(len(self.tf_dec_layers) + 1))

    def forward(
        self, asked: Tensor, heard: Tensor, past: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Answers what is asked of what is heard.

        Args:
            asked: float32[B, D, N].
            heard: float32[B, D, N].
            past: of :meth:`no_past`, or of the frames before.

        Returns:
            float32[B, D, N], and the past for the next frames (of use where N is whole chunks).
        """
        num_frames = asked.shape[-1]
        missing = -num_frames % self._chunk
        target, memory = (F.pad(each, (0, missing)).transpose(1, 2) for each in (asked, heard))
        batch, padded, width = target.shape
        memory = torch.cat((past[0], memory), dim=1)
        kept = [memory[:, -self._context :]]
        memory = self._chunks(memory)
        memory = memory + self.pos_enc(memory)
        for index, layer in enumerate(self.tf_dec_layers):
            target = torch.cat((past[index + 1], target), dim=1)
            kept.append(target[:, -self._context :])
            target = self._chunks(target)
            if index == 0:
                target = target + self.pos_enc(target)
            pieces = zip(target.split(_CHUNKS_AT_ONCE), memory.split(_CHUNKS_AT_ONCE), strict=True)
            target = torch.cat([layer(*piece, self._chunk) for piece in pieces])
            target = target.reshape(batch, padded, width)
        return target.transpose(1, 2)[..., :num_frames], tuple(kept)

    def _chunks(self, frames: Tensor) -> Tensor:
        """float32[B, context + N, D] → float32[B · chunks, context + chunk, D]."""
        pieces = frames.unfold(1, self._context + self._chunk, self._chunk)
        return pieces.transpose(2, 3).flatten(0, 1)


class _ChunkLayer(nn.TransformerDecoderLayer):
    """A layer that computes the chunk's frames only; post-norm, ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__(width, _NUM_HEADS, dim_feedforward=2 * width, batch_first=True)

    def forward(self, target: Tensor, memory: Tensor, chunk: int) -> Tensor:  # type: ignore[override]  # takes chunks
        """float32[B, context + chunk, D] each → float32[B, chunk, D]."""
        last = target[:, -chunk:]
        attended, _ = self.self_attn(last, target, target, need_weights=False)
        last = self.norm1(last + self.dropout1(attended))
        attended, _ = self.multihead_attn(last, memory, memory, need_weights=False)
        last = self.norm2(last + self.dropout2(attended))
        widened = self.linear2(self.dropout(F.relu(self.linear1(last))))
        result: Tensor = self.norm3(last + self.dropout3(widened))
        return result


class Positions(nn.Module):
    """Sines and cosines of the position, as a buffer that published weights hold too."""

    pe: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        position = torch.arange(_POSITIONS).unsqueeze(1).float()
        rate = torch.exp(torch.arange(0, width, 2).float() * -(math.log(10_000.0) / width))
        table = torch.zeros(1, _POSITIONS, width)
        table[0, :, 0::2] = torch.sin(position * rate)
        table[0, :, 1::2] = torch.cos(position * rate)
        self.register_buffer("pe", table)

    def forward(self, frames: Tensor) -> Tensor:
        """The rows of as many positions as float32[B, N, D] has frames: float32[1, N, D]."""
        return self.pe[:, : frames.shape[1]]
