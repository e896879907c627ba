r"""One-step methods that carry x_t to x_s for s < t. Each is a frozen dataclass of settings.

A predictor has `step(run, x, t, s) -> x_s`, where ``run`` is the `Trajectory` it works on, and
facts about itself: `evaluations` (of the score, per step), `stochastic`, `default_steps` and
`default_grid`. A subclass with a `step` is a predictor; nothing is registered.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from score_sde.sdes import SDE
from score_sde.states import ScoreFn, expand


@dataclass(frozen=True)
class Trajectory:
    """One run of the loop over one batch, as a method sees it.

    noise: `noise()` is a fresh standard normal state (B, ...), reproducible by seed.
    memory: a dictionary of the run, for methods that remember earlier steps.
    """

    sde: SDE
    score: ScoreFn
    noise: Callable[[], Tensor]
    memory: dict[str, Any] = field(default_factory=dict)

    def eps(self, x: Tensor, t: Tensor) -> Tensor:
        """The noise that the score sees in x: -sigma score, like x."""
        return -expand(self.sde.sigma(t), x) * self.score(x, t)

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x], like x."""
        return self.sde.denoise(x, t, self.score)


class Predictor(abc.ABC):
    """A method that carries a state from time t to an earlier time s."""

    evaluations: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    default_steps: ClassVar[int] = 1000
    default_grid: ClassVar[str | None] = None  # None: the natural grid of the process

    @abc.abstractmethod
    def step(self, run: Trajectory, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
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

    def step(self, run, x, t, s):
        mean, std = run.sde.posterior(run.denoise(x, t), x, s, t)
        if self.variance == "transition":
            std = expand(run.sde.transition(s, t)[1], x)
        return mean + std * run.noise()


@dataclass(frozen=True)
class EulerMaruyama(Predictor):
    """x_s = x - (f x - (1 + eta^2)/2 g^2 score) (t - s) + eta g sqrt(t - s) z (2011.13456).

    eta: 1 follows the reverse SDE, 0 the probability flow, others lie between or beyond.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        if self.eta < 0:
            raise ValueError(f"eta must be at least 0 (got {self.eta}).")

    def step(self, run, x, t, s):
        reverse = run.sde.reverse(run.score, self.eta)
        x = x - expand(t - s, x) * reverse.drift(x, t)
        if self.eta == 0:
            return x
        return x + expand(reverse.diffusion(t) * (t - s).sqrt(), x) * run.noise()


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

    def step(self, run, x, t, s):
        if self.variable == "time":
            return x - expand(t - s, x) * run.sde.reverse(run.score, 0.0).drift(x, t)
        a, h = _flow_coefficients(run.sde, t, s)
        return expand(a, x) * x + expand(h, x) * run.eps(x, t)


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

    def step(self, run, x, t, s):
        if self.variable == "time":
            flow, dt = run.sde.reverse(run.score, 0.0), expand(t - s, x)
            slope = flow.drift(x, t)
            return x - dt * (slope + flow.drift(x - dt * slope, s)) / 2
        a, h = (expand(c, x) for c in _flow_coefficients(run.sde, t, s))
        eps = run.eps(x, t)
        return a * x + h * (eps + run.eps(a * x + h * eps, s)) / 2
