r"""Methods of several evaluations a step: explicit Runge-Kutta, classical and exponential.

Both build their stages from earlier ones, x_i = a_i x + sum_j b_ij P_j, and differ only in where
the numbers come from: a Butcher tableau in sigma/alpha or in t, or the exact integrals of `frames`
(which makes DPM-Solver's singlestep methods, 2206.00927, of full order).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from score_sde.checks import validated
from score_sde.ode import frames
from score_sde.processes.sdes import SDE
from score_sde.sampling.method import Predictor, Trajectory


class Stage(NamedTuple):
    """y = keep x + sum_j weights_j P_j at time t, and P = on_x y + on_score score(y, t) there."""

    t: Tensor
    keep: float
    on_x: float
    on_score: float
    weights: list[float]


class StagedNumbers(NamedTuple):
    """The stages of one step, and its result keep x + sum_j weights_j P_j."""

    stages: list[Stage]
    keep: float
    weights: list[float]


class Staged(Predictor[StagedNumbers]):
    """A step in stages."""

    stochastic: ClassVar[bool] = False

    def step(
        self, run: Trajectory, x: Tensor, t: Tensor, s: Tensor, numbers: StagedNumbers
    ) -> Tensor:
        values: list[Tensor] = []
        for at, keep, on_x, on_score, weights in numbers.stages:
            y = _combine(x, keep, values, weights)
            score = run.score(y, at)
            values.append(
                score * on_score if on_x == 0 else torch.add(y * on_x, score, alpha=on_score)
            )
        return _combine(x, numbers.keep, values, numbers.weights)


def _combine(x: Tensor, keep: float, values: list[Tensor], weights: list[float]) -> Tensor:
    """keep x + sum_j weights_j values_j."""
    out = x if keep == 1.0 else x * keep
    for value, weight in zip(values, weights, strict=False):
        if weight != 0:
            out = torch.add(out, value, alpha=weight)
    return out


def _rows(weights: Sequence[Tensor], steps: int) -> list[list[float]]:
    """Weights (N,) of each earlier stage as a row for each step."""
    return torch.stack(list(weights), 1).tolist() if weights else [[]] * steps


def _stages(
    t: Tensor, keep: Tensor, on: tuple[Tensor, Tensor], weights: Sequence[Tensor]
) -> list[Stage]:
    """One stage of all steps, from columns (N,)."""
    columns = (t.unbind(), keep.tolist(), on[0].tolist(), on[1].tolist(), _rows(weights, len(t)))
    return [Stage(*row) for row in zip(*columns, strict=True)]


def _numbers(
    stages: list[list[Stage]], keep: Tensor, weights: Sequence[Tensor]
) -> list[StagedNumbers]:
    """All steps, from each stage of all of them."""
    by_step = zip(zip(*stages, strict=True), keep.tolist(), _rows(weights, len(keep)), strict=True)
    return [StagedNumbers(list(mine), kept, row) for mine, kept, row in by_step]


@validated("sampling.options")
@dataclass(frozen=True)
class ExplicitRK(Staged):
    """A Butcher tableau for the probability flow.

    variable: "sigma" integrates d(x/alpha)/d(sigma/alpha) = eps, where the linear part of the flow
    is exact; "time" is the textbook form in t.
    """

    variable: Literal["sigma", "time"] = "sigma"
    nodes: ClassVar[tuple[float, ...]] = (0.0,)
    matrix: ClassVar[tuple[tuple[float, ...], ...]] = ((),)
    final: ClassVar[tuple[float, ...]] = (1.0,)

    def prepare(self, sde: SDE, times: Tensor) -> list[StagedNumbers]:
        t, s = times[:-1], times[1:]
        in_sigma = self.variable == "sigma"

        def clock(u: Tensor) -> Tensor:
            return sde.sigma(u) / sde.alpha(u) if in_sigma else u

        def scale(u: Tensor) -> Tensor:
            return sde.alpha(u) if in_sigma else torch.ones_like(u)

        def slope(u: Tensor) -> tuple[Tensor, Tensor]:
            """dx/dt = on_x x + on_score score, or d(x/alpha)/d(sigma/alpha) = eps."""
            if in_sigma:
                return frames.predict(sde, u, "eps")
            return sde.derivatives(u)[0] / sde.alpha(u), -0.5 * sde.diffusion(u) ** 2

        def time(c: float) -> Tensor:
            if c in (0.0, 1.0):
                return t if c == 0.0 else s
            w = clock(t) + c * step
            return sde.time_of_log_snr(-2 * w.log()) if in_sigma else w

        step = clock(s) - clock(t)
        stages = []
        for c, row in zip(self.nodes, self.matrix, strict=True):
            u = time(c)
            weights = [scale(u) * step * weight for weight in row]
            stages.append(_stages(u, scale(u) / scale(t), slope(u), weights))
        return _numbers(
            stages, scale(s) / scale(t), [scale(s) * step * weight for weight in self.final]
        )


@validated("sampling.options")
@dataclass(frozen=True)
class Euler(ExplicitRK):
    """Euler's method for the probability flow; in sigma it is DDIM (2010.02502)."""

    order: ClassVar[int | None] = 1
    default_steps: ClassVar[int] = 100
    default_grid: ClassVar[str | None] = "logsnr"


@validated("sampling.options")
@dataclass(frozen=True)
class Heun(ExplicitRK):
    """Heun's second-order method for the probability flow, EDM's choice (2206.00364, alg. 1)."""

    order: ClassVar[int | None] = 2
    evaluations: ClassVar[int] = 2
    default_steps: ClassVar[int] = 18
    default_grid: ClassVar[str | None] = "karras"
    nodes: ClassVar[tuple[float, ...]] = (0.0, 1.0)
    matrix: ClassVar[tuple[tuple[float, ...], ...]] = ((), (1.0,))
    final: ClassVar[tuple[float, ...]] = (0.5, 0.5)


@validated("sampling.options")
@dataclass(frozen=True)
class RK4(ExplicitRK):
    """The classical fourth-order Runge-Kutta method for the probability flow."""

    order: ClassVar[int | None] = 4
    evaluations: ClassVar[int] = 4
    default_steps: ClassVar[int] = 15
    default_grid: ClassVar[str | None] = "karras"
    nodes: ClassVar[tuple[float, ...]] = (0.0, 0.5, 0.5, 1.0)
    matrix: ClassVar[tuple[tuple[float, ...], ...]] = ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0))
    final: ClassVar[tuple[float, ...]] = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


@validated("sampling.options")
@dataclass(frozen=True)
class Singlestep(Staged):
    """DPM-Solver, singlestep: exponential Runge-Kutta in lambda (2206.00927, 2211.01095).

    prediction: "eps" (DPM-Solver) or "x0" (DPM-Solver++).
    """

    prediction: Literal["eps", "x0"] = "x0"
    nodes: ClassVar[tuple[float, ...]] = (0.0, 0.5)
    # For each stage and the result: the earlier stages whose values it interpolates.
    uses: ClassVar[tuple[tuple[int, ...], ...]] = ((), (0,), (0, 1))
    default_grid: ClassVar[str | None] = "logsnr"

    def prepare(self, sde: SDE, times: Tensor) -> list[StagedNumbers]:
        t, s = times[:-1], times[1:]
        start, end = frames.half_log_snr(sde, t), frames.half_log_snr(sde, s)
        lam = [start + c * (end - start) for c in self.nodes]
        points = [t, *[sde.time_of_log_snr(2 * u) for u in lam[1:]]]

        def keep(u: Tensor) -> Tensor:
            return frames.scale(sde, u, self.prediction) / frames.scale(sde, t, self.prediction)

        def weights(used: tuple[int, ...], to: Tensor, u: Tensor) -> list[Tensor]:
            """Of the values of all earlier stages, of which those ``used`` are interpolated."""
            if not used:
                return []
            nodes = torch.stack([lam[j] for j in used], 1)
            w = frames.weights(sde, start, to, nodes, self.prediction, "lambda")
            w = w * frames.scale(sde, u, self.prediction)[:, None]
            by_stage = dict(zip(used, w.unbind(1), strict=True))
            return [by_stage.get(j, torch.zeros_like(to)) for j in range(max(used) + 1)]

        stages = [
            _stages(u, keep(u), frames.predict(sde, u, self.prediction), weights(used, at, u))
            for u, at, used in zip(points, lam, self.uses, strict=False)
        ]
        return _numbers(stages, keep(s), weights(self.uses[-1], end, s))


@validated("sampling.options")
@dataclass(frozen=True)
class Singlestep2(Singlestep):
    """DPM-Solver++(2S), or DPM-Solver-2 with prediction=eps: two evaluations a step."""

    order: ClassVar[int | None] = 2
    evaluations: ClassVar[int] = 2
    default_steps: ClassVar[int] = 15


@validated("sampling.options")
@dataclass(frozen=True)
class Singlestep3(Singlestep):
    """DPM-Solver++(3S), or DPM-Solver-3 with prediction=eps: three evaluations a step."""

    order: ClassVar[int | None] = 3
    evaluations: ClassVar[int] = 3
    default_steps: ClassVar[int] = 10
    nodes: ClassVar[tuple[float, ...]] = (0.0, 1 / 3, 2 / 3)
    uses: ClassVar[tuple[tuple[int, ...], ...]] = ((), (0,), (0, 1), (0, 2))
