r"""The probability flow from data to noise, in coordinates where Gaussian data stand still.

With y = x/alpha and s = sigma/alpha the flow of every process is dy/ds = -s score_y(y, s). Let
N(m, U diag(lambda) U^T) be a Gaussian somewhere near the data, and

    z = U^T (y - m) / sqrt(s^2 + lambda),      rho = score_y + U (s^2 + lambda)^{-1} U^T (y - m),

rho being what the score has beyond that Gaussian's. The linear part of the flow cancels, and with
the density of z (instantaneous change of variables, 1806.07366, thm. 1)

    dz/ds = -s (s^2 + lambda)^{-1/2} U^T rho,      d log p(z)/ds = s tr(d rho / dy).

Both vanish for that Gaussian, and its part of the trace is in closed form. Time is
u = log((s + k)/(1 + s/c)): log s around the data's scale, linear in s below k, and saturating above
c. In it equal steps do nearly as well as adaptive ones (`adams`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from score_sde.likelihood.divergence import score_and_traces
from score_sde.ode.adams import Slopes
from score_sde.processes.sdes import SDE
from score_sde.scores import ScoreFn, take


def work_dtype(x: Tensor) -> torch.dtype:
    """Of the solver's own arithmetic: float64 where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


@dataclass(frozen=True)
class Clock:
    """u = log((s + k)/(1 + s/c)) between two noise levels s = sigma/alpha."""

    k: float
    c: float

    def u(self, s: float) -> float:
        """Time at a level."""
        return math.log((s + self.k) / (1 + s / self.c))

    def level(self, u: float) -> float:
        """The level at a time."""
        return (math.exp(u) - self.k) / (1 - math.exp(u) / self.c)

    def speed(self, s: float) -> float:
        """ds/du."""
        return (s + self.k) * (s + self.c) / (self.c - self.k)


@dataclass(frozen=True)
class Frame:
    """z of the module for N(mean, U diag(variances) U^T); mean and variances (D,) or ().

    axes: U, columns (D, D), or None where they do not matter.
    """

    mean: Tensor
    variances: Tensor
    axes: Tensor | None = None

    def scale(self, s: float) -> Tensor:
        """sqrt(s^2 + lambda)."""
        return (self.variances + s**2).sqrt()

    def to_z(self, y: Tensor, s: float) -> Tensor:
        """z of y (B, D)."""
        return self.rotate(y - self.mean) / self.scale(s)

    def to_y(self, z: Tensor, s: float) -> Tensor:
        """y of z (B, D)."""
        z = z * self.scale(s)
        return self.mean + (z if self.axes is None else z @ self.axes.T)

    def rotate(self, v: Tensor) -> Tensor:
        """U^T v for rows v (..., D)."""
        return v if self.axes is None else v @ self.axes

    def log_scale(self, s: float, dim: int) -> float:
        """log |dy/dz|."""
        return float(self.scale(s).log().expand(dim).sum())


def levels(sde: SDE, t_min: float | None = None) -> tuple[float, float]:
    """s = sigma/alpha at t_min (by default the process's own) and at t_max."""
    times = torch.tensor([sde.t_min if t_min is None else t_min, sde.t_max], dtype=torch.float64)
    low, high = (sde.sigma(times) / sde.alpha(times)).tolist()
    return low, high


@dataclass
class Flow:
    """dz/du and d log p(z)/du of one batch; counts its evaluations of the score.

    probes: (K, B, ...) of Hutchinson's estimate, None for exact traces. traced: whether the
    density is wanted at all. shape, dtype: of a state as the score takes it. first: what
    `score_y` gave the first time.
    """

    sde: SDE
    score: ScoreFn
    frame: Frame
    clock: Clock
    shape: tuple[int, ...]
    dtype: torch.dtype
    probes: Tensor | None = None
    traced: bool = True
    nfe: int = 0
    first: Slopes | None = None

    def part(self, n: int) -> Flow:
        """The same for the first n samples, counting for itself."""
        probes = None if self.probes is None else self.probes[:, :n]
        return replace(self, score=take(self.score, slice(n)), probes=probes, nfe=0)

    def time(self, s: float) -> tuple[Tensor, float]:
        """(t, alpha) at the level s."""
        level = torch.tensor(s, dtype=torch.float64)
        t = self.sde.time_of_log_snr(-2 * level.log()).clamp(max=self.sde.t_max)
        return t, float(self.sde.alpha(t))

    def state(self, z: Tensor, s: float) -> Tensor:
        """x (B, ...) of z at the level s, for the score."""
        y = self.frame.to_y(z, s)
        return (self.time(s)[1] * y).reshape(-1, *self.shape).to(self.dtype)

    def coordinates(self, x: Tensor, s: float) -> Tensor:
        """z (B, D) of x (B, ...) at the level s."""
        return self.frame.to_z(x.flatten(1).to(work_dtype(x)) / self.time(s)[1], s)

    def score_y(self, z: Tensor, s: float) -> tuple[Tensor, Tensor]:
        """(score of p(y) in the frame's axes (B, D), its divergence (K, B)); one evaluation."""
        (t, alpha), x = self.time(s), self.state(z, s)
        self.nfe += 1
        if self.traced:
            found = score_and_traces(self.score, x, t, self.probes)
            value, traces = found.score, alpha**2 * found.traces.to(z.dtype)
        else:
            value, traces = self.score(x, t), torch.zeros(1, len(z), dtype=z.dtype, device=z.device)
        return self.frame.rotate(alpha * value.flatten(1).to(z.dtype)), traces

    def gaussian_trace(self, s: float, like: Tensor) -> Tensor:
        """tr (s^2 + lambda)^{-1}, or the probes' estimate of it, (K, B)."""
        inverse = (1 / (self.frame.variances + s**2)).expand(like.shape[1])
        if self.probes is None:
            return inverse.sum().expand(1, len(like))
        v = self.frame.rotate(self.probes.flatten(2).to(like.dtype))
        return (v.square() * inverse).sum(2)

    def slopes(self, z: Tensor, u: float) -> Slopes:
        """The right-hand sides at time u."""
        s = self.clock.level(u)
        score, traces = self.score_y(z, s)
        if self.first is None:
            self.first = score, traces
        scale, speed = self.frame.scale(s), self.clock.speed(s)
        rho = score + z / scale  # z / scale = (s^2 + lambda)^{-1} U^T (y - m)
        dz = -s * speed / scale * rho
        if not self.traced:
            return dz, traces
        return dz, s * speed * (traces + self.gaussian_trace(s, z))
