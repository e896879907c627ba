"""The processes that come with the toolkit: two functions of time each, with their inverses.

What a process is, and all that follows from it, is in `process`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from score_sde.checks import Positive, Size, UserError, validated
from score_sde.devices import moved
from score_sde.processes.chain import BETA_TABLES, Chain, linear_betas
from score_sde.processes.process import SDE


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

    table: Literal["linear", "cosine"] | tuple[float, ...] = "linear"
    steps: Size = 1000
    chain: Chain = field(init=False, repr=False, compare=False)
    _log_alpha_bars: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.table, str):
            betas = BETA_TABLES[self.table](self.steps)
        else:
            betas = torch.as_tensor(self.table, dtype=torch.float64)
        object.__setattr__(self, "chain", Chain(betas))  # frozen, but this follows from its fields
        knots = torch.cat([torch.zeros(1, dtype=torch.float64), self.chain.alpha_bars.log()])
        object.__setattr__(self, "_log_alpha_bars", knots)

    def _interpolate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """log alpha_bar(t) and its slope, like t."""
        knots = moved(self._log_alpha_bars.to(t.dtype), t.device)
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
