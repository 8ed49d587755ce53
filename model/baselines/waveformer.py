"""Waveformer: causal, streaming extraction of sounds by label, 44.1 kHz.

An encoder of dilated causal convolutions hears the mixture without the query, so queries of one
mixture share it; a transformer decoder looks one chunk (13 frames of 32 samples) and one chunk of
context at a time. Parameter names are those of the published checkpoints.

Source: Veluri et al. 2023, "Real-Time Target Sound Extraction", arXiv 2211.02250; checked against
vb000/Waveformer at db51a49 (src/training/dcc_tf.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.baselines.label_queries import (
    LABELS,
    SAMPLE_RATE_HZ,
    WINDOW_SAMPLES,
    LabelQueries,
)
from model.baselines.streaming import (
    CausalEncoder,
    ChunkDecoder,
    WaveformerConfig,
    grouped,
)
from model.conditioning import Condition
from model.separator import Capabilities

if TYPE_CHECKING:
    from model.catalogue import Entry
    from model.registry import LoadedModel, LoadOptions

CAPABILITIES = Capabilities(audio=False, negative=False, labels=LABELS)
_LABEL_HIDDEN = 512


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Heard:
    """A batch of mixtures: latent frames, and what the causal encoder makes of them."""

    latent: Tensor
    """float32[B, E, N]."""
    encoded: Tensor
    """float32[B, E, N]."""
    num_samples: int

    def index(self, rows: Tensor) -> Heard:
        """Repeats or reorders mixtures."""
        return Heard(
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
    """The network; implements ``model.separator.Separator`` and a streaming interface."""

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

    def encode(self, mixture: Tensor) -> Heard:
        """Hears float32[B, T] whole, 1 ≤ T ≤ ``window_samples``.

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
        return Heard(latent=latent, encoded=encoded, num_samples=num_samples)

    def answer(self, encoded: Heard, condition: Condition) -> Tensor:
        """What the positive labels ask for, float32[B, T]; a negative query is not heard."""
        labels = self.label_embedding(condition.positive.to(encoded.latent.device))
        past = self.mask_gen.decoder.no_past(encoded.latent)
        mask, _ = self.mask_gen.mask(encoded.encoded, labels, past)
        frames = F.pad(encoded.latent * mask, (self.config.output_frames, 0))
        waveform: Tensor = self.out_conv(frames)[:, 0]
        return waveform[:, : encoded.num_samples]

    def separate(self, mixture: Tensor, condition: Condition) -> Tensor:
        """``answer(encode(mixture), condition)``: float32[B, T] → float32[B, T]."""
        return self.answer(self.encode(mixture), condition)

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
            condition: as of :meth:`answer`; it may change from chunk to chunk.
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
        answer, past = self.decoder(self.proj_e2d_l(asked), self.proj_e2d_e(encoded), past)
        return asked + self.proj_d2e(answer), past


def config_of(state: Mapping[str, Tensor], where: str) -> WaveformerConfig:
    """The sizes of a checkpoint's network, which the authors published in several.

    Raises:
        LayoutError: the tensors that tell are missing or of impossible shapes.
    """
    from model.layouts import LayoutError

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
    from model.assembly import build
    from model.baselines.checkpoints import fill

    config = config_of(state, where)
    network = build(lambda: Waveformer(config, name=name))
    fill(network, state, where)
    return network


def load(entry: Entry, options: LoadOptions) -> LoadedModel:
    """The registry's loader.

    Raises:
        ValueError: a precision other than fp32, in which the stream's state is kept.
    """
    from model.baselines.checkpoints import published_state
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
