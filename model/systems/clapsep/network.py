"""CLAPSep: mixture and condition to estimate; the one forward of training, evaluation and serving.

The encoder is CLAP's audio tower. The decoder turns its stage features, a magnitude spectrogram
and a condition into a mask: it is conditioned by FiLM, and the spectral masker turns its frames
into the mask's logits. Parameter names are those of the released checkpoint.

``torch.compile`` is an option: it is used where it works, and a warning says where it does not.

Source: Ma et al., "CLAPSep: Leveraging Contrastive Pre-trained Model for Multi-Modal
Query-Conditioned Target Sound Extraction", TASLP 2024, arXiv 2402.17455; checked against
Aisaka0v0/CLAPSep at 5404111.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.clap import audio
from model.clap.audio import PRECISIONS, Encoder, Precision, StageFeatures, computing_in
from model.config import ClapSepConfig, DecoderConfig, PresenceConfig
from model.signal.stft import inverse_stft, sinc_resample, torch_hann
from model.systems import Capabilities, Condition

_CONVOLUTION = 9
"""Frames that a :class:`ConvolutionModule` sees at once."""


class ConvolutionModule(nn.Module):
    """A Conformer convolution module, for maskers with ``conv=True`` and for the phase net."""

    def __init__(self, dim: int) -> None:
        """For ``dim`` channels."""
        super().__init__()
        self.layers = nn.ModuleDict(
            {
                "0": nn.LayerNorm(dim, eps=1e-6),
                "2": nn.Conv1d(dim, 2 * dim, 1),
                "4": nn.Conv1d(dim, dim, _CONVOLUTION, padding=_CONVOLUTION // 2, groups=dim),
                "5": nn.BatchNorm1d(dim),
                "7": nn.Conv1d(dim, dim, 1),
            }
        )
        self.ln = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, F, C] → float[B, F, C]."""
        norm, widen, depthwise, batch_norm, project = self.layers.values()
        hidden = F.glu(widen(audio.layer_norm(norm, x).transpose(1, 2)), dim=1)
        hidden = project(F.silu(batch_norm(depthwise(hidden)))).transpose(1, 2)
        return audio.layer_norm(self.ln, hidden + x)


class TransformerMasker(nn.Module):
    """Post-norm transformer layers with ReLU, without positions; names as in torch's encoder."""

    def __init__(self, config: DecoderConfig) -> None:
        """Builds ``num_masker_layers`` layers."""
        super().__init__()
        self.heads = config.masker_heads
        width = int(config.d_attn * config.mlp_ratio)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.d_attn, config.masker_heads, width, dropout=0.0, batch_first=True
            )
            for _ in range(config.num_masker_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """float[B, F, C] → float[B, F, C]."""
        for layer in self.layers:
            x = self._layer(layer, x)
        return x

    def _layer(self, layer: Any, x: Tensor) -> Tensor:
        x = audio.layer_norm(layer.norm1, x + self._attend(layer.self_attn, x))
        mixed = audio.feed_forward(layer.linear1, layer.linear2, x, "relu")
        return audio.layer_norm(layer.norm2, x + mixed)

    def _attend(self, attention: Any, x: Tensor) -> Tensor:
        qkv = audio.project(x, attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = audio.by_head(qkv, self.heads)
        mixed = audio.attend(query, key, value, query.shape[-1] ** -0.5)
        return audio.linear(attention.out_proj, mixed)


class Masker(nn.ModuleList):
    """The layers from spectrogram and decoded frames to the mask's logits, one after the other.

    The first, linear one takes the two concatenated. Its part for the spectrogram does not depend
    on the query and is computed once for each mixture, by :meth:`hear`.
    """

    def hear(self, spectrogram: Tensor) -> Tensor:
        """The first layer's part for mixtures: float[M, F, K], normalised → float[M, F, C]."""
        first: Any = self[0]
        of_mixture = first.weight[:, : spectrogram.shape[-1]]
        return audio.project(spectrogram, of_mixture.contiguous(), first.bias)

    def forward(self, heard: Tensor, frames: Tensor, rows: Tensor | None = None) -> Tensor:
        """Predicts logits.

        Args:
            heard: float[M, F, C] of :meth:`hear`.
            frames: float[B, F, mel_bins], decoded.
            rows: int64[B], the mixture that each row of ``frames`` is about; None: each its own.

        Returns:
            float[B, F, features of the last layer].
        """
        first: Any = self[0]
        of_query = first.weight[:, first.in_features - frames.shape[-1] :]
        x = _repeat(heard, rows) + audio.project(frames, of_query.contiguous(), None)
        for layer in self[1:]:
            norm = isinstance(layer, nn.LayerNorm)
            x = audio.layer_norm(layer, x) if norm else audio.linear(layer, x)
        return x


def spectral_masker(in_features: int, num_bins: int, config: DecoderConfig) -> Masker:
    """The masker that a configuration asks for."""
    if config.conv:
        return convolutional_masker(in_features, num_bins, config.num_masker_layers)
    return Masker(
        (
            nn.Linear(in_features, config.d_attn),
            nn.LayerNorm(config.d_attn),
            TransformerMasker(config),
            nn.Linear(config.d_attn, num_bins),
        )
    )


def convolutional_masker(in_features: int, width: int, num_layers: int) -> Masker:
    """A masker of convolution modules; also the phase net."""
    modules = (ConvolutionModule(width) for _ in range(num_layers))
    return Masker((nn.Linear(in_features, width), nn.LayerNorm(width), *modules))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mask:
    """A magnitude mask in [0, 1] and, optionally, a rotation of the mixture's phase."""

    magnitude: Tensor
    """float[B, F, K]."""
    rotation: Tensor | None = None
    """complex64[B, F, K] of unit modulus."""


class Film(nn.Module):
    """Feature-wise linear modulation by the condition (Perez et al. 2018)."""

    def __init__(self, condition_dim: int, features: int) -> None:
        """Modulates ``features`` channels by a condition."""
        super().__init__()
        self.beta = nn.Linear(condition_dim, features)
        self.gamma = nn.Linear(condition_dim, features)

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        """``gamma(condition) · hidden + beta(condition)``; float[B, N, C] and float[B, D]."""
        shift, scale = audio.linear(self.beta, condition), audio.linear(self.gamma, condition)
        return torch.addcmul(shift[:, None], scale[:, None], hidden)


class SkipConnection(nn.Module):
    """Adds an encoder feature, projected and modulated by the condition, to the decoder's state."""

    def __init__(self, condition_dim: int, in_features: int, out_features: int) -> None:
        """Connects ``in_features`` channels of the encoder to ``out_features`` of the decoder."""
        super().__init__()
        self.skip_conv = Film(condition_dim, out_features)
        self.feature_proj = nn.Linear(in_features, out_features)
        self.norm = nn.LayerNorm(out_features)

    def hear(self, feature: Tensor) -> Tensor:
        """What serves all queries: float[M, N, in_features] → float[M, N, out_features]."""
        return audio.linear(self.feature_proj, feature)

    def forward(
        self,
        heard: Tensor,
        condition: Tensor,
        state: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """float[M, N, out_features] of :meth:`hear`, float[B, D] → float[B, N, out_features]."""
        out = self.skip_conv(_repeat(heard, rows), condition)
        return audio.layer_norm(self.norm, out if state is None else out + state)


class DecoderStage(nn.Module):
    """An optional patch expansion, then Swin blocks."""

    def __init__(
        self,
        dim: int,
        grid: int,
        depth: int,
        heads: int,
        window: int,
        config: DecoderConfig,
        rates: list[float],
    ) -> None:
        """``depth`` blocks of width ``dim``, shifted in turn, dropped with these rates."""
        super().__init__()
        self.blocks = nn.ModuleList(
            audio.SwinBlock(
                dim,
                grid,
                heads,
                window,
                shifted=index % 2 == 1,
                mlp_ratio=config.mlp_ratio,
                drop_path=rates[index],
            )
            for index in range(depth)
        )
        self.downsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """float[B, N, C] → float[B, N', C']."""
        if self.downsample is not None:
            x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


class InversePatchEmbed(nn.Module):
    """Patches → image, by a transposed convolution."""

    def __init__(self, embed_dim: int, patch_size: int, grid: int) -> None:
        """For ``grid`` × ``grid`` patches."""
        super().__init__()
        self.grid = grid
        self.proj = nn.ConvTranspose2d(embed_dim, 1, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, N, C] → float[B, S, S]."""
        grid = audio.layer_norm(self.norm, x).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        image: Tensor = self.proj(grid.contiguous())
        return image.squeeze(1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Heard:
    """What a :class:`Listener` heard in M mixtures."""

    patches: Tensor
    """float32[M, N, W], where each patch lies."""
    whole: Tensor
    """float32[M, D], CLAP's embedding of the mixture, of unit norm."""

    def index(self, rows: Tensor | None) -> Heard:
        """Repeats or reorders mixtures; None: as they are."""
        if rows is None:
            return self
        patches, whole = self.patches.index_select(0, rows), self.whole.index_select(0, rows)
        return Heard(patches=patches, whole=whole)

    def packed(self) -> bytes:
        """As bytes, in half precision: log odds by them differ by some thousandths."""
        halves = (part.half().cpu().numpy().astype("<f2") for part in (self.patches, self.whole))
        return struct.pack("<3H", *self.patches.shape) + b"".join(part.tobytes() for part in halves)

    @classmethod
    def unpacked(cls, data: bytes, device: torch.device) -> Heard:
        """What :meth:`packed` gave.

        Raises:
            ValueError: that is none.
        """
        try:
            count, patches, width = struct.unpack_from("<3H", data)
            values = torch.from_numpy(np.frombuffer(data, "<f2", offset=6).astype(np.float32))
            split = count * patches * width
            return cls(
                patches=values[:split].reshape(count, patches, width).to(device),
                whole=values[split:].reshape(count, -1).to(device),
            )
        except (struct.error, ValueError, RuntimeError) as err:
            raise ValueError(f"{len(data)} bytes are not what was heard: {err}") from err


class PresenceHead(nn.Module):
    """Compares CLAP's latents of a mixture with a query: is what it asks for there?

    Every patch of the mixture, seen beside their mean, is placed in a space of its own, and so is
    the query. The answer is a smooth maximum over the patches: a sound need not fill the window to
    be there (multiple-instance learning; Ilse et al. 2018 for such pooling). It is calibrated
    afterwards, by a logistic function of it, of the similarity of mixture and query in CLAP's own
    space, and of how similar the query is to mixtures as such. Its four numbers are kept with the
    weights.
    """

    scale: Tensor
    similarity: Tensor
    typicality: Tensor
    offset: Tensor
    typical: Tensor

    def __init__(self, features: int, embedding_dim: int, config: PresenceConfig) -> None:
        """For latents of ``features`` channels and queries of ``embedding_dim``."""
        super().__init__()
        width = config.width
        self.config = config
        self.norm = nn.LayerNorm(features)
        self.patch = nn.Linear(features, 2 * width)
        self.around = nn.Linear(features, 2 * width)
        self.key = nn.Linear(2 * width, width)
        self.positive = nn.Linear(embedding_dim, 2 * width)
        self.wanted = nn.Linear(2 * width, width)
        self.both = nn.Linear(2 * embedding_dim, width)
        self.suppressed = nn.Linear(width, width)
        self.prior = nn.Linear(embedding_dim, 1)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        for name in ("similarity", "typicality", "offset"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("typical", torch.zeros(embedding_dim))

    def hear(self, latents: Tensor, whole: Tensor, dropout: float = 0.0) -> Heard:
        """Places mixtures.

        Args:
            latents: float[M, N, features], CLAP's patches.
            whole: float32[M, D], CLAP's embeddings of unit norm.
            dropout: in training.
        """
        patches = self.norm(latents.float())
        hidden = audio.linear(self.patch, patches)
        hidden = hidden + audio.linear(self.around, patches.mean(dim=1, keepdim=True))
        hidden = F.dropout(F.gelu(hidden), dropout, training=self.training)
        return Heard(patches=audio.linear(self.key, hidden).float(), whole=whole)

    def forward(self, heard: Heard, positive: Tensor, negative: Tensor) -> Tensor:
        """Says how likely it is that queries are answered by mixtures.

        Args:
            heard: of :meth:`hear`, a mixture for each query.
            positive: float32[B, D], what is asked for.
            negative: float32[B, D], what is to be suppressed: known to be there, most of the time;
                zeros where nothing is.

        Returns:
            The log odds, float32[B].
        """
        wanted = audio.feed_forward(self.positive, self.wanted, positive, "gelu")
        joint = torch.cat((positive, negative), dim=-1)
        wanted = wanted + audio.feed_forward(self.both, self.suppressed, joint, "gelu")
        # No matrix products: their rounding would depend on how many rows there are.
        patches = heard.patches
        factor = self.log_scale.exp() / math.sqrt(patches.shape[-1])
        close = (patches * wanted[:, None]).sum(dim=-1) * factor
        odds = torch.logsumexp(close, dim=1) - math.log(patches.shape[1])
        odds = odds + audio.linear(self.prior, positive).squeeze(-1)
        similar = self.similarity * (heard.whole * positive).sum(dim=-1)
        similar = similar - self.typicality * (self.typical * positive).sum(dim=-1)
        return self.scale * odds + similar + self.offset


class Listener(nn.Module):
    """CLAP's own audio tower and a :class:`PresenceHead`: hears whether a sound is in a mixture.

    The separator's encoder began as the same tower, but what it knows of words was lost when it
    learnt to separate: from its features presence is told much worse.
    """

    def __init__(self, tower: Encoder, projection: nn.Sequential, head: PresenceHead) -> None:
        """Shares tower and projection with the CLAP that embeds queries."""
        super().__init__()
        self.tower, self.projection, self.head = tower, projection, head

    def hear(self, waveform: Tensor, power: Tensor | None = None) -> Heard:
        """Hears mixtures.

        Args:
            waveform: float32[B, T] at the tower's rate, at most its clip's length.
            power: its :meth:`Encoder.power`, where that is known.
        """
        missing = self.tower.config.clip_samples - waveform.shape[-1]
        if missing:
            waveform, power = F.pad(waveform, (0, missing)), None
        patches = self.tower.clip_features(waveform, None, power).stages[-1]
        first, _, second = self.projection
        whole = audio.feed_forward(first, second, self.tower.pooled(patches), "relu")
        return self.head.hear(patches, F.normalize(whole.float(), dim=-1))

    def listen(self, waveform: Tensor) -> tuple[Tensor, bytes]:
        """See :class:`model.systems.WindowListener`."""
        heard = self.hear(waveform)
        return heard.whole, heard.packed()

    def answer(self, kept: bytes, positive: Tensor) -> float:
        """See :class:`model.systems.WindowListener`."""
        heard = Heard.unpacked(kept, self.head.log_scale.device)
        wanted = positive.to(heard.whole.device).expand(len(heard.whole), -1)
        odds: Tensor = self.head(heard, wanted, torch.zeros_like(wanted))
        return float(odds.max())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeardByDecoder:
    """What the layers of a :class:`Decoder` make of M mixtures, whatever is asked of them."""

    coarsest: Tensor
    """float[M, N, C], of the encoder's last stage."""
    skipped: tuple[Tensor, ...]
    """float[M, N', C'] each, of the stages before, coarsest first."""
    mask: Tensor
    """float[M, F, C], of the spectrogram."""
    phase: Tensor | None = None
    """float[M, F, C], likewise; None where the phase stays the mixture's."""


class Decoder(audio.SwinNetwork):
    """Answers a query: what part of each spectrogram bin belongs to it."""

    def __init__(self, config: ClapSepConfig) -> None:
        """Builds the network with random parameters."""
        super().__init__()
        self.config = config
        encoder, decoder = config.clap.audio, config.decoder
        bins, bands = config.signal.num_bins, encoder.mel_bins
        stages, skips = _levels(config)
        self.layers = nn.ModuleList(reversed(stages))
        self.skip = nn.ModuleList(reversed(skips))
        self.film = SkipConnection(
            config.condition_dim,
            encoder.num_features,
            decoder.embed_dim << (len(decoder.depths) - 1),
        )
        self.inverse_patch_embed = InversePatchEmbed(
            decoder.embed_dim, encoder.patch_size, encoder.grid_size
        )
        self.spec_norm = nn.BatchNorm2d(bins, momentum=0.01)
        self.mask_net = spectral_masker(bins + bands, bins, decoder)
        if decoder.phase:
            layers = decoder.num_masker_layers
            self.phase_net = convolutional_masker(bins + bands, 2 * bins, layers)
        self.apply(audio.init_weights)

    def hear(self, features: StageFeatures, magnitude: Tensor) -> HeardByDecoder:
        """Computes what serves all queries.

        Args:
            features: the encoder's, of M mixtures.
            magnitude: float[M, F, K], the same mixtures' magnitude spectrograms.
        """
        connections: Iterable[Any] = self.skip
        skipped = zip(connections, reversed(features.stages[:-1]), strict=True)
        columns = magnitude.transpose(1, 2).unsqueeze(-1)
        normalised = self.spec_norm(columns).squeeze(-1).transpose(1, 2)
        return HeardByDecoder(
            coarsest=self.film.hear(features.stages[-1]),
            skipped=tuple(skip.hear(feature) for skip, feature in skipped),
            mask=self.mask_net.hear(normalised),
            phase=self.phase_net.hear(normalised) if self.config.decoder.phase else None,
        )

    def forward(self, heard: HeardByDecoder, condition: Tensor, rows: Tensor | None = None) -> Mask:
        """Predicts the mask.

        Args:
            heard: of :meth:`hear`, of M mixtures.
            condition: float[B, 2·D], positive and negative embedding.
            rows: int64[B], the mixture that each condition is about; None: each its own.

        Returns:
            Mask over float[B, F, K].
        """
        state = self.layers[0](self.film(heard.coarsest, condition, rows=rows))
        for level, (skip, feature) in enumerate(zip(self.skip, heard.skipped, strict=True)):
            deeper = self.layers[level](state) if level else state
            state = skip(feature, condition, deeper, rows)
        frames = self._unfold(self.inverse_patch_embed(state))[:, : heard.mask.shape[1]]
        mask = audio.sigmoid(self.mask_net(heard.mask, frames, rows))
        if heard.phase is None:
            return Mask(magnitude=mask)
        direction = torch.tanh(self.phase_net(heard.phase, frames, rows)).float()
        rotation = torch.complex(*direction.chunk(2, dim=-1))
        unit = rotation / rotation.abs().clamp(min=1e-10)
        return Mask(magnitude=mask, rotation=unit)

    def _unfold(self, image: Tensor) -> Tensor:
        """The square image back to float[B, F, mel_bins]."""
        ratio = self.config.clap.audio.freq_ratio
        pieces: Tensor = image.unflatten(1, (ratio, -1)).transpose(1, 2)
        return pieces.flatten(2).transpose(1, 2)


def _levels(config: ClapSepConfig) -> tuple[list[DecoderStage], list[SkipConnection]]:
    """The stages, finest first, and the connections that follow them."""
    encoder, decoder = config.clap.audio, config.decoder
    rates = torch.linspace(0, decoder.drop_path_rate, sum(decoder.depths)).tolist()
    stages: list[DecoderStage] = []
    skips: list[SkipConnection] = []
    for level, depth in enumerate(decoder.depths):
        dim = decoder.embed_dim << level
        first = sum(decoder.depths[:level])
        stage = DecoderStage(
            dim,
            encoder.grid_size >> level,
            depth,
            decoder.num_heads[level],
            encoder.window_size,
            decoder,
            rates[first : first + depth],
        )
        if level < len(decoder.depths) - 1:
            stage.downsample = audio.PatchExpand(2 * dim)
        stages.append(stage)
        skips.append(SkipConnection(config.condition_dim, encoder.embed_dim << level, dim))
    return stages, skips


def _repeat(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoded:
    """Encoded mixtures, and which of them each query of a batch is about."""

    features: StageFeatures
    """Of M mixtures."""
    by_decoder: HeardByDecoder
    """Of the same."""
    spectrum: Tensor
    """complex64[M, K, F]."""
    num_samples: int
    heard: Heard | None = None
    """Of the :class:`Listener`; None where there is none."""
    rows: Tensor | None = None
    """int64[B]; None: each mixture once, in order."""

    def index(self, rows: Tensor) -> Encoded:
        """Repeats or reorders mixtures, so that several queries share one encoder pass."""
        chosen = rows.to(self.spectrum.device)
        return dataclasses.replace(self, rows=chosen if self.rows is None else self.rows[chosen])

    @property
    def batch_size(self) -> int:
        """How many queries can be answered at once, B."""
        return len(self.spectrum) if self.rows is None else len(self.rows)


class ClapSep(nn.Module):
    """The CLAPSep network; implements :class:`model.systems.Separator`.

    Args:
        config: shapes and signals.
        precision: see :func:`computing_in`; STFT, mask application and ISTFT stay float32.
    """

    hann: Tensor

    name = "clapsep"

    def __init__(self, config: ClapSepConfig, precision: Precision = "fp32") -> None:
        """Builds the network with random parameters."""
        super().__init__()
        self._weights_cast = False
        self.precision = precision
        self.config = config
        self.sample_rate_hz = config.signal.sample_rate_hz
        self.window_samples = config.signal.window_samples
        self.embedding_dim = config.clap.embedding_dim
        self.capabilities = Capabilities()
        self.input_level_dbfs = config.signal.input_level_dbfs
        self.encoder = Encoder(config.clap.audio)
        self.decoder = Decoder(config)
        self.listener: Listener | None = None
        self.register_buffer("hann", torch_hann(config.signal.n_fft), persistent=False)

    @property
    def precision(self) -> Precision:
        """``fp32``, ``tf32`` or ``bf16``.

        Raises:
            ValueError: set to something else, or away from ``bf16`` after :meth:`prepare`, which
                rounds the weights.
        """
        return self._precision

    @precision.setter
    def precision(self, precision: Precision) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r}: expected one of {PRECISIONS}")
        if self._weights_cast and precision != "bf16":
            raise ValueError(f"precision={precision!r}: this network was prepared for bf16")
        self._precision: Precision = precision

    def prepare(self) -> ClapSep:
        """Freezes the network for inference: evaluation mode, no gradients, cached biases.

        In bfloat16 the weights of the linear layers are kept in that type: half the memory, and
        the same result as converting them at every call.
        """
        self.eval().requires_grad_(False)
        self._weights_cast = self.precision == "bf16"
        dtype = torch.bfloat16 if self._weights_cast else torch.float32
        self.encoder.prepare(dtype)
        self.decoder.prepare(dtype)
        return self

    def encode(self, mixture: Tensor, encoder_mixture: Tensor | None = None) -> Encoded:
        """Encodes a batch of mixtures.

        Args:
            mixture: float32[B, T] at ``sample_rate_hz``, 1 ≤ T ≤ ``window_samples``.
            encoder_mixture: float32[B, T'], the same at the encoder's rate; by default resampled
                from ``mixture``.

        Raises:
            ValueError: T is 0 or longer than a window.
        """
        num_samples = mixture.shape[-1]
        if mixture.ndim != 2 or not 1 <= num_samples <= self.window_samples:
            raise ValueError(
                f"mixture {tuple(mixture.shape)}: expected [B, T], 1 ≤ T ≤ {self.window_samples}"
            )
        signal, listening = self.config.signal, self.config.clap.audio
        shortest = max(
            signal.n_fft // 2 + 1,
            (listening.n_fft // 2 + 1) * signal.sample_rate_hz // listening.sample_rate_hz + 1,
        )
        if num_samples < shortest:
            mixture = F.pad(mixture, (0, shortest - num_samples))
            encoder_mixture = None
        if encoder_mixture is None:
            encoder_mixture = sinc_resample(
                mixture, signal.sample_rate_hz, listening.sample_rate_hz
            )
        spectrum = torch.stft(
            mixture,
            signal.n_fft,
            signal.hop_samples,
            window=self.hann,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        # At equal rates and sizes the encoder's spectrogram is the one that is there already.
        known = encoder_mixture is mixture and listening.n_fft == signal.n_fft
        power = self.encoder.power(spectrum) if known else None
        with self._autocast(mixture):
            features = self.encoder.stage_features(encoder_mixture, power)
            by_decoder = self.decoder.hear(features, spectrum.abs().transpose(1, 2))
            heard: Heard | None = None
            if self.listener is not None:
                heard = self.listener.hear(encoder_mixture, power)
        return Encoded(
            features=features,
            by_decoder=by_decoder,
            spectrum=spectrum,
            num_samples=num_samples,
            heard=heard,
        )

    def predict_mask(self, encoded: Encoded, condition: Condition) -> Mask:
        """The mask that answers the query, float32[B, F, K].

        Raises:
            ValueError: there is not one query for each row of ``encoded``.
        """
        vector = condition.vector().to(encoded.spectrum.device)
        if len(vector) != encoded.batch_size:
            raise ValueError(
                f"{len(vector)} queries for {encoded.batch_size} mixtures: see Encoded.index"
            )
        with self._autocast(vector):
            mask: Mask = self.decoder(encoded.by_decoder, vector, encoded.rows)
        return dataclasses.replace(mask, magnitude=mask.magnitude.float())

    def presence(self, encoded: Encoded, condition: Condition) -> Tensor | None:
        """How likely it is that what the condition asks for is there, as log odds.

        Returns:
            float32[B], or None from a network that has no :class:`Listener`.
        """
        if self.listener is None or encoded.heard is None:
            return None
        device = encoded.spectrum.device
        heard = encoded.heard.index(encoded.rows)
        positive, negative = condition.positive.to(device), condition.negative.to(device)
        odds: Tensor = self.listener.head(heard, positive, negative)
        return odds

    def decode(self, encoded: Encoded, condition: Condition) -> Tensor:
        """Extracts what the condition asks for, float32[B, T]."""
        return self.masked(encoded, self.predict_mask(encoded, condition))

    def masked(self, encoded: Encoded, mask: Mask) -> Tensor:
        """What a mask leaves of the mixtures, float32[B, T]."""
        spectrum = encoded.spectrum.transpose(1, 2)
        if encoded.rows is not None:
            spectrum = spectrum.index_select(0, encoded.rows)
        spectrum = spectrum * mask.magnitude
        if mask.rotation is not None:
            spectrum = spectrum * mask.rotation
        spectrum = spectrum.transpose(1, 2)
        signal = self.config.signal
        return inverse_stft(spectrum, self.hann, signal.hop_samples, encoded.num_samples)

    def separate(
        self, mixture: Tensor, condition: Condition, encoder_mixture: Tensor | None = None
    ) -> Tensor:
        """``decode(encode(mixture), condition)``: float32[B, T] → float32[B, T]."""
        return self.decode(self.encode(mixture, encoder_mixture), condition)

    def forward(self, mixture: Tensor, condition: Condition) -> Tensor:
        """Same as :meth:`separate`."""
        return self.separate(mixture, condition)

    def _autocast(self, like: Tensor) -> contextlib.AbstractContextManager[Any]:
        return computing_in(self.precision, like.device.type)


logger = logging.getLogger(__name__)


def compile_separator(separator: ClapSep, device: str) -> bool:
    """Compiles a separator's encoder and decoder in place, where there is a compiler.

    The network compiles at its first call, and again for a new batch size or length.

    Returns:
        Whether it will; otherwise a warning is logged and the separator stays as it was.
    """
    reason = _why_not(device)
    if reason is not None:
        logger.warning("torch.compile is not used on %s: %s", device, reason)
        return False
    # Methods that the module's own compile(), which is about forward(), does not reach.
    separator.encoder.stage_features = torch.compile(  # type: ignore[method-assign]
        separator.encoder.stage_features
    )
    separator.decoder.hear = torch.compile(  # type: ignore[method-assign]
        separator.decoder.hear
    )
    separator.decoder.compile()
    return True


def _why_not(device: str) -> str | None:
    """Compiles one addition; the reason where that fails."""
    try:
        torch.compile(_add_one)(torch.zeros(2, device=device))
    except Exception as err:  # whatever a missing or broken tool chain raises
        return f"{type(err).__name__}: {str(err).strip().splitlines()[0] if str(err) else ''}"
    return None


def _add_one(value: torch.Tensor) -> torch.Tensor:
    return value + 1
