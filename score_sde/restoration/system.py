"""The reference Gaussian and a measurement, at any noise level: which linear algebra fits them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from score_sde.checks import require
from score_sde.restoration.algebra import Dense, Level, Linearised, MatrixFree
from score_sde.restoration.measurement import Measurement
from score_sde.restoration.operators import DENSE
from score_sde.restoration.reference import Reference
from score_sde.restoration.residuals import Residuals
from score_sde.restoration.spectral import Spectral, Spectrum, decomposed
from score_sde.restoration.white import WhitePart, white_part

LINEARISED = 2**26
"""Entries up to which the derivatives of a nonlinear A at all states are kept as matrices."""

Key = tuple[str, float]
"""Of what is kept: the kind of a level, and which."""


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
    _matrix: list[Tensor] = field(default_factory=list)
    _spectrum: list[Spectrum] = field(default_factory=list)
    _kept: dict[Key, Dense | Spectral] = field(default_factory=dict)
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
        """The same with measured variances; UserError for those of other data."""
        if residuals is not None:
            size = self.lam.numel()
            require(
                residuals.shares.shape[1] == size,
                f"the residuals are of {residuals.shares.shape[1]} entries, states have {size}.",
            )
        return replace(self, residuals=residuals, _kept={}, _white={})

    def matrix(self) -> Tensor:
        """A along the axes of the Gaussian, (m, D)."""
        if not self._matrix:
            matrix = self.measurement.operator.matrix(self.measurement.shape)
            self._matrix.append(self.gaussian.to_axes(matrix.to(self.measurement.y)))
        return self._matrix[0]

    def spectrum(self) -> Spectrum:
        """What y says at every level, for linear A and the same noise for all."""
        if not self._spectrum:
            self._spectrum.append(decomposed(self.gaussian, self.measurement, self.matrix()))
        return self._spectrum[0]

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
        if not self.dense or self.residuals is not None:
            return self.factored(nu, D)
        key = "spectral", nu
        if key not in self._kept:
            spectrum = self.spectrum()
            level = Spectral(self.gaussian, self.variances(nu), spectrum, spectrum.left(nu))
            self._keep(key, level, level.variances.numel() ** 2)
        return self._kept[key]

    def factored(self, nu: float, D: Tensor) -> Level:
        """The same for one level that is used once: S_nu factored, and no `Spectrum` made."""
        return self._level(("factored", nu), self.variances(nu), D)

    def _keep(self, key: Key, level: Dense | Spectral, numbers: int) -> None:
        """Keep a level of so many numbers, and of the last ones as many as memory is for."""
        while len(self._kept) >= max(2, 2**25 // numbers):
            self._kept.pop(next(iter(self._kept)))
        self._kept[key] = level

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
        return self._level(("isotropic", variance), torch.full_like(self.lam, variance), D)

    def _level(self, key: Key, variances: Tensor, D: Tensor) -> Level:
        if not self.dense:
            if self.small(len(D)):
                return self._linearised(variances, D)
            return MatrixFree(self.gaussian, variances, self.measurement, D)
        if key not in self._kept:
            m = self.measurement
            CA, noise = self.gaussian.from_axes(self.matrix() * variances), m.covariance
            ACA = m.jvp(CA, CA)  # of the rows of C_nu A', which a mask only picks from
            root = torch.linalg.cholesky((ACA + ACA.mT) / 2 + noise)
            self._keep(key, Dense(self.gaussian, variances, root, CA, noise), CA.numel())
        return self._kept[key]
