"""The Gaussians that a chain and its reverse are made of: densities, distances and spreads."""

from __future__ import annotations

import math

from torch import Tensor

from score_sde.processes.expand import expand
from score_sde.processes.process import SDE


def gaussian_kl(mean: Tensor, std: Tensor, mean2: Tensor, std2: Tensor) -> Tensor:
    """KL( N(mean, std^2) || N(mean2, std2^2) ) summed over coordinates, (B,)."""
    ratio = (std / std2) ** 2
    each = ratio + ((mean - mean2) / std2) ** 2 - 1 - ratio.log()
    return 0.5 * each.expand_as(mean).flatten(1).sum(1)


def log_normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(x; mean, std^2) summed over coordinates, (B,)."""
    each = -0.5 * ((x - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)
    return each.expand_as(x).flatten(1).sum(1)


def reverse_std(sde: SDE, s: Tensor, t: Tensor, share: Tensor | float) -> Tensor:
    """Of the reverse step from t to s: beta^v beta~^(1 - v) (2102.09672, eq. 15), as a std.

    share: v, () or like a state (B, ...), which is what comes back.
    """
    high = sde.transition(s, t)[1]
    low = high * sde.sigma(s) / sde.sigma(t)
    if isinstance(share, Tensor) and share.ndim > 0:
        low, high = expand(low, share), expand(high, share)
    return low ** (1 - share) * high**share


def first_stds(sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
    """beta~_2 and beta_1 as stds: what bounds the variance of the first step, where beta~ is 0.

    t: t_1 < t_2 < ... of the chain, float64.
    """
    high = sde.sigma(t[0])
    return (reverse_std(sde, t[0], t[1], 0.0), high) if len(t) > 1 else (high, high)
