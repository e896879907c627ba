r"""Sampling in parallel in time: many steps of one trajectory at once, the same samples.

A method without noise asks the score at N states in turn, each made of the answers before it. Given
a guess of all answers, going through the method without the network gives all N states at once; the
network then answers at all of them in one batch, and so on (Picard's iteration, 2305.16317). The
samples of the usual loop are the one fixed point, and since the first k states are final after k
sweeps, N sweeps reach it whatever happens; a flow that turns little takes far fewer.

What is kept between sweeps is not the score but F (see `frames`), of which the score at a state
that has moved is made again: F changes little along the flow, the score, -eps/sigma, by orders of
magnitude. The first guess is F = 0, the flow of Gaussian data. And what F was at each state before
and after it moved tells how F changes there: Broyden's update of the slope J, for every state of
every sample alone,

    F(x) = F_k + J_k (x - x_k),    J_k = J_{k-1} + (dF - J_{k-1} dx) dx^T / |dx|^2,

is used on the way through the method (but no further from x_k than it last moved), so that states
follow one another within a sweep as in Newton's method (2309.12252), without a derivative.

A machine with idle parallelism gives samples sooner by N over the number of sweeps; the evaluations
of each sample are more than N.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from score_sde.checks import Count, Positive, Size, UserError, checked
from score_sde.ode import frames
from score_sde.processes.sdes import SDE
from score_sde.sampling.loop import SampleResult, StepNoise, Watched, check_finite
from score_sde.sampling.method import Trajectory, advance
from score_sde.sampling.plan import Plan, make_plan
from score_sde.scores import ScoreFn, take


@dataclass(frozen=True, repr=False)
class ParallelResult(SampleResult):
    """`SampleResult` with the depth: how many evaluations had to wait for one another.

    depth: batches of evaluations one after the other. sequential: as many as the usual loop takes.
    """

    depth: int = 0
    sequential: int = 0

    def __str__(self) -> str:
        return f"{super().__str__()}; depth {self.depth} of {self.sequential}"


@checked
def sample_parallel(
    sde: SDE,
    score: ScoreFn,
    shape: Sequence[int] | None = None,
    *,
    tolerance: Positive = 1e-3,
    window: Count | None = None,
    data_std: Positive,
    x_T: Tensor | None = None,
    method: str = "adams",
    steps: Size | None = None,
    nfe: Size | None = None,
    grid: Any = None,
    seeds: Sequence[int] | None = None,
    denoise: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> ParallelResult:
    """What `sample` gives by a method without noise, in fewer evaluations one after the other.

    tolerance: how far a sample may be from that of `sample`, rms over coordinates in units of
        data_std: a state counts as final when a sweep moves no sample's by more than a third of it.
        Samples that start where flows part may be further off.
    window: how many states the network is asked about at once, times the batch; all if None. Each
        keeps up to twenty tensors of its size.
    data_std: of x_0, for F. The other arguments are those of `sample`; with seeds, x_T is the same.

    Raises UserError for a method that draws noise, or that takes other than one evaluation a step.
    """
    told = {"data_std": data_std} if method in ("adams", "adams_sde") else {}
    plan = make_plan(
        sde, shape, x_T, method, steps, nfe, grid, seeds, denoise, "seeded", 1.0, None, device,
        dtype, told | options,
    )  # fmt: skip
    if plan.method.stochastic or plan.method.evaluations != 1:
        raise no_method(plan)
    started, watched = time.perf_counter(), Watched(score, plan.score_dtype, plan.shape[0])
    with torch.no_grad():
        sweeps = _Sweeps(plan, watched, data_std)
        x, spent = sweeps.solve(CAREFUL * tolerance, window or plan.steps + plan.denoise)
    x = x.to(plan.score_dtype)
    check_finite(x, plan.name, sweeps.depth)
    settings = plan.settings() | {"tolerance": tolerance}
    return ParallelResult(
        x, spent, time.perf_counter() - started, settings, sweeps.depth, plan.steps + plan.denoise
    )


SECANTS = 10  # kept of each state, each of two tensors like it
CAREFUL = 0.3  # of the tolerance: how far a final state may have moved in the last sweep


class Answer:
    """What F is taken to be near a state: its value there, and its slope by secants."""

    def __init__(self, value: Tensor):
        self.value = value
        self.state: Tensor | None = None
        self.secants: list[tuple[Tensor, Tensor]] = []  # J = sum_j rise_j run_j^T
        self.reach = value  # (B, 1, ...): how far the state moved last

    def at(self, x: Tensor) -> Tensor:
        """F at x, like x."""
        if self.state is None or not self.secants:
            return self.value
        step = x - self.state
        far = _dot(step, step).sqrt().clamp_min(torch.finfo(x.dtype).tiny)
        return self.value + self._slope(step) * (self.reach / far).clamp(max=1)

    def _slope(self, step: Tensor) -> Tensor:
        """J step."""
        return sum((rise * _dot(run, step) for rise, run in self.secants), torch.zeros_like(step))

    def asked(self, x: Tensor, value: Tensor) -> None:
        """The network has answered at x."""
        if self.state is not None:
            step = x - self.state
            size = _dot(step, step)
            rise = value - self.value - self._slope(step)
            run = torch.where(size > 0, step / size, torch.zeros_like(step))
            self.secants, self.reach = [*self.secants, (rise, run)][-SECANTS:], size.sqrt()
        self.state, self.value = x, value


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of samples, (B, 1, ...)."""
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))


def no_method(plan: Plan) -> UserError:
    """That the samples of this one cannot be found so."""
    return UserError(
        f"{plan.name} cannot be run in parallel in time: that takes a method without noise and of "
        "one evaluation a step, as adams, ddim (eta=0) or dpmpp_2m."
    )


class _Sweeps:
    """The states that a plan's method asks about, by what F is taken to be at each."""

    def __init__(self, plan: Plan, score: Watched, data_std: float):
        self.plan, self.score, self.depth = plan, score, 0
        self.start = StepNoise(plan, slice(0, plan.shape[0])).start
        self.times = plan.times if plan.denoise else plan.times[:-1]
        on_x, on_score = frames.predict(plan.sde, self.times, "F", data_std)
        self.on_x, self.on_score = on_x.tolist(), on_score.tolist()
        self.width = frames.scale(plan.sde, self.times, "F", data_std).tolist()

    def states(self, answers: list[Answer]) -> tuple[list[Tensor], Tensor]:
        """Where the method asks, and where it ends, if F were what these say."""
        asked: list[Tensor] = []

        def known(x: Tensor, t: Tensor) -> Tensor:
            i = len(asked)
            asked.append(x)
            return (answers[i].at(x) - self.on_x[i] * x) / self.on_score[i]

        def drawn(*which: Any) -> Tensor:
            raise no_method(self.plan)  # by its options, as ddim with eta > 0

        plan, x = self.plan, self.start
        run = Trajectory(plan.sde, known, drawn)
        points = plan.times.unbind()
        for i, numbers in enumerate(plan.numbers):
            x = advance(plan.method, run, x, points[i], points[i + 1], numbers)
        return asked, run.denoise(x, points[-1]) if plan.denoise else x

    def solve(self, tolerance: float, window: int) -> tuple[Tensor, int]:
        """(samples, evaluations of each) once no state moves by more than the tolerance."""
        n, final, spent = len(self.times), 0, 0
        answers = [Answer(torch.zeros_like(self.start)) for _ in self.times]
        states, x = self.states(answers)
        while final < n:
            here = range(final, min(final + window, n))
            found = self._ask(states, here)
            self.depth, spent = self.depth + 1, spent + len(here)
            for i, value in zip(here, found, strict=True):
                answers[i].asked(states[i], value)
            for i in range(here.stop, n):  # a guess, until it is their turn
                answers[i] = Answer(answers[here.stop - 1].value)
            before = states
            states, x = self.states(answers)
            final = self._final(before, states, here, tolerance)
        return x, spent

    def _final(
        self, before: list[Tensor], after: list[Tensor], here: range, tolerance: float
    ) -> int:
        """How many states are final: those up to the first that moved by more than the tolerance.

        The first that was asked about had all its answers, so it is final in any case.
        """
        moved = torch.stack([(after[i] - before[i]) / self.width[i] for i in here])
        worst = moved.flatten(2).square().mean(2).sqrt().amax(1)
        still = worst[1:] <= tolerance  # nothing that is not finite is
        return here.start + 1 + int(still.long().cumprod(0).sum())

    def _ask(self, states: list[Tensor], here: range) -> list[Tensor]:
        """F at these states, in one batch."""
        batch = len(self.start)
        x = torch.cat([states[i] for i in here])
        rows = torch.arange(batch, device=x.device).repeat(len(here))
        t = self.times[here.start : here.stop].to(x.device).repeat_interleave(batch)
        score = take(self.score, rows)(x, t)
        return [
            self.on_x[i] * part + self.on_score[i] * value
            for i, part, value in zip(here, x.split(batch), score.split(batch), strict=True)
        ]
