"""Data of discrete levels, such as the 256 of pixels: what a level is worth, and a density of them.

Levels lie scale/(levels - 1) apart from low to low + scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from score_sde.checks import UserError, checked
from score_sde.noise import SeededNoise, other_stream
from score_sde.ode.flow import work_dtype
from score_sde.processes.gaussians import log_normal


@dataclass(frozen=True)
class Decoder:
    """log p(x_0 | x_t) of a Gaussian around what was denoised; of data without levels, its density.

    levels: None for those. low, scale: where levels begin and how far they reach.
    """

    levels: int | None
    low: float
    scale: float

    def check(self, x: Tensor) -> None:
        """UserError unless x lies on the levels it is said to have."""
        if self.levels is None:
            return
        index = (x.double() - self.low) / self.scale * (self.levels - 1)
        if (
            float((index - index.round()).abs().max()) > 0.02
            or float(index.min()) < -0.02
            or float(index.max()) > self.levels - 0.98
        ):
            raise UserError(
                f"x is not on {self.levels} levels from {self.low} to {self.low + self.scale}: "
                "give the data as they are, not dequantised, or levels=None."
            )

    def log_prob(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """log p(x) (B,) under N(mean, std^2)."""
        if self.levels is None:
            return log_normal(x, mean, std)
        return log_level_probability(x, mean, std, self.levels, self.low, self.scale)


def log_level_probability(
    x: Tensor, mean: Tensor, std: Tensor, levels: int, low: float, scale: float
) -> Tensor:
    """log of N(mean, std^2)'s mass in the level of x, summed, (B,) (2006.11239, eq. 13).

    The first and the last level reach out to infinity.
    """
    half = 0.5 * scale / (levels - 1)
    upper, lower = (x + half - mean) / std, (x - half - mean) / std
    # log(Phi(b) - Phi(a)), mirrored to the tail where the difference keeps its digits.
    flip = lower > 0
    a, b = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    log_b, log_a = torch.special.log_ndtr(b), torch.special.log_ndtr(a)
    inside = log_b + torch.log(-torch.expm1((log_a - log_b).clamp(max=-1e-300)))
    first = torch.special.log_ndtr(upper)
    last = torch.special.log_ndtr(-lower)
    mass = torch.where(x <= low + half, first, torch.where(x >= low + scale - half, last, inside))
    return mass.flatten(1).sum(1)


@checked
def dequantize(
    x: Tensor, levels: int, low: float, scale: float, seeds: Sequence[int], repeat: int = 0
) -> Tensor:
    """Levels x (B, ...) from low to low + scale, each spread evenly over its cell (1511.01844).

    The density of the result bounds the probability of the level: log P >= E log p + log(cell).
    Cells are scale/levels wide and fill [low, low + scale]. repeat: which of several draws.
    """
    source = SeededNoise(other_stream(seeds, 2 * repeat), x.shape[1:], torch.float32, "cpu")
    u = torch.special.ndtr(source.draw().double()).clamp(0, 1 - 1e-7).to(x.device).to(work_dtype(x))
    index = ((x.to(u) - low) / scale * (levels - 1)).round()
    return (low + scale * (index + u) / levels).to(x.dtype)
