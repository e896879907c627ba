r"""Adams' methods for the flow and the density along it: one evaluation a step.

With the slopes f at the times so far, a step of order p is

    predict    z' = z + int of the polynomial through the last p slopes
    evaluate   f at z'
    correct    z <- z + int of the polynomial through these p + 1 slopes

(PEC; Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, III.1 and III.5). The
weights are those of the times as they are, so steps may have any lengths: equal ones (`integrate`),
or as long as the error allows (`integrate_adaptively`), the error being what the correction changes
when the oldest slope is left out; then p varies as well. The density needs no prediction. The first
steps go again from the start each time, by the polynomial through all slopes so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from score_sde.checks import UserError

Slopes = tuple[Tensor, Tensor]
"""dz/du (B, D) and d log p(z)/du (K, B)."""
Field = Callable[[Tensor, float], Slopes]
SAFETY, SLOWEST, FASTEST = 0.75, 0.2, 2.0  # how steps may change from one to the next


class AdamsError(UserError):
    """An adaptive solve that cannot go on; the message says where and why."""


@dataclass(frozen=True)
class Solution:
    """z (B, D) at the end, the growth of log p (K, B), and how both differ from one order less."""

    z: Tensor
    growth: Tensor
    z_change: Tensor
    growth_change: Tensor


def polynomial_weights(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """w_j with sum_j w_j f(j) = int_start^end f for all polynomials through the nodes."""
    span = max(abs(node - end) for node in [*nodes, start])
    shifted, powers = (np.array(nodes, float) - end) / span, np.arange(len(nodes))
    moments = -(((start - end) / span) ** (powers + 1.0)) / (powers + 1)
    return (span * np.linalg.solve(shifted[None, :] ** powers[:, None], moments)).tolist()


def _total(weights: list[float], values: list[Slopes], which: int) -> Tensor:
    terms = (w * value[which] for w, value in zip(weights, values, strict=True))
    return sum(terms, start=torch.zeros_like(values[0][which]))


@dataclass(frozen=True)
class _Step:
    """A step that may still be taken: slopes and their times, its own at the end; the state there.

    order: how many slopes were used before. begin: from when the state was computed.
    """

    times: list[float]
    values: list[Slopes]
    state: Slopes
    order: int
    begin: float

    def change(self, begin: float, order: int) -> Slopes:
        """What the integrals from ``begin`` lose without the oldest of order + 1 slopes."""
        times, values = self.times[-order - 1 :], self.values[-order - 1 :]
        # Of two slopes the newest is left out: Euler's step.
        rest = slice(1, None) if len(times) > 2 else slice(0, 1)
        full = polynomial_weights(times, begin, times[-1])
        less = polynomial_weights(times[rest], begin, times[-1])
        z, growth = (_total(full, values, i) - _total(less, values[rest], i) for i in (0, 1))
        return z, growth


class _Adams:
    """A solve on its way: the state at the last time, and the slopes that are still of use."""

    def __init__(self, field: Field, z: Tensor, u: float, order: int, first: Slopes | None):
        slope = field(z, u) if first is None else first
        self.field, self.highest = field, order
        self.times, self.values = [u], [slope]
        self.origin = self.state = z, torch.zeros_like(slope[1])
        self.change = torch.zeros_like(z), torch.zeros_like(slope[1])

    @property
    def starting(self) -> bool:
        """Whether so few slopes are known that all are of use from the origin on."""
        return len(self.times) <= self.highest

    def attempt(self, u: float, order: int) -> _Step:
        """The step to time u by the latest ``order`` slopes; one evaluation."""
        order = len(self.times) if self.starting else order
        times, values = self.times[-order:], self.values[-order:]
        begin, (z, growth) = (times[0], self.origin) if self.starting else (times[-1], self.state)
        slope = self.field(z + _total(polynomial_weights(times, begin, u), values, 0), u)
        times, values = [*times, u], [*values, slope]
        weights = polynomial_weights(times, begin, u)
        state = z + _total(weights, values, 0), growth + _total(weights, values, 1)
        return _Step([*self.times, u], [*self.values, slope], state, order, begin)

    def take(self, step: _Step) -> None:
        """Go on from the end of a step."""
        new, old = step.change(step.begin, step.order), self.change
        self.change = new if self.starting else (old[0] + new[0], old[1] + new[1])
        self.state = step.state
        kept = self.highest + 2  # one more than are used: for the error of the next order
        self.times, self.values = step.times[-kept:], step.values[-kept:]

    def solution(self) -> Solution:
        """Where it has come to."""
        return Solution(*self.state, *self.change)


def integrate(
    field: Field,
    z: Tensor,
    start: float,
    end: float,
    steps: int,
    order: int = 3,
    first: Slopes | None = None,
    progress: Callable[[], None] | None = None,
) -> Solution:
    """From time start to end in equal steps; steps + 1 evaluations, the last at the end itself.

    first: the slopes at the start, if they are known. progress: called after each step.
    """
    solve = _Adams(field, z, start, order, first)
    for n in range(1, steps + 1):
        u = start + n * (end - start) / steps if n < steps else end
        solve.take(solve.attempt(u, order))
        if progress is not None:
            progress()
    return solve.solution()


def integrate_adaptively(
    field: Field,
    z: Tensor,
    start: float,
    end: float,
    rtol: float,
    atol: float,
    order: int = 5,
    first: Slopes | None = None,
    max_evaluations: int = 10_000,
) -> Solution:
    """From time start to end (either may be larger) in steps that keep the error of each small.

    order: the highest. The order of a step is the one, of three, whose error was least in the step
    before: high orders need fewer steps where the flow is smooth, low ones are more stable.

    The error of a step is that of z or that of the growth, whichever is larger: root mean squares
    over the batch, in units of atol + rtol |value|. (One mean over both would hide the density
    behind D coordinates.) Steps are those of the batch as a whole, and end at ``end``.
    Raises `AdamsError` for slopes that are not finite, steps that vanish, and more than
    ``max_evaluations``.
    """
    solve = _Adams(field, z, start, order, first)
    u, h, p, evaluations = start, (end - start) / 50, 1, 0
    while u != end:
        left = end - u
        if abs(left) < 1.01 * abs(h):
            u_next = end
        else:  # two equal steps rather than one and a tiny one
            u_next = u + (left / 2 if abs(left) < 2 * abs(h) else h)
        if evaluations == max_evaluations:
            raise AdamsError(f"{max_evaluations} evaluations did not reach the end")
        evaluations += 1
        step = solve.attempt(u_next, p)
        most = min(order, len(solve.times), step.order + 1)
        orders = range(max(1, step.order - 1), most + 1)
        errors = {q: _size(step, u, q, rtol, atol) for q in orders}
        error = errors[step.order]
        if not math.isfinite(error):
            raise AdamsError("a slope is not finite")
        p = min(errors, key=lambda q: errors[q])
        rate = SAFETY * max(errors[p], 1e-12) ** (-1 / (p + 1))
        h = (u_next - u) * min(max(rate, SLOWEST), FASTEST)
        if error <= 1:
            solve.take(step)
            u = u_next
        elif u + h / 2 == u:
            raise AdamsError("the step size vanishes")
    return solve.solution()


def _size(step: _Step, begin: float, order: int, rtol: float, atol: float) -> float:
    sizes = [
        float((error / (atol + rtol * value.abs())).square().mean().sqrt())
        for error, value in zip(step.change(begin, order), step.state, strict=True)
    ]
    return max(sizes) if all(map(math.isfinite, sizes)) else math.nan
