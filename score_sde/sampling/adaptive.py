r"""Adaptive methods in which every sample has its own steps.

Solvers that choose one step size for the whole batch make a sample depend on its batch mates. Here
the time, the step size and the error of each sample are entries of (B,) tensors; a sample that has
arrived leaves the batch, and one that rejects a step repeats it alone.

`RK45` integrates dz/dlambda = speed F in the F frame of `frames` with the pair of Dormand and
Prince (1980). `AdaptiveSDE` is stochastic improved Euler with an embedded Euler-Maruyama step
(2105.14080, algorithm 1), but never rejects: whether a step is rejected depends on its noise, so
drawing anew after a rejection is a selection, and the law comes out wrong at any tolerance. An
error too large shortens the next step instead, which only knows the past.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from score_sde.ode import frames
from score_sde.ode.solve import ODEError
from score_sde.processes.expand import expand
from score_sde.processes.sdes import SDE
from score_sde.sampling.method import Predictor, Trajectory, check_tolerances
from score_sde.scores import take

# Dormand-Prince 5(4): stages, and the difference of its two results.
_A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def _work_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64


@dataclass(frozen=True)
class RK45(Predictor):
    """The probability flow by Dormand-Prince 5(4), each sample with its own steps.

    rtol, atol: of a step, on z of unit variance. data_std: standard deviation of x_0 for the
    frame; it affects the cost only. max_evaluations: of any sample, then `ODEError`.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    data_std: float = 1.0
    max_evaluations: int = 10_000
    evaluations: ClassVar[int] = 0
    stochastic: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    default_steps: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol)
        frames.check_positive("data_std", self.data_std)

    def _coefficients(self, sde: SDE, lam: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """t (S, B), and c, r (S, B, 1, ...) like x, with dz/dlambda = c (z + r score), x = r z.

        In the F frame c = s^2/(s^2 + sd^2) and r = alpha sqrt(s^2 + sd^2), s = sigma/alpha.
        """
        t = sde.time_of_log_snr(2 * lam)
        s2 = torch.exp(-2 * lam)
        total = s2 + self.data_std**2
        axes = [1] * (x.ndim - 1)
        c, r = s2 / total, sde.alpha(t) * total.sqrt()
        c, r = (v.to(x.dtype).reshape(*v.shape, *axes) for v in (c, r))
        return t, c, r

    def step(  # type: ignore[override]
        self, run: Trajectory, x: Tensor, t: Tensor, s: Tensor
    ) -> Tensor:
        sde, dtype = run.sde, _work_dtype(x)
        start, end = frames.half_log_snr(sde, torch.stack([t, s])).tolist()
        batch = x.shape[0]
        result = torch.empty_like(x)
        where = torch.arange(batch, device=x.device)  # places of the samples still on their way
        lam = torch.full((batch,), start, dtype=dtype, device=x.device)
        nodes = torch.tensor(_C[1:], dtype=dtype, device=x.device)[:, None]
        h = torch.full_like(lam, 0.05 * (end - start))
        t0, c, r = self._coefficients(sde, lam[None], x)
        z, score = x / r[0], run.score
        first = c[0] * torch.addcmul(z, score(x, t0[0]), r[0])
        count = 1
        while len(where):
            count += len(_C) - 1
            if count > self.max_evaluations:
                raise _stopped(run, lam, h, count, finite=True)
            h = torch.minimum(h, end - lam)
            size = h.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
            times, c, r = self._coefficients(sde, lam + nodes * h, x)
            k = [first]
            for i, row in enumerate(_A[1:]):
                y = torch.addcmul(z, _weighted(k, row), size)
                k.append(c[i] * torch.addcmul(y, score(y * r[i], times[i]), r[i]))
            error = _weighted(k, _E) * size
            tolerance = self.atol + self.rtol * torch.maximum(z.abs(), y.abs())
            ratio = (error / tolerance).flatten(1).square().mean(1).sqrt().to(dtype)
            if not bool(torch.isfinite(ratio).all()):
                raise _stopped(run, lam, h, count, finite=False)
            accepted = ratio <= 1
            keep = accepted.reshape(size.shape)
            z, first = torch.where(keep, y, z), torch.where(keep, k[-1], first)
            lam = torch.where(accepted, lam + h, lam)
            h = h * (0.9 * ratio.clamp_min(1e-10) ** -0.2).clamp(0.2, 5.0)
            # Rounding may leave a sliver before the end; it counts as arrived.
            arrived = accepted & (end - lam <= 1e-12 * abs(end - start))
            if bool(arrived.any()):
                result[where[arrived]] = (y * r[-1])[arrived]
                left = ~arrived
                where, z, first, lam, h = where[left], z[left], first[left], lam[left], h[left]
                score = take(run.score, where)
            if bool((h < 1e-10 * (end - start)).any()):
                raise _stopped(run, lam, h, count, finite=True)
        return result


def _weighted(values: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    """sum_j weights[j] values[j], a new tensor."""
    total = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=False):
        if weight:
            total.add_(value, alpha=weight)
    return total


def _stopped(run: Trajectory, lam: Tensor, h: Tensor, count: int, finite: bool) -> ODEError:
    t = float(run.sde.time_of_log_snr(2 * lam.min().cpu().double()))
    cause = (
        f"steps have shrunk to {float(h.min()):.1e} in lambda though the field is finite (stiff): "
        "raise sde.t_min, loosen rtol and atol, raise max_evaluations, or use method=heun."
        if finite
        else "the field is not finite there: the score itself is broken (check the model)."
    )
    return ODEError(f"RK45 stopped at t={t:.3g} after {count} evaluations: {cause}")


@dataclass(frozen=True)
class AdaptiveSDE(Predictor):
    """The reverse SDE with error control, each sample with its own steps (after 2105.14080).

    rtol, atol: error of a step that is aimed at (atol 0.0078 is one level of 8-bit images in
    [-1, 1]). safety, exponent: of the step size. max_evaluations: of any sample, then `ODEError`.
    """

    rtol: float = 0.02
    atol: float = 0.0078
    safety: float = 0.9
    exponent: float = 0.5
    max_evaluations: int = 10_000
    evaluations: ClassVar[int] = 0
    linear: ClassVar[bool] = False
    default_steps: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol)

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
