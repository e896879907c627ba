r"""GR-SMC: particles that are told of y by a Gaussian, and weighed by what the Gaussian got wrong.

With the reference Gaussian N(mu, C) and its C_nu, S_nu and gain (see `algebra`), a particle x at
nu, with D = E[x_0 | x] from the network, goes to s < nu by

    z   = D + C_nu^{1/2} e_1,   x_0 = z + G_nu (y + S_y^{1/2} e_2 - A z),
    x'  = k x + (1 - k) x_0 + s sqrt(1 - k) e_3,   k = (s/nu)^2,

which is exact for Gaussian data at any length of step. The twist g_nu(x) = N(y; A D, S_nu) says how
well y is foretold; both p(x' | x) and its tilt by y are Gaussian, so that p/q = g_nu(x) / N(y; A m,
S_s), with m what the Gaussian at (x, nu) foretells the next denoiser to be:

    m       = D + C_s ((x'/s^2 - x/nu^2) - (1/s^2 - 1/nu^2) D)
    log w  += log N(y; A D', S_s) - log N(y; A m, S_s)

One evaluation a step, no derivative. Before it is weighed, the particle is corrected by half of
what surprised in the denoiser, as by the trapezoidal rule, which gives the step the second order:

    x'  <- x' + c (D' - m),   D' <- D' + C_s c (D' - m) / s^2,   c = (1 - k)/2.

It is a map of (x, x') alone, so the weights stay as they are. For Gaussian data D' = m, and all
weights are 1; as levels and particles grow the law is that of x_0 given y. Resampling is
systematic, along the direction in which D varies most, when the effective number is below half.
Where weights are so uneven that few would survive, they are raised to a power below 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from score_sde.checks import Fraction, checked
from score_sde.noise import SeededNoise
from score_sde.restoration.denoiser import Denoiser
from score_sde.restoration.levels import fitted, humped, starting_level
from score_sde.restoration.system import System

PILOT_SHARE, PILOT_LEVELS, PILOT_LEAST = 0.06, 24, 8
"""Of the budget for the pilot, its levels, and the fewest particles that are worth one."""


@dataclass(frozen=True)
class Cloud:
    """What a run of particles ends with: x (K, D) of x_0, log-weights (K,), and how it went.

    log_evidence: of log p(y), NaN where |S_nu| is not known (`System.normalised`). temper: the
    smallest power that weights were raised to. surprise: per step, see `levels.fitted`. unevenness:
    the variance of the log-weights of all steps together; the more, the more particles are needed.
    ancestors: how many of the first have descendants. mean: of x_0 by these weights (D,), less the
    noise of the last draw where the weights do not see it.
    """

    x: Tensor
    log_w: Tensor
    log_evidence: float
    temper: float
    surprise: list[float]
    unevenness: float
    ancestors: int
    mean: Tensor


class Draws:
    """The noise of one group of particles: a function of its seeds alone."""

    def __init__(self, seeds: Sequence[int], salt: int, like: Tensor, sizes: tuple[int, int, int]):
        state = np.random.SeedSequence([salt, *(seed % 2**64 for seed in seeds)])
        key = [int(state.generate_state(1, np.uint64)[0]) % 2**63]
        particles, D, m = sizes
        made = [SeededNoise(key, (particles, width), like.dtype, like.device) for width in (D, m)]
        self._state, self._measured = made
        self._single = SeededNoise(key, (1,), torch.float64)

    def state(self) -> Tensor:
        """Standard normal numbers (K, D)."""
        return self._state.draw()[0]

    def measured(self) -> Tensor:
        """Standard normal numbers (K, m)."""
        return self._measured.draw()[0]

    def uniform(self) -> float:
        """A number in (0, 1)."""
        return float(torch.special.ndtr(self._single.draw()))


def effective(log_w: Tensor) -> float:
    """(sum w)^2 / sum w^2: the effective number of particles."""
    return 1 / float(log_w.softmax(0).square().sum())


def tempered(log_w: Tensor, least: float) -> float:
    """The largest power in (0, 1] of the weights with an effective number of ``least`` or more.

    By Newton's steps on the logarithm of that number, 2 logsumexp(p log_w) - logsumexp(2 p log_w),
    from above; by halves where a step leads out of what is left.
    """
    if effective(log_w) >= least:
        return 1.0
    low, high, power = 0.0, 1.0, 1.0
    for _ in range(60):
        w = (power * log_w).softmax(0)
        doubled = w.square() / w.square().sum()
        over = -math.log(float(w.square().sum())) - math.log(least)
        low, high = (power, high) if over >= 0 else (low, power)
        if abs(over) < 1e-9 or high - low < 1e-12:
            break
        power += over / max(2 * float((doubled - w) @ log_w), 1e-300)
        power = power if low < power < high else (low + high) / 2
    return power


def systematic(log_w: Tensor, D: Tensor, n: int, u: float) -> Tensor:
    """n places, each particle's expected share its weight, in order of D's main direction."""
    order = torch.arange(len(D), device=D.device)
    if D.shape[1] > 1 and len(D) > 2:
        order = _along_main_direction(D - D.mean(0)).argsort()
    reached = log_w[order].softmax(0).cumsum(0)
    wanted = (torch.arange(n, dtype=reached.dtype, device=reached.device) + u) / n
    return order[torch.searchsorted(reached, wanted).clamp(max=len(D) - 1)]


def _along_main_direction(off: Tensor, rounds: int = 12) -> Tensor:
    """Coordinates (K,) of off (K, D) along about the direction in which it varies most.

    By powers of off' off from the row that is farthest: any order would do, a better one scatters
    less, and a decomposition costs more than all the rest of a level.
    """
    v = off[off.square().sum(1).argmax()]
    gram = off.mT @ off if off.shape[1] < len(off) else None
    for _ in range(rounds):
        v = v / v.norm().clamp_min(1e-300)
        v = off.mT @ (off @ v) if gram is None else gram @ v
    return off @ v


@dataclass
class Particles:
    """K particles of one measurement: flat x and D (K, D), log-weights (K,)."""

    system: System
    denoiser: Denoiser
    draws: Draws
    count: int
    least: float = 0.3
    log_evidence: float = 0.0
    temper: float = 1.0
    unevenness: float = 0.0
    surprise: list[float] = field(default_factory=list)

    def run(self, levels: Sequence[float], bearable: float = math.inf) -> Cloud:
        """From the first level to x_0; no further than to an unevenness above ``bearable``."""
        self.start(levels[0])
        for nu, s in zip(levels[:-1], levels[1:], strict=True):
            if self.unevenness > bearable:
                break
            if effective(self.log_w) < self.count / 2:
                self.resample()
            self.step(nu, s)
        x, log_w, expected = self.finish(levels[-1])
        evidence = self.log_evidence + float(log_w.logsumexp(0)) - math.log(self.count)
        ancestors = len(self.origin.unique())
        mean = log_w.softmax(0) @ expected
        told = self.temper, self.surprise, self.unevenness, ancestors, mean
        return Cloud(x, log_w, evidence, *told)

    def start(self, nu: float) -> None:
        """x = draw of the Gaussian given y + nu e, weighed by what the Gaussian had foretold."""
        system, mean = self.system, self.system.mean.expand(self.count, -1)
        m = system.measurement
        level = system.at(math.inf, mean)
        self.r = m.residual(mean)
        known = self.system.normalised
        self.log_evidence = float(level.log_density(self.r)[0]) if known else math.nan
        self.x = mean + level.drawn(m, mean, self.draws, self.r, white=nu)
        level = system.at(nu, mean)
        ahead = level.spread(self.x - mean) / nu**2
        expected = level.log_density(self.r - m.jvp(mean, ahead))
        self.D = self.denoiser(self.x, nu)
        self.log_w = self._twist(nu) - expected
        self.origin = torch.arange(self.count, device=self.x.device)

    def resample(self) -> None:
        """Particles in proportion to their weights, which become equal."""
        power = tempered(self.log_w, self.least * self.count)
        self.temper = min(self.temper, power)
        places = systematic(power * self.log_w, self.D, self.count, self.draws.uniform())
        self.log_evidence += float(self.log_w.logsumexp(0)) - math.log(self.count)
        self.x, self.D, self.r = self.x[places], self.D[places], self.r[places]
        self.origin = self.origin[places]
        self.log_w = torch.zeros_like(self.log_w)

    def step(self, nu: float, s: float) -> None:
        """One level down. news: x'/s^2 - x/nu^2 - (1/s^2 - 1/nu^2) D."""
        system, m, k = self.system, self.system.measurement, (s / nu) ** 2
        off = system.at(nu, self.D).drawn(
            m, self.D, self.draws, self.r, 1 - k, s * math.sqrt(1 - k)
        )
        x, news, level = k * self.x + (1 - k) * self.D + off, off / s**2, system.at(s, self.D)
        ahead = level.spread(news)
        expected = level.log_density(self.r - m.jvp(self.D, ahead))
        D = self.denoiser(x, s)
        surprise = D - self.D - ahead
        weights = self.log_w.softmax(0)
        self.surprise.append(float(weights @ surprise.square().sum(1)))
        moved = (1 - k) / 2 * surprise
        self.x, self.D = x + moved, D + level.spread(moved) / s**2
        news_of_y = self._twist(s) - expected
        self.unevenness += float(weights @ (news_of_y - weights @ news_of_y) ** 2)
        self.log_w = self.log_w + news_of_y

    def _twist(self, nu: float) -> Tensor:
        """log N(y; A D, S_nu), (K,); r = y - A D is kept."""
        self.r = self.system.measurement.residual(self.D)
        return self.system.at(nu, self.D).log_density(self.r)

    def finish(self, nu: float) -> tuple[Tensor, Tensor, Tensor]:
        """x_0, the last weights, the true likelihood against that of the proposal, and E[x_0]."""
        m, level = self.system.measurement, self.system.at(nu, self.D)
        off = level.drawn(m, self.D, self.draws, self.r)
        x0 = self.D + off
        if m.operator.linear and m.poisson is None:
            return x0, self.log_w, self.D + level.gain(self.r)
        linear = m.y - self.r + m.jvp(self.D, off)
        proposed = -0.5 * ((m.y - linear).square() / m.variance).sum(1)
        return x0, self.log_w + m.log_prob(m.predict(x0)) - proposed, x0


@dataclass(frozen=True)
class Plan:
    """The levels to go through, the rows that finding them took, and what it showed.

    unevenness: of the pilot's weights, see `Cloud`; 0 without a pilot.
    """

    levels: Sequence[float]
    spent: int = 0
    unevenness: float = 0.0


def count_levels(nfe: int) -> int:
    """How many levels share nfe evaluations a draw; the rest of the budget is for particles."""
    return max(3, round(2.5 * nfe**0.55))


def plan(
    system: System,
    denoiser: Denoiser,
    budget: int,
    nfe: int,
    seeds: Sequence[int],
    temper: float = 0.3,
    bearable: float | None = None,
) -> Plan:
    """N = 2.5 nfe^0.55 levels, dense where a pilot of few particles was surprised.

    Without a pilot, where the budget (in rows) has none, dense as `levels.humped`. bearable: the
    unevenness above which there is no use for levels, so that the pilot ends and there are none; it
    is made of the fewest particles even without the budget then.
    """
    low, high = denoiser.range
    largest = float(system.lam.max().sqrt())
    high = starting_level(largest, high)
    count = count_levels(nfe)
    affordable = int(PILOT_SHARE * budget) // PILOT_LEVELS
    if affordable < PILOT_LEAST and bearable is None:
        return Plan(humped(high, low, count, largest))
    tried = humped(high, low, PILOT_LEVELS, largest)
    pilot = _particles(system, denoiser, max(affordable, PILOT_LEAST), seeds, 1, temper)
    cloud = pilot.run(tried, math.inf if bearable is None else bearable)
    if len(cloud.surprise) < len(tried) - 1:
        return Plan([], pilot.count * (1 + len(cloud.surprise)), cloud.unevenness)
    levels = fitted(tried, cloud.surprise, count)
    return Plan(levels, pilot.count * PILOT_LEVELS, cloud.unevenness)


def _particles(
    system: System, denoiser: Denoiser, count: int, seeds: Sequence[int], salt: int, temper: float
) -> Particles:
    sizes = (count, system.lam.numel(), system.measurement.y.shape[1])
    draws = Draws(seeds, salt, system.lam, sizes)
    return Particles(system, denoiser, draws, count, least=temper)


@checked
def run_particles(
    system: System,
    denoiser: Denoiser,
    n: int,
    nfe: int,
    seeds: Sequence[int],
    temper: Fraction = 0.3,
    planned: Plan | None = None,
) -> tuple[Tensor, Cloud]:
    """n draws (n, D) of x_0 given the one measurement of ``system``, and the particles at the end.

    nfe: evaluations for each draw, the pilot's counted in. temper: the share of effective particles
    below which weights are raised to a power; 0 is never. planned: see `plan`.
    """
    planned = planned or plan(system, denoiser, nfe * n, nfe, seeds, temper)
    count = max(2, (nfe * n - planned.spent) // len(planned.levels))
    main = _particles(system, denoiser, count, seeds, 0, temper)
    cloud = main.run(planned.levels)
    return cloud.x[systematic(cloud.log_w, cloud.x, n, main.draws.uniform())], cloud
