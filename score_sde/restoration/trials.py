"""An operator is tried on a few states before any work, and what it is not is said."""

from __future__ import annotations

import torch
from torch import Tensor

from score_sde.checks import UserError, check_finite, require
from score_sde.restoration.operators import Linear, Operator

TOLERANCE = 1e-4
"""Relative, within which a function is linear and an adjoint is one."""


def measured_shape(operator: Operator, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a measurement; UserError for an operator that cannot be called, or gives NaN."""
    try:
        tried = operator(torch.full((1, *shape), 0.5))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the operator fails on one state {(1, *shape)}: {error}.") from error
    try:
        operator(torch.full((1, *shape), 0.5, dtype=torch.float64))
    except Exception as error:
        raise UserError(
            f"the operator takes states of float32 and fails on those of float64: {error}. "
            "Tensors that it holds have to follow the state, W.to(x)."
        ) from error
    if not isinstance(tried, Tensor) or tried.ndim < 2 or len(tried) != 1:
        found = tuple(tried.shape) if isinstance(tried, Tensor) else type(tried).__name__
        raise UserError(
            f"the operator gives {found} of one state {(1, *shape)}; it must give (B, *measured) "
            "of B states."
        )
    check_finite(tried, "what the operator gives of a state that is finite")
    return tuple(tried.shape[1:])


def check_linear(operator: Operator, shape: tuple[int, ...]) -> None:
    """UserError for a `Linear` that is not linear, or whose adjoint is none; tried once."""
    if not isinstance(operator, Linear):
        return
    g = torch.Generator().manual_seed(0)
    u, v = (torch.randn(1, *shape, generator=g, dtype=torch.float64) for _ in range(2))
    zero = operator(torch.zeros_like(u))
    Au, Av, both = operator(u), operator(v), operator(u + 2 * v)
    size = both.abs().max().clamp_min(1e-30)
    if bool(zero.abs().max() > TOLERANCE * size):
        raise UserError(
            f"the operator gives {float(zero.abs().max()):g} of a state of zeros: it is affine. "
            "Subtract A(0) from it and from y."
        )
    if bool((both - Au - 2 * Av).abs().max() > TOLERANCE * size):
        raise UserError(
            "the operator is not linear, A(u + 2 v) is not A(u) + 2 A(v): give Nonlinear(fn)."
        )
    w = torch.randn(both.shape, generator=g, dtype=torch.float64)
    pulled = pulled_back(operator, w, shape)
    if pulled.shape != u.shape:
        raise UserError(
            f"the adjoint gives {tuple(pulled.shape)} of one measurement {tuple(w.shape)}; it must "
            f"give a state {tuple(u.shape)}. Leave it out: it is then found by differentiation."
        )
    there, back = (both * w).sum(), ((u + 2 * v) * pulled).sum()
    if not bool((there - back).abs() <= TOLERANCE * both.norm() * w.norm()):
        raise UserError(
            f"the adjoint is none: <A u, w> is {float(there):g}, <u, A'w> is {float(back):g}. "
            "Leave it out: it is then found by differentiation."
        )


def check_derivative(operator: Operator, shape: tuple[int, ...]) -> None:
    """UserError for a nonlinear operator without a derivative, or with one that is 0."""
    if operator.linear:
        return
    g = torch.Generator().manual_seed(2)
    x = torch.randn(1, *shape, generator=g)
    u = torch.randn(operator(x).shape, generator=g)
    try:
        slope = operator.vjp(x, u)
    except Exception as error:
        raise UserError(
            f"the operator cannot be differentiated ({error}): write it in operations of torch."
        ) from error
    if not bool(slope.any()):
        raise UserError(
            "the derivative of the operator is 0, as that of rounding is: nothing says where y "
            "comes from. Let it pass as if nothing were rounded, x + (round(x) - x).detach()."
        )
    require(
        bool(slope.isfinite().all()),
        "the derivative of the operator is not finite at a random state.",
    )


def pulled_back(operator: Linear, w: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A'w; UserError for an adjoint that fails, or a function that cannot be differentiated."""
    try:
        return operator.adjoint(w, shape)
    except Exception as error:
        if operator.given_adjoint is None:
            raise UserError(
                f"the operator cannot be differentiated ({error}), so that its adjoint is not "
                "known: write it in operations of torch, or give Linear(fn, adjoint)."
            ) from error
        raise UserError(
            f"the adjoint fails on one measurement {tuple(w.shape)}: {error}. Leave it out: it is "
            "then found by differentiation."
        ) from error


def check_rows(operator: Operator, shape: tuple[int, ...]) -> None:
    """UserError for an operator that makes something else of a state if there is another."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, *shape, generator=g)
    both, alone = operator(x), torch.cat([operator(x[:1]), operator(x[1:])])
    size = TOLERANCE * float(alone.nan_to_num().abs().max())
    if both.shape != alone.shape or not torch.allclose(both, alone, 0.01, size, equal_nan=True):
        raise UserError(
            "the operator measures a state otherwise if there is another in the batch, or at "
            "random: it must give (B, *measured) of B states, of each what it gives of it alone."
        )
