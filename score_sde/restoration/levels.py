r"""Noise levels nu from high to low: many where the data decide what they will be.

For Gaussian data any levels do: the steps are exact. What needs short steps is the part of
D = E[x_0 | x] that a Gaussian does not foretell. Its mean square per unit of log nu has a single
hump, about 0.4 of the largest standard deviation of the data, and ends where a state belongs to one
mode only. `humped` places levels by such a hump; `fitted` by that which a few particles met.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

CENTRE, WIDTH, EVEN = 0.35, 1.5, 0.3
"""Of `humped`: where the hump is in units of the largest std, its width in log nu; and the share of
levels that lie evenly in log nu."""


def starting_level(largest_std: float, highest: float) -> float:
    """Where everything is still Gaussian: 5 standard deviations, if the process goes so far."""
    return min(5 * largest_std, highest)


def karras(high: float, low: float, n: int, rho: float = 7.0) -> list[float]:
    """n levels with nu^(1/rho) evenly spaced (2206.00364, eq. 5)."""
    roots = np.linspace(high ** (1 / rho), low ** (1 / rho), n)
    return (roots**rho).tolist()


def humped(high: float, low: float, n: int, largest_std: float) -> list[float]:
    """n levels, dense about `CENTRE` times the largest standard deviation of the data."""
    u = np.linspace(math.log(high), math.log(low), 513)
    hump = 1 / np.cosh((u - math.log(CENTRE * largest_std)) / WIDTH)
    return _place(u, 0.5 * (hump[1:] + hump[:-1]), n)


def fitted(levels: Sequence[float], surprise: Sequence[float], n: int) -> list[float]:
    """n levels with a density like the root of what surprised at each step of other levels.

    surprise: mean square of D less what was foretold, of the steps to levels[1:]. A step of
    length h in log nu errs by about h times its surprise; this density makes the sum least.
    """
    u = np.log(np.array(levels))
    rate = np.sqrt(np.maximum(surprise, 0) / -np.diff(u))
    rate = np.convolve(np.pad(rate, 1, mode="edge"), [0.25, 0.5, 0.25], "valid")
    return _place(u, rate, n)


def _place(u: np.ndarray, rate: np.ndarray, n: int) -> list[float]:
    """n points, `EVEN` of them evenly in u and the others like the rate between points u."""
    h = -np.diff(u)
    total = float((rate * h).sum())
    density = (1 - EVEN) * rate / total + EVEN / h.sum() if total > 0 else 1 / h.sum() + 0 * rate
    reached = np.concatenate([[0.0], np.cumsum(density * h)])
    return np.exp(np.interp(np.linspace(0, reached[-1], n), reached, u)).tolist()
