"""The blocks that U-Nets of this field are made of: embeddings, resampling, residual blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SinusoidalEmbedding(nn.Module):
    """sin and cos of the label at geometric frequencies from 1 to 1/max_period (2006.11239).

    labels (B,) -> (B, dim), [sin, cos], in float64 for labels in float64 and else in float32;
    made for labels of DDPM's size, 0 to 999.
    endpoint: False leaves the last frequency a step above 1/max_period (2105.05233's code).
    powers: frequencies as powers, as 2206.00364's code has them. The exponentials that everybody
        else takes round otherwise, which shows in the fifth digit of a network's output.
    """

    def __init__(
        self,
        dim: int,
        max_period: float = 10_000.0,
        endpoint: bool = True,
        powers: bool = False,
    ):
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"an embedding needs an even dim of at least 4 (got {dim}).")
        self.dim, self.max_period, self.endpoint, self.powers = dim, max_period, endpoint, powers

    def forward(self, label: Tensor) -> Tensor:
        label, half = _precise(label), self.dim // 2
        steps = torch.arange(half, dtype=label.dtype, device=label.device)
        last = half - self.endpoint
        if self.powers:
            frequencies = (1 / self.max_period) ** (steps / last)
        else:
            frequencies = torch.exp(steps * (-math.log(self.max_period) / last))
        angles = label[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], 1)


class FourierEmbedding(nn.Module):
    """sin and cos at fixed random frequencies (2006.10739), for labels like log sigma.

    labels (B,) -> (B, dim). The frequencies are saved, and never trained.
    """

    def __init__(self, dim: int, scale: float = 16.0):
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"an embedding needs an even dim of at least 2 (got {dim}).")
        self.frequencies = nn.Parameter(torch.randn(dim // 2) * scale, requires_grad=False)

    def forward(self, label: Tensor) -> Tensor:
        angles = _precise(label)[:, None] * self.frequencies * (2 * math.pi)
        return torch.cat([angles.sin(), angles.cos()], 1)


def _precise(label: Tensor) -> Tensor:
    return label if label.dtype == torch.float64 else label.to(torch.float32)


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


def group_norm(
    channels: int, group_channels: int = 4, groups: int = 32, eps: float = 1e-6
) -> nn.GroupNorm:
    """GroupNorm of at least ``group_channels`` channels a group and at most ``groups`` groups."""
    count = min(channels // group_channels, groups)
    if count < 1 or channels % count:
        raise ValueError(
            f"{channels} channels do not divide into {max(count, 1)} groups. "
            f"Take a multiple of {group_channels} (up to {groups} groups) or of {groups} (above)."
        )
    return nn.GroupNorm(count, channels, eps=eps)


def normalized(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """SiLU of the norm of x; where no gradient is asked for, without a tensor more."""
    return F.silu(norm(x), inplace=not torch.is_grad_enabled())


def filtered(
    x: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)
) -> Tensor:
    """x (B, C, H, W) with up - 1 zeros after each pixel, padded, convolved, every down-th kept.

    kernel (n, n); pad counts pixels (before, after) on both axes and crops where negative. A true
    convolution: the kernel is flipped (upfirdn2d of 1912.04958's code).
    """
    channels, n = x.shape[1], kernel.shape[0]
    weight = kernel.to(x.dtype).expand(channels, 1, n, n)
    if up == 1:
        padded = F.pad(x, (pad[0], pad[1], pad[0], pad[1]))
        return F.conv2d(padded, weight.flip(2, 3), stride=down, groups=channels)
    spread = F.conv_transpose2d(x, weight, stride=up, groups=channels)
    before, after = pad[0] - (n - 1), up - 1 + pad[1] - (n - 1)
    return F.pad(spread, (before, after, before, after))[:, :, ::down, ::down]


class Resample(nn.Module):
    """x (B, C, H, W) at twice ("up") or half ("down") its height and width, through a filter.

    taps: the filter along each axis; (1, 1) is nearest neighbours up and the mean of four down,
        (1, 3, 3, 1) the smooth one of NCSN++ (2011.13456, appendix H).
    """

    kernel: Tensor

    def __init__(self, direction: str, taps: tuple[int, ...] = (1, 1)):
        super().__init__()
        self.direction, self.taps = direction, tuple(taps)
        row = torch.tensor(self.taps, dtype=torch.float32)
        kernel = torch.outer(row, row) / row.sum() ** 2
        self.register_buffer("kernel", kernel * (4 if direction == "up" else 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        spare = len(self.taps) - 2
        if self.direction == "up":
            if self.taps == (1, 1):
                return F.interpolate(x, scale_factor=2, mode="nearest")
            return filtered(x, self.kernel, up=2, pad=((spare + 1) // 2 + 1, spare // 2))
        if self.taps == (1, 1):
            return F.avg_pool2d(x, 2)
        return filtered(x, self.kernel, down=2, pad=((spare + 1) // 2, spare // 2))


class FilteredConv(nn.Module):
    """A 3 x 3 convolution of every other pixel of a filtered x: (B, C, H, W) to half the size."""

    kernel: Tensor

    def __init__(self, inputs: int, outputs: int, taps: tuple[int, ...]):
        super().__init__()
        self.register_buffer("kernel", Resample("down", taps).kernel, persistent=False)
        self.conv = conv(inputs, outputs)
        self.conv.stride, self.conv.padding = (2, 2), (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        spare = self.kernel.shape[0]  # (taps - 2) of the filter and 2 of the convolution
        return self.conv(filtered(x, self.kernel, pad=((spare + 1) // 2, spare // 2)))


@dataclass(frozen=True)
class BlockOptions:
    """What all blocks of one network share.

    dropout: inside residual blocks, in training.
    modulation: "shift" adds the noise embedding between the convolutions (DDPM); "scale_shift"
        also scales the second norm by it (FiLM, 2105.05233, appendix A).
    skip_scale: what sums are multiplied by; sqrt(1/2) in DDPM++ and NCSN++.
    skip_conv: whether a block that only resamples has a convolution on its skip path.
    group_channels, groups, norm_eps: of group norms, see `group_norm`.
    heads, head_channels: attention heads, or instead how many channels each has.
    taps: see `Resample`.
    """

    dropout: float = 0.0
    modulation: str = "shift"
    skip_scale: float = 1.0
    skip_conv: bool = True
    group_channels: int = 4
    groups: int = 32
    norm_eps: float = 1e-6
    heads: int = 1
    head_channels: int | None = None
    taps: tuple[int, ...] = (1, 1)

    def norm(self, channels: int) -> nn.GroupNorm:
        """The group norm of these options."""
        return group_norm(channels, self.group_channels, self.groups, self.norm_eps)

    def scaled(self, total: Tensor) -> Tensor:
        """A sum times `skip_scale`."""
        return total if self.skip_scale == 1.0 else total * self.skip_scale


class ResampleConv(nn.Module):
    """Between levels without a residual block: a convolution (DDPM, 2006.11239), or none.

    x (B, C, H, W), modulation ignored -> (B, C, H', W'). "conv" has stride 2 downwards, padded on
    the right and below as in DDPM, or on all sides ("conv_symmetric"); upwards it follows nearest
    neighbours. "plain" only resamples.
    """

    modulation_channels = 0

    def __init__(self, channels: int, direction: str, kind: str, taps: tuple[int, ...]):
        super().__init__()
        strided = kind != "plain" and direction == "down"
        self.resample = nn.Identity() if strided else Resample(direction, taps)
        self.pad = (0, 1, 0, 1) if strided and kind == "conv" else None
        self.conv = nn.Identity() if kind == "plain" else conv(channels, channels)
        if strided:
            self.conv.stride = (2, 2)
            self.conv.padding = (0, 0) if self.pad else (1, 1)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        x = self.resample(x)
        return self.conv(F.pad(x, self.pad) if self.pad else x)


class AttentionBlock(nn.Module):
    """Self-attention over the pixels, with a residual connection; (B, C, H, W) -> the same."""

    def __init__(self, channels: int, options: BlockOptions):
        super().__init__()
        size = options.head_channels or channels // options.heads
        self.heads = channels // size if size else 0
        if self.heads < 1 or channels % self.heads or channels != self.heads * size:
            wanted = options.head_channels or options.heads
            what = "channels per attention head" if options.head_channels else "attention heads"
            raise ValueError(f"{channels} channels do not divide into {wanted} {what}.")
        self.options = options
        self.norm = options.norm(channels)
        self.qkv = conv(channels, 3 * channels, kernel=1)  # rows: all of q, of k, of v
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
        return self.options.scaled(x + h)


class ResidualBlock(nn.Module):
    """norm, SiLU, (resample,) conv, + modulation, norm, SiLU, dropout, conv, + skip, (attention).

    x (B, inputs, H, W), modulation (B, modulation_channels) -> (B, outputs, H', W'), with H' = 2H
    for direction "up" and H/2 for "down", as in BigGAN (1809.11096). The modulation is this
    block's share of one linear map of the noise embedding, which the network computes at once.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        options: BlockOptions,
        direction: str | None = None,
        attention: bool = False,
    ):
        super().__init__()
        self.options = options
        self.modulation_channels = outputs * (2 if options.modulation == "scale_shift" else 1)
        self.resample = nn.Identity() if direction is None else Resample(direction, options.taps)
        self.norm0 = options.norm(inputs)
        self.conv0 = conv(inputs, outputs)
        self.norm1 = options.norm(outputs)
        self.dropout = nn.Dropout(options.dropout)
        self.conv1 = conv(outputs, outputs, scale=0.0)
        changes = inputs != outputs or (direction is not None and options.skip_conv)
        self.skip = conv(inputs, outputs, kernel=1) if changes else nn.Identity()
        self.attention = AttentionBlock(outputs, options) if attention else None

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        h = self.conv0(self.resample(normalized(self.norm0, x)))
        modulation = modulation[:, :, None, None]
        if self.options.modulation == "scale_shift":
            scale, shift = modulation.chunk(2, dim=1)
            h = F.silu(torch.addcmul(shift, self.norm1(h), 1 + scale))
        else:
            h = normalized(self.norm1, h + modulation)
        h = self.conv1(self.dropout(h))
        h = self.options.scaled(self.skip(self.resample(x)) + h)
        return h if self.attention is None else self.attention(h)
