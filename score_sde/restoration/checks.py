"""What cannot be restored, in a sentence each, before any work."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from score_sde.checks import UserError, check_finite, check_names, machine_memory, require
from score_sde.restoration.measurement import Covariance, Noise, Poisson, as_operator
from score_sde.restoration.operators import Operator
from score_sde.restoration.system import LINEARISED, System
from score_sde.restoration.trials import (
    check_derivative,
    check_linear,
    check_rows,
    measured_shape,
)


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
    measured = measured_shape(operator, shape)
    check_y(y, measured, shape)
    m = math.prod(measured)
    check_noise(noise, m, y.numel() // m)
    if isinstance(noise, Poisson) and float(y.min()) + noise.offset < -1e-6:
        raise UserError(
            f"y goes down to {float(y.min()):.3g}, but counts are gain (y + offset) and not "
            f"negative: Poisson noise of offset {noise.offset:g} gives no such y. Set offset=1 for "
            "states in [-1, 1]."
        )
    check_linear(operator, shape)
    check_rows(operator, shape)
    check_derivative(operator, shape)


def check_y(y: Tensor, measured: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """UserError for a measurement of another shape, of integers, or not finite."""
    if not isinstance(y, Tensor):
        raise UserError(f"y must be a tensor; got {type(y).__name__}.")
    plain = y.layout == torch.strided and y.device.type != "meta"
    require(plain, f"y must be a dense tensor with values (got {y.layout} on {y.device}).")
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
    check_finite(y, "y")


def check_noise(noise: Noise, m: int, rows: int) -> None:
    """UserError for noise that is not positive, not finite, or not of ``rows`` measurements."""
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
    given = noise if isinstance(noise, Tensor) else torch.tensor(noise, dtype=torch.float64)
    if given.is_complex() or given.dtype == torch.bool:
        raise UserError(f"noise_std must be real numbers, standard deviations; got {given.dtype}.")
    std = given.double()
    if not bool((std > 0).all()) or not bool(torch.isfinite(std).all()):
        raise UserError(
            f"noise_std must be positive (got {float(std.min()):g}): a posterior needs noise, if "
            "only that of rounding, 1/255 of 8-bit pixels in [-1, 1]."
        )
    if std.numel() not in (1, m, rows * m):
        raise UserError(
            f"noise_std {tuple(std.shape)} has {std.numel()} entries: give one, one for each of "
            f"the {m} of a measurement, or one for each of all {rows * m} of y."
        )


def check_gaussian(system: System) -> None:
    """UserError for a reference Gaussian that does not vary, or not by finite numbers."""
    most = float(system.lam.max())
    require(
        0 < most < math.inf and bool(system.mean.isfinite().all()),
        f"the Gaussian's largest variance is {most:g}: data that do not vary cannot be restored; "
        "make it of many items, reference_gaussian(data).",
    )


VAST = 1e6
"""Noise over the largest measurement of the data that is taken for a mistake."""


def check_scale(y: Tensor, largest: float, noise: float) -> None:
    """UserError for a measurement or noise that no state of the data could tell, by its size."""
    require(
        noise <= VAST * max(largest, float(y.abs().max())),
        f"noise_std={noise:.3g} is over a million times what is measured (within {largest:.3g}): y "
        "says nothing. Draw of the data instead, or give the noise in the model's range.",
    )
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
    m, widest = system.measurement, float(system.lam.max().sqrt())
    require(
        5 * widest > least_nu,
        f"the Gaussian's largest standard deviation is {widest:.3g}, which is nothing beside the "
        f"noise that is left at t_min, sigma/alpha = {least_nu:.3g}: is it of the run's data, in "
        "the model's range?",
    )
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


DOUBTFUL = (0.25, 4.0)
"""Root mean square of what y is off, in standard deviations of the reference Gaussian: from where
on it is doubtful, being too little (of `MANY` entries or more) or too much."""
MANY = 20


def doubts(system: System) -> list[str]:
    """A sentence for each measurement that is not as the data's Gaussian foretells.

    (y - A mu)' S^{-1} (y - A mu) / m, S = S_y + A C A', is 1 on average over the data. Data are not
    Gaussian, so 4 standard deviations are said and not refused; and so is a quarter, which noise
    that is said to be larger than it is leaves.
    """
    m, mean = system.measurement, system.mean.expand(len(system.measurement.y), -1)
    r = m.residual(mean)
    off = ((r * system.factored(math.inf, mean).solve(r)).mean(1)).clamp_min(0).sqrt()
    return [
        f"measurement {i} is {far:.2g} standard deviations off what the run's data give (1 is "
        "usual): is it of such data, in the model's range, and is noise_std right?"
        for i, far in enumerate(off.tolist())
        if far > DOUBTFUL[1] or (far < DOUBTFUL[0] and m.y.shape[1] >= MANY)
    ]


Budget = Annotated[int, Field(ge=3, le=2**20)]
"""Evaluations and products for each draw: three levels, at least."""


def check_seeds(n: int, seeds: Sequence[int]) -> None:
    """UserError unless every draw has a seed."""
    require(len(seeds) == n, f"{n} draws need {n} seeds; got {len(seeds)}.")


def check_method(name: str, methods: Sequence[str], has_gaussian: bool) -> None:
    """UserError for an unknown method, or particles without a Gaussian."""
    check_names([name], methods, "method")
    require(
        name != "particles" or has_gaussian,
        "particles need gaussian=, the mean and covariance of the data: run.gaussian, or "
        "reference_gaussian(data).",
    )


def check_options(name: str, options: Sequence[str], known: Sequence[str]) -> None:
    """UserError for an option that a method does not have."""
    check_names(options, known, f"option of {name}")


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
