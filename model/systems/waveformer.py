"""Waveformer: causal, streaming extraction of sounds by label, 44.1 kHz.

An encoder of dilated causal convolutions encodes the mixture without the query, so queries of one
mixture share it; a transformer decoder looks at one chunk (13 frames of 32 samples) and one chunk
of context at a time. The causal parts hold no state: it goes in and comes out. A query is one of
the labels that the network was trained on. Parameter names are those of the published checkpoints.

Source: Veluri et al. 2023, "Real-Time Target Sound Extraction", arXiv 2211.02250; checked against
vb000/Waveformer at db51a49 (src/training/dcc_tf.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.systems import Capabilities, Condition, label_vectors

if TYPE_CHECKING:
    from model.catalogue import Entry
    from model.registry import LoadedModel, LoadOptions

SAMPLE_RATE_HZ = 44_100
WINDOW_SAMPLES = 441_000
LABELS = (
    "Acoustic_guitar", "Applause", "Bark", "Bass_drum", "Burping_or_eructation", "Bus", "Cello",
    "Chime", "Clarinet", "Computer_keyboard", "Cough", "Cowbell", "Double_bass",
    "Drawer_open_or_close", "Electric_piano", "Fart", "Finger_snapping", "Fireworks", "Flute",
    "Glockenspiel", "Gong", "Gunshot_or_gunfire", "Harmonica", "Hi-hat", "Keys_jangling", "Knock",
    "Laughter", "Meow", "Microwave_oven", "Oboe", "Saxophone", "Scissors", "Shatter", "Snare_drum",
    "Squeak", "Tambourine", "Tearing", "Telephone", "Trumpet", "Violin_or_fiddle", "Writing",
)  # fmt: skip
"""FSDKaggle2018's classes, in the order of the network's query vector."""


class LabelQueries:
    """Labels → query vectors; implements ``model.clap.QueryEncoder`` but for audio."""

    sample_rate_hz = SAMPLE_RATE_HZ
    clip_samples = WINDOW_SAMPLES
    digest = ""
    input_level_dbfs: float | None = None

    labels = LABELS
    embedding_dim = len(LABELS)

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """float32[N, labels], a one for each label that a text names.

        Raises:
            ValueError: a text names something else.
        """
        return label_vectors(texts, self.labels)

    def embed_audio(self, clips: Sequence[Tensor]) -> Tensor:
        """There is no audio encoder.

        Raises:
            ValueError: always, but for no clip at all.
        """
        if clips:
            raise ValueError("Waveformer takes labels, and no example clips")
        return torch.zeros(0, self.embedding_dim)


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
        """Makes the zero state of a new stream, float32[B, E, frames]; B, E, device as ``like``."""
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
        """Makes the zero state of a new stream; batch size and device as of ``like``."""
        shape = (like.shape[0], self._context, self.pos_enc.pe.shape[-1])
        return tuple(like.new_zeros(shape) for _ in range(len(self.tf_dec_layers) + 1))

    def forward(
        self, asked: Tensor, heard: Tensor, past: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Decodes the encoded mixture for the query, chunk by chunk.

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


CAPABILITIES = Capabilities(audio=False, negative=False, labels=LABELS)
_LABEL_HIDDEN = 512


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedMixture:
    """A batch of mixtures: latent frames, and what the causal encoder makes of them."""

    latent: Tensor
    """float32[B, E, N]."""
    encoded: Tensor
    """float32[B, E, N]."""
    num_samples: int

    def index(self, rows: Tensor) -> EncodedMixture:
        """Repeats or reorders mixtures."""
        return EncodedMixture(
            latent=self.latent[rows], encoded=self.encoded[rows], num_samples=self.num_samples
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StreamState:
    """What a stream remembers between chunks; never changed in place."""

    encoder: Tensor
    """float32[B, E, past frames of every layer]."""
    decoder: tuple[Tensor, ...]
    """float32[B, context, D]: of the encoder's output, then of each layer's input."""
    output: Tensor
    """float32[B, E, frames that later samples still need]."""


class Waveformer(nn.Module):
    """The network; implements ``model.systems.Separator`` and a streaming interface."""

    def __init__(self, config: WaveformerConfig, name: str = "waveformer") -> None:
        super().__init__()
        self.config = config
        self.name = name
        self.sample_rate_hz = SAMPLE_RATE_HZ
        self.window_samples = WINDOW_SAMPLES
        self.embedding_dim = config.num_labels
        self.capabilities = CAPABILITIES
        self.input_level_dbfs: float | None = None
        width, stride = config.encoder_dim, config.frame_samples
        self.in_conv = nn.Sequential(
            nn.Conv1d(1, width, 3 * stride, stride=stride, bias=False), nn.ReLU()
        )
        self.label_embedding = nn.Sequential(
            nn.Linear(config.num_labels, _LABEL_HIDDEN),
            nn.LayerNorm(_LABEL_HIDDEN),
            nn.ReLU(),
            nn.Linear(_LABEL_HIDDEN, width),
            nn.LayerNorm(width),
            nn.ReLU(),
        )
        self.mask_gen = _MaskNetwork(config)
        self.out_conv = nn.Sequential(
            nn.ConvTranspose1d(
                width,
                1,
                (config.output_frames + 1) * stride,
                stride=stride,
                padding=config.output_frames * stride,
                bias=False,
            ),
            nn.Tanh(),
        )

    def prepare(self) -> Waveformer:
        """Freezes the network for inference."""
        self.eval().requires_grad_(False)
        return self

    @property
    def chunk_samples(self) -> int:
        """Samples of a chunk of the stream: 9.4 ms as published."""
        return self.config.chunk_frames * self.config.frame_samples

    @property
    def margin_samples(self) -> int:
        """Samples before and after a chunk that the network hears along with it."""
        return self.config.frame_samples

    def encode(self, mixture: Tensor) -> EncodedMixture:
        """Encodes float32[B, T] whole, 1 ≤ T ≤ ``window_samples``.

        Raises:
            ValueError: T is 0 or longer than a window.
        """
        if mixture.ndim != 2 or not 1 <= mixture.shape[-1] <= self.window_samples:
            raise ValueError(
                f"mixture {tuple(mixture.shape)}: expected [B, T] with 1 ≤ T ≤ "
                f"{self.window_samples}"
            )
        num_samples, stride = mixture.shape[-1], self.config.frame_samples
        missing = -num_samples % stride
        padded = F.pad(mixture, (self.margin_samples, missing + self.margin_samples))
        latent = self.in_conv(padded.unsqueeze(1))
        encoder = self.mask_gen.encoder
        encoded, _ = encoder(latent, encoder.no_past(latent))
        return EncodedMixture(latent=latent, encoded=encoded, num_samples=num_samples)

    def decode(self, encoded: EncodedMixture, condition: Condition) -> Tensor:
        """What the positive labels ask for, float32[B, T]; a negative query is not heard."""
        labels = self.label_embedding(condition.positive.to(encoded.latent.device))
        past = self.mask_gen.decoder.no_past(encoded.latent)
        mask, _ = self.mask_gen.mask(encoded.encoded, labels, past)
        frames = F.pad(encoded.latent * mask, (self.config.output_frames, 0))
        waveform: Tensor = self.out_conv(frames)[:, 0]
        return waveform[:, : encoded.num_samples]

    def separate(self, mixture: Tensor, condition: Condition) -> Tensor:
        """``decode(encode(mixture), condition)``: float32[B, T] → float32[B, T]."""
        return self.decode(self.encode(mixture), condition)

    def start(self, batch_size: int) -> StreamState:
        """The state of a stream that has heard nothing yet."""
        weight = next(self.parameters())
        like = weight.new_zeros(batch_size, self.config.encoder_dim, 0)
        return StreamState(
            encoder=self.mask_gen.encoder.no_past(like),
            decoder=self.mask_gen.decoder.no_past(like),
            output=like.new_zeros(batch_size, self.config.encoder_dim, self.config.output_frames),
        )

    def stream(
        self, chunk: Tensor, condition: Condition, state: StreamState
    ) -> tuple[Tensor, StreamState]:
        """The next chunks of an endless mixture.

        Over a whole mixture this gives what :meth:`separate` gives, ``margin_samples`` late.

        Args:
            chunk: float32[B, margin + N + margin], N a multiple of ``chunk_samples``: the chunk,
                with the samples before it (zeros at the start) and after it.
            condition: as of :meth:`decode`; it may change from chunk to chunk.
            state: of :meth:`start`, or of the call before.

        Returns:
            float32[B, N], and the state for the next call.

        Raises:
            ValueError: the chunk is of another length.
        """
        num_samples = chunk.shape[-1] - 2 * self.margin_samples
        if num_samples < 1 or num_samples % self.chunk_samples:
            raise ValueError(
                f"chunk {tuple(chunk.shape)}: expected [B, N + {2 * self.margin_samples}], N a "
                f"multiple of {self.chunk_samples}"
            )
        latent = self.in_conv(chunk.unsqueeze(1))
        encoded, heard = self.mask_gen.encoder(latent, state.encoder)
        labels = self.label_embedding(condition.positive.to(latent.device))
        mask, seen = self.mask_gen.mask(encoded, labels, state.decoder)
        frames = torch.cat((state.output, latent * mask), dim=-1)
        waveform: Tensor = self.out_conv(frames)[:, 0]
        kept = frames[..., -self.config.output_frames :]
        return waveform, StreamState(encoder=heard, decoder=seen, output=kept)


class _MaskNetwork(nn.Module):
    def __init__(self, config: WaveformerConfig) -> None:
        super().__init__()
        self.encoder = CausalEncoder(config.encoder_dim, config.num_encoder_layers)
        self.proj_e2d_e = grouped(config.encoder_dim, config.decoder_dim, config.decoder_dim)
        self.proj_e2d_l = grouped(config.encoder_dim, config.decoder_dim, config.decoder_dim)
        self.proj_d2e = grouped(config.decoder_dim, config.encoder_dim, config.decoder_dim)
        self.decoder = ChunkDecoder(config)

    def mask(
        self, encoded: Tensor, labels: Tensor, past: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """float32[B, E, N] and labels float32[B, E] → the mask float32[B, E, N], and the past."""
        asked = labels.unsqueeze(2) * encoded
        estimate, past = self.decoder(self.proj_e2d_l(asked), self.proj_e2d_e(encoded), past)
        return asked + self.proj_d2e(estimate), past


def config_of(state: Mapping[str, Tensor], where: str) -> WaveformerConfig:
    """The sizes of a checkpoint's network, which the authors published in several.

    Raises:
        LayoutError: the tensors that tell are missing or of impossible shapes.
    """
    from model.checkpoints.loading import LayoutError

    try:
        width, _, kernel = state["in_conv.0.weight"].shape
        stride = kernel // 3
        output = state["out_conv.0.weight"].shape[2] // stride - 1
        prefixes = ("mask_gen.encoder.dcc_layers.dcc_", "mask_gen.decoder.tf_dec_layers.")
        encoders, decoders = (
            len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})
            for prefix in prefixes
        )
        return WaveformerConfig(
            num_labels=state["label_embedding.0.weight"].shape[1],
            frame_samples=stride,
            encoder_dim=width,
            num_encoder_layers=encoders,
            decoder_dim=state["mask_gen.proj_e2d_e.0.weight"].shape[0],
            num_decoder_layers=decoders,
            output_frames=output,
        )
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as err:
        raise LayoutError(f"{where}: not a Waveformer checkpoint: {err}") from err


def from_state(state: Mapping[str, Tensor], where: str, name: str = "waveformer") -> Waveformer:
    """A network of a checkpoint's sizes and weights, strictly.

    Raises:
        LayoutError: keys, shapes, types or values are not those of Waveformer.
    """
    from model.checkpoints.loading import build, fill

    config = config_of(state, where)
    network = build(lambda: Waveformer(config, name=name))
    fill(network, state, where)
    return network


def load(entry: Entry, options: LoadOptions) -> LoadedModel:
    """The registry's loader.

    Raises:
        ValueError: a precision other than fp32, in which the stream's state is kept.
    """
    from model.checkpoints.loading import published_state
    from model.registry import LoadedModel

    if options.precision != "fp32":
        raise ValueError(f"precision={options.precision!r}: {entry.name} runs in fp32 only")
    found = published_state(entry.file("waveformer"))
    network = from_state(found.state, found.file.uri, entry.name)
    return LoadedModel(
        name=entry.name,
        separator=network.to(options.device).prepare(),
        query_encoder=LabelQueries(),
        model_sha256=found.file.sha256,
        clap_sha256="",
        card=entry,
    )
