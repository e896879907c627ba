"""The layers that U-Nets of this field are made of: embeddings, norms, resampling."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_sde.checks import UserError


class SinusoidalEmbedding(nn.Module):
    """sin and cos of the noise label at geometric frequencies from 1 to 1/max_period (2006.11239).

    labels (B,) -> (B, dim), [sin, cos], in float64 for labels in float64 and else in float32;
    made for labels of DDPM's size, 0 to 999.
    endpoint: False leaves the last frequency a step above 1/max_period (2105.05233's code).
    powers: frequencies as powers, as 2206.00364's code has them. The exponentials that everybody
        else takes round otherwise, which shows in the fifth digit of a network's output.
    divide_last: the exponents are divided by their number last, as diffusers' transformers have it.
    """

    def __init__(
        self,
        dim: int,
        max_period: float = 10_000.0,
        endpoint: bool = True,
        powers: bool = False,
        divide_last: bool = False,
    ):
        super().__init__()
        if dim < 4 or dim % 2:
            raise UserError(f"an embedding needs an even dim of at least 4 (got {dim}).")
        self.dim, self.max_period, self.endpoint, self.powers = dim, max_period, endpoint, powers
        self.divide_last = divide_last

    def forward(self, noise_label: Tensor) -> Tensor:
        noise_label, half = _precise(noise_label), self.dim // 2
        steps = torch.arange(half, dtype=noise_label.dtype, device=noise_label.device)
        last = half - self.endpoint
        if self.powers:
            frequencies = (1 / self.max_period) ** (steps / last)
        elif self.divide_last:
            frequencies = torch.exp(steps * -math.log(self.max_period) / last)
        else:
            frequencies = torch.exp(steps * (-math.log(self.max_period) / last))
        angles = noise_label[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], 1)


class FourierEmbedding(nn.Module):
    """sin and cos at fixed random frequencies (2006.10739), for labels like log sigma.

    labels (B,) -> (B, dim). The frequencies are saved, and never trained.
    """

    def __init__(self, dim: int, scale: float = 16.0):
        super().__init__()
        if dim < 2 or dim % 2:
            raise UserError(f"an embedding needs an even dim of at least 2 (got {dim}).")
        self.frequencies = nn.Parameter(torch.randn(dim // 2) * scale, requires_grad=False)

    def forward(self, noise_label: Tensor) -> Tensor:
        angles = _precise(noise_label)[:, None] * self.frequencies * (2 * math.pi)
        return torch.cat([angles.sin(), angles.cos()], 1)


def _precise(noise_label: Tensor) -> Tensor:
    return noise_label if noise_label.dtype == torch.float64 else noise_label.to(torch.float32)


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
        raise UserError(
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
        if len(taps) < 2 or not sum(taps) > 0:
            raise UserError(f"taps {tuple(taps)}: at least two numbers of positive sum.")
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
