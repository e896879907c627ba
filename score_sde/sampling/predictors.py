r"""One-step methods that carry x_t to x_s for s < t. Each is a frozen dataclass of settings.

In most of them a step is linear in the state, its score and fresh noise z,

    x_s = on_x x + on_score score(x, t) + on_noise z,

and the method is its `coefficients`, computed for all steps together and in float64.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from score_sde.checks import Extended, Fraction, NonNegative, require, validated
from score_sde.processes.sdes import SDE
from score_sde.sampling.method import Predictor, Trajectory


class Coefficients(NamedTuple):
    """Of x_s = on_x x + on_score score(x, t) + on_noise z; each like t."""

    on_x: Tensor
    on_score: Tensor
    on_noise: Tensor


class Affine(Predictor[tuple[float, float, float]]):
    """A method whose step is linear in state, score and noise: it is its coefficients."""

    @abc.abstractmethod
    def coefficients(self, sde: SDE, t: Tensor, s: Tensor) -> Coefficients:
        """The coefficients of steps from t (N,) to s (N,), s < t; float64."""

    def prepare(self, sde: SDE, times: Tensor) -> list[tuple[float, float, float]]:
        columns = self.coefficients(sde, times[:-1], times[1:])
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def step(
        self,
        run: Trajectory,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        numbers: tuple[float, float, float],
    ) -> Tensor:
        on_x, on_score, on_noise = numbers
        mean = torch.add(x * on_x, run.score(x, t), alpha=on_score)
        return mean if on_noise == 0 else mean.add_(run.noise(), alpha=on_noise)


@validated("sampling.options")
@dataclass(frozen=True)
class Ancestral(Affine):
    """DDPM's Algorithm 2 between any two times of any process: q(x_s | x_t, x_0 = denoised).

    variance: "posterior" is beta~, that of q(x_s | x_t, x_0); "transition" is beta, that of
        p(x_t | x_s) (2006.11239, section 3.2; Song's VP and Ho's CIFAR-10 models use it); a number
        v in [0, 1] lies between, beta^v beta~^(1 - v) (2102.09672, eq. 15); "learned" takes v from
        a model that has it, for every coordinate.
    """

    variance: Literal["posterior", "transition", "learned"] | Fraction = "posterior"

    @property
    def v(self) -> float:
        """Where the variance lies between that of the posterior, 0, and the transition, 1."""
        named = {"posterior": 0.0, "transition": 1.0, "learned": 0.0}
        return named[self.variance] if isinstance(self.variance, str) else float(self.variance)

    def coefficients(self, sde: SDE, t: Tensor, s: Tensor) -> Coefficients:
        a, b = sde.transition(s, t)
        ratio = (sde.sigma(s) / sde.sigma(t)) ** 2  # beta~ = ratio b^2
        # The mean of q(x_s | x_t, x_0) is a ratio x_t + alpha_s b^2/sigma_t^2 x_0, and x_0 is
        # (x_t + sigma_t^2 score) / alpha_t.
        on_x0 = sde.alpha(s) * (b / sde.sigma(t)) ** 2 / sde.alpha(t)
        std = b * ratio ** (0.5 * (1 - self.v))
        return Coefficients(a * ratio + on_x0, on_x0 * sde.sigma(t) ** 2, std)

    def step(
        self,
        run: Trajectory,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        numbers: tuple[float, float, float],
    ) -> Tensor:
        if self.variance != "learned":
            return super().step(run, x, t, s, numbers)
        on_x, on_score, posterior_std = numbers
        score, v = run.score.score_and_v(x, t)  # type: ignore[attr-defined]
        transition_std = posterior_std * run.sde.sigma(t) / run.sde.sigma(s)
        std = posterior_std * float(transition_std / posterior_std) ** v
        return torch.add(x * on_x, score, alpha=on_score).add_(run.noise() * std)


@validated("sampling.options")
@dataclass(frozen=True)
class EulerMaruyama(Affine):
    """x_s = x - (f x - (1 + eta^2)/2 g^2 score) (t - s) + eta g sqrt(t - s) z (2011.13456).

    eta: 1 follows the reverse SDE, 0 the probability flow, others lie between or beyond.
    """

    eta: NonNegative = 1.0

    def coefficients(self, sde: SDE, t: Tensor, s: Tensor) -> Coefficients:
        f, g, dt = sde.derivatives(t)[0] / sde.alpha(t), sde.diffusion(t), t - s
        on_score = 0.5 * (1 + self.eta**2) * g**2 * dt
        return Coefficients(1 - f * dt, on_score, self.eta * g * dt.sqrt())


@validated("sampling.options")
@dataclass(frozen=True)
class ReverseDiffusion(Affine):
    """The reverse SDE discretised as the forward one is (2011.13456, appendix E).

    x_s = (2 - a) x + (1 + eta^2)/2 b^2 score + eta b z with p(x_t | x_s) = N(a x_s, b^2 I).
    """

    eta: NonNegative = 1.0

    def coefficients(self, sde: SDE, t: Tensor, s: Tensor) -> Coefficients:
        a, b = sde.transition(s, t)
        return Coefficients(2 - a, 0.5 * (1 + self.eta**2) * b**2, self.eta * b)


@validated("sampling.options")
@dataclass(frozen=True)
class DDIM(Affine):
    """DDIM (2010.02502, eq. 12): eta = 0 is a step of the probability flow, eta = 1 `ancestral`.

    x_s = alpha_s x_0 + sqrt(sigma_s^2 - c^2) eps + c z with c = eta times the posterior's std.
    """

    eta: Fraction = 0.0
    order: ClassVar[int | None] = 1
    stochastic: ClassVar[bool] = False
    default_steps: ClassVar[int] = 50

    def coefficients(self, sde: SDE, t: Tensor, s: Tensor) -> Coefficients:
        c = self.eta * sde.transition(s, t)[1] * sde.sigma(s) / sde.sigma(t)
        on_eps = torch.sqrt((sde.sigma(s) ** 2 - c**2).clamp_min(0))
        # x_0 = (x + sigma_t^2 score) / alpha_t and eps = -sigma_t score.
        on_x = sde.alpha(s) / sde.alpha(t)
        return Coefficients(on_x, on_x * sde.sigma(t) ** 2 - on_eps * sde.sigma(t), c)


class Churned(NamedTuple):
    """One step of `EDMStochastic`: to the raised time, and by Heun from there down to s.

    x_raised = grow x + noise z;    x_s = shrink x_raised + first score_raised, then the mean of
    first score_raised and second score_s in place of the former.
    """

    raised: Tensor
    grow: float
    noise: float
    shrink: float
    first: float
    second: float


@validated("sampling.options")
@dataclass(frozen=True)
class EDMStochastic(Predictor[Churned]):
    """EDM's stochastic Heun: raise the noise a little, then a Heun step (2206.00364, alg. 2).

    churn: S_churn, the noise added over the whole run; noise_level in [s_min, s_max] only.
    s_noise: factor on the added noise.
    """

    churn: NonNegative = 40.0
    s_min: NonNegative = 0.0
    s_max: Extended = float("inf")
    s_noise: NonNegative = 1.0
    evaluations: ClassVar[int] = 2
    default_steps: ClassVar[int] = 64
    default_grid: ClassVar[str | None] = "karras"

    def __post_init__(self) -> None:
        require(
            self.s_min <= self.s_max,
            f"s_min must be at most s_max (got {self.s_min}, {self.s_max}).",
        )

    def raised_times(self, sde: SDE, t: Tensor) -> Tensor:
        """The times at which the noise level is (1 + gamma) times that of t, at most the first."""
        level = sde.sigma(t) / sde.alpha(t)
        gamma = min(self.churn / len(t), 2**0.5 - 1)
        inside = (level >= self.s_min) & (level <= self.s_max)
        highest = float(sde.log_snr(t[:1]))
        log_snr = (-2 * (level * (1 + gamma * inside)).log()).clamp(min=highest)
        return torch.where(log_snr < sde.log_snr(t), sde.time_of_log_snr(log_snr), t)

    def prepare(self, sde: SDE, times: Tensor) -> list[Churned]:
        t, s = times[:-1], times[1:]
        raised = self.raised_times(sde, t)
        grow, noise = sde.transition(t, raised)
        noise = torch.where(raised > t, noise, torch.zeros_like(noise)) * self.s_noise
        # d(x/alpha) = eps d(sigma/alpha), and eps = -sigma score.
        shrink = sde.alpha(s) / sde.alpha(raised)
        h = sde.sigma(s) - shrink * sde.sigma(raised)
        numbers = (grow, noise, shrink, -h * sde.sigma(raised), -h * sde.sigma(s))
        columns = (raised.unbind(), *(column.tolist() for column in numbers))
        return [Churned(*row) for row in zip(*columns, strict=True)]

    def step(self, run: Trajectory, x: Tensor, t: Tensor, s: Tensor, numbers: Churned) -> Tensor:
        c = numbers
        x = x * c.grow if c.noise == 0 else torch.add(x * c.grow, run.noise(), alpha=c.noise)
        score = run.score(x, c.raised)
        x = x * c.shrink
        guess = torch.add(x, score, alpha=c.first)
        x = torch.add(x, score, alpha=0.5 * c.first)
        return x.add_(run.score(guess, s), alpha=0.5 * c.second)


PREDICTORS: dict[str, type[Predictor[Any]]] = {
    "ancestral": Ancestral,
    "euler_maruyama": EulerMaruyama,
    "reverse_diffusion": ReverseDiffusion,
    "ddim": DDIM,
}
