r"""What lies between p at t_min and p at 0: how much log p changes there, and how surely.

With y = x/alpha and v = sigma^2/alpha^2 the density obeys the heat equation, so

    log p_v(y) - log p_0(y) = int_0^v h dv,      h = (tr H + |g|^2)/2,

where g and H are gradient and Hessian of log p_v at y. Values of h at v, 2v and 3v give the
integral of smooth data to third order (*heat*). Data that are narrow beside sqrt(v) in some
directions are not smooth: there 1/h grows like v plus their variance. But where log p is quadratic,
the integral is known, whatever v is: with k_i the eigenvalues of -H, g_i the gradient along their
axes and m_i = 1 - k_i v those of the denoiser's Jacobian,

    int_0^v h dv = sum_i (log m_i + v g_i^2 / m_i) / 2              (*local Gaussian*)

The latter is exact for Gaussians and near it wherever one component matters, so it is taken out
of h and only the rest is integrated by its values at 2v and 3v. It needs all of H, hence an exact
divergence; else, or where some m_i is not positive (no posterior has such a covariance: the score
is not exact), it is heat alone.

The error is what the rest's last two orders change, together: where components meet, either is a
hundred times too small by chance. That sees nothing that has no trace at v yet. So
on a few samples the same is done from v/9, with the integral of h over [v/9, v] by quadrature: the
difference is added to the error, and where it is large, smaller levels tell which t_min would do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from score_sde.ode.flow import Flow, Look, levels

STEP = 9.0  # from one such level v to the next
LEVELS = 5  # at most
NEVER = 1e-9  # of the process's t_min: no level below that of this time is asked for
TOLERANCE = 1e-3  # nats: the truncation error that t_min="auto" aims at, and none is said below
UNSEEN = 2.0  # times the error of heat alone, which does not see how thin data are beside sqrt(v)
ORDERS = ((23 / 12, -16 / 12, 5 / 12), (3 / 2, -1 / 2, 0.0), (1.0, 0.0, 0.0))
"""Of int_0^1 by values at 1, 2, 3: orders three to one."""
_NODES, _WEIGHTS = (a.tolist() for a in np.polynomial.legendre.leggauss(4))


class Growth(NamedTuple):
    """log p_v - log p_0 (B, K), and an estimate of its error (B,)."""

    nats: Tensor
    error: Tensor


class Finer(NamedTuple):
    """What smaller levels say: how they change the growth (B,), and the first that would do.

    level: s of which the next changes nothing that matters; None where the given one does, and nan
    if none was found. left: what the next one changes there, (B,).
    """

    change: Tensor
    level: float | None
    left: Tensor


def heat(look: Look) -> Tensor:
    """h = (tr H + |g|^2)/2, (B, K)."""
    return 0.5 * (look.traces + look.score.square().sum(1, keepdim=True))


@dataclass(frozen=True)
class LocalGaussian:
    """log p_v near y as a quadratic: curvatures k (B, D) and the gradient along their axes."""

    v: float
    curvatures: Tensor
    gradient: Tensor

    @classmethod
    def of(cls, look: Look, v: float) -> LocalGaussian:
        """By the score and the Hessian at y."""
        hessian = look.hessian
        assert hessian is not None
        curvatures, axes = torch.linalg.eigh(-0.5 * (hessian + hessian.mT))
        return cls(v, curvatures, torch.einsum("bde,bd->be", axes, look.score))

    @property
    def fits(self) -> Tensor:
        """(B, 1): whether it is a density from 0 to 3v."""
        shrunk, widened = 1 - self.curvatures * self.v, 1 + 2 * self.curvatures * self.v
        return ((shrunk > 1e-9) & (widened > 1e-3)).all(1, keepdim=True)

    def growth(self) -> Tensor:
        """int_0^v h dv, (B, 1)."""
        m = (1 - self.curvatures * self.v).clamp_min(1e-12)
        return 0.5 * (m.log() + self.v * self.gradient.square() / m).sum(1, keepdim=True)

    def heat(self, v: float) -> Tensor:
        """h at another level, (B, 1)."""
        spread = 1 + self.curvatures * (v - self.v)
        at = -self.curvatures / spread + (self.gradient / spread).square()
        return 0.5 * at.sum(1, keepdim=True)


def growth(flow: Flow, y: Tensor, level: Tensor, look: Look) -> Growth:
    """What log p gains from 0 to a level (); two evaluations beside the ``look``, at the level."""
    v = float(level) ** 2
    found = [heat(look)]
    for times in (2, 3):
        s = math.sqrt(times) * level
        found.append(heat(flow.look(flow.frame.to_z(y, s), s)))
    base = torch.zeros_like(found[0])
    if look.hessian is not None:
        model = LocalGaussian.of(look, v)
        fits = model.fits
        base = torch.where(fits, model.growth(), base)
        found = [
            h - torch.where(fits, model.heat(times * v), torch.zeros_like(h))
            for times, h in enumerate(found, start=1)
        ]
    third, second, first = (
        v * sum((w * h for w, h in zip(weights, found, strict=True)), torch.zeros_like(base))
        for weights in ORDERS
    )
    error = torch.hypot((third - second).mean(1), (second - first).mean(1))
    return Growth(base + third, error if look.hessian is not None else UNSEEN * error)


def between(flow: Flow, y: Tensor, low: float, high: float) -> Tensor:
    """int h dv from one level to another, Gauss-Legendre of four points in log v; (B, K)."""
    total = torch.zeros((), dtype=y.dtype, device=y.device)
    middle, half = math.log(low * high), math.log(high / low)  # of log v = 2 log s
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        v = math.exp(middle + half * node)
        s = torch.tensor(math.sqrt(v), dtype=torch.float64)
        total = total + half * weight * v * heat(flow.look(flow.frame.to_z(y, s), s))
    return total


def ladder(flow: Flow, y: Tensor, level: Tensor, exact: bool) -> Iterator[tuple[float, Tensor]]:
    """(s, int_0^v h dv by way of s, (B,)) for s = the level, a third of it, a ninth, ...

    v is the square of the first level; there are none that the process has not. By way of a
    smaller one, the integral is the `growth` up to that and a quadrature from there on.
    """
    above, s = torch.zeros((), dtype=y.dtype, device=y.device), level
    least = levels(flow.sde, NEVER * flow.sde.t_min)[0]
    for _ in range(LEVELS):
        look = flow.look(flow.frame.to_z(y, s), s, hessian=exact)
        yield float(s), (above + growth(flow, y, s, look).nats).mean(1)
        lower = s / math.sqrt(STEP)
        if lower <= least:  # the process does not go there
            return
        above, s = above + between(flow, y, float(lower), float(s)), lower


def finer(flow: Flow, y: Tensor, level: Tensor, exact: bool) -> Finer:
    """How smaller levels change what `growth` finds from this one, see the module."""
    steps = ladder(flow, y, level, exact)
    (here, found), change, wanted = next(steps), None, None
    differs = torch.zeros_like(found)
    for lower, better in steps:
        differs = better - found
        change = differs if change is None else change
        if float(differs.square().mean().sqrt()) < TOLERANCE:
            break
        here, found, wanted = lower, better, math.nan
    else:
        return Finer(differs if change is None else change, math.nan, differs)
    return Finer(change, None if wanted is None else here, differs)
