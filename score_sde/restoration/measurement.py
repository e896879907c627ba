r"""One or several measurements y of states, and the noise that is in them.

Noise is in the units of the model's range: of pictures in [-1, 1] it is twice what it is in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from score_sde.checks import Positive, validated
from score_sde.restoration.operators import Linear, Operator, Shape
from score_sde.scores import Rows


@validated("Covariance")
@dataclass(frozen=True)
class Covariance:
    """Gaussian noise that is correlated between the m entries of y: S (m, m)."""

    S: Tensor


@validated("Poisson")
@dataclass(frozen=True)
class Poisson:
    """Counts: gain (y + offset) ~ Poisson(gain (A(x_0) + offset)), so that y is A(x_0) on average.

    offset: what makes rates of the model's range positive, 1 for [-1, 1]. floor: the least rate
    that is believed. Proposals see the variance (y + offset) / gain, the last weight of particles
    the true likelihood.
    """

    gain: Positive
    offset: float = 0.0
    floor: Positive = 1e-2

    def variance(self, rate: Tensor) -> Tensor:
        """The variance of y where A(x_0) is ``rate``, like it."""
        return (rate + self.offset).clamp_min(self.floor) / self.gain

    def log_prob(self, y: Tensor, rate: Tensor) -> Tensor:
        """log p(y given A(x_0) = rate) but for a constant of y, summed over the last axis."""
        mean = self.gain * (rate + self.offset).clamp_min(self.floor)
        count = self.gain * (y + self.offset)
        return (count * mean.log() - mean).sum(-1)


Noise = float | Tensor | Covariance | Poisson
"""A standard deviation, a number or one for each entry of y; or what is said in full."""


@dataclass(frozen=True)
class Measurement:
    """y (G, m) of G states of one shape, flat, with the operator and the noise.

    variance: of the noise, (1 | G, m); root: a square root (m, m) of its covariance if the entries
    are correlated, and None otherwise.
    """

    operator: Operator
    shape: Shape
    y: Tensor
    variance: Tensor
    root: Tensor | None = None
    poisson: Poisson | None = None

    def take(self, rows: Rows) -> Measurement:
        """The measurements of these places; one that is for all stays as it is."""
        own = self.variance if len(self.variance) == 1 else self.variance[rows]
        return self if len(self.y) == 1 else replace(self, y=self.y[rows], variance=own)

    def rows(self, index: Tensor) -> Measurement:
        """The measurement of each of many states: index (B,) says which."""
        own = self.variance if len(self.variance) == 1 else self.variance[index]
        return replace(self, y=self.y[index], variance=own)

    @property
    def covariance(self) -> Tensor:
        """The covariance of the noise where it is the same for all, (m, m)."""
        return torch.diag(self.variance[0]) if self.root is None else self.root @ self.root.mT

    def noise(self, e: Tensor) -> Tensor:
        """Noise (B, m) from standard normal numbers (B, m)."""
        return e * self.variance.sqrt() if self.root is None else e @ self.root.mT

    def S_y(self, u: Tensor) -> Tensor:
        """The noise's covariance times u (B, m)."""
        return u * self.variance if self.root is None else (u @ self.root) @ self.root.mT

    def predict(self, D: Tensor) -> Tensor:
        """A of flat states: (B, D) to (B, m)."""
        return self.operator(D.reshape(-1, *self.shape)).flatten(1)

    def residual(self, D: Tensor) -> Tensor:
        """y - A D, (B, m)."""
        return self.y - self.predict(D)

    def jvp(self, at: Tensor, v: Tensor) -> Tensor:
        """J v (B, m) of flat v (B, D), J the derivative of A at ``at`` (B, D)."""
        shape = (-1, *self.shape)
        return self.operator.jvp(at.reshape(shape), v.reshape(shape)).flatten(1)

    def vjp(self, at: Tensor, u: Tensor) -> Tensor:
        """J' u (B, D) of flat u (B, m)."""
        shaped = u.reshape(len(u), *self.operator.measured(self.shape))
        if self.operator.linear:
            return self.operator.adjoint(shaped, self.shape).flatten(1)
        return self.operator.vjp(at.reshape(-1, *self.shape), shaped).flatten(1)

    def log_prob(self, prediction: Tensor) -> Tensor:
        """log p(y given A(x_0) = prediction (B, m)) but for a constant of y, (B,)."""
        if self.poisson is not None:
            return self.poisson.log_prob(self.y, prediction)
        off = self.y - prediction
        if self.root is None:
            return -0.5 * (off.square() / self.variance).sum(-1)
        return -0.5 * torch.linalg.solve_triangular(self.root, off.mT, upper=False).square().sum(0)

    def misfit(self, x: Tensor) -> Tensor:
        """Mean squared residual in units of the noise's variance, (B,); 1 is right."""
        return -2 * replace(self, poisson=None).log_prob(self.predict(x)) / self.y.shape[1]


def make_measurement(
    operator: Operator | Callable[[Tensor], Tensor],
    y: Tensor,
    noise: Noise,
    shape: Shape,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Measurement:
    """The measurement of states of ``shape``; y is (*measured) or (G, *measured).

    Values are taken as they are: `checks.check_measurement` looks at them.
    """
    operator = as_operator(operator)
    measured = operator.measured(shape)
    flat = torch.as_tensor(y).to(device=device, dtype=dtype).reshape(-1, math.prod(measured))
    if isinstance(noise, Poisson):
        return Measurement(operator, shape, flat, noise.variance(flat), None, noise)
    if isinstance(noise, Covariance):
        root = torch.linalg.cholesky(torch.as_tensor(noise.S).to(flat))
        return Measurement(operator, shape, flat, root.square().sum(1)[None], root)
    std = torch.as_tensor(noise).to(flat)
    std = std.reshape(-1, flat.shape[1]) if std.numel() > 1 else std.expand(1, flat.shape[1])
    return Measurement(operator, shape, flat, std**2)


def as_operator(fn: Operator | Callable[[Tensor], Tensor]) -> Operator:
    """An operator as it is; any other callable is taken to be linear."""
    return fn if isinstance(fn, Operator) else Linear(fn)
