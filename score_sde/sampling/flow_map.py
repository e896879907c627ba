"""Steps of a map of the flow: one evaluation carries x_t to x_s, however far that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from score_sde.processes.expand import expand
from score_sde.sampling.method import Predictor, Trajectory


@dataclass(frozen=True)
class FlowMapSteps(Predictor[None]):
    """x_s = X_{s,t}(x_t) by a `FlowMap`, in 1 step or a few (2410.11081, 2505.13447).

    renoise: go to the data at every step, X_{0,t}(x_t), and back to x_s with fresh noise
    (2303.01469, algorithm 1). data_std: of the map, whose grid is equal in the angle; it knows it.
    """

    data_std: float | None = None
    renoise: bool = False
    default_steps: ClassVar[int] = 1
    default_grid: ClassVar[str | None] = "angle"
    ends_at_data: ClassVar[bool] = True

    def step(self, run: Trajectory, x: Tensor, t: Tensor, s: Tensor) -> Tensor:  # type: ignore[override]
        jump = run.score.jump  # type: ignore[attr-defined]
        if not self.renoise or s <= run.sde.t_min:
            return jump(x, t, s)
        x0 = jump(x, t, torch.zeros_like(s))
        return expand(run.sde.alpha(s), x) * x0 + expand(run.sde.sigma(s), x) * run.noise()
