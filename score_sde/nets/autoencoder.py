"""A convolutional autoencoder of pictures with Gaussian latents (2112.10752, section 3.1).

    encoder   x -> (mean, log variance) of a latent at 1/(patch 2^(levels - 1)) of the size
    decoder   latent -> x
    loss      mean |x - y| + mean (x - y)^2 + weight * KL(q(z | x) || N(0, 1)) / pixels

The weight is small: latents are kept bounded, not independent; it is the diffusion that learns
their law. `presets.AUTOENCODERS` has one for CPUs and the published sizes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_sde.checks import Depth, Size, Sizes, UserError, checked, memory_for, named
from score_sde.nets.codec import Moments
from score_sde.nets.layers import check_states, conv, group_norm
from score_sde.nets.presets import AUTOENCODERS

LOWEST, HIGHEST = -30.0, 20.0  # of a log variance, beyond which exp loses its meaning


class Block(nn.Module):
    """x + conv(act(conv(act(x)))), both after group norms; (B, C, H, W) to ``outputs`` channels."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm0, self.conv0 = _norm(inputs), conv(inputs, outputs)
        self.norm1, self.conv1 = _norm(outputs), conv(outputs, outputs, scale=0.1)
        self.skip = conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        return self.skip(x) + self.conv1(F.silu(self.norm1(h)))


class Attention(nn.Module):
    """x + attention over all places, of one head."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        self.qkv, self.out = conv(channels, 3 * channels, 1), conv(channels, channels, 1, scale=0.1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (u.flatten(2).mT[:, None] for u in self.qkv(self.norm(x)).chunk(3, 1))
        h = F.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())
        return x + self.out(h[:, 0].mT.unflatten(2, x.shape[2:]))


class Up(nn.Module):
    """Twice the height and width by repeating pixels, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _norm(channels: int) -> nn.GroupNorm:
    return group_norm(channels, group_channels=4)


class KLAutoencoder(nn.Module):
    """Pictures x (B, channels, H, W) to latents (B, latent_channels, H/f, W/f) and back.

    channels, size: what the pictures are; size is (H, W). f is patch * 2^(levels - 1).
    width, multipliers: channels of level i are width * multipliers[i].
    blocks, decoder_blocks: residual blocks a level. attention: at the lowest level.
    patch: space to depth by this factor before the first convolution, and back after the last.

    Raises UserError when f does not divide H and W.
    """

    @checked("net")
    @memory_for("net")
    def __init__(
        self,
        channels: Size,
        size: tuple[Size, Size],
        latent_channels: Size = 4,
        width: Size = 32,
        multipliers: Sizes = (1, 2),
        blocks: Depth = 1,
        decoder_blocks: Depth = 2,
        attention: bool = False,
        patch: Size = 2,
    ):
        super().__init__()
        self.factor = patch * 2 ** (len(multipliers) - 1)
        if any(side % self.factor for side in size):
            raise UserError(
                f"pictures of {size[0]}x{size[1]} do not divide by {self.factor}, the factor of "
                "patch and multipliers: take another size, or fewer levels."
            )
        self.channels, self.size, self.patch = channels, tuple(size), patch
        self.latent_shape = (latent_channels, *(side // self.factor for side in size))
        widths = [width * multiplier for multiplier in multipliers]
        low = widths[-1]
        middle = [Block(low, low), *([Attention(low), Block(low, low)] if attention else [])]

        layers: list[nn.Module] = [conv(channels * patch**2, widths[0])]
        for i, outputs in enumerate(widths):
            inputs = widths[max(i - 1, 0)]
            layers += [Block(inputs if j == 0 else outputs, outputs) for j in range(blocks)]
            if i < len(widths) - 1:
                layers.append(nn.Conv2d(outputs, outputs, 3, stride=2, padding=1))
        layers += [*middle, _norm(low), nn.SiLU(), conv(low, 2 * latent_channels)]
        self.encoder = nn.Sequential(*layers)

        middle = [Block(low, low), *([Attention(low), Block(low, low)] if attention else [])]
        layers = [conv(latent_channels, low), *middle]
        for i, outputs in reversed(list(enumerate(widths))):
            inputs = widths[min(i + 1, len(widths) - 1)]
            layers += [Block(inputs if j == 0 else outputs, outputs) for j in range(decoder_blocks)]
            if i > 0:
                layers.append(Up(outputs))
        layers += [_norm(widths[0]), nn.SiLU(), conv(widths[0], channels * patch**2)]
        self.decoder = nn.Sequential(*layers)

    @classmethod
    def preset(cls, name: str, **options: Any) -> KLAutoencoder:
        """Settings of `presets.AUTOENCODERS` by name, with changes."""
        return cls(**{**named(AUTOENCODERS, name, "the preset"), **options})

    def moments(self, x: Tensor) -> Moments:
        """Mean and standard deviation of the latents of x, each (B, *latent_shape)."""
        check_states(self, x, (self.channels, *self.size))
        inputs = F.pixel_unshuffle(x, self.patch)
        mean, log_variance = self.encoder(inputs).chunk(2, 1)
        return Moments(mean, torch.exp(0.5 * log_variance.clamp(LOWEST, HIGHEST)))

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, channels, H, W) of latents (B, *latent_shape)."""
        return F.pixel_shuffle(self.decoder(latents), self.patch)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Moments]:
        """The picture that comes back from a latent drawn with ``noise``, and the moments."""
        found = self.moments(x)
        z = found.mean if noise is None else found.mean + found.std * noise
        return self.decode(z), found


def kl_to_normal(moments: Moments) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) in nats, summed over a sample's latents, (B,)."""
    mean, std = moments
    terms = 0.5 * (mean**2 + std**2 - 1) - torch.log(std)
    return terms.flatten(1).sum(1)


def psnr(square_error: Tensor, span: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio in dB of mean squared errors, for values that span ``span``."""
    return 10 * torch.log10(span**2 / square_error)


def latent_statistics(moments: Moments) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of latents drawn from these moments, a channel each (C,).

    Over the set, with the posterior's own variance: Var z = Var mean + E std^2.
    """
    axes = [0, *range(2, moments.mean.ndim)]
    centre, spread = moments.mean.double(), moments.std.double()
    mean = centre.mean(axes)
    variance = centre.var(axes, unbiased=False) + spread.square().mean(axes)
    return mean.float(), variance.sqrt().clamp(min=math.sqrt(1e-12)).float()
