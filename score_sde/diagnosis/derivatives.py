r"""Derivatives of a vector field f (B, ...) -> (B, ...), by products with random vectors.

With J the Jacobian of f at each state and u, v standard normal,

    divergence      tr J = E u'Ju                        (Hutchinson 1989)
    curl            |J - J'|^2 = E (v'Ju - u'Jv)^2       0 where f is the gradient of something
    Fokker-Planck   what p_t obeys: in y = x/alpha and r = sigma/alpha the data are convolved with
                    N(0, r^2), so that s = grad_y log p_r has ds/dr = grad[ r (div s + |s|^2) ]

A denoiser is y + r^2 s(y), a score up to scale: all of this can be asked of either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Field = Callable[[Tensor], Tensor]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).double().sum(1)


class Products(NamedTuple):
    """value (B, ...) of the field; trace (B,): u'Ju; curl (B,): (v'Ju - u'Jv)^2; size (B,): |J|^2.

    Each of the last three is an unbiased estimate by one pair of random vectors.
    """

    value: Tensor
    trace: Tensor
    curl: Tensor
    size: Tensor


def products(field: Field, x: Tensor, generator: torch.Generator | None = None) -> Products:
    """Trace, asymmetry and size of the Jacobian at each x (B, ...), by two backward passes."""
    u, v = (torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device) for _ in "uv")
    with torch.enable_grad():
        inputs = x.detach().requires_grad_(True)
        value = field(inputs)
        if not value.requires_grad:  # a constant field
            zero = x.new_zeros(len(x), dtype=torch.float64)
            return Products(value.detach(), zero, zero, zero)
        (ju,) = torch.autograd.grad(value, inputs, u, retain_graph=True)
        (jv,) = torch.autograd.grad(value, inputs, v)
    return Products(
        value.detach(),
        _dot(ju, u),
        (_dot(ju, v) - _dot(jv, u)).square(),
        (_dot(ju, ju) + _dot(jv, jv)) / 2,
    )


def relative_curl(found: Products) -> float:
    """|J - J'| over its largest possible size sqrt(2) |J|: 0 for a gradient, 1 for a rotation."""
    size = float(found.size.mean())
    return float((found.curl.mean() / (4 * size)).sqrt()) if size > 0 else 0.0


EXACT_DIMS = 16  # up to which a divergence is summed over the axes


def fokker_planck_residual(
    score: Callable[[Tensor, float], Tensor], y: Tensor, r: float, probes: int = 4
) -> float:
    """E|ds/dr - grad[r (div s + |s|^2)]|^2 over E|ds/dr|^2, of s(y, r) at y ~ p_r (B, ...).

    0 for the score of data convolved with N(0, r^2). Above 16 dimensions the divergence is
    estimated with ``probes`` random vectors, in halves whose errors are independent, so that the
    product of two residuals is unbiased and may be below 0. ds/dr is a central difference over 2 %
    of r.
    """
    step, dim = 0.01 * r, y[0].numel()
    with torch.no_grad():
        change = (score(y, r + step) - score(y, r - step)) / (2 * step)
    if dim <= EXACT_DIMS:
        axes = torch.eye(dim, dtype=y.dtype, device=y.device).reshape(dim, 1, *y.shape[1:])
        first = second = change - _heat(score, y, r, [axis.expand_as(y) for axis in axes], dim)
    else:
        many = max(probes // 2, 1)
        first, second = (
            change - _heat(score, y, r, [torch.randn_like(y) for _ in range(many)], 1) for _ in "ab"
        )
    return float(_dot(first, second).mean() / _dot(change, change).mean())


def _heat(
    score: Callable[[Tensor, float], Tensor], y: Tensor, r: float, probes: list[Tensor], times: int
) -> Tensor:
    """grad[r (div s + |s|^2)], the divergence being ``times`` the mean of u'Ju over the probes."""
    total = torch.zeros_like(y)
    for u in probes:
        with torch.enable_grad():
            inputs = y.detach().requires_grad_(True)
            value = score(inputs, r)
            (ju,) = torch.autograd.grad(value, inputs, u, create_graph=True)
            inside = times * (ju * u).flatten(1).sum(1) + value.square().flatten(1).sum(1)
            (gradient,) = torch.autograd.grad(r * inside.sum(), inputs)
        total = total + gradient / len(probes)
    return total
