r"""Langevin correctors and the predictor-corrector method (2011.13456, section 4.2, alg. 2-5).

A corrector moves a state towards p_t at fixed t: x + e score(x, t) + sqrt(2 e) z. Its step size is
set by a signal-to-noise ratio, for every sample by itself (Song's code takes mean norms over the
batch, which ties a sample to its batch mates):

    langevin             e = 2 a (snr sqrt(d) / |score|)^2
    annealed_langevin    e = 2 a (snr sigma)^2

with a = alpha_i of the paper, the squared factor of the last transition: 1 for VE, 1 - beta_i for
the VP chain. sqrt(d), of d coordinates, is what |z| is in the mean; with |z| itself the step would
depend on the noise it scales. The sample's own |score| leaves a bias of the order of 1/d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from score_sde.processes.expand import expand
from score_sde.sampling.predictors import (
    Ancestral,
    EulerMaruyama,
    Predictor,
    ReverseDiffusion,
    Trajectory,
    check_choice,
)

INNER: dict[str, type[Predictor]] = {
    "reverse_diffusion": ReverseDiffusion,
    "ancestral": Ancestral,
    "euler_maruyama": EulerMaruyama,
}
CORRECTORS = ("langevin", "annealed_langevin")


@dataclass(frozen=True)
class PredictorCorrector(Predictor):
    """A predictor step and Langevin steps at its end: Song's PC sampler.

    predictor: reverse_diffusion, ancestral or euler_maruyama. corrector: langevin or
    annealed_langevin. snr: of a corrector step (0.16 on CIFAR-10). corrector_steps: after each
    predictor step, or before it with corrector_first (as in Song's code).
    """

    predictor: str = "reverse_diffusion"
    corrector: str = "langevin"
    snr: float = 0.16
    corrector_steps: int = 1
    corrector_first: bool = False
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_choice("predictor", self.predictor, list(INNER))
        check_choice("corrector", self.corrector, CORRECTORS)
        if not self.snr > 0:
            raise ValueError(f"corrector snr must be > 0 (got {self.snr}).")
        if self.corrector_steps < 1:
            raise ValueError(f"corrector_steps must be >= 1 (got {self.corrector_steps}).")

    @property
    def evaluations(self) -> int:  # type: ignore[override]
        return 1 + self.corrector_steps

    def prepare(self, sde, times):
        a = sde.transition(times[1:], times[:-1])[0] ** 2
        at = times[:-1] if self.corrector_first else times[1:]
        inner = INNER[self.predictor]().prepare(sde, times)
        return list(zip(a.tolist(), sde.sigma(at).tolist(), inner, strict=True))

    def step(self, run, x, t, s, a, sigma, row):
        if self.corrector_first:
            x = self._correct(run, x, t, a, sigma)
        x = INNER[self.predictor]().step(run, x, t, s, *row)
        return x if self.corrector_first else self._correct(run, x, s, a, sigma)

    def _correct(self, run: Trajectory, x: Tensor, t: Tensor, a: float, sigma: float) -> Tensor:
        for _ in range(self.corrector_steps):
            score, z = run.score(x, t), run.noise()
            if self.corrector == "langevin":
                ratio = z[0].numel() ** 0.5 / score.flatten(1).norm(dim=1)
                # Where the score is 0 there is nothing to correct; a step would be infinite.
                size = 2 * a * (self.snr * ratio) ** 2
                size = torch.where(torch.isfinite(size), size, torch.zeros_like(size))
                x = x + expand(size, x) * score + expand((2 * size).sqrt(), x) * z
            else:
                size = 2 * a * (self.snr * sigma) ** 2
                x = torch.add(x, score, alpha=size).add_(z, alpha=(2 * size) ** 0.5)
        return x
