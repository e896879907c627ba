"""A U-Net whose features keep unit magnitude by construction (2312.02696, "EDM2").

No norms of activations and no biases: every layer preserves the expected magnitude of what goes in,
so that neither features nor weights can drift while training.

    weights    w / ||w||, a row of each output          silu(x) / 0.596
    sum        ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)
    attention  of queries, keys and values of unit length (cosines)

The weights themselves are brought back to unit length at every training step (`renew`), which makes
the learning rate the relative speed at which they turn.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_sde.checks import (
    Depth,
    Few,
    Fraction,
    Size,
    Sizes,
    UserError,
    checked,
    memory_for,
    named,
)
from score_sde.nets.presets import EDM2

SILU = 0.596  # E[silu(x)^2]^(1/2) of standard normal x
LARGEST = 256.0  # to which features are clamped, for half precision
TINY = 1e-4


def unit(x: Tensor, axes: int | tuple[int, ...] = 1) -> Tensor:
    """x with a root mean square of 1 over these axes, in the dtype of x."""
    square = x.float().square().mean(axes, keepdim=True)
    return x / (square.sqrt() + TINY).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """silu of unit magnitude."""
    return F.silu(x) / SILU


def mixed(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """(1 - t) a + t b, of unit magnitude where a and b are uncorrelated and of it (eq. 88)."""
    return a.lerp(b, t) / math.hypot(1 - t, t)


def joined(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Channels of a and of b, which contribute as 1 - t to t whatever their numbers (eq. 103)."""
    n, m = a.shape[1], b.shape[1]
    total = math.sqrt((n + m) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (total * (1 - t) / n**0.5), b * (total * t / m**0.5)], 1)


class UnitLayer(nn.Module):
    """A convolution (kernel 1 or 3) or, with kernel 0, a linear map, of weights of unit rows."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *([kernel] * 2 if kernel else [])))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        fan = self.weight[0].numel()
        w = self.weight.float()
        w = unit(w, tuple(range(1, w.ndim))) * (gain / fan**0.5)
        w = w.to(x.dtype)
        return F.conv2d(x, w, padding=self.kernel // 2) if self.kernel else x @ w.mT

    @torch.no_grad()
    def renew(self) -> None:
        """Bring the weights themselves to unit rows, in place (section 2.3)."""
        self.weight.copy_(unit(self.weight, tuple(range(1, self.weight.ndim))))


class UnitFourier(nn.Module):
    """sqrt(2) cos(2 pi (f x + phi)) of fixed random f and phi: labels (B,) to (B, dim)."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(dim))
        self.register_buffer("phases", torch.rand(dim))

    def forward(self, noise_label: Tensor) -> Tensor:
        label = noise_label.to(torch.float32)[:, None]
        return (2 * math.pi * (label * self.frequencies + self.phases)).cos() * 2**0.5


class UnitBlock(nn.Module):
    """A residual block with or without attention; (B, inputs, H, W) to (B, outputs, H', W').

    direction: "up", "down" or None. decoder: the resized input is not brought to unit magnitude.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        direction: str | None = None,
        heads: int = 0,
        decoder: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.direction, self.heads, self.decoder, self.dropout = direction, heads, decoder, dropout
        self.skip = UnitLayer(inputs, outputs, 1) if inputs != outputs else None
        self.conv0 = UnitLayer(inputs if decoder else outputs, outputs, 3)
        self.told = UnitLayer(embedding, outputs, 0)
        self.told_gain = nn.Parameter(torch.zeros(()))
        self.conv1 = UnitLayer(outputs, outputs, 3)
        self.qkv = UnitLayer(outputs, 3 * outputs, 1) if heads else None
        self.out = UnitLayer(outputs, outputs, 1) if heads else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        if self.direction == "down":
            x = F.avg_pool2d(x, 2)
        elif self.direction == "up":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        if not self.decoder:
            x = unit(x if self.skip is None else self.skip(x))
        h = self.conv0(silu(x))
        share = self.told(embedding, self.told_gain) + 1
        h = silu(h * share[:, :, None, None].to(h.dtype))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        if self.decoder and self.skip is not None:
            x = self.skip(x)
        x = mixed(x, h, 0.3)
        return (self._attended(x) if self.heads else x).clamp(-LARGEST, LARGEST)

    def _attended(self, x: Tensor) -> Tensor:
        assert self.qkv is not None and self.out is not None
        batch, channels, height, width = x.shape
        parts = self.qkv(x).reshape(batch, 3, self.heads, channels // self.heads, -1)
        q, k, v = (part.mT for part in unit(parts, 3).unbind(1))
        h = F.scaled_dot_product_attention(q, k, v)
        return mixed(x, self.out(h.mT.reshape(batch, channels, height, width)), 0.3)


class MagnitudeUNet(nn.Module):
    """`net(x, noise_label, class_labels)`: (B, channels, H, W) to the same, for target F.

    The noise label is log(sigma)/4, as `ScoreModel` gives with time_input="log_sigma".
    width, multipliers: channels of level i are width * multipliers[i]. blocks: a level of the
    encoder; the decoder has one more. attention: heights of the levels that have it.
    classes, class_dropout: as of `UNet`. log_variance: the network also learns how uncertain it is
    at each noise label, for
        loss.uncertainty (2312.02696, appendix A.2).

    Raises UserError when H or W does not divide by 2^(levels - 1).
    """

    knows_nothing = True  # rows of `scores.nothing_like` are no condition

    @checked("net")
    @memory_for("net")
    def __init__(
        self,
        channels: Size,
        size: tuple[Size, Size],
        width: Size = 192,
        multipliers: Sizes = (1, 2, 3, 4),
        blocks: Depth = 3,
        attention: tuple[Size, ...] = (16, 8),
        head_channels: Size = 64,
        dropout: Fraction = 0.0,
        classes: Few = 0,
        class_dropout: Fraction = 0.0,
        log_variance: bool = False,
    ):
        super().__init__()
        factor = 2 ** (len(multipliers) - 1)
        if any(side % factor for side in size):
            raise UserError(f"{size[0]}x{size[1]} does not divide by {factor}; use fewer levels.")
        self.classes, self.class_dropout = classes, class_dropout
        widths = [width * multiplier for multiplier in multipliers]
        told = max(widths)
        self.fourier, self.noise = UnitFourier(width), UnitLayer(width, told, 0)
        self.label = UnitLayer(classes, told, 0) if classes else None
        self.uncertain = UnitLayer(128, 1, 0) if log_variance else None
        self.uncertain_fourier = UnitFourier(128) if log_variance else None
        more: dict[str, Any] = {"dropout": dropout}
        self.conv_in = UnitLayer(channels + 1, widths[0], 3)  # and a channel of ones, for biases
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        h, kept = widths[0], [widths[0]]
        for i, outputs in enumerate(widths):
            heads = outputs // head_channels if size[0] // 2**i in attention else 0
            if i > 0:
                self.encoder.append(UnitBlock(h, h, told, "down", **more))
                kept.append(h)
            for _ in range(blocks):
                self.encoder.append(UnitBlock(h, outputs, told, heads=heads, **more))
                h = outputs
                kept.append(h)
        more["decoder"] = True
        for i, outputs in reversed(list(enumerate(widths))):
            heads = outputs // head_channels if size[0] // 2**i in attention else 0
            if i == len(widths) - 1:
                deep = h // head_channels
                self.middle = nn.ModuleList(
                    [UnitBlock(h, h, told, heads=deep, **more), UnitBlock(h, h, told, **more)]
                )
            else:
                self.decoder.append(UnitBlock(h, h, told, "up", **more))
            for _ in range(blocks + 1):
                self.decoder.append(UnitBlock(h + kept.pop(), outputs, told, heads=heads, **more))
                h = outputs
        self.conv_out, self.gain = UnitLayer(h, channels, 3), nn.Parameter(torch.zeros(()))

    @classmethod
    def preset(
        cls, name: str, channels: int, size: tuple[int, int], **changes: Any
    ) -> MagnitudeUNet:
        """A published size by name: xs, s, m, l, xl or xxl, with changes."""
        return cls(channels, size, **{**named(EDM2, name, "the preset"), **changes})

    def embed(self, noise_label: Tensor, class_labels: Tensor | None) -> Tensor:
        """The embedding (B, D) of all labels."""
        h = self.noise(self.fourier(noise_label))
        if self.label is not None:
            rows = h.new_zeros(len(h), self.classes)
            if class_labels is not None:
                known = class_labels >= 0  # -1: without a class, `scores.nothing_like`
                rows[known, class_labels[known]] = self.classes**0.5
            h = mixed(h, self.label(rows), 0.5)
        return silu(h)

    def log_variance(self, noise_label: Tensor) -> Tensor:
        """u (B,): log of the mean squared error that the network expects at these labels."""
        if self.uncertain is None or self.uncertain_fourier is None:
            raise UserError("this network was built with log_variance=False.")
        return self.uncertain(self.uncertain_fourier(noise_label))[:, 0]

    def forward(self, x: Tensor, noise_label: Tensor, class_labels: Tensor | None = None) -> Tensor:
        if self.training:
            for part in self.modules():
                if isinstance(part, UnitLayer):
                    part.renew()
        told = self.embed(noise_label, class_labels)
        h = self.conv_in(torch.cat([x, torch.ones_like(x[:, :1])], 1))
        kept = [h]
        for block in self.encoder:
            h = block(h, told)
            kept.append(h)
        for block in self.middle:
            h = block(h, told)
        for block in self.decoder:
            h = block(h if block.direction else joined(h, kept.pop()), told)
        return self.conv_out(h, self.gain)
