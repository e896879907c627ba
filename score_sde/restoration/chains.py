r"""Unbiased in the limit, for comparison: chains whose law is the posterior, and slow.

Where everything else here approximates p(x_0 | y) from the way down, a chain at the last level
leaves the posterior as it is, with the true likelihood; its bias is that of a start which it has
not yet forgotten. Both go down by levels first, so that modes are found. Coordinates are those of
`denoiser`: x = x_t / alpha, nu = sigma / alpha.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from score_sde.checks import Count, checked
from score_sde.noise import SeededNoise
from score_sde.restoration.denoiser import Denoiser
from score_sde.restoration.kernel import SampleDraws, gaussian_start
from score_sde.restoration.levels import karras, starting_level
from score_sde.restoration.system import System


def begin(
    system: System, denoiser: Denoiser, seeds: Sequence[int], n: int
) -> tuple[list[float], SampleDraws, Tensor]:
    """n Karras levels over the range, the noise, and x at the first level."""
    low, high = denoiser.range
    high = starting_level(float(system.lam.max().sqrt()), high)
    levels = karras(high, low, max(2, n))
    draws = SampleDraws(seeds, system.lam, system.lam.numel(), system.measurement.y.shape[1])
    x = system.mean + system.gaussian.from_axes(system.lam.sqrt() * draws.state())
    return levels, draws, x + levels[0] * draws.state()


def ancestral(x: Tensor, D: Tensor, nu: float, s: float, e: Tensor) -> Tensor:
    """A draw of q(x_s | x, x_0 = D)."""
    k = (s / nu) ** 2
    return k * x + (1 - k) * D + s * math.sqrt(1 - k) * e


@checked
def gibbs(
    system: System, denoiser: Denoiser, seeds: Sequence[int], nfe: int, inner: Count = 20
) -> Tensor:
    """Split Gibbs without bias, for comparison: slow, and exact as rounds and ``inner`` grow.

    With rho <= std(y) / |A| the noise of y is split between z = x + rho e and y = A z + n,
    n ~ N(0, S_y - rho^2 A A'), so that x has the posterior's law whatever rho is; rho falls to it
    from above, after which rounds mix slowly. Needs noise that is the same for all entries.
    """
    m = system.measurement
    norm = float(torch.linalg.matrix_norm(system.matrix(), 2))
    last = 0.95 * float(m.variance.min().sqrt()) / norm
    rounds = max(1, nfe // inner)
    low, high = denoiser.range
    falling = karras(min(10.0, high), max(last, 1.5 * low), max(2, rounds // 2))
    _, draws, x = begin(system, denoiser, seeds, 2)
    A = system.gaussian.from_axes(system.matrix())
    for i in range(rounds):
        rho = falling[min(i, len(falling) - 1)]
        split = rho**2 * A @ A.mT
        rest = m.covariance - split if rho <= last else m.covariance
        root = torch.linalg.cholesky(split + rest)
        noise = draws.measured() @ torch.linalg.cholesky(rest).mT
        off = rho * draws.state()
        pull = torch.cholesky_solve((m.residual(x) + noise - off @ A.mT).mT, root).mT
        z = x + off + rho**2 * pull @ A
        x = z
        path = karras(rho, low, inner)
        for nu, s in zip(path, [*path[1:], 0.0], strict=True):
            x = ancestral(x, denoiser(x, nu), nu, s, draws.state())
    return x


@checked
def mala(
    system: System, denoiser: Denoiser, seeds: Sequence[int], nfe: int, stay: Count = 4
) -> Tensor:
    """Langevin steps with Metropolis' test under p_nu(x) p(y | x), nu falling to its least.

    p_nu is the law of x = x_0 + nu e and the likelihood is the true one at every level, so that the
    law at the last level is the posterior of data that are smoothed by sigma/alpha at t_min. A step
    is preconditioned by P = (I/nu^2 + A' S_y^{-1} A)^{-1},

        x' = x + h P g(x) + sqrt(2 h) P^{1/2} e,   g = (D - x)/nu^2 + A' S_y^{-1} (y - A x),

    (Roberts and Tweedie 1996). Its test needs log p_nu(x') - log p_nu(x), which is the integral of
    the score from x to x', by Simpson's rule with one evaluation half-way. Each chain finds its own
    length of step h: 2 % longer after a step that was taken, 3 % shorter after one that was not.
    stay: steps at each level; a third of all are made at the last. Modes that are far apart keep
    the weights that they had where chains last went between them: for these, particles. 2
    evaluations a step, and one a level.
    """
    m = system.measurement
    count = max(2, 2 * nfe // (3 * (2 * stay + 1)))
    levels, draws, _ = begin(system, denoiser, seeds, count)
    x = gaussian_start(system, draws, len(seeds), levels[0])
    h = torch.full((len(x), 1), 0.5).to(x)
    coin = SeededNoise([seed ^ 0x2545F491 for seed in seeds], (1,), x.dtype, x.device)
    at, D = levels[0], denoiser(x, levels[0])
    for i in range(max(1, (nfe - count) // 2)):
        nu = levels[min(i // stay, count - 1)]
        if nu != at:
            at, D = nu, denoiser(x, nu)
        white = system.isotropic(nu**2, x)
        pull = (D - x) / nu**2
        drift = white.given_spread(m, x, pull + _towards(system, x))
        new = x + h * drift + (2 * h).sqrt() * white.drawn(m, x, draws)
        half = (x + new) / 2
        D_half, D_new = denoiser(half, nu), denoiser(new, nu)
        pulls = pull + 4 * (D_half - half) / nu**2 + (D_new - new) / nu**2
        gain = (pulls * (new - x)).sum(1) / 6
        gain = gain + m.log_prob(m.predict(new)) - m.log_prob(m.predict(x))
        drift_new = white.given_spread(m, new, (D_new - new) / nu**2 + _towards(system, new))
        forth, back = new - x - h * drift, x - new - h * drift_new
        gain = gain + (_energy(system, nu, forth) - _energy(system, nu, back)) / (4 * h[:, 0])
        taken = torch.special.ndtr(coin.draw()) < gain[:, None].exp()
        x, D = torch.where(taken, new, x), torch.where(taken, D_new, D)
        h = (h * torch.where(taken, 1.02, 0.97)).clamp(1e-6, 10.0)
    return x


def _towards(system: System, x: Tensor) -> Tensor:
    """A' S_y^{-1} (y - A x), the gradient of the log-likelihood, (B, D)."""
    m = system.measurement
    return m.vjp(x, _whitened(system, m.residual(x)))


def _whitened(system: System, r: Tensor) -> Tensor:
    """S_y^{-1} r, (B, m)."""
    m = system.measurement
    return r / m.variance if m.root is None else torch.cholesky_solve(r.mT, m.root).mT


def _energy(system: System, nu: float, v: Tensor) -> Tensor:
    """v' (I/nu^2 + A' S_y^{-1} A) v, (B,)."""
    Av = system.measurement.jvp(v, v)
    return v.square().sum(1) / nu**2 + (Av * _whitened(system, Av)).sum(1)
