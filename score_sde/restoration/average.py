r"""E[x_0 | y] from independent draws, nearer than their mean and almost free of cost.

*The same noise on Gaussian data.* A draw is made of noise that is known and has the mean 0. With
P = C^{-1} + A' S_y^{-1} A = V diag(p) V' (`spectral`), Gaussian data would have answered it by

    z' = (k + (1 - k) u / nu^2) z + V' n,   c = V (u / nu^2) z,   u = 1 / (p + 1/nu^2),

n the noise of the step from nu to s, k = (s/nu)^2. c is what it does to D_y = E[x_0 | x, y], and
has the mean 0 whatever the data: D_y - beta c has the mean of D_y, and least scatter where beta is
the regression of D_y on c over the draws.

*Earlier levels.* On the way down D_y is a martingale: at every level its mean over draws is
E[x_0 | y]. The later the level, the more has been decided, by chance; the earlier, the less right
is what a method makes of D_y. With x the mean of n draws x_0 and d that of D_y at a level,

    d + w (x - d),   w = b^2 / (b^2 + v),   v = tr Cov[x_0 - D_y] / n,   b^2 = |x - d|^2 - v/2,

keeps of the correction x - d what its scatter does not explain (James and Stein 1961 have v for
v/2, which believes more of early levels than networks deserve; w = 0 where b^2 < 0). By the same
numbers its expected squared error is tr Cov[D_y] / n + b^2 v / (b^2 + v), and the level where that
is least is taken. Both d and x - d are regressed on what the noise would have made of them first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from score_sde.restoration.system import System

KEPT = 12
"""Levels, at most, of which means are kept."""


class Course:
    """A batch of draws on the way down: D_y of some levels, and c of the same noise there."""

    def __init__(self) -> None:
        self.means, self.controls = list[Tensor](), list[Tensor]()
        self._system: System | None = None
        self._z = self._last = torch.zeros(())

    def start(self, system: System, off: Tensor) -> None:
        """off (B, D): the noise of the first state."""
        if system.dense and system.residuals is None:
            self._system, self._z = system, off @ system.spectrum().axes

    def add(self, i: int, count: int, nu: float, D_y: Tensor, x0: Tensor) -> None:
        """D_y (B, D) of level i of ``count``, and x_0 there; kept of some levels, and the last."""
        if (count - 1 - i) % -(-count // KEPT):
            return
        c = torch.zeros_like(D_y)
        if self._system is not None:
            spectrum = self._system.spectrum()
            c = (spectrum.left(nu) / nu**2 * self._z) @ spectrum.axes.mT
        self.means.append(D_y.float())
        self.controls.append(c.float())
        self._last = (c + x0 - D_y).float()

    def step(self, nu: float, s: float, noise: Tensor) -> None:
        """noise (B, D): what was added from nu to s."""
        if self._system is not None:
            spectrum, k = self._system.spectrum(), (s / nu) ** 2
            self._z = (k + (1 - k) * spectrum.left(nu) / nu**2) * self._z + noise @ spectrum.axes

    def moments(self, x: Tensor, rows: slice) -> Moments:
        """Of some rows of the draws x (B, D)."""
        if not self.means:  # of a sampler that has no D_y: the draws themselves
            self.means, self.controls = [x.float()], [torch.zeros_like(x).float()]
            self._last = self.controls[0]
        x, last = x[rows], self._last[rows].to(x)
        sums, products = [], []
        for D, c in zip(self.means, self.controls, strict=True):
            D, c = D[rows].to(x), c[rows].to(x)
            first, second = torch.stack([D, x - D]), torch.stack([c, last - c])
            sums.append(torch.stack([first.sum(1), second.sum(1)]))
            both = (first * first, first * second, second * second)
            products.append(torch.stack([product.sum((1, 2)) for product in both]))
        return Moments(len(x), torch.stack(sums, 2), torch.stack(products, 2))


@dataclass(frozen=True)
class Moments:
    """Sums over draws of D_y and x_0 - D_y, and of the same of c, at L levels: (2, 2, L, D).

    products: summed over D, of the first with itself, with c, and of c with itself, (3, 2, L).
    """

    count: int
    sums: Tensor
    products: Tensor

    def __add__(self, other: Moments) -> Moments:
        count, sums = self.count + other.count, self.sums + other.sums
        return Moments(count, sums, self.products + other.products)

    def mean(self) -> Tensor:
        """The estimate of E[x_0 | y], (D,)."""
        n, (mean, control) = self.count, self.sums / self.count
        between = torch.stack([mean * mean, mean * control, control * control]).sum(-1)
        own, both, noise = self.products - n * between
        beta = torch.where(noise > 1e-12 * own, both / noise.clamp_min(1e-300), 0.0)
        scatter = (own - beta * both).clamp_min(0) / max(1, n * (n - 1))  # tr Cov / n
        (early, late), (d, correction) = scatter, mean - beta[..., None] * control
        bias = (correction.square().sum(-1) - late / 2).clamp_min(0)
        share = bias / (bias + late).clamp_min(1e-300)
        best = int((early + share * late).argmin())
        return d[best] + share[best] * correction[best]


class Averages:
    """The estimates of groups of draws that come in batches, one group after another."""

    def __init__(self, sizes: Sequence[int]):
        self.missing, self.means = list(sizes), list[Tensor]()
        self._open: Moments | None = None

    def add(self, course: Course, x: Tensor) -> None:
        """The next draws x (B, D)."""
        at = 0
        while at < len(x):
            group = len(self.means)
            end = min(at + self.missing[group], len(x))
            found = course.moments(x, slice(at, end))
            self._open = found if self._open is None else self._open + found
            self.missing[group] -= end - at
            if not self.missing[group]:
                self.means.append(self._open.mean())
                self._open = None
            at = end
