r"""Adaptive methods in which every sample has its own steps, see `ode.adaptive`.

`RK45` integrates dz/dlambda = speed F in the F frame of `frames` with the pair of Dormand and
Prince (1980). `AdaptiveSDE` is stochastic improved Euler with an embedded Euler-Maruyama step
(2105.14080, algorithm 1), but never rejects: whether a step is rejected depends on its noise, so
drawing anew after a rejection is a selection, and the law comes out wrong at any tolerance. An
error too large shortens the next step instead, which only knows the past.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from score_sde.checks import Count, Positive, validated
from score_sde.ode import frames
from score_sde.ode.adaptive import Slope, StoppedError, integrate_each
from score_sde.ode.solve import ODEError
from score_sde.processes.expand import expand
from score_sde.processes.sdes import SDE
from score_sde.sampling.method import Predictor, Trajectory
from score_sde.scores import Rows, ScoreFn, take


def _work_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64


@validated("sampling.options")
@dataclass(frozen=True)
class RK45(Predictor):
    """The probability flow by Dormand-Prince 5(4), each sample with its own steps.

    rtol, atol: of a step, on z of unit variance. data_std: standard deviation of x_0 for the
    frame; it affects the cost only. max_evaluations: of any sample, then `ODEError`.
    """

    rtol: Positive = 1e-5
    atol: Positive = 1e-5
    data_std: Positive = 1.0
    max_evaluations: Count = 10_000
    evaluations: ClassVar[int] = 0
    stochastic: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    default_steps: ClassVar[int] = 1

    def step(  # type: ignore[override]
        self, run: Trajectory, x: Tensor, t: Tensor, s: Tensor
    ) -> Tensor:
        start, end = frames.half_log_snr(run.sde, torch.stack([t, s])).tolist()
        field = _FField(run.sde, run.score, self.data_std)
        z = x / field.scale(torch.full((1,), start, dtype=_work_dtype(x), device=x.device), x)
        try:
            z = integrate_each(
                field, z, start, end, self.rtol, self.atol, self.max_evaluations
            ).state
        except StoppedError as error:
            at = torch.tensor(2 * error.where, dtype=torch.float64)
            raise ODEError(
                f"RK45 stopped at t={float(run.sde.time_of_log_snr(at)):.3g} {error}. Check that "
                "the score is finite; if it is, the flow is stiff: raise sde.t_min, loosen rtol "
                "and atol, raise max_evaluations, or use method=heun."
            ) from error
        return z * field.scale(torch.full((1,), end, dtype=_work_dtype(x), device=x.device), x)


@dataclass(frozen=True)
class _FField:
    """dz/dlambda = c (z + r score(r z, t)) with c = s^2/(s^2 + sd^2), x = r z, s = sigma/alpha."""

    sde: SDE
    score: ScoreFn
    data_std: float

    def scale(self, lam: Tensor, x: Tensor) -> Tensor:
        """r = alpha sqrt(s^2 + sd^2), to multiply states like x; lam (..., B)."""
        alpha = self.sde.alpha(self.sde.time_of_log_snr(2 * lam))
        r = alpha * (torch.exp(-2 * lam) + self.data_std**2).sqrt()
        return r.to(x.dtype).reshape(*r.shape, *[1] * (x.ndim - 1))

    def take(self, rows: Rows) -> _FField:
        return replace(self, score=take(self.score, rows))

    def at(self, u: Tensor) -> list[Slope]:
        t, s2 = self.sde.time_of_log_snr(2 * u), torch.exp(-2 * u)
        c = s2 / (s2 + self.data_std**2)

        def slope(z: Tensor, i: int) -> Tensor:
            on = c[i].to(z.dtype).reshape(-1, *[1] * (z.ndim - 1))
            r = self.scale(u[i], z)
            return on * torch.addcmul(z, self.score(z * r, t[i]), r)

        return [partial(slope, i=i) for i in range(len(u))]


@validated("sampling.options")
@dataclass(frozen=True)
class AdaptiveSDE(Predictor):
    """The reverse SDE with error control, each sample with its own steps (after 2105.14080).

    rtol, atol: error of a step that is aimed at (atol 0.0078 is one level of 8-bit images in
    [-1, 1]). safety, exponent: of the step size. max_evaluations: of any sample, then `ODEError`.
    """

    rtol: Positive = 0.02
    atol: Positive = 0.0078
    safety: Positive = 0.9
    exponent: Positive = 0.5
    max_evaluations: Count = 10_000
    evaluations: ClassVar[int] = 0
    linear: ClassVar[bool] = False
    default_steps: ClassVar[int] = 1

    def step(  # type: ignore[override]
        self, run: Trajectory, x: Tensor, t: Tensor, s: Tensor
    ) -> Tensor:
        dtype, batch, end = _work_dtype(x), x.shape[0], float(s)
        reverse = run.sde.reverse(run.score)
        result = torch.empty_like(x)
        where = torch.arange(batch, device=x.device)
        time = torch.full((batch,), float(t), dtype=dtype, device=x.device)
        h = torch.full_like(time, 0.001 * float(t - s))
        before, count = x, 0
        while len(where):
            count += 2
            if count > self.max_evaluations:
                raise ODEError(
                    f"adaptive SDE stopped at t={float(time.max()):.3g} after {count} evaluations. "
                    "Loosen rtol and atol, or raise max_evaluations."
                )
            z = run.noise(where)
            h = torch.minimum(h, time - end)
            later, root = time - h, h.sqrt()
            drift = reverse.drift(x, time)
            euler = x - expand(h, x) * drift + expand(root * reverse.diffusion(time), x) * z
            again = x - expand(h, x) * reverse.drift(euler, later)
            again = again + expand(root * reverse.diffusion(later), x) * z
            better = 0.5 * (euler + again)
            size = torch.maximum(euler.abs(), before.abs())
            tolerance = (self.rtol * size).clamp_min(self.atol)
            ratio = ((euler - better) / tolerance).flatten(1).square().mean(1).sqrt().to(dtype)
            if not bool(torch.isfinite(ratio).all()):
                raise ODEError(
                    f"adaptive SDE stopped at t={float(time.max()):.3g} after {count} evaluations: "
                    "the score is not finite there (check the model)."
                )
            x, before, time = better, euler, later
            h = h * (self.safety * ratio.clamp_min(1e-8) ** -self.exponent).clamp(0.3, 2.0)
            arrived = time - end <= 1e-12 * float(t)
            if bool(arrived.any()):
                result[where[arrived]] = x[arrived]
                left = ~arrived
                where, x, before = where[left], x[left], before[left]
                time, h = time[left], h[left]
                reverse = run.sde.reverse(take(run.score, where))
        return result
