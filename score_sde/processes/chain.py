r"""DDPM's Markov chain and its beta tables (2006.11239, section 2).

q(x_i | x_{i-1}) = N(sqrt(1 - beta_i) x_{i-1}, beta_i I),    i = 1..n
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from score_sde.checks import (
    Fraction,
    NonNegative,
    Positive,
    Size,
    UserError,
    checked,
    shown,
    validated,
)
from score_sde.processes.expand import as_state, expand, like_state


@checked
def linear_betas(n: Size, beta_min: NonNegative = 0.1, beta_max: Positive = 20.0) -> Tensor:
    """beta_i linear from beta_min/n to beta_max/n: 1e-4 to 0.02 at n = 1000; float64 (n,)."""
    return torch.linspace(beta_min, beta_max, n, dtype=torch.float64) / n


@checked
def cosine_betas(n: Size, offset: Positive = 0.008, max_beta: Fraction = 0.999) -> Tensor:
    """Improved DDPM's cosine table, clipped at ``max_beta`` (2102.09672, eq. 17); float64 (n,)."""
    t = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    alpha_bar = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta)


BETA_TABLES = {"linear": linear_betas, "cosine": cosine_betas}


@validated("chain")
@dataclass(frozen=True, eq=False, repr=False)
class Chain:
    """DDPM's Markov chain q(x_i | x_{i-1}) = N(sqrt(1 - beta_i) x_{i-1}, beta_i I), i = 1..n.

    ``betas[i - 1]`` is beta_i and ``alpha_bars[i - 1]`` is prod_{j <= i} (1 - beta_j), float64.
    Methods take steps i, 1..n, as a number or integers (B,) (2006.11239, section 2).
    """

    betas: Tensor

    def __post_init__(self) -> None:
        if self.betas.ndim != 1 or len(self.betas) == 0:
            raise UserError(f"betas must have shape (n,), n >= 1; got {tuple(self.betas.shape)}.")
        if not bool(((self.betas > 0) & (self.betas < 1)).all()):
            raise UserError(
                f"every beta_i must lie between 0 and 1; got {float(self.betas.min()):.4g} to "
                f"{float(self.betas.max()):.4g}. Take more steps or a smaller beta_max."
            )

    def __repr__(self) -> str:
        first, last = float(self.betas[0]), float(self.betas[-1])
        return f"Chain of {len(self)} steps, beta from {first:.3g} to {last:.3g}"

    def __len__(self) -> int:
        return len(self.betas)

    @property
    def alpha_bars(self) -> Tensor:
        """alpha_bar_1 .. alpha_bar_n, float64 (n,)."""
        return torch.exp(torch.cumsum(torch.log1p(-self.betas), 0))

    def _at(self, table: Tensor, i: Tensor | int) -> Tensor:
        try:
            at = torch.as_tensor(i)
        except (TypeError, ValueError, RuntimeError):
            at = torch.tensor(0)
        whole = not (at.is_floating_point() or at.is_complex() or at.dtype == torch.bool)
        if not whole or bool((at < 1).any()) or bool((at > len(self)).any()):
            raise UserError(
                f"chain steps are whole numbers from 1 to {len(self)} (got {shown(i)})."
            )
        return table.to(at.device)[at.long() - 1]

    def marginal(self, x0: Tensor, i: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(x_i | x_0) (2006.11239, eq. 4)."""
        alpha_bar = self._at(self.alpha_bars, i)
        x = as_state(x0)
        return like_state(expand(alpha_bar.sqrt(), x) * x, x0), expand((1 - alpha_bar).sqrt(), x)

    def posterior(self, x0: Tensor, x: Tensor, i: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean mu~ (like x) and variance beta~ of q(x_{i-1} | x_i = x, x_0) (eq. 6 and 7)."""
        before = torch.cat([torch.ones_like(self.alpha_bars[:1]), self.alpha_bars[:-1]])
        beta, alpha_bar = self._at(self.betas, i), self._at(self.alpha_bars, i)
        alpha_bar_before = self._at(before, i)
        from_x0 = alpha_bar_before.sqrt() * beta / (1 - alpha_bar)
        from_x = (1 - beta).sqrt() * (1 - alpha_bar_before) / (1 - alpha_bar)
        x0, wide = as_state(x0), as_state(x)
        mean = expand(from_x0, wide) * x0 + expand(from_x, wide) * wide
        return like_state(mean, x), expand(beta * (1 - alpha_bar_before) / (1 - alpha_bar), wide)
