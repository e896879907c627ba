r"""The prior as restoration sees it: E[x_0 | x] of flat x = x_t / alpha at nu = sigma / alpha.

In these coordinates every process is the same. Evaluations and products are counted in rows: a
state through the score is one, a vector-Jacobian product through it is one more.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from score_sde.checks import UserError, shown
from score_sde.processes.sdes import SDE
from score_sde.scores import ScoreFn, take

VJP = Callable[[Tensor], Tensor]
AT_ONCE = 2**18
"""Entries of the states that go through a score at once where no batch size is given."""


def least_nu(sde: SDE) -> float:
    """sigma/alpha at t_min."""
    t = torch.tensor(sde.t_min, dtype=torch.float64)
    return float(sde.sigma(t) / sde.alpha(t))


def rows_at_once(batch_size: int | None, entries: int) -> int:
    """How many states of so many entries go through a score at once."""
    return batch_size or max(1, AT_ONCE // entries)


class Denoiser:
    """D(x, nu) = x + nu^2 alpha score(alpha x, t), and V u = nu^2 (dD/dx)' u.

    batch_size: rows that go through the score at once, see `rows_at_once`. dtype: that of
    the score's states; here states are float64, or float32 where the device has nothing better.
    """

    def __init__(
        self,
        sde: SDE,
        score: ScoreFn,
        shape: tuple[int, ...],
        batch_size: int | None = None,
        dtype: torch.dtype = torch.float64,
    ):
        self.sde, self.score, self.shape = sde, score, tuple(shape)
        self.dtype = dtype
        self.batch_size = rows_at_once(batch_size, math.prod(self.shape))
        self.rows = self.products = 0

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest nu, at t_min and t_max."""
        ends = torch.tensor([self.sde.t_min, self.sde.t_max], dtype=torch.float64)
        low, high = (self.sde.sigma(ends) / self.sde.alpha(ends)).tolist()
        return low, high

    def time(self, nu: float) -> Tensor:
        """The t with sigma / alpha = nu, float64 ()."""
        log_snr = torch.tensor(nu, dtype=torch.float64).log() * -2
        return self.sde.time_of_log_snr(log_snr).clamp(self.sde.t_min, self.sde.t_max)

    def _parts(self, n: int) -> list[slice]:
        size = self.batch_size
        return [slice(i, min(i + size, n)) for i in range(0, max(n, 1), size)]

    def _score_of(self, part: slice, n: int) -> ScoreFn:
        return self.score if part == slice(0, n) else take(self.score, part)

    def _denoise(self, score: ScoreFn, x: Tensor, nu: float) -> Tensor:
        t = self.time(nu)
        alpha = float(self.sde.alpha(t))
        state = (alpha * x).to(self.dtype).reshape(-1, *self.shape)
        pull = score(state, t)
        if not isinstance(pull, Tensor) or pull.shape != state.shape:
            raise UserError(
                f"the score gives {shown(pull)} of states {tuple(state.shape)}; it must give a "
                "tensor of as many numbers as there are."
            )
        if x.requires_grad and not pull.requires_grad:
            raise UserError(
                "the score has no gradient with respect to x, which this method needs; use "
                "method='reference' or 'particles', or a score that is differentiable."
            )
        D = x + nu**2 * alpha * pull.flatten(1).to(x)
        if not math.isfinite(float(D.detach().sum())):
            raise UserError(
                f"the score is not finite at sigma/alpha = {nu:.3g}, of states up to "
                f"{float(x.detach().abs().max()):.3g}: it is broken there, or the method diverged."
            )
        return D

    @torch.no_grad()
    def __call__(self, x: Tensor, nu: float) -> Tensor:
        """D (B, D) of x (B, D)."""
        n = len(x)
        self.rows += n
        return _joined([self._denoise(self._score_of(p, n), x[p], nu) for p in self._parts(n)])

    def with_products(self, x: Tensor, nu: float) -> tuple[Tensor, VJP]:
        """D (B, D), and the function u -> V u; each product is one row a sample.

        The graphs of all rows are kept, so a batch has to fit in memory.
        """
        n = len(x)
        inputs, outputs = [], []
        for part in self._parts(n):
            with torch.enable_grad():
                at = x[part].detach().requires_grad_(True)
                outputs.append(self._denoise(self._score_of(part, n), at, nu))
            inputs.append(at)
        self.rows += n

        def product(u: Tensor) -> Tensor:
            self.products += n
            parts = zip(outputs, inputs, self._parts(n), strict=True)
            pulled = [
                torch.autograd.grad(out, at, u[part], retain_graph=True)[0]
                for out, at, part in parts
            ]
            return nu**2 * _joined(pulled)

        return _joined([out.detach() for out in outputs]), product


def _joined(parts: list[Tensor]) -> Tensor:
    """Rows of all parts; the one that there is as it is."""
    return torch.cat(parts) if len(parts) > 1 else parts[0]
