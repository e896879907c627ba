"""The probability flow by torchdiffeq's adaptive solvers, as a method of the loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from score_sde.checks import Count, Positive, validated
from score_sde.ode.solve import Solver, solve_ode
from score_sde.sampling.method import Predictor, Trajectory


@validated("sampling.options")
@dataclass(frozen=True)
class AdaptiveODE(Predictor):
    """The probability flow with error control (2011.13456, section 4.3), by torchdiffeq.

    rtol, atol: tolerances of a step. solver: one of dopri5, dopri8, bosh3, fehlberg2,
    adaptive_heun. Steps adapt to the whole batch, so a sample may change within the tolerance
    with the batch it is in.
    """

    rtol: Positive = 1e-5
    atol: Positive = 1e-5
    solver: Solver = "dopri5"
    max_evaluations: Count = 10_000
    evaluations: ClassVar[int] = 0  # as many as the tolerance needs
    stochastic: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    default_steps: ClassVar[int] = 1

    def step(  # type: ignore[override]
        self, run: Trajectory, x: Tensor, t: Tensor, s: Tensor
    ) -> Tensor:
        flow = run.sde.reverse(run.score, 0.0)

        def field(time: Tensor, state: Tensor) -> Tensor:
            return flow.drift(state, time)

        return solve_ode(field, x, t, s, self.rtol, self.atol, self.solver, self.max_evaluations)
