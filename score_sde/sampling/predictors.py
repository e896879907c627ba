r"""One-step methods that carry x_t to x_s for s < t. Each is a frozen dataclass of settings.

What a step needs from the process depends on the grid alone, so it is computed once, for all steps
together and in float64, by `prepare`; `step` is then a few operations on the state. In most
methods a step is linear in the state, its score and fresh noise z,

    x_s = a x + b score(x, t) + c z,

and `prepare` gives (a, b, c). A predictor of yours needs a `step`; nothing is registered.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from score_sde.processes.sdes import SDE
from score_sde.scores import ScoreFn

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Trajectory:
    """One run of the loop over one batch, as a method sees it.

    noise: `noise()` is a fresh standard normal state (B, ...), reproducible by seed; `noise(which)`
        is one for the samples in these places, who draw from streams of their own.
        A method whose samples go their own ways takes the score of some by `take`.
    memory: a dictionary of the run, for methods that remember earlier steps.
    """

    sde: SDE
    score: ScoreFn
    noise: Callable[..., Tensor]
    memory: dict[str, Any] = field(default_factory=dict)

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x], like x."""
        return self.sde.denoise(x, t, self.score)


class Predictor(abc.ABC):
    """A method that carries a state from time t to an earlier time s.

    evaluations: of the score, per step; 0 if they adapt. order: of convergence, None if it is not
    an ODE method. linear: whether a linear score makes its result linear in start and noise.
    default_steps, default_grid: when none are given; a grid of None is the process's own.
    processes: None for all, or the names of the classes it is defined for, like ("VPSDE",).
    """

    evaluations: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    order: ClassVar[int | None] = None
    linear: ClassVar[bool] = True
    default_steps: ClassVar[int] = 1000
    default_grid: ClassVar[str | None] = None
    processes: ClassVar[tuple[str, ...] | None] = None

    @property
    def claimed_order(self) -> int | None:
        """The order of convergence that `verify` measures, as configured."""
        return self.order

    def prepare(self, sde: SDE, times: Tensor) -> Sequence[Row]:
        """What each step needs, in order: a row of numbers for each interval of ``times``."""
        return [()] * (len(times) - 1)

    @abc.abstractmethod
    def step(self, run: Trajectory, x: Tensor, t: Tensor, s: Tensor, *row: Any) -> Tensor:
        """x_s from x_t (B, ...); s < t are float64 tensors of shape ()."""


def rows(*columns: Tensor) -> list[Row]:
    """Columns of coefficients (N,) as a row of Python numbers for each step."""
    return list(zip(*(c.tolist() for c in columns), strict=True))


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """ValueError that names the choices unless value is one of them."""
    if value not in choices:
        raise ValueError(f"{name} {value!r} is unknown; choose from {list(choices)}.")


def check_eta(eta: float) -> None:
    """ValueError for a negative strength of noise."""
    if not eta >= 0:
        raise ValueError(f"eta must be at least 0 (got {eta}).")


def affine(run: Trajectory, x: Tensor, t: Tensor, a: float, b: float, c: float) -> Tensor:
    """a x + b score(x, t) + c z, drawing noise only if it counts."""
    out = torch.add(x * a, run.score(x, t), alpha=b)
    return out if c == 0 else out.add_(run.noise(), alpha=c)


@dataclass(frozen=True)
class Ancestral(Predictor):
    """DDPM's Algorithm 2 between any two times of any process: q(x_s | x_t, x_0 = denoised).

    variance: "posterior" is beta~, that of q(x_s | x_t, x_0); "transition" is beta, that of
        p(x_t | x_s) (2006.11239, section 3.2; Song's VP and Ho's CIFAR-10 models use it); a number
        v in [0, 1] lies between, beta^v beta~^(1 - v) (2102.09672, eq. 15); "learned" takes v from
        a model that has it, for every coordinate.
    """

    variance: str | float = "posterior"

    def __post_init__(self) -> None:
        if isinstance(self.variance, str):
            check_choice("variance", self.variance, ("posterior", "transition", "learned"))
        elif not 0 <= self.variance <= 1:
            raise ValueError(f"variance as a number must lie in [0, 1] (got {self.variance}).")

    def prepare(self, sde, times):
        t, s = times[:-1], times[1:]
        a, b = sde.transition(s, t)
        noise_ratio = (sde.sigma(s) / sde.sigma(t)) ** 2
        from_x0 = sde.alpha(s) * (b / sde.sigma(t)) ** 2 / sde.alpha(t)
        named = {"posterior": 0.0, "transition": 1.0, "learned": 0.0}
        std = b * noise_ratio ** (0.5 * (1 - float(named.get(str(self.variance), self.variance))))
        numbers = (a * noise_ratio + from_x0, from_x0 * sde.sigma(t) ** 2, std)
        return rows(*numbers, noise_ratio.sqrt()) if self.variance == "learned" else rows(*numbers)

    def step(self, run, x, t, s, a, b, c, least=1.0):
        if self.variance != "learned":
            return affine(run, x, t, a, b, c)
        score, v = run.score.score_and_v(x, t)
        # c is the posterior's standard deviation, c / least the transition's.
        return torch.add(x * a, score, alpha=b).add_(run.noise() * c * least**-v)


@dataclass(frozen=True)
class EulerMaruyama(Predictor):
    """x_s = x - (f x - (1 + eta^2)/2 g^2 score) (t - s) + eta g sqrt(t - s) z (2011.13456).

    eta: 1 follows the reverse SDE, 0 the probability flow, others lie between or beyond.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        check_eta(self.eta)

    def prepare(self, sde, times):
        t, dt = times[:-1], -times.diff()
        f, g = sde.derivatives(t)[0] / sde.alpha(t), sde.diffusion(t)
        return rows(1 - f * dt, 0.5 * (1 + self.eta**2) * g**2 * dt, self.eta * g * dt.sqrt())

    def step(self, run, x, t, s, a, b, c):
        return affine(run, x, t, a, b, c)


@dataclass(frozen=True)
class ReverseDiffusion(Predictor):
    """The reverse SDE discretised as the forward one is (2011.13456, appendix E).

    x_s = (2 - a) x + (1 + eta^2)/2 b^2 score + eta b z with p(x_t | x_s) = N(a x_s, b^2 I).
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        check_eta(self.eta)

    def prepare(self, sde, times):
        a, b = sde.transition(times[1:], times[:-1])
        return rows(2 - a, 0.5 * (1 + self.eta**2) * b**2, self.eta * b)

    def step(self, run, x, t, s, a, b, c):
        return affine(run, x, t, a, b, c)


@dataclass(frozen=True)
class DDIM(Predictor):
    """DDIM (2010.02502, eq. 12): eta = 0 is a step of the probability flow, eta = 1 `ancestral`.

    x_s = alpha_s x_0 + sqrt(sigma_s^2 - c^2) eps + c z with c = eta times the posterior's std.
    """

    eta: float = 0.0
    order: ClassVar[int | None] = 1
    stochastic: ClassVar[bool] = False
    default_steps: ClassVar[int] = 50

    def __post_init__(self) -> None:
        check_eta(self.eta)
        if self.eta > 1:
            raise ValueError(f"DDIM's eta must be at most 1 (got {self.eta}).")

    def prepare(self, sde, times):
        t, s = times[:-1], times[1:]
        alpha_ratio, b = sde.transition(s, t)
        c = self.eta * b * sde.sigma(s) / sde.sigma(t)
        kept = torch.sqrt((sde.sigma(s) ** 2 - c**2).clamp_min(0))
        scale = sde.alpha(s) / sde.alpha(t)
        return rows(scale, scale * sde.sigma(t) ** 2 - kept * sde.sigma(t), c)

    def step(self, run, x, t, s, a, b, c):
        return affine(run, x, t, a, b, c)


@dataclass(frozen=True)
class EDMStochastic(Predictor):
    """EDM's stochastic Heun: raise the noise a little, then a Heun step (2206.00364, alg. 2).

    churn: S_churn, the noise added over the whole run; noise_level in [s_min, s_max] only.
    s_noise: factor on the added noise.
    """

    churn: float = 40.0
    s_min: float = 0.0
    s_max: float = float("inf")
    s_noise: float = 1.0
    evaluations: ClassVar[int] = 2
    default_steps: ClassVar[int] = 64
    default_grid: ClassVar[str | None] = "karras"

    def __post_init__(self) -> None:
        if not self.churn >= 0:
            raise ValueError(f"churn must be at least 0 (got {self.churn}).")

    def prepare(self, sde, times):
        t, s = times[:-1], times[1:]
        level = sde.sigma(t) / sde.alpha(t)
        gamma = min(self.churn / len(t), 2**0.5 - 1)
        inside = (level >= self.s_min) & (level <= self.s_max)
        raised = level * (1 + gamma * inside)
        top = float(sde.log_snr(times[:1]))
        log_snr = (-2 * raised.log()).clamp(min=top)
        higher = torch.where(log_snr < sde.log_snr(t), sde.time_of_log_snr(log_snr), t)
        a, b = sde.transition(t, higher)
        b = torch.where(higher > t, b, torch.zeros_like(b)) * self.s_noise
        scale = sde.alpha(s) / sde.alpha(higher)
        h = sde.sigma(s) - scale * sde.sigma(higher)
        numbers = rows(a, b, scale, -h * sde.sigma(higher), -h * sde.sigma(s))
        return [(u, *row) for u, row in zip(higher.unbind(), numbers, strict=True)]

    def step(self, run, x, t, s, higher, a, b, scale, first, second):
        x = x * a if b == 0 else torch.add(x * a, run.noise(), alpha=b)
        score = run.score(x, higher)
        x = x * scale
        guess = torch.add(x, score, alpha=first)
        x = torch.add(x, score, alpha=0.5 * first)
        return x.add_(run.score(guess, s), alpha=0.5 * second)
