r"""Independent samples: from level to level by E[x_0 | x, y], without weights.

The Gaussian kernel draws x_0 ~ N(D_y, C_nu given y), with D_y the mean of any of `means.MEANS`, and
goes to s < nu by q(x_s | x, x_0): exact for Gaussian data at any length of step. Pictures are far
better known from x_t than a Gaussian says, and few steps leave grain. The kernel "seen" keeps of
that noise only what A sees, where the noise of y and not the picture decides; "ddpm" goes by D_y
itself, and "renoise" forgets x but for D_y and a share of its noise (2305.08995, eq. 14).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from score_sde.checks import Fraction, Positive, check_names, checked, require
from score_sde.noise import SeededNoise
from score_sde.restoration.algebra import Level
from score_sde.restoration.average import Course
from score_sde.restoration.denoiser import Denoiser
from score_sde.restoration.levels import humped, starting_level
from score_sde.restoration.means import Method, Point, mean_at
from score_sde.restoration.system import System

KERNELS = ("gaussian", "seen", "ddpm", "renoise")


class SampleDraws:
    """The noise of independent samples: of each, a function of its seed alone."""

    def __init__(self, seeds: Sequence[int], like: Tensor, D: int, m: int):
        self._state = SeededNoise(seeds, (D,), like.dtype, like.device)
        other = [seed ^ 0x5DEECE66D for seed in seeds]
        self._measured = SeededNoise(other, (m,), like.dtype, like.device)

    def state(self) -> Tensor:
        """Standard normal numbers (B, D)."""
        return self._state.draw()

    def measured(self) -> Tensor:
        """Standard normal numbers (B, m)."""
        return self._measured.draw()


def gaussian_start(
    system: System, draws: SampleDraws, n: int, nu: float, course: Course | None = None
) -> Tensor:
    """n draws (n, D) of the reference Gaussian given y, with noise of level nu."""
    m, mean = system.measurement, system.mean.expand(n, -1)
    level = system.at(math.inf, mean)
    off = level.drawn(m, mean, draws, white=nu)
    if course is not None:
        course.start(system, off)
    return mean + level.gain(m.residual(mean)) + off


def seen_noise(level: Level, p: Point, D_y: Tensor, draws: SampleDraws) -> Tensor:
    """Noise (B, D) that only A sees: of A x_0 given y, as far as y leaves room for it.

    By C_nu it is u ~ N(0, S_y - S_y S_nu^{-1} S_y), |u|^2 = tr(A G_nu) on average, lengths
    being those by S_y^{-1}. C_nu is not Cov[x_0 | x_t]. But whatever that is, a draw given y is as
    far from y as the truth, E|y - A x_0|^2 = m, and D_y has left a part of that already:

        u <- u sqrt((m - |y - A D_y|^2) / tr(A G_nu)),   never longer.

    From there to states by A^+ where A A' is diagonal, else by G_nu.
    """
    m = p.system.measurement
    u = level.seen(m, p.D, draws)
    left = m.y.shape[1] * (1 - m.misfit(D_y)[:, None])
    u = u * (left / level.freedom()).clamp(0, 1).sqrt()
    if not m.operator.linear or m.operator.gram(m.shape) is None:
        return level.gain(u)
    return m.operator.pinv(u.reshape(-1, *m.operator.measured(m.shape)), m.shape).flatten(1)


@checked
def run_kernel(
    system: System,
    denoiser: Denoiser,
    method: Method,
    options: dict[str, Any],
    seeds: Sequence[int],
    nfe: int,
    kernel: str | None = None,
    fresh: Fraction = 0.3,
    levels: Sequence[Positive] | None = None,
    course: Course | None = None,
) -> Tensor:
    """One draw (B, D) for each seed, of at most ``nfe`` evaluations and products.

    Starts at 5 times the data's largest standard deviation from a draw of the reference Gaussian
    given y. kernel: of `KERNELS`, or the one that the method was published with. fresh: the share
    of new noise of kernel="renoise". course: is told of D_y on the way.
    """
    kernel = kernel or method.kernel
    check_names([kernel], KERNELS, "kernel")
    low, high = denoiser.range
    largest = float(system.lam.max().sqrt())
    high = starting_level(largest, high)
    if levels is None:
        levels = humped(high, low, max(2, nfe // (1 + method.products)), largest)
    falling = all(s < nu for nu, s in itertools.pairwise(levels))
    require(falling and len(levels) > 0, f"levels must fall, sigma/alpha (got {list(levels)}).")
    m = system.measurement
    draws = SampleDraws(seeds, system.lam, system.lam.numel(), m.y.shape[1])
    course = course or Course()
    x = gaussian_start(system, draws, len(seeds), levels[0], course)
    foretold, share = None, 0.0
    for i, (nu, s) in enumerate(zip(levels, [*levels[1:], 0.0], strict=True)):
        p, D_y = mean_at(method, options, system, denoiser, x, nu)
        D, level, k = p.D, p.level, (s / nu) ** 2
        if foretold is not None:
            x, D_y = corrected(system, nu, D, x, D_y, foretold, share)
        if kernel == "seen":
            x0 = D_y + seen_noise(level, p, D_y, draws)
        elif kernel == "gaussian" and s == 0:
            x0 = D_y + level.drawn(m, D, draws)
        else:
            x0 = D_y
        course.add(i, len(levels), nu, D_y, x0)
        if s == 0:
            return x0
        if kernel == "renoise":
            kept = math.sqrt(1 - fresh) * (x - D_y) / nu
            x = D_y + s * (kept + math.sqrt(fresh) * draws.state())
            continue
        if kernel == "gaussian":
            noise = level.drawn(m, D, draws, None, 1 - k, s * math.sqrt(1 - k))
            # x'/s^2 - x/nu^2 - (1/s^2 - 1/nu^2) D_y = noise/s^2
            foretold = D_y + system.at(s, D).given_spread(m, D, noise / s**2)
        else:
            noise = (1 - k) * (x0 - D_y) + s * math.sqrt(1 - k) * draws.state()
        course.step(nu, s, noise)
        x, share = k * x + (1 - k) * D_y + noise, 1 - k
    raise AssertionError("the last level is 0")


def corrected(
    system: System, nu: float, D: Tensor, x: Tensor, D_y: Tensor, foretold: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """x and D_y moved by half of what surprised in D_y, as particles are (`particles`)."""
    surprise = D_y - foretold
    level, m = system.at(nu, D), system.measurement
    moved = share / 2 * surprise
    return x + moved, D_y + level.given_spread(m, D, moved) / nu**2
