r"""What a measurement tells as white noise on all of a state would.

A likelihood exp(g'x_0 - delta |x_0|^2 / 2) only moves the noise of x_t and shortens it: whatever
the data, the posterior's mean is then that of the prior at another place and a lower level.
A measurement has such a part, of some precision delta, and another that no white noise tells:

    K = C_nu - G_nu A C_nu           what is unknown of x_0 given x_t and y, by the reference
    (C_nu^{-1} + delta I)^{-1}       the same, if the measurement were white, of as large a trace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.restoration.reference import Reference

ALL, SOME = 64, 16
"""Entries of a state up to which all directions are tried, and how many at random beyond."""


class WhitePart(NamedTuple):
    """precision: delta. missed: |K - (C_nu^{-1} + delta I)^{-1}| over |C_nu - K| (Frobenius).

    missed is 0 where y is the state and white noise, and about 0.7 for a few of its entries.
    """

    precision: float
    missed: float


def white_part(
    gaussian: Reference, variances: Tensor, told: Callable[[Tensor], Tensor]
) -> WhitePart:
    """The white part of what y tells.

    variances: of C_nu along the axes of the Gaussian. told: v -> G_nu A v.
    """
    c, D = variances, len(variances)
    e = torch.eye(D).to(c)
    if D > ALL:
        g = torch.Generator().manual_seed(0)
        e = torch.randn(SOME, D, generator=g, dtype=torch.float64).sign().to(c)
        e = e / SOME**0.5
    known = gaussian.to_axes(told(gaussian.from_axes(c * e)))  # (C_nu - K) e
    total = float(c.sum())
    precision = _precision(c, total - min(float((e * known).sum()), 0.999999 * total))
    white = c * (c * precision / (1 + c * precision)) * e
    return WhitePart(precision, float((known - white).norm() / known.norm().clamp_min(1e-300)))


def _precision(variances: Tensor, total: float) -> float:
    """delta with sum of 1 / (1/variances + delta) equal to total; 0 where that is all of it.

    By Newton's steps on the sum's inverse, which is concave and about linear in delta, so that they
    come from below.
    """
    variances, delta = variances.cpu(), 0.0
    for _ in range(60):
        left = variances / (1 + variances * delta)
        now = float(left.sum())
        step = (now / max(total, 1e-300) - 1) * now / max(float(left.square().sum()), 1e-300)
        if not step > 1e-12 * delta:
            break
        delta += step
    return delta
