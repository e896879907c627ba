r"""Training of maps of the flow X_{s,t}, by one objective over two times s < t.

Along the flow the map to s does not change, d/dt X_{s,t}(x_t) = 0: that, and X_{s,s}(x) = x, is
what makes it the map. A `FlowMap` turns by its direction G (see `models.flow_map`), and in the
angle theta of t the rate at which it changes is, in units of z,

    R = d X / d theta = cos(D) (v - G) - sin(D) (z + dG/dtheta),     D = theta_t - theta_s,

with v = dz/dtheta of the flow and the derivative of G along it. G is brought to where R vanishes,

    L = E w || G - stop(G + R) ||^2,        w = 1 / (mean R^2 + c)^p.

    s = t              R = v - G                            flow matching, a score model
    s = 0              R of a consistency function          sCM (2410.11081, eq. 6), p = 1/2
    any s              R of an average velocity             MeanFlow (2505.13447, eq. 8), p = 1
    gap > 0            R as a difference over gap D         ECT, CT (2406.14548); alpha-Flow
    gap = 1            the whole way from t to s            the flow itself, as far as it is solved

v is that of a teacher's score (distillation), or that of x_0 and eps themselves (training from
scratch), whose mean given x_t is the flow's: R is linear in v, but for a gap. A teacher goes over
the gap by steps of second order (2211.01095, in the angle), so that a wide one stays exact.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from score_sde.checks import Fraction, NonNegative, Positive, Size, require, validated
from score_sde.losses import LossTerms
from score_sde.models import FlowMap, angle, angle_speed, time_of_angle
from score_sde.processes.expand import expand
from score_sde.processes.sdes import SDE
from score_sde.scores import ScoreFn


class _Plain(TorchFunctionMode):
    """Group norms of plain layout: their forward mode knows no channels_last."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.group_norm:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


Teacher = Callable[..., ScoreFn]
"""teacher(**condition): the score whose flow is to be mapped, told of these rows' condition."""


@validated("teacher")
@dataclass(frozen=True)
class TeacherSettings:
    """Of a map of the flow of another run. path: of that run. guidance: of its score, 1 for none:
    the map is then that of the guided flow. steps: of its own, over the gap."""

    path: str
    guidance: Positive = 1.0
    steps: Size = 1


class Pair(NamedTuple):
    """Of x_t: the x_0 and eps whose velocity it follows."""

    x0: Tensor
    eps: Tensor


@validated("flow_map")
@dataclass(frozen=True)
class MapMatching:
    """The objective of a `FlowMap`: `objective(model, x0, times, eps, **condition)`.

    steps: the map is for grids of 1 to this many steps, equal in angle: s is a point of one of
        these, t lies between it and the next. None: for any times s < t.
    gap: R as a difference over this share of the way from t to s; 0 for the exact derivative, by
        forward-mode differentiation.
    power, floor: p and c of the weight.
    same: share of pairs with s = t; training from scratch needs some.
    stratified: spread a batch evenly over the times.
    moments: share of the training, its end, in which samples are brought to the moments of the data
        in place of this (`moments.MomentMatching`); for maps of a U-Net's flow, told nothing.
    moment_batch: samples an update then, of every process.
    """

    measures: ClassVar[str] = "rate"
    steps: Size | None = 4
    gap: Fraction = 0.1
    power: NonNegative = 0.5
    floor: Positive = 1e-2
    same: Fraction = 0.0
    stratified: bool = True
    moments: Fraction = 0.0
    moment_batch: Annotated[int, Field(ge=16, le=65_536)] = 512
    teacher: Teacher | None = field(default=None, init=False, repr=False, compare=False)
    teacher_steps: int = field(default=1, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require(
            self.steps is not None or self.same < 1,
            "flow_map.same=1 trains no map: set it below 1.",
        )

    def of_teacher(self, teacher: Teacher, steps: Size = 1) -> MapMatching:
        """The same, for the flow of this score, which is followed over the gap by so many steps."""
        made = replace(self)
        object.__setattr__(made, "teacher", teacher)
        object.__setattr__(made, "teacher_steps", steps)
        return made

    def check(self, sde: SDE) -> None:
        """Nothing that could be wrong with a process."""

    def trivial(self, model: FlowMap, t: Tensor, data_std: float) -> Tensor:
        """The mean square of v, to compare that of R with, like t."""
        return torch.ones_like(t)

    def draw_times(self, model: FlowMap, n: int, device: torch.device | str) -> Tensor:
        """n pairs (s, t), float32 (n, 2); s = 0 for the data."""
        u = torch.rand(n, 4, device=device)
        if self.stratified:
            u[:, 0] = (torch.randperm(n, device=device) + u[:, 0]) / n
        last = float(angle(model.sde, torch.tensor(model.sde.t_max), model.data_std))
        first = float(angle(model.sde, torch.tensor(model.sde.t_min), model.data_std))
        if self.steps is None:  # t of density in proportion to theta, and s evenly below it
            high = last * u[:, 0].sqrt()
            low = high * u[:, 1]
        else:
            count = 1 + torch.floor(u[:, 1] * self.steps).clamp(max=self.steps - 1)
            place = count * u[:, 0]
            low = first + (last - first) * torch.floor(place) / count
            high = first + (last - first) * place / count
            low = torch.where(place < 1, torch.zeros_like(low), low)
        high = high.clamp(first * 1.01, last)
        low = torch.where(u[:, 2] < self.same, high, torch.minimum(low, high))
        theta = torch.stack([low, high], 1).double()
        sde, std = model.sde, model.data_std
        times = time_of_angle(sde, theta.clamp(min=first / 2), std).clamp(max=sde.t_max)
        return torch.where(theta <= first, torch.zeros_like(times), times).float()

    def __call__(
        self, model: FlowMap, x0: Tensor, times: Tensor, eps: Tensor, **condition: Any
    ) -> LossTerms:
        """The loss of each x0 (B, ...) with noise eps at times (s, t) (B, 2); its error is R^2."""
        s, t = times.unbind(1)
        mean, std = model.sde.marginal(x0, t)
        x = mean + std * eps
        out = model.direction(x, t, s, **condition)
        with torch.no_grad():
            pair = Pair(x0, eps) if self.teacher is None else self._taught(model, x, t, condition)
            if self.gap:
                rate = self._difference(model, x, s, t, pair, out.detach(), condition)
            else:
                rate = self.rate(model, x, s, t, pair, **condition)
            squared = rate.square().flatten(1).mean(1)
            weight = (squared + self.floor) ** -self.power
        loss = (out - (out.detach() + rate)).square().flatten(1).mean(1)
        return LossTerms(weight * loss, t, squared)

    def _taught(self, model: FlowMap, x: Tensor, t: Tensor, condition: dict[str, Any]) -> Pair:
        """The teacher's x_0 and eps behind x."""
        assert self.teacher is not None
        eps = -expand(model.sde.sigma(t), x) * self.teacher(**condition)(x, t)
        return Pair((x - expand(model.sde.sigma(t), x) * eps) / expand(model.sde.alpha(t), x), eps)

    def rate(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, pair: Pair, **condition: Any
    ) -> Tensor:
        """R, like x: how X_{s,t}(x_t) changes with the angle of t along the way of the pair."""
        sde, end = model.sde, model.landing(s)
        size = torch.hypot(sde.sigma(end), sde.alpha(end) * model.data_std)

        exact = copy.copy(model)
        exact.precision = "fp32"  # autocast has no forward mode

        def jump(x: Tensor, t: Tensor) -> Tensor:
            return exact.jump(x, t, s, **condition)

        speed = 1 / angle_speed(sde, t, model.data_std)  # dt / dtheta
        on_x0, on_eps = (expand(rate * speed, x) for rate in sde.derivatives(t))
        way = on_x0 * pair.x0 + on_eps * pair.eps, speed.to(t)
        with sdpa_kernel(SDPBackend.MATH), _Plain():  # the fused kernels have no forward mode
            return torch.func.jvp(jump, (x, t), way)[1] / expand(size, x)

    def _difference(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, pair: Pair, out: Tensor,
        condition: dict[str, Any],
    ) -> Tensor:  # fmt: skip
        """R as a difference between t and a time u between it and s; v - G where these are one."""
        sde, std, end = model.sde, model.data_std, model.landing(s)
        at_t, at_s = angle(sde, t, std), angle(sde, end, std)
        first = angle(sde, torch.full_like(t, sde.t_min), std)
        at_u = torch.maximum(at_t - self.gap * (at_t - at_s), first)
        u = time_of_angle(sde, at_u, std).to(t)
        before = self._follow(model, x, at_t, at_u, pair, condition)
        landed = model.jump(before, u, s, **condition) / expand(
            torch.hypot(sde.sigma(end), sde.alpha(end) * std), x
        )
        z = x / expand(torch.hypot(sde.sigma(t), sde.alpha(t) * std), x)
        turn = at_t - at_s
        here = expand(turn.cos(), x) * z - expand(turn.sin(), x) * out
        v = expand(at_t.cos(), x) * pair.eps - expand(at_t.sin() / std, x) * pair.x0
        moved = expand(at_t - at_u, x)
        least = torch.finfo(x.dtype).eps ** 0.5  # below, the difference is of rounding
        return torch.where(moved > least, (here - landed) / moved.clamp(min=least), v - out)

    def _follow(
        self, model: FlowMap, x: Tensor, at_t: Tensor, at_u: Tensor, pair: Pair,
        condition: dict[str, Any],
    ) -> Tensor:  # fmt: skip
        """x_u by steps equal in angle along the pair at t, and the teacher's from there on.

        Between two angles x_0 and eps go on as they changed over the step before.
        """
        sde, std, step = model.sde, model.data_std, (at_t - at_u) / self.teacher_steps
        last = pair
        for k in range(self.teacher_steps):
            theta = at_t - k * step
            t, u = (time_of_angle(sde, at, std).to(at_t) for at in (theta, theta - step))
            if k:
                last, pair = pair, self._taught(model, x, t, condition)
            z = x / expand(torch.hypot(sde.sigma(t), sde.alpha(t) * std), x)
            x0, eps = (1.5 * now - 0.5 * before for now, before in zip(pair, last, strict=True))
            way = expand(theta.cos(), x) * eps - expand(theta.sin() / std, x) * x0
            z = expand(step.cos(), x) * z - expand(step.sin(), x) * way
            x = z * expand(torch.hypot(sde.sigma(u), sde.alpha(u) * std), x)
        return x
