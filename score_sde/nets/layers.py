"""The layers that U-Nets of this field are made of: embeddings, norms, resampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

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


Layer = TypeVar("Layer", nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Conv: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}


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


def conv(
    inputs: int, outputs: int, kernel: int = 3, scale: float = 1.0, dims: int = 2
) -> Any:  # one of CONVOLUTIONS
    """A same-size convolution over ``dims`` axes of space, initialised."""
    layer: Any = CONVOLUTIONS[dims](inputs, outputs, kernel, padding=kernel // 2)
    return initialize(layer, scale)


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


def spread(modulation: Tensor, x: Tensor) -> Tensor:
    """(B, C) as it broadcasts against features x (B, C, ...)."""
    return modulation.reshape(*modulation.shape, *[1] * (x.ndim - 2))


def space_to_depth(x: Tensor, factor: int) -> Tensor:
    """(B, C, H, W) to (B, C factor^2, H/factor, W/factor), likewise in one and three dimensions."""
    if factor == 1 or x.ndim == 4:
        return x if factor == 1 else F.pixel_unshuffle(x, factor)
    for axis in range(2, x.ndim):  # the last axis of space varies fastest among the channels
        x = x.unflatten(axis, (-1, factor)).movedim(axis + 1, 2).flatten(1, 2)
    return x


def depth_to_space(x: Tensor, factor: int) -> Tensor:
    """The inverse of `space_to_depth`."""
    if factor == 1 or x.ndim == 4:
        return x if factor == 1 else F.pixel_shuffle(x, factor)
    for axis in reversed(range(2, x.ndim)):
        x = x.unflatten(1, (-1, factor)).movedim(2, axis + 1).flatten(axis, axis + 1)
    return x


FILTERS: dict[int, tuple[Any, Any, Any]] = {  # convolution, its transpose, the mean of halves
    1: (F.conv1d, F.conv_transpose1d, F.avg_pool1d),
    2: (F.conv2d, F.conv_transpose2d, F.avg_pool2d),
    3: (F.conv3d, F.conv_transpose3d, F.avg_pool3d),
}


def filtered(
    x: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)
) -> Tensor:
    """x (B, C, H, W) with up - 1 zeros after each pixel, padded, convolved, every down-th kept.

    kernel (n, n); pad counts pixels (before, after) on all axes and crops where negative. A true
    convolution: the kernel is flipped (upfirdn2d of 1912.04958's code). Signals (B, C, L) and
    volumes (B, C, D, H, W) likewise, with a kernel of as many axes.
    """
    channels, n, dims = x.shape[1], kernel.shape[0], kernel.ndim
    convolve, transposed, _ = FILTERS[dims]
    weight = kernel.to(x.dtype).expand(channels, 1, *kernel.shape)
    if up == 1:
        flipped = weight.flip(tuple(range(2, 2 + dims)))
        return convolve(F.pad(x, pad * dims), flipped, stride=down, groups=channels)
    grown = transposed(x, weight, stride=up, groups=channels)
    before, after = pad[0] - (n - 1), up - 1 + pad[1] - (n - 1)
    kept = (slice(None), slice(None), *[slice(None, None, down)] * dims)
    return F.pad(grown, (before, after) * dims)[kept]


class Resample(nn.Module):
    """x (B, C, H, W) at twice ("up") or half ("down") its height and width, through a filter.

    taps: the filter along each axis; (1, 1) is nearest neighbours up and the mean of four down,
        (1, 3, 3, 1) the smooth one of NCSN++ (2011.13456, appendix H). dims: axes of space.
    """

    kernel: Tensor

    def __init__(self, direction: str, taps: tuple[int, ...] = (1, 1), dims: int = 2):
        super().__init__()
        if len(taps) < 2 or not sum(taps) > 0:
            raise UserError(f"taps {tuple(taps)}: at least two numbers of positive sum.")
        self.direction, self.taps, self.dims = direction, tuple(taps), dims
        row = torch.tensor(self.taps, dtype=torch.float32)
        kernel = row
        for _ in range(dims - 1):
            kernel = kernel[..., None] * row
        kernel = kernel / row.sum() ** dims
        self.register_buffer(
            "kernel", kernel * (2**dims if direction == "up" else 1), persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        extra = len(self.taps) - 2
        if self.direction == "up":
            if self.taps == (1, 1):
                return F.interpolate(x, scale_factor=2, mode="nearest")
            return filtered(x, self.kernel, up=2, pad=((extra + 1) // 2 + 1, extra // 2))
        if self.taps == (1, 1):
            return FILTERS[self.dims][2](x, 2)
        return filtered(x, self.kernel, down=2, pad=((extra + 1) // 2, extra // 2))


class FilteredConv(nn.Module):
    """A 3 x 3 convolution of every other pixel of a filtered x: (B, C, H, W) to half the size."""

    kernel: Tensor

    def __init__(self, inputs: int, outputs: int, taps: tuple[int, ...], dims: int = 2):
        super().__init__()
        self.register_buffer("kernel", Resample("down", taps, dims).kernel, persistent=False)
        self.conv = conv(inputs, outputs, dims=dims)
        self.conv.stride, self.conv.padding = (2,) * dims, (0,) * dims

    def forward(self, x: Tensor) -> Tensor:
        extra = self.kernel.shape[0]  # (taps - 2) of the filter and 2 of the convolution
        return self.conv(filtered(x, self.kernel, pad=((extra + 1) // 2, extra // 2)))


def initialize_rows(layer: nn.Linear, shares: list[int]) -> None:
    """Initialise each share of the rows as the layer of its own that it stands for."""
    for rows in layer.weight.detach().split(shares):
        if len(rows):
            bound = (6 / (rows.shape[0] + rows.shape[1])) ** 0.5
            nn.init.uniform_(rows, -bound, bound)
    nn.init.zeros_(layer.bias)


def check_states(net: nn.Module, x: Tensor, shape: Sequence[int]) -> None:
    """UserError for states that a network was not built for. shape: of one of them."""
    if tuple(x.shape[1:]) != tuple(shape):
        wanted = ", ".join(map(str, shape))
        raise UserError(
            f"this {type(net).__name__} was built for states (B, {wanted}); got {tuple(x.shape)}."
        )


def check_untold(net: nn.Module, **told: object) -> None:
    """UserError for what a network is told and was not built for; None is not told."""
    for name, value in told.items():
        if value is not None:
            raise UserError(f"this {type(net).__name__} was built without {name}; drop it.")


def check_divides(size: int, parts: int, what: str) -> None:
    """UserError unless channels, or a width, divide into so many parts."""
    if size % parts:
        raise UserError(f"{size} channels do not divide into {parts} {what}.")
