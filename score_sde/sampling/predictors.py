r"""One-step methods that carry x_t to x_s for s < t. Each is a frozen dataclass of settings.

A predictor has `step(sde, score, x, t, s, noise) -> x_s` where ``noise()`` gives fresh standard
normal states, and three facts about itself: `evaluations` (of the score, per step), `stochastic`
and `default_steps`. Anything with these is a predictor; nothing is registered.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from score_sde.sdes import SDE, ScoreFn, expand

NoiseFn = Callable[[], Tensor]


class Predictor(abc.ABC):
    """A method that carries a state from time t to an earlier time s."""

    evaluations: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    default_steps: ClassVar[int] = 1000
    default_grid: ClassVar[str | None] = None  # None: the natural grid of the process

    @abc.abstractmethod
    def step(
        self, sde: SDE, score: ScoreFn, x: Tensor, t: Tensor, s: Tensor, noise: NoiseFn
    ) -> Tensor:
        """x_s from x_t (B, ...); s < t are float64 tensors of shape ()."""


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} {value!r} is unknown; choose from {list(choices)}.")


@dataclass(frozen=True)
class Ancestral(Predictor):
    """DDPM's Algorithm 2 between any two times of any process: q(x_s | x_t, x_0 = denoised).

    variance: "posterior" is beta~, that of q(x_s | x_t, x_0); "transition" is beta, that of
        p(x_t | x_s) (2006.11239, section 3.2; Song's VP and Ho's CIFAR-10 models use it).
    """

    variance: str = "posterior"

    def __post_init__(self) -> None:
        _check_choice("variance", self.variance, ("posterior", "transition"))

    def step(self, sde, score, x, t, s, noise):
        mean, std = sde.posterior(sde.denoise(x, t, score), x, s, t)
        if self.variance == "transition":
            std = expand(sde.transition(s, t)[1], x)
        return mean + std * noise()


@dataclass(frozen=True)
class EulerMaruyama(Predictor):
    """x_s = x - (f x - (1 + eta^2)/2 g^2 score) (t - s) + eta g sqrt(t - s) z (2011.13456).

    eta: 1 follows the reverse SDE, 0 the probability flow, others lie between or beyond.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        if self.eta < 0:
            raise ValueError(f"eta must be at least 0 (got {self.eta}).")

    def step(self, sde, score, x, t, s, noise):
        reverse = sde.reverse(score, self.eta)
        x = x - expand(t - s, x) * reverse.drift(x, t)
        if self.eta == 0:
            return x
        return x + expand(reverse.diffusion(t) * (t - s).sqrt(), x) * noise()


def _eps(sde: SDE, score: ScoreFn, x: Tensor, t: Tensor) -> Tensor:
    return -expand(sde.sigma(t), x) * score(x, t)


def _flow_coefficients(sde: SDE, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """(a, h) with x_s = a x_t + h eps, exact where eps does not change on the way."""
    a = sde.alpha(s) / sde.alpha(t)
    return a, sde.sigma(s) - a * sde.sigma(t)


@dataclass(frozen=True)
class Euler(Predictor):
    """Euler's method for the probability flow.

    variable: "sigma" steps in sigma/alpha, where d(x/alpha)/d(sigma/alpha) = eps: the linear part
        of the flow is exact and this is DDIM (2010.02502). "time" is the textbook form in t.
    """

    variable: str = "sigma"
    stochastic: ClassVar[bool] = False
    default_steps: ClassVar[int] = 100
    default_grid: ClassVar[str | None] = "logsnr"

    def __post_init__(self) -> None:
        _check_choice("variable", self.variable, ("sigma", "time"))

    def step(self, sde, score, x, t, s, noise):
        if self.variable == "time":
            return x - expand(t - s, x) * sde.reverse(score, 0.0).drift(x, t)
        a, h = _flow_coefficients(sde, t, s)
        return expand(a, x) * x + expand(h, x) * _eps(sde, score, x, t)


@dataclass(frozen=True)
class Heun(Predictor):
    """Heun's second-order method for the probability flow, EDM's choice (2206.00364, alg. 1).

    variable: as in `Euler`.
    """

    variable: str = "sigma"
    evaluations: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False
    default_steps: ClassVar[int] = 18
    default_grid: ClassVar[str | None] = "karras"

    def __post_init__(self) -> None:
        _check_choice("variable", self.variable, ("sigma", "time"))

    def step(self, sde, score, x, t, s, noise):
        if self.variable == "time":
            flow, dt = sde.reverse(score, 0.0), expand(t - s, x)
            slope = flow.drift(x, t)
            return x - dt * (slope + flow.drift(x - dt * slope, s)) / 2
        a, h = (expand(c, x) for c in _flow_coefficients(sde, t, s))
        eps = _eps(sde, score, x, t)
        return a * x + h * (eps + _eps(sde, score, a * x + h * eps, s)) / 2
