r"""The probability flow, in coordinates where Gaussian data stand still.

In the z of a `Frame` the linear part of the flow cancels. With what the score has beyond that of
the frame's Gaussian,

    rho = score_y + U (s^2 + v)^{-1} U^T (y - m),

and the density of z (instantaneous change of variables, 1806.07366, thm. 1)

    dz/ds = -s (s^2 + v)^{-1/2} U^T rho,      d log p(z)/ds = s tr(d rho / dy).

Both vanish for that Gaussian, and its part of the trace is in closed form. Time is that of `clock`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.ode.adaptive import Slope
from score_sde.ode.along import Node
from score_sde.ode.clock import Clock
from score_sde.ode.divergence import score_and_jacobian, score_and_traces
from score_sde.ode.frames import Frame
from score_sde.processes.sdes import SDE
from score_sde.scores import Rows, ScoreFn, take


def work_dtype(x: Tensor) -> torch.dtype:
    """Of the solver's own arithmetic: float64 where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def levels(sde: SDE, t_min: float | None = None) -> tuple[Tensor, Tensor]:
    """s = sigma/alpha at t_min (by default the process's own) and at t_max; float64 ()."""
    times = torch.tensor([sde.t_min if t_min is None else t_min, sde.t_max], dtype=torch.float64)
    low, high = (sde.sigma(times) / sde.alpha(times)).unbind()
    return low, high


class Counted:
    """A score, and how often it was evaluated, parts of the batch included."""

    def __init__(self, score: ScoreFn, whole: Counted | None = None):
        self.score, self.calls, self.whole = score, 0, whole or self

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.whole.calls += 1
        return self.score(x, t)

    def take(self, rows: Rows) -> Counted:
        """The score of these samples, counted here."""
        return Counted(take(self.score, rows), self.whole)


class Look(NamedTuple):
    """Of p(y) at one level, in the frame's axes: score (B, D), traces (B, K), Hessian (B, D, D)."""

    score: Tensor
    traces: Tensor
    hessian: Tensor | None = None


@dataclass(frozen=True)
class Flow:
    """The slopes of one batch: of states [z, log p(z)] (B, D + K), with K columns of the density.

    probes: (K, B, ...) of Hutchinson's estimate, None for exact traces, in K = 1 column. traced:
    whether the density is wanted at all; otherwise K = 0. shape, dtype: of a state as the score
    takes it.
    """

    sde: SDE
    score: Counted
    frame: Frame
    clock: Clock
    shape: tuple[int, ...]
    dtype: torch.dtype
    probes: Tensor | None = None
    traced: bool = True

    def take(self, rows: Rows) -> Flow:
        """The flow of these samples."""
        probes = None if self.probes is None else self.probes[:, rows]
        return replace(self, score=self.score.take(rows), probes=probes)

    def at(self, u: Tensor) -> Sequence[Slope]:
        """The slopes at each of the times u (S, B), as functions of the state."""
        return [partial(self.slope, u=row) for row in u]

    def time(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """(t, alpha) at the level s, like it."""
        t = self.sde.time_of_log_snr(-2 * s.log()).clamp(max=self.sde.t_max)
        return t, self.sde.alpha(t)

    def state(self, z: Tensor, s: Tensor) -> Tensor:
        """x (B, ...) of z at the level s, for the score."""
        y = self.frame.to_y(z, s)
        return (self.time(s)[1].to(y)[..., None] * y).reshape(-1, *self.shape).to(self.dtype)

    def coordinates(self, x: Tensor, s: Tensor) -> Tensor:
        """z (B, D) of x (B, ...) at the level s ()."""
        return self.frame.to_z(x.flatten(1).to(self.frame.mean) / float(self.time(s)[1]), s)

    def score_y(self, z: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """(score of p(y) in the frame's axes (B, D), its divergence (B, K)); one evaluation."""
        (t, alpha), x = self.time(s), self.state(z, s)
        alpha = alpha.to(z)[..., None]
        if self.traced:
            found = score_and_traces(self.score, x, t, self.probes)
            value, traces = found.score, alpha**2 * found.traces.T.to(z)
        else:
            value, traces = self.score(x, t), z[:, :0]
        return self.frame.rotate(alpha * value.flatten(1).to(z)), traces

    def look(self, z: Tensor, s: Tensor, hessian: bool = False) -> Look:
        """The score at the level s, and what else is asked for; one evaluation."""
        if not hessian:
            return Look(*self.score_y(z, s))
        (t, alpha), x = self.time(s), self.state(z, s)
        alpha = alpha.to(z)[..., None]
        value, jacobian = score_and_jacobian(self.score, x, t)
        turned = self.frame.rotate(self.frame.rotate(jacobian.to(z)).mT)
        score, found = (
            self.frame.rotate(alpha * value.flatten(1).to(z)),
            alpha[..., None] ** 2 * turned,
        )
        return Look(score, found.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True), found)

    def slope(self, state: Tensor, u: Tensor) -> Tensor:
        """The right-hand side at time u, () or (B,); like the state."""
        s, z = self.clock.level(u), state[:, : self.dim]
        return self.turn(z, s, *self.score_y(z, s))

    def turn(self, z: Tensor, s: Tensor, score: Tensor, traces: Tensor) -> Tensor:
        """The right-hand side at a level, once its score and traces are known."""
        scale, pace = self.frame.scale(s), (s * self.clock.speed(s)).to(z)[..., None]
        rho = score + z / scale  # z / scale = (s^2 + v)^{-1} U^T (y - m)
        dz = -pace / scale * rho
        if not self.traced:
            return dz
        return torch.cat([dz, pace * (traces + self._gaussian_trace(scale, z))], 1)

    def node(self, state: Tensor, slope: Tensor, u: Tensor) -> Node:
        """A state (B, D + K) of a path at time u (), with its slope and the gradient of log p(z).

        dz/du = -pace (score + z/scale) / scale, and the gradient by z is that by y times scale.
        """
        s, z, f = self.clock.level(u), state[:, : self.dim], slope[:, : self.dim]
        gradient = -z - self.frame.scale(s) ** 2 / (s * self.clock.speed(s)).to(z) * f
        return Node(z, f, gradient, slope[:, self.dim :])

    def _gaussian_trace(self, scale: Tensor, z: Tensor) -> Tensor:
        """tr (s^2 + v)^{-1}, or the probes' estimate of it, (B, K)."""
        inverse = (1 / scale**2).expand_as(z)
        if self.probes is None:
            return inverse.sum(1, keepdim=True)
        v = self.frame.rotate(self.probes.flatten(2).to(z))
        return (v.square() * inverse).sum(2).T

    @property
    def dim(self) -> int:
        """D, the number of coordinates."""
        return torch.Size(self.shape).numel()
