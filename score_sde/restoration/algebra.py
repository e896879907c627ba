r"""What y says of a state that is N(D, C_nu), at one noise level.

    C_nu = (C^{-1} + I / nu^2)^{-1},   S_nu = S_y + J C_nu J',   G_nu = C_nu J' S_nu^{-1},

with C diagonal in the axes of the reference Gaussian and J = A, or the derivative of A at D. Given
y, x_0 has the mean D + G_nu (y - A D) and the covariance K_nu = C_nu - G_nu J C_nu. `Dense` factors
S_nu, `spectral.Spectral` knows K_nu of all levels at once, and `MatrixFree` solves by conjugate
gradients, for large states, for nonlinear A and for noise that differs between samples.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from score_sde.restoration.measurement import Measurement
from score_sde.restoration.reference import Reference


class NormalDraws(Protocol):
    """Standard normal numbers for states and for measurements."""

    def state(self) -> Tensor:
        """(B, D)."""

    def measured(self) -> Tensor:
        """(B, m)."""


@dataclass(frozen=True)
class Level(ABC):
    """C_nu, S_nu and G_nu of one noise level; states (B, D) and measurements (B, m) are flat."""

    gaussian: Reference
    variances: Tensor

    @cached_property
    def covariance(self) -> Tensor:
        """C_nu, (D, D)."""
        return self.gaussian.from_axes(self.gaussian.from_axes(self.variances.diag()).mT)

    def spread(self, v: Tensor) -> Tensor:
        """C_nu v."""
        if len(v) >= v.shape[1]:
            return v @ self.covariance
        return self.gaussian.from_axes(self.variances * self.gaussian.to_axes(v))

    def draw(self, e: Tensor) -> Tensor:
        """C_nu^{1/2} e."""
        return self.gaussian.from_axes(self.variances.sqrt() * e)

    def gain(self, r: Tensor) -> Tensor:
        """G_nu r = C_nu A' S_nu^{-1} r."""
        return self.pull(self.solve(r))

    def solve_and_gain(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """S_nu^{-1} r and G_nu r."""
        q = self.solve(r)
        return q, self.pull(q)

    def given_spread(self, m: Measurement, D: Tensor, v: Tensor) -> Tensor:
        """K_nu v = (C_nu - G_nu A C_nu) v, the covariance given y times v (B, D)."""
        spread = self.spread(v)
        return spread - self.gain(m.jvp(D, spread))

    def drawn(
        self,
        m: Measurement,
        D: Tensor,
        draws: NormalDraws,
        r: Tensor | None = None,
        share: float = 1.0,
        white: float = 0.0,
    ) -> Tensor:
        """share (G_nu r + u) + white e, (B, D), with u ~ N(0, K_nu) and e ~ N(0, I).

        D: where A is linearised. r: y - A D, and D plus this then a draw of x_0 given y; None is 0.
        """
        off = self.draw(draws.state())
        told = m.noise(draws.measured()) - m.jvp(D, off)
        u = share * (off + self.gain(told if r is None else r + told))
        return u + white * draws.state() if white else u

    def seen(self, m: Measurement, D: Tensor, draws: NormalDraws) -> Tensor:
        """A u (B, m) with u ~ N(0, K_nu), of covariance S_y - S_y S_nu^{-1} S_y."""
        off, n = self.draw(draws.state()), m.noise(draws.measured())
        return n - m.S_y(self.solve(n - m.jvp(D, off)))

    @abstractmethod
    def pull(self, u: Tensor) -> Tensor:
        """C_nu A' u."""

    @abstractmethod
    def solve(self, r: Tensor) -> Tensor:
        """S_nu^{-1} r."""

    @abstractmethod
    def freedom(self) -> Tensor:
        """tr(A G_nu), how many of the m entries the data decide; () or (B, 1)."""

    @abstractmethod
    def log_density(self, r: Tensor) -> Tensor:
        """log N(r; 0, S_nu) but for what is the same for all samples, (B,)."""


@dataclass(frozen=True)
class Dense(Level):
    """S_nu as a matrix, factored."""

    root: Tensor  # of S_nu, (m, m)
    CA: Tensor  # (C_nu A')', (m, D)
    noise: Tensor  # S_y, (m, m)

    def pull(self, u: Tensor) -> Tensor:
        return u @ self.CA

    def solve(self, r: Tensor) -> Tensor:
        return torch.cholesky_solve(r.mT, self.root).mT

    def freedom(self) -> Tensor:
        return len(self.root) - (self.noise * torch.cholesky_inverse(self.root)).sum()

    def log_density(self, r: Tensor) -> Tensor:
        return log_normal(torch.linalg.solve_triangular(self.root, r.mT, upper=False).mT, self.root)


def log_normal(white: Tensor, root: Tensor) -> Tensor:
    """log N(r; 0, L L') of L^{-1} r (B, m) and L ([B,] m, m)."""
    log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * white.square().sum(-1) - log_det - 0.5 * white.shape[-1] * math.log(2 * math.pi)


@dataclass(frozen=True)
class Linearised(Level):
    """S_nu of each sample as a matrix, for nonlinear A and few entries."""

    root: Tensor  # (B, m, m)
    JC: Tensor  # J C_nu along the axes, (B, m, D)
    noise: Tensor  # S_y, ([B,] m, m)

    def pull(self, u: Tensor) -> Tensor:
        return self.gaussian.from_axes(torch.einsum("bm,bmd->bd", u, self.JC))

    def solve(self, r: Tensor) -> Tensor:
        return torch.cholesky_solve(r[..., None], self.root)[..., 0]

    def freedom(self) -> Tensor:
        left = (self.noise * torch.cholesky_inverse(self.root)).sum((1, 2))
        return self.root.shape[1] - left[:, None]

    def log_density(self, r: Tensor) -> Tensor:
        white = torch.linalg.solve_triangular(self.root, r[..., None], upper=False)[..., 0]
        return log_normal(white, self.root)


@dataclass(frozen=True)
class MatrixFree(Level):
    """S_nu by products, with A linearised at D; conjugate gradients for all samples at once."""

    measurement: Measurement
    at: Tensor
    tolerance: float = 1e-6
    most: int = 200

    def pull(self, u: Tensor) -> Tensor:
        return self.spread(self.measurement.vjp(self.at, u))

    def _product(self, u: Tensor) -> Tensor:
        return self.measurement.S_y(u) + self.measurement.jvp(self.at, self.pull(u))

    def freedom(self) -> Tensor:
        """By one vector of signs z: z'(z - S_y S_nu^{-1} z) is the trace on average."""
        m = self.measurement.y.shape[1]
        signs = torch.randn(m, generator=torch.Generator().manual_seed(0)).sign()
        z = signs.to(self.at).expand(len(self.at), -1)
        return m - (z * self.measurement.S_y(self.solve(z))).sum(1, keepdim=True)

    def solve(self, r: Tensor) -> Tensor:
        gram = self.measurement.operator.gram(self.measurement.shape)
        size = self.variances.mean() * (1.0 if gram is None else gram)
        scale = self.measurement.variance + size  # the diagonal of S_nu, about
        u, rest = torch.zeros_like(r), r.clone()
        z = rest / scale
        p, energy = z, (rest * z).sum(1, keepdim=True)
        enough = self.tolerance**2 * energy.clamp_min(1e-300)
        for _ in range(self.most):
            if bool((energy <= enough).all()):
                break
            Sp = self._product(p)
            step = energy / (p * Sp).sum(1, keepdim=True).clamp_min(1e-300)
            step = torch.where(energy > enough, step, torch.zeros_like(step))
            u, rest = u + step * p, rest - step * Sp
            z = rest / scale
            before, energy = energy, (rest * z).sum(1, keepdim=True)
            p = z + energy / before.clamp_min(1e-300) * p
        return u

    def log_density(self, r: Tensor) -> Tensor:
        """For linear A and one measurement: the determinant is left out, as the same for all."""
        return -0.5 * (r * self.solve(r)).sum(1)
