"""The blocks of U-Nets: residual blocks, attention, what lies between levels, and pyramids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_sde.checks import UserError
from score_sde.nets.layers import FilteredConv, Resample, conv, group_norm, normalized, spread


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
    taps: see `Resample`. dims: axes of space, 1 for signals, 2 for images, 3 for volumes.
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
    dims: int = 2

    def conv(self, inputs: int, outputs: int, kernel: int = 3, scale: float = 1.0) -> Any:
        """A convolution of these options."""
        return conv(inputs, outputs, kernel, scale, self.dims)

    def resample(self, direction: str) -> Resample:
        """To twice ("up") or half ("down") the size."""
        return Resample(direction, self.taps, self.dims)

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

    def __init__(self, channels: int, direction: str, kind: str, options: BlockOptions):
        super().__init__()
        strided, dims = kind != "plain" and direction == "down", options.dims
        self.resample = nn.Identity() if strided else options.resample(direction)
        self.pad = (0, 1) * dims if strided and kind == "conv" else None
        self.conv = nn.Identity() if kind == "plain" else options.conv(channels, channels)
        if strided:
            self.conv.stride = (2,) * dims
            self.conv.padding = (0,) * dims if self.pad else (1,) * dims

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
            raise UserError(f"{channels} channels do not divide into {wanted} {what}.")
        self.options = options
        self.norm = options.norm(channels)
        self.qkv = options.conv(channels, 3 * channels, kernel=1)  # rows: all of q, of k, of v
        self.proj = options.conv(channels, channels, kernel=1, scale=0.0)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        tokens = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, -1)
        query, key, value = tokens.transpose(-1, -2).unbind(1)  # each (B, heads, places, C / heads)
        if x.device.type == "cpu" and torch.is_grad_enabled():
            # The backward pass of the fused kernel is slower than this on CPUs.
            weights = (query * query.shape[-1] ** -0.5) @ key.mT
            h = weights.softmax(-1).to(value.dtype) @ value
        else:
            h = F.scaled_dot_product_attention(query, key, value)
        h = self.proj(h.transpose(-1, -2).reshape(x.shape))
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
        self.resample = nn.Identity() if direction is None else options.resample(direction)
        self.norm0 = options.norm(inputs)
        self.conv0 = options.conv(inputs, outputs)
        self.norm1 = options.norm(outputs)
        self.dropout = nn.Dropout(options.dropout)
        self.conv1 = options.conv(outputs, outputs, scale=0.0)
        changes = inputs != outputs or (direction is not None and options.skip_conv)
        self.skip = options.conv(inputs, outputs, kernel=1) if changes else nn.Identity()
        self.attention = AttentionBlock(outputs, options) if attention else None

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        h = self.conv0(self.resample(normalized(self.norm0, x)))
        modulation = spread(modulation, h)
        if self.options.modulation == "scale_shift":
            scale, shift = modulation.chunk(2, dim=1)
            h = F.silu(torch.addcmul(shift, self.norm1(h), 1 + scale))
        else:
            h = normalized(self.norm1, h + modulation)
        h = self.conv1(self.dropout(h))
        h = self.options.scaled(self.skip(self.resample(x)) + h)
        return h if self.attention is None else self.attention(h)


class InputPyramid(nn.Module):
    """The image at the next level, and what of it joins the features there (2011.13456, app. H).

    image (B, P, 2H, 2W), h (B, C, H, W) -> the image at (H, W), and the features. "skip": a 1 x 1
    convolution of the filtered image is added to h, or with combine "cat" comes before it as 2 C
    channels. "residual": the image is itself convolved, and its sum with h is both results.
    """

    def __init__(
        self, image: int, channels: int, kind: str, combine: str, options: BlockOptions
    ):  # fmt: skip
        super().__init__()
        self.kind, self.combine, self.options = kind, combine, options
        if kind == "residual":
            self.conv: nn.Module = FilteredConv(image, channels, options.taps, options.dims)
        else:
            self.resample = options.resample("down")
            self.conv = options.conv(image, channels, kernel=1)

    def forward(self, image: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "residual":
            h = self.options.scaled(self.conv(image) + h)
            return h, h
        image = self.resample(image)
        part = self.conv(image)
        return image, torch.cat([part, h], dim=1) if self.combine == "cat" else part + h


class Output(nn.Module):
    """norm, SiLU, conv: features (B, C, H, W) to an image (B, outputs, H, W)."""

    def __init__(self, channels: int, outputs: int, options: BlockOptions):
        super().__init__()
        self.norm = options.norm(channels)
        self.conv = options.conv(channels, outputs, scale=0.0)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(normalized(self.norm, h))
