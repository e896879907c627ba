"""What cannot be restored, in a sentence each, before any work."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from score_sde.checks import UserError, machine_memory, require, unknown
from score_sde.restoration.measurement import Covariance, Noise, Poisson, as_operator
from score_sde.restoration.operators import Linear, Operator
from score_sde.restoration.system import LINEARISED, System

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
    measured = _measured(operator, shape)
    check_y(y, measured, shape)
    check_noise(noise, math.prod(measured))
    if isinstance(noise, Poisson) and float(y.min()) + noise.offset < -1e-6:
        raise UserError(
            f"y goes down to {float(y.min()):.3g}, but counts are gain (y + offset) and not "
            f"negative: Poisson noise of offset {noise.offset:g} gives no such y. Set offset=1 for "
            "states in [-1, 1]."
        )
    check_linear(operator, shape)
    check_rows(operator, shape)
    check_derivative(operator, shape)


def _measured(operator: Operator, shape: tuple[int, ...]) -> tuple[int, ...]:
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
    if not bool(torch.isfinite(tried).all()):
        raise UserError("the operator gives values that are not finite, of a state that is.")
    return tuple(tried.shape[1:])


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
    if not y.numel():
        raise UserError(f"y is empty, {tuple(y.shape)}: give at least one measurement.")
    if y.is_complex():
        raise UserError(
            f"y is {y.dtype}: give real and imaginary parts as the operator does, "
            "torch.view_as_real(y)."
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
        return
    if isinstance(noise, Covariance):
        S = noise.S
        if not S.is_floating_point() or not bool(torch.isfinite(S).all()):
            raise UserError("the noise's covariance must be finite numbers of floating point.")
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


def check_scale(y: Tensor, largest: float, noise: float) -> None:
    """UserError for a measurement that no state of the data could give, by its size."""
    if float(y.abs().max()) > 20 * largest + 10 * noise:
        raise UserError(
            f"y goes from {float(y.min()):.3g} to {float(y.max()):.3g}, measurements of the data "
            f"would be within {largest:.3g}: is it in the model's range, [-1, 1] for pictures?"
        )


def check_reach(system: System, least_nu: float) -> None:
    """UserError for noise that the process cannot tell from none.

    States are known to about ``least_nu``, sigma/alpha at t_min, and a measurement of noise below a
    quarter of what A makes of that says more than any draw could heed; ten times below is refused.
    """
    m = system.measurement
    g = torch.Generator().manual_seed(0)
    e = torch.randn(8, system.lam.numel(), generator=g, dtype=torch.float64).to(system.lam)
    least = float(m.jvp(system.mean.expand(8, -1), e).square().mean().sqrt()) * least_nu / 4
    std = float(m.variance.min().sqrt())
    if std < least / 10:
        raise UserError(
            f"noise_std={std:.3g} is far below what the process resolves: sigma/alpha is "
            f"{least_nu:.3g} at t_min, so that measurements are told apart down to some "
            f"{least:.2g}. Give noise_std={least:.2g} or more, or a process with a smaller t_min."
        )


DOUBTFUL = 4.0
"""Root mean square of what y is off, in standard deviations of the reference Gaussian."""


def doubts(system: System) -> list[str]:
    """A sentence for each measurement that is not as the data's Gaussian foretells.

    (y - A mu)' S^{-1} (y - A mu) / m, S = S_y + A C A', is 1 on average over the data. Data are not
    Gaussian, so 4 standard deviations are said and not refused.
    """
    m, mean = system.measurement, system.mean.expand(len(system.measurement.y), -1)
    r = m.residual(mean)
    off = ((r * system.factored(math.inf, mean).solve(r)).mean(1)).clamp_min(0).sqrt()
    return [
        f"measurement {i} is {far:.1f} standard deviations off what the run's data give (1 is "
        "usual): is it of such data, in the model's range, and is noise_std right?"
        for i, far in enumerate(off.tolist())
        if far > DOUBTFUL
    ]


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
    if kept > (there := machine_memory()):
        raise UserError(
            f"{draws} draws are {count} particles of {size} entries, about {kept / 2**30:.1f} GiB "
            f"of the {there / 2**30:.1f} GiB there are: give group={max(1, draws * there // kept)} "
            "so that fewer share their fate, or a smaller n."
        )
