r"""All noise levels in one basis.

With A' S_y^{-1} A + C^{-1} = V diag(p) V', and as I / nu^2 is the same along any axes, what is
unknown of Gaussian data given x_t and y is at every level

    K_nu = C_nu - G_nu A C_nu = (C_nu^{-1} + A' S_y^{-1} A)^{-1} = V diag(1 / (p + 1/nu^2)) V',

so that after one decomposition no level needs another. With E = S_y^{-1} A V,

    G_nu = K_nu A' S_y^{-1} = V k E',   S_nu^{-1} = S_y^{-1} - E k E',   k = diag(1 / (p + 1/nu^2)),

and noise of covariance a^2 K_nu + b^2 I is V (a^2 k + b^2)^{1/2} e: one product of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from score_sde.restoration.algebra import Level, NormalDraws, log_normal
from score_sde.restoration.measurement import Measurement
from score_sde.restoration.reference import Reference

LEAST = 1e-10
"""Share of the largest variance of the data that is taken for the least along any axis: what does
not vary has no finite precision."""


@dataclass(frozen=True)
class Spectrum:
    """What all levels share.

    axes: V (D, D). precisions: p (D,). told: E' (D, m). seen: the diagonal of V' A' S_y^{-1} A V.
    matrix: A along the axes of the Gaussian (m, D). noise, precision: S_y and its inverse, (m, m)
    or the diagonal of it (m,).
    """

    axes: Tensor
    precisions: Tensor
    told: Tensor
    seen: Tensor
    matrix: Tensor
    noise: Tensor
    precision: Tensor

    def left(self, nu: float) -> Tensor:
        """The variances k of K_nu along V, (D,)."""
        return 1 / (self.precisions + 1 / nu**2)  # 1 / inf is 0


def decomposed(gaussian: Reference, m: Measurement, matrix: Tensor) -> Spectrum:
    """The spectrum of a linear measurement whose noise is the same for all samples.

    matrix: A along the axes of the Gaussian.
    """
    lam = gaussian.axis_variances.to(matrix)
    rare = 1 / lam.clamp_min(LEAST * float(lam.max()))
    noise = m.variance[0] if m.root is None else m.covariance
    precision = 1 / noise if m.root is None else torch.cholesky_inverse(m.root)
    told = _times(precision, matrix.mT)
    total = told @ matrix + rare.diag()
    where = "cpu" if total.device.type == "mps" else total.device
    p, W = (part.to(total) for part in torch.linalg.eigh(((total + total.mT) / 2).to(where)))
    seen = p - rare @ W.square()
    return Spectrum(gaussian.from_axes(W.mT).mT, p, W.mT @ told, seen, matrix, noise, precision)


def _times(symmetric: Tensor, u: Tensor) -> Tensor:
    """A symmetric matrix (m, m), or a diagonal one (m,), times each of u (B, m)."""
    return u * symmetric if symmetric.ndim == 1 else u @ symmetric


@dataclass(frozen=True)
class Spectral(Level):
    """A level of a `Spectrum`. left: k, the variances of K_nu along its axes."""

    spectrum: Spectrum
    left: Tensor

    @cached_property
    def root(self) -> Tensor:
        """Of S_nu, (m, m); only `log_density` needs it."""
        A, noise = self.spectrum.matrix, self.spectrum.noise
        ACA = (A * self.variances) @ A.mT
        return torch.linalg.cholesky(ACA + (noise.diag() if noise.ndim == 1 else noise))

    def _told(self, r: Tensor) -> Tensor:
        """k E' r, which is G_nu r along V."""
        return self.left * (r @ self.spectrum.told.mT)

    def gain(self, r: Tensor) -> Tensor:
        return self._told(r) @ self.spectrum.axes.mT

    def solve(self, r: Tensor) -> Tensor:
        return _times(self.spectrum.precision, r) - self._told(r) @ self.spectrum.told

    def solve_and_gain(self, r: Tensor) -> tuple[Tensor, Tensor]:
        told = self._told(r)
        q = _times(self.spectrum.precision, r) - told @ self.spectrum.told
        return q, told @ self.spectrum.axes.mT

    def pull(self, u: Tensor) -> Tensor:
        return self.gaussian.from_axes(self.variances * (u @ self.spectrum.matrix))

    @cached_property
    def given_covariance(self) -> Tensor:
        """K_nu, (D, D)."""
        return (self.spectrum.axes * self.left) @ self.spectrum.axes.mT

    def given_spread(self, m: Measurement, D: Tensor, v: Tensor) -> Tensor:
        if len(v) >= v.shape[1]:
            return v @ self.given_covariance
        return (self.left * (v @ self.spectrum.axes)) @ self.spectrum.axes.mT

    def drawn(
        self,
        m: Measurement,
        D: Tensor,
        draws: NormalDraws,
        r: Tensor | None = None,
        share: float = 1.0,
        white: float = 0.0,
    ) -> Tensor:
        z = (share**2 * self.left + white**2).sqrt() * draws.state()
        if r is not None:
            z = z + share * self._told(r)
        return z @ self.spectrum.axes.mT

    def seen(self, m: Measurement, D: Tensor, draws: NormalDraws) -> Tensor:
        z = self.left.sqrt() * draws.state()
        return m.S_y(z @ self.spectrum.told)

    def freedom(self) -> Tensor:
        return self.left @ self.spectrum.seen

    def log_density(self, r: Tensor) -> Tensor:
        return log_normal(torch.linalg.solve_triangular(self.root, r.mT, upper=False).mT, self.root)
