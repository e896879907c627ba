r"""`adams` for the reverse SDE, with noise by which Gaussian data of every width come out right.

A step with noise of strength eta keeps e^{-eta^2 h} of x/sigma, h of log-SNR, adds noise of the
exact variance, and integrates x0 through its last values by the kernel of that (see `frames`). x0,
not F: the pull -x/sigma^2 towards it is then exact, and no narrow direction makes a step unstable;
but in theta = arctan(s/sd), where x0 is as smooth as F.

That noise would be exact if x0 were the polynomial that the method takes it for; but x0 moves with
the noise within a step, and so the variance is off by the order of h^2, with one sign for data of
every width. By how much is known without data: for x_0 ~ N(0, v) score and method are linear, and

    var(v) = A_0(v) + sum_i q_i A_i(v),    wanted: v + s^2, s = sigma/alpha at the end,

with A_i what unit noise in step i makes of it, and q_i a factor on its variance. The q_i next to 1,
and to one another, by which var(v) is right over all widths from s/2 to 4 sd are a linear problem
of least squares: a few per cent at 20 steps, less as h^2 at more. Gaussian data, and whatever is
Gaussian near a point, then have the right width in every direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from score_sde.checks import NonNegative, validated
from score_sde.ode import frames
from score_sde.ode.multistep import History
from score_sde.processes.sdes import SDE
from score_sde.sampling.multistep import Multistep, MultistepNumbers, Order

WIDTHS = 60  # in log, between s/2 and 4 sd
LEAST = 0.01  # times sd: what is narrower counts less, as on the saturating grid
NEAR, EVEN = 0.01, 0.3  # penalties of q_i - 1 and of q_i - q_(i-1), beside relative errors of var


@validated("sampling.options")
@dataclass(frozen=True)
class AdamsSDE(Multistep):
    r"""Ours for the reverse SDE: x0 in theta with the corrector, noise matched to every width.

    What noise does within a step limits the law of other data to weak order 2, with a constant that
    grows with eta; 1 is the reverse SDE, 0 a probability flow. data_std: standard deviation of x_0;
    a run knows it.
    """

    variable: frames.Variable = "theta"
    order: Order = 3  # type: ignore[misc]
    corrector: bool = True
    eta: NonNegative = 1.0
    stochastic: ClassVar[bool] = True
    default_steps: ClassVar[int] = 50
    default_grid: ClassVar[str | None] = "saturating"

    def prepare(self, sde: SDE, times: Tensor) -> list[MultistepNumbers]:
        rows = super().prepare(sde, times)
        sd = frames.check_positive("data_std", self.data_std)
        factors = noise_factors(sde, times, rows, sd).tolist()
        return [row._replace(noise=row.noise * q) for row, q in zip(rows, factors, strict=True)]


def noise_factors(
    sde: SDE,
    times: Tensor,
    rows: Sequence[MultistepNumbers],
    data_std: float,
) -> Tensor:
    """sqrt(q_i), (N,), of a method of x0 with these numbers of its steps."""
    s = sde.sigma(times) / sde.alpha(times)
    low, high = torch.stack([0.5 * s[-1], torch.full_like(s[-1], 4 * data_std)]).log10().tolist()
    variances = torch.logspace(low, high, WIDTHS, dtype=torch.float64).square()
    wanted, parts = variances + s[-1] ** 2, _parts(sde, times, variances, rows)
    unit = wanted + (LEAST * data_std) ** 2
    off, parts = (wanted - parts.sum(1)) / unit, parts[:, 1:] / unit[:, None]
    # q = 1 + d with d least in |parts d - off|^2 / WIDTHS + NEAR^2 |d|^2 + EVEN^2 |diff d|^2.
    eye = torch.eye(len(times) - 1, dtype=torch.float64)
    rough = NEAR**2 * eye + EVEN**2 * eye.diff(dim=0).T @ eye.diff(dim=0)
    spread = torch.linalg.solve(rough, parts.T)
    change = spread @ torch.linalg.solve(
        parts @ spread + WIDTHS * torch.eye(WIDTHS, dtype=torch.float64), off
    )
    return (1 + change).clamp_min(0).sqrt()


def _parts(
    sde: SDE,
    times: Tensor,
    variances: Tensor,
    rows: Sequence[MultistepNumbers],
) -> Tensor:
    """Variances of x/alpha at the end by start and noise of each step, (widths, N + 1)."""
    alpha, sigma = sde.alpha(times), sde.sigma(times)
    v = variances[:, None]
    total = alpha.square() * v + sigma.square()  # of x, (widths, N + 1)
    x = torch.zeros_like(total)
    x[:, 0] = total[:, 0].sqrt()
    history = History()
    for i, row in enumerate(rows):
        x = history.evaluated(x, alpha[i] * v / total[:, i : i + 1] * x, most=7)
        base = history.begin(x) * row.ratio
        base[:, i + 1] += row.noise
        x = history.predict(base, row.weights)
    return (x / float(alpha[-1])).square()
