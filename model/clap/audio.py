"""Encodes audio with HTSAT, CLAP's audio tower, and runs the Swin blocks that decoders share.

HTSAT is laion_clap's network (Chen et al. 2022); its parameters and names are kept, its forward is
written out here: no hooks, no state, no classifier, an FFT instead of a convolution for the STFT.

Under gradients, under ``torch.compile`` and on a GPU these are torch's own. In inference on a CPU,
linear layers go to oneDNN, which torch asks for bfloat16 only: its float32 product reaches twice
the rate of MKL's on AMD processors, and is its equal on Intel's. Attention has one form for each
size and type, chosen by measurement (``bench/kernels.py``).

The modules (parameters, names, initialisation) are laion_clap's; see :mod:`model.clap.laion`. A
call keeps nothing on a module, so one model serves many threads.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.clap import laion
from model.config import EncoderConfig

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
    table = attention.relative_position_bias_table
    bias: Tensor = table.index_select(0, index).view(size, size, -1)
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
    mixed = feed_forward(block.mlp.fc1, block.mlp.fc2, block.norm2(x), "gelu")
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
    qkv = linear(attention.qkv, windows).view(total, size, 3, heads, channels // heads)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return linear(attention.proj, attend(query, key, value, attention.scale, bias))


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
    return linear(merging.reduction, merging.norm(grid))


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
        expanded: Tensor = self.norm(grid)
        return expanded


_POWER_FLOOR = 1e-10

ImageHook = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageFeatures:
    """What the decoder reads: the patch embedding and every stage's output, float[B, N, C] each."""

    stages: tuple[Tensor, ...]


class Encoder(SwinNetwork):
    """HTSAT with laion_clap's parameter names; ``prepare()`` it for inference."""

    hann: Tensor
    # Parts of laion_clap's network, which has no types.
    logmel_extractor: Any
    bn0: Any
    patch_embed: Any
    layers: Any
    norm: Any

    def __init__(self, config: EncoderConfig) -> None:
        """Builds the network with random parameters."""
        super().__init__()
        self.config = config
        network = laion.build_htsat(config)
        for name, child in network.named_children():
            self.add_module(name, child)
        self.register_buffer("hann", laion.torch_hann(config.n_fft), persistent=False)

    def stage_features(self, waveform: Tensor) -> StageFeatures:
        """Encodes a mixture into the features of every stage.

        Args:
            waveform: float32[B, T] at the encoder's rate, at most a window; the spectrogram's
                missing frames are zeros of power, as in the reference.

        Returns:
            The patch embedding and each stage's output, coarsest last.
        """
        log_mel = self._log_mel(waveform)
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
        image = self._normalise(self._log_mel(waveform))
        if augment is not None:
            image = augment(image)
        if image.shape[1] < self.config.num_frames:
            size = (self.config.num_frames, image.shape[2])
            image = F.interpolate(image[:, None], size, mode="bicubic", align_corners=True)[:, 0]
        latent: Tensor = self.norm(self._transform(image).stages[-1]).mean(dim=1)
        return latent

    def _log_mel(self, waveform: Tensor) -> Tensor:
        """float32[B, T] → float32[B, F, mel_bins] in dB of power."""
        config = self.config
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = torch.stft(
                waveform.float(),
                config.n_fft,
                config.hop_samples,
                window=self.hann,
                center=True,
                pad_mode="reflect",
                return_complex=True,
            )
            power = (spectrum.real.square() + spectrum.imag.square()).transpose(1, 2)
            mel = power @ self.logmel_extractor.melW
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
        embed = self.patch_embed
        x = embed.norm(embed.proj(image).flatten(2).transpose(1, 2))
        stages = [x]
        for stage in self.layers:
            for block in stage.blocks:
                x = run_block(block, x)
            if stage.downsample is not None:
                x = merge_patches(stage.downsample, x)
            stages.append(x)
        return StageFeatures(stages=tuple(stages))
