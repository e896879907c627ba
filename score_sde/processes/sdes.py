r"""Diffusion processes: two functions of time, and everything that follows from them.

A process gradually turns data into noise. Time runs from 0 (data) to ``t_max`` (noise), and

    p(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 I)                                   (closed form)

is all that has to be stated. It is the law of the linear SDE (2011.13456, eq. 5)

    dx = f(t) x dt + g(t) dw,    f = alpha'/alpha,    g^2 = 2 sigma (sigma' - sigma alpha'/alpha)

whose transition between two times s < t is again Gaussian (2107.00630, appendix A),

    p(x_t | x_s) = N(a x_s, b^2 I),    a = alpha_t / alpha_s,    b^2 = sigma_t^2 - a^2 sigma_s^2

and whose time reversal needs nothing but the score (2011.13456, eq. 6; eta = 0 is eq. 13):

    dx = [f x - (1 + eta^2)/2 g^2 score(x, t)] dt + eta g dw.

DDPM is the same thing on a grid: `VPSDE.discretize(n)` is its Markov chain, and
`sde.posterior(x0, x, s, t)` its q(x_{t-1} | x_t, x_0) between any two times.

A new process is a frozen dataclass with `alpha` and `sigma`:

    @dataclass(frozen=True)
    class Quarter(SDE):
        def alpha(self, t): return torch.cos(t * math.pi / 2)
        def sigma(self, t): return torch.sin(t * math.pi / 2)

Coefficients are computed in the precision of ``t``, those of numbers, integers and half precision
in float64; `expand` casts them to that of the state.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from score_sde.checks import Positive, Size, UserError, validated
from score_sde.processes.chain import BETA_TABLES, Chain, linear_betas
from score_sde.processes.expand import as_state, as_time, expand, like_state


@dataclass(frozen=True, kw_only=True)
class SDE(abc.ABC):
    """A process p(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 I) for 0 <= t <= t_max.

    ``t_min`` is where sampling stops and likelihood starts: the score of real data grows without
    bound as t -> 0. All methods take t of shape () or (B,), a number too, and states (B, ...).
    Raises UserError for times at which the process has no signal or no finite noise.
    """

    t_min: float = 1e-3
    t_max: float = 1.0
    natural_grid: ClassVar[str] = "uniform"  # the time grid that suits Euler-like methods

    def __init_subclass__(cls) -> None:
        """What a process defines of time takes numbers and any dtype of tensors, see `as_time`."""
        super().__init_subclass__()
        for name in ("alpha", "sigma", "derivatives", "diffusion", "log_snr"):
            if name in cls.__dict__:
                setattr(cls, name, _of_time(cls.__dict__[name]))

    def __post_init__(self) -> None:
        check_ends(self)

    @abc.abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the data in x_t, like t; 1 at t = 0."""

    @abc.abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise in x_t, like t. Write 1 - exp(y) as -expm1(y)."""

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha'(t), sigma'(t)), by forward-mode differentiation unless a process knows better."""
        t = as_time(t)
        # A jvp at a 0-d float32 t can return a float64 tangent, hence the cast.
        dalpha = torch.func.jvp(self.alpha, (t,), (torch.ones_like(t),))[1].to(t.dtype)
        dsigma = torch.func.jvp(self.sigma, (t,), (torch.ones_like(t),))[1].to(t.dtype)
        return dalpha, dsigma

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), like t; falls with t."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """The t in (0, t_max] with this log-SNR, like it; bisection in log t by default."""
        target = log_snr if log_snr.device.type == "mps" else log_snr.double()
        low = torch.full_like(target, math.log(self.t_max) - 40.0)
        high = torch.full_like(target, math.log(self.t_max))
        for _ in range(64):
            middle = (low + high) / 2
            noisier = self.log_snr(middle.exp()) < target
            low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
        return high.exp().to(log_snr.dtype)

    def marginal(self, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (like x0) and standard deviation (broadcastable) of p(x_t | x_0)."""
        check_time(self, t)
        x = as_state(x0)
        return like_state(expand(self.alpha(t), x) * x, x0), expand(self.sigma(t), x)

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) of p(x_t | x_s) = N(a x_s, b^2 I) for s < t, like t."""
        alpha_ratio = self.alpha(t) / self.alpha(s)
        # sigma_t^2 - a^2 sigma_s^2 = -sigma_t^2 expm1(log-SNR difference): no cancellation.
        variance = -(self.sigma(t) ** 2) * torch.expm1(self.log_snr(t) - self.log_snr(s))
        return alpha_ratio, variance.clamp_min(0).sqrt()

    def posterior(self, x0: Tensor, x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(x_s | x_t = x, x_0) for s < t (2006.11239, eq. 7)."""
        a, b = self.transition(s, t)
        noise_ratio = (self.sigma(s) / self.sigma(t)) ** 2
        from_x0 = self.alpha(s) * (b / self.sigma(t)) ** 2
        x0, wide = as_state(x0), as_state(x)
        mean = expand(a * noise_ratio, wide) * wide + expand(from_x0, wide) * x0
        return like_state(mean, x), expand(b * noise_ratio.sqrt(), wide)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """f(t) x with f = alpha'/alpha, like x."""
        wide = as_state(x)
        return like_state(expand(self.derivatives(t)[0] / self.alpha(t), wide) * wide, x)

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t) = sqrt(2 sigma (sigma' - sigma alpha'/alpha)), like t."""
        dalpha, dsigma = self.derivatives(t)
        sigma = self.sigma(t)
        return (2 * sigma * (dsigma - sigma * dalpha / self.alpha(t))).clamp_min(0).sqrt()

    def prior_std(self) -> float:
        """Standard deviation of the Gaussian that stands in for p(x_{t_max})."""
        return float(self.sigma(torch.tensor(self.t_max, dtype=torch.float64)))

    def prior_sample(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """x_T ~ N(0, prior_std^2 I) of the given shape (B, ...)."""
        noise = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        return self.prior_std() * noise

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """log density of `prior_sample` at x, in nats, shape (B,)."""
        std = self.prior_std()
        z = x.flatten(1) / std
        return -0.5 * z.square().sum(1) - z.shape[1] * (math.log(std) + 0.5 * math.log(2 * math.pi))

    def denoise(
        self, x: Tensor, t: Tensor, score: Callable[[Tensor, Tensor], Tensor] | Tensor
    ) -> Tensor:
        """Tweedie's E[x_0 | x] = (x + sigma^2 score) / alpha; score is a function or its value."""
        value = score(x, as_time(t)) if callable(score) else score
        wide = as_state(x)
        x0 = (wide + expand(self.sigma(t) ** 2, wide) * value) / expand(self.alpha(t), wide)
        return like_state(x0, x)

    def reverse(self, score: Callable[[Tensor, Tensor], Tensor], eta: float = 1.0) -> ReverseSDE:
        """The process run backwards; eta = 1 is the reverse SDE, eta = 0 the probability flow."""
        return ReverseSDE(self, score, eta)


def _of_time(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of t that takes a number, and tensors of any dtype."""

    @functools.wraps(method)
    def of_time(self: SDE, t: Tensor | float) -> Any:
        return method(self, as_time(t))

    return of_time


def check_ends(sde: SDE) -> None:
    """Raises UserError unless the process has signal and finite noise from t_min to t_max."""
    if not 0 < sde.t_min < sde.t_max < math.inf:
        raise UserError(
            f"sde.t_min ({sde.t_min}) must be above 0 and below sde.t_max ({sde.t_max})."
        )
    if _is_usable(sde, sde.t_max):
        return
    low, high = sde.t_min, sde.t_max
    if not _is_usable(sde, low):
        raise UserError(f"{sde} has no finite alpha > 0 and sigma > 0 at sde.t_min ({low}).")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _is_usable(sde, middle, 1e3) else (low, middle)
    raise UserError(
        f"{sde} cannot end at sde.t_max ({sde.t_max}): alpha, by which x_0 is read off x_t, is 0 "
        f"or almost so there, or sigma is not finite. Usable is sde.t_max={low - low % 1e-4:.4f}."
    )


def _is_usable(sde: SDE, t: float, rate: float = 1.01e7) -> bool:
    """Whether alpha and sigma are finite at t, and t alpha'/alpha of the drift at most ``rate``."""
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = float(sde.alpha(time)), float(sde.sigma(time))
    if not (1e-30 < alpha < 1e15 and 0 < sigma < 1e15):
        return False
    return abs(float(sde.derivatives(time)[0])) / alpha * t <= rate


def check_time(sde: SDE, t: Tensor | float) -> None:
    """Raises UserError for times outside 0 <= t <= t_max, where to look costs no waiting."""
    if isinstance(t, Tensor) and (t.device.type != "cpu" or torch.compiler.is_compiling()):
        return
    try:
        low, high = (t.min(), t.max()) if isinstance(t, Tensor) else (t, t)
        fits = bool(low >= 0) and bool(high <= sde.t_max * (1 + 1e-4))
    except RuntimeError:  # under a transform of torch.func there are no values to look at
        return
    if not fits:
        raise UserError(
            f"times must lie between 0 and sde.t_max ({sde.t_max}); got {float(low):g} to "
            f"{float(high):g}. Step i of a chain of n is t = i t_max/n."
        )


@dataclass(frozen=True)
class ReverseSDE:
    """dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw, from t_max down to t_min."""

    sde: SDE
    score: Callable[[Tensor, Tensor], Tensor]
    eta: float = 1.0

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """The bracket above, like x. Steps run backwards: x_s = x_t - drift (t - s) + ..."""
        t, wide = as_time(t), as_state(x)
        weight = 0.5 * (1 + self.eta**2) * self.sde.diffusion(t) ** 2
        return like_state(self.sde.drift(wide, t) - expand(weight, wide) * self.score(x, t), x)

    def diffusion(self, t: Tensor) -> Tensor:
        """eta g(t), like t."""
        return self.eta * self.sde.diffusion(t)


@dataclass(frozen=True)
class LinearBeta(SDE):
    """What VP and sub-VP share: beta(t) = beta_min + t (beta_max - beta_min), alpha, and f."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta_min <= self.beta_max or self.beta_max == 0:
            raise UserError(
                f"sde.beta_min ({self.beta_min}) must be at least 0 and at most "
                f"sde.beta_max ({self.beta_max}), which must be positive."
            )
        super().__post_init__()

    def beta(self, t: Tensor) -> Tensor:
        """Noise rate beta(t), like t."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def beta_integral(self, t: Tensor) -> Tensor:
        """The integral of beta from 0 to t, like t."""
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self.beta_integral(t))

    def time_of_beta_integral(self, integral: Tensor) -> Tensor:
        """The t with this integral of beta, clamped to t_max; like the integral."""
        slope = self.beta_max - self.beta_min
        root = torch.sqrt(self.beta_min**2 + 2 * slope * integral)
        return (2 * integral / (self.beta_min + root)).clamp(max=self.t_max)

    def prior_std(self) -> float:
        return 1.0


@validated("sde")
@dataclass(frozen=True)
class VPSDE(LinearBeta):
    """Variance preserving: dx = -beta/2 x dt + sqrt(beta) dw (2011.13456, eq. 11).

    The continuous limit of DDPM, which `discretize` recovers. Data should have unit scale.
    """

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self.beta_integral(t)))

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alpha(t)
        return -0.5 * self.beta(t) * alpha, 0.5 * self.beta(t) * alpha**2 / self.sigma(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.beta(t).sqrt()

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return self.time_of_beta_integral(torch.nn.functional.softplus(-log_snr, threshold=50))

    def discretize(self, n: int) -> Chain:
        """DDPM's chain with beta_i = beta(i/n) / n, linear in i = 1..n (2011.13456, appendix B)."""
        return Chain(linear_betas(n, self.beta_min, self.beta_max))


@validated("sde")
@dataclass(frozen=True)
class SubVPSDE(LinearBeta):
    """Sub-VP: the drift of VP with the smaller noise sigma = 1 - alpha^2 (2011.13456, eq. 14)."""

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.beta_integral(t))

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, beta = self.alpha(t), self.beta(t)
        return -0.5 * beta * alpha, beta * alpha**2


@validated("sde")
@dataclass(frozen=True)
class VESDE(SDE):
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max/sigma_min)^t (2011.13456, eq. 9).

    ``sigma_max`` should be about the largest distance between two data points (2006.09011).
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = field(default=1e-5, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise UserError(
                f"sde.sigma_min ({self.sigma_min}) must be positive and "
                f"below sde.sigma_max ({self.sigma_max})."
            )
        super().__post_init__()

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(t * math.log(self.sigma_max / self.sigma_min))

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), self.sigma(t) * math.log(self.sigma_max / self.sigma_min)

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        t = (-0.5 * log_snr - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)
        return t.clamp(torch.finfo(t.dtype).tiny, self.t_max)


@validated("sde")
@dataclass(frozen=True)
class CosineSDE(SDE):
    """Improved DDPM's cosine schedule in continuous time (2102.09672, eq. 17).

    alpha = cos(u) / cos(u_0) with u = (t + s)/(1 + s) pi/2, and sigma^2 = 1 - alpha^2. alpha is
    0 at t = 1, so time ends at 0.995, where alpha^2 is what the linear VP SDE has at its end.
    """

    offset: Positive = 0.008
    t_max: float = field(default=0.995, kw_only=True)

    def _angles(self, t: Tensor) -> tuple[Tensor, float]:
        quarter = 0.5 * math.pi / (1 + self.offset)
        return (t + self.offset) * quarter, self.offset * quarter

    def alpha(self, t: Tensor) -> Tensor:
        u, u0 = self._angles(t)
        return torch.cos(u) / math.cos(u0)

    def sigma(self, t: Tensor) -> Tensor:
        u, u0 = self._angles(t)  # cos^2(u0) - cos^2(u) = sin(u + u0) sin(u - u0)
        quarter = 0.5 * math.pi / (1 + self.offset)
        return torch.sqrt(torch.sin(u + u0) * torch.sin(t * quarter)) / math.cos(u0)

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        u, u0 = self._angles(t)
        quarter = 0.5 * math.pi / (1 + self.offset)
        dalpha = -quarter * torch.sin(u) / math.cos(u0)
        return dalpha, -self.alpha(t) * dalpha / self.sigma(t)

    def diffusion(self, t: Tensor) -> Tensor:
        u, _ = self._angles(t)  # g^2 = -2 alpha'/alpha where alpha^2 + sigma^2 = 1
        return torch.sqrt(math.pi / (1 + self.offset) * torch.tan(u))

    def prior_std(self) -> float:
        return 1.0


@validated("sde")
@dataclass(frozen=True)
class FlowSDE(SDE):
    """The straight path of flow matching: alpha = 1 - t, sigma = t (2210.02747, 2209.03003).

    Its probability flow is dx/dt = eps - x_0 (the `velocity` target). alpha is 0 at t = 1, where
    x_0 cannot be read off the score, so time ends at 0.999.
    """

    t_max: float = field(default=0.999, kw_only=True)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)


@validated("sde")
@dataclass(frozen=True)
class EDMSDE(SDE):
    """Karras et al.'s process: alpha = 1, sigma = t, with t from 0.002 to 80 (2206.00364)."""

    t_min: float = field(default=0.002, kw_only=True)
    t_max: float = field(default=80.0, kw_only=True)
    natural_grid: ClassVar[str] = "karras"

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-0.5 * log_snr).clamp(max=self.t_max)


@validated("sde")
@dataclass(frozen=True)
class TableSDE(SDE):
    """The continuous process through any DDPM beta table: log alpha_bar, linear between steps.

    ``table`` is "linear", "cosine" or a sequence of betas; step i of the chain is t = i / n, so
    the chain's q(x_i | x_0) and this p(x_t | x_0) agree exactly there.
    """

    table: str | tuple[float, ...] = "linear"
    steps: Size = 1000
    chain: Chain = field(init=False, repr=False, compare=False)
    _log_alpha_bars: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.table, str):
            if self.table not in BETA_TABLES:
                raise UserError(f"sde.table {self.table!r}: choose from {list(BETA_TABLES)}.")
            betas = BETA_TABLES[self.table](self.steps)
        else:
            betas = torch.as_tensor(self.table, dtype=torch.float64)
        object.__setattr__(self, "chain", Chain(betas))  # frozen, but this follows from its fields
        knots = torch.cat([torch.zeros(1, dtype=torch.float64), self.chain.alpha_bars.log()])
        object.__setattr__(self, "_log_alpha_bars", knots)
        super().__post_init__()

    def _interpolate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """log alpha_bar(t) and its slope, like t."""
        knots = self._log_alpha_bars.to(t.dtype).to(t.device)
        n = len(knots) - 1
        # t = i/n in float32 may fall a rounding below its knot; the ends extend their segment.
        left = torch.floor(t.detach() * n + 1e-4).clamp(0, n - 1).long()
        slope = (knots[left + 1] - knots[left]) * n
        return knots[left] + slope * (t - left.to(t.dtype) / n), slope

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(0.5 * self._interpolate(t)[0])

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(self._interpolate(t)[0]))

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        slope, alpha = self._interpolate(t)[1], self.alpha(t)
        return 0.5 * slope * alpha, -0.5 * slope * alpha**2 / self.sigma(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(-self._interpolate(t)[1])

    def prior_std(self) -> float:
        return 1.0
