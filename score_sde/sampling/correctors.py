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

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from score_sde.checks import Depth, Positive, validated
from score_sde.processes.expand import expand
from score_sde.processes.sdes import SDE
from score_sde.sampling.method import Predictor, Trajectory, advance, prepared
from score_sde.sampling.options import make
from score_sde.sampling.predictors import PREDICTORS


class Corrector(abc.ABC):
    """A method that moves a state towards p_t at a fixed time t."""

    evaluations: ClassVar[int] = 1

    @abc.abstractmethod
    def step(self, run: Trajectory, x: Tensor, t: Tensor, a: float) -> Tensor:
        """A state (B, ...) nearer to p_t; t is float64 (), a as in the module."""


@validated("sampling.options")
@dataclass(frozen=True)
class Langevin(Corrector):
    """A Langevin step as long as its own score allows: e = 2 a (snr sqrt(d) / |score|)^2.

    snr: signal-to-noise ratio of a step; 0.16 on CIFAR-10.
    """

    snr: Positive = 0.16

    def step(self, run: Trajectory, x: Tensor, t: Tensor, a: float) -> Tensor:
        score, z = run.score(x, t), run.noise()
        ratio = z[0].numel() ** 0.5 / score.flatten(1).norm(dim=1)
        size = 2 * a * (self.snr * ratio) ** 2
        # Where the score is 0 there is nothing to correct; a step would be infinite.
        size = torch.where(torch.isfinite(size), size, torch.zeros_like(size))
        return x + expand(size, x) * score + expand((2 * size).sqrt(), x) * z


@validated("sampling.options")
@dataclass(frozen=True)
class AnnealedLangevin(Corrector):
    """A Langevin step as long as the noise level says: e = 2 a (snr sigma)^2 (1907.05600).

    snr: signal-to-noise ratio of a step; 0.16 on CIFAR-10.
    """

    snr: Positive = 0.16

    def step(self, run: Trajectory, x: Tensor, t: Tensor, a: float) -> Tensor:
        score, z = run.score(x, t), run.noise()
        size = 2 * a * (self.snr * float(run.sde.sigma(t))) ** 2
        return torch.add(x, score, alpha=size).add_(z, alpha=(2 * size) ** 0.5)


CORRECTORS: dict[str, type[Corrector]] = {
    "langevin": Langevin,
    "annealed_langevin": AnnealedLangevin,
}


class PredictorCorrectorNumbers(NamedTuple):
    """Of one step: alpha_i of the paper, and what the predictor prepared."""

    a: float
    predictor: Any


class Parts(NamedTuple):
    """What a predictor-corrector method is made of."""

    predictor: Predictor[Any]
    corrector: Corrector


@validated("sampling.options")
@dataclass(frozen=True)
class PredictorCorrector(Predictor[PredictorCorrectorNumbers]):
    """A predictor step and Langevin steps at its end: Song's PC sampler.

    predictor: a `Predictor`, or ancestral, euler_maruyama, reverse_diffusion, ddim, or the dotted
        path of one of yours. corrector: a `Corrector`, or langevin, annealed_langevin, or the
        dotted path of one of yours. predictor_options, corrector_options: theirs where they are
        named, on the command line --option predictor.eta=0.5.
    snr: of a Langevin corrector that is named, 0.16 unless given.
    corrector_steps: after each predictor step, or before it with corrector_first (as in Song's
        code).
    """

    predictor: str | Predictor[Any] = "reverse_diffusion"
    corrector: str | Corrector = "langevin"
    snr: Positive | None = None
    corrector_steps: Depth = 1
    corrector_first: bool = False
    predictor_options: Mapping[str, Any] = field(default_factory=dict)
    corrector_options: Mapping[str, Any] = field(default_factory=dict)
    parts: Parts = field(init=False, repr=False, compare=False)
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        options = dict(self.corrector_options)
        if self.snr is not None:
            options["snr"] = self.snr
        parts = Parts(
            make(PREDICTORS, Predictor, self.predictor, "predictor", self.predictor_options),
            make(CORRECTORS, Corrector, self.corrector, "corrector", options),
        )
        object.__setattr__(self, "parts", parts)  # frozen, but this follows from its fields

    @property
    def evaluations(self) -> int:  # type: ignore[override]
        return self.parts.predictor.evaluations + (
            self.corrector_steps * self.parts.corrector.evaluations
        )

    def prepare(self, sde: SDE, times: Tensor) -> list[PredictorCorrectorNumbers]:
        a = sde.transition(times[1:], times[:-1])[0] ** 2
        rows = zip(a.tolist(), prepared(self.parts.predictor, sde, times), strict=True)
        return [PredictorCorrectorNumbers(*row) for row in rows]

    def step(
        self, run: Trajectory, x: Tensor, t: Tensor, s: Tensor, numbers: PredictorCorrectorNumbers
    ) -> Tensor:
        predictor, (a, mine) = self.parts.predictor, numbers
        if self.corrector_first:
            return advance(predictor, run, self.correct(run, x, t, a), t, s, mine)
        return self.correct(run, advance(predictor, run, x, t, s, mine), s, a)

    def correct(self, run: Trajectory, x: Tensor, t: Tensor, a: float) -> Tensor:
        """All corrector steps at time t."""
        for _ in range(self.corrector_steps):
            x = self.parts.corrector.step(run, x, t, a)
        return x
