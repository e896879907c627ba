r"""E[x_0 | x_t, y] by every method: plain functions of what is known at one noise level.

A method is told D = E[x_0 | x_t] and, if it wants it, the function u -> V u with V = nu^2 dD/dx,
which is Cov[x_0 | x_t] (Tweedie's second formula); each product costs as much as an evaluation.
With r = y - A D and p(y | x_t) ~ N(A D, S), all of them are D + V A' S^{-1} r with some idea of V:

    reference   V = C_nu, the Gaussian's                             no product
    tilted      no V: a second evaluation, at x shifted and shortened as y would   (one product)
    pcg         V itself, one conjugate-gradient step preconditioned by S_nu
    hybrid      the same, and the reference for what the step leaves over of r; tilted where y tells
                all directions about alike
    mmps        V itself, plain conjugate gradients                  2405.13712
    tmpd        S = diag(row sums of A V A') + S_y                   2310.06721
    pigdm       S = nu^2/(1 + nu^2) A A' + S_y                       ICLR 2023, 9_gsMA8MRKQ
    dps         the direction V A' r alone, of length zeta nu        2209.14687
    diffpir     V = nu^2/lambda I                                    2305.08995
    ddnm        r is put to zero on the range of A, less where noise is larger    2212.00490
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from score_sde.checks import Count, NonNegative, Positive, UserError, checked, require
from score_sde.restoration.algebra import Level
from score_sde.restoration.denoiser import VJP
from score_sde.restoration.system import System

TRUSTED = (0.02, 4.0)
"""Curvature over that of the reference within which a Jacobian is believed to be a covariance."""
FARTHEST = 10.0
"""Times the reference's step, beyond which a step is not believed."""
WHITE = 0.6
"""What the white part of a measurement may miss (`WhitePart`) where the hybrid is `tilted`."""


@dataclass
class Point:
    """What is known at a noise level: D (B, D) flat, and u -> V u if a method asked for it.

    x, denoiser: where D was evaluated, and by what, for methods that evaluate it once more.
    """

    nu: float
    D: Tensor
    system: System
    product: VJP | None = None
    x: Tensor | None = None
    denoiser: Any = None

    @property
    def level(self) -> Level:
        """C_nu, S_nu and G_nu of the reference."""
        return self.system.at(self.nu, self.D)

    @property
    def residual(self) -> Tensor:
        """y - A D, (B, m)."""
        return self.system.measurement.residual(self.D)

    def V_adjoint(self, u: Tensor) -> Tensor:
        """V A' u, (B, D)."""
        assert self.product is not None
        return self.product(self.system.measurement.vjp(self.D, u))

    def A(self, v: Tensor) -> Tensor:
        """A v, or J v of a nonlinear A, (B, m)."""
        return self.system.measurement.jvp(self.D, v)

    def S_y(self, u: Tensor) -> Tensor:
        """The noise's covariance times u (B, m)."""
        return self.system.measurement.S_y(u)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1, keepdim=True)


def reference(p: Point) -> Tensor:
    """D + G_nu r: the reference's covariance in place of V. One evaluation."""
    return p.D + p.level.gain(p.residual)


@checked
def pcg(p: Point, guard: tuple[NonNegative, Positive] = TRUSTED) -> Tensor:
    """One step of conjugate gradients for (S_y + A V A') u = r from 0, preconditioned by S_nu.

    q = S_nu^{-1} r, w = V A' q, a = (r.q) / (q.(S_y q + A w)), D + a w. Where q.A w is not within
    ``guard`` of what the reference has, V is no covariance: the reference's mean. 2 evaluations.
    """
    return _pcg(p, guard, rest=False)


@checked
def hybrid(
    p: Point,
    guard: tuple[NonNegative, Positive] = TRUSTED,
    white: NonNegative | None = None,
) -> Tensor:
    """`pcg`, and the reference for the rest: D + a w + G_nu (r - a (S_y q + A w)).

    white: `mean_at` takes `tilted` in its place where a measurement is about as white noise, and
    misses (`WhitePart`) less than this. None is 0.6, and 0 for pictures (C, H, W): the Gaussian is
    two to four times too wide for them, and with it the place where `tilted` looks.
    """
    return _pcg(p, guard, rest=True)


def _pcg(p: Point, guard: tuple[float, float], rest: bool) -> Tensor:
    require(guard[0] < guard[1], f"guard must be (least, most) of the curvature (got {guard}).")
    level, r = p.level, p.residual
    q, reference = level.solve_and_gain(r)
    w = p.V_adjoint(q)
    Aw, noise = p.A(w), p.S_y(q)
    curvature, of_noise = _dot(q, Aw), _dot(q, noise)
    foretold = _dot(q, r) - of_noise  # q.A C_nu A'q, as S_nu q = r
    step = _dot(r, q) / (curvature + of_noise).clamp_min(1e-300)
    moved = step * w
    if rest:
        moved = moved + reference - step * level.gain(noise + Aw)
    trusted = (curvature >= guard[0] * foretold) & (curvature <= guard[1] * foretold)
    # V may have the right size along the data and be wild across it: the whole step is bounded too.
    farthest = FARTHEST * reference.norm(dim=1, keepdim=True)
    trusted = trusted & (moved.norm(dim=1, keepdim=True) <= farthest)  # not NaN either
    return p.D + (moved if bool(trusted.all()) else torch.where(trusted, moved, reference))


def tilted(p: Point) -> Tensor:
    """What the denoiser can take of the likelihood exactly, and the reference for the rest.

    With m the reference's mean, the likelihood is exp(g'x_0 - delta |x_0 - m|^2 / 2) times a rest,
    g = A' S_nu^{-1} r its slope at m. A slope and a white curvature only move the noise of x and
    shorten it: whatever the data, p(x_0 | x_t) times the first is p(x_0 | x' at tau), of mean

        D' = D(tau^2 (x/nu^2 + g + delta m), tau),   1/tau^2 = 1/nu^2 + delta.

    The rest is flat at m and is left to the reference: D' + (G_nu A - delta K)(m - D'), with K the
    covariance C_nu - G_nu A C_nu given y. delta: `WhitePart`. For Gaussian data that is m; for
    white noise on all of a state it is exact for any data. No derivative of the network. Linear A;
    the reference's mean where the step is not to be believed. 2 evaluations.
    """
    system, level, r = p.system, p.level, p.residual
    assert p.x is not None
    q, moved = level.solve_and_gain(r)
    mean, slope = p.D + moved, system.measurement.vjp(p.D, q)
    if not system.alike:
        raise UserError(
            'method="tilted" needs a linear measurement with the same noise for all samples; use '
            'method="hybrid".'
        )
    least = p.denoiser.range[0]
    delta = min(system.white(p.nu).precision, max(0.0, 1 / least**2 - 1 / p.nu**2))
    tau2 = 1 / (1 / p.nu**2 + delta)
    moved = p.denoiser(tau2 * (p.x / p.nu**2 + slope + delta * mean), math.sqrt(tau2))
    off = mean - moved
    unknown = level.given_spread(system.measurement, p.D, off)
    step = moved + level.gain(p.A(off)) - delta * unknown - p.D
    within = step.norm(dim=1, keepdim=True) <= FARTHEST * (mean - p.D).norm(dim=1, keepdim=True)
    return torch.where(within, p.D + step, mean)


@checked
def mmps(p: Point, iterations: Count = 1) -> Tensor:
    """Conjugate gradients for (S_y + A V A') u = r from 0: D + V A' u (2405.13712, algorithm 3).

    1 + ``iterations`` evaluations: V A' u is a combination of the products made.
    """
    u_mean, rest = torch.zeros_like(p.D), p.residual
    q, energy = rest, _dot(rest, rest)
    for _ in range(iterations):
        w = p.V_adjoint(q)
        Bq = p.S_y(q) + p.A(w)
        step = energy / _dot(q, Bq)
        u_mean, rest = u_mean + step * w, rest - step * Bq
        before, energy = energy, _dot(rest, rest)
        q = rest + energy / before * q
    return p.D + u_mean


def tmpd(p: Point) -> Tensor:
    """D + V A' r / (A V A' 1 + S_y), row sums for the matrix (2310.06721, eq. 14). 3 evaluations.

    Row sums may be negative; they are kept at a thousandth of the noise or more.
    """
    r, variance = p.residual, p.system.measurement.variance
    sums = p.A(p.V_adjoint(torch.ones_like(r)))
    return p.D + p.V_adjoint(r / (sums + variance).clamp_min(1e-3 * variance))


@checked
def pigdm(p: Point, data_std: Positive = 1.0) -> Tensor:
    """D + V A' (v A A' + S_y)^{-1} r, v = nu^2 s^2/(s^2 + nu^2) for white data of std s.

    Pseudo-inverse guidance (ICLR 2023, 9_gsMA8MRKQ, eq. 7 and appendix A.3), as a score.
    2 evaluations.
    """
    variance = p.nu**2 * data_std**2 / (data_std**2 + p.nu**2)
    return p.D + p.V_adjoint(p.system.isotropic(variance, p.D).solve(p.residual))


@checked
def dps(p: Point, zeta: Positive = 1.0) -> Tensor:
    """D + zeta nu^{-1} V A' r / |r|, the norm being that of each sample. 2 evaluations.

    The gradient of |y - A D| (2209.14687, algorithm 1), in which neither the noise of y nor the
    length of the step appears; measured in nu so that it fits any process and any sampler.
    """
    r = p.residual
    unit = r / r.norm(dim=1, keepdim=True).clamp_min(1e-300)
    return p.D + zeta / p.nu * p.V_adjoint(unit)


@checked
def diffpir(p: Point, strength: Positive = 7.0) -> Tensor:
    """argmin_x |y - A x|^2_{S_y^{-1}} + strength/nu^2 |x - D|^2 (2305.08995, eq. 13)."""
    return p.D + p.system.isotropic(p.nu**2 / strength, p.D).gain(p.residual)


def ddnm(p: Point) -> Tensor:
    """D + A^+ r, damped where the noise of y is larger than that of x_t. 1 evaluation.

    DDNM+ (2212.00490, eq. 17 to 19): the range-space part of D is replaced by that of y; a
    direction of singular value d has noise std/d in A^+ y, and is moved by min(1, nu d / std).
    """
    m = p.system.measurement
    gram = m.operator.gram(m.shape)
    if gram is not None:
        ratio = p.nu**2 * torch.as_tensor(gram).to(p.D).flatten() / m.variance
        u = (ratio.sqrt().clamp(max=1) * p.residual).reshape(
            len(p.D), *m.operator.measured(m.shape)
        )
        return p.D + m.operator.pinv(u, m.shape).flatten(1)
    u, d, v = torch.linalg.svd(p.system.matrix(), full_matrices=False)
    seen = d > 1e-6 * d.max()
    d = torch.where(seen, d, torch.ones_like(d))
    damped = (p.nu * d / m.variance.mean().sqrt()).clamp(max=1) * seen / d
    return p.D + p.system.gaussian.from_axes((damped * (p.residual @ u)) @ v)


class Method(NamedTuple):
    """A mean, the products that it takes, the kernel it was published with, and where.

    products: rows beyond the first evaluation; again: they are evaluations, not products.
    """

    mean: Callable[..., Tensor]
    products: int
    kernel: str
    source: str
    again: bool = False


def options_of(function: Callable[..., Tensor]) -> list[str]:
    """The settings of a method: its parameters that have defaults."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is not p.empty]


MEANS: dict[str, Method] = {
    "hybrid": Method(hybrid, 1, "gaussian", "here"),
    "tilted": Method(tilted, 1, "gaussian", "here", again=True),
    "pcg": Method(pcg, 1, "gaussian", "here"),
    "reference": Method(reference, 0, "gaussian", "here"),
    "mmps": Method(mmps, 1, "ddpm", "2405.13712"),
    "tmpd": Method(tmpd, 2, "ddpm", "2310.06721"),
    "pigdm": Method(pigdm, 1, "ddpm", "9_gsMA8MRKQ"),
    "dps": Method(dps, 1, "ddpm", "2209.14687"),
    "diffpir": Method(diffpir, 0, "renoise", "2305.08995"),
    "ddnm": Method(ddnm, 0, "ddpm", "2212.00490"),
}


def mean_at(
    method: Method, options: dict[str, Any], system: System, denoiser: Any, x: Tensor, nu: float
) -> tuple[Point, Tensor]:
    """What is known at flat x (B, D), and D_y, what the method makes of it and y."""
    if method.mean is hybrid and system.alike:
        white = options.get("white")
        if white is None:
            white = 0.0 if len(system.measurement.shape) == 3 else WHITE
        if white > 0 and system.white(nu).missed < white:
            method, options = MEANS["tilted"], {}
    if method.products and not method.again:
        D, product = denoiser.with_products(x, nu)
        point = Point(nu, D, system, product)
    else:
        point = Point(nu, denoiser(x, nu), system, None, x, denoiser)
    return point, method.mean(point, **options)
