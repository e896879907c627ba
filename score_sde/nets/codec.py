"""Between pixels and latents: an autoencoder, and the affine map that standardises its latents.

    z = (m - shift) * scale,    x = decoder(z / scale + shift)

with m drawn from the encoder's N(mean, std^2). A process runs on z; whoever has the codec has
everything that turns its samples into pictures (2112.10752, section 3).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from score_sde.checks import UserError


class Moments(NamedTuple):
    """Of the latents that an encoder finds in x, before scale and shift; each (B, *latent)."""

    mean: Tensor
    std: Tensor


class Autoencoder(Protocol):
    """What a codec needs of an autoencoder: pixels are those of the model, mostly in [-1, 1]."""

    def moments(self, x: Tensor) -> Moments:
        """Mean and standard deviation of the latents of x (B, C, H, W)."""

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, C, H, W)."""


class Codec(nn.Module):
    """An autoencoder with the scale and shift of its latents.

    shift, scale: numbers, or one for each channel of the latents (C,).
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        autoencoder: Autoencoder,
        shift: Tensor | float = 0.0,
        scale: Tensor | float = 1.0,
    ):
        super().__init__()
        self.autoencoder = autoencoder
        for name, value in (("shift", shift), ("scale", scale)):
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))
        if not bool((self.scale > 0).all() and torch.isfinite(self.scale).all()):
            raise UserError(f"a codec's scale must be positive and finite (got {self.scale}).")

    def _affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        axes = [1] * (like.ndim - 2)
        return tuple(
            (v if v.ndim == 0 else v.view(-1, *axes)).to(like) for v in (self.shift, self.scale)
        )  # type: ignore[return-value]

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents z of pixels x (B, C, H, W); their mean without ``noise``, standard normal."""
        mean, std = self.autoencoder.moments(x)
        return self.standardise(mean if noise is None else mean + std * noise.to(mean))

    def standardise(self, latents: Tensor) -> Tensor:
        """Raw latents of the autoencoder as the process sees them."""
        shift, scale = self._affine(latents)
        return (latents - shift) * scale

    def decode(self, z: Tensor) -> Tensor:
        """Pixels of latents z; differentiable, so that a measurement of pixels is one of z."""
        shift, scale = self._affine(z)
        return self.autoencoder.decode(z / scale + shift)
