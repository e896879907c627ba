"""The blocks that U-Nets of this field are made of: embeddings, residual blocks, attention."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SinusoidalEmbedding(nn.Module):
    """sin and cos of the label at geometric frequencies from 1 to 1/max_period (2006.11239).

    labels (B,) -> (B, dim), [sin, cos]; made for labels of DDPM's size, 0 to 999.
    """

    def __init__(self, dim: int, max_period: float = 10_000.0):
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"an embedding needs an even dim of at least 4 (got {dim}).")
        self.dim, self.max_period = dim, max_period

    def forward(self, label: Tensor) -> Tensor:
        half = self.dim // 2
        steps = torch.arange(half, dtype=torch.float32, device=label.device)
        frequencies = torch.exp(steps * (-math.log(self.max_period) / (half - 1)))
        angles = label.to(torch.float32)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], 1)


class FourierEmbedding(nn.Module):
    """sin and cos at fixed random frequencies (2006.10739), for labels like log sigma.

    labels (B,) -> (B, dim). The frequencies are a buffer: saved, never trained.
    """

    frequencies: Tensor

    def __init__(self, dim: int, scale: float = 16.0):
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"an embedding needs an even dim of at least 2 (got {dim}).")
        self.register_buffer("frequencies", torch.randn(dim // 2) * scale)

    def forward(self, label: Tensor) -> Tensor:
        angles = label.to(torch.float32)[:, None] * self.frequencies * (2 * math.pi)
        return torch.cat([angles.sin(), angles.cos()], 1)


EMBEDDINGS = {"positional": SinusoidalEmbedding, "fourier": FourierEmbedding}


Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def initialize(layer: Layer, scale: float = 1.0) -> Layer:
    """Uniform weights of variance scale / mean(fan_in, fan_out), zero bias; in place (DDPM's).

    A scale of 0 makes a layer that starts as zero: the blocks of a new network are identities.
    """
    receptive = layer.weight[0, 0].numel() if layer.weight.ndim > 2 else 1
    fans = (layer.weight.shape[0] + layer.weight.shape[1]) * receptive
    bound = math.sqrt(3 * scale / (fans / 2))
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def conv(inputs: int, outputs: int, kernel: int = 3, scale: float = 1.0) -> nn.Conv2d:
    """A same-size convolution, initialised."""
    return initialize(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), scale)


def linear(inputs: int, outputs: int, scale: float = 1.0) -> nn.Linear:
    """A linear layer, initialised."""
    return initialize(nn.Linear(inputs, outputs), scale)


def group_norm(channels: int, group_channels: int = 4) -> nn.GroupNorm:
    """GroupNorm of at least ``group_channels`` channels a group and at most 32 groups, eps 1e-6."""
    groups = min(channels // group_channels, 32)
    if groups < 1 or channels % groups:
        raise ValueError(
            f"{channels} channels do not divide into {max(groups, 1)} groups. "
            f"Take a multiple of {group_channels} (up to 32 groups) or of 32 (above)."
        )
    return nn.GroupNorm(groups, channels, eps=1e-6)


def resampled(x: Tensor, direction: str | None) -> Tensor:
    """x at twice ("up", nearest), half ("down", mean) or its own (None) height and width."""
    if direction == "up":
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return F.avg_pool2d(x, 2) if direction == "down" else x


class ResampleConv(nn.Module):
    """A convolution that doubles or halves the image: DDPM's way (2006.11239).

    x (B, C, H, W), embedding ignored -> (B, C, H', W'): stride 2 for "down" (padded on the right
    and below), nearest neighbours and a convolution for "up".
    """

    def __init__(self, channels: int, resample: str):
        super().__init__()
        self.resample = resample
        self.conv = conv(channels, channels)
        if resample == "down":
            self.conv.stride, self.conv.padding = (2, 2), (0, 0)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.resample == "down" else resampled(x, "up"))


class ResidualBlock(nn.Module):
    """norm, SiLU, (resample,) conv, + noise embedding, norm, SiLU, dropout, conv, + skip.

    x (B, inputs, H, W), embedding (B, E) -> (B, outputs, H', W'), with H' = 2H for resample "up"
    (nearest) and H/2 for "down" (mean), as in BigGAN (1809.11096).
    modulation: "shift" adds the embedding between the convolutions (DDPM); "scale_shift" also
        scales the second norm by it (FiLM, 2105.05233, appendix A).
    skip_scale: what the sum is multiplied by; sqrt(1/2) in DDPM++ and NCSN++.
    group_channels: see `group_norm`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        dropout: float = 0.0,
        resample: str | None = None,
        modulation: str = "shift",
        skip_scale: float = 1.0,
        group_channels: int = 4,
    ):
        super().__init__()
        self.resample, self.modulation, self.skip_scale = resample, modulation, skip_scale
        self.norm0 = group_norm(inputs, group_channels)
        self.conv0 = conv(inputs, outputs)
        self.affine = linear(embedding, outputs * (2 if modulation == "scale_shift" else 1))
        self.norm1 = group_norm(outputs, group_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = conv(outputs, outputs, scale=0.0)
        changes = inputs != outputs or resample is not None
        self.skip = conv(inputs, outputs, kernel=1) if changes else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(resampled(F.silu(self.norm0(x)), self.resample))
        modulation = self.affine(F.silu(embedding))[:, :, None, None]
        if self.modulation == "scale_shift":
            scale, shift = modulation.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), 1 + scale)
        else:
            h = self.norm1(h + modulation)
        h = self.conv1(self.dropout(F.silu(h)))
        total = self.skip(resampled(x, self.resample)) + h
        return total if self.skip_scale == 1.0 else total * self.skip_scale


class AttentionBlock(nn.Module):
    """Self-attention over the pixels, with a residual connection; (B, C, H, W) -> the same."""

    def __init__(
        self, channels: int, heads: int = 1, skip_scale: float = 1.0, group_channels: int = 4
    ):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not divide into {heads} attention heads.")
        self.heads, self.skip_scale = heads, skip_scale
        self.norm = group_norm(channels, group_channels)
        self.qkv = conv(channels, 3 * channels, kernel=1)
        self.proj = conv(channels, channels, kernel=1, scale=0.0)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, -1)
        query, key, value = tokens.transpose(-1, -2).unbind(1)  # each (B, heads, H W, C / heads)
        if x.device.type == "cpu" and torch.is_grad_enabled():
            # The backward pass of the fused kernel is slower than this on CPUs.
            weights = (query * query.shape[-1] ** -0.5) @ key.mT
            h = weights.softmax(-1).to(value.dtype) @ value
        else:
            h = F.scaled_dot_product_attention(query, key, value)
        h = self.proj(h.transpose(-1, -2).reshape(batch, channels, height, width))
        total = x + h
        return total if self.skip_scale == 1.0 else total * self.skip_scale
