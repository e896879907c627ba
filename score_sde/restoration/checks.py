"""What cannot be restored, in a sentence each, before any work."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from score_sde.checks import UserError
from score_sde.restoration.measurement import Covariance, Noise, Poisson, as_operator
from score_sde.restoration.operators import Linear, Operator

TOLERANCE = 1e-4


def check_problem(
    y: Tensor,
    operator: Operator | Callable[[Tensor], Tensor],
    noise: Noise,
    shape: tuple[int, ...],
) -> None:
    """UserError for what cannot be a measurement of states of ``shape``."""
    if not shape:
        raise UserError("give gaussian= of the data, or shape= of one state, as (1, 28, 28).")
    operator = as_operator(operator)
    measured = operator.measured(shape)
    check_y(y, measured, shape)
    check_noise(noise, math.prod(measured))
    check_linear(operator, shape)


def check_y(y: Tensor, measured: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """UserError for a measurement of another shape, of integers, or not finite."""
    if not isinstance(y, Tensor):
        raise UserError(f"y must be a tensor; got {type(y).__name__}.")
    if tuple(y.shape) != measured and tuple(y.shape[1:]) != measured:
        picture = tuple(y.shape) == shape or tuple(y.shape[1:]) == shape
        raise UserError(
            f"y has shape {tuple(y.shape)}; of a state {shape} the operator measures {measured}, "
            f"one for all samples, or (B, ...) one each."
            + (" y is a whole state: measure it first, operator(y[None])." if picture else "")
        )
    if not y.is_floating_point():
        raise UserError(
            f"y is {y.dtype}, from {y.min()} to {y.max()}: give floating-point values in the "
            "model's range, pixels as y / 127.5 - 1 where that is [-1, 1]."
        )
    if not bool(torch.isfinite(y).all()):
        raise UserError(f"y is not finite in {int((~torch.isfinite(y)).sum())} entries.")


def check_noise(noise: Noise, m: int) -> None:
    """UserError for noise that is not positive, not finite, or of another size."""
    if isinstance(noise, Poisson):
        if not noise.gain > 0:
            raise UserError(f"the gain of Poisson noise must be positive (got {noise.gain}).")
        return
    if isinstance(noise, Covariance):
        S = torch.as_tensor(noise.S)
        if tuple(S.shape) != (m, m):
            raise UserError(f"the noise's covariance must be ({m}, {m}); got {tuple(S.shape)}.")
        if not torch.allclose(S, S.mT) or not bool((torch.linalg.eigvalsh(S) > 0).all()):
            raise UserError("the noise's covariance must be symmetric with positive eigenvalues.")
        return
    std = torch.as_tensor(noise, dtype=torch.float64)
    if not bool((std > 0).all()) or not bool(torch.isfinite(std).all()):
        raise UserError(
            f"noise_std must be positive (got {float(std.min()):g}): a posterior needs noise, if "
            "only that of rounding, 1/255 of 8-bit pixels in [-1, 1]."
        )
    if std.numel() > 1 and std.numel() % m:
        raise UserError(f"noise_std has {std.numel()} entries, y has {m}.")


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
    there, back = (both * w).sum(), ((u + 2 * v) * operator.adjoint(w, shape)).sum()
    if bool((there - back).abs() > TOLERANCE * both.norm() * w.norm()):
        raise UserError(
            f"the adjoint is none: <A u, w> is {float(there):g}, <u, A'w> is {float(back):g}. "
            "Leave it out: it is then found by differentiation."
        )


def check_scale(y: Tensor, largest: float) -> None:
    """UserError for a measurement that no state of the data could give, by its size."""
    if float(y.abs().max()) > 20 * largest:
        raise UserError(
            f"y goes from {float(y.min()):.3g} to {float(y.max()):.3g}, measurements of the data "
            f"would be within {largest:.3g}: is it in the model's range, [-1, 1] for pictures?"
        )


def check_budget(n: int, nfe: int, seeds: Sequence[int], group: int | None) -> None:
    """UserError for numbers of draws, evaluations and seeds that make no sense together."""
    for name, value, least in (("n", n, 1), ("nfe", nfe, 3), ("group", group or 1, 1)):
        if int(value) != value or value < least:
            raise UserError(f"{name} must be an integer of at least {least} (got {value}).")
    if len(seeds) != n:
        raise UserError(f"{n} draws need {n} seeds; got {len(seeds)}.")


def check_method(name: str, methods: Sequence[str], has_gaussian: bool) -> None:
    """UserError for an unknown method, or particles without a Gaussian."""
    if name not in methods:
        close = difflib.get_close_matches(name, methods, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise UserError(f"unknown method {name!r}. {hint}Available: {', '.join(methods)}.")
    if name == "particles" and not has_gaussian:
        raise UserError(
            "particles need gaussian=, the mean and covariance of the data: run.gaussian, or "
            "reference_gaussian(data)."
        )


def check_options(name: str, options: Sequence[str], known: Sequence[str]) -> None:
    """UserError for an option that a method does not have."""
    for option in options:
        if option not in known:
            listed = ", ".join(known) or "none"
            raise UserError(f"unknown option {option!r} of {name}; it has {listed}.")
