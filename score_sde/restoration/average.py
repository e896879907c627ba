r"""E[x_0 | y] from independent draws, nearer than their mean and free of cost.

On the way down D_i = E[x_0 | x_i, y] is a martingale: at every level its mean over draws is
E[x_0 | y]. The later the level, the more has been decided, by chance; the earlier, the less right
is what a method makes of D_i. With x the mean of n draws x_0 and d_i that of their D_i,

    d_i + w (x - d_i),   w = b^2 / (b^2 + v),   v = tr Cov[x_0 - D_i] / n,   b^2 = |x - d_i|^2 - v,

keeps of the correction x - d_i what its scatter does not explain (James and Stein 1961; w = 0 where
b^2 < 0). By the same numbers its expected squared error is tr Cov[D_i] / n + b^2 v / (b^2 + v), and
the level where that is least is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

KEPT = 12
"""Levels, at most, of which means are kept."""


class Course:
    """What is known of E[x_0 | y] on the way down of a batch of draws: D_y of some levels."""

    def __init__(self) -> None:
        self.means: list[Tensor] = []

    def add(self, i: int, count: int, D_y: Tensor) -> None:
        """D_y (B, D) of level i of ``count``; of every few levels, and of the last."""
        every = -(-count // KEPT)
        if (count - 1 - i) % every == 0:
            self.means.append(D_y.float())


@dataclass(frozen=True)
class Moments:
    """Sums over draws of D_i and x_0 - D_i at L levels, (2, L, D), and of their squares (2, L)."""

    count: int
    sums: Tensor
    squares: Tensor

    def __add__(self, other: Moments) -> Moments:
        count, sums = self.count + other.count, self.sums + other.sums
        return Moments(count, sums, self.squares + other.squares)

    def mean(self) -> Tensor:
        """The estimate of E[x_0 | y], (D,)."""
        n, mean = self.count, self.sums / self.count
        size = mean.square().sum(-1)
        scatter = (self.squares / n - size).clamp_min(0) / max(1, n - 1)  # tr Cov / n
        early, late = scatter
        bias = (size[1] - late).clamp_min(0)
        share = bias / (bias + late).clamp_min(1e-300)
        best = int((early + share * late).argmin())
        return mean[0, best] + share[best] * mean[1, best]


class Averages:
    """The estimates of groups of draws that come in batches, one group after another."""

    def __init__(self, sizes: Sequence[int]):
        self.missing, self.means = list(sizes), list[Tensor]()
        self._open: Moments | None = None

    def add(self, course: Course, x: Tensor) -> None:
        """The next draws x (B, D)."""
        D = torch.stack(course.means or [x], 1)  # (B, L, D); without any, the draws themselves
        at = 0
        while at < len(x):
            group = len(self.means)
            end = min(at + self.missing[group], len(x))
            early = D[at:end].to(x)
            both = torch.stack([early, x[at:end, None] - early], 1)
            found = Moments(end - at, both.sum(0), both.square().sum((0, 3)))
            self._open = found if self._open is None else self._open + found
            self.missing[group] -= end - at
            if not self.missing[group]:
                self.means.append(self._open.mean())
                self._open = None
            at = end
