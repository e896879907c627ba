r"""What a few samples, done again at a greater cost, say of the errors of all.

*Solver.* With half as many evaluations more the error of a method of order 6 (see `along`) is a
tenth of what it was: the change is 1 - (2/3)^6 of the error. Its root mean square over the few is
said of all samples of `adams`. The errors of the steps of `dopri5` are shared out as they are, and
scaled to that.

*Truncation.* See `truncation`: the same from smaller t_min. What a change is larger than the
estimates of those samples is what they do not see, and is added to the errors of all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from score_sde.likelihood.solve import Solve
from score_sde.likelihood.truncation import TOLERANCE, finer
from score_sde.ode.clock import Clock
from score_sde.ode.flow import Counted, levels, work_dtype
from score_sde.ode.frames import Frame
from score_sde.scores import ScoreFn

FEW = 16  # samples, at most, if not told otherwise
REVEALED = 1 - (2 / 3) ** 6  # of an error, by half as many evaluations more


def how_many(batch: int) -> int:
    """One of eight, but two if there are two, and sixteen at most."""
    return min(FEW, max(-(-batch // 8), min(batch, 2)))


@dataclass(frozen=True)
class Smaller:
    """What smaller t_min say of this one.

    change: rms, in nats. t_min: the one that does (None where this one does, or none was found),
    and ``left``, what still smaller ones change there.
    """

    change: float = 0.0
    t_min: float | None = None
    left: float = 0.0

    def advice(self, t_min: float) -> str:
        """A sentence."""
        found = f"stopping at t_min={t_min:g} leaves an error of about {self.change:.2g} nats"
        if self.t_min is None:
            return f"{found}, and no smaller t_min that was tried does better."
        return f"{found}; t_min={self.t_min:.3g} leaves less than {TOLERANCE:g}."

    def unseen(self, estimates: Tensor) -> float:
        """What of the change these samples' own estimates do not explain."""
        return math.sqrt(max(self.change**2 - float(estimates.square().mean()), 0.0))


@dataclass(frozen=True)
class Few:
    """Some samples, and how they are solved."""

    score: ScoreFn
    frame: Frame
    clock: Clock
    x: Tensor
    seeds: Sequence[int]

    def smaller(self, solve: Solve) -> Smaller:
        """What smaller t_min say; nothing of a bound, which always holds."""
        if solve.by.truncation != "corrected":
            return Smaller()
        flow, _ = solve.flow(Counted(self.score), self.frame, self.clock, self.x, self.seeds)
        y, level = self.x.flatten(1).to(work_dtype(self.x)), levels(solve.sde, solve.t_min)[0]
        found = finer(flow, y, level, solve.exact)
        change, left = (float(v.square().mean().sqrt()) for v in (found.change, found.left))
        if found.level is None or math.isnan(found.level):
            return Smaller(change)
        t = float(flow.time(torch.tensor(found.level, dtype=torch.float64))[0])
        return Smaller(change, t, left)

    def solver_error(self, solve: Solve, nats: Tensor, error: Tensor) -> Tensor:
        """The solver's error of all samples (B,), the first of them these, by a finer solution.

        nats: (few, K), what was found of these; error: what the solution itself says (B,). Samples
        that have steps of their own keep what these say at least: the few tell little of others.
        """
        better = solve.finer()(Counted(self.score), self.frame, self.clock, self.x, self.seeds)
        off = (better.nats - nats).mean(1).square().mean().sqrt() / REVEALED
        size = error[: len(nats)].square().mean().sqrt()
        if solve.by.solver == "adams" or float(size) == 0:
            return torch.full_like(error, float(off))
        return error * (off / size).clamp(min=1)
