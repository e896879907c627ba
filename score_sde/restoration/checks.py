"""What cannot be restored, in a sentence each, before any work."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from score_sde.checks import UserError, require, unknown
from score_sde.restoration.algebra import LINEARISED, System
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
        reach = "" if y.is_complex() else f", from {y.min()} to {y.max()}"
        raise UserError(
            f"y is {y.dtype}{reach}: give floating-point values in the "
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


Budget = Annotated[int, Field(ge=3, le=2**20)]
"""Evaluations and products for each draw: three levels, at least."""


def check_seeds(n: int, seeds: Sequence[int]) -> None:
    """UserError unless every draw has a seed."""
    require(len(seeds) == n, f"{n} draws need {n} seeds; got {len(seeds)}.")


def check_method(name: str, methods: Sequence[str], has_gaussian: bool) -> None:
    """UserError for an unknown method, or particles without a Gaussian."""
    if name not in methods:
        raise unknown("method", name, methods)
    require(
        name != "particles" or has_gaussian,
        "particles need gaussian=, the mean and covariance of the data: run.gaussian, or "
        "reference_gaussian(data).",
    )


def check_options(name: str, options: Sequence[str], known: Sequence[str]) -> None:
    """UserError for an option that a method does not have."""
    for option in options:
        if option not in known:
            raise unknown(f"option of {name}", option, known)


def check_memory(system: System, draws: int, count: int, asked: bool) -> None:
    """UserError for particles that cannot be weighed or kept.

    draws, count: of one group, and its particles. asked: whether particles are what was asked for;
    `restore` goes without them else where A is not linear.
    """
    size, m = system.lam.numel(), system.measurement.y.shape[1]
    if asked and not system.weighable(count):
        fewer = max(1, int(LINEARISED / (size * m) * draws / count))
        raise UserError(
            f"{count} particles of {size} entries and {m} measurements of a nonlinear A need "
            f"derivatives of {count * size * m:.2g} numbers: give group={fewer}, so that fewer "
            "share their fate, or method='hybrid', which needs none."
        )
    kept = 8 * count * (12 * size + 6 * m)  # x, D, draws and what steps make of them
    if kept > (there := _memory()):
        raise UserError(
            f"{draws} draws are {count} particles of {size} entries, about {kept / 2**30:.1f} GiB "
            f"of the {there / 2**30:.1f} GiB there are: give group={max(1, draws * there // kept)} "
            "so that fewer share their fate, or a smaller n."
        )


def _memory() -> int:
    """The bytes of this machine's memory; without a limit where that is not known."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize
