r"""Methods that remember earlier evaluations: second order for one evaluation a step.

With lambda = log(alpha/sigma), h = lambda_s - lambda_t > 0 and the denoised x_0(lambda) as the
only unknown, the reverse SDE of strength eta (see `SDE.reverse`) is solved exactly by

    x_s = (sigma_s / sigma_t) e^{-eta^2 h} x_t + alpha_s (1 - e^{-(1 + eta^2) h}) D
          + sigma_s sqrt(1 - e^{-2 eta^2 h}) z

when x_0 is the constant D; D extrapolates the last two x_0 to the middle of the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from score_sde.sampling.predictors import Predictor
from score_sde.states import expand


@dataclass(frozen=True)
class DPMSolverPP2M(Predictor):
    """DPM-Solver++(2M), second order with one evaluation a step (2211.01095, alg. 2).

    eta: 0 is the probability flow, 1 the reverse SDE, others lie between or beyond.
    """

    eta: float = 0.0
    stochastic: ClassVar[bool] = False
    default_steps: ClassVar[int] = 25
    default_grid: ClassVar[str | None] = "karras"

    def __post_init__(self) -> None:
        if self.eta < 0:
            raise ValueError(f"eta must be at least 0 (got {self.eta}).")

    def step(self, run, x, t, s):
        sde, strength = run.sde, self.eta**2
        h = 0.5 * (sde.log_snr(s) - sde.log_snr(t))
        x0 = run.denoise(x, t)
        guess = x0
        if run.memory:
            before, h_before = run.memory["x0"], run.memory["h"]
            guess = x0 + expand(h / (2 * h_before), x) * (x0 - before)
        run.memory.update(x0=x0, h=h)
        kept = sde.sigma(s) / sde.sigma(t) * torch.exp(-strength * h)
        x = expand(kept, x) * x - expand(sde.alpha(s) * torch.expm1(-(1 + strength) * h), x) * guess
        if strength == 0:
            return x
        noise = sde.sigma(s) * torch.sqrt(-torch.expm1(-2 * strength * h))
        return x + expand(noise, x) * run.noise()


@dataclass(frozen=True)
class SDEDPMSolverPP2M(DPMSolverPP2M):
    """SDE-DPM-Solver++(2M): the same for the reverse SDE (2211.01095, section 5)."""

    eta: float = 1.0
    stochastic: ClassVar[bool] = True
    default_steps: ClassVar[int] = 50
