r"""The linear algebra of conditioning: what y says of a state that is N(D, C_nu).

With C diagonal in the axes of the reference Gaussian and J = A, or the derivative of A at D,

    C_nu = (C^{-1} + I / nu^2)^{-1},   S_nu = S_y + J C_nu J',   G_nu = C_nu J' S_nu^{-1},

the law of x_0 ~ N(D, C_nu) given y has mean D + G_nu (y - A D). `Dense` factors S_nu once for a
noise level; `MatrixFree` solves with conjugate gradients, for large states, for nonlinear A and for
noise that differs between samples.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from score_sde.restoration.measurement import Measurement
from score_sde.restoration.operators import DENSE
from score_sde.restoration.reference import Reference
from score_sde.restoration.residuals import Residuals
from score_sde.restoration.white import WhitePart, white_part

LINEARISED = 2**26
"""Entries up to which the derivatives of a nonlinear A at all states are kept as matrices."""


@dataclass(frozen=True)
class Level(ABC):
    """C_nu, S_nu and G_nu of one noise level; states (B, D) and measurements (B, m) are flat."""

    gaussian: Reference
    variances: Tensor

    def spread(self, v: Tensor) -> Tensor:
        """C_nu v."""
        return self.gaussian.from_axes(self.variances * self.gaussian.to_axes(v))

    def draw(self, e: Tensor) -> Tensor:
        """C_nu^{1/2} e."""
        return self.gaussian.from_axes(self.variances.sqrt() * e)

    def gain(self, r: Tensor) -> Tensor:
        """G_nu r = C_nu A' S_nu^{-1} r."""
        return self.pull(self.solve(r))

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
        return _log_normal(
            torch.linalg.solve_triangular(self.root, r.mT, upper=False).mT, self.root
        )


def _log_normal(white: Tensor, root: Tensor) -> Tensor:
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
        return _log_normal(white, self.root)


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


@dataclass
class System:
    """The reference Gaussian and a measurement, at any noise level.

    dense: whether S_nu is kept as a matrix; chosen by size unless given. residuals: what is left
    unknown by measure, in place of C_nu along the axes. alike: whether A is linear and the
    noise the same for all measurements, so that one S_nu is for all.
    """

    gaussian: Reference
    measurement: Measurement
    dense: bool | None = None
    _matrix: Tensor | None = None
    _kept: dict[float, Dense] = field(default_factory=dict)
    residuals: Residuals | None = None
    _last: list[Tensor] = field(default_factory=list)
    _white: dict[float, WhitePart] = field(default_factory=dict)
    alike: bool | None = None

    def __post_init__(self) -> None:
        m, y = self.measurement, self.measurement.y
        self.lam = self.gaussian.axis_variances.to(y)
        self.mean = self.gaussian.mean().to(y).flatten()
        if self.alike is None:
            self.alike = m.operator.linear and len(m.variance) == 1
        if self.dense is None:
            small = math.prod(m.shape) <= DENSE and y.shape[1] <= DENSE
            self.dense = self.alike and small

    def with_measurement(self, measurement: Measurement) -> System:
        """The same for other rows of y: what has been factored is shared."""
        return replace(self, measurement=measurement)

    def with_residuals(self, residuals: Residuals | None) -> System:
        """The same with measured variances."""
        return replace(self, residuals=residuals, _kept={}, _white={})

    def matrix(self) -> Tensor:
        """A along the axes of the Gaussian, (m, D)."""
        if self._matrix is None:
            matrix = self.measurement.operator.matrix(self.measurement.shape)
            self._matrix = self.gaussian.to_axes(matrix.to(self.measurement.y))
        return self._matrix

    def variances(self, nu: float) -> Tensor:
        """Those of C_nu along the axes, (D,)."""
        if math.isinf(nu):
            return self.lam
        variances = self.lam * nu**2 / (self.lam + nu**2)
        return (
            variances
            if self.residuals is None
            else variances * self.residuals.share(nu).to(variances)
        )

    def small(self, count: int) -> bool:
        """Whether the derivative of A at ``count`` states fits in memory as a matrix each."""
        m = self.measurement
        return not m.operator.linear and count * self.lam.numel() * m.y.shape[1] <= LINEARISED

    def weighable(self, count: int) -> bool:
        """Whether ``count`` particles can be weighed: |S_nu| is known, or the same for all."""
        return self.measurement.operator.linear or self.small(count)

    @property
    def normalised(self) -> bool:
        """Whether `Level.log_density` has the determinant in it."""
        return bool(self.dense) or not self.measurement.operator.linear

    def _jacobian(self, D: Tensor) -> Tensor:
        """dA/dx at each of D (B, D), along the axes, (B, m, D); that of the last D is kept."""
        if self._last and self._last[0] is D:
            return self._last[1]
        m = self.measurement
        if D.shape[1] < m.y.shape[1]:
            columns = torch.eye(D.shape[1]).to(D)
            J = torch.stack([m.jvp(D, unit.expand(len(D), -1)) for unit in columns], 2)
        else:
            units = torch.eye(m.y.shape[1]).to(D)
            J = torch.stack([m.vjp(D, unit.expand(len(D), -1)) for unit in units], 1)
        self._last[:] = [D, self.gaussian.to_axes(J.flatten(0, 1)).reshape(J.shape)]
        return self._last[1]

    def _linearised(self, variances: Tensor, D: Tensor) -> Linearised:
        m, J = self.measurement, self._jacobian(D)
        noise = torch.diag_embed(m.variance) if m.root is None else m.covariance
        root = torch.linalg.cholesky((J * variances) @ J.mT + noise)
        return Linearised(self.gaussian, variances, root, J * variances, noise)

    def at(self, nu: float, D: Tensor) -> Level:
        """C_nu, S_nu and G_nu; D (B, D) is where a nonlinear A is linearised."""
        return self._level(nu, self.variances(nu), D)

    def white(self, nu: float) -> WhitePart:
        """What y tells as white noise on all of the state would, for linear A."""
        if nu not in self._white:
            none = torch.zeros_like(self.mean)[None]
            level = self.at(nu, none)
            self._white[nu] = white_part(
                self.gaussian,
                self.variances(nu),
                lambda v: level.gain(self.measurement.jvp(none, v)),
            )
        return self._white[nu]

    def isotropic(self, variance: float, D: Tensor) -> Level:
        """The same for x_0 ~ N(D, variance I)."""
        return self._level(-variance, torch.full_like(self.lam, variance), D)

    def _level(self, key: float, variances: Tensor, D: Tensor) -> Level:
        if not self.dense:
            if self.small(len(D)):
                return self._linearised(variances, D)
            return MatrixFree(self.gaussian, variances, self.measurement, D)
        if key not in self._kept:
            m = self.measurement
            CA, noise = self.gaussian.from_axes(self.matrix() * variances), m.covariance
            ACA = m.jvp(CA, CA)  # of the rows of C_nu A', which a mask only picks from
            root = torch.linalg.cholesky((ACA + ACA.mT) / 2 + noise)
            while len(self._kept) >= max(2, 2**25 // CA.numel()):
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = Dense(self.gaussian, variances, root, CA, noise)
        return self._kept[key]
