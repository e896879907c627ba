r"""Methods of several evaluations a step: explicit Runge-Kutta, classical and exponential.

Both build their stages from earlier ones, x_i = a_i x + sum_j b_ij P_j, and differ only in where
the numbers come from: a Butcher tableau in sigma/alpha or in t, or the exact integrals of `frames`
(which makes DPM-Solver's singlestep methods, 2206.00927, of full order).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from score_sde.ode import frames
from score_sde.processes.sdes import SDE
from score_sde.sampling.predictors import Predictor, Row, check_choice


class Staged(Predictor):
    """A step in stages; a row holds (time, a, p, q, b) of each stage, and (a, b) of the result."""

    stochastic: ClassVar[bool] = False

    def step(self, run, x, t, s, stages, result):
        values: list[Tensor] = []
        for time, a, p, q, b in stages:
            y = _combine(x, a, values, b)
            score = run.score(y, time)
            values.append(score * q if p == 0 else torch.add(y * p, score, alpha=q))
        return _combine(x, *[result[0], values, result[1]])


def _combine(x: Tensor, a: float, values: list[Tensor], b: list[float]) -> Tensor:
    """a x + sum_j b_j values_j."""
    out = x if a == 1.0 else x * a
    for value, weight in zip(values, b, strict=False):
        if weight != 0:
            out = torch.add(out, value, alpha=weight)
    return out


def _transposed(columns: list[list[Any]]) -> list[list[Any]]:
    """Stage-wise lists over steps as step-wise lists over stages."""
    return [list(row) for row in zip(*columns, strict=True)]


def _column(sde: SDE, time: Tensor, a: Tensor, p: Tensor, q: Tensor, b: list[Tensor]) -> list[Row]:
    """One stage for all steps."""
    weights = torch.stack(b, 1).tolist() if b else [[]] * len(time)
    numbers = zip(a.tolist(), p.tolist(), q.tolist(), weights, strict=True)
    return [(u, *row) for u, row in zip(time.unbind(), numbers, strict=True)]


@dataclass(frozen=True)
class ExplicitRK(Staged):
    """A Butcher tableau for the probability flow.

    variable: "sigma" integrates d(x/alpha)/d(sigma/alpha) = eps, where the linear part of the flow
    is exact; "time" is the textbook form in t.
    """

    variable: str = "sigma"
    nodes: ClassVar[tuple[float, ...]] = (0.0,)
    matrix: ClassVar[tuple[tuple[float, ...], ...]] = ((),)
    final: ClassVar[tuple[float, ...]] = (1.0,)

    def __post_init__(self) -> None:
        check_choice("variable", self.variable, ("sigma", "time"))

    def prepare(self, sde, times):
        t, s = times[:-1], times[1:]
        in_sigma = self.variable == "sigma"

        def clock(u: Tensor) -> Tensor:
            return sde.sigma(u) / sde.alpha(u) if in_sigma else u

        def scale(u: Tensor) -> Tensor:
            return sde.alpha(u) if in_sigma else torch.ones_like(u)

        step = clock(s) - clock(t)
        stages = []
        for c, row in zip(self.nodes, self.matrix, strict=True):
            if c in (0.0, 1.0):
                u = t if c == 0.0 else s
            else:
                w = clock(t) + c * step
                u = sde.time_of_log_snr(-2 * w.log()) if in_sigma else w
            if in_sigma:
                p, q = frames.predict(sde, u, "eps")
            else:
                p, q = sde.derivatives(u)[0] / sde.alpha(u), -0.5 * sde.diffusion(u) ** 2
            b = [scale(u) * step * weight for weight in row]
            stages.append(_column(sde, u, scale(u) / scale(t), p, q, b))
        ends = torch.stack([scale(s) * step * weight for weight in self.final], 1).tolist()
        results = list(zip((scale(s) / scale(t)).tolist(), ends, strict=True))
        return list(zip(_transposed(stages), results, strict=True))


@dataclass(frozen=True)
class Euler(ExplicitRK):
    """Euler's method for the probability flow; in sigma it is DDIM (2010.02502)."""

    order: ClassVar[int | None] = 1
    default_steps: ClassVar[int] = 100
    default_grid: ClassVar[str | None] = "logsnr"


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


@dataclass(frozen=True)
class Singlestep(Staged):
    """DPM-Solver, singlestep: exponential Runge-Kutta in lambda (2206.00927, 2211.01095).

    prediction: "eps" (DPM-Solver) or "x0" (DPM-Solver++).
    """

    prediction: str = "x0"
    nodes: ClassVar[tuple[float, ...]] = (0.0, 0.5)
    # For each stage and the result: the earlier stages whose values it interpolates.
    uses: ClassVar[tuple[tuple[int, ...], ...]] = ((), (0,), (0, 1))
    default_grid: ClassVar[str | None] = "logsnr"

    def __post_init__(self) -> None:
        check_choice("prediction", self.prediction, ("eps", "x0"))

    def prepare(self, sde, times):
        t, s = times[:-1], times[1:]
        start, end = frames.half_log_snr(sde, t), frames.half_log_snr(sde, s)
        lam = [start + c * (end - start) for c in self.nodes]
        points = [t, *[sde.time_of_log_snr(2 * u) for u in lam[1:]]]
        scale0 = frames.scale(sde, t, self.prediction)

        def weights(used: tuple[int, ...], to: Tensor, scale: Tensor) -> list[Tensor]:
            if not used:
                return []
            nodes = torch.stack([lam[j] for j in used], 1)
            w = frames.weights(sde, start, to, nodes, self.prediction, "lambda") * scale[:, None]
            return [
                w[:, used.index(j)] if j in used else torch.zeros_like(to)
                for j in range(max(used) + 1)
            ]

        stages = []
        for u, at, used in zip(points, lam, self.uses, strict=False):
            scale = frames.scale(sde, u, self.prediction)
            p, q = frames.predict(sde, u, self.prediction)
            stages.append(_column(sde, u, scale / scale0, p, q, weights(used, at, scale)))
        scale = frames.scale(sde, s, self.prediction)
        ends = torch.stack(weights(self.uses[-1], end, scale), 1).tolist()
        results = list(zip((scale / scale0).tolist(), ends, strict=True))
        return list(zip(_transposed(stages), results, strict=True))


@dataclass(frozen=True)
class Singlestep2(Singlestep):
    """DPM-Solver++(2S), or DPM-Solver-2 with prediction=eps: two evaluations a step."""

    order: ClassVar[int | None] = 2
    evaluations: ClassVar[int] = 2
    default_steps: ClassVar[int] = 15


@dataclass(frozen=True)
class Singlestep3(Singlestep):
    """DPM-Solver++(3S), or DPM-Solver-3 with prediction=eps: three evaluations a step."""

    order: ClassVar[int | None] = 3
    evaluations: ClassVar[int] = 3
    default_steps: ClassVar[int] = 10
    nodes: ClassVar[tuple[float, ...]] = (0.0, 1 / 3, 2 / 3)
    uses: ClassVar[tuple[tuple[int, ...], ...]] = ((), (0,), (0, 1), (0, 2))
