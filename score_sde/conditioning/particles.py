r"""Guidance that samples what it says: the law p(x | c)^w p(x)^(1-w), by weighed particles.

The guided score s = u + w (c - u) is the gradient of log q_t, q_t ~ p_t(x | c)^w p_t(x)^(1-w), but
the q_t are no diffusion of q_0: the reverse SDE with s misses their law by what its particles lose
and win on the way (Feynman-Kac correctors, 2503.02819, section 4.2). A particle's weight keeps
account of it. With R = alpha^2/sigma^2 and D the denoised x_0 of either score,

    d log weight = w (w - 1)/2 |D_c - D_u|^2 dR,

which is also what a step loses exactly when its two reverse kernels p(x_s | x_t) are Gaussians of
one variance: their product of powers is the guided kernel times this. Where weights have become
unequal, particles are drawn anew by them; Langevin steps with s, which leave q_t as it is, set
apart those that became equal. All of a population hang together, so that a particle does not
depend on its own seed alone, and the law is reached as their number and the steps grow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from score_sde.checks import BatchShape, NonNegative, Share, Size, UserError, checked
from score_sde.conditioning.guidance import Guided
from score_sde.noise import SeededNoise, fresh_seeds, generator_of
from score_sde.processes.expand import expand
from score_sde.processes.sdes import SDE


@dataclass(frozen=True)
class Particles:
    """x (B, ...) of equal weight, and how it went.

    draws: how often they were drawn anew. smallest: the smallest effective share before a draw.
    nfe: evaluations of each score.
    """

    x: Tensor
    draws: int
    smallest: float
    nfe: int


@torch.no_grad()
@checked
def sample_tilted(
    score: Guided,
    shape: BatchShape,
    *,
    steps: Size = 200,
    seeds: Sequence[int] | None = None,
    langevin: NonNegative = 0.1,
    share: Share = 0.5,
    dtype: torch.dtype = torch.float32,
) -> Particles:
    """Particles of the law p(x | c)^w p(x)^(1-w) of a guided score, as one population.

    score: of `guide` with a constant scale w >= 0 and nothing else; what it is told is the same for
        all particles.
    shape: (B, ...). steps: of the reverse SDE, equal in log-SNR. seeds: one a place.
    langevin: size of the Langevin steps, in sigma_t^2; 0 for none. Each is an evaluation more.
    share: particles are drawn anew when the effective number falls below this share of them.

    Raises UserError for a score with an interval, a rule or a scale that changes, for which the
    weights would be others.
    """
    check_tilted(score)
    sde, w, n = score.sde, float(score.scale), shape[0]  # type: ignore[arg-type]
    seeds = fresh_seeds(n) if seeds is None else list(seeds)
    noise = SeededNoise(seeds, shape[1:], dtype, "cpu")
    lot = generator_of(sum(seeds) % 2**64)
    times, ratios = _grid(sde, steps)

    x, log_weight = sde.prior_std() * noise.draw(), torch.zeros(n, dtype=torch.float64)
    draws, smallest = 0, 1.0
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        c, u = score.both(x, t)
        if langevin:
            size = langevin * float(sde.sigma(t)) ** 2
            x = x + size * torch.lerp(u, c, w) + math.sqrt(2 * size) * noise.draw()
            c, u = score.both(x, t)
        apart = (sde.denoise(x, t, c) - sde.denoise(x, t, u)).flatten(1).double()
        log_weight += 0.5 * w * (w - 1) * (ratios[i + 1] - ratios[i]) * apart.square().sum(1)
        x = _reverse_step(sde, x, torch.lerp(u, c, w), t, s, noise.draw())
        effective = _effective_share(log_weight)
        if effective < share or i == steps - 1:
            smallest = min(smallest, effective)
            x, draws = x[_draw(log_weight, lot)], draws + 1
            log_weight.zero_()
    c, u = score.both(x, times[-1])
    x = sde.denoise(x, times[-1], torch.lerp(u, c, w))
    return Particles(x, draws, smallest, steps * (2 if langevin else 1) + 1)


def _grid(sde: SDE, steps: int) -> tuple[Tensor, Tensor]:
    """Times equal in log-SNR from t_max to t_min, and alpha^2/sigma^2 there, (steps + 1,)."""
    ends = torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)
    first, last = sde.log_snr(ends).tolist()
    levels = torch.linspace(first, last, steps + 1, dtype=torch.float64)
    times = sde.time_of_log_snr(levels)
    times[0], times[-1] = ends
    return times, levels.exp()


def check_tilted(score: Guided) -> None:
    """UserError for a guided score whose law is not the tilted one."""
    plain = score.rule.__class__.__name__ == "ClassifierFree" and not callable(score.scale)
    if not plain or score.interval or score.rescale or score.threshold is not None:
        raise UserError(
            "the tilted law p(x|c)^w p(x)^(1-w) is that of a constant scale and the rule cfg, "
            "without interval, rescale and threshold."
        )


def _reverse_step(sde: SDE, x: Tensor, value: Tensor, t: Tensor, s: Tensor, z: Tensor) -> Tensor:
    """From t to s by the reverse SDE with the denoised x_0 held still (SDE-DPM-Solver++, order 1).

    x_s = (sigma_s/sigma_t) e^-h x + alpha_s (1 - e^-2h) x_0 + sigma_s sqrt(1 - e^-2h) z, h half
    the step in log-SNR (2211.01095, eq. 18).
    """
    h = 0.5 * (sde.log_snr(s) - sde.log_snr(t))
    clean = sde.denoise(x, t, value)
    grown = -torch.expm1(-2 * h)
    kept = sde.sigma(s) / sde.sigma(t) * torch.exp(-h)
    mean = expand(kept, x) * x + expand(sde.alpha(s) * grown, x) * clean
    return mean + expand(sde.sigma(s) * grown.sqrt(), x) * z


def _effective_share(log_weight: Tensor) -> float:
    """(sum w)^2 / (n sum w^2), 1 for equal weights."""
    w = log_weight.softmax(0)
    return float(1 / (len(w) * w.square().sum()))


def _draw(log_weight: Tensor, lot: torch.Generator) -> Tensor:
    """n places in proportion to weight, systematically: one random number for all."""
    n = len(log_weight)
    points = (torch.arange(n, dtype=torch.float64) + torch.rand((), generator=lot)) / n
    return torch.searchsorted(log_weight.softmax(0).cumsum(0), points).clamp(max=n - 1)
